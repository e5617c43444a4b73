"""One stage of a long run over a `Corpus`: masked words, hard labels and soft labels in one pass, on a CPU or a GPU.

In: a network, a corpus on the device, what the stage shows and at which rates. Out: the trained network and a log. Blocks for the
whole stage. Everything per step happens on the device (batches are cut from the flat ids, masks are drawn there), so that an
accelerator never waits for Python; the plan of a round (which rows, in which batches) is made once a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stream_sentiment.scoring.heads import HeadKind
from stream_sentiment.training.corpus import Corpus
from stream_sentiment.training.data import NO_NEUTRAL
from stream_sentiment.training.network import SentimentNetwork, fake_quantise_rows, pool
from stream_sentiment.training.train import EMOTION_WEIGHT, HEAD_WEIGHT

SPECIAL = 5  # [PAD] [UNK] [CLS] [SEP] [MASK]
MASK = 4


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage does. Rates are peaks: warmed up, then linear to `final_rate` of the peak."""

    name: str
    rounds: int = 4
    tokens_per_step: int = 16_384
    masked_words: tuple[float, float] = (0.0, 0.0)  # weight of the masked-word loss, from begin to end
    mask_rate: tuple[float, float] = (0.10, 0.10)  # share of the tokens hidden
    hard: float = 1.0  # weight of the labels
    soft: float = 0.0  # weight of the teachers' probabilities
    body_rate: float = 1.0e-4
    word_rate: float = 2.0e-4
    head_rate: float = 5.0e-4
    warm_up: float = 0.05
    final_rate: float = 0.0
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    dropout: float = 0.1
    average: float = (
        0.999  # decay of the running mean of the weights, which is what the stage returns; 0: the last weights
    )
    scale: float = 1.0  # multiplies every source's passes
    bf16: bool = True
    seed: int = 0


Progress = Callable[[int, int, str], None]


class MaskedWords(nn.Module):
    """The masked-word head of BERT: dense, gelu, norm, then the word vectors themselves as the decoder."""

    def __init__(self, hidden: int, vocabulary: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, hidden: Tensor, words: Tensor) -> Tensor:
        """hidden: masked positions x hidden. Returns logits over the vocabulary."""
        x = F.gelu(F.linear(hidden, self.dense.weight.to(hidden.dtype), self.dense.bias.to(hidden.dtype)))
        x = F.layer_norm(
            x,
            self.LayerNorm.normalized_shape,
            self.LayerNorm.weight.to(x.dtype),
            self.LayerNorm.bias.to(x.dtype),
            self.LayerNorm.eps,
        )
        return F.linear(x, words.to(x.dtype), self.bias.to(x.dtype))


@dataclass(slots=True)
class DeviceCorpus:
    """A corpus with its arrays on the device; `soft`: the teachers' probabilities, rows x sum of head widths."""

    corpus: Corpus
    device: torch.device
    ids: Tensor
    starts: Tensor
    targets: dict[str, Tensor]
    weight: Tensor
    binary: Tensor
    soft: Tensor | None = None
    lengths: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, corpus: Corpus, device: torch.device) -> DeviceCorpus:
        signals = corpus.signals.astype(np.float32)
        signals[corpus.signals == 255] = np.nan
        return cls(
            corpus,
            device,
            torch.from_numpy(corpus.ids.astype(np.int32)).to(device),
            torch.from_numpy(corpus.starts).to(device),
            {
                "polarity": torch.from_numpy(corpus.polarity.astype(np.int64)).to(device),
                "emotion": torch.from_numpy(corpus.emotion.astype(np.int64)).to(device),
                "intensity": torch.from_numpy(corpus.intensity[:, None]).to(device),
                "signals": torch.from_numpy(signals).to(device),
            },
            torch.from_numpy(corpus.weight).to(device),
            torch.from_numpy(corpus.binary).to(device),
            lengths=np.diff(corpus.starts),
        )

    def batch(self, sequences: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Padded ids (batch x length, int64) and lengths of these sequences."""
        start = self.starts[sequences]
        lengths = self.starts[sequences + 1] - start
        position = torch.arange(length, device=self.device)
        at = (start[:, None] + position).clamp_max(len(self.ids) - 1)
        ids = torch.where(position < lengths[:, None], self.ids[at], 0)
        return ids.long(), lengths


@dataclass(frozen=True, slots=True)
class Plan:
    """The batches of one round: rows and sequences in order, and where each batch begins, with its padded length and tokens."""

    rows: Tensor
    sequences: Tensor
    batches: list[tuple[int, int, int, int]]  # begin, end, padded length, real tokens


def plan_round(
    data: DeviceCorpus,
    passes: npt.NDArray[np.float64],
    stage: Stage,
    number: int,
    allowed: npt.NDArray[np.bool_] | None,
) -> Plan:
    """Rows of round `number` (of `stage.rounds`): a source with 2 passes in 4 rounds shows half of its rows, none twice before
    all once.
    """
    corpus, rng = data.corpus, np.random.default_rng([stage.seed, number])
    chosen = []
    for source, times in enumerate(passes):
        own = np.flatnonzero((corpus.source == source) if allowed is None else (corpus.source == source) & allowed)
        share = times * stage.scale / stage.rounds * len(own)
        begin, end = round(number * share), round((number + 1) * share)
        for lap in range(begin // max(1, len(own)), (max(begin, end - 1)) // max(1, len(own)) + 1):
            order = np.random.default_rng([stage.seed, source, lap]).permutation(own)
            base = lap * len(own)
            chosen.append(order[max(0, begin - base) : max(0, end - base)])
    rows = np.concatenate(chosen)
    sequences = corpus.first[rows] + (rng.random(len(rows)) * corpus.variants[rows]).astype(np.int64)
    lengths = data.lengths[sequences]
    order = np.argsort(lengths + rng.random(len(rows)) * 0.9, kind="stable")
    rows, sequences, lengths = rows[order], sequences[order], lengths[order]
    batches, begin = [], 0
    while begin < len(rows):
        end = min(len(rows), begin + max(1, stage.tokens_per_step // int(lengths[begin])))
        while end > begin + 1 and int(lengths[end - 1]) * (end - begin) > stage.tokens_per_step:
            end = max(begin + 1, min(end - 1, begin + stage.tokens_per_step // int(lengths[end - 1])))
        batches.append((begin, end, int(lengths[begin:end].max()), int(lengths[begin:end].sum())))
        begin = end
    batches = [batches[i] for i in rng.permutation(len(batches))]
    return Plan(torch.from_numpy(rows).to(data.device), torch.from_numpy(sequences).to(data.device), batches)


class StageRun:
    """Runs one stage; the masked-word head is trained along when the stage asks for it."""

    def __init__(self, network: SentimentNetwork, masked: MaskedWords, data: DeviceCorpus, stage: Stage) -> None:
        self.network, self.masked, self.data, self.stage = network, masked, data, stage
        self.device = data.device
        network.words.sparse = (
            False  # a dense step over all word vectors takes an accelerator less than gathering the rows
        )
        network.compute_dtype = torch.bfloat16 if stage.bf16 else torch.float32
        for layer in network.layers:
            layer.dropout = stage.dropout  # type: ignore[assignment]
        body = network.body_parameters()
        groups: list[dict[str, Any]] = [
            {"params": [p for p in body if p.dim() > 1], "peak": stage.body_rate, "weight_decay": stage.weight_decay},
            {"params": [p for p in body if p.dim() == 1], "peak": stage.body_rate},
            {"params": [network.words.weight], "peak": stage.word_rate},
            {"params": [*network.heads.parameters(), *masked.parameters()], "peak": stage.head_rate},
        ]
        self._body = [*body, network.words.weight]
        fused = {"fused": True} if self.device.type == "cuda" else {}
        self.optimiser = torch.optim.AdamW(groups, lr=stage.body_rate, betas=(0.9, 0.98), weight_decay=0.0, **fused)
        self.parameters = [p for g in groups for p in g["params"]]
        self.running = [p.detach().clone() for p in self.parameters]
        self._emotion = torch.tensor(
            [EMOTION_WEIGHT.get(x, 1.0) for h in network.head_specs if h.name == "emotion" for x in h.labels],
            device=self.device,
        )
        self.step = 0

    def train(
        self,
        passes: npt.NDArray[np.float64],
        allowed: npt.NDArray[np.bool_] | None = None,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """All rounds; `allowed`: the rows that may be shown. The network holds the running mean of its weights afterwards."""
        stage, log = self.stage, []
        total = 0
        for number in range(stage.rounds):
            torch.manual_seed(stage.seed * 1_000 + number)
            plan = plan_round(self.data, passes, stage, number, allowed)
            total = total or len(plan.batches) * stage.rounds
            started, tokens = time.monotonic(), 0
            self.network.train()
            sums: dict[str, Tensor] = {}
            for begin, end, length, real in plan.batches:
                done = min(1.0, self.step / total)
                losses = self._update(plan.rows[begin:end], plan.sequences[begin:end], length, real, done)
                for name, value in losses.items():
                    sums[name] = sums[name] + value if name in sums else value
                tokens += real
                self.step += 1
                if progress is not None and self.step % 200 == 0:
                    rate = tokens / (time.monotonic() - started)
                    progress(self.step, total, f"{stage.name}, round {number + 1}/{stage.rounds}, {rate:,.0f} tokens/s")
            self.network.eval()
            entry: dict[str, Any] = {
                "stage": stage.name,
                "round": number + 1,
                "step": self.step,
                "rows": len(plan.rows),
                "tokens": tokens,
                "loss": {k: round(float(v) / len(plan.batches), 4) for k, v in sums.items()},
                "seconds": round(time.monotonic() - started, 1),
            }
            if evaluate is not None:
                with self.averaged():
                    entry["dev"] = {k: round(v, 4) for k, v in evaluate().items()}
            log.append(entry)
        if stage.average:
            self._swap()
        return log

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The running mean of the weights for the length of a `with` block."""
        if self.stage.average:
            self._swap()
        yield
        if self.stage.average:
            self._swap()

    def _swap(self) -> None:
        with torch.no_grad():
            for parameter, mean in zip(self.parameters, self.running, strict=True):
                kept = parameter.detach().clone()
                parameter.copy_(mean)
                mean.copy_(kept)

    def _update(self, rows: Tensor, sequences: Tensor, length: int, real: int, done: float) -> dict[str, Tensor]:
        stage, network = self.stage, self.network
        ids, lengths = self.data.batch(sequences, length)
        mlm = _between(stage.masked_words, done)
        hidden_ids, positions = self._mask(ids, real, _between(stage.mask_rate, done), words=mlm > 0)
        words = network.words(hidden_ids)
        if network.quantised:
            words = fake_quantise_rows(words)
        hidden, keep = network.hidden(words, lengths)
        pooled = F.dropout(pool(hidden, keep, lengths), stage.dropout)
        logits = {name: head(pooled) for name, head in network.heads.items()}
        losses = {}
        total = torch.zeros((), device=self.device)
        if mlm > 0:
            at = hidden.reshape(-1, hidden.shape[2])[positions]
            guess = self.masked(at, network.words.weight)
            losses["masked_words"] = F.cross_entropy(guess.float(), ids.reshape(-1)[positions])
            total = total + mlm * losses["masked_words"]
        if stage.hard:
            for name, value in self._hard(logits, rows).items():
                losses[name] = value
                total = total + stage.hard * HEAD_WEIGHT[name] * value
        if stage.soft and self.data.soft is not None:
            for name, value in self._soft(logits, rows).items():
                losses[f"soft {name}"] = value
                total = total + stage.soft * HEAD_WEIGHT[name] * value
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._body, 1.0, foreach=True)
        rise = min(1.0, done / stage.warm_up + 1e-3) if stage.warm_up else 1.0
        fall = 1.0 - (1.0 - stage.final_rate) * max(0.0, done - stage.warm_up) / (1.0 - stage.warm_up)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * rise * fall
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if stage.average:
            # Early weights are forgotten faster: a mean over a tenth of the steps so far, at most the stage's own.
            decay = min(stage.average, 1.0 - 10.0 / (self.step + 11.0))
            torch._foreach_lerp_(self.running, [p.detach() for p in self.parameters], 1.0 - decay)
        return {k: v.detach() for k, v in losses.items()}

    def _mask(self, ids: Tensor, real: int, rate: float, *, words: bool) -> tuple[Tensor, Tensor]:
        """Ids with a share hidden, and the flat positions of the hidden ones. A fixed number, so that nothing waits for the device."""
        count = max(1, int(real * rate))
        flat = ids.reshape(-1)
        order = torch.rand(flat.shape, device=self.device).masked_fill(flat < SPECIAL, 2.0)
        positions = order.topk(count, largest=False).indices
        instead = torch.full((count,), MASK, device=self.device, dtype=flat.dtype)
        if words:
            # Devlin et al. 2018: of the hidden tokens 80 % become [MASK], 10 % another token, 10 % stay.
            lot = torch.rand(count, device=self.device)
            other = torch.randint(SPECIAL, self.network.config.vocab_size, (count,), device=self.device)
            instead = torch.where(lot < 0.8, instead, torch.where(lot < 0.9, other, flat[positions]))
        # A batch of nothing but control tokens has fewer to hide: those keep what they are.
        instead = torch.where(flat[positions] < SPECIAL, flat[positions], instead)
        return flat.scatter(0, positions, instead).view_as(ids), positions

    def _hard(self, logits: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        weight, binary = self.data.weight[rows], self.data.binary[rows]
        out = {}
        for head in self.network.head_specs:
            z, y = logits[head.name], self.data.targets[head.name][rows]
            if head.kind is HeadKind.SOFTMAX:
                smoothing = torch.full_like(weight, self.stage.label_smoothing)
                if head.name == "polarity":
                    neutral = F.one_hot(torch.tensor(head.labels.index("neutral"), device=z.device), head.width)
                    z = z + binary[:, None] * neutral * NO_NEUTRAL
                    smoothing = smoothing * ~binary
                live = (y >= 0).float()
                log = F.log_softmax(z, dim=1)
                nll = -log.gather(1, y.clamp_min(0)[:, None])[:, 0]
                if head.name == "emotion":
                    nll = nll * self._emotion[y.clamp_min(0)]
                each = (1.0 - smoothing) * nll - smoothing * log.mean(dim=1)
            elif head.kind is HeadKind.REGRESSION:
                live = (~y[:, 0].isnan()).float()
                each = (z[:, 0] - y[:, 0].nan_to_num()).square()
            else:
                live = (~y[:, 0].isnan()).float()
                each = F.binary_cross_entropy_with_logits(z, y.nan_to_num(), reduction="none").sum(1)
            out[head.name] = (each * live * weight).sum() / live.sum().clamp_min(1.0)
        return out

    def _soft(self, logits: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        assert self.data.soft is not None
        soft = self.data.soft[rows].float()
        out, at = {}, 0
        for head in self.network.head_specs:
            z, y = logits[head.name], soft[:, at : at + head.width]
            at += head.width
            if head.kind is HeadKind.SOFTMAX:
                each = -(y * F.log_softmax(z, dim=1)).sum(1)
            elif head.kind is HeadKind.REGRESSION:
                each = (z[:, 0] - y[:, 0]).square()
            else:
                each = F.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1)
            out[head.name] = each.mean()
        return out


def predict(
    network: SentimentNetwork, data: DeviceCorpus, rows: npt.NDArray[np.int64], tokens: int | None = None
) -> npt.NDArray[np.float32]:
    """Logits of all heads side by side, len(rows) x sum of head widths, from each row's first variant; the encoder alone."""
    network.eval()
    tokens = tokens or (
        131_072 if data.device.type == "cuda" else 6_144
    )  # a CPU is fastest while a batch fits its cache
    sequences = data.corpus.first[rows]
    lengths = data.lengths[sequences]
    order = np.argsort(lengths, kind="stable")
    out = np.zeros((len(rows), sum(h.width for h in network.head_specs)), np.float32)
    with torch.no_grad():
        for group in _groups(order, lengths, tokens):
            at = torch.from_numpy(sequences[group]).to(data.device)
            ids, real = data.batch(at, int(lengths[group].max()))
            words = network.words(ids)
            hidden, keep = network.hidden(fake_quantise_rows(words) if network.quantised else words, real)
            pooled = pool(hidden, keep, real)
            z = torch.cat([network.head(h.name)(pooled) for h in network.head_specs], dim=1)
            out[group] = z.float().cpu().numpy()
    return out


def _groups(
    order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], tokens: int
) -> Iterator[npt.NDArray[np.int64]]:
    begin = 0
    while begin < len(order):
        end = min(len(order), begin + max(1, tokens // int(lengths[order[min(len(order) - 1, begin + 4096)]])))
        yield order[begin:end]
        begin = end


def _between(ends: Sequence[float], done: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * done
