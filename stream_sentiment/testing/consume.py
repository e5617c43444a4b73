"""A whole topic as a list, for assertions on what a service has published.

Blocks until the end of every partition was reached (and, with `at_least`, until so many records are there). Reads with explicit offsets
and without a group, so that nothing is committed and a second call sees the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.testing.kafka_admin import quiet

__all__ = ["Record", "read_topic"]

_METADATA_TIMEOUT_S = 15

# The underscore is librdkafka's way to name its own codes; they are documented and public.
_PARTITION_EOF = KafkaError._PARTITION_EOF  # noqa: SLF001
_ALL_BROKERS_DOWN = KafkaError._ALL_BROKERS_DOWN  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Record:
    """One Kafka record with everything a test may ask for."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None  # None: a tombstone
    headers: Mapping[str, str]  # the last value wins where a name repeats

    def json(self) -> Any:
        """The value, parsed; raises when it is no JSON."""
        if self.value is None:
            raise ValueError(f"{self.topic}[{self.partition}]@{self.offset} is a tombstone")
        return json.loads(self.value)


def read_topic(
    bootstrap_servers: str,
    topic: str,
    *,
    at_least: int = 0,
    until: Callable[[list[Record]], bool] | None = None,
    timeout_s: float = 30.0,
    read_committed: bool = True,
    settings: Mapping[str, Any] | None = None,
) -> list[Record]:
    """All records of `topic`, in the order of arrival per partition, partitions one after the other.

    Returns when every partition is at its end, `at_least` records are there and `until(records)` holds; raises `ServiceUnavailable`
    with what was found after `timeout_s` seconds. `read_committed=False` shows records of open and aborted transactions, too.
    `settings` are further librdkafka settings (security).
    """
    consumer = Consumer(
        quiet(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "stream-sentiment-testing-reader",  # librdkafka insists on one; it is never joined
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,  # how long a broker may sit on the news that a partition is at its end
                "isolation.level": "read_committed" if read_committed else "read_uncommitted",
                **(settings or {}),
            }
        )
    )
    try:
        metadata = consumer.list_topics(topic, timeout=_METADATA_TIMEOUT_S).topics[topic]
        if metadata.error is not None:
            raise ServiceUnavailable(f"topic {topic}: {metadata.error}")
        partitions = sorted(metadata.partitions)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        records: list[Record] = []
        at_end: set[int] = set()
        deadline = time.monotonic() + timeout_s
        while True:
            for message in consumer.consume(500, 0.1):
                error = message.error()
                partition = message.partition() or 0
                if error is None:
                    records.append(_record(message))
                    at_end.discard(partition)
                elif error.code() == _PARTITION_EOF:
                    at_end.add(partition)
                elif not error.retriable() and error.code() != _ALL_BROKERS_DOWN:
                    raise ServiceUnavailable(f"topic {topic}: {error.str()}")
            complete = len(at_end) == len(partitions) and len(records) >= at_least
            if complete and (until is None or until(records)):
                return sorted(records, key=lambda record: (record.partition, record.offset))
            if time.monotonic() > deadline:
                raise ServiceUnavailable(
                    f"topic {topic}: {len(records)} records after {timeout_s:g} s (at least {at_least} expected; "
                    f"{len(at_end)} of {len(partitions)} partitions read to their end)"
                )
    finally:
        consumer.close()


def _record(message: Message) -> Record:
    headers: dict[str, str] = {}
    pairs: Any = message.headers() or []  # typed as a union of a dictionary and pairs; it is pairs
    for name, value in pairs:
        headers[str(name)] = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        timestamp_ms=message.timestamp()[1],
        key=message.key(),
        value=message.value(),
        headers=headers,
    )
