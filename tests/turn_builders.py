"""Turns and scores for the tests of the pure core, in seconds and plain words."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from stream_sentiment.conversation import ConversationIdentity, ConversationState, Signal, StateOptions, Turn, fold
from stream_sentiment.scoring.calibration import Score

START = 1_700_000_000_000
WHO = ConversationIdentity("acme", "c-1")
EMOTIONS = ("anger", "disappointment", "anxiety", "joy", "surprise", "neutral")


def score(
    value: float, *, emotion: str | None = None, sure: float = 0.9, probability: float = 0.9, uncertain: bool = False
) -> Score:
    label = "negative" if value <= -0.3 else "positive" if value >= 0.3 else "neutral"
    feeling = emotion or {"negative": "anger", "positive": "joy", "neutral": "neutral"}[label]
    rest = (1 - probability) / 5
    emotions = tuple(probability if name == feeling else rest for name in EMOTIONS)
    return Score((0.0, 0.0, 0.0), emotions, value, sure, label, feeling, uncertain)


def customer(message_id: str, at_s: float, value: float | None = 0.0, **more: Any) -> Turn:
    about = {name: more.pop(name) for name in ("emotion", "sure", "probability", "uncertain") if name in more}
    names = more.pop("signals", ())
    signals = tuple(name if isinstance(name, Signal) else Signal(name, rule_id="test") for name in names)
    return Turn(
        more.pop("kind", "created"),
        message_id,
        START + round(at_s * 1000),
        "customer",
        score=None if value is None else score(value, **about),
        signals=signals,
        channel=more.pop("channel", "web_chat"),
        **more,
    )


def agent(message_id: str, at_s: float, role: str = "agent", **more: Any) -> Turn:
    return Turn("created", message_id, START + round(at_s * 1000), role, channel="web_chat", **more)


def event(kind: Any, at_s: float, message_id: str = "", **more: Any) -> Turn:
    return Turn(kind, message_id, START + round(at_s * 1000), more.pop("role", ""), channel="web_chat", **more)


def folded(turns: list[Turn], options: StateOptions | None = None) -> ConversationState:
    state = None
    for turn in turns:
        state = fold(state, turn, WHO, options or StateOptions()).state
    assert state is not None
    return state


SIGNAL_NAMES = ("human_request", "safety_risk", "refund_request", "legal_threat", "thanks")


@st.composite
def any_turn(draw: st.DrawFn) -> Turn:
    """Anything intake lets through: few ids, so that they repeat; times that step back and jump ahead by days."""
    kind = draw(st.sampled_from(["created"] * 6 + ["edited", "deleted", "started", "transferred", "ended"]))
    about_message = kind in ("created", "edited", "deleted")
    message_id = draw(st.sampled_from([f"m{i}" for i in range(40)])) if about_message else ""
    at_s = draw(st.integers(0, 3600) | st.integers(0, 400_000))
    role = draw(st.sampled_from(["customer"] * 4 + ["agent", "bot", "supervisor", "system"])) if about_message else ""
    scored = role == "customer" and kind != "deleted" and draw(st.integers(0, 9)) > 0
    value = draw(st.floats(-1, 1, allow_subnormal=False)) if scored else None
    return Turn(
        kind,
        message_id,
        START + at_s * 1000,
        role,
        score=None
        if value is None
        else score(
            value,
            sure=draw(st.sampled_from([0.4, 0.9])),
            probability=draw(st.sampled_from([0.5, 0.97])),
        ),
        skipped_reason="unsupported_content_type" if role == "customer" and value is None else None,
        signals=tuple(Signal(name) for name in draw(st.lists(st.sampled_from(SIGNAL_NAMES), max_size=1)))
        if role == "customer"
        else (),
        channel="web_chat",
        attributes=draw(st.sampled_from([{}, {"customer_tier": "vip"}, {"queue": "refund", "other": 3}])),
        phase=draw(st.sampled_from([None, "with_bot", "with_agent"])) if kind in ("started", "transferred") else None,
        language=draw(st.sampled_from(["", "zh-CN", "en"])),
    )
