"""The sentence that an agent reads."""

from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.escalation.reason import reason_of
from stream_sentiment.escalation.transition import Trigger

EXTREME = Trigger("single-extreme", "1", "single_extreme", 0.97, 0.9, None, 1)


def state(score: float) -> ConversationState:
    return ConversationState("t", "c", "web_chat", 0, 0, score=score)


def test_a_reminder_does_not_describe_a_friendly_message_as_the_reason_of_the_alarm() -> None:
    said = reason_of(True, EXTREME, state(-0.104), "en", (), "joy", None)

    assert said == "Still not resolved (single-extreme; rolling score -0.10)."
    assert reason_of(True, EXTREME, state(-0.104), "zh", (), "joy", None) == (
        "升级尚未解除（规则 single-extreme；滚动情绪分 -0.10）。"
    )


def test_the_first_alarm_names_the_emotion_and_the_threshold() -> None:
    said = reason_of(False, EXTREME, state(-0.33), "en", (), "anger", None)

    assert said == "One extreme message of anger (0.97, alert at 0.90; rolling score -0.33)."
