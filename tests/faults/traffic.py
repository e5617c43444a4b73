"""Input for the crash run: conversations of several tenants, with everything that goes wrong on a real topic mixed in.

Pure and seeded: the same arguments give the same records. Besides plain messages: duplicates, edits, deletions, late and out-of-order
messages, silences longer than a conversation lives, ends and transfers, reviews, ids that would break a naive key, CloudEvents
headers, tombstones, records that are no JSON or break the contract, and oversized ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from stream_sentiment.testing.clock import DEFAULT_START_MS
from stream_sentiment.testing.events import chat_message, conversation_event, encode, record_key, review, timestamp

CHAT, REVIEWS = "chat", "reviews"

#: What the workers of the crash run are given as intake.max_event_bytes; an oversized record is a little larger.
MAX_EVENT_BYTES = 16_384

_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS

_WORDS = {
    "en": [
        "parcel",
        "refund",
        "broken",
        "late",
        "thanks",
        "great",
        "terrible",
        "waiting",
        "nobody",
        "perfect",
        "angry",
    ],
    "zh": [
        "快递",
        "退款",
        "坏了",
        "太慢",
        "谢谢",
        "很好",
        "失望",
        "等了三天",
        "投诉",
        "客服",
        "颜色不对",
        "满意",
        "没人管",
        "订单",
    ],
}
_TENANTS = ("shop", "shop|a", "店铺-7", "a%7Cb")
_POISON: tuple[bytes, ...] = (
    b"",
    b"not json",
    b"\xff\xfe\x00broken",
    b"[1, 2, 3]",
    b"null",
    b'{"tenant_id": "shop"}',
    encode(chat_message(created_at="2026-01-05 09:00")),
    encode(chat_message(channel="carrier pigeon")),
    encode(chat_message(sender={"role": "ghost"})),
    encode(chat_message(attributes={"nested": {"no": 1}})),
    encode(chat_message(message="x" * 600)),
)


@dataclass(frozen=True, slots=True)
class Input:
    """One record to be produced; `topic` is CHAT or REVIEWS, the run gives it its real name."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass
class _Conversation:
    tenant: str
    id: str
    language: str
    now_ms: int
    sent: list[Input] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


def traffic(events: int, conversations: int, seed: int) -> Iterator[Input]:
    """`events` records over `conversations` conversations (and some products)."""
    rng = random.Random(seed)
    floor = [_conversation(rng, index) for index in range(conversations)]
    kinds: list[Callable[[random.Random, _Conversation], Input]] = list(_KINDS)
    weights = [_KINDS[kind] for kind in kinds]
    for _ in range(events):
        conversation = rng.choice(floor)
        conversation.now_ms += rng.randrange(2_000, 90_000)
        record = rng.choices(kinds, weights)[0](rng, conversation)
        conversation.sent.append(record)
        yield record


def _conversation(rng: random.Random, index: int) -> _Conversation:
    odd = (
        f"c{index}",
        f"c{index}",
        f"c{{{index}}}",
        f"c|{index}",
        f"c\n{index}",
        f"c{index}-" + "é" * 400,
        f"会话 {index}",
    )
    return _Conversation(
        rng.choice(_TENANTS), rng.choice(odd), rng.choice(("en", "zh")), DEFAULT_START_MS + index * 1000
    )


def _text(rng: random.Random, conversation: _Conversation) -> str:
    separator = "" if conversation.language == "zh" else " "
    return separator.join(rng.choices(_WORDS[conversation.language], k=rng.randrange(2, 9)))


def _message(rng: random.Random, c: _Conversation, role: str = "customer", **fields: object) -> Input:
    message_id = f"m{len(c.ids)}"
    c.ids.append(message_id)
    defaults = {"message": message_id, "role": role, "at_ms": c.now_ms, "language": c.language, "text": _text(rng, c)}
    event = chat_message(tenant=c.tenant, conversation=c.id, **{**defaults, **fields})
    return Input(CHAT, record_key(event), encode(event))


def _staff(rng: random.Random, c: _Conversation) -> Input:
    return _message(rng, c, role=rng.choice(("agent", "agent", "bot", "system")))


def _duplicate(rng: random.Random, c: _Conversation) -> Input:
    return rng.choice(c.sent[-20:]) if c.sent else _message(rng, c)


def _edited(rng: random.Random, c: _Conversation) -> Input:
    if not c.ids:
        return _message(rng, c)
    return _message(rng, c, message=rng.choice(c.ids[-15:]), type="chat.message.edited")


def _deleted(rng: random.Random, c: _Conversation) -> Input:
    if not c.ids:
        return _message(rng, c)
    event = chat_message(
        None,
        tenant=c.tenant,
        conversation=c.id,
        message=rng.choice(c.ids[-15:]),
        at_ms=c.now_ms,
        type="chat.message.deleted",
    )
    return Input(CHAT, record_key(event), encode(event))


def _late(rng: random.Random, c: _Conversation) -> Input:
    return _message(rng, c, at_ms=c.now_ms - 3 * _HOUR_MS)


def _out_of_order(rng: random.Random, c: _Conversation) -> Input:
    return _message(rng, c, at_ms=c.now_ms - rng.randrange(_MINUTE_MS, 30 * _MINUTE_MS))


def _from_the_future(rng: random.Random, c: _Conversation) -> Input:
    # Ten years ahead of any broker's clock: the worker cuts it, or all later messages of the conversation would be late.
    return _message(rng, c, created_at=timestamp(c.now_ms + 10 * 365 * 24 * _HOUR_MS))


def _after_a_long_silence(rng: random.Random, c: _Conversation) -> Input:
    c.now_ms += 30 * _HOUR_MS
    return _message(rng, c)


def _lifecycle(rng: random.Random, c: _Conversation) -> Input:
    kind = rng.choice(("started", "transferred", "ended"))
    fields = {"phase": rng.choice(("with_bot", "with_agent"))} if kind == "transferred" else {}
    event = conversation_event(kind, tenant=c.tenant, conversation=c.id, at_ms=c.now_ms, **fields)
    return Input(CHAT, record_key(event), encode(event))


def _binary(rng: random.Random, c: _Conversation) -> Input:
    plain = _message(rng, c)
    headers = {
        "ce_specversion": "1.0",
        "ce_id": c.ids[-1],
        "ce_source": "/chat",
        "ce_type": "chat.message.created",
        "ce_time": timestamp(c.now_ms),
        "content-type": "application/json",
        "traceparent": f"00-{rng.getrandbits(128):032x}-{rng.getrandbits(64):016x}-01",
    }
    return Input(CHAT, plain.key, plain.value, tuple((name, value.encode()) for name, value in headers.items()))


def _skipped(rng: random.Random, c: _Conversation) -> Input:
    return _message(rng, c, **rng.choice(({"content_type": "image/png"}, {"text": "   "}, {"language": "fr"})))


def _review(rng: random.Random, c: _Conversation) -> Input:
    event = review(
        _text(rng, c),
        tenant=c.tenant,
        product=f"p{rng.randrange(30)}",
        review_id=f"r{rng.getrandbits(40)}",
        rating=rng.randrange(1, 6),
        at_ms=c.now_ms,
        language=c.language,
    )
    return Input(REVIEWS, record_key(event), encode(event))


def _poison(rng: random.Random, c: _Conversation) -> Input:
    key = record_key(chat_message(tenant=c.tenant, conversation=c.id))
    return Input(rng.choice((CHAT, CHAT, REVIEWS)), rng.choice((key, None)), rng.choice(_POISON))


def _oversized(rng: random.Random, c: _Conversation) -> Input:
    return _message(rng, c, attributes={f"a{i}": "x" * 1000 for i in range(MAX_EVENT_BYTES // 1000 + 1)})


def _tombstone(rng: random.Random, c: _Conversation) -> Input:
    return Input(CHAT, record_key(chat_message(tenant=c.tenant, conversation=c.id)), None)


_KINDS: dict[Callable[[random.Random, _Conversation], Input], float] = {
    _message: 52,
    _staff: 20,
    _duplicate: 6,
    _edited: 3,
    _deleted: 2,
    _late: 1.5,
    _out_of_order: 2,
    _from_the_future: 0.1,  # rare: whatever the conversation says afterwards is late
    _after_a_long_silence: 1,
    _lifecycle: 2,
    _binary: 2,
    _skipped: 1.5,
    _review: 4,
    _poison: 2,
    _oversized: 0.5,
    _tombstone: 0.5,
}
