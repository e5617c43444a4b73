"""The `sentiment` and `emotion` blocks of a scored event, for the worker and for `score`. Pure."""

from __future__ import annotations

from typing import Any

from stream_sentiment.conversation.rolling import level_of
from stream_sentiment.scoring.bundle import ModelInfo
from stream_sentiment.scoring.calibration import Score


def sentiment_block(score: Score, info: ModelInfo) -> dict[str, Any]:
    """`{label, score, probabilities{negative, neutral, positive}, confidence, level}`, floats of four
    decimals (as the score has them).
    """
    negative, neutral, positive = score.polarity
    return {
        "label": score.label,
        "score": score.score,
        "probabilities": {"negative": negative, "neutral": neutral, "positive": positive},
        "confidence": score.confidence,
        "level": level_of(score.score),
    }


def emotion_block(score: Score, info: ModelInfo) -> dict[str, Any]:
    """`{label, probabilities{}}` with the labels of the manifest."""
    return {
        "label": score.emotion_label,
        "probabilities": dict(zip(info.emotion_labels, score.emotion, strict=True)),
    }
