"""Fixtures over the test kit, for pytest: `pytest_plugins = ["stream_sentiment.testing.pytest_plugin"]` in your top conftest.py.

| fixture | scope | what it is |
|---|---|---|
| `redis_server` | session | a `RedisServer`; do not kill it |
| `redis_url` | test | that server, emptied and with its configuration put back |
| `crashable_redis` | test | a server of the test's own, with append-only file, to kill and restart |
| `mock_kafka` | test | a `MockKafka` of three brokers with short group timings |
| `kafka` | session | a real Kafka (`start_kafka`); do not stop it |
| `crashable_kafka` | test | a `KafkaBroker` of the test's own, to kill and restart |
| `broker` | test | `mock_kafka` and `kafka`, one after the other |
| `unique` | test | names for topics and groups that no other test has: `unique("in")` |
| `fake_clock` | test | a `FakeClock` |

A service that this machine cannot have skips the test and says why. `STREAM_SENTIMENT_TEST_REQUIRE="kafka,redis"` turns the skip of
such a test into a failure: CI must not go green by leaving the real services out. The closing lines say what ran on what.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import confluent_kafka
import pytest

from stream_sentiment.errors import StreamSentimentError
from stream_sentiment.testing.clock import FakeClock
from stream_sentiment.testing.kafka import ExternalKafka, KafkaBroker, KafkaContainer, KafkaHarness, start_kafka
from stream_sentiment.testing.mock_kafka import MockKafka
from stream_sentiment.testing.redis import RedisServer

REQUIRE_VARIABLE = "STREAM_SENTIMENT_TEST_REQUIRE"

#: Tier -> the fixtures that need it. A test that uses one carries the marker of the same name.
_TIERS = {"redis": {"redis_server", "redis_url", "crashable_redis"}, "kafka": {"kafka", "crashable_kafka"}}


@dataclass
class _TierReport:
    service: str = ""
    reason: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0


@dataclass
class _Session:
    tiers: dict[str, _TierReport] = field(default_factory=lambda: {tier: _TierReport() for tier in _TIERS})


_session_key = pytest.StashKey[_Session]()


def _required() -> set[str]:
    named = {name.strip() for name in os.environ.get(REQUIRE_VARIABLE, "").split(",") if name.strip()}
    unknown = named - set(_TIERS)
    if unknown:
        raise pytest.UsageError(f"{REQUIRE_VARIABLE} names {', '.join(sorted(unknown))}; known: {', '.join(_TIERS)}")
    return named


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_session_key] = _Session()
    _required()


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        used = set(getattr(item, "fixturenames", ()))
        for tier, fixtures in _TIERS.items():
            if used & fixtures:
                item.add_marker(tier)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    tiers = [tier for tier in _TIERS if item.get_closest_marker(tier)]
    expected_failure = hasattr(report, "wasxfail")
    if report.skipped and not expected_failure and (missing := sorted(_required() & set(tiers))):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{reason}\n{REQUIRE_VARIABLE} demands {', '.join(missing)}: this test may not be skipped"
    for tier in tiers:
        counts = item.config.stash[_session_key].tiers[tier]
        counts.failed += report.failed
        counts.skipped += report.skipped
        counts.passed += report.passed and report.when == "call"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for tier, report in config.stash[_session_key].tiers.items():
        if report.passed or report.failed or report.skipped:
            terminalreporter.write_line(
                f"tier {tier}: {report.passed} passed, {report.failed} failed, {report.skipped} skipped"
                f" on {report.service or 'nothing'}{': ' + report.reason if report.reason else ''}"
            )


@contextlib.contextmanager
def _skip_without(request: pytest.FixtureRequest, tier: str) -> Iterator[_TierReport]:
    report = request.config.stash[_session_key].tiers[tier]
    try:
        yield report
    except StreamSentimentError as error:
        report.reason = str(error)
        pytest.skip(report.reason)


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A Redis server for the whole session; do not kill it."""
    with _skip_without(request, "redis") as report:
        server = RedisServer().start()
        with server.client() as client:
            report.service = f"Redis {client.info('server')['redis_version']}, {server.source}"
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> Iterator[str]:
    """The URL of the session's Redis, empty."""
    with redis_server.client() as client:
        client.flushall()
        client.script_flush()
        before = client.config_get("*")
        yield redis_server.url
        changed = {name: value for name, value in client.config_get("*").items() if before.get(name) != value}
        for name in changed:
            client.config_set(name, before[name])


@pytest.fixture
def crashable_redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A Redis server of the test's own, fsyncing every second."""
    with _skip_without(request, "redis") as report:
        server = RedisServer(appendonly="everysec").start()
        report.service = report.service or str(server.source)
    yield server
    server.stop()


@pytest.fixture
def mock_kafka() -> Iterator[MockKafka]:
    """A mock cluster of three brokers; KIP-848 members are gone after 3 s of silence."""
    with MockKafka(brokers=3, session_timeout_ms=3000, heartbeat_interval_ms=500) as kafka:
        yield kafka


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[ExternalKafka | KafkaContainer | KafkaBroker]:
    """A real Kafka for the whole session; use `unique` names, do not stop it."""
    with _skip_without(request, "kafka") as report:
        cluster = start_kafka()
        report.service = cluster.description
    yield cluster
    cluster.stop()


@pytest.fixture
def crashable_kafka(request: pytest.FixtureRequest) -> Iterator[KafkaBroker]:
    """An Apache Kafka subprocess of the test's own; KIP-848 members are gone after 3 s of silence."""
    with _skip_without(request, "kafka") as report:
        broker = KafkaBroker(group_session_timeout_ms=3000, group_heartbeat_interval_ms=300).start()
        report.service = report.service or broker.description
    yield broker
    broker.stop()


@pytest.fixture(params=["mock", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> KafkaHarness:
    """The mock cluster, then the real one: for tests of what must hold on both."""
    harness: KafkaHarness = request.getfixturevalue("mock_kafka" if request.param == "mock" else "kafka")
    return harness


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Names with a suffix of this test's own: clusters outlive tests, so topics and groups must not meet."""
    suffix = uuid.uuid4().hex[:10]
    return lambda name: f"{name}-{suffix}"


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that only `advance` moves."""
    return FakeClock()


def pytest_report_header() -> str:
    return f"librdkafka {confluent_kafka.libversion()[0]}; required tiers: {', '.join(sorted(_required())) or 'none'}"
