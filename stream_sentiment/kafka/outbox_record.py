"""One Kafka record as it waits in the Redis outbox: JSON that a person can read, whatever bytes the record holds.

Bytes that are UTF-8 appear as text, others as `{"base64": ...}`. Pure.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from stream_sentiment.events.envelope import Headers


@dataclass(frozen=True, slots=True)
class OutboxRecord:
    """A record to be published at least once, always with the same id, key and headers."""

    topic: str
    key: bytes | None
    value: bytes | None  # None: a tombstone
    headers: Headers

    def encode(self) -> bytes:
        """The JSON form."""
        record: dict[str, Any] = {
            "topic": self.topic,
            "key": None if self.key is None else _to_json(self.key),
            "headers": [[name, _to_json(value)] for name, value in self.headers],
            "value": None if self.value is None else _to_json(self.value),
        }
        return orjson.dumps(record)

    @classmethod
    def decode(cls, encoded: bytes) -> OutboxRecord:
        """The record of `encode`. Raises ValueError, KeyError or TypeError where something else wrote the entry."""
        record = orjson.loads(encoded)
        if not isinstance(record, dict):
            raise ValueError("an outbox entry is a JSON object")
        return cls(
            topic=record["topic"],
            key=None if record["key"] is None else _from_json(record["key"]),
            value=None if record["value"] is None else _from_json(record["value"]),
            headers=[(name, _from_json(value)) for name, value in record["headers"]],
        )

    def event_id(self) -> str:
        """By which a consumer knows a copy: `__dlq.id` of a dead letter, else `ce_id`. A dead letter may hold a foreign `ce_id`."""
        return record_id(self.headers)


def record_id(headers: Sequence[tuple[str, bytes | None]]) -> str:
    """By which a consumer knows a copy of a record with these headers; empty where they name no id."""
    ids = {name: value for name, value in headers if name in ("__dlq.id", "ce_id")}
    return (ids.get("__dlq.id") or ids.get("ce_id") or b"").decode("utf-8", "replace")


def _to_json(raw: bytes) -> Any:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(raw).decode("ascii")}


def _from_json(value: Any) -> bytes:
    if isinstance(value, dict):
        return base64.b64decode(value["base64"], validate=True)
    return str(value).encode()
