"""Evaluation of a bundle as it is deployed: rows in, one report per data set out.

In: an `OnnxScorer` and rows. Out: dictionaries of numbers (shares from 0 to 1). Blocks on inference. Figures
are computed from the served variant's own logits, through the product's text preparation and tokenizer, so
that the card and the product cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from stream_sentiment.batching import plan_micro_batches
from stream_sentiment.escalation.rules import load_rules
from stream_sentiment.scoring.heads import POLARITIES, HeadKind
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.scoring.text import prepare
from stream_sentiment.training import metrics
from stream_sentiment.training.data import NO_NEUTRAL, Row, fill_placeholders, targets_of

PLACEHOLDER_SEED = 5


def logits_of(
    scorer: OnnxScorer, texts: Sequence[str], progress: Callable[[int], None] | None = None
) -> npt.NDArray[np.float32]:
    """Logits of all heads side by side, rows in the order of the texts."""
    ids = [t.ids for t in scorer.tokenize(texts)]
    width = sum(h.head.width for h in scorer.bundle.heads)
    out = np.zeros((len(texts), width), np.float32)
    for group in plan_micro_batches([len(x) for x in ids], scorer.token_budget):
        out[group] = scorer.logits([ids[i] for i in group])
        if progress is not None:
            progress(len(group))
    return out


def texts_of(rows: Sequence[Row]) -> list[str]:
    """The rows' texts, corpus placeholders filled with fixed pseudo-random digits."""
    rng = np.random.default_rng(PLACEHOLDER_SEED)
    return [fill_placeholders(row.text, rng) for row in rows]


def report(scorer: OnnxScorer, rows: Sequence[Row], progress: Callable[[int], None] | None = None) -> dict[str, Any]:
    """All figures for one data set; heads without labels in it are left out."""
    logits = logits_of(scorer, texts_of(rows), progress)
    return report_from_logits(scorer, rows, logits)


def report_from_logits(scorer: OnnxScorer, rows: Sequence[Row], logits: npt.NDArray[np.float32]) -> dict[str, Any]:
    """The same from logits that are at hand."""
    heads = [h.head for h in scorer.bundle.heads]
    targets = targets_of(rows, heads)
    out: dict[str, Any] = {"rows": len(rows)}
    at = 0
    for spec in scorer.bundle.heads:
        head = spec.head
        z, y = logits[:, at : at + head.width] / spec.temperature, targets[head.name]
        at += head.width
        if head.kind is HeadKind.SOFTMAX:
            live = y >= 0
            # A set where only a few rows carry the label (irony marks, say) says nothing about the head.
            if live.mean() < 0.3:
                continue
            if head.labels == POLARITIES:
                z = z.copy()
                z[[r.binary for r in rows], POLARITIES.index("neutral")] = NO_NEUTRAL
            out[head.name] = _classification(z[live], y[live], head.labels)
        elif head.kind is HeadKind.REGRESSION:
            live = ~np.isnan(y[:, 0])
            if live.any():
                error = np.clip(z[live, 0], 0, 3) - y[live, 0]
                out[head.name] = {"rows": int(live.sum()), "mae": float(np.abs(error).mean())}
        else:
            live = ~np.isnan(y[:, 0])
            if live.any():
                out[head.name] = _signals(z[live], y[live] > 0.5, head.labels, spec.thresholds)
                if head.name == "signals":
                    kept = [row for row, there in zip(rows, live, strict=True) if there]
                    out["signals_with_lexicon"] = _heard(scorer, kept, z[live], y[live] > 0.5, head.labels)
    return out


def without_curves(report: dict[str, Any]) -> dict[str, Any]:
    """The figures that a manifest keeps: no points of curves."""
    return {
        head: {k: v for k, v in value.items() if k != "reliability"} if isinstance(value, dict) else value
        for head, value in report.items()
    }


def _classification(z: npt.NDArray[np.float32], gold: npt.NDArray[Any], labels: tuple[str, ...]) -> dict[str, Any]:
    probability = metrics.softmax(z)
    predicted = probability.argmax(axis=1)
    classes = metrics.per_class(gold, predicted, labels)
    majority = int(np.bincount(gold, minlength=len(labels)).argmax())
    aucs = [metrics.auc(probability[:, i], gold == i) for i, x in enumerate(labels) if x in classes]
    return {
        "rows": len(gold),
        "accuracy": float((predicted == gold).mean()),
        "macro_f1": float(np.mean([c["f1"] for c in classes.values()])),
        "uar": float(np.mean([c["recall"] for c in classes.values()])),
        "auc": float(np.nanmean(aucs)) if len(classes) > 1 else None,
        "ece": metrics.ece(probability, gold),
        "reliability": metrics.reliability(probability, gold),
        "majority_accuracy": float((gold == majority).mean()),
        "majority_macro_f1": metrics.macro_f1(gold, np.full_like(gold, majority), labels),
        "classes": classes,
        "confusion": metrics.confusion(gold, predicted, len(labels)).tolist(),
    }


def _heard(
    scorer: OnnxScorer,
    rows: Sequence[Row],
    z: npt.NDArray[np.float32],
    gold: npt.NDArray[np.bool_],
    labels: tuple[str, ...],
) -> dict[str, Any]:
    """What the worker hears: the model's head and the lexicon of the default rules together."""
    said = heard(scorer, rows, metrics.sigmoid(z), labels)
    hits = float((said & gold).sum())
    classes = {label: _precision_recall(said[:, i], gold[:, i]) for i, label in enumerate(labels)}
    return {
        "rows": len(gold),
        "precision": hits / max(1.0, float(said.sum())),
        "recall": hits / max(1.0, float(gold.sum())),
        "classes": classes,
    }


def heard(
    scorer: OnnxScorer,
    rows: Sequence[Row],
    probability: npt.NDArray[np.floating],
    labels: tuple[str, ...],
    source: str | None = None,
) -> npt.NDArray[np.bool_]:
    """Rows x signals: what the lexicon of the default rules and the head at the bundle's thresholds say together; with `source`
    ("lexicon" or "model") that one alone, the lexicon's doubts about a phrase that the head finds absurd included.
    """
    finder = load_rules().finder(scorer.info)
    said = np.zeros((len(rows), len(labels)), np.bool_)
    for at, (text, row) in enumerate(zip(texts_of(rows), probability, strict=True)):
        for signal in finder.find(prepare(text).text, row.tolist()):
            if source in (None, signal.source):
                said[at, labels.index(signal.name)] = True
    return said


def _precision_recall(said: npt.NDArray[np.bool_], gold: npt.NDArray[np.bool_]) -> dict[str, Any]:
    hit, given, there = int((said & gold).sum()), int(said.sum()), int(gold.sum())
    return {"precision": hit / given if given else None, "recall": hit / there if there else None, "support": there}


def _signals(
    z: npt.NDArray[np.float32], gold: npt.NDArray[np.bool_], labels: tuple[str, ...], thresholds: tuple[float, ...]
) -> dict[str, Any]:
    probability = metrics.sigmoid(z)
    said = probability >= np.asarray(thresholds)[None]
    classes = {label: _precision_recall(said[:, i], gold[:, i]) for i, label in enumerate(labels)}
    hits = float((said & gold).sum())
    return {
        "rows": len(gold),
        "precision": hits / max(1.0, float(said.sum())),
        "recall": hits / max(1.0, float(gold.sum())),
        "ece": metrics.binary_ece(probability.ravel(), gold.ravel()),
        "classes": classes,
    }
