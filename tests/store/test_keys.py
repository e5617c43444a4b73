from __future__ import annotations

import hashlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.store.keys import (
    PartitionKeys,
    TopicPartition,
    conversation_key,
    encode_part,
    outbox_field,
    outbox_order,
    split_conversation_key,
    tick_field,
)

# Mostly short, sometimes beyond the length that is hashed. No deadline: CI machines are busy.
anything = st.text(max_size=20) | st.builds(
    lambda text, times: text * times, st.text(min_size=1, max_size=5), st.integers(1, 300)
)


@pytest.mark.parametrize(
    ("tenant", "conversation", "key"),
    [
        ("acme", "c-2026-11-22.17", "acme|c-2026-11-22.17"),
        ("京东", "会话_0001", "京东|会话_0001"),
        ("магазин", "zaloguj-łódź", "магазин|zaloguj-łódź"),
        ("a|b", "c", "a%7Cb|c"),
        ("a", "b|c", "a|b%7Cc"),
        ("{x}", "y\n", "%7Bx%7D|y%0A"),
        ("50%", "~tilde", "50%25|%7Etilde"),
        ("", "", "%|%"),
        ("a b", "c:d", "a%20b|c%3Ad"),
        ("emoji", "🙂", "emoji|%F0%9F%99%82"),
        ("bidi", "\u202eevil", "bidi|%E2%80%AEevil"),
        ("nul", "\x00", "nul|%00"),
    ],
)
def test_a_conversation_key_reads_like_its_ids_and_escapes_what_would_break_it(
    tenant: str, conversation: str, key: str
) -> None:
    assert conversation_key(tenant, conversation) == key
    assert split_conversation_key(key) == (tenant, conversation)


@settings(deadline=None)
@given(anything, anything)
@example("a|b", "c")
@example("%7C", "|")
@example("%", "")
def test_a_key_gives_its_ids_back_or_says_that_it_kept_only_a_hash(tenant: str, conversation: str) -> None:
    parts = split_conversation_key(conversation_key(tenant, conversation))
    for part, original in zip(parts, (tenant, conversation), strict=True):
        assert part == original or (part is None and len(encode_part(original)) == 65)


@settings(deadline=None)
@given(st.tuples(anything, anything), st.tuples(anything, anything))
@example(("a", "b|c"), ("a|b", "c"))
@example(("a", ""), ("a|", ""))
def test_two_conversations_never_share_a_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (conversation_key(*one) == conversation_key(*other)) == (one == other)


@settings(deadline=None)
@given(anything, anything)
def test_a_key_is_one_short_line_without_braces(tenant: str, conversation: str) -> None:
    key = conversation_key(tenant, conversation)
    assert not set(key) & set("{} \n\r\t\x00\"'\\:")
    assert key.count("|") == 1
    assert len(key.encode()) <= 2 * 256 + 1


def test_an_id_of_ten_thousand_characters_is_kept_as_its_hash() -> None:
    long = "会" * 10_000
    digest = hashlib.sha256(long.encode()).hexdigest()
    assert conversation_key("acme", long) == f"acme|~{digest}"
    assert split_conversation_key(f"acme|~{digest}") == ("acme", None)
    assert conversation_key("acme", f"~{digest}") == f"acme|%7E{digest}"


def test_256_bytes_is_the_longest_id_that_stays_readable() -> None:
    assert encode_part("x" * 256) == "x" * 256
    assert encode_part("x" * 257) == "~" + hashlib.sha256(b"x" * 257).hexdigest()
    assert encode_part("会" * 85) == "会" * 85
    assert encode_part("会" * 86).startswith("~")


def test_all_keys_of_a_partition_share_one_hash_tag() -> None:
    keys = PartitionKeys("ss", "sentiment:eu")
    tp = TopicPartition("chat.messages", 11)
    assert keys.meta(tp) == "ss:{sentiment:eu:chat.messages:11}:meta"
    assert keys.outbox(tp) == "ss:{sentiment:eu:chat.messages:11}:outbox"
    assert keys.conversation(tp, "a|b") == "ss:{sentiment:eu:chat.messages:11}:c:a|b"


@pytest.mark.parametrize("name", ["with{brace", "with}brace", "new\nline", ""])
def test_a_group_or_prefix_that_breaks_the_hash_tag_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"rename it|give it a name"):
        PartitionKeys("ss", name)
    with pytest.raises(ConfigurationError, match=r"rename it|give it a name"):
        PartitionKeys(name, "group")


def test_outbox_entries_sort_by_offset_then_number_and_an_erasure_before_the_event_at_its_watermark() -> None:
    fields = [outbox_field(10, 0), outbox_field(9, 11), outbox_field(9, 2), "10:e:0b5c-77:0", "10:e:0b5c-77:1"]
    assert sorted(fields, key=outbox_order) == ["9:2", "9:11", "10:e:0b5c-77:0", "10:e:0b5c-77:1", "10:0"]


def test_timers_come_in_the_order_in_which_they_fell_due_after_older_events_and_before_an_erasure() -> None:
    late, early = tick_field(10, 1_790_000_000_000, 0, "b"), tick_field(10, 999, 1, "a")
    same = tick_field(10, 999, 2, "c")
    fields = [outbox_field(10, 0), "10:e:x:0", late, same, early, outbox_field(9, 3)]
    assert sorted(fields, key=outbox_order) == ["9:3", early, same, late, "10:e:x:0", "10:0"]
