"""The model bundle of a running worker: a new sound one is taken up, any other is told and changes nothing.

In: looks of the watcher. Out: `use(scorer)` with a model that has been read, verified by sha256, opened, run on its own golden set
(which also warms it up), and found to give the labels that it gave at its export; log lines, metrics, the detail of `/readyz`. Blocks
for a second or two, on the watcher's thread. Two models are in memory for so long, and for `PROBATION_SECONDS` after a switch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import orjson

from stream_sentiment.live.watch import Look, Settled, look_at
from stream_sentiment.observability.health import HealthState
from stream_sentiment.observability.labels import SwapResult
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.scoring.bundle import Bundle, load_bundle, read_manifest
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.scoring.session import PRECISION_OF, Device, choose_device
from stream_sentiment.scoring.verify import check_golden

if TYPE_CHECKING:
    from stream_sentiment.scoring.scorer import Scorer

#: For so long after a switch the model before is kept: should the new one fail on everything, work goes on with the old one.
PROBATION_SECONDS = 60.0

#: Where a bundle's path leads to, and how each of its files looks.
BundleLook: TypeAlias = tuple[str, tuple[tuple[str, Look], ...]] | None

log = get_logger("model")


def look_at_bundle(path: Path) -> BundleLook:
    """A swapped symlink leads elsewhere; a bundle that is copied over looks otherwise with every file that arrives."""
    try:
        return os.path.realpath(path), tuple((name, look_at(path / name)) for name in sorted(os.listdir(path)))
    except OSError:
        return None


class ModelBundle:
    """A `Source`: the bundle directory that the settings name, or a symlink to one."""

    def __init__(
        self,
        path: Path,
        scorer: Scorer,
        *,
        device: Device | Literal["auto"],
        token_budget: int,
        interval: float,
        use: Callable[[Scorer], object],
        metrics: Metrics,
        health: HealthState,
    ) -> None:
        """
        Args:
            scorer: the model in force.
            use: takes another one up, from the next window on.
        """
        self.interval = interval
        self._path = path
        self._device = device
        self._token_budget = token_budget
        self._use = use
        self._metrics = metrics
        self._health = health
        # Unequal to any look: the bundle may have changed between its loading and now.
        self._settled = Settled(object())
        self._lock = threading.Lock()
        self._scorer = scorer
        #: The model before, until the monotonic time after which it is let go.
        self._previous: tuple[Scorer, float] | None = None
        #: The one that failed after its switch: its windows still come back.
        self._failed: Scorer | None = None
        self._refused = False
        self._tell(_name(scorer))

    def look(self, *, at_once: bool = False) -> None:
        """Load the bundle when it has changed and has stopped changing, or when a person asks."""
        with self._lock:
            over = self._previous is not None and time.monotonic() > self._previous[1]
            if over:
                self._previous = None
        if over:
            give_memory_back()
        if not self._settled.changed(look_at_bundle(self._path), at_once=at_once):
            return
        started = time.monotonic()
        try:
            scorer = self._open()
        except Exception as error:  # whatever is wrong with it, onnxruntime's own errors included
            self._refuse(SwapResult.REFUSED, str(error) or type(error).__name__)
            return
        if scorer is None:
            if self._refused or at_once:
                self._metrics.model_swap_total.labels(SwapResult.UNCHANGED).inc()
                log.info("model_unchanged", path=str(self._path), model=_name(self._scorer))
            self._accepted()
            return
        seconds = time.monotonic() - started
        with self._lock:
            before, self._scorer = self._scorer, scorer
            self._previous, self._failed = (before, time.monotonic() + PROBATION_SECONDS), None
            self._use(scorer)
        self._metrics.model_load_seconds.set(seconds)
        self._metrics.model_swap_total.labels(SwapResult.APPLIED).inc()
        self._accepted()
        log.info(
            "model_swapped", path=str(self._path), model=_name(scorer), before=_name(before), seconds=round(seconds, 2)
        )

    def failed(self, scorer: Scorer, error: BaseException) -> bool:
        """A model cannot score anything: go back to the one before, where there still is one. True: work may go on.

        Called by the apply thread, once for each window that the failing model still had in hand.
        """
        with self._lock:
            if scorer is self._failed:
                return True
            if scorer is not self._scorer or self._previous is None:
                return False
            before = self._previous[0]
            self._previous = None
            self._scorer, self._failed = before, scorer
            self._use(before)
        self._refuse(SwapResult.ROLLED_BACK, f"{_name(scorer)} failed on everything: {type(error).__name__}: {error}")
        return True

    def _open(self) -> OnnxScorer | None:
        """The new model, proved; None when it is the one in force, whose files are sound."""
        device = choose_device(self._device, read_manifest(self._path))
        bundle = load_bundle(self._path, PRECISION_OF[device])
        known = getattr(self._scorer, "bundle", None)
        if known is not None and _digest(known) == _digest(bundle):
            return None
        scorer = OnnxScorer(bundle, device=device, token_budget=self._token_budget)
        check_golden(scorer, bundle)
        return scorer

    def _refuse(self, result: SwapResult, why: str) -> None:
        if not self._refused:
            self._metrics.model_bundle_refused_seconds.since(self._metrics.clock.now_ms())
        self._refused = True
        self._metrics.model_swap_total.labels(result).inc()
        log.error("model_refused", path=str(self._path), model=_name(self._scorer), result=str(result), reason=why)
        self._tell(f"{_name(self._scorer)} stays in force; the bundle is refused: {why}")

    def _accepted(self) -> None:
        self._refused = False
        self._metrics.model_bundle_refused_seconds.since(None)
        self._tell(_name(self._scorer))

    def _tell(self, detail: str) -> None:
        # Ready all the same: the worker works, with the model that it had.
        self._health.set_ready("model_bundle", True, detail)


def give_memory_back() -> None:
    """glibc keeps what a model leaves behind, about 15 MB more with every swap: have it give the pages back."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        log.debug("malloc_trim_missing")


def _name(scorer: Scorer) -> str:
    return f"{scorer.info.name} {scorer.info.version}"


def _digest(bundle: Bundle) -> str:
    """Two bundles with one model file may differ in temperatures or thresholds: the manifest names everything."""
    return hashlib.sha256(orjson.dumps(bundle.manifest, option=orjson.OPT_SORT_KEYS)).hexdigest()
