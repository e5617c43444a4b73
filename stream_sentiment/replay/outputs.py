"""What an output says for good: its value without the moments at which it was made and sent.

In: a record of an output topic, from Kafka or as it would have been published. Out: `Output`, equal for equal decisions. Pure. Raises
nothing: what cannot be read is an output too, and differs from every other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from stream_sentiment.events.envelope import STORM
from stream_sentiment.kafka.dead_letter import PREFIX
from stream_sentiment.kafka.outbox_record import record_id

Kind = Literal["escalations", "scored", "dead_letters", "states"]
KINDS: tuple[Kind, ...] = ("escalations", "scored", "dead_letters", "states")

#: Headers of a dead letter that tell of the moment or of the worker, not of the record.
_MOMENT = frozenset({"first_failed_at", "worker.version", "attempts"})


@dataclass(frozen=True, slots=True)
class Output:
    """One output. `message` is the message, review or conversation that it is about, as far as it says so."""

    kind: Kind
    id: str
    value: dict[str, Any]
    tenant_id: str = ""
    entity_id: str = ""  # conversation or product
    message: str | None = None
    at: str = ""  # event time, RFC 3339
    place: tuple[str, int, int] | None = None  # of the record it comes from, where it says so

    def to_json(self) -> bytes:
        """Bytes that are equal for equal outputs."""
        return orjson.dumps({"id": self.id, **self.value}, option=orjson.OPT_SORT_KEYS)


def output_of(
    kind: Kind, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]] | None
) -> Output | None:
    """None for a tombstone, which an erasure leaves and nothing else."""
    pairs = headers or ()
    if kind == "dead_letters":
        return _dead_letter(key, value, pairs)
    if value is None:
        return None
    try:
        said = orjson.loads(value)
    except orjson.JSONDecodeError:
        said = None
    if not isinstance(said, dict):
        return Output(kind, hashlib.sha256(value).hexdigest(), {"unreadable": value.decode("utf-8", "replace")})
    text = {name: part.decode("utf-8", "replace") for name, part in pairs if part is not None}
    timing = said.pop("timing", None) or {}
    tenant, entity = str(said.get("tenant_id", "")), str(said.get("conversation_id", said.get("product_id", "")))
    if kind == "scored":
        item = str(said.get("message_id", said.get("review_id", "")))
        # Not the event's own id, which names model and rules: what two models say of one message is to be set side by side.
        name = "|".join((tenant, entity, item, str(said.get("kind")), str(said.get("created_at"))))
        return Output(kind, name, said, tenant, entity, item, str(said.get("created_at")))
    if kind == "states":
        return Output(kind, (key or b"").decode("utf-8", "replace"), said, tenant, entity, None, said["updated_at"])
    if "message_created_at" in timing:
        said["message_created_at"] = timing["message_created_at"]
    storm = STORM in text.get("ce_type", "")
    place = None
    if storm:
        source = said.get("source") or {}
        place = str(source.get("topic")), int(source.get("partition", -1)), -1
    return Output(
        kind,
        record_id(pairs),
        said,
        tenant,
        entity,
        text.get("ce_causationid"),
        str(said.get("updated_at")),
        place,
    )


def _dead_letter(key: bytes | None, value: bytes | None, pairs: Sequence[tuple[str, bytes | None]]) -> Output:
    """Its value is the original record and may hold a customer's words: told by its hash."""
    marks = {
        name.removeprefix(PREFIX): (part or b"").decode("utf-8", "replace")
        for name, part in pairs
        if name.startswith(PREFIX)
    }
    said: dict[str, Any] = {name: part for name, part in marks.items() if name not in _MOMENT}
    said["sha256"] = hashlib.sha256(value or b"").hexdigest()
    place = None
    if marks.get("partition", "").isdigit() and marks.get("offset", "").isdigit():
        place = marks.get("topic", ""), int(marks["partition"]), int(marks["offset"])
    return Output("dead_letters", record_id(pairs), said, place=place)
