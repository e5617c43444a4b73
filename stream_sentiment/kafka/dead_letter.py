"""Dead letters: a record that we could not work on, with its original bytes and where it came from.

The value stays as it was, so that a mended consumer or a replay can read it; what is known about it stands in headers named
after Kafka Connect's (`__dlq.topic`, ...). Pure functions; the outbox publishes.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from enum import StrEnum

import orjson

from stream_sentiment import __version__
from stream_sentiment.events import envelope
from stream_sentiment.events.incoming import InvalidReason
from stream_sentiment.kafka.outbox_record import OutboxRecord

PREFIX = "__dlq."
#: Namespace of the ids: equal topic, partition and offset give the equal id, in every process and at every replay.
NAMESPACE = uuid.UUID("6d0f3c52-6f0c-5d0e-9a51-0c6f5a2f7b10")
MAX_ORIGINAL_HEADERS = 32
MAX_HEADER_BYTES = 1024


class ErrorClass(StrEnum):
    """What kind of failure it was. The first three are the producer's to mend, the others ours."""

    DECODE = "decode"
    SCHEMA = "schema"
    TOO_LARGE = "too_large"
    POISON_MODEL = "poison_model"
    STATE_CONFLICT = "state_conflict"


CLASS_OF_REASON = {
    InvalidReason.JSON: ErrorClass.DECODE,
    InvalidReason.ENCODING: ErrorClass.DECODE,
    InvalidReason.FRAMING: ErrorClass.DECODE,
    InvalidReason.CONTENT_ENCODING: ErrorClass.DECODE,
    InvalidReason.UNSUPPORTED_VERSION: ErrorClass.DECODE,
    InvalidReason.SCHEMA: ErrorClass.SCHEMA,
    InvalidReason.TOO_LARGE: ErrorClass.TOO_LARGE,
}


def dead_letter_id(topic: str, partition: int, offset: int) -> str:
    """UUIDv5 over the place of the record."""
    return str(uuid.uuid5(NAMESPACE, f"{topic}/{partition}/{offset}"))


def dead_letter(
    dlq_topic: str,
    *,
    topic: str,
    partition: int,
    offset: int,
    timestamp_ms: int,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]] | None,
    error_class: ErrorClass,
    error_message: str,
    attempts: int,
    failed_at_ms: int,
    keep_body: bool,
) -> OutboxRecord:
    """The record for the dead letter topic.

    Args:
        keep_body: False replaces the value by `{"sha256": ..., "bytes": ...}`; so does a value that was too large to be read.
        failed_at_ms: wall clock, milliseconds since the epoch.
    """
    raw = value or b""
    body_kept = keep_body and error_class is not ErrorClass.TOO_LARGE
    body = raw if body_kept else hashed_body(raw)
    identity = dead_letter_id(topic, partition, offset)
    provenance = {
        "id": identity,
        "topic": topic,
        "partition": str(partition),
        "offset": str(offset),
        "timestamp": envelope.rfc3339(timestamp_ms),
        "error.class": str(error_class),
        "error.message": error_message[:500],
        "first_failed_at": envelope.rfc3339(failed_at_ms),
        "attempts": str(attempts),
        "worker.version": __version__,
        "body": "original" if body_kept else "sha256",
    }
    original = [
        (name, content)
        for name, content in (headers or [])[:MAX_ORIGINAL_HEADERS]
        if content is not None and len(content) <= MAX_HEADER_BYTES and not name.startswith(PREFIX)
    ]
    # The original CloudEvents headers stay; ours are told apart by their prefix.
    marks = [(PREFIX + name, text.encode("utf-8", "replace")) for name, text in provenance.items()]
    return OutboxRecord(topic=dlq_topic, key=key, value=body, headers=[*original, *marks])


def hashed_body(raw: bytes) -> bytes:
    """What stands in for a value that is not kept."""
    return orjson.dumps({"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)})
