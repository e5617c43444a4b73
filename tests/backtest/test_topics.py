"""A back-test on the input topic decides what the worker has decided on it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from stream_sentiment.backtest.decide import by_model
from stream_sentiment.backtest.run import figures, run
from stream_sentiment.backtest.topics import conversations_of
from stream_sentiment.escalation.rules import load_rules
from stream_sentiment.events.routing import RoutingOptions
from stream_sentiment.kafka.log_slice import LogRecord
from stream_sentiment.scoring.scorer import StubScorer
from stream_sentiment.testing.events import chat_message, encode, review
from stream_sentiment.testing.worker import environment
from tests.faults.traffic import CHAT, traffic
from tests.integration.road import Road

START = 1_790_000_000_000
RULES = """
version: 1
defaults: {cooldown: 0, renotify_every: 1m, close: {rolling_score: -0.05, for_messages: 1}}
rules:
  - {id: sustained, when: {rolling_score: {open: -0.2, close: 0.0}}}
  - {id: waiting, when: {rolling_score: {open: -0.1}, agent_response_gap: 3m}, severity: error}
suppress: {max_open_per_tenant_per_minute: 3}
"""


def record(offset: int, value: bytes | None, partition: int = 0, timestamp_ms: int = START) -> LogRecord:
    return LogRecord("chat.messages", partition, offset, timestamp_ms, b"k", value, None)


def test_records_become_conversations_as_the_worker_would_read_them() -> None:
    events = [
        record(0, encode(chat_message("a", conversation="x", message="m0", at_ms=START))),
        record(1, b"{"),
        record(2, None),
        record(3, encode(review("fine"))),
        record(4, encode(chat_message("b", conversation="y", message="m1", at_ms=START)), partition=1),
        record(5, encode(chat_message("c", conversation="x", message="m2", at_ms=START + 3_600_000))),
    ]
    x, y = conversations_of(events, RoutingOptions())
    assert [(m.turn.message_id, m.turn.offset, m.text) for m in x.messages if m.turn] == [
        ("m0", 0, "a"),
        ("m2", 5, "c"),
    ]
    assert (x.timed, x.partition, y.partition, x.label) == (True, 0, 1, None)
    # A clock that runs ahead is cut, as in the worker.
    assert x.messages[1].turn is not None
    assert x.messages[1].turn.at_ms == START + 5 * 60_000


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return path


def worked(road: Road, rules: Path, events: int = 400) -> list[dict[str, Any]]:
    """Traffic on the topic, and what a worker has said about it."""
    for item in traffic(events, 30, 5):
        if item.topic == CHAT:
            road._producer.produce(road.topics["chat_messages"], item.value, key=item.key)
    road._producer.flush(30)
    # Old events among new ones: the worker's timers would go by the partition's clock.
    road.work(StubScorer(), rules={"path": rules}, worker={"timers": False})
    return [event for event in road.escalations() if "escalation_id" in event]


def test_the_command_decides_what_the_worker_decided(mock_road: Road, rules: Path, tmp_path: Path) -> None:
    live = worked(mock_road, rules)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "stream_sentiment", "backtest", f"kafka://{mock_road.topics['chat_messages']}"),
            *("--rules", str(rules), "--json", "--output", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")),
        ],
        env=environment(
            {
                "kafka.bootstrap_servers": mock_road.broker.bootstrap_servers,
                "kafka.group_id": mock_road.group,
                "model.stub": "true",
            }
        ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = orjson.loads(done.stdout)
    opened = [event for event in live if event["action"] == "opened"]
    assert report["total"]["alerts"] == len(opened) > 10
    assert report["labelled"] == 0
    assert report["total"]["recall"] is None
    rows = [orjson.loads(line) for line in (tmp_path / "out" / "decisions.jsonl").read_bytes().splitlines()]
    assert sorted((row["id"], alert["reason"]) for row in rows for alert in row["alerts"]) == sorted(
        (event["conversation_id"], event["reason"]) for event in live
    )


def test_the_storm_guard_marks_as_many_on_the_partitions_of_the_topic(mock_road: Road, rules: Path) -> None:
    stormy = rules.with_name("stormy.yaml")
    stormy.write_text(RULES.replace("per_minute: 3", "per_minute: 1"))
    # In the order of event time, so that the order of the log and of time is the same.
    for number in range(30):
        for turn in range(2):
            event = chat_message(
                "terrible, awful, the worst",
                conversation=f"c{number}",
                message=f"m{turn}",
                at_ms=START + number * 100 + turn,
            )
            mock_road.publish(event)
    mock_road.work(StubScorer(), rules={"path": stormy})
    live = [event for event in mock_road.escalations() if event.get("action") == "opened" and "escalation_id" in event]
    ruleset, scorer = load_rules(stormy), StubScorer()
    read = [
        LogRecord(r.topic, r.partition, r.offset, r.timestamp_ms, r.key, r.value, None)
        for r in mock_road.read("chat_messages")
    ]
    conversations = conversations_of(read, RoutingOptions())
    texts = {m.text: scorer.score([m.text])[0] for c in conversations for m in c.messages if m.text is not None}
    results = run(conversations, ruleset, by_model(texts, ruleset.finder(scorer.info)), partitions=3)
    assert len(live) > 5
    assert figures(results, ruleset)["storm"]["suppressed"] == sum(event["suppressed"] for event in live) > 0


@pytest.mark.kafka
def test_a_range_of_time_is_read(kafka: Any, redis_url: str, unique: Callable[[str], str], tmp_path: Path) -> None:
    road = Road(kafka, redis_url, unique)
    road.publish(chat_message("before", conversation="a", at_ms=START))
    time.sleep(1.1)
    begin = time.time()
    time.sleep(0.1)
    road.publish(chat_message("within", conversation="b", at_ms=START))
    time.sleep(0.1)
    end = time.time()
    time.sleep(1.1)
    road.publish(chat_message("after", conversation="c", at_ms=START))

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "stream_sentiment",
                "backtest",
                "kafka://",
                *arguments,
                "--cache",
                str(tmp_path / "c"),
            ],
            env=environment(
                {
                    "kafka.bootstrap_servers": kafka.bootstrap_servers,
                    "model.stub": "true",
                    "topics.chat_messages": road.topics["chat_messages"],
                }
            ),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def rfc(seconds: float) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"

    done = command("--from", rfc(begin), "--until", rfc(end), "--json", "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert orjson.loads(done.stdout)["conversations"] == 1
    assert b'"id":"b"' in (tmp_path / "out" / "decisions.jsonl").read_bytes()
    nothing = command("--from", rfc(begin + 3600))
    assert nothing.returncode == 78
    assert "holds no record" in nothing.stderr
