"""The shortcut's table: a linear model over hashed n-grams, what a TF-IDF model knows, fitted on its own.

In: rows and their token ids. Out: the table, written into the network. Blocks for a minute or two. The problem is
convex and small, so it is solved over all rows at once (L-BFGS) with an L2 term, not trained along with the encoder: on
the same batches the encoder would explain everything, and a few thousand small steps leave rare n-grams where they
started (measured on service dev zh: polarity macro-F1 67 trained along for half a run, 78 fitted).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stream_sentiment.scoring.heads import HeadKind
from stream_sentiment.scoring.scorer import pad
from stream_sentiment.training.data import MASKED, NO_NEUTRAL, Row, targets_of
from stream_sentiment.training.network import SentimentNetwork, lookup, ngrams


@dataclass(frozen=True, slots=True)
class WideSettings:
    """`ridge`: weight of the L2 term against the mean loss. `minimum_count`: n-grams seen less often are left out of the fit."""

    ridge: float = 1e-4
    minimum_count: int = 2
    iterations: int = 40


def fit_wide(
    network: SentimentNetwork,
    rows: Sequence[Row],
    ids: Sequence[Sequence[int]],
    settings: WideSettings,
    own: Sequence[bool] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Fit the table to the rows (their `weight` counts) and put it into the network.

    `own`: rows whose n-grams get buckets; unset: all. The others still shape the weights of those n-grams. A bucket is
    too dear for an n-gram that only a film review has.
    """
    assert network.wide is not None
    keys, offsets, scale = _features(network, ids)
    owning, texts = keys, float(len(ids))
    if own is not None:
        lengths = torch.diff(offsets, append=torch.tensor([len(keys)]))
        texts = float(sum(own))
        owning = keys[torch.repeat_interleave(torch.tensor(list(own)), lengths)]
    prints, count = _owners(network, owning, settings.minimum_count)
    network.prints.copy_(prints)
    buckets, fingerprints = lookup(keys, network.config.wide_buckets)
    known = prints[buckets] == fingerprints
    # Only the known n-grams are kept: half of the work, the same sums.
    before = torch.cat([torch.zeros(1, dtype=torch.int64), known.long().cumsum(0)])
    offsets, buckets, scale = before[offsets], buckets[known], scale[known]
    # An n-gram that stands in every text says little: the usual inverse document frequency, here by occurrences.
    idf = torch.log((1.0 + texts) / (1.0 + count.float())).clamp_min(0.5)
    weights = scale * idf[buckets]
    table = torch.zeros_like(network.wide.weight, requires_grad=True)
    bias = torch.zeros(table.shape[1], requires_grad=True)
    targets = {k: torch.from_numpy(v) for k, v in targets_of(rows, network.head_specs).items()}
    row_weight = torch.tensor([r.weight for r in rows], dtype=torch.float32)
    binary = torch.tensor([r.binary for r in rows])
    optimiser = torch.optim.LBFGS(
        [table, bias],
        max_iter=settings.iterations,
        history_size=8,
        line_search_fn="strong_wolfe",
        tolerance_change=1e-7,
    )
    calls = 0

    def closure() -> float:
        nonlocal calls
        optimiser.zero_grad()
        logits = F.embedding_bag(buckets, table, offsets, mode="sum", per_sample_weights=weights) + bias
        loss = _loss(network, logits, targets, row_weight, binary) + 0.5 * settings.ridge * table.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        calls += 1
        if progress is not None:
            progress(calls, float(loss.detach()))
        return float(loss.detach())

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        # The bias stays behind: it is the class balance of these rows, which the heads' own biases know.
        network.wide.weight.copy_(table * idf[:, None])


def fit_gate(
    network: SentimentNetwork,
    own: Sequence[Sequence[int]],
    other: Sequence[Sequence[int]],
    ridge: float = 1e-3,
    iterations: int = 60,
) -> float:
    """Fit the shortcut's gate: a logistic regression on the encoder's vectors that tells texts like those the table was fitted on
    from others. Returns the share of texts that it puts on the right side.

    `own`, `other`: token ids of either kind; both kinds weigh the same.
    """
    assert network.gate is not None
    vectors = torch.cat([_pooled(network, own), _pooled(network, other)])
    gold = torch.cat([torch.ones(len(own)), torch.zeros(len(other))])
    weight = torch.where(gold > 0, 0.5 / len(own), 0.5 / len(other))
    line = network.gate
    with torch.no_grad():
        line.weight.zero_()
        line.bias.zero_()
    optimiser = torch.optim.LBFGS(line.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        z = line(vectors)[:, 0]
        each = F.binary_cross_entropy_with_logits(z, gold, reduction="none")
        loss = (each * weight).sum() + ridge * line.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return float((((line(vectors)[:, 0] > 0).float() == gold).float() * weight).sum())


def _pooled(network: SentimentNetwork, ids: Sequence[Sequence[int]]) -> Tensor:
    """The encoder's vectors, in the given order."""
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = torch.zeros(len(ids), network.config.hidden_size)
    with torch.no_grad():
        for begin in range(0, len(order), 128):
            group = order[begin : begin + 128]
            padded = pad([ids[i] for i in group])
            out[group] = network.pooled(torch.from_numpy(padded), torch.tensor([len(ids[i]) for i in group]))
    return out


def _features(network: SentimentNetwork, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Flat keys of all texts, where each text begins, and 1 / root of the length for every n-gram."""
    flat, starts, scales, at = [], [], [], 0
    for begin in range(0, len(ids), 512):
        group = ids[begin : begin + 512]
        keys, live = ngrams(torch.from_numpy(pad(group)), network.parts)
        for row, text in enumerate(group):
            own = keys[row][live[row] != 0]
            flat.append(own)
            starts.append(at)
            scales.append(torch.full((len(own),), 1.0 / math.sqrt(len(text))))
            at += len(own)
    return torch.cat(flat), torch.tensor(starts), torch.cat(scales)


def _owners(network: SentimentNetwork, keys: Tensor, minimum_count: int) -> tuple[Tensor, Tensor]:
    """Fingerprint and count of the owner by bucket. The most frequent n-gram owns a bucket."""
    size = network.config.wide_buckets
    distinct, counts = torch.unique(keys, return_counts=True)
    often = counts >= minimum_count
    distinct, counts = distinct[often], counts[often]
    order = torch.argsort(counts, stable=True)  # ascending: the last write to a bucket is its most frequent n-gram
    found, fingerprints = lookup(distinct[order], size)
    prints = torch.zeros(size, dtype=torch.uint8)
    count = torch.zeros(size, dtype=torch.int64)
    last = torch.zeros(size, dtype=torch.int64).scatter_reduce_(
        0, found, torch.arange(len(found)), "amax", include_self=True
    )
    used = torch.unique(found)
    prints[used] = fingerprints[last[used]].to(torch.uint8)
    count[used] = counts[order][last[used]]
    return prints, count


def _loss(
    network: SentimentNetwork, logits: Tensor, targets: dict[str, Tensor], weight: Tensor, binary: Tensor
) -> Tensor:
    total, at = torch.zeros(()), 0
    for head in network.head_specs:
        z, y = logits[:, at : at + head.width], targets[head.name]
        at += head.width
        if head.kind is HeadKind.SOFTMAX:
            live = y != MASKED
            if head.name == "polarity":
                z = z.clone()
                z[binary, head.labels.index("neutral")] += NO_NEUTRAL
            # Half-balanced classes: weight by the root of the inverse share.
            share = torch.bincount(y[live], minlength=head.width).float().clamp_min(1.0) / max(1, int(live.sum()))
            each = F.cross_entropy(z, y, weight=share.rsqrt(), ignore_index=MASKED, reduction="none")
        elif head.kind is HeadKind.SIGMOID:
            live = ~y[:, 0].isnan()
            each = F.binary_cross_entropy_with_logits(z, y.nan_to_num(), reduction="none").sum(1)
        else:
            continue  # intensity: the shortcut has nothing to add to a regression
        total = total + (each * weight * live.float()).sum() / max(1.0, float(live.sum()))
    return total


def sample_rows(sources: Sequence[tuple[Sequence[Row], float]], seed: int = 0) -> list[Row]:
    """One copy of every row that a mix shows at least once, and a share of the sources with less than one pass."""
    rng = np.random.default_rng(seed)
    out: list[Row] = []
    for rows, passes in sources:
        chosen = rng.permutation(len(rows))[: round(min(1.0, passes) * len(rows))]
        out.extend(rows[i] for i in chosen)
    return out
