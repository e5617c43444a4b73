"""Workers as processes: signals, the supervisor, and a broker that does not know the new group protocol."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stream_sentiment.testing.events import chat_message
from stream_sentiment.testing.worker import WorkerProcess, environment
from tests.integration.road import Road


def settings_of(road: Road) -> dict[str, str]:
    """As `WorkerProcess` takes them."""
    return {
        "kafka.bootstrap_servers": road.broker.bootstrap_servers,
        "kafka.group_id": road.group,
        "redis.url": road.redis_url,
        "model.stub": "true",
        **{f"topics.{name}": topic for name, topic in road.topics.items()},
    }


def test_sigterm_drains_commits_and_ends_with_0(road: Road) -> None:
    road.publish(*[chat_message("hello", message=f"m{number}") for number in range(50)])
    with WorkerProcess(settings_of(road)) as worker:
        worker.wait_ready()
        assert len(road.read("scored", at_least=50)) == 50
        worker.sigterm()
        assert worker.wait_exit(30) == 0
    assert sum(road.committed().values()) == 50


def test_a_missing_topic_ends_the_process_with_78(mock_road: Road) -> None:
    with WorkerProcess({**settings_of(mock_road), "topics.scored": "nowhere"}) as worker:
        assert worker.wait_exit(60) == 78
        assert "topics create" in worker.log_text()


def test_the_supervisor_starts_a_killed_worker_again_and_passes_the_signal_on(mock_road: Road, tmp_path: Path) -> None:
    log = (tmp_path / "supervisor.log").open("wb")
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "stream_sentiment", "run", "--workers", "2"],
        env=environment({**settings_of(mock_road), "http.port": "0"}),
        stderr=log,
        stdout=log,
    )
    try:
        first = _children(supervisor.pid, 2)
        os.kill(first[0], signal.SIGKILL)
        deadline = time.monotonic() + 30
        while first[0] in (now := _children(supervisor.pid, 1)) or len(now) < 2:
            assert time.monotonic() < deadline, "the killed worker was not started again"
            time.sleep(0.1)
        mock_road.publish(*[chat_message("hello", message=f"m{number}") for number in range(20)])
        assert len(mock_road.read("scored", at_least=20)) == 20
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(60) == 0, (tmp_path / "supervisor.log").read_text()
        assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in now)
    finally:
        for pid in [*_children(supervisor.pid, 0), supervisor.pid]:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        supervisor.wait(10)
        log.close()


def test_the_supervisor_gives_up_on_wrong_settings(mock_road: Road) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stream_sentiment", "run", "--workers", "2", "--exit-when-idle", "1s"],
        env=environment({**settings_of(mock_road), "topics.scored": "nowhere", "http.port": "0"}),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 78


@pytest.mark.kafka
def test_a_broker_without_the_new_group_protocol_is_served_with_the_classic_one(redis_url: str) -> None:
    from stream_sentiment.testing.kafka_broker import KafkaBroker

    with KafkaBroker(settings={"group.coordinator.rebalance.protocols": "classic"}) as broker:
        road = Road(broker, redis_url, lambda name: name)
        road.publish(*[chat_message("hello", message=f"m{number}") for number in range(20)])
        with WorkerProcess(settings_of(road), ["--exit-when-idle", "2s"]) as worker:
            assert worker.wait_exit(90) == 0
            assert "group_protocol_fallback" in worker.log_text()
        assert len(road.read("scored")) == 20
        assert sum(road.committed().values()) == 20


def _children(pid: int, at_least: int) -> list[int]:
    deadline = time.monotonic() + 30
    while True:
        try:
            found = [child.pid for child in psutil.Process(pid).children() if child.status() != "zombie"]
        except psutil.NoSuchProcess:
            found = []
        if len(found) >= at_least:
            return found
        assert time.monotonic() < deadline, f"only {len(found)} worker processes"
        time.sleep(0.1)
