"""The numbers that shape the rolling state; they come from the `defaults.state` part of the rule file."""

from __future__ import annotations

from dataclasses import dataclass

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS

# More would make every stored state longer and prove nothing: at alpha 0.3 the eleventh message back weighs 0.3 * 0.7^10 < 1 %.
MAX_WINDOW = 10


@dataclass(frozen=True, slots=True)
class StateOptions:
    """How turns become a rolling score. Durations are event time."""

    alpha: float = 0.3  # EWMA weight of one confident message; four plain complaints reach 1 - 0.7^4 = -0.76
    prior: float = 0.0  # where a conversation starts and where silence pulls it back to
    half_life_ms: int | None = (
        30 * MINUTE_MS
    )  # silence this long halves the distance to the prior; None: time is ignored
    window: int = MAX_WINDOW  # scored messages kept for evidence and exact recomputation, 1..10
    ttl_ms: int = 24 * HOUR_MS  # a longer gap ends the conversation: the next message starts a new state
    max_lateness_ms: int = HOUR_MS  # a message older than this behind the newest is counted, not folded
    min_confidence: float = 0.55  # below it, or inside the abstain band, a message gets `low_confidence_weight`
    low_confidence_weight: float = 0.5
    remembered_ids: int = 32  # message ids kept for de-duplication
    use_intensity: bool = False  # scale a message's score by the model's intensity head (0..3), where it has one
    score_roles: frozenset[str] = frozenset({"customer"})
    kept_attributes: tuple[str, ...] = ("queue", "customer_tier", "order_id", "product_id")
    opportunity_score: float = 0.35  # a rolling score at or above it after three messages flags an opportunity


# The head's top: a message this strong counts in full.
FULL_INTENSITY = 3.0

DEFAULT_OPTIONS = StateOptions()
