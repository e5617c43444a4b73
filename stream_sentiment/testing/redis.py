"""A real Redis server for tests, with the faults that a Redis has: killed, restarted, out of memory, emptied.

`RedisServer` is `EmbeddedRedis` (see there for where the server comes from) plus what only tests want. Needs a real server: `fakeredis`
cannot be killed or restarted, and refuses here with a clear error.
"""

from __future__ import annotations

import signal
from typing import Any

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.local_process import LocalProcess
from stream_sentiment.store.embedded import EmbeddedRedis, RedisSource, find_redis

__all__ = ["FakeRedisServer", "RedisServer", "RedisSource", "find_redis"]


class RedisServer(EmbeddedRedis):
    """A redis-server subprocess on a free loopback port.

    ```python
    with RedisServer(appendonly="everysec") as server:
        server.client().set("k", "v")
        server.kill()       # SIGKILL: what was not yet fsynced may be gone
        server.restart()    # same port, same directory
    ```
    """

    def __init__(self, *, source: RedisSource | None = None, **options: Any) -> None:
        super().__init__(source=source or find_redis(allow_fake=False), **options)
        if self.source.executable is None:
            raise ServiceUnavailable("RedisServer needs a real redis-server; use FakeRedisServer for the imitation")

    @property
    def process(self) -> LocalProcess:
        """The child process; raises before the first start."""
        if self._process is None:
            raise ServiceUnavailable("the Redis server has not been started")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self) -> None:
        """SIGKILL: no last fsync, no goodbye; clients see their connections reset."""
        self.process.kill()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self.process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        self.process.send(signal.SIGCONT)

    def restart(self) -> None:
        """Start again on the same port and directory, after a clean stop if it still runs; with `appendonly` the data come back."""
        self.process.terminate()
        self.process.start()
        self.process.wait_until(self.answers, timeout_s=30)


class FakeRedisServer(EmbeddedRedis):
    """fakeredis behind a TCP port: starts in 10 ms and needs no binary, but has no INFO, no persistence and its own Lua."""

    def __init__(self) -> None:
        super().__init__(source=RedisSource("fakeredis", None))
