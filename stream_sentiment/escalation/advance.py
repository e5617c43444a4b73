"""One turn through timers, fold and machine: the step that the worker, `backtest` and `replay` share.

In: the state or None, a turn, the conversation's identity, the rules. Out: `Advance`. Pure; the state is changed in place.
"""

from __future__ import annotations

from typing import NamedTuple

from stream_sentiment.conversation.fold import Outcome, fold
from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.conversation.turn import ConversationIdentity, Turn
from stream_sentiment.escalation.machine import step, tick
from stream_sentiment.escalation.rules import RuleSet
from stream_sentiment.escalation.transition import Transition


class Advance(NamedTuple):
    state: ConversationState
    outcome: Outcome
    transitions: list[Transition]
    expired: ConversationState | None


def advance(state: ConversationState | None, turn: Turn, identity: ConversationIdentity, rules: RuleSet) -> Advance:
    """First what fell due before the turn, at its own time; then the turn. A timer that ran on time has done the same already."""
    due: list[Transition] | None = None
    if state is not None:
        at, waiting = turn.at_ms, state.waiting_since_ms
        if (waiting is not None and at - waiting >= rules.shortest_gap_ms) or (
            state.escalation is not None and at - state.last_event_at_ms >= rules.shortest_ttl_ms
        ):
            due = tick(state, at, rules)
    result = fold(state, turn, identity, rules.options_for(state, turn, identity))
    transitions = step(result.state, turn, result.outcome, rules, result.expired)
    return Advance(result.state, result.outcome, due + transitions if due else transitions, result.expired)
