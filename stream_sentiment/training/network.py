"""The network that is trained: a BERT encoder, one linear head per declared task, and a wide shortcut of
hashed token n-grams.

In: padded token ids and their lengths. Out: one logits tensor per head. Blocks on arithmetic only. Raises
`ConfigurationError` for a checkpoint that is not of the BERT family.

Written out instead of taken from a library for three reasons: plain bf16 matrix products for attention (the
CPU flash kernel's backward is 5 to 8 times slower at these lengths), fused Q, K and V, and sparse gradients
for the word vectors (a dense Adam step over 46 k x 384 would cost as much as the forward pass).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.heads import Head, HeadKind

# Multipliers of the n-gram hash, odd and unlike each other, so that (a, b) and (b, a) fall apart and the low bits keep all of a token
# id. A product stays below 2**16 * 2**24 = 2**40; int64 never overflows. The ONNX graph computes the same expression (graph.py).
HASH_FIRST = 1_000_003
HASH_SECOND = 7_368_787
HASH_TOKEN = 15_485_863
HASH_SKIP = 12_195_257

GATE_SLOPE = 0.25
"""The tangent of the logistic function at 0: the gate is fitted as a logistic regression."""

PARTS = 4
"""A Chinese word shows its first four characters to the shortcut; 99 % of the vocabulary's words have no more."""


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Sizes of the network. `wide_buckets` = 0 leaves the shortcut out."""

    vocab_size: int
    hidden_size: int = 384
    num_layers: int = 6
    num_heads: int = 12
    intermediate_size: int = 1536
    max_positions: int = 96
    layer_norm_eps: float = 1e-12
    wide_buckets: int = 0
    wide_gate: bool = False  # the shortcut is weighted by how much a text reads like the texts it was fitted on

    @classmethod
    def from_bert(cls, config: Mapping[str, Any], *, max_positions: int, wide_buckets: int = 0) -> NetworkConfig:
        """From the `config.json` of a BERT checkpoint directory; refuses what the network cannot compute."""
        if config.get("model_type") != "bert":
            raise ConfigurationError(
                f"config.json says model_type {config.get('model_type')!r}; only BERT-family checkpoints can be trained"
            )
        if config.get("hidden_act") != "gelu" or config.get("position_embedding_type", "absolute") != "absolute":
            raise ConfigurationError(
                "config.json asks for another activation or position kind; gelu and absolute are supported"
            )
        return cls(
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=int(config["num_attention_heads"]),
            intermediate_size=int(config["intermediate_size"]),
            max_positions=max_positions,
            layer_norm_eps=float(config["layer_norm_eps"]),
            wide_buckets=wide_buckets,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class InputRange:
    """What int8 needs to know of a layer's input: smallest and largest value after division by `smooth` (one factor a channel)."""

    low: float
    high: float
    smooth: npt.NDArray[np.float32] | None = None


class Linear(nn.Linear):
    """A linear layer whose fp32 master weights are cast to the type of its input.

    With `input_range` set it computes what the int8 graph will compute, rounding included, with gradients as if nothing were
    rounded (straight-through estimator, Bengio et al. 2013; Jacob et al. 2018).
    """

    input_range: InputRange | None = None

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if self.input_range is not None:
            if self.input_range.smooth is not None:
                factor = torch.as_tensor(self.input_range.smooth, device=input.device)
                input, weight = input / factor.to(input.dtype), weight * factor
            input = fake_quantise(input, self.input_range.low, self.input_range.high)
            weight = fake_quantise_rows(weight)
        return F.linear(input, weight.to(input.dtype), self.bias.to(input.dtype))


class Layer(nn.Module):
    """One transformer layer, post-norm as in BERT."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.qkv = Linear(hidden, 3 * hidden)
        self.attention_out = Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.up = Linear(hidden, inner)
        self.down = Linear(inner, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.num_heads = config.num_heads
        self.dropout = (
            0.0  # of both residual branches; 0 on a CPU, whose random numbers cost more than the matrix products
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: batch x length x hidden; mask: batch x 1 x 1 x length, 0 for tokens and -1e4 for padding."""
        batch, length, hidden = x.shape
        size = hidden // self.num_heads
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, size).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        if x.is_cuda:
            context = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)
            return self._rest(x, context.reshape(batch, length, hidden))
        weights = (torch.matmul(query * (1.0 / math.sqrt(size)), key.transpose(-1, -2)) + mask).softmax(-1)
        context = torch.matmul(weights, value).transpose(1, 2)
        return self._rest(x, context.reshape(batch, length, hidden))

    def _rest(self, x: Tensor, context: Tensor) -> Tensor:
        x = _norm(self.attention_norm, x + self._drop(self.attention_out(context)))
        return _norm(self.output_norm, x + self._drop(self.down(F.gelu(self.up(x)))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class SentimentNetwork(nn.Module):
    """Encoder, mean pooling over the real tokens ([CLS] and [SEP] included), heads.

    Master weights are fp32; `compute_dtype` is the type of the encoder's arithmetic (bf16 where the CPU has
    it). Heads, pooling and the shortcut stay in fp32.
    """

    parts: Tensor
    prints: Tensor

    def __init__(self, config: NetworkConfig, heads: tuple[Head, ...]) -> None:
        super().__init__()
        self.config = config
        self.head_specs = heads
        self.words = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0, sparse=True)
        self.positions = nn.Parameter(torch.randn(config.max_positions, config.hidden_size) * 0.02)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.heads = nn.ModuleDict({h.name: nn.Linear(config.hidden_size, h.width) for h in heads})
        self.wide: nn.Embedding | None = None
        if config.wide_buckets:
            self.wide = nn.Embedding(config.wide_buckets, sum(h.width for h in heads), sparse=True)
            nn.init.zeros_(self.wide.weight)
            # Token id -> ids of its characters, 0 where there are none; see `word_parts`.
            self.register_buffer("parts", torch.zeros(config.vocab_size, PARTS, dtype=torch.int64))
            # Fingerprint of the n-gram that owns a bucket, 0 for an empty one; see `lookup`.
            self.register_buffer("prints", torch.zeros(config.wide_buckets, dtype=torch.uint8))
        self.gate: nn.Linear | None = nn.Linear(config.hidden_size, 1) if config.wide_gate else None
        self.compute_dtype = torch.float32

    def pooled(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids: batch x length int64; lengths: batch. Returns the mean vector, batch x hidden, fp32."""
        return self.encode(self.words(ids), lengths)

    def encode(self, words: Tensor, lengths: Tensor) -> Tensor:
        """The same from word vectors, batch x length x hidden; the part that `torch.compile` takes."""
        hidden, keep = self.hidden(words, lengths)
        return pool(hidden, keep, lengths)

    def hidden(self, words: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Token vectors of the last layer, batch x length x hidden in `compute_dtype`, and which of them are real."""
        length = words.shape[1]
        dtype = self.compute_dtype
        x = _norm(self.embedding_norm, (words + self.positions[:length]).to(dtype))
        keep = torch.arange(length, device=words.device)[None] < lengths[:, None]
        mask = torch.zeros(words.shape[0], 1, 1, length, dtype=dtype, device=words.device)
        mask = mask.masked_fill(~keep[:, None, None], -1e4)
        for layer in self.layers:
            x = layer(x, mask)
        return x, keep

    def forward(self, ids: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Logits by head name: batch x width, fp32."""
        pooled = self.pooled(ids, lengths)
        logits = {name: head(pooled) for name, head in self.heads.items()}
        if self.wide is not None:
            wide = self.wide_logits(ids, lengths, pooled)
            logits = {name: z + wide[name] for name, z in logits.items()}
        return logits

    def wide_sum(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Sum of the table rows of the text's n-grams over the root of its length: batch x sum of head widths."""
        assert self.wide is not None
        keys, live = ngrams(ids, self.parts)
        buckets, fingerprints = lookup(keys, self.config.wide_buckets)
        live = live * (self.prints[buckets] == fingerprints)
        rows = self.wide(buckets)
        summed: Tensor = (rows * live[:, :, None].float()).sum(1)
        return summed / lengths.float().sqrt()[:, None]

    def wide_logits(self, ids: Tensor, lengths: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        """`wide_sum` by head, times the gate where there is one."""
        widths = [h.width for h in self.head_specs]
        parts = torch.split(self.wide_sum(ids, lengths) * self.gate_of(pooled), widths, dim=1)
        return {h.name: part for h, part in zip(self.head_specs, parts, strict=True)}

    def gate_of(self, pooled: Tensor) -> Tensor:
        """How much the shortcut counts for these texts: batch x 1 in 0..1. Straight between the ends, so that a graph computes the
        same bits for any batch.
        """
        if self.gate is None:
            return torch.ones(len(pooled), 1, device=pooled.device)
        z: Tensor = self.gate(pooled)
        return (z * GATE_SLOPE + 0.5).clamp(0.0, 1.0)

    def head(self, name: str) -> nn.Linear:
        """The linear layer of one head."""
        module = self.heads[name]
        assert isinstance(module, nn.Linear)
        return module

    def body_parameters(self) -> list[nn.Parameter]:
        """All that is neither word vectors, nor shortcut, nor head."""
        skip = {id(p) for p in self.heads.parameters()} | {id(self.words.weight)}
        if self.gate is not None:
            skip |= {id(p) for p in self.gate.parameters()}
        if self.wide is not None:
            skip.add(id(self.wide.weight))
        return [p for p in self.parameters() if id(p) not in skip]

    @property
    def quantised(self) -> bool:
        """Whether `set_quantisation` is in force."""
        return any(isinstance(m, Linear) and m.input_range is not None for m in self.modules())

    def set_quantisation(self, ranges: Mapping[str, InputRange] | None) -> None:
        """Compute as the int8 graph with these input ranges would (`quantize.activation_ranges`); None: as the fp32 graph."""
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                module.input_range = None if ranges is None else ranges[name]


def pool(hidden: Tensor, keep: Tensor, lengths: Tensor) -> Tensor:
    """Mean of the real token vectors: batch x hidden, fp32."""
    return torch.einsum("blh,bl->bh", hidden.float(), keep.float()) / lengths[:, None]


def fake_quantise(x: Tensor, low: float, high: float) -> Tensor:
    """x rounded to the 256 levels of a uint8 with this range; the gradient passes where x lies inside it."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255.0
    zero = round(-low / scale)
    clipped = x.clamp((0 - zero) * scale, (255 - zero) * scale)
    return clipped + ((clipped / scale).round() * scale - clipped).detach()


def fake_quantise_rows(weight: Tensor) -> Tensor:
    """Every row (output of a linear layer, vector of a word) rounded to the 255 levels of its own symmetric int8."""
    scale = weight.detach().abs().amax(dim=-1, keepdim=True).clamp_min(1e-8) / 127.0
    return weight + ((weight / scale).round() * scale - weight).detach()


def ngrams(ids: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """Hash keys of a text's n-grams and 1 where they are real: batch x n int64 each.

    Tokens; characters of Chinese words; pairs of neighbouring characters, inside a word and from one token to the next (for English
    that is the pair of tokens); pairs of tokens; pairs with one token between. A character has the same key alone and in a word.
    """
    batch = ids.shape[0]
    keep = (ids != 0).long()
    pieces = parts[ids]  # batch x length x PARTS
    inside = (pieces != 0).long()
    first = torch.where(pieces[:, :, 0] != 0, pieces[:, :, 0], ids)
    count = inside.sum(2)
    last = torch.where(count != 0, pieces.gather(2, (count - 1).clamp_min(0)[:, :, None])[:, :, 0], ids)
    next_live, skip_live = keep[:, 1:], keep[:, 2:]
    found = [
        (ids * HASH_FIRST, keep),
        ((pieces * HASH_FIRST).reshape(batch, -1), inside.reshape(batch, -1)),
        (
            (pieces[:, :, :-1] * HASH_FIRST + pieces[:, :, 1:] * HASH_SECOND).reshape(batch, -1),
            inside[:, :, 1:].reshape(batch, -1),
        ),
        (last[:, :-1] * HASH_FIRST + first[:, 1:] * HASH_SECOND, next_live),
        (ids[:, :-1] * HASH_FIRST + ids[:, 1:] * HASH_TOKEN, next_live),
        (ids[:, :-2] * HASH_FIRST + ids[:, 2:] * HASH_SKIP, skip_live),
    ]
    return torch.cat([keys for keys, _ in found], dim=1), torch.cat([live for _, live in found], dim=1)


def lookup(keys: Tensor, buckets: int) -> tuple[Tensor, Tensor]:
    """Bucket and fingerprint (1 to 255) of each key.

    Half of a new text's n-grams were never seen. Without the fingerprint each would add the weights of whatever n-gram owns its
    bucket; with it only one in 255 of those that meet an owner does.
    """
    return torch.remainder(keys, buckets), torch.remainder(keys // buckets, 255) + 1


def word_parts(vocabulary: Mapping[str, int], size: int) -> Tensor:
    """Vocabulary size x PARTS: the character ids of every token that is a Chinese word, else zeros."""
    table = torch.zeros(size, PARTS, dtype=torch.int64)
    for token, index in vocabulary.items():
        if len(token) > 1 and all("\u4e00" <= c <= "\u9fff" for c in token):
            for position, character in enumerate(token[:PARTS]):
                table[index, position] = vocabulary.get(character, 0)
    return table


def load_bert(network: SentimentNetwork, weights: Mapping[str, Tensor]) -> None:
    """Copy a BERT state dict (names `embeddings.*`, `encoder.layer.N.*`, with or without `bert.`) into the network.

    Token type 0 is folded into the positions, since only single texts are scored.
    """
    plain = {k.removeprefix("bert."): v.float() for k, v in weights.items()}

    def get(name: str) -> Tensor:
        if name not in plain:
            raise ConfigurationError(f"the checkpoint has no tensor {name}; is it a BERT encoder?")
        return plain[name]

    with torch.no_grad():
        network.words.weight.copy_(get("embeddings.word_embeddings.weight"))
        positions = get("embeddings.position_embeddings.weight")[: network.config.max_positions]
        types = plain.get("embeddings.token_type_embeddings.weight")
        network.positions.copy_(positions if types is None else positions + types[0])
        _copy(network.embedding_norm, get, "embeddings.LayerNorm")
        for index, layer in enumerate(network.layers):
            assert isinstance(layer, Layer)
            prefix = f"encoder.layer.{index}."
            for part in ("weight", "bias"):
                fused = [get(f"{prefix}attention.self.{n}.{part}") for n in ("query", "key", "value")]
                getattr(layer.qkv, part).copy_(torch.cat(fused))
            for module, name in _names(layer):
                _copy(module, get, prefix + name)


def to_bert(network: SentimentNetwork) -> dict[str, Tensor]:
    """The encoder in the usual BERT names, so that other tools can load it; token type rows are zero (see
    `load_bert`).
    """
    out: dict[str, Tensor] = {
        "embeddings.word_embeddings.weight": network.words.weight,
        "embeddings.position_embeddings.weight": network.positions,
        "embeddings.token_type_embeddings.weight": torch.zeros(2, network.config.hidden_size),
        "embeddings.LayerNorm.weight": network.embedding_norm.weight,
        "embeddings.LayerNorm.bias": network.embedding_norm.bias,
    }
    for index, layer in enumerate(network.layers):
        assert isinstance(layer, Layer)
        prefix = f"encoder.layer.{index}."
        for part in ("weight", "bias"):
            for name, tensor in zip(("query", "key", "value"), getattr(layer.qkv, part).chunk(3), strict=True):
                out[f"{prefix}attention.self.{name}.{part}"] = tensor
            for module, name in _names(layer):
                out[f"{prefix}{name}.{part}"] = getattr(module, part)
    return {k: v.detach().clone().contiguous() for k, v in out.items()}


def read_bert_directory(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`config.json` and the weights (`model.safetensors`, else `encoder.safetensors`) of a checkpoint directory."""
    from safetensors.torch import load_file

    config_file = path / "config.json"
    if not config_file.is_file():
        raise ConfigurationError(f"{config_file} is missing; give a BERT checkpoint directory or a bundle")
    for name in ("model.safetensors", "encoder.safetensors"):
        if (path / name).is_file():
            return json.loads(config_file.read_text("utf-8")), load_file(path / name)
    raise ConfigurationError(f"{path} holds neither model.safetensors nor encoder.safetensors")


def default_heads() -> tuple[Head, ...]:
    """The heads of the default bundle, in the order of the graph's outputs."""
    from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES, SIGNALS

    return (
        Head("polarity", HeadKind.SOFTMAX, POLARITIES),
        Head("emotion", HeadKind.SOFTMAX, EMOTIONS),
        Head("intensity", HeadKind.REGRESSION, ("intensity",)),
        Head("signals", HeadKind.SIGMOID, SIGNALS),
    )


def _norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, module.normalized_shape, module.weight.to(x.dtype), module.bias.to(x.dtype), module.eps)


def _names(layer: Layer) -> tuple[tuple[nn.Module, str], ...]:
    return (
        (layer.attention_out, "attention.output.dense"),
        (layer.attention_norm, "attention.output.LayerNorm"),
        (layer.up, "intermediate.dense"),
        (layer.down, "output.dense"),
        (layer.output_norm, "output.LayerNorm"),
    )


def _copy(module: nn.Module, get: Any, name: str) -> None:
    for part in ("weight", "bias"):
        getattr(module, part).copy_(get(f"{name}.{part}"))
