"""A rule as one sentence, in English or Chinese, for the person who is to sign it off. Pure; raises nothing."""

from __future__ import annotations

from stream_sentiment.escalation.reason import EMOTION_NAMES, SIGNAL_NAMES
from stream_sentiment.escalation.ruleformat import Condition, Defaults, Rule

_SEVERITY_ZH = {"info": "提示", "warning": "警告", "error": "严重", "critical": "紧急"}
_PHASE = {"with_bot": ("a bot is in charge", "由机器人接待"), "with_agent": ("an agent is in charge", "由人工接待")}


def explain(rule: Rule, defaults: Defaults, language: str = "en") -> str:
    """What the rule does, when, and how it ends."""
    return _explain_zh(rule, defaults) if language == "zh" else _explain_en(rule, defaults)


def _explain_en(rule: Rule, defaults: Defaults) -> str:
    if not rule.enabled:
        return f"{rule.id}: switched off."
    text = f"{rule.id}: {_severity_en(rule)} when {_condition(rule.when, 0)}"
    if rule.min_customer_messages > 1:
        text += f", after at least {rule.min_customer_messages} customer messages"
    if rule.for_messages > 1:
        text += f", for {rule.for_messages} messages in a row"
    if rule.until == "conversation_end":
        text += "; it stays open until the conversation ends"
    else:
        count = rule.close_for_messages or defaults.close.for_messages
        text += f"; it is resolved once that is over for {count} message{'' if count == 1 else 's'}"
    cooldown = defaults.cooldown if rule.cooldown is None else rule.cooldown
    if rule.bypass_cooldown:
        text += ", and no cooldown holds it back"
    elif cooldown:
        text += f", and then quiet for {_duration(cooldown)[0]}"
    return text + "."


def _severity_en(rule: Rule) -> str:
    if isinstance(rule.severity, str):
        return rule.severity
    return ", ".join(f"{step.level} at {step.at:g}" for step in rule.severity)


def _explain_zh(rule: Rule, defaults: Defaults) -> str:
    if not rule.enabled:
        return f"{rule.id}：已停用。"
    text = f"{rule.id}：当{_condition(rule.when, 1)}"
    if rule.min_customer_messages > 1:
        text += f"，且客户至少发送 {rule.min_customer_messages} 条消息"
    if rule.for_messages > 1:
        text += f"，并连续 {rule.for_messages} 条消息成立"
    text += "时，发出" + _severity_zh(rule)
    if rule.until == "conversation_end":
        text += "；直到会话结束才解除"
    else:
        text += f"；连续 {rule.close_for_messages or defaults.close.for_messages} 条消息恢复后解除"
    cooldown = defaults.cooldown if rule.cooldown is None else rule.cooldown
    if rule.bypass_cooldown:
        text += "，不受冷却时间限制"
    elif cooldown:
        text += f"，之后 {_duration(cooldown)[1]}内不重复"
    return text + "。"


def _severity_zh(rule: Rule) -> str:
    if isinstance(rule.severity, str):
        return _SEVERITY_ZH[rule.severity] + "级告警"
    return "、".join(f"{_SEVERITY_ZH[step.level]}级（≤ {step.at:g}）" for step in rule.severity) + "告警"


def _condition(condition: Condition, zh: int) -> str:
    """Both languages side by side, so that none forgets a part; `zh` picks one."""
    said: list[tuple[str, str]] = []
    if condition.rolling_score is not None:
        at = condition.rolling_score.open
        said.append((f"the rolling score is at or below {at:g}", f"滚动情绪分不高于 {at:g}"))
    if condition.shift is not None:
        at = condition.shift.open
        said.append((f"the mood has shifted by {at:g} or worse since the beginning", f"情绪较开头下降到 {at:g} 或更低"))
    if condition.streak is not None:
        streak = condition.streak
        weakest = "" if streak.min_score is None else f" of {streak.min_score:g} or beyond"
        weakest_zh = "" if streak.min_score is None else f"（强度不弱于 {streak.min_score:g}）"
        sign = {"negative": "负面", "positive": "正面"}[streak.sign]
        said.append(
            (
                f"the last {streak.length} customer messages are {streak.sign}{weakest}",
                f"客户连续 {streak.length} 条{sign}消息{weakest_zh}",
            )
        )
    if condition.message is not None:
        said.append(_message(condition))
    if condition.signal is not None:
        name, name_zh = SIGNAL_NAMES[condition.signal]
        said.append((f"the customer {name}", f"客户{name_zh}"))
    if condition.signal_any is not None:
        names = [SIGNAL_NAMES[name] for name in condition.signal_any]
        said.append(("the customer " + " or ".join(n[0] for n in names), "客户" + "或".join(n[1] for n in names)))
    if condition.signals_seen is not None:
        seen = condition.signals_seen
        name, name_zh = SIGNAL_NAMES[seen.signal]
        said.append(
            (
                f"the customer {name}, for the {_ordinal(seen.at_least)} time or more",
                f"客户第 {seen.at_least} 次或更多次{name_zh}",
            )
        )
    if condition.agent_response_gap is not None:
        english, chinese = _duration(condition.agent_response_gap)
        said.append((f"the customer has waited {english} for an answer", f"客户等待回复已达 {chinese}"))
    if condition.phase is not None:
        said.append(_PHASE[condition.phase])
    parts = [pair[zh] for pair in said]
    if condition.all is not None:
        parts += [_condition(part, zh) for part in condition.all]
    if condition.any is not None:
        parts.append(
            ("(", "(")[zh] + (" or ", "或")[zh].join(_condition(part, zh) for part in condition.any) + (")", ")")[zh]
        )
    if condition.not_ is not None:
        parts.append(("it is not so that ", "并非")[zh] + _condition(condition.not_, zh))
    return (" and ", "且")[zh].join(parts)


def _message(condition: Condition) -> tuple[str, str]:
    message = condition.message
    assert message is not None
    english: list[str] = []
    chinese: list[str] = []
    if message.label is not None:
        english.append(message.label)
        chinese.append({"negative": "负面", "neutral": "中性", "positive": "正面"}[message.label])
    if message.emotion is not None:
        least = 0.5 if message.min_probability is None else message.min_probability
        english.append(f"of {message.emotion} (probability {least:g} or more)")
        chinese.append(f"{EMOTION_NAMES[message.emotion]}（概率不低于 {least:g}）")
    if message.max_score is not None:
        english.append(f"scored {message.max_score:g} or below")
        chinese.append(f"得分不高于 {message.max_score:g}")
    if message.min_intensity is not None:
        english.append(f"of intensity {message.min_intensity:g} or more")
        chinese.append(f"强度不低于 {message.min_intensity:g}")
    return "the message is " + " and ".join(english), "该消息为" + "、".join(chinese)


def _duration(milliseconds: int) -> tuple[str, str]:
    for size, english, chinese in (
        (86_400_000, "day", "天"),
        (3_600_000, "hour", "小时"),
        (60_000, "minute", "分钟"),
        (1000, "second", "秒"),
    ):
        if milliseconds >= size and milliseconds % size == 0:
            n = milliseconds // size
            return f"{n} {english}{'' if n == 1 else 's'}", f"{n} {chinese}"
    return f"{milliseconds} milliseconds", f"{milliseconds} 毫秒"


def _ordinal(n: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(n, f"{n}th")
