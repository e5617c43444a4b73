"""A service that we start ourselves on this machine: its port, its log, its end together with ours.

In: a command line. Out: a running child process with its output in a file. `wait_until` blocks up to its timeout. Raises
`ServiceUnavailable` with the last lines of the child's output when it ends early or is not ready in time.

Used by the embedded Redis of `demo` and by the test kit (Redis, Kafka, workers).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stream_sentiment.errors import ServiceUnavailable

#: Below the range from which Linux takes the source ports of outgoing connections (32768-60999): a client that keeps dialling a
#: stopped server's port inside that range sooner or later connects to itself and holds the port, and the restart fails.
PORT_RANGE = range(15_000, 32_000)

# prctl(PR_SET_PDEATHSIG = 1, SIGKILL = 9), then exec. A launcher instead of subprocess' preexec_fn, which runs Python between
# fork and exec and may deadlock in a program with threads. The parent may have died before prctl: then nobody would send the signal.
_TETHER = (
    "import ctypes,os,sys;"
    "ctypes.CDLL(None).prctl(1,9,0,0,0);"
    "os.getppid()==int(sys.argv[1]) or os._exit(1);"
    "os.execvp(sys.argv[2],sys.argv[2:])"
)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on now; another process may still take it before you do."""
    for port in random.sample(PORT_RANGE, 200):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As servers do: without it a port whose last connections are in TIME_WAIT would look taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise ServiceUnavailable(f"no free TCP port on 127.0.0.1 between {PORT_RANGE.start} and {PORT_RANGE.stop}")


def tethered(command: Sequence[str]) -> list[str]:
    """`command`, wrapped so that on Linux the kernel kills it when the thread that started it ends; elsewhere unchanged.

    The trap: it is the *thread*, not the process. Start from a thread that lives as long as the child should.
    """
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _TETHER, str(os.getpid()), *command]


class LocalProcess:
    """One child process: output to a file, stopped by pid, ended with its parent."""

    def __init__(self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        """`log` is appended to over restarts; `env` replaces the whole environment when given."""
        self.name = name
        self.command = list(command)
        self.log = log
        self.env = dict(env) if env is not None else None
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The child's process id; raises when it was never started."""
        if self._child is None:
            raise ServiceUnavailable(f"{self.name} has not been started")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit status; negative for a signal; None while it runs or before the start."""
        return self._child.poll() if self._child is not None else None

    def start(self) -> None:
        """Start the child; does not wait for it to be ready."""
        if self.running:
            raise ServiceUnavailable(f"{self.name} runs already, pid {self.pid}")
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(
                tethered(self.command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.env,
                start_new_session=True,  # Ctrl-C in a terminal is ours to handle, in our order
            )

    def wait_until(self, ready: Callable[[], bool], timeout_s: float, every_s: float = 0.02) -> None:
        """Block until `ready()`; raises as soon as the child ends, or after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                raise ServiceUnavailable(
                    f"{self.name} ended with status {self.returncode} before it was ready:\n{self.log_tail()}"
                )
            if time.monotonic() > deadline:
                raise ServiceUnavailable(f"{self.name} was not ready within {timeout_s:g} s:\n{self.log_tail()}")
            time.sleep(every_s)

    def send(self, signal_number: int) -> None:
        """Send a signal; nothing happens when the child has ended."""
        if self._child is not None:
            self._child.send_signal(signal_number)

    def wait(self, timeout_s: float) -> int:
        """Block until the child ends and return its exit status; raises when it runs on after `timeout_s` seconds."""
        if self._child is None:
            raise ServiceUnavailable(f"{self.name} has not been started")
        try:
            return self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ServiceUnavailable(
                f"{self.name} (pid {self.pid}) did not end within {timeout_s:g} s:\n{self.log_tail()}"
            ) from None

    def terminate(self, timeout_s: float = 10.0) -> None:
        """SIGTERM, and SIGKILL after `timeout_s` seconds; returns when the child is gone."""
        if not self.running:
            return
        self.send(signal.SIGCONT)  # a stopped process would never see the SIGTERM
        self.send(signal.SIGTERM)
        try:
            self.wait(timeout_s)
        except ServiceUnavailable:
            self.kill()

    def kill(self) -> None:
        """SIGKILL; returns when the child is gone."""
        if self.running:
            self.send(signal.SIGKILL)
            self.wait(10.0)

    def log_text(self) -> str:
        """Everything the child has written so far, over all its starts."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def log_tail(self, lines: int = 15) -> str:
        """The last lines the child has written."""
        return "\n".join(self.log_text().splitlines()[-lines:])
