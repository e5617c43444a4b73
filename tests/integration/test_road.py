"""From a Kafka topic to an escalation: the worker's behaviour as its users see it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.events.schemas import SCHEMAS
from stream_sentiment.kafka.dead_letter import dead_letter_id
from stream_sentiment.testing.events import chat_message, conversation_event, encode, review
from tests.events.test_incoming import INVALID
from tests.integration.road import Road, WordScorer, outcomes, sample

START = 1_790_000_000_000


def said(text: str, number: int, conversation: str = "c1", **fields: Any) -> dict[str, Any]:
    """The `number`-th message of a conversation, a minute after the one before."""
    return chat_message(
        text, conversation=conversation, message=f"{conversation}-m{number}", at_ms=START + number * 60_000, **fields
    )


def test_a_conversation_that_turns_bad_is_escalated_once_and_resolved_when_it_recovers(road: Road) -> None:
    lines = ["hello", "BAD", "BAD", "BAD", "GOOD", "GOOD", "GOOD", "GOOD", "thanks"]
    road.publish(*[said(text, number) for number, text in enumerate(lines)])

    road.work()

    events = road.escalations()
    assert [event["action"] for event in events][:1] == ["opened"]
    assert events[-1]["action"] == "resolved"
    assert events[-1]["resolution"] == "recovered"
    assert len({event["escalation_id"] for event in events}) == 1
    assert [event["revision"] for event in events] == list(range(1, len(events) + 1))
    opened = events[0]
    assert opened["timing"]["message_created_at"] == "2026-09-21T14:15:20.000Z"
    total = sum(item["contribution"] for item in opened["evidence"]) + opened["evidence_remainder"]
    assert total == pytest.approx(opened["score"], abs=1e-4)


def test_what_is_published_satisfies_its_schema_and_says_where_it_comes_from(mock_road: Road) -> None:
    traceparent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    mock_road.publish(
        *[said("BAD", number) for number in range(3)], said("", 3), said("fax", 4, content_type="image/png")
    )
    last = said("BAD", 5)
    mock_road.publish_raw(encode(last), b"shop|c1", [("traceparent", traceparent)])
    mock_road.publish(conversation_event("ended", at_ms=START + 600_000))
    mock_road.publish_reviews(review("BAD thing", rating=5))

    mock_road.work()

    scored = mock_road.read("scored")
    for record in scored:
        SCHEMAS["sentiment.scored.v1"].validate_python(record.json())
    for record in mock_road.read("conversation_state"):
        SCHEMAS["conversation.state.v1"].validate_python(record.json())
    escalations = mock_road.read("escalations")
    for record in escalations:
        SCHEMAS["escalation.events.v1"].validate_python(record.json())
        assert record.key == b"shop|c1"
        assert record.headers["ce_type"].startswith("io.stream-sentiment.sentiment.escalation.")
        assert record.headers["ce_id"] == f"{record.json()['escalation_id']}.{record.json()['revision']}"
    assert escalations[-1].json()["resolution"] == "conversation_ended"
    by_message = {record.json().get("message_id"): record for record in scored}
    assert by_message["c1-m5"].headers["traceparent"] == traceparent.decode()
    assert by_message["c1-m3"].json()["skipped_reason"] == "empty_text"
    assert by_message["c1-m4"].json()["skipped_reason"] == "unsupported_content_type"
    [of_review] = [record.json() for record in scored if "review_id" in record.json()]
    assert of_review["rating_text_disagreement"] is True
    assert all("text" not in record.json() for record in scored)


def test_every_kind_of_broken_record_is_a_dead_letter_once_and_blocks_nothing(road: Road) -> None:
    broken = [value for _, value, _, _ in INVALID]
    for number, value in enumerate(broken):
        road.publish_raw(value, f"key-{number}".encode(), [("origin", b"test")], partition=number % 3)
        road.publish(said(f"good {number}", number, conversation=f"c{number}"))
    road.publish_raw(None, b"shop|tombstone")

    worker = road.work()

    letters = road.read("dead_letters")
    assert len(letters) == len(broken)
    by_key = {letter.key: letter for letter in letters}
    for number, (_, value, _, hint) in enumerate(INVALID):
        letter = by_key[f"key-{number}".encode()]
        place = (
            road.topics["chat_messages"],
            int(letter.headers["__dlq.partition"]),
            int(letter.headers["__dlq.offset"]),
        )
        assert letter.headers["__dlq.id"] == dead_letter_id(*place)
        assert hint in letter.headers["__dlq.error.message"]
        assert letter.headers["origin"] == "test"
        if letter.headers["__dlq.error.class"] == "too_large":
            assert letter.json()["bytes"] == len(value)
        else:
            assert letter.value == value
    assert len(road.read("scored")) == len(broken)
    assert outcomes(worker) == {"scored": len(broken), "dead_lettered": len(broken), "skipped": 1}


def test_a_text_that_the_model_cannot_score_is_put_aside_alone(mock_road: Road) -> None:
    texts = ["fine", "POISON", "BAD", "CRASH", "GOOD", *["ok"] * 20]
    mock_road.publish(*[said(text, number, conversation=f"c{number}") for number, text in enumerate(texts)])

    worker = mock_road.work()

    assert outcomes(worker) == {"scored": len(texts) - 2, "dead_lettered": 2}
    letters = mock_road.read("dead_letters")
    assert {letter.headers["__dlq.error.class"] for letter in letters} == {"poison_model"}
    assert {letter.json()["text"] for letter in letters} == {"POISON", "CRASH"}
    labels = {r.json()["conversation_id"]: r.json()["sentiment"]["label"] for r in mock_road.read("scored")}
    assert labels["c2"] == "negative"
    assert labels["c4"] == "positive"


def test_a_model_that_fails_on_everything_stops_the_worker_and_loses_nothing(mock_road: Road) -> None:
    class Broken(WordScorer):
        def infer(self, batch: Any) -> Any:
            raise RuntimeError("device lost")

    mock_road.publish(*[said("hello", number) for number in range(5)])
    with pytest.raises(RuntimeError, match="device lost"):
        mock_road.work(Broken())
    assert mock_road.read("dead_letters") == []

    assert outcomes(mock_road.work()) == {"scored": 5}


def test_an_event_that_breaks_the_state_machine_is_put_aside_and_the_rest_goes_on(
    mock_road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stream_sentiment.record_fold as record_fold

    real = record_fold.advance

    def advance(state: Any, turn: Any, *rest: Any, **more: Any) -> Any:
        if turn.message_id == "c1-m2":
            raise ZeroDivisionError
        return real(state, turn, *rest, **more)

    monkeypatch.setattr(record_fold, "advance", advance)
    mock_road.publish(*[said("hello", number) for number in range(5)])

    mock_road.work()

    [letter] = mock_road.read("dead_letters")
    assert letter.headers["__dlq.error.class"] == "state_conflict"
    assert letter.json()["message_id"] == "c1-m2"
    assert mock_road.final_states()[("shop", "c1")]["counts"]["customer"] == 4


def test_a_message_that_comes_twice_counts_once(road: Road) -> None:
    messages = [said("BAD", number) for number in range(2)]
    road.publish(*messages, *messages, *messages)

    worker = road.work()

    assert outcomes(worker) == {"scored": 2, "duplicate": 4}
    assert road.final_states()[("shop", "c1")]["counts"]["customer"] == 2
    assert len(road.escalations()) == 1


def test_the_next_worker_goes_on_where_the_last_one_stopped(road: Road) -> None:
    road.publish(*[said("hello", number) for number in range(7)])
    first = road.start()
    _until(lambda: sample(first.worker, "events_total", outcome="scored") == 7)
    first.stop()
    assert sum(road.committed().values()) == 7
    road.publish(*[said("hello", number) for number in range(7, 10)])

    second = road.work()

    assert outcomes(second) == {"scored": 3}
    state = road.final_states()[("shop", "c1")]
    assert state["counts"]["customer"] == 10
    assert state["state_version"] == 10


NASTY = [
    "a|b",
    "a",
    "b|c",
    "{x}",
    "x}y",
    "line\nbreak",
    "tab\t",
    "%7C",
    "~",
    "空 格",
    "\u0000nul",
    "e\u0301",
    "x" * 512,
]


def test_no_two_conversations_share_a_state_whatever_characters_their_ids_hold(mock_road: Road) -> None:
    pairs = [(tenant, conversation) for tenant in NASTY for conversation in NASTY]
    mock_road.publish(*[chat_message("hello", tenant=t, conversation=c, at_ms=START) for t, c in pairs])

    worker = mock_road.work()

    assert outcomes(worker) == {"scored": len(pairs)}
    states = mock_road.final_states()
    assert set(states) == set(pairs)
    assert all(state["counts"]["customer"] == 1 for state in states.values())


def test_an_id_of_ten_thousand_characters_is_a_dead_letter(mock_road: Road) -> None:
    mock_road.publish(chat_message("hello", conversation="x" * 10_000))
    assert outcomes(mock_road.work()) == {"dead_lettered": 1}


def test_a_full_pipeline_pauses_the_input_and_then_goes_on(mock_road: Road) -> None:
    mock_road.publish(*[said("hello", number, conversation=f"c{number % 7}") for number in range(120)])
    scorer = WordScorer(delay=lambda: time.sleep(0.05))

    worker = mock_road.work(
        scorer,
        intake={"window_events": 4, "windows_in_flight": 1, "hold": "100ms"},
        model={"token_budget": 32, "threads": 1},
    )

    assert outcomes(worker) == {"scored": 120}
    assert max(scorer.batches) <= 4
    assert {c["counts"]["customer"] for c in mock_road.final_states().values()} == {17, 18}


def test_a_wrong_clock_in_the_future_does_not_make_the_rest_late(mock_road: Road) -> None:
    now = int(time.time() * 1000)
    mock_road.publish(
        chat_message("hello", message="m1", at_ms=now + 10 * 365 * 86_400_000),
        chat_message("hello", message="m2", at_ms=now),
    )
    worker = mock_road.work()
    assert outcomes(worker) == {"scored": 2}
    assert sample(worker, "clock_skew_events_total", direction="future") == 1


def test_a_topic_that_is_missing_is_named_with_the_remedy(mock_road: Road) -> None:
    with pytest.raises(ConfigurationError, match=r"no topic nowhere.*topics create"):
        mock_road.work(topics={**mock_road.topics, "scored": "nowhere"})


def test_a_wiped_redis_is_noticed_and_the_policy_decides(road: Road) -> None:
    road.publish(*[said("BAD", number) for number in range(4)])
    road.work()
    before = road.final_states()
    _wipe(road)

    with pytest.raises(ConfigurationError, match="missing_watermark"):
        road.work()

    rewound = road.work(redis={"missing_watermark": "rewind"})
    assert outcomes(rewound) == {"scored": 4}
    assert road.final_states() == before
    assert {event["escalation_id"] for event in road.escalations()} == {road.escalations()[0]["escalation_id"]}


def test_after_a_wipe_continue_starts_from_the_commit_with_empty_state(road: Road) -> None:
    road.publish(*[said("hello", number) for number in range(4)])
    road.work()
    _wipe(road)
    road.publish(said("hello", 4))

    worker = road.work(redis={"missing_watermark": "continue"})

    assert outcomes(worker) == {"scored": 1}


def test_a_changed_number_of_partitions_is_refused_unless_told(mock_road: Road) -> None:
    mock_road.publish(said("hello", 0))
    mock_road.work()
    mock_road.broker.delete_topic(mock_road.topics["chat_messages"])  # type: ignore[attr-defined]
    mock_road.broker.create_topic(mock_road.topics["chat_messages"], 5)

    with pytest.raises(ConfigurationError, match=r"5 partitions, but 3"):
        mock_road.work()


def test_edits_and_deletions_follow_the_message(mock_road: Road) -> None:
    mock_road.publish(said("BAD", 0), said("BAD", 1))
    edited = said("GOOD", 1, type="chat.message.edited")
    mock_road.publish({**edited, "created_at": "2026-09-21T14:16:00Z"})
    deleted = {**said("", 0, type="chat.message.deleted"), "created_at": "2026-09-21T14:16:10Z"}
    mock_road.publish(deleted)

    mock_road.work()

    state = mock_road.final_states()[("shop", "c1")]
    assert state["rolling"]["score"] > 0
    assert state["rolling"]["window_n"] == 1


def test_the_dead_letter_switch_keeps_only_the_hash(mock_road: Road) -> None:
    mock_road.publish_raw(b"a customer's words, but no JSON", b"k")
    mock_road.work(output={"dead_letter_bodies": False})
    [letter] = mock_road.read("dead_letters")
    assert letter.headers["__dlq.body"] == "sha256"
    assert b"words" not in (letter.value or b"")


def _wipe(road: Road) -> None:
    import redis

    with redis.Redis.from_url(road.redis_url) as client:
        client.flushall()


def _until(condition: Any, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.05)


def test_a_correction_is_told_in_the_scored_event_and_counts_in_the_state(mock_road: Road) -> None:
    mock_road.publish(said("GOOD, thanks for nothing", 0), said("GOOD, thanks for coming", 1))
    mock_road.publish_reviews(review("GOOD", rating=1))

    mock_road.work(corrections={"rules": {"thanks-sarcastic": True, "rating-panned": True}})

    scored = {record.json().get("message_id"): record.json() for record in mock_road.read("scored")}
    sarcastic, plain = scored["c1-m0"], scored["c1-m1"]
    (correction,) = sarcastic["corrections"]
    assert correction["rule_id"] == "thanks-sarcastic"
    assert correction["before"] == {"label": "positive", "score": 0.85, "emotion": "joy"}
    assert correction["after"] == {"label": "negative", "score": -0.85, "emotion": "anger"}
    assert (sarcastic["sentiment"]["label"], sarcastic["emotion"]["label"]) == ("negative", "anger")
    assert sarcastic["rolling"]["score"] < 0
    assert plain["corrections"] == []
    assert plain["corrections_version"] == sarcastic["corrections_version"] != "off"
    # WordScorer is sure of itself: the rating changes nothing, and the disagreement is told.
    assert (scored[None]["corrections"], scored[None]["rating_text_disagreement"]) == ([], True)


def test_a_scored_event_says_what_an_unhappy_message_is_about(mock_road: Road) -> None:
    mock_road.publish(
        said("BAD courier, the parcel is lost", 0), said("where is my parcel, courier?", 1), said("BAD", 2)
    )
    mock_road.work()
    told = {record.json()["message_id"]: record.json()["complaint"] for record in mock_road.read("scored")}
    assert told == {"c1-m0": {"category": "logistics", "confidence": None}, "c1-m1": None, "c1-m2": None}
