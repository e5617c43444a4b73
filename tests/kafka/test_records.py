"""Dead letters and outbox entries as bytes: what is kept of a record, and that nothing is lost on the way through Redis."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_sentiment.kafka.dead_letter import ErrorClass, dead_letter, dead_letter_id
from stream_sentiment.kafka.outbox_record import OutboxRecord
from stream_sentiment.outbox import shrink

raw = st.binary(max_size=60)
headers = st.lists(st.tuples(st.text(min_size=1, max_size=8), raw), max_size=4)


def letter(**changes: object) -> OutboxRecord:
    fields: dict[str, object] = {
        "topic": "chat.messages",
        "partition": 3,
        "offset": 41,
        "timestamp_ms": 1_790_000_000_000,
        "key": b"shop|c1",
        "value": b"\xff broken",
        "headers": [("traceparent", b"00-1-2-01"), ("nothing", None)],
        "error_class": ErrorClass.DECODE,
        "error_message": "the value is no UTF-8",
        "attempts": 1,
        "failed_at_ms": 1_790_000_001_000,
        "keep_body": True,
    }
    return dead_letter("sentiment.dlq", **(fields | changes))  # type: ignore[arg-type]


def marks(record: OutboxRecord) -> dict[str, str]:
    return {name: value.decode() for name, value in record.headers}


@given(st.text(max_size=20), st.none() | raw, raw, headers)
def test_a_record_comes_out_of_the_outbox_as_it_went_in(
    topic: str, key: bytes | None, value: bytes, header_list: list[tuple[str, bytes]]
) -> None:
    record = OutboxRecord(topic, key, value, header_list)
    assert OutboxRecord.decode(record.encode()) == record


def test_an_outbox_entry_can_be_read_by_a_person() -> None:
    encoded = OutboxRecord("escalation.events", b"shop|c1", '{"reason":"退款"}'.encode(), [("ce_id", b"1")]).encode()
    assert "退款" in encoded.decode()


@pytest.mark.parametrize("entry", [b"", b"{}", b"[]", b"\xff", b'{"topic": 1, "key": {"base64": "*"}}'])
def test_a_foreign_outbox_entry_is_an_error_that_the_outbox_knows(entry: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        OutboxRecord.decode(entry)


def test_a_dead_letter_keeps_the_bytes_and_says_where_from() -> None:
    record = letter()
    assert record.value == b"\xff broken"
    assert record.key == b"shop|c1"
    found = marks(record)
    assert found["traceparent"] == "00-1-2-01"
    assert found["__dlq.topic"] == "chat.messages"
    assert found["__dlq.partition"] == "3"
    assert found["__dlq.offset"] == "41"
    assert found["__dlq.error.class"] == "decode"
    assert found["__dlq.body"] == "original"
    assert found["__dlq.timestamp"] == "2026-09-21T14:13:20.000Z"


def test_a_dead_letters_id_depends_on_its_place_alone() -> None:
    assert marks(letter())["__dlq.id"] == marks(letter(error_message="other", failed_at_ms=5))["__dlq.id"]
    assert dead_letter_id("t", 1, 23) != dead_letter_id("t", 12, 3)


def test_what_is_too_large_or_may_not_be_kept_leaves_its_hash() -> None:
    for record in (letter(keep_body=False), letter(error_class=ErrorClass.TOO_LARGE)):
        body = orjson.loads(record.value)
        assert body["bytes"] == 8
        assert len(body["sha256"]) == 64
        assert marks(record)["__dlq.body"] == "sha256"


def test_foreign_headers_are_bounded_and_cannot_pose_as_ours() -> None:
    many = [(f"h{number}", b"x") for number in range(100)]
    record = letter(headers=[("__dlq.topic", b"forged"), ("big", b"x" * 2000), *many])
    found = marks(record)
    assert found["__dlq.topic"] == "chat.messages"
    assert "big" not in found
    assert sum(name.startswith("h") for name in found) <= 32


def test_a_dead_letter_that_its_topic_refuses_shrinks_to_the_hash() -> None:
    small = shrink(letter(), "sentiment.dlq")
    assert orjson.loads(small.value)["bytes"] == 8
    assert marks(small)["__dlq.id"] == marks(letter())["__dlq.id"]
    assert "traceparent" not in marks(small)


def test_an_escalation_that_its_topic_refuses_goes_without_evidence() -> None:
    value = orjson.dumps({"escalation_id": "e", "evidence": [{"message_id": "m"}]})
    small = shrink(OutboxRecord("escalation.events", b"k", value, [("ce_id", b"e.1")]), "sentiment.dlq")
    assert orjson.loads(small.value) == {"escalation_id": "e", "evidence": [], "evidence_omitted": True}
    assert small.event_id() == "e.1"
