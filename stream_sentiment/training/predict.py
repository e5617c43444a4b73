"""Logits of a network in training, encoder and shortcut apart, and the macro-F1 that early stopping looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from stream_sentiment.scoring.heads import HeadKind
from stream_sentiment.training.data import NO_NEUTRAL, Encoder, Row, batches, prepared, targets_of
from stream_sentiment.training.evaluate import texts_of
from stream_sentiment.training.metrics import macro_f1
from stream_sentiment.training.network import SentimentNetwork

Logits = dict[str, npt.NDArray[np.float32]]

TOKENS = 6_144
MINIMUM_LABELLED = 0.3
"""Heads that a smaller share of a set's rows has labels for are not measured on that set."""


def split_logits(network: SentimentNetwork, ids: Sequence[list[int]], rows: Sequence[Row]) -> tuple[Logits, Logits]:
    """By head, rows in the given order: the encoder's logits and the shortcut's (zeros without one)."""
    heads = network.head_specs
    deep = {h.name: np.zeros((len(rows), h.width), np.float32) for h in heads}
    wide = {h.name: np.zeros((len(rows), h.width), np.float32) for h in heads}
    with torch.no_grad():
        for group, batch in batches(rows, ids, heads, TOKENS, None):
            x, lengths = torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths)
            pooled = network.pooled(x, lengths)
            for name, head in network.heads.items():
                deep[name][group] = head(pooled).numpy()
            if network.wide is not None:
                for name, part in network.wide_logits(x, lengths, pooled).items():
                    wide[name][group] = part.numpy()
    return deep, wide


def dev_scores(network: SentimentNetwork, encoder: Encoder, sets: Mapping[str, Sequence[Row]]) -> dict[str, float]:
    """Macro-F1 of every softmax head on every set that has its labels; the encoder alone."""
    out = {}
    for name, rows in sets.items():
        ids = encoder.encode([prepared(text) for text in texts_of(rows)])
        deep, _ = split_logits(network, ids, rows)
        targets = targets_of(rows, network.head_specs)
        for head in network.head_specs:
            gold = targets[head.name]
            if head.kind is not HeadKind.SOFTMAX or (gold >= 0).mean() < MINIMUM_LABELLED:
                continue
            z = deep[head.name]
            if head.name == "polarity":
                z[[r.binary for r in rows], head.labels.index("neutral")] = NO_NEUTRAL
            live = gold >= 0
            out[f"{name} {head.name}"] = macro_f1(gold[live], z[live].argmax(axis=1), head.labels)
    return out
