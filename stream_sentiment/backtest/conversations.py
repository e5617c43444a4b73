"""Conversations of the past, from JSONL.

In: a file with one conversation a line (`{id, messages: [{role, offset_s, text, ...}]}`, labels optional), or one chat event a
line as on the topic. Out: `Conversation`s in the order of the file. Blocks on the file. Raises `ConfigurationError` that names the
line.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from stream_sentiment.conversation.turn import Scalar, TurnKind
from stream_sentiment.errors import ConfigurationError

# Where a conversation without times begins; any fixed moment will do.
EPOCH_MS = 1_700_000_000_000
# Between messages that have no time of their own.
STEP_MS = 20_000

ROLES = {
    "user": "customer",
    "customer": "customer",
    "agent": "agent",
    "bot": "bot",
    "system": "system",
    "supervisor": "supervisor",
}


@dataclass(frozen=True, slots=True)
class Message:
    """One event of a conversation; `gold` holds its labels, where the file has any."""

    kind: TurnKind
    message_id: str
    role: str
    at_ms: int
    text: str | None
    phase: str | None = None
    attributes: dict[str, Scalar] = field(default_factory=dict)
    gold: dict[str, Any] | None = None


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
    channel: str
    language: str
    messages: list[Message]
    label: Label | None


def read_conversations(path: Path) -> Iterator[Conversation]:
    """All conversations of a file (`.gz` is read too)."""
    opened = gzip.open if path.suffix == ".gz" else open
    events: dict[tuple[str, str], list[dict[str, Any]]] = {}
    try:
        with opened(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                row = _parse(path, number, line)
                if "messages" in row:
                    yield _conversation(path, number, row)
                elif "conversation_id" in row:
                    key = str(row.get("tenant_id", "default")), str(row["conversation_id"])
                    events.setdefault(key, []).append(row)
                else:
                    raise ConfigurationError(
                        f"{path}, line {number}: neither a conversation (id, messages) nor a chat event (conversation_id, ...)"
                    )
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error
    for (tenant, conversation), rows in events.items():
        yield _from_events(path, tenant, conversation, rows)


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ConfigurationError(f"{path}, line {number}: no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigurationError(f"{path}, line {number}: a line must be a JSON object")
    return row


def _conversation(path: Path, number: int, row: dict[str, Any]) -> Conversation:
    name = str(row.get("id", f"line-{number}"))
    start = _time(row["started_at"], path, number) if "started_at" in row else EPOCH_MS
    messages = []
    for place, message in enumerate(row["messages"]):
        role = ROLES.get(str(message.get("role", "")), "")
        kind = str(message.get("kind", "created"))
        if not role and kind in ("created", "edited"):
            raise ConfigurationError(f"{path}, line {number}, message {place}: role must be one of {', '.join(ROLES)}")
        offset = message.get("offset_s")
        labelled = "polarity" in message or "signals" in message
        messages.append(
            Message(
                kind,  # type: ignore[arg-type]
                str(message.get("message_id", f"m{place}")) if kind in ("created", "edited", "deleted") else "",
                role,
                start + (place * STEP_MS if offset is None else round(float(offset) * 1000)),
                message.get("text"),
                message.get("phase"),
                dict(message.get("attributes") or {}),
                {key: message[key] for key in ("polarity", "emotion", "intensity", "signals") if key in message}
                if labelled
                else None,
            )
        )
    return Conversation(
        name,
        str(row.get("tenant_id", "default")),
        str(row.get("channel", "web_chat")),
        str(row.get("lang", row.get("language", ""))),
        messages,
        _label(row),
    )


def _label(row: dict[str, Any]) -> Label | None:
    if not isinstance(row.get("escalate"), bool):
        return None
    return Label(row["escalate"], int(row.get("earliest_message") or 0), row.get("by_message"))


def _from_events(path: Path, tenant: str, conversation: str, rows: list[dict[str, Any]]) -> Conversation:
    """Chat events of the topic, or turns of a data set (`role`, `text`, and `overall` for the ending)."""
    messages = []
    label = None
    for place, row in enumerate(rows):
        if row.get("role") == "overall":
            label = Label(row.get("satisfaction") == "dissatisfied")
            continue
        sender = row.get("sender") or {}
        role = ROLES.get(str(row.get("role") or sender.get("role") or ""), "")
        at = _time(row["created_at"], path, place) if "created_at" in row else EPOCH_MS + place * STEP_MS
        kind = str(row.get("type", "created")).rsplit(".", 1)[-1]
        messages.append(
            Message(
                kind,  # type: ignore[arg-type]
                str(row.get("message_id", f"m{place}")) if kind in ("created", "edited", "deleted") else "",
                role,
                at,
                row.get("text"),
                row.get("phase"),
                dict(row.get("attributes") or {}),
            )
        )
    first = rows[0]
    return Conversation(
        conversation,
        tenant,
        str(first.get("channel", "web_chat")),
        str(first.get("language", first.get("lang", "")) or ""),
        messages,
        label,
    )


def _time(value: Any, path: Path, number: int) -> int:
    try:
        return round(datetime.fromisoformat(str(value)).timestamp() * 1000)
    except ValueError as error:
        raise ConfigurationError(f"{path}, line {number}: {value!r} is no RFC 3339 time") from error
