"""How windows pass from thread to thread: a bounded number in flight, first in, first out.

The bound counts windows from the moment the intake hands one over until it is applied, so that memory and the work at risk in a
rebalance are bounded together, whichever stage is slow.
"""

from __future__ import annotations

import queue
import threading

from stream_sentiment.stages import Window


class Flow:
    """The window queues of one worker. Thread-safe."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._in_flight = 0
        self._events = 0
        self._bytes = 0
        self._closed = False
        self.to_score: queue.SimpleQueue[Window | None] = queue.SimpleQueue()
        self.to_apply: queue.SimpleQueue[Window | None] = queue.SimpleQueue()

    def offer(self, window: Window, timeout: float) -> bool:
        """Hand a window to the score stage; False when the pipeline stays full for `timeout` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._in_flight < self._capacity, timeout):
                return False
            self._in_flight += 1
            self._events += len(window.records)
            self._bytes += window.size_bytes
        self.to_score.put(window)
        return True

    def done(self, window: Window) -> None:
        """The apply stage has finished with a window, whatever became of it."""
        with self._changed:
            self._in_flight -= 1
            self._events -= len(window.records)
            self._bytes -= window.size_bytes
            self._changed.notify_all()

    def idle(self) -> bool:
        """No window is in flight."""
        return self._in_flight == 0

    def wait_idle(self, timeout: float) -> bool:
        """Wait until no window is in flight; False when that takes longer than `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._in_flight == 0, timeout)

    def in_flight(self) -> tuple[int, int, int]:
        """Windows, events and bytes in flight."""
        return self._in_flight, self._events, self._bytes

    def close(self) -> None:
        """End both stages after the windows that are already queued."""
        self.to_score.put(None)
