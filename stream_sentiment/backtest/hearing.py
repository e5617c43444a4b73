"""How well signals are heard: per signal and source, against labels and against what the customers felt.

In: rows of a data set, a finder, scores. Out: plain numbers. `read_rows` blocks on a file and raises `ConfigurationError` with the
line; the rest is pure.

Against labels: precision and recall. Against moods (a rating of the turn, or its polarity): the share of the messages with the signal
whose author was dissatisfied, beside the share of all messages: a signal of trouble that lies no higher means nothing.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from stream_sentiment.backtest.choose import wilson
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.escalation.ruleformat import SIGNALS
from stream_sentiment.escalation.signals import SignalFinder
from stream_sentiment.scoring.calibration import Score
from stream_sentiment.scoring.text import prepare

SOURCES = ("lexicon", "model", "both")
MOODS = {"negative": "dissatisfied", "neutral": "neutral", "positive": "satisfied"}
_CUSTOMERS = ("user", "customer")


class Row(NamedTuple):
    text: str  # prepared
    signals: frozenset[str] | None  # None: not labelled
    mood: str | None  # dissatisfied, neutral, satisfied


@dataclass(slots=True)
class _Count:
    heard: int = 0
    right: int = 0
    labelled: int = 0  # rows with the label
    rated: int = 0  # heard, in a row with a mood
    dissatisfied: int = 0

    def as_dict(self, labels: bool) -> dict[str, Any]:
        interval = wilson(self.dissatisfied, self.rated)
        return {
            "heard": self.heard,
            "precision": round(self.right / self.heard, 4) if labels and self.heard else None,
            "recall": round(self.right / self.labelled, 4) if labels and self.labelled else None,
            "rated": self.rated,
            "dissatisfied": round(self.dissatisfied / self.rated, 4) if self.rated else None,
            "dissatisfied_interval": None if interval is None else [round(end, 4) for end in interval],
        }


@dataclass(slots=True)
class _Counts:
    sources: dict[str, _Count] = field(default_factory=lambda: {source: _Count() for source in SOURCES})


def read_rows(path: Path) -> Iterator[Row]:
    """Customers' messages of a JSONL file (`.gz` too): `text`, and of `signals`, `satisfaction`, `polarity` what there is."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = orjson.loads(line)
                    if row.get("role") not in (None, *_CUSTOMERS):
                        continue
                    signals = row.get("signals")
                    mood = row.get("satisfaction") or MOODS.get(row.get("polarity") or "")
                    yield Row(prepare(row["text"]).text, None if signals is None else frozenset(signals), mood)
                except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
                    raise ConfigurationError(f"{path}, line {number}: no row with a text: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error


def measure_signals(rows: Iterable[Row], finder: SignalFinder, scores: Mapping[str, Score]) -> dict[str, Any]:
    """Figures per signal and source, and micro-averaged over all signals."""
    counts = {name: _Counts() for name in (*SIGNALS, "all")}
    messages = labelled = 0
    moods: dict[str, int] = {}
    for row in rows:
        messages += 1
        labelled += row.signals is not None
        if row.mood is not None:
            moods[row.mood] = moods.get(row.mood, 0) + 1
        found = finder.of_message(row.text, scores.get(row.text))
        heard = {source: {s.name for s in found if source in ("both", s.source)} for source in SOURCES}
        for name in SIGNALS:
            wanted = row.signals is not None and name in row.signals
            for source in SOURCES:
                if wanted or name in heard[source]:
                    for count in (counts[name].sources[source], counts["all"].sources[source]):
                        _add(count, row, wanted, name in heard[source])
    rated = sum(moods.values())
    figures = {
        name: {source: count.as_dict(labelled > 0) for source, count in found.sources.items()}
        for name, found in counts.items()
    }
    return {
        "messages": messages,
        "labelled": labelled,
        "rated": rated,
        "dissatisfied": round(moods.get("dissatisfied", 0) / rated, 4) if rated else None,
        "signals": {name: figures[name] for name in SIGNALS},
        "all": figures["all"],
    }


def _add(count: _Count, row: Row, wanted: bool, heard: bool) -> None:
    count.labelled += wanted
    if heard:
        count.heard += 1
        count.right += wanted
        if row.mood is not None:
            count.rated += 1
            count.dissatisfied += row.mood == "dissatisfied"
