"""The state of one conversation as Redis keeps it: plain values, JSON a person can read, no text.

In: fields set by `fold` and by the escalation machine. Out: `to_json` / `from_json`, which lose nothing
(`from_json(to_json(s)) == s`, floats bit by bit). Never blocks. Raises `StateUnreadable`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from stream_sentiment.conversation.turn import ConversationIdentity, Scalar
from stream_sentiment.errors import StreamSentimentError

SCHEMA = 1

# The layout of one entry of `window`, a list because ten of them are written and parsed with every message.
ID, AT, SCORE, LABEL, EMOTION, WEIGHT, GAIN, KEEP = range(8)
WINDOW_FIELDS = ("message_id", "at_ms", "score", "label", "emotion", "weight", "gain", "keep")
"""gain: effective alpha of the message, alpha * weight. keep: share of the older score that it left, (1 - gain) * 2^(-dt/half_life)."""

WindowEntry = list[Any]


class StateUnreadable(StreamSentimentError):
    """Stored bytes are no conversation state of a schema that this version knows."""


@dataclass(slots=True)
class EscalationState:
    """What the escalation machine remembers; one escalation at most is open."""

    status: str = "none"  # none, pending, open, cooldown
    escalation_id: str | None = None  # of the open one, else of the last one
    rule_id: str | None = None  # the rule that opened it
    message_id: str | None = None  # the message that opened it
    severity: str | None = None  # the highest one reached
    opened_at_ms: int | None = None
    notified_at_ms: int | None = None  # last opened or updated
    notified_count: int = 0
    revision: int = 0
    attached: dict[str, int] = field(
        default_factory=dict
    )  # rule that holds the escalation open -> messages it has been released
    pending: dict[str, int] = field(default_factory=dict)  # rule -> consecutive messages its condition has held
    cooldown_until_ms: int | None = None
    cooldown_severity: str | None = None  # only a higher one opens before the cooldown ends
    opened: list[list[str]] = field(default_factory=list)  # last [message, rule] pairs: the same pair never opens twice
    storm_id: str | None = None  # the storm that holds the escalation back: marked on the topic, not announced


@dataclass(slots=True)
class ConversationState:
    """Rolling emotion of one conversation. `fold` and the machine change it in place; the caller owns it.

    `score` is the EWMA in [-1, 1] after the newest scored message, not decayed since. `base` is the same EWMA just before the
    oldest entry of `window`, so that `score` can be recomputed exactly when a message in the window is edited or deleted.
    """

    tenant_id: str
    conversation_id: str
    channel: str
    started_at_ms: int
    last_event_at_ms: int
    language: str = ""
    status: str = "active"  # active, ended, expired
    ended_at_ms: int | None = None
    phase: str | None = None  # with_bot, with_agent; None until someone but the customer has spoken
    phase_at_ms: int | None = None
    waiting_since_ms: int | None = None  # the oldest customer message nobody has answered
    answered_at_ms: int | None = None
    counts: dict[str, int] = field(default_factory=dict)  # messages seen per role, and skipped, late
    scored: int = 0
    score: float = 0.0
    weight: float = 0.0  # sum of the weights that messages have in `score`; the rest up to 1 is the prior's
    run: int = 0  # same-sign run of customer turns: -3 is three negative ones, 0 a neutral one
    window: list[WindowEntry] = field(default_factory=list)
    base: dict[str, Any] | None = None  # score, weight, at_ms, run, begin, lowest, highest before the window
    emotions: dict[str, int] = field(default_factory=dict)
    signals: dict[str, int] = field(default_factory=dict)  # messages seen with the signal
    topics: dict[str, int] = field(default_factory=dict)  # messages that spoke of the complaint category
    attributes: dict[str, Scalar] = field(default_factory=dict)
    recent_ids: dict[str, None] = field(default_factory=dict)  # an ordered set
    revisions: list[list[Any]] = field(default_factory=list)  # last [message, at_ms, edited|deleted]
    approximate: bool = False
    escalation: EscalationState | None = None
    model_version: str = ""  # written by the caller
    rules_version: str = ""  # written by the caller
    state_version: int = 0

    @property
    def identity(self) -> ConversationIdentity:
        return ConversationIdentity(self.tenant_id, self.conversation_id)

    def to_json(self) -> bytes:
        """UTF-8 JSON, keys in reading order."""
        e = self.escalation
        return orjson.dumps(
            {
                "schema": SCHEMA,
                "tenant_id": self.tenant_id,
                "conversation_id": self.conversation_id,
                "channel": self.channel,
                "language": self.language,
                "status": self.status,
                "phase": self.phase,
                "score": self.score,
                "weight": self.weight,
                "run": self.run,
                "scored": self.scored,
                "counts": self.counts,
                "emotions": self.emotions,
                "signals": self.signals,
                "topics": self.topics,
                "escalation": None if e is None else _escalation_to_dict(e),
                "window": self.window,
                "base": self.base,
                "attributes": self.attributes,
                "started_at_ms": self.started_at_ms,
                "last_event_at_ms": self.last_event_at_ms,
                "ended_at_ms": self.ended_at_ms,
                "phase_at_ms": self.phase_at_ms,
                "waiting_since_ms": self.waiting_since_ms,
                "answered_at_ms": self.answered_at_ms,
                "recent_ids": list(self.recent_ids),
                "revisions": self.revisions,
                "approximate": self.approximate,
                "model_version": self.model_version,
                "rules_version": self.rules_version,
                "state_version": self.state_version,
            }
        )

    @staticmethod
    def from_json(data: bytes) -> ConversationState:
        try:
            d = orjson.loads(data)
            if d["schema"] != SCHEMA:
                raise StateUnreadable(
                    f"conversation state has schema {d['schema']}, this version reads {SCHEMA}: "
                    "finish the upgrade on every worker, or erase the conversation"
                )
            e = d["escalation"]
            return ConversationState(
                d["tenant_id"],
                d["conversation_id"],
                d["channel"],
                d["started_at_ms"],
                d["last_event_at_ms"],
                d["language"],
                d["status"],
                d["ended_at_ms"],
                d["phase"],
                d["phase_at_ms"],
                d["waiting_since_ms"],
                d["answered_at_ms"],
                d["counts"],
                d["scored"],
                d["score"],
                d["weight"],
                d["run"],
                d["window"],
                d["base"],
                d["emotions"],
                d["signals"],
                d["topics"],
                d["attributes"],
                dict.fromkeys(d["recent_ids"]),
                d["revisions"],
                d["approximate"],
                None if e is None else EscalationState(**e),
                d["model_version"],
                d["rules_version"],
                d["state_version"],
            )
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise StateUnreadable(f"stored bytes are no conversation state: {error}") from error


def _escalation_to_dict(e: EscalationState) -> dict[str, Any]:
    return {
        "status": e.status,
        "escalation_id": e.escalation_id,
        "rule_id": e.rule_id,
        "message_id": e.message_id,
        "severity": e.severity,
        "opened_at_ms": e.opened_at_ms,
        "notified_at_ms": e.notified_at_ms,
        "notified_count": e.notified_count,
        "revision": e.revision,
        "attached": e.attached,
        "pending": e.pending,
        "cooldown_until_ms": e.cooldown_until_ms,
        "cooldown_severity": e.cooldown_severity,
        "opened": e.opened,
        # Written only where there is one: a worker of the version before reads the others.
        **({} if e.storm_id is None else {"storm_id": e.storm_id}),
    }
