"""The apply stage: fold, rules, scored events, one atomic Redis write per partition, outbox.

In: scored windows, in order. Out: states and outbox in Redis, events in Kafka. For each window, in the words of docs/delivery.md: load
the states that are not in the cache; fold each record and step the rules; publish the scored events and flush; APPLY every
partition in one round trip; hand the new entries to the outbox.

Blocks while Redis or Kafka is away; the bound on windows in flight then turns into back-pressure. Whatever Redis says about a
partition that we did not expect ends in `Intake.reacquire`: its epoch dies, and the partition is read again from the watermark.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from stream_sentiment.bulk import BulkPublisher, traceparent_of
from stream_sentiment.clock import Clock
from stream_sentiment.flow import Flow
from stream_sentiment.kafka.dead_letter import ErrorClass
from stream_sentiment.live.serving import Serving
from stream_sentiment.observability.labels import PipelineThread, RedisOp, ThreadState
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.observability.tally import Tally, observe_all
from stream_sentiment.observability.tracing import StageTime, WindowTracer
from stream_sentiment.outbox import Outbox
from stream_sentiment.record_fold import Batch, Moment, conversation_of
from stream_sentiment.stages import Epoch, Record, Window
from stream_sentiment.state_reader import StateReader
from stream_sentiment.store.errors import StoreUnavailable
from stream_sentiment.store.keys import TopicPartition
from stream_sentiment.store.redis import ApplyOutcome, LoadRequest, PartitionBatch, StateStore
from stream_sentiment.timers import Timers, changed_deadlines, note_deadlines

if TYPE_CHECKING:
    from stream_sentiment.scoring.scorer import ModelInfo, Scorer

#: States kept per partition; the least recently written go first. About 2 KB each.
CACHED_STATES = 5_000
#: Waits between attempts while Redis is away.
BACKOFF_FIRST_SECONDS, BACKOFF_LAST_SECONDS = 0.05, 2.0
#: Above this many unacknowledged outbox entries the stage waits for Kafka before it makes more.
OUTBOX_HIGH_WATER = 10_000
#: A partition without an APPLY for so long is asked for: a Redis that lost writes would not be noticed before the next event.
QUIET_SECONDS = 2.0
#: Waits for a window; between two the outbox is served.
IDLE_SECONDS = 0.05

T = TypeVar("T")

log = get_logger("apply")


class Aborted(Exception):
    """The drain deadline has passed while the stage waited for Redis or Kafka."""


class ApplyStage:
    """The thread that owns conversation states, the bulk publisher and the outbox."""

    def __init__(
        self,
        store: StateStore,
        flow: Flow,
        outbox: Outbox,
        bulk: BulkPublisher,
        serving: Serving,
        metrics: Metrics,
        clock: Clock,
        *,
        next_serving: Callable[[], Serving],
        on_serving: Callable[[Serving], None],
        timer_grace_ms: int,
        timers_on: bool,
        on_model_failure: Callable[[Scorer, Exception], bool],
        on_scored: Callable[[Sequence[Record], ModelInfo], None],
        beat: Callable[[], None],
        on_error: Callable[[BaseException], None],
        on_store: Callable[[bool, str], None],
        tracer: WindowTracer | None = None,
    ) -> None:
        """
        Args:
            serving: rules and model of the first window.
            next_serving: those of the next window; timers take them up where no window is under way.
            timer_grace_ms, timers_on: see `Timers`.
            on_model_failure: a model cannot score anything; True when another has taken its place, and the work is to be done again.
            on_scored: told of the records of a window once the model has scored them.
            on_serving: told when a window brings other rules or another model, before any of its records is folded.
            on_store: told when Redis stops answering and when it answers again, with the reason.
        """
        self._store = store
        self._flow = flow
        self._outbox = outbox
        self._bulk = bulk
        self.serving = serving
        self._next_serving = next_serving
        self._on_serving = on_serving
        self._on_model_failure = on_model_failure
        self._on_scored = on_scored
        self.states = StateReader(store, self, serving.rules)
        self._timers = Timers(store, self, metrics, clock, grace_ms=timer_grace_ms, on=timers_on)
        self._metrics = metrics
        self._clock = clock
        self._beat = beat
        self._on_error = on_error
        self._on_store = on_store
        self._time = metrics.thread_time_seconds_total.of(PipelineThread.APPLY)
        self._tracer = tracer
        self._drift = serving.drift
        self._reacquire: Callable[[Epoch, str], None] = lambda _epoch, _reason: None
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._abort = threading.Event()
        self._next_report = 0.0
        #: Live epochs, each with the monotonic time at which Redis last agreed to its token and watermark.
        self._agreed: dict[Epoch, float] = {}
        #: Records whose fold raised, with what it raised: put aside when they come again.
        self._unfoldable: dict[tuple[TopicPartition, int], str] = {}
        self._thread = threading.Thread(target=self._run, name="apply", daemon=True)

    # -- called by other threads ---------------------------------------------------------------------------------------

    def start(self, reacquire: Callable[[Epoch, str], None]) -> None:
        """Start the thread. `reacquire(epoch, reason)` asks the poll thread to acquire a partition anew."""
        self._reacquire = reacquire
        self._thread.start()

    def acquired(self, epoch: Epoch, outbox: Mapping[str, bytes]) -> None:
        """A partition has come: its outbox is adopted before any of its records arrive."""

        def adopt() -> None:
            self._agreed[epoch] = time.monotonic()
            self._outbox.adopt(epoch, outbox)

        self._commands.put(adopt)

    def released(self, epochs: Sequence[Epoch], deadline: float) -> None:
        """Partitions go: publish what is pending until the monotonic `deadline`; once it has passed, let them go.

        Blocks until the outbox is empty or the deadline has come.
        """
        if not epochs:
            return
        done = threading.Event()

        def release() -> None:
            if time.monotonic() < deadline:
                self._outbox.drain(deadline)
            else:
                self._outbox.release(epochs)
            done.set()

        self._commands.put(release)
        done.wait(max(0.0, deadline - time.monotonic()))

    def abort(self) -> None:
        """Give up waiting for Redis and Kafka: the process ends, the next owner goes on from the watermark."""
        self._abort.set()

    def join(self, timeout: float) -> bool:
        """Wait for the end of the thread after `Flow.close`; True when it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- the apply thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                self._beat()
                self._time.switch(ThreadState.WORK)
                self._serve()
                self._time.switch(ThreadState.WAIT_INPUT)
                try:
                    window = self._flow.to_apply.get(timeout=IDLE_SECONDS)
                except queue.Empty:
                    continue
                self._time.switch(ThreadState.WORK)
                if window is None:
                    self._serve()
                    self._time.stop()
                    return
                # A partition acquired while this window was scored has its outbox adopted before its records are applied.
                self._serve()
                try:
                    self._apply_window(window)
                except Aborted:
                    # The cached states are ahead of Redis now: nothing more of these partitions may be folded.
                    for record in window.records:
                        record.epoch.alive = False
                    log.warning("apply_aborted", reason="the drain deadline has passed")
                finally:
                    self._flow.done(window)
        except BaseException as error:
            self._on_error(error)

    def _serve(self) -> None:
        """Commands of the poll thread, delivery reports, and the gauges once a second."""
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                break
            command()
        self._outbox.serve()
        now = time.monotonic()
        if now >= self._next_report:
            self._next_report = now + 1.0
            self._outbox.report()
            self._metrics.producer_queue_events.set(self._bulk.queued)
            self._look_for_lost_writes(now)
            self._run_timers()
            if self._drift is not None:
                self._drift.report(now)

    def _apply_window(self, window: Window) -> None:
        switch = self._time.switch
        if window.serving is not self.serving:
            self._take_up(window.serving)
        switch(ThreadState.INFER)
        try:
            self._collect_scores(window)
        except Aborted:
            raise
        except Exception as error:
            if not self._on_model_failure(window.serving.scorer, error):
                raise
            for epoch in {record.epoch for record in window.records}:
                self.give_up(epoch, "model_failed")
            return
        self._on_scored(window.scored, window.serving.scorer.info)
        switch(ThreadState.WORK)
        batches = self._by_partition(window)
        started = time.monotonic()
        switch(ThreadState.STORE)
        batches = self._load_states(batches)
        switch(ThreadState.FOLD)
        moment = Moment.at(self._clock.now_ms())
        folded = [batch for batch in batches if batch.epoch.alive and self._fold(batch, moment)]
        folded_at = time.monotonic()
        switch(ThreadState.PUBLISH)
        if not self.publish(folded):
            return
        published_at = time.monotonic()
        switch(ThreadState.STORE)
        self._write(folded)
        switch(ThreadState.WORK)
        stages = self._metrics.stage_duration_seconds
        stages.labels("state").observe(folded_at - started + time.monotonic() - published_at)
        stages.labels("produce").observe(published_at - folded_at)
        if self._tracer is not None:
            self._trace(self._tracer, window, started, folded_at, published_at)
        if self._outbox.depth > OUTBOX_HIGH_WATER:
            switch(ThreadState.WAIT_OUTPUT)
        while self._outbox.depth > OUTBOX_HIGH_WATER and self._keep_waiting():
            self._outbox.serve(0.05)

    def _run_timers(self) -> None:
        """Between two windows. Where none is under way, new rules count for timers, too; else they wait for the first new window."""
        if self._flow.idle() and self.serving is not self._next_serving():
            self._take_up(self._next_serving())
        if self._outbox.depth > OUTBOX_HIGH_WATER:
            return  # Kafka takes no more at the moment
        try:
            if self._timers.run(self._agreed):
                self._next_report = 0.0
        except Aborted:
            # The cached states are ahead of Redis now.
            for epoch in self._agreed:
                epoch.alive = False

    def _take_up(self, serving: Serving) -> None:
        """Windows pass in order, so from here on nothing is folded under the rules or the model before."""
        self.serving = serving
        self._drift = serving.drift
        self.states.use(serving.rules)
        self._bulk.serve(serving.scorer.info, serving.rules.version)
        self._on_serving(serving)

    @staticmethod
    def _trace(
        tracer: WindowTracer, window: Window, collected_at: float, folded_at: float, published_at: float
    ) -> None:
        tracer.window(
            (record.epoch.partition.topic for record in window.records),
            [header for record in window.records if (header := traceparent_of(record)) is not None],
            (
                StageTime("score", window.closed_at, collected_at),
                StageTime("fold", collected_at, folded_at),
                StageTime("publish", folded_at, published_at),
                StageTime("apply", published_at, time.monotonic()),
            ),
        )

    def _keep_waiting(self) -> bool:
        self._beat()
        self._outbox.serve()
        return not self._abort.is_set()

    def _collect_scores(self, window: Window) -> None:
        """Wait for the micro-batches of the window and give each record its score, or the reason why it has none."""
        closed_ms = self._clock.now_ms() - round((time.monotonic() - window.closed_at) * 1000)
        for batch, future in zip(window.batches, window.futures, strict=True):
            while True:
                try:
                    results, seconds = future.result(timeout=1.0)
                    break
                except TimeoutError:
                    if not self._keep_waiting():
                        raise Aborted from None
            milliseconds = round(seconds * 1000, 3)
            for index, result in zip(batch, results, strict=True):
                record = window.scored[index]
                record.batch_size = len(batch)
                record.inference_ms = milliseconds
                record.queue_ms = max(0, closed_ms - record.received_ms)
                if isinstance(result, Exception):
                    record.poison = f"the model failed on this text: {result}"
                else:
                    record.score = result

    def publish(self, batches: Sequence[Batch]) -> bool:
        """The new states to Kafka, with the scored events produced before; False when Kafka refused some and the partitions are given
        up. Raises Aborted at the drain deadline."""
        options = self.serving.rules.options
        for batch in batches:
            self._bulk.states(batch.touched.values(), options)
        if self._bulk.flush(self._keep_waiting):
            return True
        if self._abort.is_set():
            raise Aborted
        for batch in batches:
            self.give_up(batch.epoch, "publish_failed")
        return False

    def _by_partition(self, window: Window) -> list[Batch]:
        """The window's records by live partition, each in the order of its offsets."""
        batches: dict[Epoch, Batch] = {}
        for record in window.records:
            epoch = record.epoch
            if not epoch.alive:
                continue
            batch = batches.get(epoch)
            if batch is None:
                batch = batches[epoch] = Batch(epoch, [], Tally(self._metrics))
            batch.records.append(record)
            record.conversation = conversation_of(record)
        return list(batches.values())

    def _load_states(self, batches: Sequence[Batch]) -> list[Batch]:
        """Read the states that the caches do not hold, all partitions in one round trip; returns the batches that can go on.

        Raises StateUnreadable: a newer version's state, or a foreign write, which going on would destroy.
        """
        unreadable = self.states.read(
            [
                (b.epoch, [record.conversation for record in b.records if record.conversation is not None])
                for b in batches
            ]
        )
        for errors in unreadable.values():
            for error in errors.values():
                raise error
        return [batch for batch in batches if batch.epoch in unreadable]

    def _fold(self, batch: Batch, moment: Moment) -> bool:
        """Fold the records of one partition; False when one of them cannot be folded and the partition is given up.

        The states are half changed then. The partition is read again, and the record is put aside when it comes the second time.
        """
        epoch = batch.epoch
        for record in batch.records:
            known = self._unfoldable.get((epoch.partition, record.offset)) if self._unfoldable else None
            if known is not None:
                self.serving.folder.dead_letter(batch, record, ErrorClass.STATE_CONFLICT, known, moment)
                continue
            try:
                self.serving.folder.fold(batch, record, moment)
            except Exception as error:
                self._unfoldable[(epoch.partition, record.offset)] = f"the state machine failed: {type(error).__name__}"
                topic, partition = epoch.partition
                log.error("fold_failed", topic=topic, partition=partition, offset=record.offset, exc_info=error)
                self.give_up(epoch, "fold_failed")
                return False
        return True

    def _write(self, batches: Sequence[Batch]) -> None:
        """APPLY every partition of the window in one round trip, and act on what Redis says about each."""
        requests = [
            PartitionBatch(
                batch.epoch.partition,
                batch.epoch.token,
                batch.epoch.watermark,
                batch.records[-1].offset + 1,
                {key: state.to_json() for key, state in batch.touched.items()}
                | {key: storm.to_json() for key, storm in batch.storms.items()},
                {name: record.encode() for name, (record, _) in batch.outputs.items()},
                changed_deadlines(batch.epoch, batch.touched, self.serving.rules),
                batch.epoch.clock.encode(),
            )
            for batch in batches
        ]
        if not requests:
            return
        results = self.persist(RedisOp.APPLY, lambda: self._store.apply(requests))
        now_ms = self._clock.now_ms()
        for batch, request, result in zip(batches, requests, results, strict=True):
            if result.outcome is ApplyOutcome.OK:
                note_deadlines(batch.epoch, request.deadlines)
                self._applied(batch, request.next, now_ms)
                continue
            if result.outcome is ApplyOutcome.ALREADY:
                # The reply to the first sending was lost, so the outputs are in Redis: acquiring anew hands them over.
                self._count(batch)
            self.disagreed(batch.epoch, result.outcome)

    def _applied(self, batch: Batch, watermark: int, now_ms: int) -> None:
        epoch = batch.epoch
        epoch.watermark = watermark
        epoch.attempts = 0
        epoch.last_progress = time.monotonic()
        epoch.last_timestamp_ms = batch.records[-1].timestamp_ms
        if self._unfoldable:
            for record in batch.records:
                self._unfoldable.pop((epoch.partition, record.offset), None)
        self.announce(batch)
        for record in batch.records:
            if record.canary_ms is not None:
                self._metrics.heartbeat_timestamp_seconds.labels("applied").set(record.canary_ms / 1000)
                self._metrics.canary_roundtrip_seconds.observe(max(0, now_ms - record.canary_ms) / 1000)
        topic, partition = epoch.partition
        observe_all(
            self._metrics.end_to_end_latency_seconds.labels(topic),
            [max(0, now_ms - record.timestamp_ms) / 1000 for record in batch.records],
        )
        if epoch.alive:  # else the series of a partition that has gone would come back
            self._metrics.last_progress_timestamp_seconds.labels(topic, str(partition)).set(now_ms / 1000)

    def announce(self, batch: Batch) -> None:
        """The batch is in Redis: its outputs go to the outbox, and what it has given counts."""
        if batch.epoch.alive:  # else the next owner finds the entries in Redis
            for name, (entry, trigger_ms) in batch.outputs.items():
                self._outbox.add(batch.epoch, name, entry, trigger_ms)
        _shorten_cache(batch.epoch)
        self._count(batch)

    def _count(self, batch: Batch) -> None:
        """What the batch has given counts from the moment it is in Redis, once."""
        batch.tally.settle()
        if self._drift is not None:
            self._drift.add(batch.predictions)

    def _look_for_lost_writes(self, now: float) -> None:
        """Ask Redis about partitions that have nothing to apply. After a failover or a restart that lost writes their watermark lies
        behind, and the events since then must be read again although no new one comes.
        """
        self._agreed = {epoch: since for epoch, since in self._agreed.items() if epoch.alive}
        quiet = [
            epoch for epoch, since in self._agreed.items() if now - max(since, epoch.last_progress) >= QUIET_SECONDS
        ]
        if not quiet:
            return
        try:
            results = self._store.load(
                [LoadRequest(epoch.partition, epoch.token, epoch.watermark, []) for epoch in quiet]
            )
        except StoreUnavailable:
            return  # asked again a second later
        for epoch, result in zip(quiet, results, strict=True):
            if result.outcome is ApplyOutcome.OK:
                self._agreed[epoch] = now
            else:
                self.disagreed(epoch, result.outcome)

    def disagreed(self, epoch: Epoch, outcome: ApplyOutcome) -> None:
        """Redis knows another owner or another watermark than we do."""
        counters = {
            ApplyOutcome.ALREADY: self._metrics.already_applied_total,
            ApplyOutcome.GAP: self._metrics.gaps_total,
            ApplyOutcome.FENCED: self._metrics.fences_total,
        }
        counters[outcome].inc()
        self.give_up(epoch, outcome.value)

    def give_up(self, epoch: Epoch, reason: str) -> None:
        """The epoch dies with its cache; the poll thread acquires the partition anew and reads from the stored watermark."""
        if epoch.alive:
            epoch.alive = False
            epoch.states.clear()
            epoch.storms.clear()
            epoch.deadlines.clear()
            self._reacquire(epoch, reason)

    def persist(self, op: RedisOp, call: Callable[[], T]) -> T:
        """Repeat a Redis call, with the same arguments, until it is answered. Raises Aborted at the drain deadline."""
        wait = BACKOFF_FIRST_SECONDS
        while True:
            started = time.monotonic()
            try:
                answer = call()
                self._metrics.redis_op_duration_seconds.labels(op).observe(time.monotonic() - started)
                if wait > BACKOFF_FIRST_SECONDS:
                    self._on_store(True, "")
                return answer
            except StoreUnavailable as error:
                self._on_store(False, f"{error.fault.value}, waiting")
                log.warning("redis_unavailable", reason=error.fault.value)
                self._metrics.redis_retries_total.inc()
                self._beat()
                if self._abort.wait(wait):
                    raise Aborted from None
                self._outbox.serve()
                wait = min(BACKOFF_LAST_SECONDS, wait * 2)


def _shorten_cache(epoch: Epoch) -> None:
    """Forget the states that were written longest ago: after a window, and after the timers of many silent conversations."""
    if len(epoch.storms) > CACHED_STATES:
        epoch.storms.clear()
    if len(epoch.states) > CACHED_STATES:
        by_age = sorted(epoch.states, key=lambda key: epoch.states[key][1])
        for key in by_age[: len(by_age) - CACHED_STATES * 3 // 4]:
            del epoch.states[key]
            epoch.deadlines.pop(key, None)
