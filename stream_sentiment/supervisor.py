"""`run --workers N`: N worker processes on one machine, each a consumer of its own with a metrics port of its own.

No scheduler: the Kafka consumer group spreads the partitions. A worker that ends by a fault is started again after a growing
wait; one that says "configuration" is not, since the same settings would only fail again. Signals are passed on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from stream_sentiment.errors import ExitStatus
from stream_sentiment.observability.logs import get_logger

#: Waits before a worker is started again: doubled from the first to the last while it keeps failing.
RESTART_FIRST_SECONDS, RESTART_LAST_SECONDS = 1.0, 30.0
#: A worker that ran this long before it failed starts again after the first wait.
STEADY_SECONDS = 60.0
#: Beyond the drain timeout of a worker before it is killed.
GRACE_SECONDS = 10.0

CLIENT_ID = "STREAM_SENTIMENT_KAFKA__CLIENT_ID"

log = get_logger("supervisor")


@dataclass(slots=True)
class _Child:
    index: int
    process: subprocess.Popen[bytes]
    started: float
    failures: int = 0
    due: float | None = None
    done: bool = False


class Supervisor:
    """Starts, watches, restarts and stops the workers.

    Args:
        base_port: worker i listens on base_port + i; 0 gives each a free port.
        drain_seconds: how long a worker may drain; it is killed `GRACE_SECONDS` later.
        arguments: options of `run` to pass on.
    """

    def __init__(self, workers: int, base_port: int, drain_seconds: float, arguments: Sequence[str] = ()) -> None:
        self._workers = workers
        self._base_port = base_port
        self._drain_seconds = drain_seconds
        self._arguments = list(arguments)
        self._stopping = False
        self._children: list[_Child] = []

    def run(self) -> int:
        """Supervise until every worker is done or a signal asks for the end; returns the worst exit status."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGHUP, self._on_hangup)
        self._children = [_Child(index, self._start(index), time.monotonic()) for index in range(self._workers)]
        worst = 0
        while not all(child.done for child in self._children):
            for child in self._children:
                worst = max(worst, self._watch(child))
            if self._stopping:
                return max(worst, self._stop_all())
            time.sleep(0.1)
        return worst

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        port = 0 if self._base_port == 0 else self._base_port + index
        return subprocess.Popen(
            [sys.executable, "-m", "stream_sentiment", "run", "--port", str(port), *self._arguments],
            env={**os.environ, CLIENT_ID: f"{os.environ.get(CLIENT_ID, 'stream-sentiment')}-{index}"},
            # Until a worker has installed its own handler, SIGHUP would end it.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
            process_group=0,  # a terminal's Ctrl-C reaches the supervisor alone, which passes it on once
        )

    def _watch(self, child: _Child) -> int:
        if child.done:
            return 0
        now = time.monotonic()
        if child.due is not None:
            if now >= child.due and not self._stopping:
                child.process, child.started, child.due = self._start(child.index), now, None
            return 0
        status = child.process.poll()
        if status is None:
            return 0
        if status == 0 or self._stopping or status == ExitStatus.CONFIGURATION:
            child.done = True
            if status == ExitStatus.CONFIGURATION:
                log.error("worker_misconfigured", worker=child.index)
            return 0 if status == -signal.SIGTERM and self._stopping else abs(status)
        child.failures = 1 if now - child.started >= STEADY_SECONDS else child.failures + 1
        wait = min(RESTART_LAST_SECONDS, RESTART_FIRST_SECONDS * 2 ** (child.failures - 1))
        child.due = now + wait
        log.error("worker_ended", worker=child.index, status=status, restart_in_s=wait)
        return 0

    def _stop_all(self) -> int:
        deadline = time.monotonic() + self._drain_seconds + GRACE_SECONDS
        worst = 0
        for child in self._children:
            if child.done or child.due is not None:
                continue
            try:
                status = child.process.wait(max(0.1, deadline - time.monotonic()))
                # Ended by the signal itself: it was still starting, and had nothing to drain.
                worst = max(worst, 0 if status == -signal.SIGTERM else abs(status))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
                worst = max(worst, int(ExitStatus.TRY_AGAIN))
                log.error("worker_killed", worker=child.index, reason="it did not end within its drain timeout")
        return worst

    def _on_hangup(self, number: int, _frame: object) -> None:
        """Every worker looks for new rules; one that is about to start reads them anyway."""
        for child in self._children:
            if child.process.poll() is None:
                child.process.send_signal(number)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._stopping = True
        for child in self._children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)
