"""What the output topics hold already: the search that lets a new owner publish only the rest of an outbox.

In: positions to search from. Out: the ids of the committed records above them. Blocks until the end of every output partition as it
was when the search began, which open transactions of others hold up, and no longer than `SEARCH_SECONDS`. Raises
KafkaException or TimeoutError: try again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from confluent_kafka import OFFSET_BEGINNING, Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from stream_sentiment.kafka.outbox_record import record_id

Positions: TypeAlias = dict[str, dict[int, int]]
"""Topic -> partition -> offset."""

SEARCH_SECONDS = 120.0
"""Longer than the transaction time-out of a worker that died in the middle of one (see transactional.py)."""

REQUEST_SECONDS = 10.0
BATCH = 1_000


class CopySearch:
    """Reads output topics, `read_committed`. Safe to use from several threads: each search has its own consumer."""

    def __init__(self, client_config: Mapping[str, Any], group: str, topics: Sequence[str], logger: Any = None) -> None:
        """`group` is the worker's: the consumer joins nothing and commits nothing, but needs a name that ACLs allow."""
        self._topics = tuple(dict.fromkeys(topics))
        self._logger = logger
        self._admin = AdminClient(dict(client_config), logger=logger)
        self._config = {
            **client_config,
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
        }

    def ends(self) -> Positions:
        """The high watermark of every output partition, records of open transactions included."""
        places = []
        for topic in self._topics:
            metadata = self._admin.list_topics(topic, timeout=REQUEST_SECONDS).topics[topic]
            if metadata.error is not None:
                raise KafkaException(metadata.error)
            places += [TopicPartition(topic, number) for number in metadata.partitions]
        return self.end_offsets(places)

    def end_offsets(self, places: Sequence[TopicPartition]) -> Positions:
        """The high watermarks of these partitions."""
        futures = self._admin.list_offsets(
            {place: OffsetSpec.latest() for place in places},  # type: ignore[no-untyped-call]
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=REQUEST_SECONDS,
        )
        ends: Positions = {}
        for place, future in futures.items():
            ends.setdefault(place.topic, {})[place.partition] = future.result(timeout=REQUEST_SECONDS).offset
        return ends

    def ids(self, start: Positions, ends: Positions, cancelled: Callable[[], bool] = lambda: False) -> set[str]:
        """Ids of the records from `start` (where it names no position: the oldest) up to `ends`; none once it is cancelled."""
        waiting = {
            (topic, number): end
            for topic, partitions in ends.items()
            for number, end in partitions.items()
            if end > start.get(topic, {}).get(number, 0)
        }
        if not waiting:
            return set()
        consumer = Consumer(self._config, logger=self._logger) if self._logger else Consumer(self._config)
        try:
            consumer.assign(
                [
                    TopicPartition(topic, number, start.get(topic, {}).get(number, OFFSET_BEGINNING))
                    for topic, number in waiting
                ]
            )
            return _read(consumer, waiting, cancelled)
        finally:
            consumer.close()


def _read(consumer: Consumer, waiting: dict[tuple[str, int], int], cancelled: Callable[[], bool]) -> set[str]:
    """Reads until every partition has reached its end; transaction markers count, so the end is told by EOF events, too."""
    found: set[str] = set()
    deadline = time.monotonic() + SEARCH_SECONDS
    while waiting and not cancelled():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the output topics could not be read to their end: {sorted(waiting)} are held up")
        for message in consumer.consume(BATCH, 0.1):
            place = (message.topic() or "", message.partition() or 0)
            error = message.error()
            if error is None:
                headers: Any = message.headers() or []  # typed as a union of a dictionary and pairs; it is pairs
                if identity := record_id(headers):
                    found.add(identity)
                reached = (message.offset() or 0) + 1
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 (librdkafka's own names)
                reached = message.offset() or 0
            elif error.retriable() or not error.fatal():
                continue
            else:
                raise KafkaException(error)
            if place in waiting and reached >= waiting[place]:
                del waiting[place]
    return found
