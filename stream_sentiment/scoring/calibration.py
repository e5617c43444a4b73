"""Logits to calibrated probabilities and `Score` values. Pure; a whole batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.bundle import HeadSpec
from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES, HeadKind

DIGITS = 4
"""Decimals of every probability and score."""


@dataclass(frozen=True, slots=True)
class Score:
    """The result for one message. Probabilities are calibrated; within a head they sum to 1, up to their rounding."""

    polarity: tuple[float, float, float]  # p(negative), p(neutral), p(positive)
    emotion: tuple[float, ...]  # in the order of ModelInfo.emotion_labels
    score: float  # p(positive) - p(negative), in [-1, 1]
    confidence: float  # the largest polarity probability
    label: str
    emotion_label: str
    uncertain: bool  # confidence below the manifest's abstain threshold
    intensity: float | None = None  # 0 none .. 3 strong; None: the model has no such head
    signals: tuple[float, ...] = ()  # probability of each signal, in the order of ModelInfo.labels["signals"]


class Calibrator:
    """Turns the logits of one bundle's heads into scores."""

    def __init__(self, heads: Sequence[HeadSpec]) -> None:
        self._columns: dict[str, tuple[slice, HeadSpec]] = {}
        at = 0
        for spec in heads:
            self._columns[spec.head.name] = (slice(at, at + spec.head.width), spec)
            at += spec.head.width
        self.width = at
        for name, labels in (("polarity", POLARITIES), ("emotion", EMOTIONS)):
            if name not in self._columns or set(self._columns[name][1].head.labels) != set(labels):
                raise ConfigurationError(f"the manifest declares no head {name} with the labels {', '.join(labels)}")
        if self._columns["polarity"][1].head.labels != POLARITIES:
            raise ConfigurationError(f"the polarity labels must be in the order {', '.join(POLARITIES)}")

    def scores(self, logits: npt.NDArray[np.float32]) -> list[Score]:
        """One score per row; the rows must be finite."""
        z = logits.astype(np.float64)
        # Rounded here, a batch at a time and before anything is decided on them: what the event shows is what
        # the rules saw, and the last bits, in which processors differ, cannot move a threshold.
        polarity = self._softmax(z, "polarity").round(DIGITS)
        emotion = self._softmax(z, "emotion").round(DIGITS)
        spec = self._columns["polarity"][1]
        best = polarity.argmax(axis=1).tolist()
        feeling = emotion.argmax(axis=1).tolist()
        values = (polarity[:, 2] - polarity[:, 0]).round(DIGITS).tolist()
        intensity: list[float | None] = [None] * len(z)
        if "intensity" in self._columns:
            intensity = np.clip(z[:, self._columns["intensity"][0]], 0.0, 3.0)[:, 0].tolist()
        signals: list[list[float]] = [[]] * len(z)
        if "signals" in self._columns:
            signals = self._sigmoid(z, "signals").tolist()
        emotions = self._columns["emotion"][1].head.labels
        limit = spec.abstain_below
        return [
            Score(
                (p[0], p[1], p[2]),
                tuple(e),
                value,
                p[b],
                POLARITIES[b],
                emotions[f],
                p[b] < limit,
                strength,
                tuple(s),
            )
            for p, e, value, b, f, strength, s in zip(
                polarity.tolist(), emotion.tolist(), values, best, feeling, intensity, signals, strict=True
            )
        ]

    def _softmax(self, z: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        columns, spec = self._columns[name]
        x = z[:, columns] / spec.temperature
        e = np.exp(x - x.max(axis=1, keepdims=True))
        return np.asarray(e / e.sum(axis=1, keepdims=True))

    def _sigmoid(self, z: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        columns, spec = self._columns[name]
        assert spec.head.kind is HeadKind.SIGMOID
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z[:, columns] / spec.temperature, -40.0, 40.0))))
