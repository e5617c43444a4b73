"""What the machine says: one change of one escalation, with everything the outgoing event needs from the pure side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import UUID, uuid5

import orjson

from stream_sentiment.conversation.turn import ConversationIdentity, Scalar
from stream_sentiment.escalation.severity import PRIORITY, Severity

Action = Literal["opened", "updated", "resolved"]
Resolution = Literal["recovered", "conversation_ended", "expired", "acknowledged_by_service", "superseded", "erased"]

# Any fixed UUID keeps our ids apart from other people's version-5 ids; this one was drawn once.
ESCALATION_NAMESPACE = UUID("6f1b0c1e-6f0e-4f64-9d8a-3f5d2b7c9a41")


def escalation_id(identity: ConversationIdentity, started_at_ms: int, message_id: str, rule_id: str) -> str:
    """UUIDv5 over (tenant, conversation, its start, opening message, rule): replay and redelivery give the same id.

    The start tells a conversation from the one of the same name that expired before it: an edit of an old message may open an
    alert in the new one, and a consumer that drops known ids must not take it for a copy of the old alert. The five are joined as a
    JSON array, so that no separator inside an id can make two of them collide.
    """
    name = orjson.dumps([identity.tenant_id, identity.conversation_id, started_at_ms, message_id, rule_id]).decode()
    return str(uuid5(ESCALATION_NAMESPACE, name))


@dataclass(frozen=True, slots=True)
class Evidence:
    """One message behind the alert. `contribution` is its exact share of the rolling score: with `Transition.remainder`, the
    contributions of all evidence sum to `Transition.score`."""

    message_id: str
    at_ms: int
    score: float | None  # None: the message had a signal and no score
    label: str | None
    emotion: str | None
    weight: float
    contribution: float
    spans: tuple[tuple[int, int], ...] = ()  # of the signals in the message that caused the transition


@dataclass(frozen=True, slots=True)
class Trigger:
    """The rule at the moment it spoke. `observed` and the thresholds are in the unit of `kind`: rolling score or shift in [-1, 1],
    turns of a streak, probability, seconds without an answer, 1 for a signal."""

    rule_id: str
    rule_version: str
    kind: str  # sustained_negative, streak, single_extreme, signal, deterioration, unanswered, ...
    observed: float
    open_threshold: float | None
    close_threshold: float | None
    min_messages: int


@dataclass(frozen=True, slots=True)
class Transition:
    """One opened, updated or resolved. Times are event time in milliseconds."""

    action: Action
    escalation_id: str
    revision: int
    severity: Severity
    rule_id: str  # the rule that opened the escalation
    attached: tuple[str, ...]  # every rule that holds it open, after the transition
    trigger: Trigger
    reason: str  # one sentence in `language`
    language: str  # zh or en
    at_ms: int
    opened_at_ms: int
    message_id: str  # the message that caused the transition; of a timer, the one that waits; "" when there is none
    message_at_ms: int
    score: float
    level: int
    trend: str
    emotion: str | None
    evidence: tuple[Evidence, ...]
    remainder: float  # what older messages, weaker ones and the prior contribute to the score
    resolution: Resolution | None
    signals: tuple[str, ...]  # names in the message that caused the transition
    notified_count: int
    channel: str
    phase: str | None
    attributes: Mapping[str, Scalar]
    category: str | None = None
    suggested_queue: str | None = None
    suggested_action: str | None = None
    exempt: bool = False  # a rule with bypass_cooldown takes part: the storm guard lets it through
    storm_id: str | None = None  # the storm that holds this escalation back; None: it is announced

    @property
    def priority(self) -> str:
        return PRIORITY[self.severity]
