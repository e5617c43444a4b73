"""Conversations of the past, from the input topic itself, over a range of time or offsets.

In: records of the chat topic as they stand in the log. Out: `Conversation`s in the order in which they began. Every record goes through
the worker's decoding and routing; what the worker would put aside is left out. `read_log` blocks on Kafka, the rest is pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stream_sentiment.backtest.conversations import Conversation, Message, turn_of
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.events.envelope import header_map
from stream_sentiment.events.incoming import ChatEvent, Decoded, InvalidEvent, Skip, decode
from stream_sentiment.events.routing import RoutingOptions, route
from stream_sentiment.kafka.log_slice import LogReader, LogRecord, Point
from stream_sentiment.record_fold import FUTURE_TOLERANCE_MS
from stream_sentiment.scoring.text import prepare

if TYPE_CHECKING:
    from stream_sentiment.replay.run import Bar
    from stream_sentiment.settings import Settings

#: How a topic is written where a file could stand.
SCHEME = "kafka://"


def read_log(
    settings: Settings, source: str, begin: Point, end: Point, routing: RoutingOptions, bar: Bar
) -> tuple[list[Conversation], int]:
    """Conversations of `kafka://TOPIC` (`kafka://` alone: the configured one) between two points, and its number of partitions."""
    topic = source.removeprefix(SCHEME).strip("/") or settings.topics.chat_messages
    reader = LogReader(settings.kafka, f"{settings.kafka.group_id}-backtest")
    try:
        partitions = reader.partitions([topic])
        slices = reader.slices(partitions, begin, end)
        total = sum(part.end - part.begin for part in slices)
        if not total:
            raise ConfigurationError(f"{topic} holds no record from {begin.text} to {end.text}")
        with bar("reading", total) as progress:
            records = []
            for part in slices:
                for record in reader.read(part):
                    records.append(record)
                    progress(1)
    finally:
        reader.close()
    return conversations_of(records, routing, settings.intake.max_event_bytes), partitions[topic]


def conversations_of(
    records: Iterable[LogRecord], routing: RoutingOptions, max_event_bytes: int = 256 * 1024
) -> list[Conversation]:
    """Group records, each partition's in the order of its offsets, by conversation."""
    found: dict[tuple[str, str], Conversation] = {}
    for record in records:
        try:
            headers = header_map(record.headers) if record.headers else {}
            decoded = decode("chat", record.value, headers, max_event_bytes)
        except InvalidEvent:
            continue
        if isinstance(decoded, Skip) or not isinstance(decoded.event, ChatEvent):
            continue
        event = decoded.event
        name = event.tenant_id, event.conversation_id
        conversation = found.get(name)
        if conversation is None:
            conversation = found[name] = Conversation(
                event.conversation_id, event.tenant_id, [], None, True, record.partition
            )
        conversation.messages.append(_message(record, decoded, routing))
    return list(found.values())


def _message(record: LogRecord, decoded: Decoded, routing: RoutingOptions) -> Message:
    text, language, skipped, _ = route(decoded, routing)
    turn = turn_of(decoded, record.offset, language, skipped)
    if record.timestamp_ms:
        turn = turn._replace(at_ms=min(turn.at_ms, record.timestamp_ms + FUTURE_TOLERANCE_MS))
    return Message(turn, text, None if text is None else prepare(text).text, None)
