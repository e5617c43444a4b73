"""One conversation through the worker's own step.

In: a conversation, a score per text, the rules. Out: what was announced, each with the index of the message at which it was. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stream_sentiment.backtest.conversations import Conversation, Message
from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.conversation.turn import ConversationIdentity, Signal, Turn
from stream_sentiment.escalation.advance import advance
from stream_sentiment.escalation.machine import tick
from stream_sentiment.escalation.rules import RuleSet
from stream_sentiment.escalation.transition import Transition
from stream_sentiment.scoring.calibration import Score

# What the model and the lexicon say about a message; (None, ()) for one that is not scored.
Judge = Callable[[Message], tuple[Score | None, tuple[Signal, ...]]]


@dataclass(frozen=True, slots=True)
class Decision:
    """A transition and the newest message that had been written when it was announced."""

    transition: Transition
    message_index: int


@dataclass(frozen=True, slots=True)
class Outcome:
    decisions: list[Decision]
    state: ConversationState | None


def decide(conversation: Conversation, rules: RuleSet, judge: Judge) -> Outcome:
    """Fold the conversation; what timers do between its messages is told at the message before them."""
    identity = ConversationIdentity(conversation.tenant_id, conversation.id)
    state: ConversationState | None = None
    decisions: list[Decision] = []
    for index, message in enumerate(conversation.messages):
        score, signals = judge(message) if message.role == "customer" else (None, ())
        turn = Turn(
            message.kind,
            message.message_id,
            message.at_ms,
            message.role,
            index,
            None,
            score,
            None,
            signals,
            conversation.channel,
            message.attributes,
            message.phase,
            conversation.language,
        )
        before = None if state is None else state.last_event_at_ms
        result = advance(state, turn, identity, rules)
        state = result.state
        for transition in result.transitions:
            by_timer = before is not None and transition.message_id != turn.message_id and transition.at_ms < turn.at_ms
            decisions.append(Decision(transition, index - 1 if by_timer else index))
    return Outcome(decisions, state)


def let_time_pass(outcome: Outcome, rules: RuleSet, until_ms: int, last_index: int) -> None:
    """Timers that fall due after the last message, up to a moment."""
    if outcome.state is not None:
        outcome.decisions.extend(Decision(t, last_index) for t in tick(outcome.state, until_ms, rules))
