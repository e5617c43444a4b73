"""What is read off a state: level, trend, window mean, slope, volatility, Contact Lens score.

Everything here is computed when somebody asks, from `ConversationState` alone; the fold pays for none of it. Pure; raises nothing.
Scores are in [-1, 1] unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

from stream_sentiment.conversation.fold import BEGIN_MESSAGES
from stream_sentiment.conversation.options import DEFAULT_OPTIONS, StateOptions
from stream_sentiment.conversation.state import ID, LABEL, SCORE, ConversationState

# Seven levels, 1 the most negative, cut where the default rule opens (-0.40, two plain complaints) and turns to error (-0.60, three),
# and mirrored; within 0.15 of zero a conversation counts as neutral: one neutral message's noise.
LEVEL_CUTS = (-0.60, -0.40, -0.15, 0.15, 0.40, 0.60)

# Genesys's trend classes: 20 and 55 of 100.
SLIGHT_SHIFT, CLEAR_SHIFT = 0.20, 0.55

CONTACT_LENS_TURNS = 3


class Point(NamedTuple):
    score: float
    message_id: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that `conversation.state` shows beside the stored fields (domain contract 5.6), unrounded."""

    score: float
    weight: float
    level: int
    window_mean: float
    window_n: int
    last: Point | None
    lowest: Point | None
    highest: Point | None
    begin_score: float
    end_score: float
    shift: float
    trend: str
    slope: float
    volatility: float
    streak_sign: int
    streak_length: int
    progressive_score: float
    emotion_mix: dict[str, float]
    agent_response_gap_s: float
    opportunity: bool


def snapshot(state: ConversationState, options: StateOptions = DEFAULT_OPTIONS) -> Snapshot:
    scores = [entry[SCORE] for entry in state.window]
    begin, end, shift = begin_end_shift(state)
    low, high = extremes(state)
    total = sum(state.emotions.values())
    return Snapshot(
        score=state.score,
        weight=state.weight,
        level=level_of(state.score),
        window_mean=_mean(scores),
        window_n=len(scores),
        last=Point(scores[-1], state.window[-1][ID]) if scores else None,
        lowest=low,
        highest=high,
        begin_score=begin,
        end_score=end,
        shift=shift,
        trend=trend_of(shift),
        slope=slope(scores),
        volatility=volatility(scores),
        streak_sign=(state.run > 0) - (state.run < 0),
        streak_length=abs(state.run),
        progressive_score=progressive_score(state),
        emotion_mix={name: n / total for name, n in sorted(state.emotions.items())},
        agent_response_gap_s=response_gap_ms(state, state.last_event_at_ms) / 1000,
        opportunity=opportunity(state, options),
    )


def level_of(score: float) -> int:
    """1 (most negative) to 7, of a message's score or of the rolling one; a score on a cut belongs to the outer level."""
    low, cut2, cut3, cut5, cut6, high = LEVEL_CUTS
    if score < cut5:
        if score > cut3:
            return 4
        return 1 if score <= low else 2 if score <= cut2 else 3
    return 7 if score >= high else 6 if score >= cut6 else 5


def trend_of(shift: float) -> str:
    """The trend class of a shift; boundaries belong to the class further from no change."""
    if shift >= CLEAR_SHIFT:
        return "improving"
    if shift >= SLIGHT_SHIFT:
        return "slightly_improving"
    if shift > -SLIGHT_SHIFT:
        return "no_change"
    return "slightly_declining" if shift > -CLEAR_SHIFT else "declining"


def begin_end_shift(state: ConversationState) -> tuple[float, float, float]:
    """Mean of the first and of the last k scores and half their difference; k is 3, or half of the messages when fewer than 6."""
    window = state.window
    k = min(BEGIN_MESSAGES, state.scored // 2)
    if k == 0:
        only = window[0][SCORE] if window else 0.0
        return only, only, 0.0
    first = state.base["begin"][:k] if state.base is not None else []
    if len(first) < k:
        first = first + [entry[SCORE] for entry in window[: k - len(first)]]
    begin = _mean(first)
    end = _mean([entry[SCORE] for entry in window[-k:]])
    return begin, end, (end - begin) / 2


def shift_of(state: ConversationState) -> float:
    return begin_end_shift(state)[2]


def extremes(state: ConversationState) -> tuple[Point | None, Point | None]:
    """Lowest and highest sentiment point of the whole conversation, each the first of its equals."""
    base = state.base
    low = high = None
    low_score, high_score = 2.0, -2.0  # outside the scale
    if base is not None:
        low, high = base["lowest"], base["highest"]
        low_score, high_score = low[0], high[0]
    for entry in state.window:
        score = entry[SCORE]
        if score < low_score:
            low_score, low = score, (score, entry[ID])
        if score > high_score:
            high_score, high = score, (score, entry[ID])
    return (None if low is None else Point(*low)), (None if high is None else Point(*high))


def slope(scores: Sequence[float]) -> float:
    """Least-squares slope over the window, score per message; 0 for fewer than two."""
    n = len(scores)
    if n < 2:
        return 0.0
    middle = (n - 1) / 2
    # sum of (i - middle)^2 for i in 0..n-1
    spread = n * (n * n - 1) / 12
    return sum((i - middle) * score for i, score in enumerate(scores)) / spread


def volatility(scores: Sequence[float]) -> float:
    """Population standard deviation of the window."""
    if not scores:
        return 0.0
    mean = _mean(scores)
    return sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))


def response_gap_ms(state: ConversationState, now_ms: int) -> int:
    """How long the customer has waited for an answer at event time `now_ms`."""
    waiting = state.waiting_since_ms
    return 0 if waiting is None else max(0, now_ms - waiting)


def opportunity(state: ConversationState, options: StateOptions = DEFAULT_OPTIONS) -> bool:
    """The customer is happy now and was not happy by chance: a positive turn, and a clearly positive rolling score."""
    return state.run > 0 and state.score >= options.opportunity_score


def contact_lens_progressive(signs: Sequence[int], run: int = 0) -> list[float]:
    """Amazon Connect Contact Lens's progressive score after each turn of one participant, -5 to 5.

    `signs` are -1, 0, 1; `run` is the same-sign run that led into them. A turn weighs its position in the current run of its sign,
    a neutral one 1; the last three turns count, missing ones as neutral: 5 * sum(w * s) / (sum(w) + 3 - n). Recovered from AWS's
    published chat example, all 26 turn values; runs longer than two and windows of mixed sign are extrapolated (docs/state.md).
    """
    weighted: list[tuple[int, int]] = []
    scores = []
    for sign in signs:
        run = run + sign if run * sign > 0 else sign
        weighted.append((abs(run) or 1, sign))
        recent = weighted[-CONTACT_LENS_TURNS:]
        total = sum(w for w, _ in recent) + CONTACT_LENS_TURNS - len(recent)
        scores.append(5 * sum(w * s for w, s in recent) / total)
    return scores


def progressive_score(state: ConversationState) -> float:
    """The Contact Lens score of the newest customer turn, -5 to 5; what `contact_lens_progressive` gives last."""
    run = state.base["run"] if state.base is not None else 0
    # Position in the run and sign of the last three turns; a missing one counts as neutral, and a neutral one weighs 1.
    w1 = w2 = w3 = 1
    s1 = s2 = s3 = 0
    for entry in state.window:
        sign = _SIGN.get(entry[LABEL], 0)
        run = run + sign if run * sign > 0 else sign
        w1, s1, w2, s2, w3, s3 = w2, s2, w3, s3, abs(run) or 1, sign
    return 5 * (w1 * s1 + w2 * s2 + w3 * s3) / (w1 + w2 + w3)


_SIGN = {"negative": -1, "positive": 1}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
