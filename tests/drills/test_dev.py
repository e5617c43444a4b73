"""`stream-sentiment dev up|status|down` as a person types it, on the mock Kafka."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.testing.consume import read_topic
from stream_sentiment.testing.kafka_jars import kafka_jars

pytestmark = [pytest.mark.slow, pytest.mark.redis]


def dev(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stream_sentiment", "dev", *arguments, "--directory", str(directory)],
        env={**os.environ, "STREAM_SENTIMENT_MODEL__STUB": "true"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def conversation_show(tenant: str, name: str, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stream_sentiment", "conversation", "show", tenant, name],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def alive(pid: int) -> bool:
    """Runs; one that has ended and that nobody has collected yet (a zombie) has no command line any more."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def test_a_stack_comes_up_works_says_where_it_is_and_leaves_nothing_behind(tmp_path: Path):
    assert dev(tmp_path, "status").returncode == 1
    up = dev(tmp_path, "up", "--mock", "--workers", "1", "--rate", "20", "--json")
    assert up.returncode == 0, up.stderr
    state = json.loads(up.stdout)
    try:
        assert json.loads(dev(tmp_path, "status", "--json").stdout) == state
        again = dev(tmp_path, "up", "--mock")
        assert again.returncode == 75
        assert f"dev down --directory {tmp_path}" in " ".join(again.stderr.split())
        scored = 'outcome="scored",topic="chat.messages"} 0.0'
        deadline = time.monotonic() + 60
        while True:
            with urllib.request.urlopen(state["workers"][0]["http"] + "/metrics", timeout=10) as answer:
                if scored not in answer.read().decode():
                    break
            assert time.monotonic() < deadline, "nothing was scored"
            time.sleep(0.5)
        told = dict(re.findall(r"(STREAM_SENTIMENT_\w+)=(\S+)", dev(tmp_path, "status").stdout))
        shown = conversation_show("maplewood-home", "no-such", told)
        assert "for group 'dev'" in shown.stderr  # Redis answers, and it is the workers' group that was asked for
    finally:
        down = dev(tmp_path, "down")
    assert (down.returncode, down.stdout) == (0, "ended\n")
    pids = [state["pid"], state["redis_pid"], *(worker["pid"] for worker in state["workers"])]
    assert [pid for pid in pids if alive(pid)] == []
    assert dev(tmp_path, "down").stdout == f"no stack runs in {tmp_path}\n"


@pytest.mark.kafka
def test_with_a_real_kafka_two_workers_share_the_chats_and_an_escalation_reaches_its_topic(tmp_path: Path):
    try:
        kafka_jars()
    except ServiceUnavailable as error:
        pytest.skip(str(error))
    up = dev(tmp_path, "up", "--workers", "2", "--rate", "40", "--json")
    assert up.returncode == 0, up.stderr
    state = json.loads(up.stdout)
    try:
        assert state["kafka_is"].startswith("Apache Kafka")
        (first, *_) = read_topic(state["kafka"], "escalation.events", at_least=1, timeout_s=90)
        assert json.loads(first.value)["action"] == "opened"
        chats = []
        for worker in state["workers"]:
            with urllib.request.urlopen(worker["http"] + "/metrics", timeout=10) as answer:
                chats += re.findall(r'assigned_partitions{topic="chat.messages"} (\S+)', answer.read().decode())
        assert sum(map(float, chats)) == 4
        assert "0.0" not in chats
    finally:
        down = dev(tmp_path, "down")
    assert (down.returncode, down.stdout) == (0, "ended\n")
    assert [worker["pid"] for worker in state["workers"] if alive(worker["pid"])] == []
