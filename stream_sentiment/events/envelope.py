"""CloudEvents 1.0 headers in Kafka binary mode, record keys, deterministic ids and timestamps.

Everything here is a pure function of its arguments: a replay gives the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache

#: Reverse-DNS prefix of the event types that we emit.
TYPE_PREFIX = "io.stream-sentiment."
SOURCE = "/stream-sentiment"
SCHEMA_BASE = "urn:stream-sentiment:schema:"

SCORED = "sentiment.message.scored"
CONVERSATION_STATE = "sentiment.conversation.state"
ESCALATION = "sentiment.escalation."  # + opened, updated, resolved
STORM = "sentiment.escalation_storm."  # + the same
DEAD_LETTER = "sentiment.dead_letter"

Headers = list[tuple[str, bytes]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=4096)
def _second(seconds: int) -> str:
    """The part up to the second. Cached: the events of one moment share it, and formatting is most of the cost."""
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:19]


@lru_cache(maxsize=8192)
def rfc3339(milliseconds: int) -> str:
    """Milliseconds since the epoch as `2026-11-22T06:28:21.000Z`."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


def to_milliseconds(moment: datetime) -> int:
    """Milliseconds since the epoch of an aware datetime; exact, where `timestamp()` would round a float."""
    delta = moment - _EPOCH
    return delta.days * 86_400_000 + delta.seconds * 1000 + delta.microseconds // 1000


def record_key(tenant_id: str, entity_id: str) -> str:
    """`tenant|entity`, the key of every record about one conversation or product.

    `|` and `%` inside the parts are percent-encoded: without that `a|b` + `c` and `a` + `b|c` would be one key, and a compacted topic
    would mix two tenants. Ordinary ids stay as they are.
    """
    if "|" in tenant_id or "%" in tenant_id:
        tenant_id = tenant_id.replace("%", "%25").replace("|", "%7C")
    if "|" in entity_id or "%" in entity_id:
        entity_id = entity_id.replace("%", "%25").replace("|", "%7C")
    return f"{tenant_id}|{entity_id}"


def stable_id(*parts: str) -> str:
    """A 32-digit hexadecimal id over `parts`; equal parts give the equal id, whatever characters they hold.

    Each part is preceded by its length, so that no separator inside an id can make two lists of parts look alike.
    """
    joined = "".join([f"{len(part)}:{part}" for part in parts])
    return hashlib.blake2b(joined.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def constant_headers(event_type: str, schema: str) -> Headers:
    """The headers that all events of one type share; append the rest with `event_headers`."""
    return [
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_type", (TYPE_PREFIX + event_type).encode()),
        ("ce_source", SOURCE.encode()),
        ("ce_dataschema", (SCHEMA_BASE + schema).encode()),
    ]


def event_headers(
    constant: Headers,
    event_id: str,
    time: str,
    correlation_id: str,
    causation_id: str | None,
    traceparent: bytes | None = None,
) -> Headers:
    """All headers of one event.

    Args:
        constant: result of `constant_headers`.
        time: RFC 3339 event time.
        correlation_id: the conversation or product.
        causation_id: the input event that caused this one.
        traceparent: W3C trace context of that input event, passed through.
    """
    headers = [
        *constant,
        ("ce_id", event_id.encode()),
        ("ce_time", time.encode()),
        ("ce_correlationid", correlation_id.encode()),
    ]
    if causation_id is not None:
        headers.append(("ce_causationid", causation_id.encode()))
    if traceparent is not None:
        headers.append(("traceparent", traceparent))
    return headers


def header_map(headers: list[tuple[str, bytes | None]] | None) -> Mapping[str, bytes]:
    """Kafka headers by lower-case name; of a repeated header the last counts, as Kafka's own `lastHeader` has it."""
    if not headers:
        return {}
    return {name.lower(): value for name, value in headers if value is not None}
