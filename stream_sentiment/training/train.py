"""Fine-tuning: sources in, checkpoints and a log out.

In: a start (BERT checkpoint directory, optionally with `heads.safetensors`, or a bundle with weights), a mix
or plain row files, settings. Out: a run directory with `config.json`, `log.jsonl`, one checkpoint a round,
`model.safetensors` + `network.json` at the end. Blocks for minutes to hours. Raises `ConfigurationError`. A
run that was cut goes on from its last finished round.

A run is divided into rounds. A source with 8 passes in a run of 8 rounds is shown whole every round, one with
1 pass an eighth every round, so that every round is the same mix and every checkpoint can be compared.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.heads import Head, HeadKind
from stream_sentiment.training import data
from stream_sentiment.training.network import (
    NetworkConfig,
    SentimentNetwork,
    default_heads,
    load_bert,
    read_bert_directory,
    to_bert,
    word_parts,
)

# Weight of each head's loss. Intensity is a squared error on 0..3; signals are the sum over 13 outputs.
HEAD_WEIGHT = {"polarity": 1.0, "emotion": 1.0, "intensity": 0.3, "signals": 0.3}
# Rare emotions count more: anxiety and surprise are 3 to 8 % of the rows.
EMOTION_WEIGHT = {"anger": 1.0, "disappointment": 1.1, "anxiety": 1.5, "joy": 1.0, "surprise": 1.5, "neutral": 1.0}


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One run. Rates are peaks: warmed up over 5 % of the steps, then linear to zero."""

    rounds: int = 8
    tokens_per_step: int = 3_072
    body_rate: float = 1.0e-4
    word_rate: float = 3.0e-4
    head_rate: float = 5.0e-4
    weight_decay: float = 0.01
    label_smoothing: float = 0.05
    token_mask: float = 0.10  # share of the tokens replaced by [MASK]: the regulariser, since CPU dropout is slow
    pooled_dropout: float = 0.10
    roughen: float = 0.15  # share of the rows that get one small change
    split_words: float = 0.15
    max_tokens: int = 96
    wide_buckets: int = 131_072
    average_last: int = 3  # checkpoints averaged at the end
    bf16: bool = True
    compile: bool = False  # torch.compile: 1.4 times faster per step, minutes of compiling before
    patience: int = 3  # rounds without a better dev macro-F1 before the run stops
    threads: int = 2
    seed: int = 0


Progress = Callable[[int, int, str], None]
"""Called with steps done, steps in all (estimated), and a short text."""


class Trainer:
    """Holds network, optimisers and data of one run."""

    def __init__(self, run: Path, settings: TrainSettings, tokenizer: Tokenizer, network: SentimentNetwork) -> None:
        self.run, self.settings, self.network = run, settings, network
        self.heads: tuple[Head, ...] = network.head_specs
        self.encoder = data.Encoder(tokenizer, settings.max_tokens)
        network.compute_dtype = torch.bfloat16 if settings.bf16 else torch.float32
        body = network.body_parameters()
        self.dense = torch.optim.AdamW(
            [
                {"params": [p for p in body if p.dim() > 1], "peak": settings.body_rate},
                {"params": [p for p in body if p.dim() == 1], "peak": settings.body_rate, "weight_decay": 0.0},
                {"params": list(network.heads.parameters()), "peak": settings.head_rate},
            ],
            lr=settings.body_rate,
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
        )
        tables = [{"params": [network.words.weight], "peak": settings.word_rate}]
        self.sparse = torch.optim.SparseAdam(tables, lr=settings.word_rate, betas=(0.9, 0.98))
        self._body = body
        self._encode = torch.compile(network.encode, dynamic=True) if settings.compile else network.encode
        self._emotion = torch.tensor(
            [EMOTION_WEIGHT.get(x, 1.0) for h in self.heads if h.name == "emotion" for x in h.labels]
        )
        self.step = 0

    def train(
        self,
        sources: Sequence[tuple[list[data.Row], float]],
        evaluate: Callable[[], dict[str, float]] | None = None,
        progress: Progress | None = None,
    ) -> list[dict[str, Any]]:
        """Run all rounds; returns the log. `sources`: rows with their passes. `evaluate`: measured after each round."""
        settings = self.settings
        log = _read_log(self.run / "log.jsonl")
        first = len(log)
        if first:
            self._resume(first)
        per_round = [_mean_tokens(self.encoder, rows) * len(rows) * p / settings.rounds for rows, p in sources]
        total = max(1, int(settings.rounds * sum(per_round) / (settings.tokens_per_step * 0.96)))
        for number in range(first, settings.rounds):
            rng = np.random.default_rng([settings.seed, number])
            torch.manual_seed(settings.seed * 1_000 + number)
            started, tokens = time.monotonic(), 0
            sums: dict[str, float] = {}
            rows, ids = self._draw(sources, number, rng)
            for _, batch in data.batches(rows, ids, self.heads, settings.tokens_per_step, rng):
                losses = self._update(batch, min(1.0, self.step / total), rng)
                tokens += int(batch.lengths.sum())
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value
                self.step += 1
                if progress is not None and self.step % 10 == 0:
                    rate = tokens / (time.monotonic() - started)
                    progress(self.step, total, f"round {number + 1}/{settings.rounds}, {rate:,.0f} tokens/s")
            steps = max(1, self.step - (log[-1]["step"] if log else 0))
            entry: dict[str, Any] = {
                "round": number + 1,
                "step": self.step,
                "rows": len(rows),
                "tokens": tokens,
                "seconds": round(time.monotonic() - started, 1),
                "loss": {k: round(v / steps, 4) for k, v in sums.items()},
            }
            if evaluate is not None:
                entry["dev"] = {k: round(v, 4) for k, v in evaluate().items()}
            log.append(entry)
            self._save(number + 1, log)
            if len(log) - _best_round(log) >= settings.patience:
                break
        self._finish(log, evaluate)
        return log

    def _finish(self, log: list[dict[str, Any]], evaluate: Callable[[], dict[str, float]] | None) -> None:
        """The mean of the last checkpoints, unless the best single one is better on dev."""
        last = log[-1]["round"]
        average(
            self.network, [self._checkpoint(n) for n in range(max(1, last - self.settings.average_last + 1), last + 1)]
        )
        if evaluate is not None:
            best = _best_round(log)
            measured = evaluate()
            if _mean(measured) < _mean(log[best - 1]["dev"]):
                average(self.network, [self._checkpoint(best)])
                measured = log[best - 1]["dev"]
            (self.run / "chosen.json").write_text(json.dumps(measured, indent=1) + "\n", "utf-8")

    def _draw(
        self, sources: Sequence[tuple[list[data.Row], float]], number: int, rng: np.random.Generator
    ) -> tuple[list[data.Row], list[list[int]]]:
        """The rows of one round and their ids, freshly roughened."""
        settings = self.settings
        chosen: list[data.Row] = []
        for position, (rows, passes) in enumerate(sources):
            # One fixed order per source, walked through round by round: a source with half a pass shows half
            # of its rows, none twice.
            order = np.random.default_rng([settings.seed, position]).permutation(len(rows))
            share = passes / settings.rounds * len(rows)
            begin, end = round(number * share), round((number + 1) * share)
            chosen.extend(rows[order[i % len(rows)]] for i in range(begin, end))
        texts = []
        for row in chosen:
            text = data.fill_placeholders(row.text, rng)
            if rng.random() < settings.roughen:
                text = data.roughen(text, rng)
            texts.append(data.prepared(text))
        ids = self.encoder.encode(texts)
        return chosen, [self.encoder.split_words(x, rng) if rng.random() < settings.split_words else x for x in ids]

    def _update(self, batch: data.Batch, done: float, rng: np.random.Generator) -> dict[str, float]:
        settings = self.settings
        ids = batch.ids.copy()
        special = 5
        ids[(rng.random(ids.shape) < settings.token_mask) & (ids >= special)] = self.encoder.mask_id
        masked, lengths = torch.from_numpy(ids), torch.from_numpy(batch.lengths)
        targets = {k: torch.from_numpy(v) for k, v in batch.targets.items()}
        weight, binary = torch.from_numpy(batch.weight), torch.from_numpy(batch.binary)
        pooled = F.dropout(self._encode(self.network.words(masked), lengths), settings.pooled_dropout)
        deep = {name: head(pooled) for name, head in self.network.heads.items()}
        losses = self._losses(deep, targets, weight, binary)
        total = torch.stack([HEAD_WEIGHT.get(k, 1.0) * v for k, v in losses.items()]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._body, 1.0)
        factor = min(1.0, done / 0.05 + 1e-3) * max(0.0, 1.0 - max(0.0, done - 0.05) / 0.95)
        for optimiser in (self.dense, self.sparse):
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * factor
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return {k: float(v.detach()) for k, v in losses.items()}

    def _losses(
        self, logits: dict[str, Tensor], targets: dict[str, Tensor], weight: Tensor, binary: Tensor
    ) -> dict[str, Tensor]:
        out = {}
        for head in self.heads:
            z, y = logits[head.name], targets[head.name]
            if head.kind is HeadKind.SOFTMAX:
                smoothing = self.settings.label_smoothing
                if head.name == "polarity" and bool(binary.any()):
                    z = z.clone()
                    z[binary, head.labels.index("neutral")] += data.NO_NEUTRAL
                    smoothing = 0.0  # smoothing towards a logit of -1e4 would be a loss of 500
                classes = self._emotion if head.name == "emotion" else None
                each = F.cross_entropy(
                    z, y, weight=classes, ignore_index=data.MASKED, reduction="none", label_smoothing=smoothing
                )
                live = (y != data.MASKED).float() * weight
            elif head.kind is HeadKind.REGRESSION:
                live = (~y[:, 0].isnan()).float() * weight
                each = (z[:, 0] - y[:, 0].nan_to_num()).square()
            else:
                live = (~y[:, 0].isnan()).float() * weight
                each = F.binary_cross_entropy_with_logits(z, y.nan_to_num(), reduction="none").sum(1)
            # Divided by rows, not by weight: a batch of weak rows must move the network less.
            out[head.name] = (each * live).sum() / max(1.0, float((live > 0).sum()))
        return out

    def _checkpoint(self, number: int) -> Path:
        return self.run / f"round-{number}.safetensors"

    def _save(self, number: int, log: list[dict[str, Any]]) -> None:
        save_file({k: v.contiguous() for k, v in self.network.state_dict().items()}, self._checkpoint(number))
        state = {"dense": self.dense.state_dict(), "sparse": self.sparse.state_dict(), "round": number}
        temporary = self.run / "optimiser.tmp"
        torch.save(state, temporary)
        temporary.replace(self.run / "optimiser.pt")
        # The log comes last: a round counts as done when everything it needs to go on is on disk.
        (self.run / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in log), "utf-8")

    def _resume(self, number: int) -> None:
        state = torch.load(self.run / "optimiser.pt", weights_only=True)
        self.network.load_state_dict(load_file(self._checkpoint(number)))
        self.dense.load_state_dict(state["dense"])
        self.sparse.load_state_dict(state["sparse"])
        self.step = json.loads((self.run / "log.jsonl").read_text("utf-8").splitlines()[number - 1])["step"]


def start_network(start: Path, settings: TrainSettings) -> tuple[SentimentNetwork, bytes]:
    """The network to train and the bytes of its `tokenizer.json`, from a BERT checkpoint directory or a
    folder `save_network` wrote.
    """
    torch.manual_seed(settings.seed)
    tokenizer = (start / "tokenizer.json").read_bytes()
    if (start / "network.json").is_file():
        return load_network(start), tokenizer
    config, weights = read_bert_directory(start)
    sizes = NetworkConfig.from_bert(config, max_positions=settings.max_tokens, wide_buckets=settings.wide_buckets)
    network = SentimentNetwork(sizes, default_heads())
    load_bert(network, weights)
    if network.wide is not None:
        network.parts.copy_(word_parts(Tokenizer.from_buffer(tokenizer).get_vocab(), sizes.vocab_size))
    heads_file = start / "heads.safetensors"
    if heads_file.is_file():
        saved = load_file(heads_file)
        with torch.no_grad():
            for name in network.heads:
                head = network.head(name)
                if f"{name}.weight" in saved and saved[f"{name}.weight"].shape == head.weight.shape:
                    head.weight.copy_(saved[f"{name}.weight"].float())
                    head.bias.copy_(saved[f"{name}.bias"].float())
    return network, tokenizer


def average(network: SentimentNetwork, checkpoints: Sequence[Path]) -> None:
    """Load the mean of the checkpoints into the network."""
    states = [load_file(p) for p in checkpoints]
    # Buffers (integers) are the same in every checkpoint.
    mean = {
        k: torch.stack([s[k] for s in states]).mean(0) if v.is_floating_point() else v for k, v in states[0].items()
    }
    network.load_state_dict(mean)


def save_network(network: SentimentNetwork, folder: Path) -> None:
    """`model.safetensors` in fp16 (BERT names, heads, shortcut) and `network.json`, in a form that
    `start_network` reads.
    """
    tensors = to_bert(network)
    for name, tensor in network.heads.state_dict().items():
        tensors[f"heads.{name}"] = tensor.clone()
    if network.gate is not None:
        tensors |= {f"gate.{k}": v.clone() for k, v in network.gate.state_dict().items()}
    if network.wide is not None:
        tensors["wide.weight"] = network.wide.weight.detach().clone()
        tensors["wide.parts"] = network.parts.to(torch.int32)
        tensors["wide.prints"] = network.prints.clone()
    kept = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file({k: v.contiguous() for k, v in kept.items()}, folder / "model.safetensors")
    description = {
        "config": network.config.to_json(),
        "heads": [{"name": h.name, "kind": h.kind.value, "labels": list(h.labels)} for h in network.head_specs],
    }
    (folder / "network.json").write_text(json.dumps(description, indent=2) + "\n", "utf-8")


def load_network(folder: Path) -> SentimentNetwork:
    """What `save_network` wrote."""
    try:
        description = json.loads((folder / "network.json").read_text("utf-8"))
        heads = tuple(Head(h["name"], HeadKind(h["kind"]), tuple(h["labels"])) for h in description["heads"])
        network = SentimentNetwork(NetworkConfig(**description["config"]), heads)
        weights = load_file(folder / "model.safetensors")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{folder} holds no trained network: {error}") from error
    load_bert(network, weights)
    network.heads.load_state_dict(
        {k.removeprefix("heads."): v.float() for k, v in weights.items() if k.startswith("heads.")}
    )
    if network.gate is not None:
        network.gate.load_state_dict(
            {k.removeprefix("gate."): v.float() for k, v in weights.items() if k.startswith("gate.")}
        )
    if network.wide is not None:
        with torch.no_grad():
            network.wide.weight.copy_(weights["wide.weight"].float())
            network.parts.copy_(weights["wide.parts"])
            network.prints.copy_(weights["wide.prints"])
    return network


def write_config(run: Path, settings: TrainSettings, start: Path, sources: Sequence[dict[str, Any]]) -> None:
    """`config.json` of the run directory; a run directory with another configuration is refused, not overwritten."""
    config = {"settings": asdict(settings), "start": start.name, "sources": list(sources)}
    file = run / "config.json"
    if file.is_file() and json.loads(file.read_text("utf-8")) != config:
        raise ConfigurationError(f"{run} belongs to a run with other settings; choose another --out or remove it")
    run.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _mean(values: dict[str, float]) -> float:
    return float(np.mean(list(values.values()))) if values else 0.0


def _best_round(log: Sequence[dict[str, Any]]) -> int:
    """Number of the round with the best mean dev macro-F1; the last one when nothing is measured."""
    scores = [_mean(entry["dev"]) for entry in log if "dev" in entry]
    return int(np.argmax(scores)) + 1 if scores else len(log)


def _mean_tokens(encoder: data.Encoder, rows: list[data.Row]) -> float:
    sample = rows[:: max(1, len(rows) // 200)]
    return float(np.mean([len(x) for x in encoder.encode([data.prepared(r.text) for r in sample])]))


def _read_log(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []
