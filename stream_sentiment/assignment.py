"""The assignment: which partitions are ours, in Kafka and in Redis, and under which epoch.

In: the consumer's rebalance callbacks, and requests of the apply stage to acquire a partition anew. Out: epochs. A partition is
acquired in Redis when it comes, drained and committed when it goes; one that cannot be acquired now stays paused and is tried again.

Everything here runs on the poll thread, but `reacquire`. Its only waits are ACQUIRE (`ACQUIRE_SECONDS`), the questions of
`start_offsets`, and the drain of a revoke (one deadline).
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from stream_sentiment.clock import Clock
from stream_sentiment.errors import ConfigurationError, ServiceUnavailable
from stream_sentiment.observability.health import HealthState
from stream_sentiment.observability.labels import ConsumerState
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.observability.phases import TimeInState
from stream_sentiment.partition_clock import PartitionClock
from stream_sentiment.settings import Settings
from stream_sentiment.stages import Epoch
from stream_sentiment.start_offsets import StartOffsets
from stream_sentiment.store.errors import Fenced, StoreUnavailable
from stream_sentiment.store.keys import TopicPartition
from stream_sentiment.store.redis import StateStore

#: Time that one ACQUIRE may take inside a rebalance callback; after that the partition stays paused and is tried again.
ACQUIRE_SECONDS = 2.0
#: Waits between attempts to acquire: doubled from the first to the last.
RETRY_FIRST_SECONDS, RETRY_LAST_SECONDS = 0.1, 5.0

log = get_logger("assignment")


@dataclass(slots=True)
class _Waiting:
    """A partition that is assigned but not (or no longer) ours in Redis."""

    due: float
    attempts: int


class Assignment:
    """The partitions of one consumer. `epochs` is read by the intake for every record."""

    def __init__(
        self,
        settings: Settings,
        store: StateStore,
        metrics: Metrics,
        health: HealthState,
        clock: Clock,
        *,
        partition_counts: Mapping[str, int],
        phases: TimeInState,
        on_acquired: Callable[[Epoch, Mapping[str, bytes]], None],
        on_released: Callable[[Sequence[Epoch], float], None],
        on_failure: Callable[[BaseException], None],
        drain: Callable[[float, str, Sequence[Epoch]], None],
        paused: Callable[[], bool],
    ) -> None:
        """
        Args:
            phases: the time account of the poll thread.
            on_acquired: the epoch and the outbox that the last owner left; called before any of its records is read.
            on_released: epochs that go away, and the monotonic deadline until which their outbox may still be published.
            on_failure: something that trying again cannot mend, found inside a callback that may not raise.
            drain: bring what has been read to its end until the monotonic deadline.
            paused: whether back-pressure has paused the input.
        """
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._partition_counts = dict(partition_counts)
        self._starts = StartOffsets(settings, store, metrics, self._partition_counts)
        self._time = phases
        self._on_acquired = on_acquired
        self._on_released = on_released
        self._on_failure = on_failure
        self._drain = drain
        self._is_paused = paused
        self._inputs = settings.topics.inputs()
        self._member = f"{settings.kafka.client_id}-{uuid.uuid4().hex[:8]}"
        self.epochs: dict[tuple[str, int], Epoch] = {}
        self._waiting: dict[TopicPartition, _Waiting] = {}
        self._requests: queue.SimpleQueue[tuple[Epoch, str]] = queue.SimpleQueue()
        self._rebalance_since: float | None = None
        #: True after the first assignment, though it may be empty.
        self.joined = False

    @property
    def waiting(self) -> int:
        """Partitions that are assigned but not acquired."""
        return len(self._waiting)

    def reacquire(self, epoch: Epoch, reason: str) -> None:
        """Ask, from any thread, to acquire the partition of a dead epoch anew and to read again from its watermark."""
        self._requests.put((epoch, reason))

    def assigned(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        """Rebalance callback: take partitions in Redis and read from their watermarks (delivery.md, step 1)."""
        self.joined = True
        state = self._time.switch(ConsumerState.CALLBACK)
        began = self._rebalance_since or time.monotonic()
        self._metrics.rebalances_total.labels("assign").inc()
        log.info("partitions_assigned", partitions=_listed(partitions))
        now = time.monotonic()
        # These only: others that wait have been read before, and must be sought and resumed when they are acquired.
        new = [TopicPartition(partition.topic, partition.partition) for partition in partitions]
        for tp in new:
            self._waiting[tp] = _Waiting(now, 0)
        try:
            starts = self._acquire(consumer, new)
        except (ConfigurationError, ServiceUnavailable) as error:
            if not isinstance(error, StoreUnavailable):
                self._on_failure(error)
            starts = {}
        for partition in partitions:
            start = starts.get(TopicPartition(partition.topic, partition.partition))
            partition.offset = OFFSET_INVALID if start is None else start
        consumer.incremental_assign(partitions)
        held = [p for p in partitions if self._is_paused() or TopicPartition(p.topic, p.partition) in self._waiting]
        if held:
            consumer.pause(held)
        self._count_assignment()
        self._metrics.rebalance_duration_seconds.observe(time.monotonic() - began)
        self._rebalance_since = None
        self._time.switch(state or ConsumerState.WORK)

    def revoked(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        """Rebalance callback: finish what is in flight within one deadline, commit, let go (delivery.md, step 7)."""
        state = self._time.switch(ConsumerState.CALLBACK)
        self._rebalance_since = time.monotonic()
        self._metrics.rebalances_total.labels("revoke").inc()
        log.info("partitions_revoked", partitions=_listed(partitions))
        budget = min(
            self._settings.worker.drain_timeout.total_seconds(),
            self._settings.kafka.max_poll_interval.total_seconds() / 3,
        )
        going = [self.epochs[place] for p in partitions if (place := (p.topic, p.partition)) in self.epochs]
        self._drain(time.monotonic() + budget, "revoke", going)
        self._let_go(partitions)
        consumer.incremental_unassign(partitions)
        self._time.switch(state or ConsumerState.WORK)

    def lost(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        """Rebalance callback: the group went on without us; nothing of these partitions may be applied any more."""
        self._rebalance_since = time.monotonic()
        self._metrics.rebalances_total.labels("lost").inc()
        log.warning("partitions_lost", partitions=_listed(partitions))
        self._let_go(partitions)
        consumer.incremental_unassign(partitions)

    def _let_go(self, partitions: Sequence[KafkaPartition]) -> None:
        gone = []
        for partition in partitions:
            self._waiting.pop(TopicPartition(partition.topic, partition.partition), None)
            epoch = self.epochs.pop((partition.topic, partition.partition), None)
            if epoch is not None:
                epoch.alive = False
                gone.append(epoch)
            self._metrics.drop_partition(partition.topic, partition.partition)
        self._on_released(gone, time.monotonic())
        self._count_assignment()

    def serve_requests(self, consumer: Consumer) -> None:
        """Epochs that the apply stage gave up: put their partitions in line to be acquired anew."""
        while True:
            try:
                epoch, reason = self._requests.get_nowait()
            except queue.Empty:
                return
            place = (epoch.partition.topic, epoch.partition.partition)
            if self.epochs.get(place) is not epoch:
                continue  # revoked, lost or already acquired anew
            del self.epochs[place]
            self._on_released([epoch], time.monotonic())
            consumer.pause([KafkaPartition(*place)])
            attempts = epoch.attempts + 1
            wait = 0.0 if attempts == 1 else _pause_after(attempts)
            self._waiting[epoch.partition] = _Waiting(time.monotonic() + wait, attempts)
            log.warning("partition_reacquired", topic=place[0], partition=place[1], reason=reason, attempts=attempts)
            self._count_assignment()

    def acquire_waiting(self, consumer: Consumer) -> None:
        """Acquire what is due, seek to its watermark and read on."""
        if not self._waiting:
            return
        now = time.monotonic()
        due = [partition for partition, waiting in self._waiting.items() if waiting.due <= now]
        if not due:
            return
        for partition, start in self._acquire(consumer, due).items():
            place = KafkaPartition(partition.topic, partition.partition, start)
            try:
                consumer.seek(place)
            except KafkaException as error:
                # Just assigned and not fetching yet: librdkafka refuses the seek. Once more, a little later.
                log.info(
                    "seek_refused", topic=partition.topic, partition=partition.partition, reason=error.args[0].name()
                )
                epoch = self.epochs.pop((partition.topic, partition.partition))
                epoch.alive = False
                self._on_released([epoch], now)
                self._waiting[partition] = _Waiting(now + RETRY_FIRST_SECONDS, epoch.attempts)
                continue
            if not self._is_paused():
                consumer.resume([place])
        self._count_assignment()

    def _acquire(self, consumer: Consumer, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """ACQUIRE partitions in one round trip and start an epoch each; returns where to read from.

        A partition that cannot be acquired now stays in `_waiting`. Raises ConfigurationError where a person must decide.
        """
        now = time.monotonic()
        tokens = [(partition, str(uuid.uuid4())) for partition in partitions]
        try:
            acquired = self._store.acquire(
                tokens,
                self._member,
                partition_counts=self._partition_counts,
                accept_partition_counts=self._settings.redis.ignore_partition_count,
                deadline=now + ACQUIRE_SECONDS,
            )
            self._metrics.redis_op_duration_seconds.labels("acquire").observe(time.monotonic() - now)
            starts = self._starts.resolve(consumer, acquired)
        except (StoreUnavailable, KafkaException, Fenced) as error:
            for partition in partitions:
                waiting = self._waiting[partition]
                waiting.attempts += 1
                waiting.due = time.monotonic() + _pause_after(waiting.attempts)
            self._health.set_ready("redis", False, "partitions cannot be acquired")
            log.warning("acquire_failed", reason=type(error).__name__, detail=str(error))
            return {}
        self._health.set_ready("redis", True)
        for taken in acquired:
            epoch = Epoch(
                taken.tp,
                self._inputs[taken.tp.topic],
                taken.token,
                starts[taken.tp],
                taken.settled,
                PartitionClock.decode(taken.clock),
            )
            epoch.attempts = self._waiting.pop(taken.tp).attempts
            epoch.last_progress = time.monotonic()
            # Until a record has been applied its age is not known: the wait counts from here.
            epoch.last_timestamp_ms = self._clock.now_ms()
            place = (taken.tp.topic, str(taken.tp.partition))
            self._metrics.last_progress_timestamp_seconds.labels(*place).set(epoch.last_timestamp_ms / 1000)
            self.epochs[taken.tp] = epoch
            self._on_acquired(epoch, taken.outbox)
            self._metrics.watermark_offset.labels(taken.tp.topic, str(taken.tp.partition)).set(epoch.watermark)
            log.info(
                "partition_acquired",
                topic=taken.tp.topic,
                partition=taken.tp.partition,
                watermark=epoch.watermark,
                outbox=len(taken.outbox),
            )
        return starts

    def _count_assignment(self) -> None:
        for topic in self._inputs:
            count = sum(1 for place in [*self.epochs, *self._waiting] if place[0] == topic)
            self._metrics.assigned_partitions.labels(topic).set(count)
        owned = len(self.epochs)
        self._health.set_ready("partitions", not self._waiting, f"{owned} acquired, {len(self._waiting)} waiting")
        if self.joined:
            self._health.set_started()


def _pause_after(attempts: int) -> float:
    # The power is bounded too: 2**1024 is no float any more, and an outage of a day makes more attempts than that.
    return min(RETRY_LAST_SECONDS, RETRY_FIRST_SECONDS * 2.0 ** min(attempts, 16))


def _listed(partitions: Sequence[KafkaPartition]) -> list[str]:
    return [f"{p.topic}[{p.partition}]" for p in partitions]
