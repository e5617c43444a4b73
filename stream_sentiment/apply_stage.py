"""The apply stage: fold, rules, scored events, one atomic Redis write per partition, outbox.

In: scored windows, in order. Out: states and outbox in Redis, events in Kafka. For each window (the numbers are those of
docs/delivery.md): load the states that are not in the cache; fold each record and step the rules; publish the scored events and
flush (2.3.9: they are at-least-once, and must not lag behind a watermark that has passed them); APPLY; publish the outbox.

Blocks while Redis or Kafka is away; the bound on windows in flight then turns into back-pressure. Whatever Redis says about a
partition that we did not expect ends in `Intake.reacquire`: its epoch dies, and the partition is read again from the watermark.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import orjson
from confluent_kafka import KafkaError, Message, Producer

from stream_sentiment.clock import Clock
from stream_sentiment.conversation.fold import Outcome, fold
from stream_sentiment.conversation.state import ConversationState, StateUnreadable
from stream_sentiment.conversation.turn import ConversationIdentity, Turn, TurnKind
from stream_sentiment.escalation.machine import step
from stream_sentiment.events import envelope
from stream_sentiment.events.incoming import ChatEvent, Decoded, InvalidEvent, ReviewEvent
from stream_sentiment.events.outgoing import conversation_state_event, escalation_event, rolling_block, signals_block
from stream_sentiment.flow import Flow
from stream_sentiment.kafka.dead_letter import CLASS_OF_REASON, ErrorClass, dead_letter
from stream_sentiment.kafka.outbox_record import OutboxRecord
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.outbox import Outbox
from stream_sentiment.scoring.blocks import emotion_block, sentiment_block
from stream_sentiment.settings import Settings
from stream_sentiment.stages import Epoch, Record, Window
from stream_sentiment.store.errors import StoreUnavailable
from stream_sentiment.store.keys import conversation_key, outbox_field
from stream_sentiment.store.redis import ApplyOutcome, PartitionBatch, StateStore

if TYPE_CHECKING:
    from stream_sentiment.escalation.rules import RuleSet
    from stream_sentiment.escalation.transition import Transition
    from stream_sentiment.scoring.scorer import ModelInfo

#: States kept per partition; the least recently written go first. About 2 KB each.
CACHED_STATES = 5_000
#: Distance between the rating, mapped from 1..5 to -1..1, and the text's score from which they disagree: half of the scale.
RATING_DISAGREEMENT = 1.0
#: Tolerated lead of a producer's clock over the broker's. Event time beyond it is cut, or one wrong clock would make all later
#: messages of the conversation "late".
FUTURE_TOLERANCE_MS = 5 * 60 * 1000
#: Waits between attempts while Redis is away.
BACKOFF_FIRST_SECONDS, BACKOFF_LAST_SECONDS = 0.05, 2.0
#: Above this many unacknowledged outbox entries the stage waits for Kafka before it makes more.
OUTBOX_HIGH_WATER = 10_000

log = get_logger("apply")


class Aborted(Exception):
    """The drain deadline has passed while the stage waited for Redis or Kafka."""


@dataclass(slots=True)
class _Batch:
    """One partition's part of a window while it is folded."""

    epoch: Epoch
    records: list[Record]
    touched: dict[str, ConversationState] = field(default_factory=dict)
    outputs: dict[str, bytes] = field(default_factory=dict)
    entries: list[tuple[str, OutboxRecord, int | None]] = field(default_factory=list)


class ApplyStage:
    """The thread that owns conversation states, the bulk producer and the outbox."""

    def __init__(
        self,
        settings: Settings,
        store: StateStore,
        flow: Flow,
        outbox: Outbox,
        bulk: Producer,
        metrics: Metrics,
        clock: Clock,
        *,
        rules: RuleSet,
        model: ModelInfo,
        beat: Callable[[], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._flow = flow
        self._outbox = outbox
        self._bulk = bulk
        self._metrics = metrics
        self._clock = clock
        self._rules = rules
        self._model = model
        self._beat = beat
        self._on_error = on_error
        self._reacquire: Callable[[Epoch, str], None] = lambda _epoch, _reason: None
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._abort = threading.Event()
        self._bulk_errors = 0
        self._next_report = 0.0
        self._cache_seconds = rules.options.ttl_ms / 2000
        self._thread = threading.Thread(target=self._run, name="apply", daemon=True)
        self._prepare_constants()

    def _prepare_constants(self) -> None:
        topics = self._settings.topics
        self._topics = topics
        self._scored_headers = envelope.constant_headers(envelope.SCORED, "sentiment.scored:1")
        self._state_headers = envelope.constant_headers(envelope.CONVERSATION_STATE, "conversation.state:1")
        self._model_block: dict[str, Any] = {
            "name": self._model.name,
            "version": self._model.version,
            "sha256": self._model.sha256,
            "precision": self._model.precision,
            "max_length": self._model.max_length,
        }
        self._model_json = orjson.Fragment(orjson.dumps(self._model_block))
        self._model_version = f"{self._model.name}@{self._model.version}"
        self._rules_version = self._rules.version

    # -- called by other threads ---------------------------------------------------------------------------------------

    def start(self, reacquire: Callable[[Epoch, str], None]) -> None:
        """Start the thread. `reacquire(epoch, reason)` asks the poll thread to acquire a partition anew."""
        self._reacquire = reacquire
        self._thread.start()

    def acquired(self, epoch: Epoch, outbox: Mapping[str, bytes]) -> None:
        """A partition has come: its outbox is adopted before any of its records arrive."""
        self._commands.put(lambda: self._outbox.adopt(epoch, outbox))

    def released(self, epochs: Sequence[Epoch], deadline: float) -> None:
        """Partitions go: publish what is pending until the monotonic `deadline`, then let them go. Blocks until then."""
        if not epochs:
            return
        done = threading.Event()

        def release() -> None:
            if deadline > time.monotonic():
                self._outbox.drain(deadline)
            if not all(epoch.alive for epoch in epochs) or deadline <= time.monotonic():
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
                self._serve()
                try:
                    window = self._flow.to_apply.get(timeout=0.05)
                except queue.Empty:
                    continue
                if window is None:
                    self._serve()
                    return
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
            raise

    def _serve(self) -> None:
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
            self._metrics.producer_queue_events.set(len(self._bulk))

    def _apply_window(self, window: Window) -> None:
        self._collect_scores(window)
        batches: dict[Epoch, _Batch] = {}
        for record in window.records:
            epoch = record.epoch
            if epoch.alive:
                batch = batches.get(epoch)
                if batch is None:
                    batch = batches[epoch] = _Batch(epoch, [])
                batch.records.append(record)
        if not batches:
            return
        started = time.monotonic()
        self._load_states(batches)
        now_ms = self._clock.now_ms()
        for batch in batches.values():
            for record in batch.records:
                self._fold_record(batch, record, now_ms)
        folded = time.monotonic()
        if not self._publish_bulk(list(batches.values()), now_ms):
            for batch in batches.values():
                self._give_up(batch.epoch, "publish_failed")
            return
        published = time.monotonic()
        self._write(list(batches.values()))
        written = time.monotonic()
        stages = self._metrics.stage_duration_seconds
        stages.labels("state").observe(folded - started + written - published)
        stages.labels("produce").observe(published - folded)
        while self._outbox.depth > OUTBOX_HIGH_WATER and not self._abort.is_set():
            self._beat()
            self._outbox.serve(0.05)

    def _collect_scores(self, window: Window) -> None:
        """Wait for the micro-batches of the window and give each record its score, or the reason why it has none."""
        for batch, future in zip(window.batches, window.futures, strict=True):
            while True:
                try:
                    results, seconds = future.result(timeout=1.0)
                    break
                except TimeoutError:
                    self._beat_while_scoring()
            milliseconds = round(seconds * 1000, 3)
            for index, result in zip(batch, results, strict=True):
                record = window.scored[index]
                record.batch_size = len(batch)
                record.inference_ms = milliseconds
                record.queue_ms = round((window.closed_at - self._monotonic_of(record)) * 1000, 3)
                if isinstance(result, Exception):
                    record.poison = f"the model failed on this text: {result}"
                else:
                    record.score = result

    def _beat_while_scoring(self) -> None:
        if self._abort.is_set():
            raise Aborted
        self._outbox.serve()

    def _monotonic_of(self, record: Record) -> float:
        return time.monotonic() - (self._clock.now_ms() - record.received_ms) / 1000

    # -- states --------------------------------------------------------------------------------------------------------

    def _load_states(self, batches: dict[Epoch, _Batch]) -> None:
        """Read the states that the cache does not hold, all partitions in one round trip."""
        expired_before = time.monotonic() - self._cache_seconds
        missing: list[tuple[Epoch, list[str]]] = []
        for epoch, batch in batches.items():
            wanted: dict[str, None] = {}
            for record in batch.records:
                key = _conversation_of(record)
                if key is None:
                    continue
                cached = epoch.states.get(key)
                if cached is None or cached[1] < expired_before:
                    wanted[key] = None
            if wanted:
                missing.append((epoch, list(wanted)))
        if not missing:
            return
        requests = [(epoch.partition, keys) for epoch, keys in missing]
        loaded = self._persist(lambda: self._store.load(requests))
        now = time.monotonic()
        for (epoch, keys), values in zip(missing, loaded, strict=True):
            for key, value in zip(keys, values, strict=True):
                state = None
                if value is not None:
                    try:
                        state = ConversationState.from_json(value)
                    except StateUnreadable as error:
                        # A newer version's state, or a foreign write: going on would destroy it.
                        log.error("state_unreadable", topic=epoch.partition.topic, reason=str(error))
                        raise
                epoch.states[key] = (state, now)

    def _fold_record(self, batch: _Batch, record: Record, now_ms: int) -> None:
        outcome = record.outcome
        counters = self._metrics.events_total
        topic = batch.epoch.partition.topic
        if record.poison is not None:
            self._dead_letter(batch, record, ErrorClass.POISON_MODEL, record.poison, now_ms)
            counters.labels(topic, "dead_lettered").inc()
        elif isinstance(outcome, InvalidEvent):
            self._metrics.events_invalid_total.labels(outcome.reason.value).inc()
            self._dead_letter(batch, record, CLASS_OF_REASON[outcome.reason], outcome.detail, now_ms)
            counters.labels(topic, "dead_lettered").inc()
        elif isinstance(outcome, Decoded):
            if batch.epoch.kind == "chat":
                counters.labels(topic, self._fold_chat(batch, record, outcome, now_ms)).inc()
            else:
                counters.labels(topic, self._score_review(record, outcome, now_ms)).inc()
        else:
            counters.labels(topic, "skipped").inc()

    def _fold_chat(self, batch: _Batch, record: Record, decoded: Decoded, now_ms: int) -> str:
        event = cast(ChatEvent, decoded.event)
        key = conversation_key(event.tenant_id, event.conversation_id)
        state = batch.epoch.states[key][0]
        at_ms = min(decoded.at_ms, record.timestamp_ms + FUTURE_TOLERANCE_MS)
        if at_ms != decoded.at_ms:
            self._metrics.clock_skew_events_total.labels("future").inc()
        score = record.score
        turn = Turn(
            cast(TurnKind, decoded.kind),
            event.message_id or "",
            at_ms,
            event.sender["role"] if event.sender is not None else "",
            record.offset,
            event.sequence,
            score,
            record.skipped_reason,
            (),
            event.channel,
            event.attributes or {},
            event.phase,
            record.language or event.language or "",
        )
        identity = ConversationIdentity(event.tenant_id, event.conversation_id)
        rules = self._rules
        view = rules.view(event.tenant_id, event.channel, turn.attributes) if state is None else rules.view_for(state)
        result = fold(state, turn, identity, view.options)
        state = result.state
        if result.outcome is Outcome.DUPLICATE:
            self._metrics.state_updates_total.labels("duplicate").inc()
            batch.epoch.states[key] = (state, batch.epoch.states[key][1])
            return "duplicate"
        state.model_version = self._model_version
        state.rules_version = self._rules_version
        transitions = step(state, turn, result.outcome, rules, result.expired)
        batch.touched[key] = state
        batch.epoch.states[key] = (state, time.monotonic())
        for sequence, transition in enumerate(transitions):
            self._escalate(batch, record, state, transition, sequence, now_ms)
        if result.outcome is Outcome.LATE:
            self._metrics.state_updates_total.labels("stale").inc()
        else:
            self._metrics.state_updates_total.labels("applied").inc()
        is_customer = turn.role in rules.options.score_roles and turn.kind in ("created", "edited")
        if is_customer:
            self._publish_scored_chat(record, decoded, event, state, turn, now_ms)
            if score is not None:
                self._count_prediction(score)
        if result.outcome is Outcome.LATE:
            return "stale"
        return "scored" if score is not None else "skipped"

    def _score_review(self, record: Record, decoded: Decoded, now_ms: int) -> str:
        event = cast(ReviewEvent, decoded.event)
        if decoded.kind == "deleted":
            return "skipped"
        self._publish_scored_review(record, decoded, event, now_ms)
        if record.score is None:
            return "skipped"
        self._count_prediction(record.score)
        return "scored"

    def _count_prediction(self, score: Any) -> None:
        metrics = self._metrics
        metrics.predictions_total.labels(score.label).inc()
        metrics.emotion_predictions_total.labels(score.emotion_label).inc()
        metrics.prediction_confidence.observe(score.confidence)
        if score.uncertain:
            metrics.low_confidence_total.inc()

    # -- outputs -------------------------------------------------------------------------------------------------------

    def _escalate(
        self,
        batch: _Batch,
        record: Record,
        state: ConversationState,
        transition: Transition,
        sequence: int,
        now_ms: int,
    ) -> None:
        value = escalation_event(
            state, transition, model=self._model_block, rules_version=self._rules_version, emitted_at_ms=now_ms
        )
        event_id = f"{transition.escalation_id}.{transition.revision}"
        headers = envelope.event_headers(
            envelope.constant_headers(envelope.ESCALATION + transition.action, "escalation.events:1"),
            event_id,
            envelope.rfc3339(transition.at_ms),
            state.conversation_id,
            transition.message_id or None,
            _traceparent(record),
        )
        headers.append(("ce_severitytext", transition.severity.encode()))
        key = envelope.record_key(state.tenant_id, state.conversation_id).encode()
        entry = OutboxRecord(self._topics.escalations, key, orjson.dumps(value), headers)
        self._put(batch, record, sequence, entry, transition.message_at_ms)
        if transition.action == "opened":
            self._metrics.escalations_total.labels(transition.rule_id, transition.severity).inc()
        self._metrics.escalation_transitions_total.labels(transition.action).inc()

    def _dead_letter(self, batch: _Batch, record: Record, error_class: ErrorClass, message: str, now_ms: int) -> None:
        topic, partition = batch.epoch.partition
        entry = dead_letter(
            self._topics.dead_letters,
            topic=topic,
            partition=partition,
            offset=record.offset,
            timestamp_ms=record.timestamp_ms,
            key=record.key,
            value=record.value,
            headers=record.headers,
            error_class=error_class,
            error_message=message,
            attempts=1,
            failed_at_ms=now_ms,
            keep_body=self._settings.output.dead_letter_bodies,
        )
        self._put(batch, record, 0, entry, None)

    def _put(self, batch: _Batch, record: Record, sequence: int, entry: OutboxRecord, trigger_ms: int | None) -> None:
        name = outbox_field(record.offset, sequence)
        batch.outputs[name] = entry.encode()
        batch.entries.append((name, entry, trigger_ms))

    def _scored_value(self, record: Record, now_ms: int) -> dict[str, Any]:
        score = record.score
        return {
            "sentiment": None if score is None else sentiment_block(score, self._model),
            "emotion": None if score is None else emotion_block(score, self._model),
            "uncertain": False if score is None else score.uncertain,
            "corrections": [],
            "complaint": None,
            "language": record.language,
            "model": self._model_json,
            "rules_version": self._rules_version,
            "truncated": record.truncated,
            "skipped_reason": record.skipped_reason,
            "timing": {
                "received_at": envelope.rfc3339(record.received_ms),
                "scored_at": envelope.rfc3339(now_ms),
                "queue_ms": record.queue_ms,
                "inference_ms": record.inference_ms,
                "batch_size": record.batch_size,
            },
        }

    def _publish_scored_chat(
        self, record: Record, decoded: Decoded, event: ChatEvent, state: ConversationState, turn: Turn, now_ms: int
    ) -> None:
        if not self._settings.output.scored:
            return
        value = {
            "tenant_id": event.tenant_id,
            "conversation_id": event.conversation_id,
            "message_id": event.message_id,
            "kind": decoded.kind,
            "role": turn.role,
            "channel": event.channel,
            "created_at": envelope.rfc3339(decoded.at_ms),
            **self._scored_value(record, now_ms),
            "signals": signals_block(turn.signals),
            "rolling": rolling_block(state),
        }
        self._produce_scored(record, event.tenant_id, event.conversation_id, event.message_id or "", decoded, value)

    def _publish_scored_review(self, record: Record, decoded: Decoded, event: ReviewEvent, now_ms: int) -> None:
        if not self._settings.output.scored:
            return
        score = record.score
        disagreement = None
        if score is not None and event.rating is not None:
            disagreement = abs((event.rating - 3) / 2 - score.score) >= RATING_DISAGREEMENT
        value = {
            "tenant_id": event.tenant_id,
            "product_id": event.product_id,
            "review_id": event.review_id,
            "kind": decoded.kind,
            "created_at": envelope.rfc3339(decoded.at_ms),
            "rating": event.rating,
            "rating_text_disagreement": disagreement,
            **self._scored_value(record, now_ms),
            "signals": [],
        }
        self._produce_scored(record, event.tenant_id, event.product_id, event.review_id, decoded, value)

    def _produce_scored(
        self, record: Record, tenant_id: str, entity_id: str, item_id: str, decoded: Decoded, value: Mapping[str, Any]
    ) -> None:
        event_id = envelope.stable_id(
            tenant_id, entity_id, item_id, decoded.kind, str(decoded.at_ms), self._model.sha256, self._rules_version
        )
        self._produce_bulk(
            self._topics.scored,
            envelope.record_key(tenant_id, entity_id),
            orjson.dumps(value),
            envelope.event_headers(
                self._scored_headers, event_id, str(value["created_at"]), entity_id, item_id, _traceparent(record)
            ),
        )

    def _publish_states(self, batches: Sequence[_Batch], now_ms: int) -> None:
        ttl_ms = self._rules.options.ttl_ms
        for batch in batches:
            for state in batch.touched.values():
                value = conversation_state_event(
                    state,
                    self._rules.options,
                    updated_at_ms=state.last_event_at_ms,
                    expires_at_ms=state.last_event_at_ms + ttl_ms,
                )
                event_id = envelope.stable_id(state.tenant_id, state.conversation_id, str(state.state_version))
                self._produce_bulk(
                    self._topics.conversation_state,
                    envelope.record_key(state.tenant_id, state.conversation_id),
                    orjson.dumps(value),
                    envelope.event_headers(
                        self._state_headers, event_id, value["updated_at"], state.conversation_id, None
                    ),
                )

    def _produce_bulk(self, topic: str, key: str, value: bytes, headers: envelope.Headers) -> None:
        while True:
            try:
                self._bulk.produce(topic, value=value, key=key, headers=headers)  # type: ignore[arg-type]
                return
            except BufferError:
                self._bulk.poll(0.05)
                if self._abort.is_set():
                    raise Aborted from None

    def _publish_bulk(self, batches: Sequence[_Batch], now_ms: int) -> bool:
        """Flush the scored events of the window and the new states; False when Kafka did not take all of them."""
        if self._settings.output.conversation_state:
            self._publish_states(batches, now_ms)
        while self._bulk.flush(0.5) > 0:
            self._beat()
            self._outbox.serve()
            if self._abort.is_set():
                raise Aborted
        failed, self._bulk_errors = self._bulk_errors, 0
        return failed == 0

    def bulk_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Delivery report of the bulk producer, for errors only (`delivery.report.only.error`)."""
        if error is not None:
            self._bulk_errors += 1
            self._metrics.produce_total.labels(message.topic() or "", "error").inc()
            log.error("publish_failed", topic=message.topic(), reason=error.name())

    # -- APPLY ---------------------------------------------------------------------------------------------------------

    def _write(self, batches: Sequence[_Batch]) -> None:
        """APPLY every partition of the window in one round trip, and act on what Redis says about each."""
        live = [batch for batch in batches if batch.epoch.alive]
        requests = [
            PartitionBatch(
                batch.epoch.partition,
                batch.epoch.token,
                batch.epoch.watermark,
                batch.records[-1].offset + 1,
                {key: state.to_json() for key, state in batch.touched.items()},
                batch.outputs,
            )
            for batch in live
        ]
        if not requests:
            return
        results = self._persist(lambda: self._store.apply(requests))
        now, now_ms = time.monotonic(), self._clock.now_ms()
        for batch, request, result in zip(live, requests, results, strict=True):
            epoch = batch.epoch
            if result.outcome is ApplyOutcome.OK:
                self._applied(batch, request.next, now, now_ms)
            elif result.outcome is ApplyOutcome.ALREADY:
                self._metrics.already_applied_total.inc()
                self._give_up(epoch, "already_applied")
            elif result.outcome is ApplyOutcome.GAP:
                self._metrics.gaps_total.inc()
                self._give_up(epoch, "gap")
            else:
                self._metrics.fences_total.inc()
                self._give_up(epoch, "fenced")

    def _applied(self, batch: _Batch, watermark: int, now: float, now_ms: int) -> None:
        epoch = batch.epoch
        epoch.watermark = watermark
        epoch.attempts = 0
        epoch.last_progress = now
        epoch.last_timestamp_ms = batch.records[-1].timestamp_ms
        if epoch.alive:  # else the next owner finds the entries in Redis
            for name, entry, trigger_ms in batch.entries:
                self._outbox.add(epoch, name, entry, trigger_ms)
        topic, partition = epoch.partition
        latency = self._metrics.end_to_end_latency_seconds.labels(topic)
        for record in batch.records:
            latency.observe(max(0, now_ms - record.timestamp_ms) / 1000)
        self._metrics.last_progress_timestamp_seconds.labels(topic, str(partition)).set(now_ms / 1000)
        if len(epoch.states) > CACHED_STATES:
            by_age = sorted(epoch.states, key=lambda key: epoch.states[key][1])
            for key in by_age[: len(by_age) - CACHED_STATES * 3 // 4]:
                del epoch.states[key]

    def _give_up(self, epoch: Epoch, reason: str) -> None:
        """The epoch dies with its cache; the poll thread acquires the partition anew and reads from the stored watermark."""
        if epoch.alive:
            epoch.alive = False
            epoch.states.clear()
            self._reacquire(epoch, reason)

    def _persist(self, call: Callable[[], Any]) -> Any:
        """Repeat a Redis call, with the same arguments, until it is answered. Raises Aborted at the drain deadline."""
        wait = BACKOFF_FIRST_SECONDS
        while True:
            try:
                return call()
            except StoreUnavailable as error:
                log.warning("redis_unavailable", reason=error.fault.value)
                self._metrics.redis_retries_total.inc()
                self._beat()
                if self._abort.wait(wait):
                    raise Aborted from None
                self._outbox.serve()
                wait = min(BACKOFF_LAST_SECONDS, wait * 2)


def _conversation_of(record: Record) -> str | None:
    outcome = record.outcome
    if record.epoch.kind != "chat" or not isinstance(outcome, Decoded) or record.poison is not None:
        return None
    event = cast(ChatEvent, outcome.event)
    return conversation_key(event.tenant_id, event.conversation_id)


def _traceparent(record: Record) -> bytes | None:
    if record.headers:
        for name, value in record.headers:
            if name == "traceparent":
                return value
    return None
