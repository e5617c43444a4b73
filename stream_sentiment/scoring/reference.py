"""The distribution of predictions that a bundle was measured to give, and the distance of another one from it.

In: scores by language; a manifest's `reference`. Out: `Reference` values, their JSON form, the population stability index.
Pure except `write_reference`. Raises ValueError for a reference that is not one.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from stream_sentiment.scoring.calibration import Score

HEADS = ("polarity", "emotion")
"""The heads that give a message exactly one label. Signals are left out: a message has none, one or several."""

KEY = "reference"
"""Where the manifest holds it."""

BINS = 10
"""Confidence is compared in tenths of the reference: bins of equal mass weigh every part of the distribution alike."""

MINIMUM = 200
"""Messages of a language below which its shares say little: with 10 bins, chance alone gives an index of 9 / 200 = 0.045."""

FLOOR = 0.0001
"""A share of 0 counts as this, else one label that did not occur would make the index infinite."""


class Prediction(NamedTuple):
    """What of a score the distributions are made of; labels and confidences in the order of `HEADS`."""

    language: str  # primary subtag, lower case
    labels: tuple[str, str]
    confidences: tuple[float, float]  # largest probability of each head

    @classmethod
    def of(cls, score: Score, language: str) -> Prediction:
        return cls(primary_subtag(language), (score.label, score.emotion_label), (score.confidence, max(score.emotion)))


@dataclass(frozen=True, slots=True)
class HeadReference:
    """One head in one language."""

    labels: Mapping[str, float]  # share of each label; sums to 1
    bounds: tuple[float, ...]  # upper bounds of all bins of confidence but the last, ascending
    confidence: tuple[float, ...]  # share of each bin, one more than bounds; sums to 1


@dataclass(frozen=True, slots=True)
class LanguageReference:
    """One language: how many messages it was measured on, and its heads by name."""

    messages: int
    heads: Mapping[str, HeadReference]


Reference = Mapping[str, LanguageReference]
"""By primary language subtag."""


@lru_cache(maxsize=256)
def primary_subtag(language: str) -> str:
    """`zh` of `zh-Hans-CN`."""
    return language.replace("_", "-").partition("-")[0].lower()


def psi(expected: Sequence[float], observed: Sequence[float]) -> float:
    """Population stability index of two distributions over the same bins: sum of (o - e) ln(o / e).

    It is the Kullback-Leibler divergence taken both ways (Jeffreys 1946), as credit scoring uses it: below 0.1 no shift, above
    0.2 one to look at. By chance alone it is about (bins - 1)(1/n + 1/m) for samples of n and m.
    """
    pairs = [(max(e, FLOOR), max(o, FLOOR)) for e, o in zip(expected, observed, strict=True)]
    return sum((o - e) * math.log(o / e) for e, o in pairs)


def distances(reference: LanguageReference, predictions: Sequence[Prediction]) -> dict[tuple[str, str], float]:
    """The index of each (head, "labels" or "confidence") of one language's predictions, of which there must be some."""
    found: dict[tuple[str, str], float] = {}
    total = len(predictions)
    for column, name in enumerate(HEADS):
        head = reference.heads[name]
        labels = Counter(prediction.labels[column] for prediction in predictions)
        # A label that the reference does not know is the rest of 1 and counts in full.
        names = [*head.labels, *(labels.keys() - head.labels.keys())]
        found[name, "labels"] = psi(
            [head.labels.get(label, 0.0) for label in names], [labels[label] / total for label in names]
        )
        bins = _binned((prediction.confidences[column] for prediction in predictions), head.bounds)
        found[name, "confidence"] = psi(head.confidence, [count / total for count in bins])
    return found


def measure(predictions: Iterable[Prediction], labels: Mapping[str, Sequence[str]]) -> dict[str, LanguageReference]:
    """The reference that these predictions give; languages with fewer than `MINIMUM` are left out.

    Args:
        labels: all labels of each head, so that those which did not occur have a share of 0.
    """
    by_language: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        by_language.setdefault(prediction.language, []).append(prediction)
    return {
        language: LanguageReference(
            len(rows), {name: _head(rows, column, labels[name]) for column, name in enumerate(HEADS)}
        )
        for language, rows in sorted(by_language.items())
        if len(rows) >= MINIMUM
    }


def parse(document: Any) -> Reference | None:
    """The `reference` of a manifest; None where it has none. Raises ValueError, KeyError or TypeError for one that is damaged."""
    if document is None:
        return None
    return {
        str(language): LanguageReference(
            int(entry["messages"]), {name: _parsed_head(name, entry["heads"][name]) for name in HEADS}
        )
        for language, entry in document["languages"].items()
    }


def as_document(reference: Reference, sources: Mapping[str, int]) -> dict[str, Any]:
    """The JSON form. sources: rows read of each file, by name."""
    return {
        "sources": [{"file": name, "rows": rows} for name, rows in sources.items()],
        "languages": {
            language: {
                "messages": entry.messages,
                "heads": {
                    name: {
                        "labels": dict(head.labels),
                        "bounds": list(head.bounds),
                        "confidence": list(head.confidence),
                    }
                    for name, head in entry.heads.items()
                },
            }
            for language, entry in reference.items()
        },
    }


def write_reference(manifest_file: Path, document: Mapping[str, Any]) -> None:
    """Put the reference into a manifest, in one step: a worker that starts meanwhile reads the old or the new one."""
    manifest = json.loads(manifest_file.read_bytes())
    manifest[KEY] = document
    scratch = manifest_file.with_suffix(".json.new")
    scratch.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
    scratch.replace(manifest_file)


def _head(rows: Sequence[Prediction], column: int, labels: Sequence[str]) -> HeadReference:
    counts = Counter(row.labels[column] for row in rows)
    confidences = sorted(row.confidences[column] for row in rows)
    # Many confidences are equal near 1: equal bounds become one, and its bin holds more than a tenth.
    bounds = sorted({confidences[len(rows) * part // BINS] for part in range(1, BINS)} - {confidences[-1]})
    bins = _binned(confidences, bounds)
    return HeadReference(
        {label: round(counts[label] / len(rows), 6) for label in labels},
        tuple(bounds),
        tuple(round(count / len(rows), 6) for count in bins),
    )


def _binned(values: Iterable[float], bounds: Sequence[float]) -> list[int]:
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    return counts


def _parsed_head(name: str, entry: Mapping[str, Any]) -> HeadReference:
    head = HeadReference(
        {str(label): float(share) for label, share in entry["labels"].items()},
        tuple(float(bound) for bound in entry["bounds"]),
        tuple(float(share) for share in entry["confidence"]),
    )
    for what, shares in (("labels", tuple(head.labels.values())), ("confidence", head.confidence)):
        # Not `sum != 1`: shares are rounded. Written so that a share that is no number is refused too.
        if not (all(share >= 0 for share in shares) and abs(sum(shares) - 1) < 0.001):
            raise ValueError(f"{KEY}: the shares of {what} of the head {name} do not sum to 1")
    if len(head.confidence) != len(head.bounds) + 1 or list(head.bounds) != sorted(set(head.bounds)):
        raise ValueError(f"{KEY}: the confidence bins of the head {name} do not fit their bounds")
    return head
