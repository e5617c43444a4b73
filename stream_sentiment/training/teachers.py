"""Teachers: networks and n-gram models that never saw the rows they judge, mixed per domain into soft labels.

In: a corpus on the device with hard labels, logits of fold networks. Out: probabilities for every row (rows x sum of head widths) and
a report of how good they are out of fold. Blocks for a minute or two on a GPU.

A teacher that judges rows it was trained on only repeats their labels. So the labelled rows are cut into folds; each row is judged by
the network and the n-gram model that were trained on the other folds (cross-fitting), rows without labels by all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from stream_sentiment.scoring.heads import Head, HeadKind
from stream_sentiment.training.corpus import FOLDS
from stream_sentiment.training.data import NO_NEUTRAL
from stream_sentiment.training.joint import DeviceCorpus
from stream_sentiment.training.metrics import macro_f1
from stream_sentiment.training.network import SentimentNetwork, ngrams

Floats = npt.NDArray[np.float32]

MOST_BUCKETS = 1 << 21
FEWEST_BUCKETS = 1 << 12
NETWORK_SHARES = (0.5, 0.7, 0.85, 1.0, 1.2)
NGRAM_SHARES = (0.0, 0.2, 0.35, 0.5, 0.7, 0.9)
SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Bags:
    """Hashed n-grams of all rows, one flat array; row i has `buckets[offsets[i]:offsets[i + 1]]`."""

    buckets: Tensor
    offsets: Tensor
    scale: Tensor  # per row: 1 / root of its length in tokens
    size: int  # number of buckets

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bags of these rows: buckets, where each begins, weight of every n-gram before the document frequency."""
        begin, length = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        starts = torch.cumsum(length, 0) - length
        at = torch.arange(int(length.sum()), device=rows.device) - torch.repeat_interleave(starts - begin, length)
        return self.buckets[at], starts, torch.repeat_interleave(self.scale[rows], length)


def bags_of(network: SentimentNetwork, data: DeviceCorpus, batch: int = 4_096) -> Bags:
    """The n-grams that the shortcut of the network looks at, hashed: half a bucket a token, at most 2^21."""
    corpus = data.corpus
    size = min(MOST_BUCKETS, max(FEWEST_BUCKETS, 1 << (len(corpus.ids) // 2).bit_length()))
    flat, lengths, scale = [], [], []
    for begin in range(0, len(corpus), batch):
        sequences = corpus.first[begin : begin + batch]
        longest = int(data.lengths[sequences].max())
        ids, real = data.batch(torch.from_numpy(sequences).to(data.device), longest)
        keys, live = ngrams(ids, network.parts)
        live = live != 0
        flat.append((keys[live] % size).int())
        lengths.append(live.sum(1))
        scale.append(real.float().rsqrt())
    offsets = torch.zeros(len(corpus) + 1, dtype=torch.int64, device=data.device)
    offsets[1:] = torch.cat(lengths).cumsum(0)
    return Bags(torch.cat(flat), offsets, torch.cat(scale), size)


def fit_ngrams(
    bags: Bags,
    data: DeviceCorpus,
    heads: Sequence[Head],
    train: npt.NDArray[np.int64],
    judge: npt.NDArray[np.int64],
    iterations: int = 30,
) -> Floats:
    """A multi-task logistic regression on TF-IDF of the `train` rows (L-BFGS, ridge 1 / rows); logits of the `judge` rows."""
    device = data.device
    rows = torch.from_numpy(train).to(device)
    buckets, starts, weights = bags.of(rows)
    count = torch.bincount(buckets, minlength=bags.size).float()
    idf = torch.where(count > 1, torch.log((1.0 + len(train)) / (1.0 + count)).clamp_min(0.5), 0.0)
    width = sum(h.width for h in heads)
    table = torch.zeros(bags.size, width, device=device, requires_grad=True)
    bias = torch.zeros(width, device=device, requires_grad=True)
    weights = weights * idf[buckets]
    ridge = 1.0 / len(train)
    optimiser = torch.optim.LBFGS(
        [table, bias], max_iter=iterations, history_size=5, line_search_fn="strong_wolfe", tolerance_change=1e-7
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        z = F.embedding_bag(buckets, table, starts, mode="sum", per_sample_weights=weights) + bias
        loss = _loss(heads, z, data, rows) + 0.5 * ridge * table.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    out = np.zeros((len(judge), width), np.float32)
    with torch.no_grad():
        for begin in range(0, len(judge), 65_536):
            at = torch.from_numpy(judge[begin : begin + 65_536]).to(device)
            found, begins, scale = bags.of(at)
            z = F.embedding_bag(found, table, begins, mode="sum", per_sample_weights=scale * idf[found]) + bias
            out[begin : begin + 65_536] = z.cpu().numpy()
    return out


def _loss(heads: Sequence[Head], logits: Tensor, data: DeviceCorpus, rows: Tensor) -> Tensor:
    total, at = torch.zeros((), device=logits.device), 0
    for head in heads:
        z, y = logits[:, at : at + head.width], data.targets[head.name][rows]
        at += head.width
        if head.kind is HeadKind.SOFTMAX:
            live = y >= 0
            if head.name == "polarity":
                z = z.clone()
                z[data.binary[rows], head.labels.index("neutral")] += NO_NEUTRAL
            share = torch.bincount(y[live], minlength=head.width).float().clamp_min(1.0) / max(1, int(live.sum()))
            each = F.cross_entropy(z, y.clamp_min(0), weight=share.rsqrt(), reduction="none")
        elif head.kind is HeadKind.SIGMOID:
            live = ~y[:, 0].isnan()
            each = F.binary_cross_entropy_with_logits(z, y.nan_to_num(), reduction="none").sum(1)
        else:
            continue
        total = total + (each * data.weight[rows] * live.float()).sum() / live.float().sum().clamp_min(1.0)
    return total


def cross_fit(
    data: DeviceCorpus,
    heads: Sequence[Head],
    bags: Bags,
    network_logits: Callable[[int, npt.NDArray[np.int64], npt.NDArray[np.int64]], Floats],
    domains: Sequence[str],
    wanted: npt.NDArray[np.int64],
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Floats, list[dict[str, Any]]]:
    """Soft labels of all rows and the out-of-fold report.

    `network_logits(fold, train rows, judge rows)` trains a network on `train` and returns its logits on `judge`. `domains`: the domain
    of every source of the corpus. `wanted`: rows without labels that are to be judged too.
    """
    corpus = data.corpus
    labelled = np.flatnonzero(corpus.labelled)
    width = sum(h.width for h in heads)
    deep, wide = np.zeros((len(corpus), width), np.float32), np.zeros((len(corpus), width), np.float32)
    domain = np.array(domains)[corpus.source]
    for fold in range(FOLDS):
        if progress is not None:
            progress(fold, FOLDS, "teachers")
        train = labelled[corpus.fold[labelled] != fold]
        own = labelled[corpus.fold[labelled] == fold]
        judge = np.concatenate([own, wanted])
        part = np.where(np.arange(len(judge)) < len(own), 1.0, 1.0 / FOLDS).astype(np.float32)[:, None]
        deep[judge] += part * network_logits(fold, train, judge)
        of_service = domain[judge] == SERVICE
        for service in (True, False):
            at = np.flatnonzero(of_service == service)
            # The service chats have words of their own: an n-gram model of theirs alone is better there than one of everything.
            rows = train[np.char.startswith(corpus.names[corpus.source[train]], SERVICE)] if service else train
            if len(rows) and len(at):
                wide[judge[at]] += part[at] * fit_ngrams(bags, data, heads, rows, judge[at])
    report: list[dict[str, Any]] = []
    soft = np.zeros((len(corpus), width), np.float32)
    for name in sorted(set(domains)):
        here = domain == name
        begin = 0
        for head in heads:
            columns = slice(begin, begin + head.width)
            begin += head.width
            gold = _gold(data, head)
            live = here & _live(gold, head) & (corpus.weight >= 1.0)
            a, b = _shares(head, deep[live][:, columns], wide[live][:, columns], gold[live], corpus.binary[live])
            soft[here, columns] = _probability(head, a * deep[here][:, columns] + b * wide[here][:, columns])
            report.append(
                {"domain": name, "head": head.name, "rows": int(live.sum()), "network": a, "ngrams": b}
                | _quality(head, deep[live][:, columns], wide[live][:, columns], gold[live], corpus.binary[live], a, b)
            )
    return soft, report


def _gold(data: DeviceCorpus, head: Head) -> npt.NDArray[Any]:
    return data.targets[head.name].cpu().numpy()


def _live(gold: npt.NDArray[Any], head: Head) -> npt.NDArray[np.bool_]:
    return np.asarray(gold >= 0 if head.kind is HeadKind.SOFTMAX else ~np.isnan(gold[:, 0]))


def _shares(
    head: Head, deep: Floats, wide: Floats, gold: npt.NDArray[Any], binary: npt.NDArray[np.bool_]
) -> tuple[float, float]:
    """The weights of network and n-grams with the least loss out of fold; the network alone where nothing is labelled."""
    if head.kind is HeadKind.REGRESSION or len(deep) < 200:
        return 1.0, 0.0
    pick = np.random.default_rng(0).permutation(len(deep))[:20_000]
    deep, wide, gold, binary = deep[pick], wide[pick], gold[pick], binary[pick]
    return min(
        ((a, b) for a in NETWORK_SHARES for b in NGRAM_SHARES),
        key=lambda s: _log_loss(head, s[0] * deep + s[1] * wide, gold, binary),
    )


def _log_loss(head: Head, z: Floats, gold: npt.NDArray[Any], binary: npt.NDArray[np.bool_]) -> float:
    if head.kind is HeadKind.SIGMOID:
        p = np.clip(_probability(head, z), 1e-7, 1 - 1e-7)
        return float(-(gold * np.log(p) + (1 - gold) * np.log(1 - p)).sum(1).mean())
    p = _probability(head, _without_neutral(head, z, binary))
    return float(-np.log(np.clip(p[np.arange(len(p)), gold], 1e-9, 1)).mean())


def _without_neutral(head: Head, z: Floats, binary: npt.NDArray[np.bool_]) -> Floats:
    z = z.copy()
    if head.name == "polarity":
        z[binary, head.labels.index("neutral")] += NO_NEUTRAL
    return z


def _probability(head: Head, z: Floats) -> Floats:
    if head.kind is HeadKind.REGRESSION:
        return np.clip(z, 0.0, 3.0)
    if head.kind is HeadKind.SIGMOID:
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -30, 30))), np.float32)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True), np.float32)


def _quality(
    head: Head, deep: Floats, wide: Floats, gold: npt.NDArray[Any], binary: npt.NDArray[np.bool_], a: float, b: float
) -> dict[str, Any]:
    """Out of fold: macro-F1 of network, n-grams and both; micro-F1 at 0.5 for signals."""
    out = {}
    for name, z in (("f1_network", deep), ("f1_ngrams", wide), ("f1_both", a * deep + b * wide)):
        if not len(z) or head.kind is HeadKind.REGRESSION:
            continue
        if head.kind is HeadKind.SOFTMAX:
            out[name] = round(macro_f1(gold, _without_neutral(head, z, binary).argmax(1), head.labels), 4)
        else:
            said, true = z > 0, gold > 0.5
            out[name] = round(2.0 * float((said & true).sum()) / max(1.0, float(said.sum() + true.sum())), 4)
    return out
