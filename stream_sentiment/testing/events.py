"""Builders for input events: the smallest valid event, with what a test cares about said by name.

Pure. Ids and times are deterministic: the same call gives the same event, and a script's messages are 30 seconds apart. Values are
dictionaries as they stand on the topics (docs/schemas); `encode` gives the record's bytes, `record_key` its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from stream_sentiment.events import envelope
from stream_sentiment.testing.clock import DEFAULT_START_MS

__all__ = [
    "CALM",
    "SCRIPTS",
    "TURNS_BAD",
    "Line",
    "Script",
    "chat_message",
    "conversation_event",
    "encode",
    "record_key",
    "review",
    "timestamp",
]

Event = dict[str, Any]

_SECONDS_BETWEEN_MESSAGES = 30


def timestamp(at_ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339 in UTC, as events carry it."""
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at_ms % 1000:03d}Z"


def chat_message(
    text: str | None = "Where is my parcel?",
    *,
    tenant: str = "shop",
    conversation: str = "c1",
    message: str = "m1",
    role: str = "customer",
    at_ms: int = DEFAULT_START_MS,
    **fields: Any,
) -> Event:
    """One `chat.message.created` (or what `type=` says) for the topic of chat messages; `fields` add to it or replace."""
    event: Event = {
        "tenant_id": tenant,
        "channel": "web_chat",
        "conversation_id": conversation,
        "message_id": message,
        "sender": {"role": role},
        "text": text,
        "created_at": timestamp(at_ms),
        **fields,
    }
    return {name: value for name, value in event.items() if value is not None}


def conversation_event(
    kind: Literal["started", "transferred", "ended"],
    *,
    tenant: str = "shop",
    conversation: str = "c1",
    at_ms: int = DEFAULT_START_MS,
    **fields: Any,
) -> Event:
    """One `chat.conversation.<kind>`."""
    return {
        "type": f"chat.conversation.{kind}",
        "tenant_id": tenant,
        "channel": "web_chat",
        "conversation_id": conversation,
        "created_at": timestamp(at_ms),
        **fields,
    }


def review(
    text: str = "Broke after two days.",
    *,
    tenant: str = "shop",
    product: str = "p1",
    review_id: str = "r1",
    rating: float | None = 1,
    at_ms: int = DEFAULT_START_MS,
    **fields: Any,
) -> Event:
    """One `review.created` for the topic of product reviews."""
    event: Event = {
        "tenant_id": tenant,
        "review_id": review_id,
        "product_id": product,
        "rating": rating,
        "text": text,
        "created_at": timestamp(at_ms),
        **fields,
    }
    return {name: value for name, value in event.items() if value is not None}


def record_key(event: Event) -> bytes:
    """The Kafka key under which the contract wants the event: tenant and conversation, or tenant and product."""
    return envelope.record_key(event["tenant_id"], event.get("conversation_id") or event["product_id"]).encode()


def encode(event: Event) -> bytes:
    """The event as the bytes of a record's value."""
    return orjson.dumps(event)


@dataclass(frozen=True, slots=True)
class Line:
    """One message of a script."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Script:
    """A conversation to play under any ids: what is said, and what a good observer would make of it."""

    name: str
    language: str
    lines: Sequence[Line] = field(default_factory=tuple)
    turns_bad: bool = False  #: a team lead would want to know

    def events(
        self, *, tenant: str = "shop", conversation: str | None = None, start_ms: int = DEFAULT_START_MS
    ) -> Iterator[Event]:
        """The script's messages as chat events, ids `m1`, `m2`, ..., 30 seconds apart."""
        for index, line in enumerate(self.lines):
            yield chat_message(
                line.text,
                tenant=tenant,
                conversation=conversation or self.name,
                message=f"m{index + 1}",
                role=line.role,
                language=self.language,
                at_ms=start_ms + index * _SECONDS_BETWEEN_MESSAGES * 1000,
                sequence=index,
            )


def _script(name: str, language: str, turns_bad: bool, *lines: str) -> Script:
    """Lines are customer and agent by turns, the customer first; `"..."` leaves a turn out."""
    roles = ("customer", "agent")
    spoken = tuple(Line(roles[index % 2], text) for index, text in enumerate(lines) if text != "...")
    return Script(name, language, spoken, turns_bad)


SCRIPTS: tuple[Script, ...] = (
    _script(
        "en-calm-size",
        "en",
        False,
        "Hi, does the blue jacket run small?",
        "It fits true to size. What do you usually wear?",
        "Medium. Then I will take medium, thank you.",
        "Great choice, it ships today.",
        "Perfect, thanks a lot!",
    ),
    _script(
        "en-late-parcel",
        "en",
        True,
        "My order was due on Monday. Where is it?",
        "Let me check. The courier reports a delay.",
        "A delay? This is the third time you tell me that.",
        "I am sorry about the trouble.",
        "This is ridiculous. I am really angry now, nobody helps me.",
        "I understand. Please wait two more days.",
        "No! I want my money back today, this is the worst shop I have ever used.",
    ),
    _script(
        "en-broken-then-solved",
        "en",
        False,
        "The kettle arrived broken, I am quite disappointed.",
        "That should not happen. We send a new one today, free of charge.",
        "Oh, that was quick. Thank you.",
        "You are welcome.",
        "Excellent service, I am happy again.",
    ),
    _script(
        "zh-calm-stock",
        "zh",
        False,
        "你好，请问这款杯子还有白色的吗？",
        "有的亲，白色现货，今天下单今天发。",
        "好的，那我要两个，谢谢。",
        "不客气，祝您购物愉快。",
        "谢谢，态度真好。",
    ),
    _script(
        "zh-refund-refused",
        "zh",
        True,
        "我上周退的货，怎么钱还没到？",
        "亲，退款一般要七个工作日。",
        "已经十天了，你们到底有没有在处理？",
        "抱歉让您久等了，我帮您催一下。",
        "每次都说催一下，太让人失望了，根本没人管。",
        "真的很抱歉。",
        "再不退款我就投诉你们，气死我了，以后再也不买了！",
    ),
    _script(
        "zh-wrong-item-solved",
        "zh",
        False,
        "发错货了，我买的是黑色，收到的是红色，有点不高兴。",
        "非常抱歉，马上给您补发黑色的，红色的您留着用。",
        "这么快就解决了，太好了。",
        "应该的。",
        "很满意，给你们好评。",
    ),
)
TURNS_BAD = tuple(script for script in SCRIPTS if script.turns_bad)
CALM = tuple(script for script in SCRIPTS if not script.turns_bad)
