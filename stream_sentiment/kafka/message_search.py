"""Find one message again in the input topics: the only place where its text still is.

In: a message or review id, and what narrows the search. Out: the newest version of that message, decoded as the worker decodes it.
Reads every partition from a point in time to its end as it was when the search began, joins no group and commits nothing. Raises
`MessageNotFound`, `TryAgain` when the time is up, `ServiceUnavailable` when Kafka does not answer.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream_sentiment.errors import ConfigurationError, ExitStatus, ServiceUnavailable, StreamSentimentError, TryAgain
from stream_sentiment.events.envelope import header_map
from stream_sentiment.events.incoming import ChatEvent, Decoded, InvalidEvent, ReviewEvent, Skip, decode
from stream_sentiment.kafka.clients import common_config, first_contact
from stream_sentiment.observability.logs import kafka_logger
from stream_sentiment.settings import Settings

BATCH = 1_000
REQUEST_SECONDS = 10.0


class MessageNotFound(StreamSentimentError):
    """There is no such message where was looked, or more than one."""

    exit_status = ExitStatus.NO


@dataclass(frozen=True, slots=True)
class FoundMessage:
    """The newest version of a message, and where it lies."""

    decoded: Decoded
    topic: str
    partition: int
    offset: int

    @property
    def tenant_id(self) -> str:
        return self.decoded.event.tenant_id

    @property
    def entity_id(self) -> str:
        """The conversation, or the product of a review."""
        event = self.decoded.event
        return event.conversation_id if isinstance(event, ChatEvent) else event.product_id

    @property
    def rating(self) -> float | None:
        event = self.decoded.event
        return event.rating if isinstance(event, ReviewEvent) else None


def find_message(
    settings: Settings,
    message_id: str,
    *,
    tenant_id: str | None = None,
    conversation_id: str | None = None,
    since_ms: int,
    timeout: float,
) -> FoundMessage:
    """The message, after its edits. `since_ms`: Kafka timestamp from which is searched, milliseconds since the epoch; 0: all.

    A message that was deleted is not given out again.
    """
    found = _search(settings, message_id, tenant_id, conversation_id, since_ms, time.monotonic() + timeout, timeout)
    if not found:
        raise MessageNotFound(
            f"no message {message_id!r} in {' or '.join(settings.topics.inputs())} within the time searched; look further back with "
            "--since, or, where Kafka has dropped it, give the text itself: stream-sentiment explain TEXT"
        )
    places = sorted({(match.tenant_id, match.entity_id) for match in found})
    if len(places) > 1:
        listed = "; ".join(f"tenant {tenant!r}, conversation {entity!r}" for tenant, entity in places[:5])
        raise MessageNotFound(
            f"message {message_id!r} is there {len(places)} times ({listed}); choose with --tenant and --conversation"
        )
    newest = max(found, key=lambda match: (match.partition, match.offset))
    if newest.decoded.kind == "deleted":
        raise MessageNotFound(f"message {message_id!r} was deleted by its sender; its text is not shown")
    return newest


def _search(
    settings: Settings,
    message_id: str,
    tenant_id: str | None,
    conversation_id: str | None,
    since_ms: int,
    deadline: float,
    timeout: float,
) -> list[FoundMessage]:
    consumer = Consumer(
        common_config(settings.kafka, kafka_logger("explain"))
        | {
            "group.id": f"{settings.kafka.group_id}-explain-{uuid.uuid4().hex[:8]}",  # never joined
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    kinds = settings.topics.inputs()
    # An id with quotes or letters that JSON may write in two ways is looked for after decoding only.
    plain = message_id.encode() if message_id.isascii() and message_id.isprintable() and '"' not in message_id else b""
    if b"\\" in plain or b"/" in plain:
        plain = b""
    found: list[FoundMessage] = []
    try:
        metadata = first_contact(consumer, settings.kafka.bootstrap_servers, min(timeout, REQUEST_SECONDS))
        waiting = _assign(consumer, [TopicPartition(t, p, since_ms) for t in kinds for p in _partitions(metadata, t)])
        while waiting:
            if time.monotonic() > deadline:
                raise TryAgain(
                    f"the input topics were not read to their end within {timeout:g} s; give a larger --timeout or a shorter --since"
                )
            for message in consumer.consume(BATCH, 0.2):
                error = message.error()
                place = (message.topic() or "", message.partition() or 0)
                if error is None:
                    if plain in (message.value() or b""):
                        match = _match(message, kinds[place[0]], message_id, settings.intake.max_event_bytes)
                        if (
                            match is not None
                            and tenant_id in (None, match.tenant_id)
                            and conversation_id in (None, match.entity_id)
                        ):
                            found.append(match)
                    if (message.offset() or 0) + 1 >= waiting.get(place, 0):
                        waiting.pop(place, None)
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                    waiting.pop(place, None)
                elif not error.retriable():
                    raise ServiceUnavailable(f"{place[0]}: {error.str()}")
    except KafkaException as error:
        raise ServiceUnavailable(f"Kafka refused the search: {error.args[0].str()}") from error
    finally:
        consumer.close()
    return found


def _partitions(metadata: object, topic: str) -> Sequence[int]:
    topics = metadata.topics  # type: ignore[attr-defined]
    if topic not in topics or topics[topic].error is not None:
        raise ConfigurationError(f"{topic} does not exist; `stream-sentiment topics create` makes it")
    return list(topics[topic].partitions)


def _assign(consumer: Consumer, places: list[TopicPartition]) -> dict[tuple[str, int], int]:
    """Assign what holds records since the time in each place's offset, 0 being the beginning; returns the end of each such
    partition.
    """
    everything = all(place.offset == 0 for place in places)
    starts = places if everything else consumer.offsets_for_times(places, timeout=REQUEST_SECONDS)
    waiting: dict[tuple[str, int], int] = {}
    assigned = []
    for start in starts:
        place = TopicPartition(start.topic, start.partition)
        low, high = consumer.get_watermark_offsets(place, timeout=REQUEST_SECONDS)
        # Below 0: nothing is as young as that.
        if start.error is None and 0 <= start.offset < high:
            assigned.append(TopicPartition(start.topic, start.partition, max(low, start.offset)))
            waiting[start.topic, start.partition] = high
    consumer.assign(assigned)
    return waiting


def _match(message: Message, kind: str, message_id: str, max_bytes: int) -> FoundMessage | None:
    try:
        decoded = decode(kind, message.value(), header_map(message.headers()), max_bytes)  # type: ignore[arg-type]
    except InvalidEvent:
        return None
    if isinstance(decoded, Skip):
        return None
    event = decoded.event
    name = event.message_id if isinstance(event, ChatEvent) else event.review_id
    if name != message_id:
        return None
    return FoundMessage(decoded, message.topic() or "", message.partition() or 0, message.offset() or 0)
