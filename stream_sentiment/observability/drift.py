"""How far the predictions of late are from the bundle's reference.

In: predictions of applied messages, in order. Out: `prediction_psi` and `prediction_window_events`, at `report`. Belongs to the apply
thread; nothing blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.scoring.reference import Prediction, Reference, distances

#: Seconds between two computations: two windows of 2,000 messages take 4 ms (measured), 0.1 % of a thread.
REPORT_SECONDS = 5.0


class DriftWindow:
    """The last messages of each language of the reference. Languages that it lacks are not looked at."""

    def __init__(self, reference: Reference, metrics: Metrics, *, size: int, minimum: int) -> None:
        """
        Args:
            size: messages kept of a language; the oldest go first.
            minimum: messages of a language below which nothing is said about it.
        """
        self._reference = reference
        self._metrics = metrics
        self._minimum = minimum
        self._windows: dict[str, deque[Prediction]] = {language: deque(maxlen=size) for language in reference}
        self._changed: set[str] = set()
        self._next_report = 0.0
        # What another model's window has said is not true of this one.
        for gauges in (metrics.prediction_psi, metrics.prediction_window_events):
            for values in gauges.known():
                gauges.remove(*values)
        for language in reference:
            metrics.prediction_window_events.labels(language).set(0)

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Messages whose state has been committed: work that is given up and redone counts once."""
        windows = self._windows
        for prediction in predictions:
            window = windows.get(prediction.language)
            if window is not None:
                window.append(prediction)
                self._changed.add(prediction.language)

    def report(self, now: float) -> None:
        """Compute what has changed, at most every `REPORT_SECONDS`; `now` is monotonic seconds."""
        if now < self._next_report or not self._changed:
            return
        self._next_report = now + REPORT_SECONDS
        for language in self._changed:
            window = self._windows[language]
            self._metrics.prediction_window_events.labels(language).set(len(window))
            if len(window) < self._minimum:
                continue
            for (head, distribution), index in distances(self._reference[language], list(window)).items():
                self._metrics.prediction_psi.labels(head, distribution, language).set(index)
        self._changed.clear()
