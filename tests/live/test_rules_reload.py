"""New rules on a running worker: one window knows one version, and nothing is lost or doubled whatever dies in between."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from stream_sentiment.apply_stage import ApplyStage
from stream_sentiment.escalation.rules import parse_rules
from stream_sentiment.stages import Window
from stream_sentiment.testing.events import chat_message
from stream_sentiment.testing.worker import WorkerProcess
from stream_sentiment.worker import Worker
from tests.integration.road import Road, WordScorer, sample

START = 1_790_000_000_000

RULES = """
version: {version}
defaults: {{cooldown: 0, state: {{alpha: 0.3, half_life: null}}}}
rules:
  - id: low-{version}
    when: {{rolling_score: {{open: {open}, close: 0.0}}}}
    close_for_messages: 1
"""


def rules(version: int, at: float) -> str:
    return RULES.format(version=version, open=at)


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.02)


def said(number: int, text: str = "BAD", conversation: str = "c1") -> dict[str, Any]:
    return chat_message(
        text, conversation=conversation, message=f"{conversation}-m{number}", at_ms=START + number * 1000
    )


def versions_told(road: Road, tmp_path: Path) -> tuple[list[int], list[int]]:
    """Rules versions of seven scored messages and of the escalations; the rules change while the first six are being scored."""
    file = tmp_path / "rules.yaml"
    file.write_text(rules(1, -0.5))
    gate = threading.Event()
    running = road.start(
        WordScorer(delay=lambda: gate.wait(20) and None),
        rules={"path": file, "watch": "50ms"},
        intake={"window_events": 6},
    )
    worker = running.worker
    try:
        until(lambda: worker.health.started)
        road.publish(*[said(number) for number in range(6)])
        until(lambda: sample(worker, "events_consumed_total") == 6)
        file.write_text(rules(2, -0.9))
        until(lambda: worker.live.current.rules.file.version == 2)
        gate.set()
        road.publish(said(6))
        until(lambda: sample(worker, "events_total", outcome="scored") == 7)
    finally:
        gate.set()
        running.stop()
    assert sample(worker, "rules_reload_total", result="applied") == 1
    [in_force] = [
        found.labels["version"]
        for metric in worker.metrics.registry.collect()
        for found in metric.samples
        if found.name == "stream_sentiment_rules_info"
    ]
    assert in_force == worker.live.current.rules.version
    scored = sorted((r.json()["message_id"], int(r.json()["rules_version"].split("-")[0])) for r in road.read("scored"))
    for escalation in road.escalations():
        assert escalation["trigger"]["rule_version"] == escalation["rules_version"]
    return [version for _, version in scored], [int(e["rules_version"].split("-")[0]) for e in road.escalations()]


def test_a_window_ends_under_the_rules_that_it_began_with(mock_road: Road, tmp_path: Path) -> None:
    scored, escalations = versions_told(mock_road, tmp_path)
    assert scored == [1, 1, 1, 1, 1, 1, 2]
    # The second version's rule wants a lower score than the seventh message reaches; it finds the alert of a rule that is gone.
    assert escalations[0] == 1
    assert set(escalations[1:]) <= {2}


def test_without_the_windows_own_rules_the_same_window_would_be_folded_under_the_new_ones(
    mock_road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ApplyStage._collect_scores

    def newest(self: ApplyStage, window: Window) -> None:
        real(self, window)
        self._take_up(served[0].current)

    served: list[Any] = []
    start = mock_road.start

    def spy(*arguments: Any, **sections: Any) -> Any:
        running = start(*arguments, **sections)
        served.append(running.worker.live)
        return running

    monkeypatch.setattr(ApplyStage, "_collect_scores", newest)
    monkeypatch.setattr(mock_road, "start", spy)
    scored, _ = versions_told(mock_road, tmp_path)
    assert scored == [2] * 7


def test_an_alert_that_the_old_rules_opened_is_closed_by_the_new_ones(mock_road: Road, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(rules(1, -0.4))
    running = mock_road.start(rules={"path": file, "watch": "0"})
    worker = running.worker
    mock_road.publish(*[said(number) for number in range(4)])
    until(lambda: sample(worker, "events_total", outcome="scored") == 4)
    file.write_text(rules(2, -0.99))
    worker.reload()  # what SIGHUP does
    until(lambda: worker.live.current.rules.file.version == 2)
    mock_road.publish(*[said(number, "GOOD") for number in range(4, 10)])
    until(lambda: sample(worker, "events_total", outcome="scored") == 10)
    running.stop()
    told = [(e["action"], e["revision"], e["rules_version"].split("-")[0]) for e in mock_road.escalations()]
    assert told == [("opened", 1, "1"), ("resolved", 2, "2")]
    assert len({e["escalation_id"] for e in mock_road.escalations()}) == 1


def test_rules_that_change_before_the_first_window_are_those_that_its_outputs_name(
    mock_road: Road, tmp_path: Path
) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(rules(1, -0.2))
    mock_road.publish(said(0))
    worker = Worker(mock_road.settings(rules={"path": file}), scorer=WordScorer(), exit_when_idle=1.0)
    worker.live.use(rules=parse_rules(rules(2, -0.2)))
    worker.run()
    [scored] = mock_road.read("scored")
    [opened] = mock_road.escalations()
    state = mock_road.final_states()[("shop", "c1")]
    named = {scored.json()["rules_version"], opened["rules_version"], opened["trigger"]["rule_version"]}
    assert {version.split("-")[0] for version in named | {state["rules_version"]}} == {"2"}


@pytest.mark.slow
@pytest.mark.redis
def test_a_hangup_of_the_supervisor_reaches_every_worker(mock_road: Road, tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(rules(1, -0.3))
    settings = {
        "kafka.bootstrap_servers": mock_road.broker.bootstrap_servers,
        "kafka.group_id": mock_road.group,
        "redis.url": mock_road.redis_url,
        "model.stub": "true",
        "rules.path": str(file),
        "rules.watch": "0",
        "http.port": "0",
        **{f"topics.{name}": topic for name, topic in mock_road.topics.items()},
    }
    with WorkerProcess(settings, ["--workers", "2"], directory=tmp_path) as supervisor:
        until(lambda: supervisor.log_text().count("worker_started") == 2, 90)
        file.write_text(rules(2, -0.3))
        supervisor.sighup()
        until(lambda: supervisor.log_text().count("rules_reloaded") == 2, 30)
        supervisor.sigterm()
        assert supervisor.wait_exit(60) == 0


@pytest.mark.slow
@pytest.mark.redis
def test_killed_again_and_again_while_the_rules_change_nothing_is_lost_and_no_alert_is_told_two_ways(
    mock_road: Road, tmp_path: Path
) -> None:
    road = mock_road
    file = tmp_path / "rules.yaml"
    file.write_text(rules(1, -0.3))
    settings = {
        "kafka.bootstrap_servers": road.broker.bootstrap_servers,
        "kafka.group_id": road.group,
        "kafka.session_timeout": "6s",
        "redis.url": road.redis_url,
        "model.stub": "true",
        "rules.path": str(file),
        "rules.watch": "50ms",
        "intake.window_events": "16",
        **{f"topics.{name}": topic for name, topic in road.topics.items()},
    }
    conversations, rounds, lines = 30, 4, 12
    directory = tmp_path / "worker"
    directory.mkdir()
    applied = 0.0
    for turn in range(rounds):
        with WorkerProcess(settings, directory=directory, name=f"worker-{turn}") as worker:
            worker.wait_ready(90)
            for number in range(turn * lines, (turn + 1) * lines):
                road.publish(*[said(number, f"{number}/{c}", f"c{c}") for c in range(conversations)])
                file.write_text(rules(number + 2, (-0.3, -0.2, -0.4)[number % 3]))
                worker.sighup()
                time.sleep(0.15)
            if turn < rounds - 1:
                worker.sigkill()
                continue
            until(lambda: _lag(worker, road.topics["chat_messages"]) == 0, 90)
            worker.sigterm()
            assert worker.wait_exit(60) == 0
        applied += worker.log_text().count("rules_reloaded")
    assert applied > 3

    states = road.final_states()
    assert len(states) == conversations
    assert {state["counts"]["customer"] for state in states.values()} == {rounds * lines}
    by_id: dict[tuple[str, int], set[bytes]] = defaultdict(set)
    by_conversation: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    versions = set()
    for event in road.escalations():
        key = (event["escalation_id"], event["revision"])
        if key not in by_id:
            by_conversation[event["conversation_id"]].append((event["action"], *key))
        by_id[key].add(orjson.dumps(event, option=orjson.OPT_SORT_KEYS))
        versions.add(event["rules_version"])
    assert len(versions) > 3, "the alerts were not decided under several versions: the test proves nothing"
    assert {len(contents) for contents in by_id.values()} == {1}
    for told in by_conversation.values():
        open_id, revision = None, 0
        for action, identity, number in told:
            if action == "opened":
                assert open_id is None
                open_id, revision = identity, 1
                assert number == 1
                continue
            assert (identity, number) == (open_id, revision + 1)
            revision = number
            if action == "resolved":
                open_id = None


def _lag(worker: WorkerProcess, topic: str) -> float:
    """Events that wait; infinite until every partition of the dead worker has come."""
    start = "stream_sentiment_consumer_lag_events{"
    lines = [line for line in worker.get("/metrics")[1].splitlines() if line.startswith(start) and topic in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines) if len(lines) == 3 else float("inf")
