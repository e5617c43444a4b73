"""One scored chat event folded into the state of its conversation.

In: the state (or None), one `Turn`, the conversation's identity, the options. Out: `FoldResult` with the same state object, changed in
place: the caller owns it and keeps no second reference. Never blocks, reads no clock, raises nothing on any turn that intake accepts.

The rolling score is an exponentially weighted mean over the customer's scored messages (docs/state.md has the derivation):

    s_i    = p(positive) - p(negative), times intensity / 3 where options and model have it
    gain_i = alpha * weight_i                       weight_i is 1, or low_confidence_weight for an unsure message
    keep_i = (1 - gain_i) * 2^(-(t_i - t_{i-1}) / half_life)
    S_i    = keep_i * S_{i-1} + gain_i * s_i + (1 - keep_i - gain_i) * prior
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from stream_sentiment.conversation.options import DEFAULT_OPTIONS, FULL_INTENSITY, StateOptions
from stream_sentiment.conversation.state import (
    AT,
    EMOTION,
    GAIN,
    ID,
    KEEP,
    LABEL,
    SCORE,
    WEIGHT,
    ConversationState,
    WindowEntry,
)
from stream_sentiment.conversation.turn import ConversationIdentity, Turn

if TYPE_CHECKING:
    from stream_sentiment.scoring.calibration import Score

# Scores at the start of a conversation that `shift` compares with the end; Genesys needs six phrases, three for either end.
BEGIN_MESSAGES = 3

# Edits and deletions remembered so that a repeated one is recognised; people rarely revise more than the last few messages.
REMEMBERED_REVISIONS = 8


class Outcome(StrEnum):
    """What the fold did with the turn."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # seen before: nothing changed, not even state_version
    LATE = "late"  # older than max_lateness behind the newest event: counted, not folded
    UNKNOWN_MESSAGE = (
        "unknown_message"  # edits or deletes a message that nobody remembers; the state is marked approximate
    )
    APPROXIMATE = (
        "approximate"  # edits or deletes a message that has left the window: score kept, state marked approximate
    )
    EXPIRED_THEN_APPLIED = "expired_then_applied"  # the gap reached the ttl: a new state was started


APPLIED, DUPLICATE, LATE = Outcome.APPLIED, Outcome.DUPLICATE, Outcome.LATE
UNKNOWN_MESSAGE, APPROXIMATE, EXPIRED_THEN_APPLIED = (
    Outcome.UNKNOWN_MESSAGE,
    Outcome.APPROXIMATE,
    Outcome.EXPIRED_THEN_APPLIED,
)


class FoldResult(NamedTuple):
    state: ConversationState
    outcome: Outcome
    expired: ConversationState | None = None  # the state that ended because the gap reached the ttl


def fold(
    state: ConversationState | None,
    turn: Turn,
    identity: ConversationIdentity,
    options: StateOptions = DEFAULT_OPTIONS,
) -> FoldResult:
    """Apply one turn. Turns arrive in partition order; event time may step back (docs/state.md, "Order and time")."""
    kind = turn.kind
    expired = None
    if state is None:
        state = _new(identity, turn, options)
    elif turn.at_ms - state.last_event_at_ms >= options.ttl_ms and kind in _STARTS_ANEW:
        expired = state
        state = _new(identity, turn, options)
        state.state_version = expired.state_version
        state.model_version = expired.model_version
        state.rules_version = expired.rules_version
    outcome = _created(state, turn, options) if kind == "created" else _OTHER_KINDS[kind](state, turn, options)
    if outcome is not DUPLICATE:
        state.state_version += 1
    if expired is not None:
        return FoldResult(state, EXPIRED_THEN_APPLIED, expired)
    return FoldResult(state, outcome)


def _new(identity: ConversationIdentity, turn: Turn, options: StateOptions) -> ConversationState:
    return ConversationState(
        identity.tenant_id,
        identity.conversation_id,
        turn.channel,
        turn.at_ms,
        turn.at_ms,
        score=options.prior,
        counts={"customer": 0, "agent": 0, "bot": 0, "system": 0, "supervisor": 0, "skipped": 0, "late": 0},
    )


def _created(state: ConversationState, turn: Turn, options: StateOptions) -> Outcome:
    ids = state.recent_ids
    if turn.message_id in ids:
        return DUPLICATE
    ids[turn.message_id] = None
    if len(ids) > options.remembered_ids:
        del ids[next(iter(ids))]
    role, at, last = turn.role, turn.at_ms, state.last_event_at_ms
    counts = state.counts
    counts[role] += 1
    if turn.skipped_reason is not None:
        counts["skipped"] += 1
    if at >= last:
        state.last_event_at_ms = at
    elif last - at > options.max_lateness_ms:
        counts["late"] += 1
        return LATE
    if role == "customer":
        if state.waiting_since_ms is None and (state.answered_at_ms is None or at > state.answered_at_ms):
            state.waiting_since_ms = at
        if state.ended_at_ms is not None and at > state.ended_at_ms:
            state.status = "active"
            state.ended_at_ms = None
        if turn.language:
            state.language = turn.language
        if turn.attributes:
            _keep_attributes(state, turn, options)
    else:
        _someone_else_spoke(state, role, at)
    if turn.score is not None and role in options.score_roles:
        _add_score(state, turn.message_id, at, turn.score, options)
    if turn.signals:
        _count_signals(state, turn)
    if turn.topics:
        for topic in turn.topics:
            state.topics[topic] = state.topics.get(topic, 0) + 1
    return APPLIED


def _remember(state: ConversationState, message_id: str, options: StateOptions) -> None:
    ids = state.recent_ids
    ids[message_id] = None
    if len(ids) > options.remembered_ids:
        del ids[next(iter(ids))]


def _keep_attributes(state: ConversationState, turn: Turn, options: StateOptions) -> None:
    given = turn.attributes
    for name in options.kept_attributes:
        if name in given:
            state.attributes[name] = given[name]


def _count_signals(state: ConversationState, turn: Turn) -> None:
    seen = state.signals
    for name in sorted({signal.name for signal in turn.signals}):
        seen[name] = seen.get(name, 0) + 1


def _someone_else_spoke(state: ConversationState, role: str, at: int) -> None:
    """An agent's words answer the customer and show that an agent is there; a bot's answer only while the bot is in charge."""
    if role == "bot":
        if state.phase is None:
            state.phase, state.phase_at_ms = "with_bot", at
        if state.phase != "with_bot":
            return
    elif role in ("agent", "supervisor"):
        if state.phase != "with_agent" and (state.phase_at_ms is None or at >= state.phase_at_ms):
            state.phase, state.phase_at_ms = "with_agent", at
    else:
        return
    if state.answered_at_ms is None or at > state.answered_at_ms:
        state.answered_at_ms = at
    if state.waiting_since_ms is not None and state.waiting_since_ms <= at:
        state.waiting_since_ms = None
        if at < state.last_event_at_ms:
            # An answer that arrives out of order leaves those waiting who wrote after it.
            state.waiting_since_ms = next((entry[AT] for entry in state.window if entry[AT] > at), None)


def _add_score(state: ConversationState, message_id: str, at: int, score: Score, options: StateOptions) -> None:
    window = state.window
    label = score.label
    emotion = score.emotion_label
    # `_weight`, inlined: this function runs for every message.
    weight = (
        1.0 if score.confidence >= options.min_confidence and not score.uncertain else options.low_confidence_weight
    )
    gain = options.alpha * weight
    keep = 1.0 - gain
    value = score.score
    if options.use_intensity and score.intensity is not None:
        value = _scaled(value, score.intensity)
    emotions = state.emotions
    emotions[emotion] = emotions.get(emotion, 0) + 1
    state.scored += 1
    base = state.base
    elapsed = at - window[-1][AT] if window else at - base["at_ms"] if base is not None else 0
    if elapsed < 0:
        _insert(state, [message_id, at, value, label, emotion, weight, gain, keep], options)
        return
    if elapsed and options.half_life_ms is not None:
        keep *= 2.0 ** (-elapsed / options.half_life_ms)
    state.score = keep * state.score + gain * value + (1.0 - keep - gain) * options.prior
    state.weight = keep * state.weight + gain
    run = state.run
    if label == "negative":
        state.run = run - 1 if run < 0 else -1
    elif label == "positive":
        state.run = run + 1 if run > 0 else 1
    else:
        state.run = 0
    window.append([message_id, at, value, label, emotion, weight, gain, keep])
    if len(window) > options.window:
        _evict(state, options)


def _scaled(value: float, intensity: float) -> float:
    """Mild unhappiness and rage have the same p(negative); how strong the message is tells them apart."""
    return value * min(1.0, max(0.0, intensity) / FULL_INTENSITY)


def _value(score: Score, options: StateOptions) -> float:
    if options.use_intensity and score.intensity is not None:
        return _scaled(score.score, score.intensity)
    return score.score


def _weight(score: Score, options: StateOptions) -> float:
    return 1.0 if score.confidence >= options.min_confidence and not score.uncertain else options.low_confidence_weight


def _insert(state: ConversationState, entry: WindowEntry, options: StateOptions) -> None:
    """Put a message that arrived out of order where its event time says, behind those of the same time."""
    window = state.window
    base = state.base
    if base is not None and entry[AT] < base["at_ms"]:
        state.approximate = True  # its place is before the window; the oldest place there is stands in for it
        entry[AT] = base["at_ms"]
    place = len(window)
    while place and window[place - 1][AT] > entry[AT]:
        place -= 1
    window.insert(place, entry)
    _recompute(state, options)
    if len(window) > options.window:
        _evict(state, options)


def _evict(state: ConversationState, options: StateOptions) -> None:
    """Move the oldest entries out of the window into the base that the window stands on."""
    window = state.window
    while len(window) > options.window:
        message_id, at, value, label, _, _, gain, keep = window.pop(0)
        base = state.base
        if base is None:
            point = [value, message_id]
            base = state.base = {
                "score": options.prior,
                "weight": 0.0,
                "at_ms": at,
                "run": 0,
                "begin": [],
                "lowest": point,
                "highest": point,
            }
        elif value < base["lowest"][0]:
            base["lowest"] = [value, message_id]
        elif value > base["highest"][0]:
            base["highest"] = [value, message_id]
        base["score"] = keep * base["score"] + gain * value + (1.0 - keep - gain) * options.prior
        base["weight"] = keep * base["weight"] + gain
        base["at_ms"] = at
        base["run"] = _next_run(base["run"], label)
        if len(base["begin"]) < BEGIN_MESSAGES:
            base["begin"].append(value)


def _next_run(run: int, label: str) -> int:
    if label == "negative":
        return run - 1 if run < 0 else -1
    if label == "positive":
        return run + 1 if run > 0 else 1
    return 0


def _recompute(state: ConversationState, options: StateOptions) -> None:
    """Fold the window again, from its base, after an insertion, an edit or a deletion. Bit for bit what arrival in order gives."""
    base = state.base
    if base is None:
        score, weight, run, before = options.prior, 0.0, 0, None
    else:
        score, weight, run, before = base["score"], base["weight"], base["run"], base["at_ms"]
    for entry in state.window:
        gain = entry[GAIN]
        keep = 1.0 - gain
        elapsed = 0 if before is None else entry[AT] - before
        if elapsed and options.half_life_ms is not None:
            keep *= 2.0 ** (-elapsed / options.half_life_ms)
        entry[KEEP] = keep
        score = keep * score + gain * entry[SCORE] + (1.0 - keep - gain) * options.prior
        weight = keep * weight + gain
        run = _next_run(run, entry[LABEL])
        before = entry[AT]
    state.score, state.weight, state.run = score, weight, run


def _edited(state: ConversationState, turn: Turn, options: StateOptions) -> Outcome:
    if _superseded(state, turn):
        return DUPLICATE
    entry = next((e for e in state.window if e[ID] == turn.message_id), None)
    if _revised_already(state, turn) and (
        entry is None or turn.score is None or _says_the_same(entry, turn.score, options)
    ):
        return DUPLICATE
    if entry is None and turn.message_id not in state.recent_ids:
        if _may_be_forgotten(state, options):
            _note_revision(state, turn)
            state.approximate = True
            return UNKNOWN_MESSAGE
        outcome = _created(state, turn, options)  # the edit overtook the message, or the stream began after it
        _note_revision(state, turn)
        return outcome
    _note_revision(state, turn)
    if turn.signals:
        _count_signals(state, turn)
    if turn.role not in options.score_roles:
        return APPLIED
    if entry is not None:
        if turn.score is None:
            _remove(state, entry, options)
        else:
            _replace(state, entry, turn.score, options)
        return APPLIED
    if turn.score is None:
        return APPLIED  # unscored before and after
    if state.base is not None:
        state.approximate = True  # it has left the window, or never had a score: nobody can tell any more
        return APPROXIMATE
    _add_score(state, turn.message_id, turn.at_ms, turn.score, options)  # it takes the time of the edit
    return APPLIED


def _deleted(state: ConversationState, turn: Turn, options: StateOptions) -> Outcome:
    if _superseded(state, turn):
        return DUPLICATE
    known = turn.message_id in state.recent_ids
    entry = next((e for e in state.window if e[ID] == turn.message_id), None)
    _note_revision(state, turn)
    if entry is not None:
        _remove(state, entry, options)
        return APPLIED
    if not known:
        if _may_be_forgotten(state, options):
            state.approximate = True
        # Remembered, so that the message itself is ignored should it arrive after its deletion.
        _remember(state, turn.message_id, options)
        return UNKNOWN_MESSAGE
    if state.base is not None and (turn.role == "" or turn.role in options.score_roles):
        state.approximate = True  # a deletion need not say whose message it was
        return APPROXIMATE
    return APPLIED


def _replace(state: ConversationState, entry: WindowEntry, score: Score, options: StateOptions) -> None:
    """The edited message keeps its place in time."""
    _uncount_emotion(state, entry)
    state.emotions[score.emotion_label] = state.emotions.get(score.emotion_label, 0) + 1
    weight = _weight(score, options)
    entry[SCORE:KEEP] = _value(score, options), score.label, score.emotion_label, weight, options.alpha * weight
    _recompute(state, options)


def _remove(state: ConversationState, entry: WindowEntry, options: StateOptions) -> None:
    state.window.remove(entry)
    state.scored -= 1
    _uncount_emotion(state, entry)
    _recompute(state, options)


def _uncount_emotion(state: ConversationState, entry: WindowEntry) -> None:
    left = state.emotions[entry[EMOTION]] - 1
    if left:
        state.emotions[entry[EMOTION]] = left
    else:
        del state.emotions[entry[EMOTION]]


def _says_the_same(entry: WindowEntry, score: Score, options: StateOptions) -> bool:
    return entry[SCORE:WEIGHT] == [_value(score, options), score.label, score.emotion_label]


def _may_be_forgotten(state: ConversationState, options: StateOptions) -> bool:
    return len(state.recent_ids) >= options.remembered_ids


def _superseded(state: ConversationState, turn: Turn) -> bool:
    """A later edit of the message has been applied, or it is deleted, which is final."""
    return any(r[0] == turn.message_id and (r[1] > turn.at_ms or r[2] == "deleted") for r in state.revisions)


def _revised_already(state: ConversationState, turn: Turn) -> bool:
    return [turn.message_id, turn.at_ms, turn.kind] in state.revisions


def _note_revision(state: ConversationState, turn: Turn) -> None:
    kept = [r for r in state.revisions if r[0] != turn.message_id or r[0] == ""]
    state.revisions = [*kept[1 - REMEMBERED_REVISIONS :], [turn.message_id, turn.at_ms, turn.kind]]
    if turn.at_ms > state.last_event_at_ms:
        state.last_event_at_ms = turn.at_ms


def _started(state: ConversationState, turn: Turn, options: StateOptions) -> Outcome:
    if turn.at_ms < state.started_at_ms:
        state.started_at_ms = turn.at_ms
    return _transferred(state, turn, options)


def _transferred(state: ConversationState, turn: Turn, options: StateOptions) -> Outcome:
    if _revised_already(state, turn):
        return DUPLICATE
    at = turn.at_ms
    late = state.last_event_at_ms - at > options.max_lateness_ms
    _note_revision(state, turn)
    if late:
        state.counts["late"] += 1
        return LATE
    if turn.attributes:
        _keep_attributes(state, turn, options)
    if turn.phase is not None and (state.phase_at_ms is None or at >= state.phase_at_ms):
        state.phase, state.phase_at_ms = turn.phase, at
    return APPLIED


def _ended(state: ConversationState, turn: Turn, options: StateOptions) -> Outcome:
    at = turn.at_ms
    if _revised_already(state, turn) or (state.ended_at_ms is not None and at <= state.ended_at_ms):
        return DUPLICATE
    _note_revision(state, turn)
    if any(entry[AT] > at for entry in state.window):
        return LATE  # the customer wrote after this end: the conversation goes on
    state.status = "ended"
    state.ended_at_ms = at
    state.waiting_since_ms = None
    return APPLIED


_STARTS_ANEW = frozenset({"created", "started", "transferred"})
_OTHER_KINDS = {
    "edited": _edited,
    "deleted": _deleted,
    "started": _started,
    "transferred": _transferred,
    "ended": _ended,
}
