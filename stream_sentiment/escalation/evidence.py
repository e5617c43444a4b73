"""Which messages made the rolling score what it is, to the last bit of arithmetic.

The score is linear in the scores of the messages: message i contributes gain_i * s_i * product of keep_j over all later j. What the
window no longer holds, and the prior, is the remainder. Called only when a transition is emitted. Pure; raises nothing.
"""

from __future__ import annotations

from stream_sentiment.conversation.state import AT, EMOTION, GAIN, ID, KEEP, LABEL, SCORE, WEIGHT, ConversationState
from stream_sentiment.conversation.turn import Turn
from stream_sentiment.escalation.transition import Evidence

MAX_EVIDENCE = 5


def contributions(state: ConversationState) -> list[float]:
    """One number per entry of the window, oldest first."""
    shares: list[float] = []
    kept = 1.0
    for entry in reversed(state.window):
        shares.append(kept * entry[GAIN] * entry[SCORE])
        kept *= entry[KEEP]
    shares.reverse()
    return shares


def evidence_of(state: ConversationState, turn: Turn | None) -> tuple[tuple[Evidence, ...], float]:
    """At most five messages in order of time, and the remainder: the turn's own message, then those that pulled the score down most."""
    shares = contributions(state)
    current = "" if turn is None else turn.message_id
    ranked = sorted(
        (place for place, share in enumerate(shares) if share < 0 or state.window[place][ID] == current),
        key=lambda place: (state.window[place][ID] != current, shares[place], place),
    )
    chosen = sorted(ranked[:MAX_EVIDENCE])
    spans = () if turn is None else tuple(span for signal in turn.signals for span in signal.spans)
    found = [
        Evidence(
            message_id=entry[ID],
            at_ms=entry[AT],
            score=entry[SCORE],
            label=entry[LABEL],
            emotion=entry[EMOTION],
            weight=entry[WEIGHT],
            contribution=shares[place],
            spans=spans if entry[ID] == current else (),
        )
        for place, entry in ((place, state.window[place]) for place in chosen)
    ]
    if turn is not None and turn.signals and all(item.message_id != current for item in found):
        found = [*found[-(MAX_EVIDENCE - 1) :], _unscored(turn, spans)]
    remainder = state.score - sum(item.contribution for item in found)
    return tuple(found), remainder


def _unscored(turn: Turn, spans: tuple[tuple[int, int], ...]) -> Evidence:
    """A message that spoke by a signal only: late, or never scored."""
    score = turn.score
    return Evidence(
        message_id=turn.message_id,
        at_ms=turn.at_ms,
        score=None if score is None else score.score,
        label=None if score is None else score.label,
        emotion=None if score is None else score.emotion_label,
        weight=0.0,
        contribution=0.0,
        spans=spans,
    )
