"""The worker: the one place that knows every room, joins them, and starts, drains and stops them.

Threads: *poll* (the caller of `run`), *score* with its inference pool, *apply*; between them bounded queues (`flow.Flow`).
Start-up refuses what cannot work: wrong settings, a broken model bundle, missing topics, refused credentials. After that an outage
of Kafka or Redis is waited out, and whatever else goes wrong ends the process with its reason, to be started anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka import Producer

from stream_sentiment import __version__
from stream_sentiment.apply_stage import ApplyStage
from stream_sentiment.bulk import BulkPublisher
from stream_sentiment.clock import Clock, SystemClock
from stream_sentiment.errors import ConfigurationError, TryAgain
from stream_sentiment.escalation.rules import RuleSet, load_rules
from stream_sentiment.events.routing import RoutingOptions
from stream_sentiment.flow import Flow
from stream_sentiment.intake import Intake
from stream_sentiment.kafka.clients import common_config, first_contact, producer_config
from stream_sentiment.kafka.transactional import TransactionalPublisher
from stream_sentiment.live.rules_file import RulesFile
from stream_sentiment.live.serving import Live, Serving
from stream_sentiment.live.watch import Source, Watcher
from stream_sentiment.observability.build import build_labels
from stream_sentiment.observability.definitions import Domain, Labelled
from stream_sentiment.observability.drift import DriftWindow
from stream_sentiment.observability.health import HealthServer, HealthState, StuckDetector
from stream_sentiment.observability.labels import Dependency
from stream_sentiment.observability.logs import count_suppressed, get_logger, kafka_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.observability.tracing import tracer_from_environment
from stream_sentiment.outbox import KafkaPublisher, Outbox
from stream_sentiment.record_fold import RecordFolder
from stream_sentiment.score_stage import ScoreStage
from stream_sentiment.scoring.corrections import Corrector
from stream_sentiment.settings import Settings
from stream_sentiment.stages import Epoch, Record
from stream_sentiment.store.errors import StoreFault
from stream_sentiment.store.redis import StateStore

if TYPE_CHECKING:
    from prometheus_client import Gauge

    from stream_sentiment.live.model_bundle import ModelBundle
    from stream_sentiment.live.shadow import Shadow
    from stream_sentiment.scoring.scorer import ModelInfo, Scorer

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


def load_shadow(settings: Settings, metrics: Metrics) -> Shadow | None:
    """The second model, where one is wanted. Raises ConfigurationError for a bundle that is not sound."""
    model = settings.model
    if model.shadow is None:
        return None
    from stream_sentiment.live.shadow import Shadow
    from stream_sentiment.scoring.scorer import OnnxScorer
    from stream_sentiment.scoring.verify import check_golden

    scorer = OnnxScorer.load(model.shadow, device=model.device, token_budget=model.token_budget)
    check_golden(scorer, scorer.bundle)
    return Shadow(scorer, model.shadow_share, metrics)


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
        rules = rules or load_rules(settings.rules.path)
        started = time.monotonic()
        #: A model that the caller gave is not the one on disk.
        self._own_model = scorer is None and not settings.model.stub and settings.model.path is not None
        scorer = scorer or load_scorer(settings)
        self.metrics.model_load_seconds.set(time.monotonic() - started)
        self._bulk = BulkPublisher(settings, self.metrics, scorer.info, rules.version)
        #: Of each input topic; known once Kafka has answered.
        self._partition_counts: dict[str, int] = {}
        #: How far the model of the next window has drifted; other rules go on with it.
        self._drift: tuple[Scorer | None, DriftWindow | None] = None, None
        self.live = Live(rules, scorer, self._serving)
        self._bundle = self._model_bundle(scorer)
        self._watcher = Watcher(self._sources())
        self._shadow = load_shadow(settings, self.metrics)
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
        self._watcher.look_now()

    def run(self) -> None:
        """Work until `stop`, or until idle.

        Raises:
            ConfigurationError: something is wrong that trying again cannot mend.
            ServiceUnavailable: Kafka or Redis cannot be reached at start-up.
            TryAgain: the drain reached its deadline; nothing is lost, the next owner goes on from the watermark.
        """
        settings = self.settings
        self._declare_metrics()
        self._in_force(self.live.current)
        server = HealthServer(settings.http.host, settings.http.port, self.metrics, self.health)
        server.start()
        stuck = StuckDetector(self.health, on_stuck=self._stuck)
        stuck.start()
        if self._on_listening is not None:
            self._on_listening(f"http://{settings.http.host}:{server.port}")
        self._watcher.start()
        if self._shadow is not None:
            self._shadow.start()
        try:
            self._work()
        finally:
            self._watcher.stop()
            if self._shadow is not None:
                self._shadow.stop()
            self.health.set_ready("running", False, "stopped")
            stuck.stop()
            server.stop()
        if self._incomplete:
            raise TryAgain(
                "the drain reached its deadline before everything read was applied; the next owner reads it again"
            )

    def _work(self) -> None:
        settings, metrics, health = self.settings, self.metrics, self.health
        serving, bulk = self.live.current, self._bulk
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
            self._in_force(taken_up)

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
            on_model_failure=self._model_failed,
            on_scored=self._scored,
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

    def _serving(self, rules: RuleSet, scorer: Scorer) -> Serving:
        """What a window needs of these rules and this model."""
        intake = self.settings.intake
        routing = RoutingOptions(
            frozenset(intake.languages), intake.default_language, intake.max_text_chars, rules.options.score_roles
        )
        folder = RecordFolder(self.settings, rules, scorer.info, self._bulk, self._partition_counts)
        if scorer is not self._drift[0]:
            self._drift = scorer, self._drift_window(scorer)
        return Serving(rules, scorer, routing, folder, self._drift[1])

    def _drift_window(self, scorer: Scorer) -> DriftWindow:
        """Without a reference it looks at no language, and takes the last model's figures away."""
        model = self.settings.model
        return DriftWindow(scorer.info.reference or {}, self.metrics, size=model.drift_window, minimum=model.drift_minimum)

    def _sources(self) -> list[Source]:
        """What may change while the worker runs."""
        settings, sources = self.settings, list[Source]()
        if settings.rules.path is not None:
            sources.append(
                RulesFile(
                    settings.rules.path,
                    self.live.current.rules,
                    interval=settings.rules.watch.total_seconds(),
                    use=lambda rules: self.live.use(rules=rules),
                    model=lambda: self.live.current.scorer.info,
                    metrics=self.metrics,
                    health=self.health,
                )
            )
        return sources if self._bundle is None else [*sources, self._bundle]

    def _model_bundle(self, scorer: Scorer) -> ModelBundle | None:
        model = self.settings.model
        if not self._own_model or model.path is None:
            return None
        from stream_sentiment.live.model_bundle import ModelBundle

        return ModelBundle(
            model.path,
            scorer,
            device=model.device,
            token_budget=model.token_budget,
            interval=model.watch.total_seconds(),
            use=lambda new: self.live.use(scorer=new),
            metrics=self.metrics,
            health=self.health,
        )

    def _model_failed(self, scorer: Scorer, error: Exception) -> bool:
        return self._bundle is not None and self._bundle.failed(scorer, error)

    def _scored(self, records: Sequence[Record], model: ModelInfo) -> None:
        if self._shadow is not None:
            self._shadow.offer(records, model)

    def _declare_metrics(self) -> None:
        topics = self.settings.topics
        declare = self.metrics.declare
        declare(Domain.INPUT_TOPIC, list(topics.inputs()))
        declare(
            Domain.OUTPUT_TOPIC, [topics.scored, topics.conversation_state, topics.escalations, topics.dead_letters]
        )
        self.metrics.model_ready.set(1)

    def _in_force(self, serving: Serving) -> None:
        """Metrics and `/readyz` name the rules and the model of the windows from now on."""
        rules, info, metrics = serving.rules, serving.scorer.info, self.metrics
        metrics.declare(Domain.RULE, list(rules.default.by_id))
        metrics.declare(Domain.CORRECTION, Corrector.of(self.settings.corrections, info).rule_ids)
        metrics.declare(Domain.LABEL, info.labels["polarity"], only=["predictions_total"])
        metrics.declare(Domain.LABEL, info.emotion_labels, only=["emotion_predictions_total"])
        provider = str(getattr(serving.scorer, "provider", ""))
        only_child(metrics.build_info, *build_labels(f"{info.name}@{info.version}", info.sha256, provider))
        only_child(metrics.rules_info, rules.version)
        self.health.set_ready("model", True, f"{info.name} {info.version}")


def only_child(gauges: Labelled[Gauge], *labels: str) -> None:
    """Set this series to 1 and remove the others: one version is in force."""
    gauges.labels(*labels).set(1)
    for other in gauges.known():
        if other != labels:
            gauges.remove(*other)
