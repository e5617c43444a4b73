"""A `when` of the rule file compiled into plain functions, so that a message that concerns no rule costs almost nothing.

In: a `Condition` of the file. Out: `Compiled`: does it hold, is it released, what was measured. Pure; raises nothing at run time.
A new kind of condition is one more function here and one more field in `ruleformat.Condition`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

from stream_sentiment.conversation.rolling import shift_of
from stream_sentiment.conversation.state import SCORE, ConversationState
from stream_sentiment.conversation.turn import Turn
from stream_sentiment.escalation.ruleformat import Condition, Message, SignalsSeen, Streak, Threshold

# Holds: the state after the turn, the turn (None for a timer), event time now.
Holds = Callable[[ConversationState, Turn | None, int], bool]
# Released: the state, event time now. None where a condition is an event that cannot be taken back (a signal, one message).
Released = Callable[[ConversationState, int], bool] | None
Measure = Callable[[ConversationState, Turn | None, int], float]

# Hysteresis of a threshold whose `close` is not written.
DEFAULT_GAP = 0.25


@dataclass(frozen=True, slots=True)
class Compiled:
    holds: Holds
    released: Released
    kind: str
    measure: Measure
    open_threshold: float | None
    close_threshold: float | None
    gaps_ms: tuple[int, ...] = ()  # every agent_response_gap inside: the rule needs timers
    sign: int = 0  # of the scores it rests on; 0: on none, or it asks itself whether the model was sure
    by_model: bool = False  # rests on the model's scores alone, not on signals
    discrete: bool = False  # another person's turn can release it (phase, gap)
    signals: frozenset[str] = frozenset()  # that it asks for, anywhere inside
    ceiling: float = inf  # cannot hold while the rolling score is above it
    needs_signal: bool = False  # cannot hold for a message without signals


def compile_condition(condition: Condition, min_confidence: float) -> Compiled:
    parts = [_compile_part(name, value, min_confidence) for name, value in condition.parts()]
    return _all_of(parts)


def _compile_part(name: str, value: Any, min_confidence: float) -> Compiled:
    match name:
        case "rolling_score":
            return _rolling_score(value)
        case "shift":
            return _shift(value)
        case "streak":
            return _streak(value)
        case "message":
            return _message(value, min_confidence)
        case "signal":
            return _signal(frozenset({value}))
        case "signal_any":
            return _signal(frozenset(value))
        case "signals_seen":
            return _signals_seen(value)
        case "agent_response_gap":
            return _agent_response_gap(value)
        case "phase":
            return _phase(value)
        case "all":
            return _all_of([compile_condition(part, min_confidence) for part in value])
        case "any":
            return _any_of([compile_condition(part, min_confidence) for part in value])
        case _:
            return _not(compile_condition(value, min_confidence))


def _rolling_score(threshold: Threshold) -> Compiled:
    opens = threshold.open
    closes = _close_of(threshold)
    return Compiled(
        holds=lambda state, turn, now: state.score <= opens,
        released=lambda state, now: state.score >= closes,
        kind="sustained_negative",
        measure=lambda state, turn, now: state.score,
        open_threshold=opens,
        close_threshold=closes,
        ceiling=opens,
        sign=-1,
        by_model=True,
    )


def _shift(threshold: Threshold) -> Compiled:
    opens = threshold.open
    closes = _close_of(threshold)
    return Compiled(
        holds=lambda state, turn, now: shift_of(state) <= opens,
        released=lambda state, now: shift_of(state) >= closes,
        kind="deterioration",
        measure=lambda state, turn, now: shift_of(state),
        open_threshold=opens,
        close_threshold=closes,
        sign=-1,
        by_model=True,
    )


def _close_of(threshold: Threshold) -> float:
    return min(1.0, threshold.open + DEFAULT_GAP) if threshold.close is None else threshold.close


def _streak(streak: Streak) -> Compiled:
    length = streak.length
    weakest = streak.min_score
    sign = -1 if streak.sign == "negative" else 1

    def holds(state: ConversationState, turn: Turn | None, now: int) -> bool:
        if state.run * sign < length:
            return False
        return weakest is None or all(entry[SCORE] * sign >= weakest * sign for entry in state.window[-length:])

    return Compiled(
        holds=holds,
        released=None,
        kind="streak",
        measure=lambda state, turn, now: abs(state.run),
        open_threshold=length,
        close_threshold=None,
        sign=sign,
        by_model=True,
    )


def _message(message: Message, min_confidence: float) -> Compiled:
    emotion, label, highest, strongest = message.emotion, message.label, message.max_score, message.min_intensity
    least = 0.5 if message.min_probability is None else message.min_probability

    def holds(state: ConversationState, turn: Turn | None, now: int) -> bool:
        score = None if turn is None else turn.score
        if score is None or score.confidence < min_confidence or score.uncertain:
            return False
        if highest is not None and score.score > highest:
            return False
        if label is not None and score.label != label:
            return False
        if strongest is not None and score.intensity is not None and score.intensity < strongest:
            return False
        return emotion is None or (score.emotion_label == emotion and max(score.emotion) >= least)

    def measure(state: ConversationState, turn: Turn | None, now: int) -> float:
        if turn is None or turn.score is None:
            return 0.0
        return max(turn.score.emotion) if emotion is not None else turn.score.score

    return Compiled(
        holds=holds,
        released=None,
        kind="single_extreme",
        measure=measure,
        open_threshold=least if emotion is not None else highest,
        close_threshold=None,
        by_model=True,
    )


def _signal(names: frozenset[str]) -> Compiled:
    def holds(state: ConversationState, turn: Turn | None, now: int) -> bool:
        if turn is None or not turn.signals:
            return False
        return any(signal.name in names for signal in turn.signals)

    return Compiled(
        holds=holds,
        released=None,
        kind="signal",
        measure=lambda state, turn, now: 1.0 if holds(state, turn, now) else 0.0,
        open_threshold=1.0,
        close_threshold=None,
        signals=names,
        needs_signal=True,
    )


def _signals_seen(seen: SignalsSeen) -> Compiled:
    name, least = seen.signal, seen.at_least

    def holds(state: ConversationState, turn: Turn | None, now: int) -> bool:
        # On the message that carries the signal, not on every one after it.
        if turn is None or not turn.signals or state.signals.get(name, 0) < least:
            return False
        return any(signal.name == name for signal in turn.signals)

    return Compiled(
        holds=holds,
        released=None,
        kind="signal",
        measure=lambda state, turn, now: state.signals.get(name, 0),
        open_threshold=least,
        close_threshold=None,
        signals=frozenset({name}),
        needs_signal=True,
    )


def _agent_response_gap(gap_ms: int) -> Compiled:
    def holds(state: ConversationState, turn: Turn | None, now: int) -> bool:
        waiting = state.waiting_since_ms
        return waiting is not None and now - waiting >= gap_ms

    def measure(state: ConversationState, turn: Turn | None, now: int) -> float:
        waiting = state.waiting_since_ms
        return 0.0 if waiting is None else (now - waiting) / 1000

    return Compiled(
        holds=holds,
        released=lambda state, now: not holds(state, None, now),
        kind="unanswered",
        measure=measure,
        open_threshold=gap_ms / 1000,
        close_threshold=None,
        gaps_ms=(gap_ms,),
        discrete=True,
    )


def _phase(phase: str) -> Compiled:
    return Compiled(
        holds=lambda state, turn, now: state.phase == phase,
        released=lambda state, now: state.phase != phase,
        kind="phase",
        measure=lambda state, turn, now: 1.0 if state.phase == phase else 0.0,
        open_threshold=None,
        close_threshold=None,
        discrete=True,
    )


# Which part of a conjunction names its kind and is measured, most telling first.
_KINDS = ("signal", "unanswered", "deterioration", "streak", "single_extreme", "sustained_negative", "phase")


def _most_telling(parts: list[Compiled]) -> Compiled:
    return min(parts, key=lambda part: _KINDS.index(part.kind))


def _all_of(parts: list[Compiled]) -> Compiled:
    """Holds when every part does; is released when one part is that can be."""
    if len(parts) == 1:
        return parts[0]
    tests = tuple(part.holds for part in parts)
    releases = tuple(part.released for part in parts if part.released is not None)

    def holds(state: ConversationState, turn: Turn | None, now: int) -> bool:
        for test in tests:  # noqa: SIM110 - a generator costs more than all the tests
            if not test(state, turn, now):
                return False
        return True

    def released(state: ConversationState, now: int) -> bool:
        return any(release(state, now) for release in releases)

    needs_signal = any(part.needs_signal for part in parts)
    ceiling = min(part.ceiling for part in parts)
    return _combine(parts, holds, released if releases else None, needs_signal, ceiling)


def _any_of(parts: list[Compiled]) -> Compiled:
    """Holds when one part does; is released when every part is that can be."""
    if len(parts) == 1:
        return parts[0]
    tests = tuple(part.holds for part in parts)
    releases = tuple(part.released for part in parts if part.released is not None)

    def holds(state: ConversationState, turn: Turn | None, now: int) -> bool:
        for test in tests:  # noqa: SIM110 - a generator costs more than all the tests
            if test(state, turn, now):
                return True
        return False

    def released(state: ConversationState, now: int) -> bool:
        return all(release(state, now) for release in releases)

    needs_signal = all(part.needs_signal for part in parts)
    ceiling = max(part.ceiling for part in parts)
    return _combine(parts, holds, released if releases else None, needs_signal, ceiling)


def _combine(parts: list[Compiled], holds: Holds, released: Released, needs_signal: bool, ceiling: float) -> Compiled:
    telling = _most_telling(parts)
    evidence = [part for part in parts if part.kind not in ("phase", "unanswered")]
    by_model = bool(evidence) and all(part.by_model for part in evidence)
    return Compiled(
        holds=holds,
        released=released,
        kind=telling.kind,
        measure=telling.measure,
        open_threshold=telling.open_threshold,
        close_threshold=telling.close_threshold,
        gaps_ms=tuple(sorted({gap for part in parts for gap in part.gaps_ms})),
        sign=next((part.sign for part in evidence if part.sign), 0) if by_model else 0,
        by_model=by_model,
        discrete=any(part.discrete for part in parts),
        signals=frozenset(name for part in parts for name in part.signals),
        ceiling=ceiling,
        needs_signal=needs_signal,
    )


def _not(part: Compiled) -> Compiled:
    """Holds when the part does not. It has no release of its own: what must be absent does not keep an alert open or close it."""
    holds = part.holds
    return Compiled(
        holds=lambda state, turn, now: not holds(state, turn, now),
        released=None,
        kind="phase",
        measure=lambda state, turn, now: 0.0,
        open_threshold=None,
        close_threshold=None,
    )
