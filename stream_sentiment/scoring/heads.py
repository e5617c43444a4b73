"""The heads a model may have, their kinds and the label orders that the event contract names. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

POLARITIES = ("negative", "neutral", "positive")
EMOTIONS = ("anger", "disappointment", "anxiety", "joy", "surprise", "neutral")
SIGNALS = (
    "human_request",
    "complaint",
    "refund_request",
    "legal_threat",
    "regulator_mention",
    "media_threat",
    "abuse",
    "churn",
    "safety_risk",
    "repeat_issue",
    "delivery_delay",
    "quality_defect",
    "thanks",
)


class HeadKind(StrEnum):
    """How a head's logits become numbers that a person reads."""

    SOFTMAX = "softmax"  # one of the labels; probabilities sum to 1
    SIGMOID = "sigmoid"  # each label on its own
    REGRESSION = "regression"  # the value itself


@dataclass(frozen=True, slots=True)
class Head:
    """One output of the network. The order of `labels` is the order of its columns."""

    name: str
    kind: HeadKind
    labels: tuple[str, ...]

    @property
    def width(self) -> int:
        return len(self.labels)
