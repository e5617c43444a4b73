"""Everything that may change while a worker runs, in one place: what is in force, who looks for something new, what compares silently.

In: settings, the rules and the model that the worker starts with. Out: `Changes`, which the worker starts, stops, and asks what the
next window is worked on with. Raises ConfigurationError at the start, for a shadow bundle that is not sound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stream_sentiment.bulk import BulkPublisher
from stream_sentiment.events.routing import RoutingOptions
from stream_sentiment.live.rules_file import RulesFile
from stream_sentiment.live.serving import Live, Serving
from stream_sentiment.live.watch import Source, Watcher
from stream_sentiment.observability.build import build_labels
from stream_sentiment.observability.definitions import Domain, Labelled
from stream_sentiment.observability.drift import DriftWindow
from stream_sentiment.observability.health import HealthState
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.record_fold import RecordFolder
from stream_sentiment.scoring.corrections import Corrector
from stream_sentiment.settings import Settings

if TYPE_CHECKING:
    from prometheus_client import Gauge

    from stream_sentiment.escalation.rules import RuleSet
    from stream_sentiment.live.model_bundle import ModelBundle
    from stream_sentiment.live.shadow import Shadow
    from stream_sentiment.scoring.scorer import ModelInfo, Scorer
    from stream_sentiment.stages import Record


class Changes:
    """Rules and models of one worker."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        health: HealthState,
        bulk: BulkPublisher,
        rules: RuleSet,
        scorer: Scorer,
        partitions: Mapping[str, int],
        *,
        watch_rules: bool,
        watch_model: bool,
    ) -> None:
        """
        Args:
            partitions: number of each input topic's; filled in when Kafka has answered.
            watch_rules, watch_model: False where they are not those that the settings name.
        """
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._bulk = bulk
        self._partitions = partitions
        #: How far the model of the next window has drifted; other rules go on with it.
        self._drift: tuple[Scorer | None, DriftWindow | None] = None, None
        self.live = Live(rules, scorer, self._serving)
        #: What the worker starts with: the first change may come before its first window.
        self.first = self.live.current
        sources: list[Source] = []
        if watch_rules and settings.rules.path is not None:
            sources.append(self._rules_file(rules))
        self._bundle = self._model_bundle(scorer) if watch_model and settings.model.path is not None else None
        if self._bundle is not None:
            sources.append(self._bundle)
        self._watcher = Watcher(sources)
        self.shadow = load_shadow(settings, metrics)

    def start(self) -> None:
        """Begin to look for changes and to compare."""
        self._watcher.start()
        if self.shadow is not None:
            self.shadow.start()

    def stop(self) -> None:
        self._watcher.stop()
        if self.shadow is not None:
            self.shadow.stop()

    def look_now(self) -> None:
        """Look for changes at once. May be called from a signal handler."""
        self._watcher.look_now()

    def model_failed(self, scorer: Scorer, error: Exception) -> bool:
        """A model cannot score anything; True when the one before has taken its place."""
        return self._bundle is not None and self._bundle.failed(scorer, error)

    def scored(self, records: Sequence[Record], model: ModelInfo) -> None:
        """The model has scored these records."""
        if self.shadow is not None:
            self.shadow.offer(records, model)

    def in_force(self, serving: Serving) -> None:
        """Metrics and `/readyz` name the rules and the model of the windows from now on."""
        rules, info, metrics = serving.rules, serving.scorer.info, self._metrics
        metrics.declare(Domain.RULE, list(rules.default.by_id))
        metrics.declare(Domain.CORRECTION, Corrector.of(self._settings.corrections, info).rule_ids)
        metrics.declare(Domain.LABEL, info.labels["polarity"], only=["predictions_total"])
        metrics.declare(Domain.LABEL, info.emotion_labels, only=["emotion_predictions_total"])
        provider = str(getattr(serving.scorer, "provider", ""))
        _only_child(metrics.build_info, *build_labels(f"{info.name}@{info.version}", info.sha256, provider))
        _only_child(metrics.rules_info, rules.version)
        self._health.set_ready("model", True, f"{info.name} {info.version}")

    def _serving(self, rules: RuleSet, scorer: Scorer) -> Serving:
        """What a window needs of these rules and this model."""
        intake = self._settings.intake
        routing = RoutingOptions(
            frozenset(intake.languages), intake.default_language, intake.max_text_chars, rules.options.score_roles
        )
        folder = RecordFolder(self._settings, rules, scorer.info, self._bulk, self._partitions)
        if scorer is not self._drift[0]:
            self._drift = scorer, self._drift_window(scorer)
        return Serving(rules, scorer, routing, folder, self._drift[1])

    def _drift_window(self, scorer: Scorer) -> DriftWindow:
        """Without a reference it looks at no language, and takes the last model's figures away."""
        model = self._settings.model
        reference = scorer.info.reference or {}
        return DriftWindow(reference, self._metrics, size=model.drift_window, minimum=model.drift_minimum)

    def _rules_file(self, rules: RuleSet) -> RulesFile:
        settings = self._settings.rules
        assert settings.path is not None
        return RulesFile(
            settings.path,
            rules,
            interval=settings.watch.total_seconds(),
            use=lambda new: self.live.use(rules=new),
            model=lambda: self.live.current.scorer.info,
            metrics=self._metrics,
            health=self._health,
        )

    def _model_bundle(self, scorer: Scorer) -> ModelBundle:
        from stream_sentiment.live.model_bundle import ModelBundle

        model = self._settings.model
        assert model.path is not None
        return ModelBundle(
            model.path,
            scorer,
            device=model.device,
            token_budget=model.token_budget,
            interval=model.watch.total_seconds(),
            use=lambda new: self.live.use(scorer=new),
            metrics=self._metrics,
            health=self._health,
        )


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


def _only_child(gauges: Labelled[Gauge], *labels: str) -> None:
    """Set this series to 1 and remove the others: one version is in force."""
    gauges.labels(*labels).set(1)
    for other in gauges.known():
        if other != labels:
            gauges.remove(*other)
