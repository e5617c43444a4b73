"""A bounded slice of topics, read once from beginning to end: for `replay` and for `backtest` on topics.

In: where to begin and where to end, as people say it. Out: records, partition after partition, each in the order of its offsets.
Joins no group, commits nothing. Blocks on Kafka. Raises `ConfigurationError`, `ServiceUnavailable`, or `TryAgain` when the log stands
still.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from stream_sentiment.errors import ConfigurationError, ServiceUnavailable, TryAgain
from stream_sentiment.events.envelope import to_milliseconds
from stream_sentiment.kafka.clients import AUTHENTICATION_ERRORS, common_config, first_contact
from stream_sentiment.observability.logs import kafka_logger
from stream_sentiment.settings import KafkaSettings

REQUEST_SECONDS = 15.0
#: Without a record or the news of an end for so long, the log stands still: a broker is away, or a transaction stays open.
STILL_SECONDS = 30.0
BATCH = 1_000

Place = tuple[str, int]


class LogRecord(NamedTuple):
    """One record as it stands in the log."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int  # 0 where the log has none
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]] | None


@dataclass(frozen=True, slots=True)
class Point:
    """A place in the log: its beginning, its end, a time, or an offset that counts in every partition."""

    text: str
    at_ms: int | None = None
    offset: int | None = None


EARLIEST, END = Point("earliest"), Point("end")


def parse_point(text: str, option: str) -> Point:
    """`earliest`, an offset, or a time with its zone (RFC 3339)."""
    given = text.strip()
    if given in (EARLIEST.text, END.text):
        return EARLIEST if given == EARLIEST.text else END
    if re.fullmatch(r"\d{1,18}", given):
        return Point(given, offset=int(given))
    try:
        moment = datetime.fromisoformat(given)
        if moment.tzinfo is None:
            raise ValueError("no zone")
    except ValueError:
        raise ConfigurationError(
            f"{option} {text!r}: write an offset (it counts in every partition), earliest, or a time with its zone, as in "
            "2026-11-22T06:00:00Z"
        ) from None
    return Point(given, at_ms=to_milliseconds(moment))


class Slice(NamedTuple):
    """Records [begin, end) of one partition."""

    place: Place
    begin: int
    end: int


class LogReader:
    """One consumer outside any group's work."""

    def __init__(self, settings: KafkaSettings, group: str) -> None:
        """`group` is a name that ACLs must allow; it is never joined."""
        self._servers = settings.bootstrap_servers
        self._config = common_config(settings, kafka_logger("log-reader")) | {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 100,
        }
        self._consumer = Consumer(self._config)

    def close(self) -> None:
        self._consumer.close()

    def topics(self) -> set[str]:
        """Every topic that there is."""
        return set(first_contact(self._consumer, self._servers, REQUEST_SECONDS).topics)

    def partitions(self, topics: Sequence[str]) -> dict[str, int]:
        """How many partitions each topic has. Raises ConfigurationError for one that is missing."""
        metadata = first_contact(self._consumer, self._servers, REQUEST_SECONDS)
        missing = [name for name in topics if name not in metadata.topics or metadata.topics[name].error is not None]
        if missing:
            raise ConfigurationError(f"Kafka has no topic {', '.join(missing)}")
        return {name: len(metadata.topics[name].partitions) for name in topics}

    def slices(self, topics: Mapping[str, int], begin: Point, end: Point) -> list[Slice]:
        """What lies between two points now, every partition of every topic; empty ones too, with begin == end."""
        places = [(topic, number) for topic, count in topics.items() for number in range(count)]
        bounds = {place: self._bounds(place) for place in places}
        begins, ends = self._offsets(bounds, begin), self._offsets(bounds, end)
        return [Slice(place, begins[place], max(begins[place], ends[place])) for place in places]

    def _bounds(self, place: Place) -> tuple[int, int]:
        try:
            low, high = self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=REQUEST_SECONDS)
        except KafkaException as error:
            raise _unavailable(place, error.args[0]) from error
        return low, high

    def _offsets(self, bounds: Mapping[Place, tuple[int, int]], point: Point) -> dict[Place, int]:
        if point.at_ms is not None:
            return self._offsets_at(bounds, point.at_ms)
        if point.offset is not None:
            return {place: min(max(point.offset, low), high) for place, (low, high) in bounds.items()}
        return {place: low if point == EARLIEST else high for place, (low, high) in bounds.items()}

    def _offsets_at(self, bounds: Mapping[Place, tuple[int, int]], at_ms: int) -> dict[Place, int]:
        """The first record of each partition whose timestamp is `at_ms` or later; the end where there is none."""
        asked = [TopicPartition(*place, at_ms) for place in bounds]
        try:
            found = self._consumer.offsets_for_times(asked, timeout=REQUEST_SECONDS)
        except KafkaException as error:
            raise ServiceUnavailable(f"Kafka does not say what lies at a time: {error.args[0].str()}") from error
        offsets = {}
        for item in found:
            if item.error is not None:
                raise _unavailable((item.topic, item.partition), item.error)
            low, high = bounds[item.topic, item.partition]
            offsets[item.topic, item.partition] = high if item.offset < 0 else min(max(item.offset, low), high)
        return offsets

    def committed(self, group: str, places: Sequence[Place]) -> dict[Place, int]:
        """What another group has committed; a place without a commit is left out."""
        consumer = Consumer({**self._config, "group.id": group})
        try:
            asked = [TopicPartition(*place) for place in places]
            found = consumer.committed(asked, timeout=REQUEST_SECONDS)
            return {(item.topic, item.partition): item.offset for item in found if item.offset >= 0}
        except KafkaException as error:
            raise ServiceUnavailable(
                f"Kafka does not say what group {group} has committed: {error.args[0].str()}"
            ) from error
        finally:
            consumer.close()

    def read(self, part: Slice) -> Iterator[LogRecord]:
        """The records of one slice. Holes (transaction markers, compaction, retention) are passed over."""
        if part.begin >= part.end:
            return
        topic, number = part.place
        self._consumer.assign([TopicPartition(topic, number, part.begin)])
        still = time.monotonic()
        while True:
            messages = self._consumer.consume(BATCH, 0.2)
            if messages:
                still = time.monotonic()
            elif time.monotonic() - still > STILL_SECONDS:
                raise TryAgain(
                    f"{topic}[{number}] was not read to offset {part.end}: nothing came for {STILL_SECONDS:g} s "
                    "(a broker is away, or a transaction stays open)"
                )
            for message in messages:
                error = message.error()
                if (message.topic(), message.partition()) != part.place and error is None:
                    continue  # fetched for the slice before
                if error is None:
                    if part.begin <= _offset(message) < part.end:
                        yield _record(message)
                    if _offset(message) + 1 >= part.end:
                        self._consumer.unassign()
                        return
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 (librdkafka's own names)
                    if _offset(message) >= part.end:
                        self._consumer.unassign()
                        return
                elif not error.retriable() or error.fatal():
                    raise _unavailable(part.place, error)


def _offset(message: Message) -> int:
    return message.offset() or 0


def _record(message: Message) -> LogRecord:
    headers: Any = message.headers()  # typed as a union of a dictionary and pairs; it is pairs
    return LogRecord(
        message.topic() or "",
        message.partition() or 0,
        _offset(message),
        max(0, message.timestamp()[1]),
        message.key(),
        message.value(),
        headers,
    )


def _unavailable(place: Place, error: KafkaError) -> Exception:
    if error.code() in AUTHENTICATION_ERRORS:
        return ConfigurationError(
            f"Kafka does not let us read {place[0]}: {error.str()}. It needs the READ permission."
        )
    return ServiceUnavailable(f"{place[0]}[{place[1]}]: {error.str()}")
