"""The `sentiment` and `emotion` blocks of a scored event, for the worker and for `score`. Pure."""

from __future__ import annotations

from typing import Any

from stream_sentiment.scoring.bundle import ModelInfo
from stream_sentiment.scoring.calibration import Score

# Upper edges of levels 1 to 6 on the score's range [-1, 1]; above the last is level 7. Seven equal steps of 2/7.
LEVEL_EDGES = tuple(-1.0 + 2.0 * i / 7.0 for i in range(1, 7))
DIGITS = 4


def level(score: float) -> int:
    """1 (most negative) to 7 (most positive); 4 holds the scores around zero."""
    return 1 + sum(score > edge for edge in LEVEL_EDGES)


def sentiment_block(score: Score, info: ModelInfo) -> dict[str, Any]:
    """`{label, score, probabilities{negative, neutral, positive}, confidence, level}`, floats of four decimals."""
    return {
        "label": score.label,
        "score": round(score.score, DIGITS),
        "probabilities": {k: round(p, DIGITS) for k, p in zip(info.labels["polarity"], score.polarity, strict=True)},
        "confidence": round(score.confidence, DIGITS),
        "level": level(score.score),
    }


def emotion_block(score: Score, info: ModelInfo) -> dict[str, Any]:
    """`{label, probabilities{}}` with the labels of the manifest."""
    return {
        "label": score.emotion_label,
        "probabilities": {k: round(p, DIGITS) for k, p in zip(info.emotion_labels, score.emotion, strict=True)},
    }
