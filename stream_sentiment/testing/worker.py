"""A worker as a real process: started, asked whether it is ready, stopped in every way a process can be.

In: settings by their dotted names. Out: a running `stream-sentiment run` with its log. `wait_ready` blocks until `/readyz` answers 200.
Raises `ServiceUnavailable` with the end of the worker's log when it ends early or does not become ready.
"""

from __future__ import annotations

import http.client
import itertools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from stream_sentiment.local_process import LocalProcess, free_port

__all__ = ["WorkerProcess", "environment"]

_PREFIX = "STREAM_SENTIMENT_"
_numbers = itertools.count(1)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `{"kafka.group_id": "g"}` as `STREAM_SENTIMENT_KAFKA__GROUP_ID=g`.

    Settings that the surrounding environment holds are left out: a test's worker must not pick up those of the machine.
    """
    clean = {name: value for name, value in os.environ.items() if not name.upper().startswith(_PREFIX)}
    ours = {_PREFIX + name.upper().replace(".", "__"): value for name, value in settings.items()}
    return {**clean, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **ours}


class WorkerProcess:
    """One `stream-sentiment run` in a process of its own; a context manager that ends it with SIGKILL if it still runs.

    ```python
    with WorkerProcess({"kafka.bootstrap_servers": kafka.bootstrap_servers, "redis.url": redis.url}) as worker:
        worker.wait_ready()
        worker.sigkill()
    ```
    """

    def __init__(
        self,
        settings: Mapping[str, str],
        arguments: Sequence[str] = (),
        *,
        name: str | None = None,
        directory: Path | None = None,
        program: Sequence[str] = ("-m", "stream_sentiment"),
    ) -> None:
        """`arguments` follow `run` on the command line; the log goes to `<directory>/<name>.log`. `program` are the arguments of the
        Python interpreter: `("-c", code)` to run a worker with a part replaced, as control tests do."""
        self.name = name or f"worker-{next(_numbers)}"
        self.http_port = free_port()
        self._own_directory = directory is None
        self._directory = directory or Path(tempfile.mkdtemp(prefix="stream-sentiment-worker-"))
        self.process = LocalProcess(
            self.name,
            [sys.executable, *program, "run", *arguments],
            self._directory / f"{self.name}.log",
            environment({"http.port": str(self.http_port), "http.host": "127.0.0.1", **settings}),
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.running

    def start(self) -> Self:
        """Start the process; does not wait for it to be ready."""
        self.process.start()
        return self

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Block until `/readyz` answers 200."""
        self.process.wait_until(lambda: self.get("/readyz")[0] == 200, timeout_s, every_s=0.1)

    def wait_exit(self, timeout_s: float = 60.0) -> int:
        """Block until it ends by itself; the exit status."""
        return self.process.wait(timeout_s)

    def get(self, path: str) -> tuple[int, str]:
        """GET a path of the worker's HTTP port: status and body; status 0 when nothing answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return 0, ""
        finally:
            connection.close()

    def sigterm(self) -> None:
        """Ask for a graceful drain; does not wait."""
        self.process.send(signal.SIGTERM)

    def sighup(self) -> None:
        """Have it look for new rules and a new model now."""
        self.process.send(signal.SIGHUP)

    def sigkill(self) -> None:
        """Kill it and wait until it is gone."""
        self.process.kill()

    def sigstop(self) -> None:
        """Freeze it: connections stay open, heartbeats end. After its session time-out it is a zombie."""
        self.process.send(signal.SIGSTOP)

    def sigcont(self) -> None:
        """Wake it after `sigstop`; it believes that no time has passed."""
        self.process.send(signal.SIGCONT)

    def log_text(self) -> str:
        """Everything it has written to standard output and error."""
        return self.process.log_text()

    def close(self) -> None:
        """Kill it if it runs and remove its own directory."""
        self.process.kill()
        if self._own_directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()
