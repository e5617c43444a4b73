"""Counts of one batch, added to the metrics once: a counter increment per message would cost as much as the fold.

In: `count` and `observe` per event, a dictionary update each. Out: the metrics, at `settle`. One thread only. What is never settled
does not count: work that is given up and redone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from prometheus_client import Histogram

from stream_sentiment.observability.metrics import Metrics


class Tally:
    """Increments that wait until their batch is applied."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counts: dict[tuple[str, ...], int] = {}
        self._values: dict[tuple[str, ...], list[float]] = {}

    def count(self, *metric_and_labels: str) -> None:
        """One more of a counter, named with its label values."""
        counts = self._counts
        counts[metric_and_labels] = counts.get(metric_and_labels, 0) + 1

    def observe(self, metric: str, value: float, *labels: str) -> None:
        """One value of a histogram."""
        self._values.setdefault((metric, *labels), []).append(value)

    def settle(self) -> None:
        """Add everything to the metrics."""
        for (metric, *labels), count in self._counts.items():
            self._child(metric, labels).inc(count)
        for (metric, *labels), values in self._values.items():
            observe_all(self._child(metric, labels), values)

    def _child(self, metric: str, labels: list[str]) -> Any:
        family = getattr(self._metrics, metric)
        return family.labels(*labels) if labels else family


def observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """`histogram.observe` for many values: one increment a bucket instead of two a value."""
    bounds = histogram._upper_bounds  # noqa: SLF001 (prometheus_client has no call for many values)
    counts = [0] * len(bounds)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    for bucket, count in zip(histogram._buckets, counts, strict=True):  # noqa: SLF001
        if count:
            bucket.inc(count)
    histogram._sum.inc(sum(values))  # noqa: SLF001
