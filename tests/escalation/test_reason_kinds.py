"""The one sentence that says why, in the language of the conversation."""

from __future__ import annotations

import pytest
from turn_builders import customer, folded

from stream_sentiment.escalation.reason import language_of, reason_of
from stream_sentiment.escalation.transition import Resolution, Trigger

STATE = folded([customer(f"m{i}", i, -0.9) for i in range(2)])


def trigger(kind: str, observed: float, opens: float | None = -0.4) -> Trigger:
    return Trigger("r", "1", kind, observed, opens, 0.0, 1)


SAID = [
    (
        trigger("sustained_negative", -0.46),
        "The rolling score has fallen to -0.46 (alert at -0.40) after 2 messages from the customer.",
        "客户发送 2 条消息后，滚动情绪分降至 -0.46（告警阈值 -0.40）。",
    ),
    (
        trigger("streak", 2, 2),
        "2 negative messages in a row from the customer (rolling score -0.46).",
        "客户连续 2 条负面消息（滚动情绪分 -0.46）。",
    ),
    (
        trigger("single_extreme", 0.97, 0.95),
        "One extreme message of anger (0.97, alert at 0.95; rolling score -0.46).",
        "客户有一条愤怒情绪强烈的消息（0.97，告警阈值 0.95；滚动情绪分 -0.46）。",
    ),
    (
        trigger("signal", 1.0, 1.0),
        "The customer threatens legal steps (rolling score -0.46).",
        "客户表示要走法律途径（滚动情绪分 -0.46）。",
    ),
    (
        trigger("deterioration", -0.5),
        "The customer's mood has turned for the worse during the conversation (shift -0.50; rolling score -0.46).",
        "会话中客户情绪明显变差（变化 -0.50；滚动情绪分 -0.46）。",
    ),
    (
        trigger("unanswered", 180.0, 180.0),
        "An unhappy customer has waited 3.0 minutes for an answer (rolling score -0.46).",
        "情绪不佳的客户已等待回复 3.0 分钟（滚动情绪分 -0.46）。",
    ),
    (trigger("phase", 1.0, None), "Rule r holds (rolling score -0.46).", "规则 r 成立（滚动情绪分 -0.46）。"),
]


@pytest.mark.parametrize(("why", "english", "chinese"), SAID)
def test_each_kind_has_its_sentence_in_both_languages(why: Trigger, english: str, chinese: str) -> None:
    signals = ("legal_threat",)
    assert reason_of(False, why, STATE, "en", signals, "anger", None) == english
    assert reason_of(False, why, STATE, "zh", signals, "anger", None) == chinese


@pytest.mark.parametrize(
    "resolution", ["recovered", "conversation_ended", "expired", "acknowledged_by_service", "superseded", "erased"]
)
def test_each_resolution_says_how_it_ended(resolution: Resolution) -> None:
    english = reason_of(False, trigger("streak", 2), STATE, "en", (), None, resolution)
    chinese = reason_of(False, trigger("streak", 2), STATE, "zh", (), None, resolution)
    assert english.startswith("Resolved: ")
    assert english.endswith(".")
    assert chinese.endswith("。")


def test_short_waits_are_told_in_seconds_and_one_message_is_singular() -> None:
    assert "45 seconds" in reason_of(False, trigger("unanswered", 45.0), STATE, "en", (), None, None)
    one = folded([customer("a", 0, -0.9)])
    assert "after 1 message from" in reason_of(False, trigger("sustained_negative", -0.4), one, "en", (), None, None)


def test_the_language_is_the_conversations_else_the_files() -> None:
    assert language_of(folded([customer("a", 0, 0.0, language="zh-Hant-HK")]), "en") == "zh"
    assert language_of(folded([customer("a", 0, 0.0, language="en-GB")]), "zh") == "en"
    assert language_of(folded([customer("a", 0, 0.0, language="fr")]), "zh") == "zh"
