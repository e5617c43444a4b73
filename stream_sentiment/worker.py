"""The worker: the one place that knows every room, joins them, and starts, drains and stops them.

Threads: *poll* (the caller of `run`), *score* with its inference pool, *apply*; between them bounded queues (`flow.Flow`).
Start-up refuses what cannot work: wrong settings, a broken model bundle, missing topics, refused credentials. After that an outage
of Kafka or Redis is waited out, and whatever else goes wrong ends the process with its reason, to be started anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka import Producer

from stream_sentiment import __version__
from stream_sentiment.apply_stage import ApplyStage
from stream_sentiment.bulk import BulkPublisher
from stream_sentiment.clock import Clock, SystemClock
from stream_sentiment.errors import ConfigurationError, TryAgain
from stream_sentiment.escalation.rules import RuleSet, load_rules
from stream_sentiment.flow import Flow
from stream_sentiment.intake import Intake
from stream_sentiment.kafka.clients import common_config, first_contact, producer_config
from stream_sentiment.kafka.transactional import TransactionalPublisher
from stream_sentiment.live.changes import Changes
from stream_sentiment.live.serving import Live, Serving
from stream_sentiment.observability.definitions import Domain
from stream_sentiment.observability.health import HealthServer, HealthState, StuckDetector
from stream_sentiment.observability.labels import Dependency
from stream_sentiment.observability.logs import count_suppressed, get_logger, kafka_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.observability.tracing import tracer_from_environment
from stream_sentiment.outbox import KafkaPublisher, Outbox
from stream_sentiment.score_stage import ScoreStage
from stream_sentiment.settings import Settings
from stream_sentiment.stages import Epoch
from stream_sentiment.store.errors import StoreFault
from stream_sentiment.store.redis import StateStore

if TYPE_CHECKING:
    from stream_sentiment.scoring.scorer import Scorer

#: First answer of Kafka at start-up.
CONTACT_SECONDS = 15.0
#: Redis keeps a state for so many lives of a conversation: a message after the end of its life must still find it, or an open
#: escalation would never be resolved as expired.
STATE_LIVES = 2

log = get_logger("worker")


def inference_threads(setting: int | None) -> int:
    """The CPUs that this process may use, by affinity and cgroup quota: ONNX Runtime would count the host's."""
    if setting is not None:
        return setting
    cpus = len(os.sched_getaffinity(0))
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as quota_file:
            quota, period = quota_file.read().split()
        if quota != "max":
            cpus = min(cpus, int(quota) // int(period))
    except (OSError, ValueError):
        pass
    return max(1, cpus)


def load_scorer(settings: Settings) -> Scorer:
    """The scorer that the settings ask for. Raises ConfigurationError for a bundle or a device that will not do."""
    from stream_sentiment.scoring.scorer import OnnxScorer, StubScorer

    if settings.model.stub:
        return StubScorer()
    return OnnxScorer.load(settings.model.path, device=settings.model.device, token_budget=settings.model.token_budget)


def open_store(
    settings: Settings,
    state_ttl_ms: int,
    *,
    clock: Clock | None = None,
    on_fault: Callable[[StoreFault], None] | None = None,
) -> StateStore:
    """The state store of the settings. `state_ttl_ms`: how long Redis keeps a state after its last write."""
    redis = settings.redis
    url = redis.url.get_secret_value()
    if redis.cluster:
        url = url.replace("redis://", "redis+cluster://", 1).replace("rediss://", "rediss+cluster://", 1)
    timeout = redis.timeout.total_seconds()
    return StateStore(
        url,
        group=settings.kafka.group_id,
        prefix=redis.prefix,
        state_ttl_ms=state_ttl_ms,
        connect_timeout=timeout,
        socket_timeout=timeout,
        ssl_ca_certs=_path(redis.ssl_ca_location),
        ssl_certfile=_path(redis.ssl_certificate_location),
        ssl_keyfile=_path(redis.ssl_key_location),
        clock=clock,
        on_fault=on_fault,
    )


def _path(file: Path | None) -> str | None:
    return None if file is None else str(file)


class Worker:
    """One consumer of the group, with its model, its threads and its HTTP endpoint."""

    def __init__(
        self,
        settings: Settings,
        *,
        scorer: Scorer | None = None,
        rules: RuleSet | None = None,
        clock: Clock | None = None,
        exit_when_idle: float | None = None,
        on_listening: Callable[[str], None] | None = None,
    ) -> None:
        """Loads rules and model; contacts nobody yet.

        Args:
            scorer, rules: in place of those that the settings name.
            exit_when_idle: seconds at the end of every assigned partition after which `run` returns.
            on_listening: told the address of the HTTP endpoint.
        """
        self.settings = settings
        self.clock = clock or SystemClock()
        self.metrics = Metrics(clock=self.clock)
        self.health = HealthState()
        count_suppressed(lambda event: self.metrics.log_lines_suppressed_total.labels(event).inc())
        watch_rules, watch_model = rules is None, scorer is None and not settings.model.stub
        rules = rules or load_rules(settings.rules.path)
        started = time.monotonic()
        scorer = scorer or load_scorer(settings)
        self.metrics.model_load_seconds.set(time.monotonic() - started)
        self._bulk = BulkPublisher(settings, self.metrics, scorer.info, rules.version)
        #: Of each input topic; known once Kafka has answered.
        self._partition_counts: dict[str, int] = {}
        self.changes = Changes(
            settings,
            self.metrics,
            self.health,
            self._bulk,
            rules,
            scorer,
            self._partition_counts,
            watch_rules=watch_rules,
            watch_model=watch_model,
        )
        self._exit_when_idle = exit_when_idle
        self._on_listening = on_listening
        self._intake: Intake | None = None
        self._apply: ApplyStage | None = None
        self._stop_requested = threading.Event()
        self._stopping_since: float | None = None
        self._incomplete = False

    def stop(self) -> None:
        """Ask for a graceful end: drain within `worker.drain_timeout`, then `run` returns. May be called from a signal handler."""
        if not self._stop_requested.is_set():
            self._stopping_since = time.monotonic()
        self._stop_requested.set()
        if self._intake is not None:
            self._intake.stop()

    def reload(self) -> None:
        """Look at the rule file and the model bundle now, and take up what is sound. May be called from a signal handler."""
        self.changes.look_now()

    @property
    def live(self) -> Live:
        """Rules and model in force."""
        return self.changes.live

    def run(self) -> None:
        """Work until `stop`, or until idle.

        Raises:
            ConfigurationError: something is wrong that trying again cannot mend.
            ServiceUnavailable: Kafka or Redis cannot be reached at start-up.
            TryAgain: the drain reached its deadline; nothing is lost, the next owner goes on from the watermark.
        """
        settings = self.settings
        self._declare_metrics()
        self.changes.in_force(self.changes.first)
        server = HealthServer(settings.http.host, settings.http.port, self.metrics, self.health)
        server.start()
        stuck = StuckDetector(self.health, on_stuck=self._stuck)
        stuck.start()
        if self._on_listening is not None:
            self._on_listening(f"http://{settings.http.host}:{server.port}")
        self.changes.start()
        try:
            self._work()
        finally:
            self.changes.stop()
            self.health.set_ready("running", False, "stopped")
            stuck.stop()
            server.stop()
        if self._incomplete:
            raise TryAgain(
                "the drain reached its deadline before everything read was applied; the next owner reads it again"
            )

    def _work(self) -> None:
        settings, metrics, health = self.settings, self.metrics, self.health
        serving, bulk = self.changes.first, self._bulk
        store = open_store(
            settings,
            STATE_LIVES * serving.longest_ttl_ms,
            clock=self.clock,
            on_fault=lambda fault: metrics.redis_errors_total.labels(fault.value).inc(),
        )
        bulk_producer = Producer(
            self._producer_config("bulk") | {"delivery.report.only.error": True, "on_delivery": bulk.delivery_failed}
        )
        bulk.use(bulk_producer)
        partition_counts = self._check_topics(bulk_producer)
        self._partition_counts.update(partition_counts)
        flow = Flow(settings.intake.windows_in_flight)
        outbox = Outbox(store, metrics, dlq_topic=settings.topics.dead_letters)
        publisher = self._publisher(store, outbox)
        outbox.use(publisher)
        stall = settings.worker.stall_timeout.total_seconds()
        for loop in ("intake", "score", "apply"):
            health.watch(loop, stall)

        def on_serving(taken_up: Serving) -> None:
            store.keep_states(STATE_LIVES * taken_up.longest_ttl_ms)
            self.changes.in_force(taken_up)

        apply_stage = ApplyStage(
            store,
            flow,
            outbox,
            bulk,
            serving,
            metrics,
            self.clock,
            next_serving=lambda: self.live.current,
            on_serving=on_serving,
            timer_grace_ms=round(settings.worker.timer_grace.total_seconds() * 1000),
            timers_on=settings.worker.timers,
            on_model_failure=self.changes.model_failed,
            on_scored=self.changes.scored,
            beat=lambda: health.beat("apply"),
            on_error=self._fail,
            on_store=self._store_answers,
            tracer=tracer_from_environment(settings.kafka.group_id),
        )
        score_stage = ScoreStage(
            flow,
            metrics,
            threads=inference_threads(settings.model.threads),
            token_budget=settings.model.token_budget,
            beat=lambda: health.beat("score"),
            on_error=self._fail,
        )
        intake = Intake(
            settings,
            store,
            flow,
            metrics,
            health,
            self.clock,
            serving=lambda: self.live.current,
            partition_counts=partition_counts,
            on_acquired=apply_stage.acquired,
            on_released=apply_stage.released,
            exit_when_idle=self._exit_when_idle,
        )
        self._intake, self._apply = intake, apply_stage
        if self._stop_requested.is_set():
            intake.stop()
        score_stage.start()
        apply_stage.start(intake.reacquire)
        health.set_ready("running", True)
        log.info(
            "worker_started",
            version=__version__,
            model=serving.scorer.info.name,
            rules_version=serving.rules.version,
        )
        try:
            intake.run()
        finally:
            for loop in ("intake", "score", "apply"):
                health.unwatch(loop)
            self._incomplete = not flow.idle() or outbox.depth > 0
            if self._incomplete:
                apply_stage.abort()
            flow.close()
            score_stage.join(5.0)
            apply_stage.join(5.0)
            publisher.close()
            store.close()
        seconds = 0.0 if self._stopping_since is None else time.monotonic() - self._stopping_since
        self.metrics.shutdown_duration_seconds.set(seconds)
        log.info("worker_stopped", incomplete=self._incomplete, seconds=round(seconds, 3))

    def _publisher(self, store: StateStore, outbox: Outbox) -> KafkaPublisher | TransactionalPublisher:
        """How the outbox reaches Kafka: at least once, or once for `read_committed` consumers."""
        settings = self.settings
        if not settings.output.exactly_once:
            return KafkaPublisher(Producer(self._producer_config("outbox")), outbox)

        def on_broken(epoch: Epoch, reason: str) -> None:
            if self._apply is not None:
                self._apply.give_up(epoch, reason)

        return TransactionalPublisher(
            store,
            outbox,
            client_config=common_config(settings.kafka),
            producer_config=self._producer_config("outbox"),
            group=settings.kafka.group_id,
            topics=(settings.topics.escalations, settings.topics.dead_letters),
            on_broken=on_broken,
            logger=kafka_logger("outbox"),
        )

    def _producer_config(self, name: str) -> dict[str, object]:
        output = self.settings.output
        return producer_config(self.settings.kafka, output.linger, output.delivery_timeout, kafka_logger(name))

    def _fail(self, error: BaseException) -> None:
        """A stage cannot go on: the whole worker ends, and with it the membership in the group."""
        log.error("stage_failed", reason=type(error).__name__, exc_info=error)
        if self._apply is not None:
            self._apply.abort()
        if self._intake is not None:
            self._intake.fail(error)

    def _check_topics(self, client: Producer) -> Mapping[str, int]:
        """Number of partitions of each input topic. Raises ConfigurationError when a topic is missing."""
        metadata = first_contact(client, self.settings.kafka.bootstrap_servers, CONTACT_SECONDS)
        topics = self.settings.topics
        wanted = [*topics.inputs(), topics.scored, topics.conversation_state, topics.escalations, topics.dead_letters]
        missing = [name for name in wanted if name not in metadata.topics or metadata.topics[name].error is not None]
        if missing:
            raise ConfigurationError(
                f"Kafka has no topic {', '.join(missing)}. Create what is missing with `stream-sentiment topics create`."
            )
        self.health.set_ready("kafka", True)
        counts = {name: len(metadata.topics[name].partitions) for name in topics.inputs()}
        for name, count in counts.items():
            self.metrics.topic_partitions.labels(name).set(count)
        return counts

    def _store_answers(self, ok: bool, detail: str) -> None:
        self.health.set_ready("redis", ok, detail)
        self.metrics.circuit_state.labels(Dependency.REDIS).set(0 if ok else 2)

    def _stuck(self, overdue: Mapping[str, float]) -> None:
        self.metrics.stuck_loops_total.inc(len(overdue))
        log.error("loop_stuck", loops={loop: round(age, 1) for loop, age in overdue.items()})

    def _declare_metrics(self) -> None:
        topics = self.settings.topics
        declare = self.metrics.declare
        declare(Domain.INPUT_TOPIC, list(topics.inputs()))
        declare(
            Domain.OUTPUT_TOPIC, [topics.scored, topics.conversation_state, topics.escalations, topics.dead_letters]
        )
        self.metrics.model_ready.set(1)
