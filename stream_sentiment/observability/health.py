"""Liveness, readiness and the HTTP endpoints that tell them, with `/metrics` beside them.

In: `beat(loop)` from each loop (about 0.1 µs), `set_ready(condition, ok, detail)` from whoever knows. Out:
HTTP on one port: `/livez` `/readyz` `/startupz` `/metrics`. Requests are served by threads of their own and
never block the loops. Raises ServiceUnavailable when the port cannot be bound.

Liveness looks at the age of the loops only: a Redis or Kafka outage must not restart the workers, that would
add a rebalance to the outage. Readiness and its details are for people and rollouts; no traffic is routed by
it.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any

import orjson
from prometheus_client.exposition import choose_encoder

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.observability.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that must hold before the worker is ready. detail: for people; no secrets, no ids of
    conversations.
    """

    ok: bool
    detail: str


class HealthState:
    """What the loops and the parts of one worker say about themselves. Every method may be called from any
    thread.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._bounds: dict[str, float] = {}
        self._beats: dict[str, float] = {}
        self._conditions: dict[str, Condition] = {}
        self._started = False

    def watch(self, loop: str, bound_seconds: float) -> None:
        """Expect a beat of this loop at least every `bound_seconds` from now on."""
        self._beats[loop] = self._now()
        self._bounds[loop] = bound_seconds

    def unwatch(self, loop: str) -> None:
        """The loop has ended as planned (drain): its silence is no longer a fault."""
        self._bounds.pop(loop, None)

    def beat(self, loop: str) -> None:
        """The loop has come round once more."""
        self._beats[loop] = self._now()

    def set_ready(self, condition: str, ok: bool, detail: str = "") -> None:
        """State whether one condition of readiness holds (kafka, partitions, redis, model, rules, draining
        ...).
        """
        self._conditions[condition] = Condition(ok, detail)

    @property
    def started(self) -> bool:
        """True once the model is loaded and the consumer has joined; never false again."""
        return self._started

    def set_started(self) -> None:
        self._started = True

    def overdue(self) -> dict[str, float]:
        """Seconds since the last beat, for each loop older than its bound."""
        now = self._now()
        ages = {loop: (now - self._beats[loop], bound) for loop, bound in list(self._bounds.items())}
        return {loop: age for loop, (age, bound) in ages.items() if age > bound}

    def alive(self) -> bool:
        """No watched loop is older than its bound."""
        return not self.overdue()

    def conditions(self) -> Mapping[str, Condition]:
        return dict(self._conditions)

    def ready(self) -> bool:
        """Started, alive, and every condition holds."""
        return self._started and self.alive() and all(condition.ok for condition in self.conditions().values())


class StuckDetector:
    """Writes the stacks of all threads once when a loop passes its bound, and again only after it has come
    back.

    The probe will restart the process; the stacks are what is left to find out why. They hold function names
    and line numbers, no values.
    """

    def __init__(
        self,
        state: HealthState,
        *,
        output: IO[str] | None = None,
        interval_seconds: float = 1.0,
        on_stuck: Callable[[Mapping[str, float]], None] | None = None,
    ) -> None:
        self._state = state
        self._output = output
        self._interval = interval_seconds
        self._on_stuck = on_stuck
        self._dumped: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stuck-detector", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def check(self) -> bool:
        """Look once; True if the stacks were written."""
        overdue = self._state.overdue()
        new = set(overdue) - self._dumped
        self._dumped = set(overdue)
        if not new:
            return False
        if self._on_stuck is not None:
            self._on_stuck(overdue)
        faulthandler.dump_traceback(file=self._output or sys.stderr, all_threads=True)
        return True

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.check()


class HealthServer:
    """One HTTP port for the probes and the scrape.

    host: 127.0.0.1 unless set otherwise; there is no authentication. port 0: any free port, then read `port`.
    """

    def __init__(self, host: str, port: int, metrics: Metrics, state: HealthState) -> None:
        handler = type("Handler", (_Handler,), {"metrics": metrics, "state": state})
        try:
            self._server = _Server((host, port), handler)
        except OSError as error:
            raise ServiceUnavailable(
                f"cannot listen on {host}:{port} for health and metrics ({error.strerror}); "
                "choose another port with STREAM_SENTIMENT_HTTP__PORT, or 0 for any free one"
            ) from error
        self.host = host
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="http", daemon=True
        )

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Close the port. Safe to call twice and before `start`."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(timeout=5)
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # One scraper, one prober and a person: a longer queue would only hide that nobody answers.
    request_queue_size = 16

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no event of ours."""


class _Handler(BaseHTTPRequestHandler):
    metrics: Metrics
    state: HealthState
    server_version = "stream-sentiment"
    sys_version = ""
    # Seconds; a client that sends its request byte by byte does not keep a thread.
    timeout = 10

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._metrics()
        elif path == "/livez":
            overdue = self.state.overdue()
            stuck = {loop: round(age, 1) for loop, age in overdue.items()}
            self._answer(not overdue, {"status": "stuck" if overdue else "ok", "overdue_seconds": stuck})
        elif path == "/startupz":
            self._answer(self.state.started, {"status": "ok" if self.state.started else "starting"})
        elif path == "/readyz":
            self._readyz()
        else:
            self._send(404, "application/json", b'{"status":"unknown path"}')

    do_HEAD = do_GET

    def _readyz(self) -> None:
        ready = self.state.ready()
        conditions = {
            name: {"ok": condition.ok, "detail": condition.detail}
            for name, condition in sorted(self.state.conditions().items())
        }
        body = {
            "status": "ok" if ready else "not ready",
            "started": self.state.started,
            "loops_alive": self.state.alive(),
            "conditions": conditions,
        }
        self._answer(ready, body)

    def _metrics(self) -> None:
        for name, condition in self.state.conditions().items():
            self.metrics.ready.labels(name).set(condition.ok)
        encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
        self._send(200, content_type, encoder(self.metrics.registry))

    def _answer(self, ok: bool, body: Mapping[str, Any]) -> None:
        self._send(200 if ok else 503, "application/json", orjson.dumps(body))

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Probes and scrapes are not logged: two lines a second that say nothing."""
