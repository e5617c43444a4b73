"""The poll thread: the one thread that touches the Kafka consumer.

In: records from Kafka. Out: arrival windows of decoded events, in order, to the score stage. It never waits for the model: when the
pipeline is full it holds, then pauses its partitions and goes on polling. `assignment` decides which records are ours.

Its only waits are `poll` (at most 100 ms), those of `assignment`, and the drain of a revoke or of the end (one deadline).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
)

from stream_sentiment.assignment import Assignment
from stream_sentiment.batching import ArrivalWindow
from stream_sentiment.canary import canary_time
from stream_sentiment.clock import Clock
from stream_sentiment.errors import ConfigurationError, ServiceUnavailable
from stream_sentiment.events.envelope import header_map
from stream_sentiment.events.incoming import InvalidEvent, Skip, decode
from stream_sentiment.events.routing import route
from stream_sentiment.flow import Flow
from stream_sentiment.kafka.clients import AUTHENTICATION_ERRORS, consumer_config
from stream_sentiment.live.serving import Serving
from stream_sentiment.observability.broker_statistics import STATISTICS_MILLISECONDS, BrokerStatistics
from stream_sentiment.observability.health import HealthState
from stream_sentiment.observability.labels import ConsumerState, EventKind
from stream_sentiment.observability.logs import get_logger, kafka_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.positions import Positions
from stream_sentiment.settings import GroupProtocol, Settings
from stream_sentiment.stages import Epoch, Record, Window
from stream_sentiment.store.redis import StateStore

#: The longest the poll thread sleeps in `poll`; rebalance callbacks and requests of the apply stage wait no longer.
POLL_SECONDS = 0.1
#: A consumer that has been given no partition by then will not get one: there are more workers than partitions.
JOIN_SECONDS = 30.0

log = get_logger("intake")


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
        serving: Callable[[], Serving],
        partition_counts: Mapping[str, int],
        on_acquired: Callable[[Epoch, Mapping[str, bytes]], None],
        on_released: Callable[[Sequence[Epoch], float], None],
        exit_when_idle: float | None = None,
    ) -> None:
        """
        Args:
            serving: rules and model of the next window.
            on_acquired: the epoch and the outbox that the last owner left; called before any of its records is read.
            on_released: epochs that go away, and the monotonic deadline until which their outbox may still be published.
            exit_when_idle: seconds at the end of every partition after which `run` returns by itself.
        """
        self._settings = settings
        self._flow = flow
        self._metrics = metrics
        self._health = health
        self._clock = clock
        self._next_serving = serving
        #: Of the window that is being filled: read when its first record comes.
        self._serving = serving()
        self._exit_when_idle = exit_when_idle
        self._window: ArrivalWindow[Record] = ArrivalWindow(
            settings.intake.window_events, settings.intake.window_bytes, settings.intake.window_wait.total_seconds()
        )
        self._window_bytes = 0
        #: A window that the pipeline has no room for: it must go before anything newer.
        self._held: Window | None = None
        self._started = time.monotonic()
        self._idle_since: float | None = None
        self._paused = False
        self._stopping = False
        self._failure: BaseException | None = None
        self._next_commit = 0.0
        #: Of the stop; leaving the group revokes all partitions, and that drain must not begin a second budget.
        self._stop_deadline: float | None = None
        self._time = metrics.consumer_time_seconds_total.of()
        self._assignment = Assignment(
            settings,
            store,
            metrics,
            health,
            clock,
            partition_counts=partition_counts,
            phases=self._time,
            on_acquired=on_acquired,
            on_released=on_released,
            on_failure=self.fail,
            drain=self._drain,
            paused=lambda: self._paused,
        )
        self._on_released = on_released
        self._positions = Positions(metrics, clock, self._assignment.epochs.values)
        self._brokers = BrokerStatistics(metrics)
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
        self._assignment.reacquire(epoch, reason)

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
                self._assignment.serve_requests(self._consumer)
                self._assignment.acquire_waiting(self._consumer)
                self._read()
                self._hand_over()
                self._commit_if_due()
                if self._idle_long_enough():
                    break
            if self._failure is None:
                self._stop_deadline = time.monotonic() + self._settings.worker.drain_timeout.total_seconds()
                self._drain(self._stop_deadline, "drain", list(self._assignment.epochs.values()))
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
        config["on_commit"] = self._positions.committed
        # Tells when a partition has been read to its end: `--exit-when-idle`, and timers, which must not fire on a backlog.
        config["enable.partition.eof"] = True
        config["statistics.interval.ms"] = STATISTICS_MILLISECONDS
        config["stats_cb"] = self._brokers
        consumer = Consumer(config)
        consumer.subscribe(
            list(self._settings.topics.inputs()),
            on_assign=self._assignment.assigned,
            on_revoke=self._assignment.revoked,
            on_lost=self._assignment.lost,
        )
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
            self._consumer_error(error, place, cast(int, message.offset()))
            return
        epoch = self._assignment.epochs.get(place)
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
        if not len(self._window):
            self._serving = self._next_serving()
        record = Record(epoch, offset, timestamp_ms, received_ms, message.key(), value, raw_headers, outcome)
        kind: str = epoch.kind
        if isinstance(outcome, Skip):
            record.canary_ms = canary_time(raw_headers)
            if record.canary_ms is not None:
                kind = EventKind.HEARTBEAT
                self._metrics.heartbeat_timestamp_seconds.labels("consumed").set(record.canary_ms / 1000)
        elif not isinstance(outcome, InvalidEvent):
            record.text, record.language, record.skipped_reason, record.truncated = route(
                outcome, self._serving.routing
            )
        size = len(value) if value is not None else 0
        self._window.add(record, size, now)
        self._window_bytes += size
        epoch.at_end = False
        self._idle_since = None
        self._metrics.events_consumed_total.labels(place[0], kind).inc()
        self._metrics.consumed_bytes_total.labels(place[0]).inc(size)
        if record.truncated:
            self._metrics.events_truncated_total.labels("chars").inc()

    def _consumer_error(self, error: KafkaError, place: tuple[str, int], offset: int) -> None:
        code = error.code()
        if code == KafkaError._PARTITION_EOF:  # noqa: SLF001 (librdkafka's own names)
            if place in self._assignment.epochs:
                epoch = self._assignment.epochs[place]
                epoch.at_end, epoch.end_offset = True, offset
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
            self._assignment.serve_requests(self._consumer)
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
        window = Window(self._window.take(), trigger, self._serving, now, self._window_bytes)
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
        epochs = self._assignment.epochs
        self._consumer.resume([tp for tp in self._consumer.assignment() if (tp.topic, tp.partition) in epochs])
        self._metrics.paused_partitions.set(self._assignment.waiting)
        log.info("intake_resumed")

    def _drain(self, deadline: float, trigger: str, epochs: Sequence[Epoch]) -> None:
        """Bring what has been read to its end: window, scoring, APPLY, outbox and commit of `epochs`; give up at the deadline."""
        if self._failure is not None:
            return
        started = time.monotonic()
        if self._stop_deadline is not None:
            deadline = min(deadline, self._stop_deadline)
        while not self._offer_held(POLL_SECONDS) and time.monotonic() < deadline:
            self._health.beat("intake")
        if self._held is None and len(self._window):
            self._held = self._close_window(trigger, started)
            while not self._offer_held(POLL_SECONDS) and time.monotonic() < deadline:
                self._health.beat("intake")
        complete = self._held is None and self._flow.wait_idle(max(0.0, deadline - time.monotonic()))
        self._on_released(epochs, deadline)
        self._positions.commit(self._consumer, epochs)
        if not complete:
            # The next owner starts at the watermark: work is done twice, nothing is lost.
            self._metrics.drain_incomplete_total.inc()
            log.warning("drain_incomplete", reason="deadline", seconds=round(time.monotonic() - started, 3))

    def _commit_if_due(self) -> None:
        now = time.monotonic()
        if now < self._next_commit:
            return
        self._time.switch(ConsumerState.COMMIT)
        self._next_commit = now + self._settings.worker.commit_interval.total_seconds()
        if not len(self._window):
            self._serving = (
                self._next_serving()
            )  # or a model that has been replaced stays in memory until the next record
        self._positions.commit(self._consumer, self._assignment.epochs.values())
        self._positions.report(
            self._consumer, reading=self._brokers.connected and not self._paused and self._held is None
        )
        _, events, size = self._flow.in_flight()
        self._metrics.inflight_events.set(events + len(self._window))
        self._metrics.queue_events.set(self._flow.to_score.qsize())
        self._metrics.queue_bytes.set(size)

    def _idle_long_enough(self) -> bool:
        """Every assigned partition has been at its end, with nothing in flight, for `exit_when_idle` seconds."""
        now = time.monotonic()
        if self._exit_when_idle is None or not (self._assignment.joined or now - self._started > JOIN_SECONDS):
            return False
        idle = (
            not self._assignment.waiting
            and not len(self._window)
            and self._flow.idle()
            and all(epoch.at_end for epoch in self._assignment.epochs.values())
        )
        if not idle:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        return self._idle_since is not None and now - self._idle_since >= self._exit_when_idle

    def _close(self) -> None:
        if self._failure is not None:
            for epoch in self._assignment.epochs.values():
                epoch.alive = False
        try:
            self._consumer.close()
        except KafkaException as error:
            log.warning("consumer_close_failed", reason=error.args[0].name())
