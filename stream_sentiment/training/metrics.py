"""Measures of a classifier: macro-F1, per-class precision and recall, UAR, ECE, AUC. Pure; arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]


def softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Rows to probabilities."""
    z = logits.astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def sigmoid(logits: Floats) -> npt.NDArray[np.float64]:
    """Elementwise; clipped at +-40, where it is 0 or 1 to the last bit that matters."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits.astype(np.float64), -40, 40))))


def per_class(gold: Ints, predicted: Ints, labels: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and support of every label that stands in the gold data; 0 where undefined."""
    out = {}
    for index, label in enumerate(labels):
        support = int((gold == index).sum())
        if not support:
            continue
        hit = int(((gold == index) & (predicted == index)).sum())
        said = int((predicted == index).sum())
        precision = hit / said if said else 0.0
        recall = hit / support
        f1 = 2 * precision * recall / (precision + recall) if hit else 0.0
        out[label] = {"precision": precision, "recall": recall, "f1": f1, "support": support}
    return out


def macro_f1(gold: Ints, predicted: Ints, labels: Sequence[str]) -> float:
    """Mean F1 over the labels that stand in the gold data."""
    return float(np.mean([c["f1"] for c in per_class(gold, predicted, labels).values()]))


def ece(probability: Floats, gold: Ints, bins: int = 15) -> float:
    """Expected calibration error of the largest probability, `bins` equal-width bins (Guo et al. 2017)."""
    confidence = probability.max(axis=1)
    hit = probability.argmax(axis=1) == gold
    return _binned_gap(confidence, hit, bins)


def binary_ece(probability: Floats, gold: npt.NDArray[np.bool_], bins: int = 15) -> float:
    """The same for independent yes/no outputs: probability of yes against the share of yes."""
    return _binned_gap(probability, gold, bins)


def reliability(probability: Floats, gold: Ints, bins: int = 15) -> list[dict[str, float]]:
    """The bins of `ece` that hold rows, for the reliability plot: mean confidence, accuracy, rows."""
    return _bins(probability.max(axis=1), probability.argmax(axis=1) == gold, bins)


def _binned_gap(confidence: Floats, hit: npt.NDArray[np.bool_], bins: int) -> float:
    return sum(b["rows"] * abs(b["confidence"] - b["accuracy"]) for b in _bins(confidence, hit, bins)) / len(hit)


def _bins(confidence: Floats, hit: npt.NDArray[np.bool_], bins: int) -> list[dict[str, float]]:
    number = np.minimum((confidence * bins).astype(int), bins - 1)
    found = []
    for b in range(bins):
        inside = number == b
        if inside.any():
            mean, share = float(confidence[inside].mean()), float(hit[inside].mean())
            found.append({"confidence": mean, "accuracy": share, "rows": int(inside.sum())})
    return found


def auc(score: Floats, gold: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve by ranks, ties at their mean rank; NaN when a class is missing."""
    positive, negative = int(gold.sum()), int((~gold).sum())
    if not positive or not negative:
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2.0)[inverse]
    return float((ranks[gold].sum() - positive * (positive + 1) / 2) / (positive * negative))


def confusion(gold: Ints, predicted: Ints, width: int) -> npt.NDArray[np.int64]:
    """Counts, gold down, predicted across."""
    table = np.zeros((width, width), np.int64)
    np.add.at(table, (gold, predicted), 1)
    return table


def expected_log_loss(logits: Floats, gold: Ints, temperature: float) -> float:
    """Mean negative log likelihood at a temperature."""
    p = softmax(logits / temperature)[np.arange(len(gold)), gold]
    return float(-np.log(np.maximum(p, 1e-12)).mean())
