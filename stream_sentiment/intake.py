"""The poll thread: the one thread that touches the Kafka consumer.

In: records from Kafka. Out: arrival windows of decoded events, in order, to the score stage. It owns assignment: partitions are
acquired in Redis when they come, drained and committed when they go, acquired anew when the apply stage says that Redis and we
disagree. It never waits for the model: when the pipeline is full it holds, then pauses its partitions and goes on polling.

Its only waits are `poll` (at most 100 ms), ACQUIRE (a short deadline) and the drain of a revoke (one deadline).
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from confluent_kafka import (
    OFFSET_INVALID,
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
)
from confluent_kafka import (
    TopicPartition as KafkaPartition,
)

from stream_sentiment.batching import ArrivalWindow
from stream_sentiment.clock import Clock
from stream_sentiment.errors import ConfigurationError, ServiceUnavailable
from stream_sentiment.events.envelope import header_map
from stream_sentiment.events.incoming import InvalidEvent, Skip, decode
from stream_sentiment.events.routing import RoutingOptions, route
from stream_sentiment.flow import Flow
from stream_sentiment.kafka.clients import AUTHENTICATION_ERRORS, consumer_config
from stream_sentiment.observability.broker_statistics import STATISTICS_MILLISECONDS, BrokerStatistics
from stream_sentiment.observability.health import HealthState
from stream_sentiment.observability.labels import ConsumerState
from stream_sentiment.observability.logs import get_logger, kafka_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.settings import GroupProtocol, MissingWatermarkPolicy, Settings
from stream_sentiment.stages import Epoch, Record, Window
from stream_sentiment.store.errors import Fenced, StoreUnavailable
from stream_sentiment.store.keys import TopicPartition
from stream_sentiment.store.redis import Acquired, StateStore

#: The longest the poll thread sleeps in `poll`; rebalance callbacks and requests of the apply stage wait no longer.
POLL_SECONDS = 0.1
#: Time that one ACQUIRE may take inside a rebalance callback; after that the partition stays paused and is tried again.
ACQUIRE_SECONDS = 2.0
#: Questions to the broker about one partition's offsets.
OFFSETS_SECONDS = 10.0
#: Waits between attempts to acquire: doubled from the first to the last.
RETRY_FIRST_SECONDS, RETRY_LAST_SECONDS = 0.1, 5.0

log = get_logger("intake")


@dataclass(slots=True)
class _Waiting:
    """A partition that is assigned but not (or no longer) ours in Redis."""

    due: float
    attempts: int


class Intake:
    """Reads, decodes, batches, and owns the assignment. `run` is the poll thread's body."""

    def __init__(
        self,
        settings: Settings,
        store: StateStore,
        flow: Flow,
        metrics: Metrics,
        health: HealthState,
        clock: Clock,
        *,
        routing: RoutingOptions,
        partition_counts: Mapping[str, int],
        on_acquired: Callable[[Epoch, Mapping[str, bytes]], None],
        on_released: Callable[[Sequence[Epoch], float], None],
        exit_when_idle: float | None = None,
    ) -> None:
        """
        Args:
            on_acquired: the epoch and the outbox that the last owner left; called before any of its records is read.
            on_released: epochs that go away, and the monotonic deadline until which their outbox may still be published.
            exit_when_idle: seconds at the end of every partition after which `run` returns by itself.
        """
        self._settings = settings
        self._store = store
        self._flow = flow
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._routing = routing
        self._partition_counts = dict(partition_counts)
        self._on_acquired = on_acquired
        self._on_released = on_released
        self._exit_when_idle = exit_when_idle
        self._inputs = settings.topics.inputs()
        self._member = f"{settings.kafka.client_id}-{uuid.uuid4().hex[:8]}"
        self._window: ArrivalWindow[Record] = ArrivalWindow(
            settings.intake.window_events, settings.intake.window_bytes, settings.intake.window_wait.total_seconds()
        )
        self._window_bytes = 0
        self._held: Window | None = None
        self._epochs: dict[tuple[str, int], Epoch] = {}
        self._waiting: dict[TopicPartition, _Waiting] = {}
        self._requests: queue.SimpleQueue[tuple[Epoch, str]] = queue.SimpleQueue()
        self._at_end: set[tuple[str, int]] = set()
        self._idle_since: float | None = None
        self._joined = False
        self._paused = False
        self._stopping = False
        self._failure: BaseException | None = None
        self._next_commit = 0.0
        self._rebalance_since: float | None = None
        self._time = metrics.consumer_time_seconds_total.of()
        self._protocol = settings.kafka.group_protocol
        self._consumer = self._subscribe()

    # -- called by other threads ---------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask `run` to drain and return."""
        self._stopping = True

    def reacquire(self, epoch: Epoch, reason: str) -> None:
        """The apply stage and Redis disagree about a partition: acquire it anew and read again from its watermark.

        The caller has set `epoch.alive` to False, so that nothing more of it is applied.
        """
        self._requests.put((epoch, reason))

    def fail(self, error: BaseException) -> None:
        """Another thread cannot go on: `run` stops without a drain and raises `error`."""
        self._failure = error

    # -- the poll thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Poll until `stop`, or until idle for long enough; then drain within one deadline and leave the group.

        Raises:
            ConfigurationError: offsets, watermark and topics contradict each other, or Kafka refused us.
            ServiceUnavailable: raised by nothing here at run time; an outage is waited out.
        """
        try:
            while not self._stopping and self._failure is None:
                self._health.beat("intake")
                self._time.switch(ConsumerState.WORK)
                self._serve_requests()
                self._acquire_waiting()
                self._read()
                self._hand_over()
                self._commit_if_due()
                if self._idle_long_enough():
                    break
            if self._failure is None:
                self._drain(time.monotonic() + self._settings.worker.drain_timeout.total_seconds(), "drain")
        finally:
            self._close()
            self._time.stop()
        if self._failure is not None:
            raise self._failure

    def _subscribe(self) -> Consumer:
        """A consumer in the group. `auto` begins with KIP-848 and falls back when the broker does not know it."""
        protocol = self._protocol
        if protocol is GroupProtocol.AUTO:
            protocol = GroupProtocol.CONSUMER
        config: dict[str, Any] = consumer_config(self._settings.kafka, protocol, kafka_logger("consumer"))
        config["on_commit"] = self._committed
        if self._exit_when_idle is not None:
            config["enable.partition.eof"] = True
        config["statistics.interval.ms"] = STATISTICS_MILLISECONDS
        config["stats_cb"] = BrokerStatistics(self._metrics)
        consumer = Consumer(config)
        consumer.subscribe(list(self._inputs), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        return consumer

    def _fall_back_to_classic(self) -> None:
        log.warning("group_protocol_fallback", reason="the broker does not support KIP-848; using cooperative-sticky")
        self._consumer.close()
        self._protocol = GroupProtocol.CLASSIC
        self._consumer = self._subscribe()

    def _read(self) -> None:
        """One `poll`, and whatever else is there without waiting."""
        now = time.monotonic()
        remaining = self._window.remaining(now)
        timeout = POLL_SECONDS if remaining is None else min(POLL_SECONDS, remaining)
        waiting = not len(self._window) and self._flow.idle()
        self._time.switch(ConsumerState.IDLE if waiting else ConsumerState.POLL)
        message = self._consumer.poll(timeout if self._window.room > 0 else 0)
        self._time.switch(ConsumerState.WORK)
        if message is None:
            return
        started = time.monotonic()
        received_ms = self._clock.now_ms()
        # Before `consume`, which may serve a rebalance: the record belongs to the epoch under which it was read.
        self._take(message, received_ms, started)
        if self._window.room > 0:
            for message in self._consumer.consume(self._window.room, 0):
                self._take(message, received_ms, started)
        self._metrics.stage_duration_seconds.labels("decode").observe(time.monotonic() - started)

    def _take(self, message: Message, received_ms: int, now: float) -> None:
        error = message.error()
        # The client's types allow None for the sake of messages that were never sent; a consumed one has a place.
        place = cast(tuple[str, int], (message.topic(), message.partition()))
        if error is not None:
            self._consumer_error(error, place)
            return
        epoch = self._epochs.get(place)
        offset = cast(int, message.offset())
        if epoch is None or not epoch.alive or offset < epoch.read_up_to:
            return  # not ours (any more), or read before a seek took effect: its owner reads it again
        if offset > epoch.read_up_to == epoch.watermark and epoch.watermark > 0:
            # Transaction markers and compaction leave holes too, so this is told and not an alarm.
            log.info("offsets_not_delivered", topic=place[0], partition=place[1], first=epoch.watermark, next=offset)
        epoch.read_up_to = offset + 1
        value = message.value()
        raw_headers = cast("list[tuple[str, bytes | None]] | None", message.headers())
        outcome: Any
        try:
            outcome = decode(
                epoch.kind, value, header_map(raw_headers) if raw_headers else {}, self._settings.intake.max_event_bytes
            )
        except InvalidEvent as invalid:
            outcome = invalid
        timestamp_type, timestamp_ms = message.timestamp()
        if timestamp_type == TIMESTAMP_NOT_AVAILABLE:
            timestamp_ms = received_ms
        record = Record(epoch, offset, timestamp_ms, received_ms, message.key(), value, raw_headers, outcome)
        if not isinstance(outcome, Skip | InvalidEvent):
            record.text, record.language, record.skipped_reason, record.truncated = route(outcome, self._routing)
        size = len(value) if value is not None else 0
        self._window.add(record, size, now)
        self._window_bytes += size
        self._at_end.discard(place)
        self._idle_since = None
        self._metrics.events_consumed_total.labels(place[0], epoch.kind).inc()
        self._metrics.consumed_bytes_total.labels(place[0]).inc(size)
        if record.truncated:
            self._metrics.events_truncated_total.labels("chars").inc()

    def _consumer_error(self, error: KafkaError, place: tuple[str, int]) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:  # noqa: SLF001 (librdkafka's own names)
            self._at_end.add(place)
            return
        # librdkafka wraps the broker's refusal of KIP-848 into its own fatal error; only the text says which it was.
        if self._protocol is GroupProtocol.AUTO and "ConsumerGroupHeartbeat" in error.str():
            self._fall_back_to_classic()
            return
        if code in AUTHENTICATION_ERRORS:
            raise ConfigurationError(
                f"Kafka refused us: {error.str()}. Check credentials and ACLs (stream-sentiment check)."
            )
        if error.fatal() or code == KafkaError._FATAL:  # noqa: SLF001
            raise ServiceUnavailable(f"the Kafka client cannot go on: {error.str()}")
        # Broker outages, unknown topics after a deletion, an exceeded max.poll.interval: librdkafka goes on by itself.
        log.warning("consumer_error", reason=error.name(), detail=error.str())

    def _hand_over(self) -> None:
        """Pass the window on when it is due, or at once when the pipeline has nothing to do; hold, then pause, when it is full."""
        now = time.monotonic()
        trigger = self._window.trigger(now)
        if trigger is None:
            if not len(self._window) or not self._flow.idle():
                return
            trigger = "time"  # waiting for company costs latency and, with nothing in flight, buys nothing
        self._held = self._close_window(trigger, now)
        hold_until = now + self._settings.intake.hold.total_seconds()
        give_up = hold_until + self._settings.worker.drain_timeout.total_seconds()
        self._time.switch(ConsumerState.BACKPRESSURE)
        while not self._offer_held(POLL_SECONDS):
            self._health.beat("intake")
            if self._failure is not None or (self._stopping and time.monotonic() > give_up):
                return
            if not self._paused and time.monotonic() >= hold_until:
                self._pause()
            # Serves rebalances and keeps the membership; a paused partition delivers nothing, a held one a record now and then.
            message = self._consumer.poll(0)
            if message is not None:
                self._take(message, self._clock.now_ms(), time.monotonic())
            self._serve_requests()
            self._commit_if_due()
        if self._paused:
            self._resume()

    def _offer_held(self, timeout: float) -> bool:
        """Offer the held window, which must go before anything newer; True when there is none left to offer."""
        window = self._held
        if window is None:
            return True
        # A window whose partitions have all gone is dropped: their next owner reads it again.
        if not any(record.epoch.alive for record in window.records) or self._flow.offer(window, timeout):
            self._held = None
        return self._held is None

    def _close_window(self, trigger: str, now: float) -> Window:
        self._metrics.batch_flush_total.labels(trigger).inc()
        window = Window(self._window.take(), trigger, now, self._window_bytes)
        self._window_bytes = 0
        return window

    def _pause(self) -> None:
        assignment = self._consumer.assignment()
        self._consumer.pause(assignment)
        self._paused = True
        self._metrics.paused_partitions.set(len(assignment))
        log.warning("intake_paused", reason="the pipeline is full: scoring or Redis is slower than the input")

    def _resume(self) -> None:
        self._paused = False
        self._consumer.resume([tp for tp in self._consumer.assignment() if (tp.topic, tp.partition) in self._epochs])
        self._metrics.paused_partitions.set(len(self._waiting))
        log.info("intake_resumed")

    # -- assignment ----------------------------------------------------------------------------------------------------

    def _assigned(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        """Rebalance callback: take partitions in Redis and read from their watermarks (delivery.md, step 1)."""
        self._joined = True
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
            starts = self._acquire(new)
        except (ConfigurationError, ServiceUnavailable) as error:
            if not isinstance(error, StoreUnavailable):
                self._failure = error
            starts = {}
        for partition in partitions:
            start = starts.get(TopicPartition(partition.topic, partition.partition))
            partition.offset = OFFSET_INVALID if start is None else start
        consumer.incremental_assign(partitions)
        held = [p for p in partitions if self._paused or TopicPartition(p.topic, p.partition) in self._waiting]
        if held:
            consumer.pause(held)
        self._count_assignment()
        self._metrics.rebalance_duration_seconds.observe(time.monotonic() - began)
        self._rebalance_since = None
        self._time.switch(state or ConsumerState.WORK)

    def _revoked(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
        """Rebalance callback: finish what is in flight within one deadline, commit, let go (delivery.md, step 7)."""
        state = self._time.switch(ConsumerState.CALLBACK)
        self._rebalance_since = time.monotonic()
        self._metrics.rebalances_total.labels("revoke").inc()
        log.info("partitions_revoked", partitions=_listed(partitions))
        budget = min(
            self._settings.worker.drain_timeout.total_seconds(),
            self._settings.kafka.max_poll_interval.total_seconds() / 3,
        )
        if self._failure is None:
            self._drain(time.monotonic() + budget, "revoke", partitions)
        self._let_go(partitions)
        consumer.incremental_unassign(partitions)
        self._time.switch(state or ConsumerState.WORK)

    def _lost(self, consumer: Consumer, partitions: list[KafkaPartition]) -> None:
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
            self._at_end.discard((partition.topic, partition.partition))
            epoch = self._epochs.pop((partition.topic, partition.partition), None)
            if epoch is not None:
                epoch.alive = False
                gone.append(epoch)
            self._metrics.drop_partition(partition.topic, partition.partition)
        self._on_released(gone, time.monotonic())
        self._count_assignment()

    def _drain(self, deadline: float, trigger: str, partitions: Sequence[KafkaPartition] | None = None) -> None:
        """Bring what has been read to its end: window, scoring, APPLY, outbox, commit; give up at the monotonic `deadline`."""
        started = time.monotonic()
        while not self._offer_held(POLL_SECONDS) and time.monotonic() < deadline:
            self._health.beat("intake")
        if self._held is None and len(self._window):
            self._held = self._close_window(trigger, started)
            while not self._offer_held(POLL_SECONDS) and time.monotonic() < deadline:
                self._health.beat("intake")
        complete = self._held is None and self._flow.wait_idle(max(0.0, deadline - time.monotonic()))
        epochs = [
            epoch
            for place, epoch in self._epochs.items()
            if partitions is None or any(place == (p.topic, p.partition) for p in partitions)
        ]
        self._on_released(epochs, deadline)
        self._commit(epochs)
        if not complete:
            # The next owner starts at the watermark: work is done twice, nothing is lost.
            self._metrics.drain_incomplete_total.inc()
            log.warning("drain_incomplete", reason="deadline", seconds=round(time.monotonic() - started, 3))

    def _acquire(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
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
            starts = self._resolve_starts(acquired)
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
            epoch = Epoch(taken.tp, self._inputs[taken.tp.topic], taken.token, starts[taken.tp], taken.settled)
            epoch.attempts = self._waiting.pop(taken.tp).attempts
            epoch.last_progress = time.monotonic()
            # Until a record has been applied its age is not known: the wait counts from here.
            epoch.last_timestamp_ms = self._clock.now_ms()
            place = (taken.tp.topic, str(taken.tp.partition))
            self._metrics.last_progress_timestamp_seconds.labels(*place).set(epoch.last_timestamp_ms / 1000)
            self._epochs[taken.tp] = epoch
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

    def _resolve_starts(self, acquired: Sequence[Acquired]) -> dict[TopicPartition, int]:
        """The watermark of each partition; resolved and recorded where Redis has none, checked against the log where it has."""
        commits = {
            (tp.topic, tp.partition): tp.offset
            for tp in self._consumer.committed(
                [KafkaPartition(taken.tp.topic, taken.tp.partition) for taken in acquired], timeout=OFFSETS_SECONDS
            )
        }
        starts = {}
        for taken in acquired:
            topic, partition = taken.tp
            count = self._partition_counts.get(topic)
            if taken.partitions is not None and count is not None and taken.partitions != count:
                raise ConfigurationError(
                    f"{topic} has {count} partitions, but {taken.partitions} when its state was written: conversations have moved "
                    "and their state would be stranded. Use another kafka.group_id, or set redis.ignore_partition_count to go on."
                )
            low, high = self._consumer.get_watermark_offsets(KafkaPartition(topic, partition), timeout=OFFSETS_SECONDS)
            committed = commits.get((topic, partition), OFFSET_INVALID)
            starts[taken.tp] = self._start_of(taken, committed if committed >= 0 else None, low, high)
        return starts

    def _start_of(self, taken: Acquired, committed: int | None, low: int, high: int) -> int:
        """Where to read one partition from, given the group's commit and the log's bounds [low, high)."""
        place = f"{taken.tp.topic}[{taken.tp.partition}]"
        policy = self._settings.redis.missing_watermark
        watermark = taken.watermark
        if watermark is not None and watermark <= high:
            if committed is not None and committed > watermark:
                # Commits never run ahead of the watermark, so Redis has lost acknowledged writes; the log has them still.
                self._metrics.state_regressions_total.inc()
                log.error(
                    "state_regression",
                    topic=taken.tp.topic,
                    partition=taken.tp.partition,
                    watermark=watermark,
                    committed=committed,
                )
            if watermark < low:
                log.error(
                    "retention_passed_watermark",
                    topic=taken.tp.topic,
                    partition=taken.tp.partition,
                    watermark=watermark,
                    low=low,
                )
            return watermark
        if watermark is not None:
            problem = f"the watermark {watermark} of {place} lies beyond its end {high}: the topic was created anew"
        elif committed is not None:
            problem = (
                f"the group has committed offset {committed} of {place}, but Redis holds no watermark: "
                "Redis was wiped, or is the wrong one"
            )
        else:
            start = low if self._settings.kafka.start_from == "earliest" else high
            return self._store.initialise(taken.tp, taken.token, start)
        if policy is MissingWatermarkPolicy.FAIL:
            raise ConfigurationError(
                f"{problem}. Check redis.url; if the state is really gone, set redis.missing_watermark to 'continue' (go on from "
                "the commit with empty state) or 'rewind' (fold the retained events again)."
            )
        go_on = committed if committed is not None and low <= committed <= high else low
        start = low if policy is MissingWatermarkPolicy.REWIND else go_on
        log.error("missing_watermark", reason=policy.value, detail=problem, start=start)
        return self._store.initialise(taken.tp, taken.token, start, replaces=watermark)

    def _serve_requests(self) -> None:
        """Epochs that the apply stage gave up: put their partitions in line to be acquired anew."""
        while True:
            try:
                epoch, reason = self._requests.get_nowait()
            except queue.Empty:
                return
            place = (epoch.partition.topic, epoch.partition.partition)
            if self._epochs.get(place) is not epoch:
                continue  # revoked, lost or already acquired anew
            del self._epochs[place]
            self._at_end.discard(place)
            self._on_released([epoch], time.monotonic())
            self._consumer.pause([KafkaPartition(*place)])
            attempts = epoch.attempts + 1
            wait = 0.0 if attempts == 1 else _pause_after(attempts)
            self._waiting[epoch.partition] = _Waiting(time.monotonic() + wait, attempts)
            log.warning("partition_reacquired", topic=place[0], partition=place[1], reason=reason, attempts=attempts)

    def _acquire_waiting(self) -> None:
        """Acquire what is due, seek to its watermark and read on."""
        if not self._waiting:
            return
        now = time.monotonic()
        due = [partition for partition, waiting in self._waiting.items() if waiting.due <= now]
        if not due:
            return
        for partition, start in self._acquire(due).items():
            place = KafkaPartition(partition.topic, partition.partition, start)
            try:
                self._consumer.seek(place)
            except KafkaException as error:
                # Just assigned and not fetching yet: librdkafka refuses the seek. Once more, a little later.
                log.info(
                    "seek_refused", topic=partition.topic, partition=partition.partition, reason=error.args[0].name()
                )
                epoch = self._epochs.pop((partition.topic, partition.partition))
                epoch.alive = False
                self._on_released([epoch], now)
                self._waiting[partition] = _Waiting(now + RETRY_FIRST_SECONDS, epoch.attempts)
                continue
            if not self._paused:
                self._consumer.resume([place])

    # -- commits and idleness ------------------------------------------------------------------------------------------

    def _commit_if_due(self) -> None:
        now = time.monotonic()
        if now < self._next_commit:
            return
        self._time.switch(ConsumerState.COMMIT)
        self._next_commit = now + self._settings.worker.commit_interval.total_seconds()
        self._commit(list(self._epochs.values()))
        self._report()

    def _commit(self, epochs: Sequence[Epoch]) -> None:
        """Tell Kafka the watermarks, for lag tooling; the watermark in Redis rules. Never ahead of it."""
        advanced = [epoch for epoch in epochs if epoch.alive and epoch.watermark > max(epoch.committed, 0)]
        if not advanced:
            return
        offsets = []
        for epoch in advanced:
            epoch.committed = epoch.watermark
            offsets.append(KafkaPartition(epoch.partition.topic, epoch.partition.partition, epoch.committed))
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._committed(error.args[0], [])

    def _committed(self, error: KafkaError | None, _partitions: list[KafkaPartition]) -> None:
        if error is None:
            self._metrics.commits_total.labels("ok").inc()
            return
        fenced = error.code() in (
            KafkaError.ILLEGAL_GENERATION,
            KafkaError.UNKNOWN_MEMBER_ID,
            KafkaError.FENCED_MEMBER_EPOCH,
            KafkaError.STALE_MEMBER_EPOCH,
        )
        self._metrics.commits_total.labels("fenced" if fenced else "failed").inc()
        log.warning("commit_failed", reason=error.name(), detail=error.str())
        for epoch in self._epochs.values():
            epoch.committed = -1  # the next round says it again

    def _report(self) -> None:
        """Gauges of position and lag; once a commit interval."""
        metrics = self._metrics
        for (topic, partition), epoch in self._epochs.items():
            labels = (topic, str(partition))
            metrics.watermark_offset.labels(*labels).set(epoch.watermark)
            try:
                _, high = self._consumer.get_watermark_offsets(KafkaPartition(topic, partition), cached=True)
            except KafkaException:
                continue
            lag = max(0, high - epoch.watermark) if high >= 0 else 0
            metrics.consumer_lag_events.labels(*labels).set(lag)
            # The newest record applied is a little older than the oldest one that waits: an age never too small. After a quiet
            # hour it is the moment at which nothing waited yet, or the first new record would look an hour old.
            if lag == 0:
                epoch.last_timestamp_ms = self._clock.now_ms()
            metrics.consumer_lag_seconds.labels(*labels).since(epoch.last_timestamp_ms or None if lag else None)
        _, events, size = self._flow.in_flight()
        metrics.inflight_events.set(events + len(self._window))
        metrics.queue_events.set(self._flow.to_score.qsize())
        metrics.queue_bytes.set(size)

    def _count_assignment(self) -> None:
        for topic in self._inputs:
            count = sum(1 for place in [*self._epochs, *self._waiting] if place[0] == topic)
            self._metrics.assigned_partitions.labels(topic).set(count)
        owned = len(self._epochs)
        self._health.set_ready("partitions", not self._waiting, f"{owned} acquired, {len(self._waiting)} waiting")
        if self._joined:
            self._health.set_started()

    def _idle_long_enough(self) -> bool:
        """Every assigned partition has been at its end, with nothing in flight, for `exit_when_idle` seconds."""
        if self._exit_when_idle is None or not self._joined:
            return False
        idle = (
            not self._waiting
            and not len(self._window)
            and self._flow.idle()
            and all(place in self._at_end for place in self._epochs)
        )
        now = time.monotonic()
        if not idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        return self._idle_since is not None and now - self._idle_since >= self._exit_when_idle

    def _close(self) -> None:
        for epoch in self._epochs.values():
            if self._failure is not None:
                epoch.alive = False
        try:
            self._consumer.close()
        except KafkaException as error:
            log.warning("consumer_close_failed", reason=error.args[0].name())


def _pause_after(attempts: int) -> float:
    # The power is bounded too: 2**1024 is no float any more, and an outage of a day makes more attempts than that.
    return min(RETRY_LAST_SECONDS, RETRY_FIRST_SECONDS * 2.0 ** min(attempts, 16))


def _listed(partitions: Sequence[KafkaPartition]) -> list[str]:
    return [f"{p.topic}[{p.partition}]" for p in partitions]
