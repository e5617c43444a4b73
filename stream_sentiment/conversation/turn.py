"""What the fold may know of one chat event: who, when, how it was scored; never the text.

Named tuples, because a worker builds one per message: immutable like a frozen dataclass at a third of its price.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from stream_sentiment.scoring.calibration import Score

TurnKind = Literal["created", "edited", "deleted", "started", "transferred", "ended"]
Scalar = str | int | float | bool

NO_ATTRIBUTES: Mapping[str, Scalar] = {}


class ConversationIdentity(NamedTuple):
    """The key of a conversation; ids may hold any character."""

    tenant_id: str
    conversation_id: str


class Signal(NamedTuple):
    """One recognised signal of a message (`human_request`, `safety_risk`, ...) and what found it."""

    name: str
    source: str = "lexicon"  # lexicon or model
    rule_id: str = ""  # the lexicon entry or the model head that fired
    spans: tuple[tuple[int, int], ...] = ()  # character offsets [begin, end) into the masked text
    weight: float = 1.0  # 1 for a lexicon hit, the probability for the model's


class Turn(NamedTuple):
    """One chat event after scoring. Times are event time in milliseconds since the epoch."""

    kind: TurnKind
    message_id: str  # "" for conversation.* events
    at_ms: int
    role: str  # customer, agent, bot, system, supervisor; "" for conversation.*
    offset: int = 0  # of the record in its input partition; provenance only, the fold does not read it
    sequence: int | None = None  # the producer's numbering; provenance only, the fold orders by event time
    score: Score | None = None  # None: not a customer's, or skipped
    skipped_reason: str | None = None
    signals: tuple[Signal, ...] = ()
    channel: str = ""
    attributes: Mapping[str, Scalar] = NO_ATTRIBUTES
    phase: str | None = None  # of started and transferred: with_bot, with_agent
    language: str = ""  # BCP-47; chooses the language of the reason sentence
    topics: tuple[str, ...] = ()  # complaint categories that the message speaks of
