"""Scores for the texts of the past, from the model, remembered by text and model; or from the labels of a labelled file.

In: texts. Out: `Score`s. Blocks on inference and on one SQLite file. Raises what the scorer raises.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import orjson

from stream_sentiment.scoring.calibration import Score
from stream_sentiment.scoring.heads import EMOTIONS, SIGNALS

# Texts scored and stored at a time: long enough to sort by length, short enough that little is lost when the run is stopped.
CHUNK = 512


class OfflineScorer(Protocol):
    """The part of a scorer that offline work needs."""

    @property
    def info(self) -> Any: ...

    def score(self, texts: list[str]) -> list[Score]: ...


def cache_path() -> Path:
    """Where scores are kept when nobody says where."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "stream-sentiment" / "scores.sqlite"


class ScoreCache:
    """A file of scores by (model sha256, text)."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path)
        self._db.execute("CREATE TABLE IF NOT EXISTS score (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def scores(
        self, scorer: OfflineScorer, texts: Iterable[str], progress: Callable[[int], None] = lambda n: None
    ) -> dict[str, Score]:
        """Every distinct text's score; `progress` is told how many are done."""
        model = str(scorer.info.sha256).encode()
        known: dict[str, Score] = {}
        missing: list[str] = []
        for text in dict.fromkeys(texts):
            row = self._db.execute("SELECT value FROM score WHERE key = ?", (_key(model, text),)).fetchone()
            if row is None:
                missing.append(text)
            else:
                known[text] = _score_from(orjson.loads(row[0]))
        progress(len(known))
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            for text, score in zip(chunk, scorer.score(chunk), strict=True):
                known[text] = score
                self._db.execute(
                    "INSERT OR REPLACE INTO score VALUES (?, ?)", (_key(model, text), orjson.dumps(asdict(score)))
                )
            self._db.commit()
            progress(len(chunk))
        return known

    def close(self) -> None:
        self._db.close()


def _key(model: bytes, text: str) -> bytes:
    return sha256(model + b"\0" + text.encode("utf-8", "surrogatepass")).digest()


def _score_from(raw: dict[str, Any]) -> Score:
    raw["polarity"] = tuple(raw["polarity"])
    raw["emotion"] = tuple(raw["emotion"])
    raw["signals"] = tuple(raw["signals"])
    return Score(**raw)


def gold_score(gold: Mapping[str, Any]) -> Score:
    """A score made of labels: the ceiling that a perfect model would reach."""
    label = gold.get("polarity", "neutral")
    value = {"negative": -1.0, "positive": 1.0}.get(label, 0.0)
    emotion = gold.get("emotion", "neutral")
    polarity = tuple(1.0 if label == name else 0.0 for name in ("negative", "neutral", "positive"))
    signals = tuple(1.0 if name in gold.get("signals", ()) else 0.0 for name in SIGNALS)
    return Score(
        (polarity[0], polarity[1], polarity[2]),
        tuple(1.0 if emotion == name else 0.0 for name in EMOTIONS),
        value,
        1.0,
        label,
        emotion,
        False,
        float(gold.get("intensity", 3)),
        signals,
    )
