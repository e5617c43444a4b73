"""What the watcher knows after what was sent and what came back."""

from typing import Any

from stream_sentiment.demo.chatlog import Conversation
from stream_sentiment.demo.floor import Floor
from stream_sentiment.demo.summary import summary

MODEL = {"name": "m", "version": "1", "sha256": "0", "precision": "int8", "max_length": 96}


def message(number: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "tenant_id": "t",
        "conversation_id": "c",
        "message_id": f"m-{number}",
        "channel": "web_chat",
        "language": "en",
        "sender": {"role": "customer"},
        "text": "hello",
        **fields,
    }


def scored(number: int = 1, score: float = -0.8, **fields: Any) -> dict[str, Any]:
    return {
        "tenant_id": "t",
        "conversation_id": "c",
        "message_id": f"m-{number}",
        "sentiment": {"label": "negative", "score": score},
        "emotion": {"label": "anger"},
        "uncertain": False,
        "rolling": {"score": score / 2, "trend": "declining"},
        "skipped_reason": None,
        "model": MODEL,
        **fields,
    }


def escalation(action: str, revision: int, **fields: Any) -> dict[str, Any]:
    return {
        "tenant_id": "t",
        "conversation_id": "c",
        "escalation_id": "e-1",
        "action": action,
        "revision": revision,
        "severity": "warning",
        "trigger": {"rule_id": "sustained-negative"},
        "reason": "The rolling score has fallen.",
        "score": -0.5,
        "resolution": None,
        **fields,
    }


def test_a_scored_message_moves_the_emotion_line_and_the_rolling_score() -> None:
    floor = Floor([Conversation("t", "c", "The title", "en", ())])
    floor.record_sent(message(1), 1.0)
    floor.record_scored(scored(1, -0.8), 1.25)

    row = floor.rows["t", "c"]
    assert (row.title, row.language, row.channel, row.last_text) == ("The title", "en", "web_chat", "hello")
    assert (list(row.points), row.emotion, row.rolling, row.trend) == ([-0.8], "anger", -0.4, "declining")
    assert floor.latency_ms(0.5) == 250.0
    assert floor.model == MODEL


def test_only_the_customers_words_are_kept() -> None:
    floor = Floor()
    floor.record_sent(message(1, text="I am waiting"), 0.0)
    floor.record_sent(message(2, text="One moment", sender={"role": "agent"}), 1.0)

    assert floor.rows["t", "c"].last_text == "I am waiting"
    assert floor.rows["t", "c"].last_role == "agent"


def test_a_deleted_message_leaves_the_screen() -> None:
    floor = Floor()
    floor.record_sent(message(1, text="you idiots"), 0.0)
    floor.record_sent(message(1, type="chat.message.deleted"), 1.0)

    assert floor.rows["t", "c"].last_text == "[message deleted by the customer]"


def test_a_message_without_a_score_counts_as_skipped() -> None:
    floor = Floor()
    floor.record_scored(scored(sentiment=None, emotion=None, skipped_reason="unsupported_content_type"), 1.0)

    assert (floor.scored, floor.skipped) == (0, 1)


def test_a_review_is_counted_and_is_no_conversation() -> None:
    floor = Floor()
    review = {"tenant_id": "t", "product_id": "p", "review_id": "r", "text": "fine", "language": "en"}
    floor.record_sent(review, 0.0)
    floor.record_scored({**scored(), "conversation_id": None, "review_id": "r"}, 1.0)

    assert (floor.sent, floor.scored, floor.reviews, floor.rows) == (1, 1, 1, {})


def test_an_escalation_opens_grows_and_resolves() -> None:
    floor = Floor()
    floor.record_escalation(escalation("opened", 1), 3.0)
    assert floor.rows["t", "c"].severity == "warning"
    floor.record_escalation(escalation("updated", 2, severity="error"), 4.0)
    assert floor.rows["t", "c"].severity == "error"
    assert floor.open_escalations == 1
    floor.record_escalation(escalation("resolved", 3, severity="error", resolution="recovered"), 5.0)

    row = floor.rows["t", "c"]
    assert (row.severity, row.resolution, row.escalated) == ("", "recovered", True)
    assert floor.open_escalations == 0
    assert floor.first_escalation_s == 3.0
    assert floor.actions == {"opened": 1, "updated": 1, "resolved": 1}
    assert floor.rules == {"sustained-negative": 1}
    assert [alarm.action for alarm in floor.alarms_since(1)] == ["updated", "resolved"]


def test_a_second_copy_of_an_escalation_or_a_dead_letter_changes_nothing() -> None:
    floor = Floor()
    for _ in range(2):
        floor.record_escalation(escalation("opened", 1), 3.0)
        floor.record_dead_letter("d-1", "schema", 3.0)
    floor.record_dead_letter("d-2", "decode", 3.0)

    assert floor.actions["opened"] == 1
    assert floor.dead_letters == {"schema": 1, "decode": 1}


def test_the_rate_is_that_of_the_last_five_seconds() -> None:
    floor = Floor()
    for number in range(20):
        floor.record_sent(message(number), number * 0.5)  # two a second, from 0 to 9.5

    assert floor.rate(9.5) == 11 / 5  # those of 4.5, 5.0, ... 9.5
    assert floor.rate(100.0) == 0.0


def test_the_summary_counts_from_first_sent_to_last_result() -> None:
    floor = Floor([Conversation("t", "c", "The title", "en", (), "recovers")])
    floor.record_sent(message(1), 2.0)
    floor.record_sent(message(2), 2.5)
    floor.record_sent(None, 3.0)
    floor.record_scored(scored(1), 3.0)
    floor.record_scored(scored(2), 4.0)
    floor.record_escalation(escalation("opened", 1), 4.5)
    floor.record_dead_letter("d-1", "decode", 5.0)

    figures = summary(floor, redis="system", seconds=6.0, speed=8.0)

    assert figures == {
        "events": 3,
        "scored": 2,
        "skipped": 0,
        "conversations": 1,
        "reviews": 0,
        "escalations": 1,
        "escalations_updated": 0,
        "escalations_resolved": 0,
        "by_expectation": {"recovers": {"conversations": 1, "escalated": 1}},
        "escalations_by_rule": {"sustained-negative": 1},
        "dead_letters": 1,
        "dead_letters_by_class": {"decode": 1},
        "events_per_second": 1.0,
        "latency_ms": {"p50": 1500.0, "p95": 1500.0},
        "seconds_to_first_escalation": 4.5,
        "seconds": 6.0,
        "speed": 8.0,
        "model": MODEL,
        "redis": "system",
        "kafka": "in-process mock",
        "durable": False,
    }


def test_the_summary_of_nothing_has_no_figures_to_divide_by() -> None:
    figures = summary(Floor(), redis="system", seconds=1.0, speed=None)

    assert figures["events_per_second"] is None
    assert figures["seconds_to_first_escalation"] is None
    assert figures["latency_ms"] == {"p50": None, "p95": None}
