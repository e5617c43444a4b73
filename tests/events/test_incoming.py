"""What each kind of input gets: an event, a skip, or a dead letter with its reason."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_sentiment.events.incoming import Decoded, InvalidEvent, InvalidReason, Skip, SkippedReason, decode
from stream_sentiment.testing.events import chat_message, conversation_event, encode, review

LIMIT = 256 * 1024
GOOD: dict[str, Any] = {**chat_message(), "attributes": {"queue": "vip"}, "sequence": 3}


def changed(**fields: Any) -> bytes:
    """The good message with other fields; `...` removes one."""
    event = {**GOOD, **fields}
    return encode({name: value for name, value in event.items() if value is not ...})


INVALID: list[tuple[str, bytes, InvalidReason, str]] = [
    ("nothing at all", b"", InvalidReason.JSON, "no JSON"),
    ("plain words", b"hello", InvalidReason.JSON, "no JSON"),
    ("JSON cut short", changed()[:40], InvalidReason.JSON, "no JSON"),
    ("JSON with something behind", changed() + b"{}", InvalidReason.JSON, "no JSON"),
    ("a JSON list", b"[1, 2]", InvalidReason.JSON, "no object"),
    ("a JSON null", b"null", InvalidReason.JSON, "no object"),
    ("a JSON string", b'"text"', InvalidReason.JSON, "no object"),
    ("nesting without end", b'{"a":' * 3000, InvalidReason.JSON, "no JSON"),
    ("a byte order mark", b"\xef\xbb\xbf" + changed(), InvalidReason.JSON, "no JSON"),
    ("a lone surrogate", changed(text="X").replace(b'"X"', b'"\\ud800"'), InvalidReason.JSON, "no JSON"),
    ("no UTF-8", changed(text="X").replace(b'"X"', b'"\xff\xfe"'), InvalidReason.ENCODING, "no UTF-8"),
    ("UTF-16", '{"tenant_id":"a"}'.encode("utf-16-le"), InvalidReason.JSON, "no JSON"),
    ("a schema registry's frame", b"\x00\x00\x00\x00\x07" + changed(), InvalidReason.FRAMING, "schema registry"),
    ("too many bytes", changed(text="x" * LIMIT), InvalidReason.TOO_LARGE, "at most 262144"),
    ("no tenant", changed(tenant_id=...), InvalidReason.SCHEMA, "tenant_id"),
    ("an empty tenant", changed(tenant_id=""), InvalidReason.SCHEMA, "tenant_id"),
    ("a numeric tenant", changed(tenant_id=7), InvalidReason.SCHEMA, "tenant_id"),
    ("no conversation", changed(conversation_id=...), InvalidReason.SCHEMA, "conversation_id"),
    ("an id of 513 characters", changed(message_id="m" * 513), InvalidReason.SCHEMA, "message_id"),
    ("no message id", changed(message_id=...), InvalidReason.SCHEMA, "message_id"),
    ("no sender", changed(sender=...), InvalidReason.SCHEMA, "sender"),
    ("an unknown role", changed(sender={"role": "king"}), InvalidReason.SCHEMA, "sender.role"),
    ("an unknown channel", changed(channel="fax"), InvalidReason.SCHEMA, "channel"),
    ("no text", changed(text=...), InvalidReason.SCHEMA, "text"),
    ("a numeric text", changed(text=5), InvalidReason.SCHEMA, "text"),
    ("no time", changed(created_at=...), InvalidReason.SCHEMA, "created_at"),
    ("a time without a zone", changed(created_at="2026-11-22T06:28:21"), InvalidReason.SCHEMA, "created_at"),
    ("a date", changed(created_at="2026-11-22"), InvalidReason.SCHEMA, "created_at"),
    ("seconds since the epoch", changed(created_at=1_795_000_000), InvalidReason.SCHEMA, "created_at"),
    ("seconds as a string", changed(created_at="1795000000"), InvalidReason.SCHEMA, "created_at"),
    ("the 30th of February", changed(created_at="2026-02-30T00:00:00Z"), InvalidReason.SCHEMA, "no such date"),
    ("the year 1", changed(created_at="0001-01-01T00:00:00+14:00"), InvalidReason.SCHEMA, "1970"),
    ("the year 9999", changed(created_at="9999-12-31T23:59:59Z"), InvalidReason.SCHEMA, "2200"),
    ("a nested attribute", changed(attributes={"a": {"b": 1}}), InvalidReason.SCHEMA, "nested"),
    ("a listed attribute", changed(attributes={"a": [1]}), InvalidReason.SCHEMA, "nested"),
    ("65 attributes", changed(attributes={str(n): n for n in range(65)}), InvalidReason.SCHEMA, "more than 64"),
    ("a long attribute", changed(attributes={"a": "x" * 1025}), InvalidReason.SCHEMA, "1024"),
    ("a long attribute name", changed(attributes={"a" * 129: 1}), InvalidReason.SCHEMA, "128"),
    ("attributes as a list", changed(attributes=[1]), InvalidReason.SCHEMA, "attributes"),
    ("not a number", changed().replace(b'"queue":"vip"', b'"queue":NaN'), InvalidReason.SCHEMA, "finite"),
    ("a negative sequence", changed(sequence=-1), InvalidReason.SCHEMA, "sequence"),
    ("a fractional sequence", changed(sequence=1.5), InvalidReason.SCHEMA, "sequence"),
    ("a huge sequence", changed(sequence=2**63), InvalidReason.SCHEMA, "sequence"),
    ("an unknown phase", changed(phase="asleep"), InvalidReason.SCHEMA, "phase"),
    (
        "an old CloudEvent",
        encode({"specversion": "0.3", "type": "chat.message.created", "data": GOOD}),
        InvalidReason.UNSUPPORTED_VERSION,
        "0.3",
    ),
    ("a CloudEvent without type", encode({"specversion": "1.0", "data": GOOD}), InvalidReason.SCHEMA, "type"),
    (
        "a CloudEvent in base64",
        encode({"specversion": "1.0", "type": "chat.message.created", "data_base64": "e30="}),
        InvalidReason.SCHEMA,
        "data_base64",
    ),
    (
        "a CloudEvent around a list",
        encode({"specversion": "1.0", "type": "chat.message.created", "data": [1]}),
        InvalidReason.SCHEMA,
        "data",
    ),
]


@pytest.mark.parametrize(("value", "reason", "hint"), [case[1:] for case in INVALID], ids=[case[0] for case in INVALID])
def test_a_broken_record_is_refused_with_the_reason(value: bytes, reason: InvalidReason, hint: str) -> None:
    with pytest.raises(InvalidEvent) as caught:
        decode("chat", value, {}, LIMIT)
    assert caught.value.reason is reason
    assert hint in caught.value.detail


def test_a_refusal_names_every_wrong_field_and_no_text() -> None:
    with pytest.raises(InvalidEvent) as caught:
        decode("chat", changed(channel="fax", sequence="one", text=["my card is 4111"]), {}, LIMIT)
    assert "channel" in caught.value.detail
    assert "sequence" in caught.value.detail
    assert "4111" not in caught.value.detail


def test_a_compressed_body_is_refused() -> None:
    with pytest.raises(InvalidEvent) as caught:
        decode("chat", changed(), {"content-encoding": b"gzip"}, LIMIT)
    assert caught.value.reason is InvalidReason.CONTENT_ENCODING


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (None, {}, SkippedReason.TOMBSTONE),
        (changed(type="chat.typing.started"), {}, SkippedReason.UNSUPPORTED_EVENT_TYPE),
        (b'{"type": "chat.typing.started"}', {}, SkippedReason.UNSUPPORTED_EVENT_TYPE),
        (b'{"who": "me"}', {"ce_type": b"chat.typing.started"}, SkippedReason.UNSUPPORTED_EVENT_TYPE),
        (encode({"specversion": "1.0", "type": "chat.message.created"}), {}, SkippedReason.TOMBSTONE),
    ],
    ids=["tombstone", "unknown type", "unknown type with foreign fields", "unknown type in a header", "no data"],
)
def test_a_record_that_asks_for_nothing_is_skipped(
    value: bytes | None, headers: dict[str, bytes], reason: SkippedReason
) -> None:
    assert decode("chat", value, headers, LIMIT) == Skip(reason)


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (changed(type="com.acme.chat.message.edited"), {}),
        (changed(), {"ce_specversion": b"1.0", "ce_type": b"com.acme.chat.message.edited"}),
        (
            encode({"specversion": "1.0", "id": "1", "source": "/x", "type": "chat.message.edited", "data": GOOD}),
            {"content-type": b"application/cloudevents+json; charset=utf-8"},
        ),
        (encode({"specversion": "1.0", "id": "1", "source": "/x", "type": "chat.message.edited", "data": GOOD}), {}),
    ],
    ids=["bare", "binary", "structured", "structured without its header"],
)
def test_the_three_envelopes_say_the_same(value: bytes, headers: dict[str, bytes]) -> None:
    decoded = decode("chat", value, headers, LIMIT)
    assert isinstance(decoded, Decoded)
    assert decoded.kind == "edited"
    assert decoded.event.tenant_id == "shop"


def test_a_message_without_type_was_created() -> None:
    decoded = decode("chat", changed(), {}, LIMIT)
    assert isinstance(decoded, Decoded)
    assert decoded.kind == "created"


def test_unknown_fields_are_ignored_and_null_attributes_are_absent() -> None:
    decoded = decode("chat", changed(brand_new={"a": 1}, attributes={"queue": None, "tier": "vip"}), {}, LIMIT)
    assert isinstance(decoded, Decoded)
    assert decoded.event.attributes == {"tier": "vip"}


@pytest.mark.parametrize(
    "written",
    [
        "2026-11-22T06:28:21Z",
        "2026-11-22T06:28:21.000Z",
        "2026-11-22t06:28:21z",
        "2026-11-22T14:28:21+08:00",
        "2026-11-22T06:28:21.000000001Z",
    ],
)
def test_one_moment_is_one_number_however_it_is_written(written: str) -> None:
    decoded = decode("chat", changed(created_at=written), {}, LIMIT)
    assert isinstance(decoded, Decoded)
    assert decoded.at_ms == 1_795_328_901_000


def test_conversation_events_need_neither_sender_nor_text() -> None:
    for kind in ("started", "transferred", "ended"):
        decoded = decode("chat", encode(conversation_event(kind)), {}, LIMIT)
        assert isinstance(decoded, Decoded)
        assert decoded.kind == kind


def test_a_deletion_needs_the_message_id_only() -> None:
    decoded = decode("chat", changed(type="chat.message.deleted", sender=..., text=...), {}, LIMIT)
    assert isinstance(decoded, Decoded)
    assert decoded.kind == "deleted"


def test_a_review_is_read_and_its_rating_bounded() -> None:
    decoded = decode("review", encode(review(rating=2)), {}, LIMIT)
    assert isinstance(decoded, Decoded)
    with pytest.raises(InvalidEvent, match="rating"):
        decode("review", encode(review(rating=6)), {}, LIMIT)


@given(st.binary(max_size=300))
def test_no_bytes_do_anything_but_pass_or_be_refused(value: bytes) -> None:
    with contextlib.suppress(InvalidEvent):
        decode("chat", value, {}, LIMIT)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers(-(2**60), 2**60) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "type", "specversion", "data", "phase"]), json_values))
def test_no_value_of_any_field_does_anything_but_pass_or_be_refused(fields: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidEvent):
        assert isinstance(decode("chat", orjson.dumps({**GOOD, **fields}), {}, LIMIT), Decoded | Skip)
