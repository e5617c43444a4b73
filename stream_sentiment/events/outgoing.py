"""What we say: the values of `sentiment.scored`, `conversation.state` and `escalation.events`, as dictionaries ready for JSON.

Pure: state, score, transition and clock readings in, plain values out. The same shapes as pydantic models, from which the JSON
Schemas come, are in `events.schemas`; a test validates what is built here against them. Scores are rounded to four decimals here, at
the very end, and nowhere before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stream_sentiment.conversation.options import StateOptions
from stream_sentiment.conversation.rolling import Point, level_of, response_gap_ms, shift_of, snapshot, trend_of
from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.escalation.storm import StormNotice, notice_reason, share_of
from stream_sentiment.events.envelope import record_key, rfc3339

if TYPE_CHECKING:
    from stream_sentiment.conversation.turn import Signal
    from stream_sentiment.escalation.transition import Evidence, Transition
    from stream_sentiment.excerpt import Excerpt

DECIMALS = 4


def rolling_block(state: ConversationState) -> dict[str, Any]:
    """The conversation after this message, in short; in the scored event."""
    return {
        "score": round(state.score, DECIMALS),
        "level": level_of(state.score),
        "trend": trend_of(shift_of(state)),
        "customer_message_count": state.counts.get("customer", 0),
    }


def signals_block(signals: Sequence[Signal]) -> list[dict[str, Any]]:
    """Recognised signals with what found them and where; offsets count characters of the masked text."""
    return [
        {
            "name": signal.name,
            "source": signal.source,
            "rule_id": signal.rule_id,
            "spans": [{"begin": begin, "end": end} for begin, end in signal.spans],
            "weight": round(signal.weight, DECIMALS),
        }
        for signal in signals
    ]


def conversation_state_event(
    state: ConversationState, options: StateOptions, *, updated_at_ms: int, expires_at_ms: int
) -> dict[str, Any]:
    """The value of `conversation.state`: everything a dashboard of conversations shows."""
    shot = snapshot(state, options)
    escalation = state.escalation
    return {
        "tenant_id": state.tenant_id,
        "conversation_id": state.conversation_id,
        "channel": state.channel,
        "language": state.language,
        "status": state.status,
        "phase": state.phase,
        "started_at": rfc3339(state.started_at_ms),
        "last_message_at": rfc3339(state.last_event_at_ms),
        "updated_at": rfc3339(updated_at_ms),
        "expires_at": rfc3339(expires_at_ms),
        "counts": state.counts,
        "rolling": {
            "score": round(shot.score, DECIMALS),
            "weight": round(shot.weight, DECIMALS),
            "alpha": options.alpha,
            "level": shot.level,
            "window_mean": round(shot.window_mean, DECIMALS),
            "window_n": shot.window_n,
            "min": _point(shot.lowest),
            "max": _point(shot.highest),
            "last": _point(shot.last),
            "begin_score": round(shot.begin_score, DECIMALS),
            "end_score": round(shot.end_score, DECIMALS),
            "shift": round(shot.shift, DECIMALS),
            "trend_class": shot.trend,
            "slope": round(shot.slope, DECIMALS),
            "volatility": round(shot.volatility, DECIMALS),
            "streak": {"sign": shot.streak_sign, "length": shot.streak_length},
            "progressive_score": round(shot.progressive_score, DECIMALS),
            "emotion_mix": {name: round(share, DECIMALS) for name, share in shot.emotion_mix.items()},
        },
        "agent_response_gap_s": response_gap_ms(state, state.last_event_at_ms) / 1000,
        "signals_seen": state.signals,
        "escalation": {
            "status": escalation.status if escalation else "none",
            "escalation_id": escalation.escalation_id if escalation else None,
            "severity": escalation.severity if escalation else None,
            "opened_at": _time(escalation.opened_at_ms) if escalation else None,
            "notified_count": escalation.notified_count if escalation else 0,
            "cooldown_until": _time(escalation.cooldown_until_ms) if escalation else None,
        },
        "opportunity": shot.opportunity,
        "approximate": state.approximate,
        "model_version": state.model_version,
        "rules_version": state.rules_version,
        "state_version": state.state_version,
    }


def escalation_event(
    state: ConversationState,
    transition: Transition,
    *,
    model: Mapping[str, Any],
    rules_version: str,
    emitted_at_ms: int,
    excerpts: Mapping[str, Excerpt] | None = None,
) -> dict[str, Any]:
    """The value of `escalation.events`.

    Args:
        excerpts: masked excerpts by message id, where they were asked for and the text is at hand.
        emitted_at_ms: wall clock; everything else is event time.
    """
    t = transition
    attributes = t.attributes
    context = {
        "channel": t.channel,
        "phase": t.phase,
        **{name: attributes.get(name) for name in ("queue", "customer_tier", "order_id", "product_id")},
    }
    return {
        "tenant_id": state.tenant_id,
        "conversation_id": state.conversation_id,
        "escalation_id": t.escalation_id,
        "dedup_key": record_key(state.tenant_id, state.conversation_id),
        "action": t.action,
        "revision": t.revision,
        "severity": t.severity,
        "priority": t.priority,
        "rule_id": t.rule_id,
        "attached_rules": list(t.attached),
        "trigger": {
            "rule_id": t.trigger.rule_id,
            "rule_version": t.trigger.rule_version,
            "kind": t.trigger.kind,
            "observed": round(t.trigger.observed, DECIMALS),
            "open_threshold": t.trigger.open_threshold,
            "close_threshold": t.trigger.close_threshold,
            "min_messages": t.trigger.min_messages,
        },
        "reason": t.reason,
        "language": t.language,
        "score": round(t.score, DECIMALS),
        "level": t.level,
        "trend": t.trend,
        "emotion": t.emotion,
        "signals": list(t.signals),
        "complaint": {"category": t.category} if t.category else None,
        "suggested_queue": t.suggested_queue,
        "suggested_action": t.suggested_action,
        "evidence": [_evidence(item, excerpts or {}) for item in t.evidence],
        "evidence_remainder": round(t.remainder, 6),
        "context": context,
        "opened_at": rfc3339(t.opened_at_ms),
        "updated_at": rfc3339(t.at_ms),
        "resolved_at": rfc3339(t.at_ms) if t.action == "resolved" else None,
        "resolution": t.resolution,
        "notified_count": t.notified_count,
        "suppressed": t.storm_id is not None,
        "storm_id": t.storm_id,
        "timing": {
            "message_created_at": rfc3339(t.message_at_ms),
            "emitted_at": rfc3339(emitted_at_ms),
            "detection_latency_ms": max(0, emitted_at_ms - t.message_at_ms),
        },
        "model": dict(model),
        "rules_version": rules_version,
    }


def storm_event(
    notice: StormNotice, *, language: str, source: tuple[str, int], rules_version: str, emitted_at_ms: int
) -> dict[str, Any]:
    """The value of a storm's notice, which stands on `escalation.events` too; `source` is the input topic and partition."""
    storm = notice.storm
    topic, partition = source
    return {
        "tenant_id": notice.tenant_id,
        "storm_id": storm.storm_id,
        "action": notice.action,
        "revision": storm.revision,
        "severity": storm.severity,
        "reason": notice_reason(notice, language),
        "language": language,
        "held_back": storm.held_back,
        "limits": [
            {"scope": name, "per_minute": limit, "share": share_of(limit, notice.partitions)}
            for name, limit in sorted(storm.limits.items())
        ],
        "by_rule": storm.rules,
        "by_category": storm.categories,
        "by_severity": storm.severities,
        "sample_escalation_ids": storm.sample,
        "source": {"topic": topic, "partition": partition, "partitions": notice.partitions},
        "began_at": rfc3339(storm.began_at_ms),
        "updated_at": rfc3339(notice.at_ms),
        "resolved_at": rfc3339(notice.at_ms) if notice.action == "resolved" else None,
        "timing": {"emitted_at": rfc3339(emitted_at_ms)},
        "rules_version": rules_version,
    }


def _evidence(item: Evidence, excerpts: Mapping[str, Excerpt]) -> dict[str, Any]:
    evidence: dict[str, Any] = {
        "message_id": item.message_id,
        "created_at": rfc3339(item.at_ms),
        "score": None if item.score is None else round(item.score, DECIMALS),
        "label": item.label,
        "emotion": item.emotion,
        "weight": round(item.weight, DECIMALS),
        "contribution": round(item.contribution, 6),
        "spans": [{"begin": begin, "end": end} for begin, end in item.spans],
    }
    if item.message_id in excerpts:
        evidence["excerpt"], evidence["excerpt_begin"] = excerpts[item.message_id]
    return evidence


def _point(point: Point | None) -> dict[str, Any] | None:
    return None if point is None else {"score": round(point.score, DECIMALS), "message_id": point.message_id}


def _time(milliseconds: int | None) -> str | None:
    return None if milliseconds is None else rfc3339(milliseconds)
