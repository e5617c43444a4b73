"""Conversations of the past, from JSONL, as the turns that the worker would fold.

In: a file with one conversation a line (`{id, messages: [{role, offset_s, text, ...}]}`, labels optional), or one chat event a
line as on the topic. Out: `Conversation`s in the order of the file. Every message goes through the worker's own decoding and
routing. Blocks on the file. Raises `ConfigurationError` that names the line.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import orjson

from stream_sentiment.conversation.turn import NO_ATTRIBUTES, Turn, TurnKind
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.events.incoming import ChatEvent, Decoded, InvalidEvent, Skip, decode
from stream_sentiment.events.routing import RoutingOptions, route
from stream_sentiment.scoring.text import prepare

# Where a conversation without times begins; any fixed moment will do.
EPOCH_MS = 1_700_000_000_000
# Between messages that have no time of their own.
STEP_MS = 20_000

ROLES = {"user": "customer"} | {role: role for role in ("customer", "agent", "bot", "system", "supervisor")}
# An event of the past may be as long as the contract allows; longer ones would have been dead letters.
MAX_BYTES = 1 << 20
MESSAGE_KINDS = ("created", "edited", "deleted")


@dataclass(frozen=True, slots=True)
class Message:
    """One event, decoded and routed: a turn that lacks its score and signals."""

    turn: Turn | None  # None: the worker would put it aside (a dead letter, an unknown type)
    text: str | None  # what the model reads; None: not scored
    prepared: str | None  # what the lexicon reads
    gold: dict[str, Any] | None  # its labels, where the file has any

    @property
    def by_customer(self) -> bool:
        return self.turn is not None and self.turn.role == "customer" and self.turn.kind in ("created", "edited")


@dataclass(frozen=True, slots=True)
class Label:
    """When a good team lead would want the alert: from message `earliest` to one customer turn after `by`; 0-based indices."""

    escalate: bool
    earliest: int = 0
    by: int | None = None  # None: any time


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    tenant_id: str
    messages: list[Message]
    label: Label | None
    timed: bool = False  # its messages have times of their own, so that it can be set beside others
    partition: int | None = None  # of the input topic, where it comes from there
    silence_ms: int = 0  # how long nobody writes after the last message


def read_conversations(path: Path, routing: RoutingOptions | None = None) -> Iterator[Conversation]:
    """All conversations of a file (`.gz` is read too); those of single events follow at its end, in order of appearance."""
    routing = routing or RoutingOptions()
    opened = gzip.open if path.suffix == ".gz" else open
    events: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = {}
    try:
        with opened(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = _parse(path, number, line)
                if "messages" in row:
                    yield _conversation(f"{path}, line {number}", number, row, routing)
                elif "conversation_id" in row:
                    key = str(row.get("tenant_id", "default")), str(row["conversation_id"])
                    events.setdefault(key, []).append((number, row))
                else:
                    raise ConfigurationError(
                        f"{path}, line {number}: neither a conversation (id, messages) nor a chat event (conversation_id, ...)"
                    )
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error
    for (tenant, conversation), rows in events.items():
        yield _from_events(path, tenant, conversation, rows, routing)


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ConfigurationError(f"{path}, line {number}: no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigurationError(f"{path}, line {number}: a line must be a JSON object")
    return row


def _conversation(where: str, number: int, row: dict[str, Any], routing: RoutingOptions) -> Conversation:
    name, tenant = str(row.get("id", f"line-{number}")), str(row.get("tenant_id", "default"))
    start = _time(row["started_at"], where) if "started_at" in row else EPOCH_MS
    messages = []
    for place, given in enumerate(row["messages"]):
        kind = str(given.get("kind", "created"))
        offset = given.get("offset_s")
        event = {
            "tenant_id": tenant,
            "conversation_id": name,
            "channel": row.get("channel", "web_chat"),
            "language": row.get("lang", row.get("language")),
            "type": f"chat.{'message' if kind in MESSAGE_KINDS else 'conversation'}.{kind}",
            "message_id": str(given.get("message_id", f"m{place}")) if kind in MESSAGE_KINDS else None,
            "created_at": _iso(start + (place * STEP_MS if offset is None else round(float(offset) * 1000))),
            "sender": _sender(given, where),
            "text": given.get("text"),
            "phase": given.get("phase"),
            "attributes": given.get("attributes"),
        }
        gold = {key: given[key] for key in ("polarity", "emotion", "intensity", "signals") if key in given}
        messages.append(_message(event, place, gold or None, routing))
    label = None
    if isinstance(row.get("escalate"), bool):
        label = Label(row["escalate"], int(row.get("earliest_message") or 0), row.get("by_message"))
    silence_ms = round(float(row.get("silence_s", 0)) * 1000)
    return Conversation(name, tenant, messages, label, "started_at" in row, silence_ms=silence_ms)


def _from_events(
    path: Path, tenant: str, conversation: str, rows: list[tuple[int, dict[str, Any]]], routing: RoutingOptions
) -> Conversation:
    """Chat events of the topic, or turns of a data set (`role`, `text`; a row of the role `overall` is the ending's label)."""
    messages = []
    label = None
    for place, (number, row) in enumerate(rows):
        if row.get("role") == "overall":
            label = Label(row.get("satisfaction") == "dissatisfied")
            continue
        event = {
            "tenant_id": tenant,
            "channel": "web_chat",
            "message_id": f"m{place}",
            "created_at": _iso(EPOCH_MS + place * STEP_MS),
            "language": row.get("lang"),
            **row,
        }
        if "sender" not in row and "role" in row:
            event["sender"] = _sender(row, f"{path}, line {number}")
        messages.append(_message(event, place, None, routing))
    timed = bool(rows) and all("created_at" in row for _, row in rows)
    return Conversation(conversation, tenant, messages, label, timed)


def _message(event: dict[str, Any], place: int, gold: dict[str, Any] | None, routing: RoutingOptions) -> Message:
    try:
        decoded = decode("chat", orjson.dumps(event), {}, MAX_BYTES)
    except InvalidEvent:
        return Message(None, None, None, gold)
    if isinstance(decoded, Skip):
        return Message(None, None, None, gold)
    text, language, skipped, _ = route(decoded, routing)
    return Message(turn_of(decoded, place, language, skipped), text, None if text is None else prepare(text).text, gold)


def turn_of(decoded: Decoded, offset: int, language: str, skipped: str | None) -> Turn:
    """The turn of a decoded chat event, without score and signals."""
    event = cast(ChatEvent, decoded.event)
    return Turn(
        cast(TurnKind, decoded.kind),
        event.message_id or "",
        decoded.at_ms,
        event.sender["role"] if event.sender is not None else "",
        offset,
        event.sequence,
        None,
        skipped,
        (),
        event.channel,
        event.attributes or NO_ATTRIBUTES,
        event.phase,
        language or event.language or "",
    )


def _sender(given: dict[str, Any], where: str) -> dict[str, str] | None:
    role = given.get("role")
    if role is None:
        return None
    if role not in ROLES:
        raise ConfigurationError(f"{where}: role {role!r} is none of {', '.join(ROLES)}")
    return {"role": ROLES[role]}


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _time(value: Any, where: str) -> int:
    try:
        return round(datetime.fromisoformat(str(value)).timestamp() * 1000)
    except ValueError as error:
        raise ConfigurationError(f"{where}: {value!r} is no RFC 3339 time") from error
