"""From the machine's decision to a `Transition` with trigger, evidence and reason; the only part of a decision that costs time.

In: the state after the decision, the rule that spoke, the turn (None for a timer). Out: `Transition`. Pure; raises nothing.
"""

from __future__ import annotations

from stream_sentiment.conversation.rolling import level_of, shift_of, trend_of
from stream_sentiment.conversation.state import AT, EMOTION, ID, ConversationState, EscalationState
from stream_sentiment.conversation.turn import Turn
from stream_sentiment.escalation.evidence import evidence_of
from stream_sentiment.escalation.reason import language_of, reason_of
from stream_sentiment.escalation.ruleformat import Desk
from stream_sentiment.escalation.rules import CompiledRule, RuleView
from stream_sentiment.escalation.severity import Severity
from stream_sentiment.escalation.signals import category_of
from stream_sentiment.escalation.transition import Action, Resolution, Transition, Trigger


def transition_of(
    action: Action,
    state: ConversationState,
    esc: EscalationState,
    rule: CompiledRule | None,
    turn: Turn | None,
    now: int,
    view: RuleView,
    resolution: Resolution | None,
) -> Transition:
    opener = view.by_id.get(esc.rule_id or "")
    speaker = rule or opener
    trigger = _trigger(speaker, esc, state, turn, now, view)
    evidence, remainder = evidence_of(state, turn)
    signals = () if turn is None else tuple(sorted({signal.name for signal in turn.signals}))
    asked = frozenset() if speaker is None else speaker.condition.signals
    told = tuple(name for name in signals if name in asked) or signals  # the reason names what the rule asked for
    emotion = _emotion(state, turn)
    language = language_of(state, view.language)
    category = category_of(state.topics)
    queue, action_hint = _hints(speaker, view.desks.get(category or "other"))
    severity: Severity = esc.severity  # type: ignore[assignment]
    if turn is not None:
        message_id, message_at = turn.message_id, turn.at_ms
    elif state.window:
        message_id, message_at = state.window[-1][ID], state.window[-1][AT]
    else:
        message_id, message_at = esc.message_id or "", now
    assert esc.escalation_id is not None
    assert esc.opened_at_ms is not None
    return Transition(
        action=action,
        escalation_id=esc.escalation_id,
        revision=esc.revision,
        severity=severity,
        rule_id=esc.rule_id or "",
        attached=tuple(esc.attached),
        trigger=trigger,
        reason=reason_of(action == "updated" and rule is None, trigger, state, language, told, emotion, resolution),
        language=language,
        at_ms=now,
        opened_at_ms=esc.opened_at_ms,
        message_id=message_id,
        message_at_ms=message_at,
        score=state.score,
        level=level_of(state.score),
        trend=trend_of(shift_of(state)),
        emotion=emotion,
        evidence=evidence,
        remainder=remainder,
        resolution=resolution,
        signals=signals,
        notified_count=esc.notified_count,
        channel=state.channel,
        phase=state.phase,
        attributes=dict(state.attributes),
        category=category,
        suggested_queue=queue,
        suggested_action=action_hint,
        # Not the speaker's alone: of two equally grave rules the first in the file speaks, and the other may be safety.
        exempt=any(view.by_id[name].bypass for name in esc.attached if name in view.by_id),
        storm_id=esc.storm_id,
    )


def _hints(rule: CompiledRule | None, desk: Desk | None) -> tuple[str | None, str | None]:
    """Queue and action: the rule's own, else those of the desk for the complaint."""
    queue = None if rule is None else rule.suggested_queue
    action = None if rule is None else rule.suggested_action
    if desk is not None:
        queue = desk.suggested_queue if queue is None else queue
        action = desk.suggested_action if action is None else action
    return queue, action


def _trigger(
    rule: CompiledRule | None,
    esc: EscalationState,
    state: ConversationState,
    turn: Turn | None,
    now: int,
    view: RuleView,
) -> Trigger:
    if rule is None:  # the rule has left the file since
        return Trigger(esc.rule_id or "", view.version, "retired", state.score, None, None, 0)
    condition = rule.condition
    closes = condition.close_threshold
    if rule.released is None and not rule.until_end:
        closes = view.close_score
    return Trigger(
        rule_id=rule.id,
        rule_version=view.version,
        kind=condition.kind,
        observed=condition.measure(state, turn, now),
        open_threshold=condition.open_threshold,
        close_threshold=closes,
        min_messages=rule.min_messages,
    )


def _emotion(state: ConversationState, turn: Turn | None) -> str | None:
    if turn is not None and turn.score is not None:
        return turn.score.emotion_label
    return state.window[-1][EMOTION] if state.window else None
