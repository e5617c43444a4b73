"""Where a thread spends its time: one state at any moment, so that the seconds of all states sum to the
thread's wall time.

In: `switch("state")` from the thread itself (about 0.3 µs). Out: seconds per state, the state in progress
included, so that a thread stuck in a call shows at the next scrape and not when the call returns. Never
blocks beyond an uncontended lock. Raises KeyError for a state that was not declared.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class TimeInState:
    """The split of one thread's wall time. Only that thread calls `switch`, `enter` and `stop`; any thread
    may call `seconds`.
    """

    __slots__ = ("_lock", "_now", "_seconds", "_since", "_state")

    def __init__(self, states: Sequence[str], now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._seconds = dict.fromkeys(states, 0.0)
        self._state: str | None = None
        self._since = 0.0
        self._lock = threading.Lock()

    def switch(self, state: str) -> str | None:
        """Leave the present state for another; returns the one that was left (None: the clock was not
        running).
        """
        seconds = self._seconds
        seconds[state]  # an unknown state fails here, before anything has changed
        with self._lock:
            now = self._now()
            left = self._state
            if left is not None:
                seconds[left] += now - self._since
            self._state = state
            self._since = now
        return left

    def stop(self) -> None:
        """Stop counting: the thread has ended or no longer belongs to the pipeline."""
        with self._lock:
            if self._state is not None:
                self._seconds[self._state] += self._now() - self._since
                self._state = None

    @contextmanager
    def enter(self, state: str) -> Iterator[None]:
        """Be in `state` for a block, then back in the one before. About 1.5 µs: use `switch` in a loop over
        events.
        """
        before = self.switch(state)
        try:
            yield
        finally:
            if before is None:
                self.stop()
            else:
                self.switch(before)

    def seconds(self) -> dict[str, float]:
        """Seconds per state since the first `switch`, the running state included."""
        with self._lock:
            seconds = dict(self._seconds)
            if self._state is not None:
                seconds[self._state] += self._now() - self._since
        return seconds


class StateTimes(Collector):
    """Counter `name{[thread,] state}` over the TimeInState of one or several threads, every state present
    from the start.
    """

    def __init__(
        self,
        name: str,
        help_text: str,
        threads: Sequence[str],
        states: Sequence[str],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._help = help_text
        self._labelled = threads != ("",)
        self._threads = {thread: TimeInState(states) for thread in threads}
        registry.register(self)

    def of(self, thread: str = "") -> TimeInState:
        """The counter of one of the declared threads ("" for a metric of a single thread)."""
        return self._threads[thread]

    def describe(self) -> Iterable[CounterMetricFamily]:
        return [CounterMetricFamily(self._name, self._help, labels=self._labels())]

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._help, labels=self._labels())
        for thread, times in self._threads.items():
            for state, seconds in times.seconds().items():
                family.add_metric([thread, state] if self._labelled else [state], seconds)
        yield family

    def _labels(self) -> list[str]:
        return ["thread", "state"] if self._labelled else ["state"]
