"""The rule file of a running worker: a new valid one is taken up, a bad one is told and changes nothing.

In: looks of the watcher. Out: `use(rules)` with a rule set that is compiled, lexicons included; log lines, metrics and the detail of
`/readyz`. Blocks on one small file. Belongs to the watcher's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.escalation.lint import lint
from stream_sentiment.escalation.rules import RuleSet, parse_rules
from stream_sentiment.live.watch import Settled, look_at
from stream_sentiment.observability.health import HealthState
from stream_sentiment.observability.labels import ReloadResult
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.metrics import Metrics

if TYPE_CHECKING:
    from stream_sentiment.scoring.bundle import ModelInfo

log = get_logger("rules")


class RulesFile:
    """A `Source`: the rule file that the settings name."""

    def __init__(
        self,
        path: Path,
        rules: RuleSet,
        *,
        interval: float,
        use: Callable[[RuleSet], object],
        model: Callable[[], ModelInfo],
        metrics: Metrics,
        health: HealthState,
    ) -> None:
        """
        Args:
            rules: those in force, which may be older than the file already.
            use: takes a new rule set up, from the next window on.
            model: the model in force; the signals of a rule set depend on it.
        """
        self.interval = interval
        self._path = path
        self._version = rules.version
        self._use = use
        self._model = model
        self._metrics = metrics
        self._health = health
        # Unequal to any look: the file may have changed between its loading and now.
        self._settled = Settled(object())
        self._refused = False
        self._tell(f"version {self._version}")

    def look(self, *, at_once: bool = False) -> None:
        """Load the file when it has changed and has stopped changing, or when a person asks."""
        if not self._settled.changed(look_at(self._path), at_once=at_once):
            return
        try:
            rules = self._load()
        except ConfigurationError as error:
            self._refuse(str(error).splitlines())
            return
        if rules.version == self._version:
            if self._refused or at_once:
                self._count(ReloadResult.UNCHANGED)
                log.info("rules_unchanged", file=str(self._path), rules_version=self._version)
            self._accepted()
            return
        # Compiling the lexicons takes tens of milliseconds: here, and not while a window waits.
        rules.finder(self._model())
        before, self._version = self._version, rules.version
        self._use(rules)
        self._count(ReloadResult.APPLIED)
        self._accepted()
        log.info("rules_reloaded", file=str(self._path), rules_version=rules.version, before=before)

    def _load(self) -> RuleSet:
        """Raises ConfigurationError whose lines are all the mistakes, each with its place where it has one."""
        try:
            text = self._path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"it cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"it is no UTF-8 text: {error}") from error
        findings = lint(text)
        if findings:
            try:
                if parse_rules(text).version == self._version:
                    findings = []  # in force since the start, where a mistake that can be lived with is let pass
            except ConfigurationError:
                pass
        if findings:
            lines = (f"line {f.line}, column {f.column}: {f.path and f.path + ': '}{f.message}" for f in findings)
            raise ConfigurationError("\n".join(lines))
        return parse_rules(text, str(self._path))

    def _refuse(self, mistakes: list[str]) -> None:
        if not self._refused:
            self._metrics.rules_file_invalid_seconds.since(self._metrics.clock.now_ms())
        self._refused = True
        self._count(ReloadResult.REFUSED)
        log.error("rules_refused", file=str(self._path), rules_version=self._version, mistakes=mistakes)
        more = f" and {len(mistakes) - 1} more" if len(mistakes) > 1 else ""
        self._tell(f"version {self._version} stays in force; the file is refused: {mistakes[0]}{more}")

    def _accepted(self) -> None:
        self._refused = False
        self._metrics.rules_file_invalid_seconds.since(None)
        self._tell(f"version {self._version}")

    def _count(self, result: ReloadResult) -> None:
        self._metrics.rules_reload_total.labels(result).inc()

    def _tell(self, detail: str) -> None:
        # Ready all the same: a worker with its old rules does its work, and taking it out of service would not mend the file.
        self._health.set_ready("rules", True, detail)
