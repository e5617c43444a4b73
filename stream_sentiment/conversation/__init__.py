"""The pure fold: scored chat turns in event time in, the rolling state of one conversation out."""

from stream_sentiment.conversation.fold import FoldResult, Outcome, fold
from stream_sentiment.conversation.options import StateOptions
from stream_sentiment.conversation.rolling import Snapshot, level_of, snapshot, trend_of
from stream_sentiment.conversation.state import ConversationState, EscalationState
from stream_sentiment.conversation.turn import ConversationIdentity, Signal, Turn

__all__ = [
    "ConversationIdentity",
    "ConversationState",
    "EscalationState",
    "FoldResult",
    "Outcome",
    "Signal",
    "Snapshot",
    "StateOptions",
    "Turn",
    "fold",
    "level_of",
    "snapshot",
    "trend_of",
]
