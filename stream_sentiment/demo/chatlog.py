"""Chat logs: the conversations that come along, and a user's own JSONL file.

In: lines of JSON, each one event of the topics or one whole conversation. Out: `ChatLog`, conversations with their events in order,
reviews, and records that are broken. Blocks on reading the file only. Raises `ChatLogError`, which names the missing fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from typing import Any, Final

import orjson

from stream_sentiment.errors import StreamSentimentError
from stream_sentiment.events.incoming import kind_of

#: Seconds between two messages of a log that has no times.
DEFAULT_GAP_S: Final = 20.0

#: Lines named in an error message; the rest is counted.
_SHOWN_PROBLEMS = 5

_NEEDS = """\
It needs JSON Lines: one object a line, either one event a line
  {"conversation_id": "c-1", "sender": {"role": "customer"}, "text": "Where is my parcel?", "created_at": "2026-01-05T09:00:00Z"}
or one conversation a line
  {"id": "c-1", "messages": [{"role": "customer", "text": "Where is my parcel?", "offset_s": 0}, {"role": "agent", "text": "..."}]}
Needed: conversation_id, sender.role (or role) and text; of a conversation: messages, each with role and text; of a review: product_id
and text. Roles: customer, agent, bot, system, supervisor. Optional: tenant_id, channel, message_id, language, created_at (RFC 3339
with a zone, such as 2026-01-05T09:00:00Z), offset_s (seconds since the conversation began), attributes."""


class ChatLogError(StreamSentimentError):
    """The file is no chat log that can be played."""


@dataclass(frozen=True, slots=True)
class Line:
    """One event of a conversation. `event` lacks `created_at` when the log has no times: the player fills it in."""

    offset_s: float  # since the conversation began; never less than the line before
    event: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation in the order in which its events were sent."""

    tenant_id: str
    conversation_id: str
    title: str
    language: str  # "" when the log does not say
    lines: tuple[Line, ...]
    expect: str = ""  # of ours: calm, recovers or escalates


@dataclass(frozen=True, slots=True)
class BrokenRecord:
    """A record that must become a dead letter."""

    topic_kind: str  # chat or review
    value: bytes
    why: str


@dataclass(slots=True)
class ChatLog:
    """Everything that the player sends."""

    conversations: list[Conversation] = field(default_factory=list)
    reviews: list[dict[str, Any]] = field(default_factory=list)
    broken: list[BrokenRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what a person should be told about the file


def bundled(language: str | None = None) -> ChatLog:
    """The chat floor that comes with the package: synthetic conversations, reviews and broken records; `language` is zh or en."""
    log = ChatLog()
    for number, row in enumerate(_packaged("conversations.jsonl"), 1):
        if language in (None, row["lang"]):
            log.conversations.append(_conversation(row, number))
    for row in _packaged("reviews.jsonl"):
        if language in (None, row["lang"]):
            log.reviews.append(_review(row, 0))
    for row in _packaged("poison.jsonl"):
        value = (
            bytes.fromhex(row["raw_hex"])
            if "raw_hex" in row
            else row["raw"].encode()
            if "raw" in row
            else orjson.dumps(row["event"])
        )
        kind = "review" if row["topic"] == "product.reviews" else "chat"
        log.broken.append(BrokenRecord(kind, value, row["why"]))
    return log


def read_chat_log(source: Iterable[bytes], name: str, language: str | None = None) -> ChatLog:
    """A user's log.

    Lines that lack a needed field are sent as they are, so that they end as dead letters and are counted; when half of the lines or
    more lack one, this is no chat log, and nothing is sent.

    Raises:
        ChatLogError: no line, or too many lines that cannot be used; the message names lines and fields, with an example.
    """
    log = ChatLog()
    events: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    problems: list[str] = []
    total = 0
    for number, raw in enumerate(source, 1):
        if not raw.strip():
            continue
        total += 1
        row, problem = _parse(raw.removeprefix(b"\xef\xbb\xbf"))
        if problem is None and language is not None and _language(row) not in ("", language):
            continue
        if problem is not None:
            problems.append(f"line {number}: {problem}")
            log.broken.append(BrokenRecord("chat", raw.strip(), problem))
        elif "messages" in row:
            log.conversations.append(_conversation(row, number))
        elif "review_id" in row or "product_id" in row:
            log.reviews.append(_review(row, number))
        else:
            key = (str(row.get("tenant_id", "demo")), str(row["conversation_id"]))
            events.setdefault(key, []).append((number, row))
    if total == 0:
        raise ChatLogError(f"{name} holds no line.\n{_NEEDS}")
    if 2 * len(problems) >= total:
        raise ChatLogError(f"{name} cannot be played: {_list(problems)}\n{_NEEDS}")
    if problems:
        log.notes.append(f"{name}: sent as they are, and will be dead letters: {_list(problems)}")
    log.conversations.extend(_grouped(key, rows) for key, rows in events.items())
    if not (log.conversations or log.reviews):
        raise ChatLogError(f"{name} holds nothing in language {language!r}")
    return log


def _packaged(filename: str) -> Iterator[dict[str, Any]]:
    text = resources.files("stream_sentiment.demo").joinpath(filename).read_bytes()
    return (orjson.loads(line) for line in text.splitlines() if line)


def _parse(raw: bytes) -> tuple[dict[str, Any], str | None]:
    """The row, and what it lacks. A CloudEvent in structured mode is unwrapped."""
    try:
        row = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}, "is not JSON"
    if not isinstance(row, dict):
        return {}, "is JSON, but no object"
    if "specversion" in row and isinstance(row.get("data"), dict):
        row = {"type": row.get("type"), **row["data"]}
    return row, _lacks(row)


def _lacks(row: dict[str, Any]) -> str | None:
    if "messages" in row:
        return _conversation_lacks(row["messages"])
    missing: list[str] = []
    if "review_id" in row or "product_id" in row:
        missing += [name for name in ("product_id", "text") if row.get(name) is None]
    else:
        kind = kind_of("chat", str(row.get("type") or "chat.message.created"))
        if row.get("conversation_id") in (None, ""):
            missing.append("conversation_id")
        if kind in {"created", "edited"}:
            sender = row.get("sender")
            if row.get("role") is None and not (isinstance(sender, dict) and sender.get("role")):
                missing.append("sender.role")
            if row.get("text") is None and str(row.get("content_type", "text/plain")).startswith("text/"):
                missing.append("text")
        if kind in {"edited", "deleted"} and row.get("message_id") is None:
            missing.append("message_id")
    if missing:
        return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    if row.get("created_at") is not None and _milliseconds(row["created_at"]) is None:
        return "created_at is no RFC 3339 time with a zone"
    return None


def _conversation_lacks(messages: object) -> str | None:
    if not isinstance(messages, list) or not messages:
        return "messages is no list of messages"
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            return f"messages[{index}] is no object"
        kind = message.get("kind", "created")
        is_text = kind in {"created", "edited"} and str(message.get("content_type", "text/plain")).startswith("text/")
        needed = ("role", "text") if is_text else ()
        missing = [f"messages[{index}].{name}" for name in needed if message.get(name) is None]
        if kind in {"edited", "deleted"} and message.get("refers_to") not in range(index):
            missing.append(f"messages[{index}].refers_to (the index of an earlier message)")
        offset_s = message.get("offset_s", 0)
        if not isinstance(offset_s, int | float) or offset_s != offset_s:
            return f"messages[{index}].offset_s is no number of seconds"
        if missing:
            return f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
    return None


def _conversation(row: dict[str, Any], number: int) -> Conversation:
    conversation_id = str(row.get("id") or row.get("conversation_id") or f"line-{number}")
    language = _language(row)
    common = {
        "tenant_id": str(row.get("tenant_id") or "demo"),
        "conversation_id": conversation_id,
        "channel": row.get("channel") or "web_chat",
    }
    lines: list[Line] = []
    at_s = -DEFAULT_GAP_S
    for index, message in enumerate(row["messages"]):
        at_s = max(float(message.get("offset_s", at_s + DEFAULT_GAP_S)), at_s, 0.0)
        kind = message.get("kind", "created")
        event: dict[str, Any] = dict(common)
        if kind in {"created", "edited", "deleted"}:
            event["type"] = f"chat.message.{kind}"
            source = index if kind == "created" else int(message["refers_to"])
            event["message_id"] = str(row["messages"][source].get("message_id") or f"{conversation_id}-m{source}")
            if message.get("role"):
                event["sender"] = {"role": message["role"]}
        else:
            event["type"] = f"chat.conversation.{kind}"
        for name in ("text", "content_type", "phase", "attributes"):
            if message.get(name) is not None:
                event[name] = message[name]
        if language:
            event["language"] = language
        lines.append(Line(at_s, event))
    title = str(row.get("title") or conversation_id)
    return Conversation(
        common["tenant_id"], conversation_id, title, language, tuple(lines), str(row.get("expect") or "")
    )


def _grouped(key: tuple[str, str], rows: list[tuple[int, dict[str, Any]]]) -> Conversation:
    """Events of one conversation, in the order of the file, spaced by their times where they have them."""
    lines: list[Line] = []
    first_ms: int | None = None
    at_s = -DEFAULT_GAP_S
    for number, row in rows:
        created_ms = _milliseconds(row.get("created_at"))
        if created_ms is not None:
            first_ms = created_ms if first_ms is None else first_ms
            at_s = max((created_ms - first_ms) / 1000, at_s, 0.0)
        else:
            at_s = max(at_s, -DEFAULT_GAP_S) + DEFAULT_GAP_S
        event = {"tenant_id": key[0], "channel": "web_chat", **row, "conversation_id": key[1]}
        if "role" in row and "sender" not in row:
            event["sender"] = {"role": event.pop("role")}
        if kind_of("chat", str(row.get("type") or "chat.message.created")) in {"created", "edited", "deleted"}:
            event["message_id"] = str(row.get("message_id") or f"line-{number}")
        lines.append(Line(at_s, event))
    return Conversation(key[0], key[1], key[1], _language(rows[0][1]), tuple(lines))


def _review(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    event = {name: value for name, value in row.items() if name not in {"id", "lang"}}
    event.setdefault("tenant_id", "demo")
    event.setdefault("review_id", str(row.get("id") or f"line-{number}"))
    if _language(row):
        event["language"] = _language(row)
    return event


def _language(row: Mapping[str, Any]) -> str:
    return str(row.get("language") or row.get("lang") or "").partition("-")[0].lower()


def _milliseconds(value: object) -> int | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value.upper())
    except ValueError:
        return None
    return None if moment.tzinfo is None or "T" not in value.upper() else int(moment.timestamp() * 1000)


def _list(problems: list[str]) -> str:
    more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
    return "; ".join(problems[:_SHOWN_PROBLEMS]) + more
