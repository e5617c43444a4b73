"""What we accept: chat events and reviews, as bare JSON, CloudEvents structured or CloudEvents binary.

In: the bytes and headers of one Kafka record. Out: a validated `ChatEvent` or `ReviewEvent`, or `Skip` for a record that is fine but
nothing to work on. Raises `InvalidEvent`, whose reason and detail go into the dead letter. Pure: no I/O, no clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, NamedTuple, NotRequired, cast

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, WithJsonSchema
from typing_extensions import TypedDict

from stream_sentiment.events.envelope import to_milliseconds

MAX_ID_CHARS: Final = 512
MAX_ATTRIBUTES: Final = 64
#: 2200-01-01T00:00:00Z in milliseconds. Times outside are a broken clock or a broken unit, and overflow calendars further on.
MAX_TIME_MS: Final = 7_258_118_400_000
MAX_ATTRIBUTE_NAME_CHARS: Final = 128
MAX_ATTRIBUTE_CHARS: Final = 1024


class InvalidReason(StrEnum):
    """Why a record is a dead letter; also the `reason` label of the metric."""

    JSON = "json"
    ENCODING = "encoding"
    SCHEMA = "schema"
    TOO_LARGE = "too_large"
    UNSUPPORTED_VERSION = "unsupported_version"
    FRAMING = "framing"
    CONTENT_ENCODING = "content_encoding"


class SkippedReason(StrEnum):
    """Why a valid event is not scored."""

    TOMBSTONE = "tombstone"
    UNSUPPORTED_EVENT_TYPE = "unsupported_event_type"
    UNSUPPORTED_CONTENT_TYPE = "unsupported_content_type"
    LANGUAGE_UNSUPPORTED = "language_unsupported"
    EMPTY_TEXT = "empty_text"


class InvalidEvent(Exception):
    """The record breaks the contract. `detail` names fields and rules, never the text of a message."""

    def __init__(self, reason: InvalidReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Skip:
    """A record that is right as it is and asks for nothing."""

    reason: SkippedReason


Channel = Literal["web_chat", "app_chat", "wechat", "whatsapp", "sms", "email", "social", "voice_transcript"]
Role = Literal["customer", "agent", "bot", "system", "supervisor"]
Scalar = str | int | float | bool

Identifier = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARS)]
ShortText = Annotated[str, StringConstraints(max_length=MAX_ID_CHARS)]
#: RFC 3339 with a zone. A pattern, and not pydantic's datetime, since that reads "1700000000" as a time as well.
Timestamp = Annotated[
    str,
    StringConstraints(
        max_length=40,
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$",
    ),
    WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 40}),
]
#: Checked in `_check_attributes`: in Python, but without the four error messages that a union gives for each wrong value.
Attributes = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MAX_ATTRIBUTES,
            "propertyNames": {"maxLength": MAX_ATTRIBUTE_NAME_CHARS},
            "additionalProperties": {
                "type": ["string", "number", "boolean", "null"],
                "maxLength": MAX_ATTRIBUTE_CHARS,
            },
        }
    ),
]


class _Incoming(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Sender(TypedDict):
    """Who wrote the message: a role, and a pseudonymous id."""

    role: Role
    id: NotRequired[ShortText | None]


ChatKind = Literal["created", "edited", "deleted", "started", "transferred", "ended"]


class ChatEvent(_Incoming):
    """One event of `chat.messages`. Its kind comes from the CloudEvents type, or from `type` in bare JSON; the default is created."""

    tenant_id: Identifier = Field(description="merchant or brand")
    conversation_id: Identifier
    created_at: Timestamp = Field(description="event time, RFC 3339 with a zone")
    channel: Channel
    message_id: Identifier | None = Field(None, description="unique in its conversation; required for message events")
    sender: Sender | None = Field(None, description="required for created and edited")
    text: str | None = Field(None, description="required for created and edited with a text content type")
    type: ShortText | None = Field(
        None, description="chat.message.created|edited|deleted, chat.conversation.started|transferred|ended"
    )
    sequence: int | None = Field(None, ge=0, le=2**63 - 1, description="the producer's order in the conversation")
    content_type: ShortText = "text/plain"
    language: ShortText | None = Field(None, description="BCP-47")
    attributes: Attributes | None = Field(None, description="at most 64 scalars")
    phase: Literal["with_bot", "with_agent"] | None = Field(
        None, description="of a transfer: who has the conversation now"
    )


class ReviewEvent(_Incoming):
    """One event of `product.reviews`. Its kind comes from the CloudEvents type or from `type`: review.created|updated|deleted."""

    tenant_id: Identifier
    review_id: Identifier
    product_id: Identifier
    created_at: Timestamp
    updated_at: Timestamp | None = None
    type: ShortText | None = None
    sku: ShortText | None = None
    seller_id: ShortText | None = None
    category: ShortText | None = None
    order_id: ShortText | None = None
    customer_id: ShortText | None = Field(None, description="pseudonymous")
    rating: Annotated[float, Field(ge=1, le=5)] | None = None
    title: str | None = None
    text: str | None = None
    language: ShortText | None = None
    verified_purchase: bool | None = None
    attributes: Attributes | None = None


IncomingEvent = ChatEvent | ReviewEvent


class Decoded(NamedTuple):
    """A valid event, its kind (`ChatKind` for chat; created, edited, deleted for a review) and its time in ms since the epoch."""

    kind: str
    event: IncomingEvent
    at_ms: int


_INFINITIES = (float("inf"), float("-inf"))

_CHAT_KINDS: dict[str, ChatKind] = {
    "chat.message.created": "created",
    "chat.message.edited": "edited",
    "chat.message.deleted": "deleted",
    "chat.conversation.started": "started",
    "chat.conversation.transferred": "transferred",
    "chat.conversation.ended": "ended",
}
_REVIEW_KINDS = {"review.created": "created", "review.updated": "edited", "review.deleted": "deleted"}

TEXT_CONTENT_TYPES = frozenset({"text/plain", "text/markdown"})


def decode(topic_kind: str, value: bytes | None, headers: Mapping[str, bytes], max_bytes: int) -> Decoded | Skip:
    """One record as an event with its kind and time, or `Skip`.

    Args:
        topic_kind: `chat` or `review`.
        headers: by lower-case name (`envelope.header_map`).
        max_bytes: larger values are refused before they are parsed.

    Raises:
        InvalidEvent: the record becomes a dead letter.
    """
    if value is None:
        return Skip(SkippedReason.TOMBSTONE)
    if len(value) > max_bytes:
        raise InvalidEvent(
            InvalidReason.TOO_LARGE, f"the value has {len(value)} bytes, at most {max_bytes} are accepted"
        )
    event_type: str | None = None
    if headers:
        if "content-encoding" in headers:
            raise InvalidEvent(
                InvalidReason.CONTENT_ENCODING,
                "content-encoding is not supported; use Kafka's own compression",
            )
        if b"cloudevents+json" in headers.get("content-type", b""):
            return _decode_structured(topic_kind, value)
        if "ce_specversion" in headers:
            _check_version(headers["ce_specversion"].decode("utf-8", "replace"))
        if "ce_type" in headers:
            event_type = headers["ce_type"].decode("utf-8", "replace")
    return _decode_data(topic_kind, value, event_type)


def _decode_data(topic_kind: str, value: bytes, event_type: str | None) -> Decoded | Skip:
    # One boolean test on the hot path: a structured event without its header fails validation, or shows its specversion.
    model: type[ChatEvent] | type[ReviewEvent] = ChatEvent if topic_kind == "chat" else ReviewEvent
    try:
        event = model.model_validate_json(value)
    except ValidationError as error:
        if _looks_structured(value):
            return _decode_structured(topic_kind, value)
        skipped = _unsupported_type(topic_kind, value, event_type)
        if skipped is not None:
            return skipped
        raise _invalid(value, error) from None
    return _with_kind(topic_kind, event, event_type or event.type)


def _with_kind(topic_kind: str, event: IncomingEvent, event_type: str | None) -> Decoded | Skip:
    kind = "created" if event_type is None else kind_of(topic_kind, event_type)
    if kind is None:
        return Skip(SkippedReason.UNSUPPORTED_EVENT_TYPE)
    if topic_kind == "chat":
        _check_chat(kind, cast(ChatEvent, event))
    if event.attributes:
        _check_attributes(event.attributes)
    try:
        at_ms = to_milliseconds(datetime.fromisoformat(event.created_at.upper()))
    except ValueError:
        raise InvalidEvent(InvalidReason.SCHEMA, "created_at: no such date or time") from None
    if not 0 <= at_ms < MAX_TIME_MS:
        raise InvalidEvent(InvalidReason.SCHEMA, "created_at: not between 1970 and 2200")
    return Decoded(kind, event, at_ms)


def _check_attributes(attributes: dict[str, Any]) -> None:
    """At most 64 scalars under short names; an attribute that is null counts as absent and is dropped."""
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidEvent(InvalidReason.SCHEMA, f"attributes: more than {MAX_ATTRIBUTES}")
    for name, item in list(attributes.items()):
        if item is None:
            del attributes[name]
        elif isinstance(item, str):
            if len(item) > MAX_ATTRIBUTE_CHARS:
                raise InvalidEvent(
                    InvalidReason.SCHEMA,
                    f"attributes: a value is longer than {MAX_ATTRIBUTE_CHARS} characters",
                )
        elif not isinstance(item, int | float) or item != item or item in _INFINITIES:
            raise InvalidEvent(
                InvalidReason.SCHEMA,
                "attributes: a value is nested or no finite number; only scalars are allowed",
            )
        if len(name) > MAX_ATTRIBUTE_NAME_CHARS:
            raise InvalidEvent(
                InvalidReason.SCHEMA,
                f"attributes: a name is longer than {MAX_ATTRIBUTE_NAME_CHARS} characters",
            )


def kind_of(topic_kind: str, event_type: str) -> str | None:
    """`com.example.chat.message.edited` -> `edited`; None for a type that we do not know. Any reverse-DNS prefix is accepted."""
    table: Mapping[str, str] = _CHAT_KINDS if topic_kind == "chat" else _REVIEW_KINDS
    found = table.get(event_type)
    if found is None:
        for name, kind in table.items():
            if event_type.endswith("." + name):
                return kind
    return found


def _check_chat(kind: str, event: ChatEvent) -> None:
    missing = []
    if kind in {"created", "edited", "deleted"} and event.message_id is None:
        missing.append("message_id")
    if kind in {"created", "edited"}:
        if event.sender is None:
            missing.append("sender")
        if event.text is None and event.content_type.partition(";")[0].strip().lower() in TEXT_CONTENT_TYPES:
            missing.append("text")
    if missing:
        raise InvalidEvent(InvalidReason.SCHEMA, f"{', '.join(missing)}: required for a {kind} event")


def _looks_structured(value: bytes) -> bool:
    if b'"specversion"' not in value:
        return False
    try:
        return "specversion" in orjson.loads(value)
    except (orjson.JSONDecodeError, TypeError):
        return False


def _unsupported_type(topic_kind: str, value: bytes, event_type: str | None) -> Skip | None:
    """An event of a type that we do not know need not have our fields: it is skipped, not refused."""
    if event_type is None and b'"type"' in value:
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError:
            return None
        found = parsed.get("type") if isinstance(parsed, dict) else None
        event_type = found if isinstance(found, str) else None
    if event_type is not None and kind_of(topic_kind, event_type) is None:
        return Skip(SkippedReason.UNSUPPORTED_EVENT_TYPE)
    return None


def _decode_structured(topic_kind: str, value: bytes) -> Decoded | Skip:
    try:
        envelope: Any = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _not_json(value, str(error)) from None
    if not isinstance(envelope, dict):
        raise InvalidEvent(InvalidReason.JSON, "the value is JSON, but no object")
    _check_version(str(envelope.get("specversion")))
    event_type = envelope.get("type")
    if not isinstance(event_type, str):
        raise InvalidEvent(InvalidReason.SCHEMA, "type: required in a CloudEvent")
    if "data_base64" in envelope:
        raise InvalidEvent(InvalidReason.SCHEMA, "data_base64: only JSON data is accepted")
    data = envelope.get("data")
    if data is None:
        return Skip(SkippedReason.TOMBSTONE)
    if not isinstance(data, dict):
        raise InvalidEvent(InvalidReason.SCHEMA, "data: must be a JSON object")
    # Extension attributes and envelope fields never reach the data; a nested envelope is no event either.
    data.pop("specversion", None)
    return _decode_data(topic_kind, orjson.dumps(data), event_type)


def _check_version(version: str) -> None:
    if not re.fullmatch(r"1\.\d+", version):
        raise InvalidEvent(
            InvalidReason.UNSUPPORTED_VERSION, f"CloudEvents {version[:16]!r} is not supported; send 1.0"
        )


def _not_json(value: bytes, message: str) -> InvalidEvent:
    if value[:1] == b"\x00" and len(value) > 5:
        return InvalidEvent(
            InvalidReason.FRAMING,
            "the value starts with a schema registry's magic byte; plain JSON is expected",
        )
    try:
        value.decode("utf-8")
    except UnicodeDecodeError as error:
        return InvalidEvent(InvalidReason.ENCODING, f"the value is no UTF-8 (byte {error.start})")
    # The parser's message names line and column; anything after it could quote the value.
    return InvalidEvent(InvalidReason.JSON, "the value is no JSON: " + message.partition("`")[0][:120])


def _invalid(value: bytes, error: ValidationError) -> InvalidEvent:
    details = error.errors(include_url=False, include_input=False, include_context=False)
    first = details[0]
    if first["type"] == "json_invalid":
        return _not_json(value, first["msg"].removeprefix("Invalid JSON: "))
    if first["type"] in {"model_type", "model_attributes_type"} and not first["loc"]:
        return InvalidEvent(InvalidReason.JSON, "the value is JSON, but no object")
    shown = "; ".join(f"{'.'.join(str(part) for part in d['loc'])[:80]}: {d['msg'][:120]}" for d in details[:5])
    more = f"; and {len(details) - 5} more" if len(details) > 5 else ""
    return InvalidEvent(InvalidReason.SCHEMA, shown + more)
