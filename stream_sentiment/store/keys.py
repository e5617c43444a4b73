"""Names of the Redis keys: which slot a partition lives in, and how a conversation id becomes part of a key.

Pure functions. In: group, topic, partition and ids of any content. Out: key strings. Raises `ConfigurationError` for a group or a
prefix that would break the hash tag.

    <prefix>:{<group>:<topic>:<partition>}:meta              hash    token, wm, member, at, clock, partitions
    <prefix>:{<group>:<topic>:<partition>}:outbox            hash    <offset>:<sequence> -> encoded record
    <prefix>:{<group>:<topic>:<partition>}:due               zset    conversation -> when a timer of it falls due
    <prefix>:{<group>:<topic>:<partition>}:c:<conversation>  string  state, with a time to live
    <prefix>:{<group>:<topic>:<partition>}:storm:<tenant>    string  what the storm guard has counted, with a time to live

The braces are Redis Cluster's hash tag: all keys of one partition share one slot, so that one script may write them together.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple

from stream_sentiment.errors import ConfigurationError

# Kept as they are, so that ordinary ids stay readable: ASCII letters, digits and harmless marks; Latin, Greek and Cyrillic letters;
# kana, Han and Hangul. The ranges are written out, never asked of `unicodedata`: a newer Unicode table in a newer Python would
# change keys and strand the states under the old ones. '%', '|' and '~' have a meaning below and are never kept.
_KEPT = (
    r"\-A-Za-z0-9_.@=+,;!$*()/"
    "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0391-\u03a1\u03a3-\u03c9\u0400-\u045f"
    "\u3041-\u3096\u30a1-\u30fa\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
)
_PLAIN = re.compile(f"[{_KEPT}]+")
_ESCAPE = re.compile(f"[^{_KEPT}]")
_ESCAPED = re.compile(r"(?:%[0-9A-F]{2})+")

STORM = "storm:"

MAX_PART_BYTES = 256
"""A tenant or conversation id whose encoded form is longer is replaced by `~` and the SHA-256 of the id, in hexadecimal.

Ids of this contract have at most 512 characters, most have 36: 256 bytes keep nearly all of them readable, and bound a key."""


class TopicPartition(NamedTuple):
    """One partition of one input topic."""

    topic: str
    partition: int


def encode_part(text: str) -> str:
    """One id as part of a key: injective, so that two ids never share a key; readable where the id is ordinary.

    Every character outside `_KEPT` becomes `%XX` per UTF-8 byte, as in a URL; the empty id is `%`. A result over `MAX_PART_BYTES` is
    replaced by `~<sha256 of the id's UTF-8>`; `~` never begins an encoded id, so the two forms cannot meet.
    """
    if _PLAIN.fullmatch(text):
        # At most three bytes each: every kept character lies in the Basic Multilingual Plane.
        if len(text) * 3 <= MAX_PART_BYTES or len(text.encode()) <= MAX_PART_BYTES:
            return text
        return _hashed(text)
    if not text:
        return "%"
    encoded = _ESCAPE.sub(_percent, text)
    return encoded if len(encoded.encode()) <= MAX_PART_BYTES else _hashed(text)


def decode_part(encoded: str) -> str | None:
    """The id that `encode_part` was given, or None where only its hash was kept."""
    if encoded == "%":
        return ""
    if encoded.startswith("~"):
        return None
    return _ESCAPED.sub(lambda run: bytes.fromhex(run[0].replace("%", "")).decode("utf-8", "surrogatepass"), encoded)


@lru_cache(maxsize=65_536)
def conversation_key(tenant_id: str, conversation_id: str) -> str:
    """`<tenant>|<conversation>`, each part encoded; the part after `c:` of a state's key. About 0.5 us for ordinary ids."""
    return f"{encode_part(tenant_id)}|{encode_part(conversation_id)}"


def storm_key(conversation: str) -> str:
    """The name of the storm guard's state for the tenant of a `conversation_key`."""
    return STORM + conversation.partition("|")[0]


def split_conversation_key(key: str) -> tuple[str | None, str | None]:
    """Tenant and conversation id of a `conversation_key`; None for a part of which only the hash was kept."""
    tenant, _, conversation = key.partition("|")
    return decode_part(tenant), decode_part(conversation)


def outbox_field(offset: int, sequence: int) -> str:
    """The name of an outbox entry: the input offset that gave rise to it and its number among that event's outputs."""
    return f"{offset}:{sequence}"


def tick_field(watermark: int, due_ms: int, sequence: int, token: str) -> str:
    """The name of a timer's entry: the watermark at which it fired, when it fell due, its number, and the token of its tick, since
    the next owner may tick at the same watermark while this entry waits."""
    return f"{watermark}:t:{due_ms}:{sequence}:{token}"


def outbox_order(field: str) -> tuple[int, ...]:
    """Sort key that puts outbox entries into the order in which they must be published.

    A timer's entries `<watermark>:t:<due>:<n>:<token>` and then an erasure's `<watermark>:e:<token>:<n>` (erase.lua) come after all
    entries of events before that watermark, and before those of the event at it. Two timers of one conversation fire in the order
    in which they fell due.
    """
    offset, _, rest = field.partition(":")
    if rest.startswith("t:"):
        _, due, number, _ = rest.split(":", 3)
        return int(offset), 0, int(due), int(number)
    if rest.startswith("e:"):
        return int(offset), 1, int(rest.rpartition(":")[2])
    return int(offset), 2, int(rest)


class PartitionKeys:
    """The key names of one group under one prefix; remembers each partition's, as they are built per batch."""

    def __init__(self, prefix: str, group: str) -> None:
        """Raises ConfigurationError where prefix or group would end the hash tag early or make a key unreadable."""
        for name, value in (("Redis prefix", prefix), ("Kafka group id", group)):
            if not value:
                raise ConfigurationError(f"{name} is empty; give it a name such as 'stream-sentiment'")
            if bad := sorted({character for character in value if character in "{}" or not character.isprintable()}):
                raise ConfigurationError(
                    f"{name} {value!r} holds {', '.join(map(repr, bad))}: braces and control characters would spread the "
                    "keys of one partition over several Redis Cluster slots; rename it"
                )
        self.prefix = prefix
        self.group = group
        self._bases: dict[TopicPartition, str] = {}

    def base(self, tp: TopicPartition) -> str:
        """`<prefix>:{<group>:<topic>:<partition>}:`"""
        base = self._bases.get(tp)
        if base is None:
            # Kafka allows only [A-Za-z0-9._-] in a topic's name, so the last two colons cannot be misread.
            if "{" in tp.topic or "}" in tp.topic or ":" in tp.topic:
                raise ConfigurationError(f"topic {tp.topic!r} is no Kafka topic name")
            base = self._bases[tp] = f"{self.prefix}:{{{self.group}:{tp.topic}:{tp.partition}}}:"
        return base

    def meta(self, tp: TopicPartition) -> str:
        return self.base(tp) + "meta"

    def outbox(self, tp: TopicPartition) -> str:
        return self.base(tp) + "outbox"

    def due(self, tp: TopicPartition) -> str:
        return self.base(tp) + "due"

    def conversation(self, tp: TopicPartition, conversation: str) -> str:
        """The key of a state; `conversation` is a `conversation_key` or a `storm_key`."""
        # No conversation key holds a colon: it is percent-encoded.
        kind = "" if conversation.startswith(STORM) else "c:"
        return f"{self.base(tp)}{kind}{conversation}"


def _percent(match: re.Match[str]) -> str:
    # surrogatepass: a lone surrogate cannot come out of a JSON parser, but must not be a crash where an id came from elsewhere.
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


def _hashed(text: str) -> str:
    return "~" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
