"""One sentence that says why, in Chinese or English, for the person who gets the alert. Pure; raises nothing."""

from __future__ import annotations

from collections.abc import Sequence

from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.escalation.transition import Resolution, Trigger

SIGNAL_NAMES = {
    "human_request": ("asks for a human", "要求转人工"),
    "complaint": ("complains", "提出投诉"),
    "refund_request": ("asks for money back", "要求退款"),
    "legal_threat": ("threatens legal steps", "表示要走法律途径"),
    "regulator_mention": ("mentions a regulator", "提到监管部门"),
    "media_threat": ("threatens to go public", "表示要曝光"),
    "abuse": ("uses abusive words", "出现辱骂"),
    "churn": ("says they will leave", "表示不再光顾"),
    "safety_risk": ("reports a danger", "反映安全风险"),
    "repeat_issue": ("reports the same problem again", "反映问题重复发生"),
    "delivery_delay": ("reports a late delivery", "反映配送延误"),
    "quality_defect": ("reports a defect", "反映质量问题"),
    "thanks": ("says thanks", "表示感谢"),
}
EMOTION_NAMES = {
    "anger": "愤怒",
    "disappointment": "失望",
    "anxiety": "焦虑",
    "joy": "喜悦",
    "surprise": "惊讶",
    "neutral": "平静",
}
_RESOLVED = {
    "recovered": (
        "the customer has calmed down: the rolling score is {score:.2f}",
        "客户情绪已恢复，滚动情绪分回到 {score:.2f}",
    ),
    "conversation_ended": ("the conversation has ended", "会话已结束"),
    "expired": ("the conversation has been silent past its time to live", "会话长时间无消息，已过期"),
    "acknowledged_by_service": ("the service has taken it over", "客服系统已接手处理"),
    "superseded": ("another escalation has taken its place", "已被新的升级取代"),
    "erased": ("the conversation's data has been erased", "会话数据已删除"),
}


def language_of(state: ConversationState, default: str) -> str:
    """zh or en, from the customer's language."""
    given = state.language.lower()
    if given.startswith("zh"):
        return "zh"
    return "en" if given.startswith("en") else default


def reason_of(
    reminder: bool,
    trigger: Trigger,
    state: ConversationState,
    language: str,
    signals: Sequence[str],
    emotion: str | None,
    resolution: Resolution | None,
) -> str:
    chinese = language == "zh"
    if resolution is not None:
        text = _RESOLVED[resolution][chinese].format(score=state.score)
        return text + "。" if chinese else "Resolved: " + text + "."
    if reminder:
        # What opened it may lie far back; this message need not be of its kind, and may be a friendly one.
        if chinese:
            return f"升级尚未解除（规则 {trigger.rule_id}；滚动情绪分 {state.score:.2f}）。"
        return f"Still not resolved ({trigger.rule_id}; rolling score {state.score:.2f})."
    why = _why_zh(trigger, state, signals, emotion) if chinese else _why_en(trigger, state, signals, emotion)
    return why if chinese else why[0].upper() + why[1:]


def _why_en(trigger: Trigger, state: ConversationState, signals: Sequence[str], emotion: str | None) -> str:
    score = f"rolling score {state.score:.2f}"
    match trigger.kind:
        case "sustained_negative":
            return (
                f"the rolling score has fallen to {trigger.observed:.2f} (alert at {trigger.open_threshold:.2f}) "
                f"after {_messages(state.scored)} from the customer."
            )
        case "streak":
            return f"{_messages(abs(state.run), 'negative ')} in a row from the customer ({score})."
        case "single_extreme":
            feeling = f" of {emotion}" if emotion is not None and emotion != "neutral" else ""
            return f"one extreme message{feeling} ({trigger.observed:.2f}, alert at {trigger.open_threshold or 0:.2f}; {score})."
        case "signal":
            told = ", ".join(SIGNAL_NAMES[name][0] for name in signals if name in SIGNAL_NAMES)
            return f"the customer {told or 'gave a signal'} ({score})."
        case "deterioration":
            return f"the customer's mood has turned for the worse during the conversation (shift {trigger.observed:.2f}; {score})."
        case "unanswered":
            return f"an unhappy customer has waited {_minutes(trigger.observed)} for an answer ({score})."
        case _:
            return f"rule {trigger.rule_id} holds ({score})."


def _why_zh(trigger: Trigger, state: ConversationState, signals: Sequence[str], emotion: str | None) -> str:
    score = f"滚动情绪分 {state.score:.2f}"
    match trigger.kind:
        case "sustained_negative":
            return f"客户发送 {state.scored} 条消息后，滚动情绪分降至 {trigger.observed:.2f}（告警阈值 {trigger.open_threshold:.2f}）。"
        case "streak":
            return f"客户连续 {abs(state.run)} 条负面消息（{score}）。"
        case "single_extreme":
            feeling = EMOTION_NAMES.get(emotion or "", "")
            return f"客户有一条{feeling}情绪强烈的消息（{trigger.observed:.2f}，告警阈值 {trigger.open_threshold or 0:.2f}；{score}）。"
        case "signal":
            told = "、".join(SIGNAL_NAMES[name][1] for name in signals if name in SIGNAL_NAMES)
            return f"客户{told or '发出信号'}（{score}）。"
        case "deterioration":
            return f"会话中客户情绪明显变差（变化 {trigger.observed:.2f}；{score}）。"
        case "unanswered":
            return f"情绪不佳的客户已等待回复 {trigger.observed / 60:.1f} 分钟（{score}）。"
        case _:
            return f"规则 {trigger.rule_id} 成立（{score}）。"


def _messages(n: int, kind: str = "") -> str:
    return f"{n} {kind}message{'' if n == 1 else 's'}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
