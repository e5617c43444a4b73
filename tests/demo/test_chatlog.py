"""The conversations that come along, and a user's own chat log."""

import re

import orjson
import pytest

from stream_sentiment.demo.chatlog import ChatLogError, bundled, read_chat_log
from stream_sentiment.demo.player import schedule
from stream_sentiment.events.incoming import Decoded, InvalidEvent, decode

END_MS = 1_767_600_000_000  # 2026-01-05T08:00:00Z


def lines(*rows: object) -> list[bytes]:
    return [row if isinstance(row, bytes) else orjson.dumps(row) for row in rows]


def event(**fields: object) -> dict[str, object]:
    return {
        "conversation_id": "c-1",
        "sender": {"role": "customer"},
        "text": "Where is my parcel?",
        "created_at": "2026-01-05T09:00:00Z",
        **fields,
    }


# What comes along


def test_the_floor_holds_both_languages_and_every_kind_of_ending() -> None:
    log = bundled()

    by_language = {code: sum(c.language == code for c in log.conversations) for code in ("zh", "en")}
    endings = {name: sum(c.expect == name for c in log.conversations) for name in ("calm", "recovers", "escalates")}

    assert by_language == {"zh": 24, "en": 23}
    assert endings == {"calm": 18, "recovers": 6, "escalates": 23}
    assert len(log.reviews) == 20
    assert len(log.broken) == 6


def test_conversation_ids_are_unique_and_times_never_go_back() -> None:
    conversations = bundled().conversations

    assert len({c.conversation_id for c in conversations}) == len(conversations)
    for conversation in conversations:
        offsets = [line.offset_s for line in conversation.lines]
        assert offsets == sorted(offsets), conversation.conversation_id


def test_every_bundled_event_is_accepted_by_the_contract() -> None:
    for record in schedule(bundled(), END_MS):
        if record.event is not None:
            assert isinstance(decode(record.topic_kind, record.value, {}, 1 << 18), Decoded), record.value


def test_every_broken_record_is_refused_by_the_contract() -> None:
    reasons = []
    for broken in bundled().broken:
        with pytest.raises(InvalidEvent) as caught:
            decode(broken.topic_kind, broken.value, {}, 1 << 18)
        reasons.append(str(caught.value.reason))

    assert sorted(reasons) == ["encoding", "json", "schema", "schema", "schema", "schema"]


def test_the_conversations_hold_nothing_that_looks_like_personal_data() -> None:
    looks_personal = re.compile(r"\d{11}|[\w.]+@[\w.]+|\+\d{2}[\d ]{7,}|\d{4}[ -]\d{4}[ -]\d{4}|https?://")

    for conversation in bundled().conversations:
        for line in conversation.lines:
            text = str(line.event.get("text", ""))
            assert looks_personal.search(text) is None, text


def test_a_language_can_be_chosen() -> None:
    log = bundled("zh")

    assert {c.language for c in log.conversations} == {"zh"}
    assert {review["language"] for review in log.reviews} == {"zh"}


def test_an_edit_and_a_deletion_name_the_message_that_they_change() -> None:
    by_id = {c.conversation_id: c for c in bundled().conversations}

    edit = by_id["en-edit-typo"].lines[1].event
    deletion = by_id["zh-delete-regret"].lines[1].event

    assert (edit["type"], edit["message_id"]) == ("chat.message.edited", "en-edit-typo-m0")
    assert edit["text"] == "Hi, is the blue backpack back in stock?"
    assert (deletion["type"], deletion["message_id"]) == ("chat.message.deleted", "zh-delete-regret-m0")


# A user's log


def test_events_are_grouped_by_conversation_and_keep_their_own_fields() -> None:
    log = read_chat_log(
        lines(
            event(tenant_id="acme", message_id="m-1", attributes={"queue": "vip"}),
            event(conversation_id="c-2", tenant_id="acme", text="Hello"),
            event(tenant_id="acme", role="agent", sender={"role": "agent"}, created_at="2026-01-05T09:01:30Z"),
        ),
        "chats.jsonl",
    )

    assert [c.conversation_id for c in log.conversations] == ["c-1", "c-2"]
    first = log.conversations[0]
    assert [line.offset_s for line in first.lines] == [0.0, 90.0]
    assert first.lines[0].event == {
        "tenant_id": "acme",
        "channel": "web_chat",
        "conversation_id": "c-1",
        "message_id": "m-1",
        "sender": {"role": "customer"},
        "text": "Where is my parcel?",
        "created_at": "2026-01-05T09:00:00Z",
        "attributes": {"queue": "vip"},
    }


def test_the_least_that_is_needed_is_conversation_role_and_text() -> None:
    log = read_chat_log(lines({"conversation_id": "c-1", "role": "customer", "text": "hello"}), "chats.jsonl")

    [record] = schedule(log, END_MS)
    assert isinstance(decode("chat", record.value, {}, 1 << 18), Decoded)
    assert record.key == "demo|c-1"


def test_a_whole_conversation_may_stand_on_one_line() -> None:
    row = {"id": "c-9", "messages": [{"role": "customer", "text": "hi"}, {"role": "agent", "text": "hello"}]}

    log = read_chat_log(lines(row), "chats.jsonl")

    [conversation] = log.conversations
    assert [line.event["message_id"] for line in conversation.lines] == ["c-9-m0", "c-9-m1"]
    assert [line.offset_s for line in conversation.lines] == [0.0, 20.0]


def test_a_cloud_event_is_unwrapped_and_keeps_its_type() -> None:
    ended = {
        "specversion": "1.0",
        "id": "1",
        "source": "/chat",
        "type": "com.example.chat.conversation.ended",
        "data": {"conversation_id": "c-1", "tenant_id": "t", "created_at": "2026-01-05T09:00:00Z"},
    }

    log = read_chat_log(lines(event(tenant_id="t"), ended), "chats.jsonl")

    assert log.conversations[0].lines[1].event["type"] == "com.example.chat.conversation.ended"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "hi", "role": "customer"}, "line 1: conversation_id is missing"),
        ({"conversation_id": "c", "text": "hi"}, "line 1: sender.role is missing"),
        ({"conversation_id": "c", "role": "customer"}, "line 1: text is missing"),
        ({}, "line 1: conversation_id, sender.role, text are missing"),
        (event(created_at="2026-01-05 09:00:00"), "line 1: created_at is no RFC 3339 time with a zone"),
        (event(created_at=1767600000), "line 1: created_at is no RFC 3339 time with a zone"),
        ({"messages": []}, "line 1: messages is no list of messages"),
        ({"messages": [{"role": "customer", "text": "a"}, {"text": "b"}]}, "line 1: messages[1].role is missing"),
        (
            {"messages": [{"kind": "edited", "refers_to": 3, "role": "customer", "text": "b"}]},
            "line 1: messages[0].refers_to (the index of an earlier message) is missing",
        ),
        (
            {"messages": [{"role": "customer", "text": "a", "offset_s": "soon"}]},
            "line 1: messages[0].offset_s is no number of seconds",
        ),
        ({"product_id": "p", "rating": 1}, "line 1: text is missing"),
        (b"[1, 2]", "line 1: is JSON, but no object"),
        (b"10:02 customer: hello", "line 1: is not JSON"),
    ],
)
def test_a_file_that_cannot_be_played_says_which_fields_which_line_lacks(row: object, said: str) -> None:
    with pytest.raises(ChatLogError) as caught:
        read_chat_log(lines(row), "chats.jsonl")

    assert said in str(caught.value)
    assert '{"conversation_id": "c-1"' in str(caught.value)  # with an example
    assert int(caught.value.exit_status) == 1


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(ChatLogError, match="holds no line"):
        read_chat_log(lines(b"", b"  \n"), "chats.jsonl")


def test_a_few_bad_lines_among_good_ones_are_sent_on_as_dead_letters_and_named() -> None:
    log = read_chat_log(lines(event(), event(), b"oops", event()), "chats.jsonl")

    assert [broken.value for broken in log.broken] == [b"oops"]
    assert log.notes == ["chats.jsonl: sent as they are, and will be dead letters: line 3: is not JSON"]


def test_a_log_without_the_chosen_language_is_refused() -> None:
    with pytest.raises(ChatLogError, match="nothing in language 'zh'"):
        read_chat_log(lines(event(language="en-GB")), "chats.jsonl", language="zh")
