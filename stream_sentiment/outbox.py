"""The outbox publisher: what Redis holds goes to Kafka, and only what Kafka has acknowledged is forgotten.

In: entries of the outbox, from APPLY or from the last owner. Out: records on `escalation.events` and `sentiment.dlq`, at least
once, always with the same id, key and headers. Belongs to the apply thread. `serve` does not block; `drain` does, to its deadline.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream_sentiment.kafka.clients import produce_failure
from stream_sentiment.kafka.dead_letter import PREFIX, hashed_body
from stream_sentiment.kafka.outbox_record import OutboxRecord
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.stages import Epoch
from stream_sentiment.store.errors import StoreUnavailable
from stream_sentiment.store.redis import StateStore

#: Delivered entries are forgotten in one call when so many have gathered, or the oldest has waited so long.
FORGET_COUNT, FORGET_SECONDS = 64, 0.2
#: A record that Kafka refused is sent again after this long, doubled up to the second figure.
RETRY_FIRST_SECONDS, RETRY_LAST_SECONDS = 0.5, 30.0

#: The longest a record that goes alone waits for the others to be gone, and then for its own acknowledgement.
ALONE_SECONDS = 5.0

log = get_logger("outbox")


class Publisher(Protocol):
    """Sends one entry's record; `KafkaPublisher` below, or the transactional one of `output.exactly_once`."""

    def acquire(self, epoch: Epoch, entries: Mapping[str, OutboxRecord]) -> set[str]:
        """A partition has come; returns the entries that are in the topic already and need only be forgotten."""

    def send(self, entry: Entry) -> None:
        """Hand one record over; its end is told by `Outbox.delivered` or `Outbox.failed`, in a later `poll`."""

    def poll(self, timeout: float) -> None:
        """Serve delivery reports for up to `timeout` seconds."""

    def release(self, epochs: Iterable[Epoch]) -> None:
        """Partitions have gone."""


@dataclass(slots=True, eq=False)
class Entry:
    """One outbox entry on its way."""

    epoch: Epoch
    field: str
    record: OutboxRecord
    since: float
    trigger_ms: int | None = None
    attempts: int = 0
    #: To be sent in a batch of its own: a broker refuses a whole batch for its size, and does not say which record was too large.
    alone: bool = False


class Outbox:
    """Entries between APPLY and the broker's acknowledgement."""

    def __init__(
        self, store: StateStore, metrics: Metrics, *, dlq_topic: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._dlq_topic = dlq_topic
        self._clock = clock
        self._publisher: Publisher | None = None
        self._pending: dict[Epoch, dict[str, Entry]] = {}
        self._count = 0
        self._delivered: dict[Epoch, list[str]] = {}
        self._delivered_since: float | None = None
        self._retries: list[tuple[float, int, Entry]] = []
        self._order = itertools.count()

    def use(self, publisher: Publisher) -> None:
        """Set the publisher; it reports back to this outbox."""
        self._publisher = publisher

    @property
    def depth(self) -> int:
        """Entries that Kafka has not acknowledged."""
        return self._count

    def adopt(self, epoch: Epoch, encoded: Mapping[str, bytes]) -> None:
        """Publish (again) what the partition's last owner left, in the order of the input."""
        records = {}
        for field, raw in encoded.items():
            try:
                records[field] = OutboxRecord.decode(raw)
            except (ValueError, KeyError, TypeError) as error:
                log.error("outbox_entry_unreadable", topic=epoch.partition.topic, field=field, reason=str(error))
        assert self._publisher is not None
        present = self._publisher.acquire(epoch, records)
        if present:
            self._forget_later(epoch, present)
        self._metrics.outbox_redelivered_total.inc(len(records) - len(present))
        for field, record in records.items():
            if field not in present:
                self.add(epoch, field, record)

    def add(self, epoch: Epoch, field: str, record: OutboxRecord, trigger_ms: int | None = None) -> None:
        """Publish one entry. `trigger_ms` is the event time of its cause, for the latency metric."""
        entry = Entry(epoch, field, record, self._clock(), trigger_ms)
        self._pending.setdefault(epoch, {})[field] = entry
        self._count += 1
        assert self._publisher is not None
        self._publisher.send(entry)

    def delivered(self, entry: Entry) -> None:
        """Kafka has acknowledged the entry."""
        pending = self._pending.get(entry.epoch)
        if pending is None or pending.pop(entry.field, None) is None:
            return
        self._count -= 1
        self._metrics.produce_total.labels(entry.record.topic, "ack").inc()
        if entry.record.topic == self._dlq_topic:
            self._metrics.dead_letter_total.labels(_error_class(entry.record), "ack").inc()
        elif entry.trigger_ms is not None:
            latency = self._metrics.clock.now_ms() - entry.trigger_ms
            self._metrics.escalation_latency_seconds.observe(max(0, latency) / 1000)
        self._forget_later(entry.epoch, (entry.field,))

    def failed(self, entry: Entry, error: KafkaError) -> None:
        """Kafka refused the entry. It stays in Redis, so it is tried again for as long as it takes."""
        self._metrics.produce_total.labels(entry.record.topic, produce_failure(error)).inc()
        if entry.record.topic == self._dlq_topic:
            self._metrics.dead_letter_total.labels(_error_class(entry.record), "failed").inc()
        entry.attempts += 1
        if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE):
            if entry.alone:
                entry.record = shrink(entry.record, self._dlq_topic)
            entry.alone = True
        wait = min(RETRY_LAST_SECONDS, RETRY_FIRST_SECONDS * 2 ** min(entry.attempts - 1, 16))
        heapq.heappush(self._retries, (self._clock() + wait, next(self._order), entry))
        log.error("publish_failed", topic=entry.record.topic, reason=error.name(), attempts=entry.attempts)

    def serve(self, timeout: float = 0.0) -> None:
        """Serve delivery reports, send again what is due, forget what is delivered."""
        assert self._publisher is not None
        self._publisher.poll(timeout)
        now = self._clock()
        while self._retries and self._retries[0][0] <= now:
            entry = heapq.heappop(self._retries)[2]
            if entry.field in self._pending.get(entry.epoch, {}):
                self._publisher.send(entry)
        if self._delivered_since is not None:
            waiting = sum(len(fields) for fields in self._delivered.values())
            if waiting >= FORGET_COUNT or now - self._delivered_since >= FORGET_SECONDS:
                self._forget_now()

    def drain(self, deadline: float) -> bool:
        """Serve until nothing is pending; False when the monotonic `deadline` comes first."""
        while self._count and self._clock() < deadline:
            self.serve(0.05)
        self._forget_now()
        return self._count == 0

    def release(self, epochs: Iterable[Epoch]) -> None:
        """Partitions have gone: their entries are in Redis, the next owner publishes what is left."""
        epochs = list(epochs)
        for epoch in epochs:
            self._count -= len(self._pending.pop(epoch, {}))
            self._delivered.pop(epoch, None)
        assert self._publisher is not None
        self._publisher.release(epochs)

    def unsettled(self, epoch: Epoch) -> set[str]:
        """The partition's entries that Redis may still hold: not delivered, or delivered and not known to be forgotten."""
        return {*self._pending.get(epoch, ()), *self._delivered.get(epoch, ())}

    def report(self) -> None:
        """Set the gauges."""
        self._metrics.outbox_entries.set(self._count)
        oldest = min((entry.since for pending in self._pending.values() for entry in pending.values()), default=None)
        waited_ms = 0 if oldest is None else round((self._clock() - oldest) * 1000)
        self._metrics.outbox_oldest_age_seconds.since(
            None if oldest is None else self._metrics.clock.now_ms() - waited_ms
        )

    def _forget_later(self, epoch: Epoch, fields: Iterable[str]) -> None:
        self._delivered.setdefault(epoch, []).extend(fields)
        if self._delivered_since is None:
            self._delivered_since = self._clock()

    def _forget_now(self) -> None:
        for epoch in list(self._delivered):
            fields = self._delivered.pop(epoch)
            if not epoch.alive:
                continue
            try:
                self._store.forget(epoch.partition, epoch.token, fields)
            except StoreUnavailable:
                # Still there after the outage, or published once more by the next owner under the same id.
                self._delivered.setdefault(epoch, []).extend(fields)
                self._delivered_since = self._clock()
                return
        self._delivered_since = None


class KafkaPublisher:
    """One idempotent producer for all partitions: at least once, copies only with the same id."""

    def __init__(self, producer: Producer, outbox: Outbox) -> None:
        self._producer = producer
        self._outbox = outbox

    def acquire(self, epoch: Epoch, entries: Mapping[str, OutboxRecord]) -> set[str]:
        """Nothing is known of earlier copies."""
        return set()

    def send(self, entry: Entry) -> None:
        """Produce one record, waiting while the local queue is full."""
        record = entry.record
        if entry.alone:
            self._producer.flush(ALONE_SECONDS)

        def report(error: KafkaError | None, _message: Message) -> None:
            if error is None:
                self._outbox.delivered(entry)
            else:
                self._outbox.failed(entry, error)

        while True:
            try:
                self._producer.produce(
                    record.topic, value=record.value, key=record.key, headers=list(record.headers), on_delivery=report
                )
                if entry.alone:
                    self._producer.flush(ALONE_SECONDS)
                return
            except BufferError:
                self._producer.poll(0.05)
            except KafkaException as error:
                # librdkafka itself refuses what exceeds message.max.bytes, and topics that the broker has refused before: a
                # delivery report for these never comes. Only a broken client cannot go on.
                if error.args[0].fatal():
                    raise
                self._outbox.failed(entry, error.args[0])
                return

    def poll(self, timeout: float) -> None:
        """Serve delivery reports."""
        self._producer.poll(timeout)

    def release(self, epochs: Iterable[Epoch]) -> None:
        """Records in the local queue still go out: copies at most, with ids the consumer knows."""

    def close(self) -> None:
        """Nothing to end: what is in the local queue is in Redis, too."""


def shrink(record: OutboxRecord, dlq_topic: str) -> OutboxRecord:
    """A form of the record that fits where the topic accepts less than we sent: no body, or no evidence."""
    if record.topic == dlq_topic:
        headers = [
            (name, value) for name, value in record.headers if name.startswith(PREFIX) and name != PREFIX + "body"
        ]
        return OutboxRecord(
            record.topic,
            record.key,
            hashed_body(record.value or b""),
            [*headers, (PREFIX + "body", b"sha256")],
        )
    if record.value is None:
        return record
    value = orjson.loads(record.value)
    if "evidence" in value:
        value["evidence"], value["evidence_omitted"] = [], True
    return OutboxRecord(record.topic, record.key, orjson.dumps(value), record.headers)


def _error_class(record: OutboxRecord) -> str:
    return next((value.decode() for name, value in record.headers if name == PREFIX + "error.class"), "decode")
