"""What reaches a log store, and what never does."""

from __future__ import annotations

import io
import json
import logging
import threading
from typing import Any

import confluent_kafka
import pydantic
import pytest

from stream_sentiment.observability.logs import RateLimit, configure_logging, conv_hash, get_logger, kafka_logger
from stream_sentiment.observability.masking import MAX_CHARACTERS, mask


class Output(io.StringIO):
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def output() -> Output:
    written = Output()
    configure_logging("info", output=written, worker_id="worker-0")
    return written


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail li.wei+shop@example.com now", "mail <email> now"),
        ("call 13812345678", "call <phone>"),
        ("call +86 138 1234 5678", "call <phone>"),
        ("call +44 20 7946 0958", "call <phone>"),
        ("call (555) 010-9999", "call <phone>"),
        ("card 4111 1111 1111 1111", "card <card>"),
        ("card 6212345678901232", "card <card>"),
        ("iban DE89 3704 0044 0532 0130 00", "iban <iban>"),
        ("id 11010519491231002X", "id <id-number>"),
        ("Authorization: Bearer abcdef.123456", "Authorization: <token>"),
        ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "jwt <token>"),
        ("redis://worker:hunter2@redis:6379/0", "redis://<credentials>@redis:6379/0"),
        ("sasl.password=hunter2, next", "sasl.password=<secret>, next"),
        ('{"client_secret": "hunter2"}', '{"client_secret": <secret>}'),
        ("-----BEGIN PRIVATE KEY-----\nMIIE", "<key>"),
        ("input_value='我要投诉', input_type=str", "input_value=<dropped>, input_type=str"),
    ],
)
def test_personal_data_and_credentials_are_masked(text: str, masked: str):
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "offset 1234567890123456 of chat.messages[3]",
        "timestamp 1763793600123",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "uuid 6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "127.0.0.1:9092 refused",
        "version 1.31.1 of 2026-11-22T06:00:00.000Z",
    ],
)
def test_offsets_hashes_addresses_and_times_stay_readable(text: str):
    assert mask(text) == text


def test_a_long_string_is_cut_and_says_how_long_it_was():
    assert mask("x" * 1_000_000) == "x" * MAX_CHARACTERS + "... (1000000 characters)"


def test_a_line_is_one_json_object_with_time_level_event_component_and_worker(output: Output):
    get_logger("poll").info("partitions_assigned", topic="chat.messages", partitions=[0, 3])
    (line,) = output.lines()
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "info",
        "event": "partitions_assigned",
        "worker_id": "worker-0",
        "component": "poll",
        "topic": "chat.messages",
        "partitions": [0, 3],
    }


def test_fields_that_may_hold_a_message_are_dropped_at_any_depth(output: Output):
    get_logger("decode").warning(
        "refused", text="我要投诉", value=b"secret", record={"body": "hello", "offset": 7}, size=3
    )
    (line,) = output.lines()
    assert line["text"] == "<dropped>"
    assert line["value"] == "<dropped>"
    assert line["record"] == {"body": "<dropped>", "offset": 7}
    assert line["size"] == 3


def test_a_conversation_id_becomes_a_hash_that_tells_tenants_apart(output: Output):
    get_logger("apply").info("escalated", tenant_id="shop-1", conversation_id="c-42")
    (line,) = output.lines()
    assert "conversation_id" not in line
    assert line["conv_hash"] == conv_hash("shop-1", "c-42")
    assert len(line["conv_hash"]) == 12
    assert conv_hash("shop-1", "c-42") != conv_hash("shop-1c", "-42")


def test_hashes_of_two_workers_agree_only_with_a_common_key():
    configure_logging(output=io.StringIO(), hash_key=b"k" * 32)
    one = conv_hash("shop", "c-1")
    configure_logging(output=io.StringIO(), hash_key=b"k" * 32)
    assert conv_hash("shop", "c-1") == one
    configure_logging(output=io.StringIO(), hash_key=b"other" * 8)
    assert conv_hash("shop", "c-1") != one


def test_an_exception_gives_its_type_masked_message_and_frames_without_values(output: Output):
    local_secret = "hunter2"
    try:
        raise ConnectionError(f"redis://worker:{local_secret}@10.0.0.1:6379 refused")
    except ConnectionError:
        get_logger("store").exception("redis_failed")
    (line,) = output.lines()
    assert line["error_type"] == "ConnectionError"
    assert line["error"] == "redis://<credentials>@10.0.0.1:6379 refused"
    assert line["trace"][-1].endswith("test_an_exception_gives_its_type_masked_message_and_frames_without_values")
    assert "hunter2" not in output.getvalue()


def test_a_pydantic_error_does_not_quote_the_customer(output: Output):
    class Event(pydantic.BaseModel):
        at: int

    try:
        Event.model_validate({"at": "这个客服太差了"})
    except pydantic.ValidationError:
        get_logger("decode").warning("invalid_event", exc_info=True)
    assert "客服" not in output.getvalue()
    assert "input_value=<dropped>" in output.lines()[0]["error"]


def test_a_fault_that_repeats_is_written_in_a_burst_then_once_a_second_with_the_number_left_out():
    seconds = [0.0]
    suppressed: list[str] = []
    limit = RateLimit(per_second=1, burst=2, now=lambda: seconds[0], on_suppressed=suppressed.append)
    assert [limit.take("redis_failed", "timeout") for _ in range(5)] == [0, 0, None, None, None]
    assert limit.take("redis_failed", "readonly") == 0
    seconds[0] = 1.0
    assert limit.take("redis_failed", "timeout") == 3
    assert suppressed == ["redis_failed"] * 3


def test_a_storm_of_lines_is_cut_and_the_next_line_says_so(output: Output):
    for _ in range(50):
        get_logger("store").warning("redis_failed", reason="timeout")
    assert len(output.lines()) == 5


def test_lines_below_the_level_are_not_written():
    written = Output()
    configure_logging("warning", output=written)
    get_logger("poll").info("quiet")
    get_logger("poll").warning("loud")
    assert [line["event"] for line in written.lines()] == ["loud"]


def test_a_thread_that_dies_leaves_one_masked_line(output: Output):
    def work() -> None:
        raise KeyError("li.wei@example.com")

    thread = threading.Thread(target=work, name="apply")
    thread.start()
    thread.join()
    (line,) = output.lines()
    assert (line["event"], line["reason"], line["error"]) == ("thread_died", "apply", "'<email>'")


def test_lines_of_other_libraries_take_the_same_road(output: Output):
    logging.getLogger("redis.sentinel").error("no master at redis://u:p@h:1")
    (line,) = output.lines()
    assert line["detail"] == "no master at redis://<credentials>@h:1"
    assert line["component"] == "redis.sentinel"


def test_librdkafka_speaks_through_our_logger_with_its_facility_as_the_reason(output: Output):
    producer = confluent_kafka.Producer({"bootstrap.servers": "127.0.0.1:1"}, logger=kafka_logger("producer"))
    for _ in range(50):
        producer.poll(0.1)
        if output.getvalue():
            break
    line = output.lines()[0]
    assert line["component"] == "librdkafka.producer"
    assert line["reason"] == "FAIL"
    assert "127.0.0.1:1" in line["detail"]
