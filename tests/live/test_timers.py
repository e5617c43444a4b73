"""What falls due while nobody writes: told by the worker that owns the partition, once, and never on a backlog."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer

from stream_sentiment import apply_stage, timers
from stream_sentiment.observability.broker_statistics import BrokerStatistics
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.partition_clock import PartitionClock
from stream_sentiment.positions import Positions
from stream_sentiment.stages import Epoch
from stream_sentiment.store.keys import TopicPartition
from stream_sentiment.testing.clock import FakeClock
from stream_sentiment.testing.events import chat_message, encode
from stream_sentiment.testing.kafka import KafkaHarness
from stream_sentiment.testing.worker import WorkerProcess
from stream_sentiment.timers import Timers
from tests.deploy.promql import ROOT
from tests.integration.road import Road, WordScorer, sample

RULES = """
version: 1
defaults: {{cooldown: 0, state: {{half_life: null, ttl: {ttl}}}}}
rules:
  - id: unanswered
    when: {{all: [{{rolling_score: {{open: -0.2}}}}, {{agent_response_gap: {gap}}}]}}
    severity: error
"""
SOON = {"timer_grace": "100ms", "commit_interval": "100ms"}


def until(condition: Callable[[], bool], seconds: float = 30.0, what: str = "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within the time: {what}"
        time.sleep(0.02)


def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.fixture
def rules(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def write(gap: str = "1s", ttl: str = "24h") -> dict[str, Any]:
        file = tmp_path / "rules.yaml"
        file.write_text(RULES.format(gap=gap, ttl=ttl))
        return {"path": file}

    return write


def test_a_customer_whom_nobody_answers_raises_an_alert_although_nobody_writes(road: Road, rules: Any) -> None:
    running = road.start(rules=rules("1s"), worker=SOON)
    written = now_ms()
    road.publish(*[chat_message("BAD", message=f"m{n}", at_ms=written + n) for n in range(3)])
    until(lambda: sample(running.worker, "escalations_total") == 1, what="the alert")
    assert sample(running.worker, "timers_total", result="fired") == 1
    running.stop()
    [opened] = road.escalations()
    assert (opened["action"], opened["trigger"]["kind"]) == ("opened", "unanswered")
    assert opened["evidence"]
    # Stamped with the moment at which it fell due, not with the moment at which somebody looked.
    waited = 1000 + written
    assert opened["timing"]["message_created_at"]
    state = road.final_states()[("shop", "c1")]
    assert state["escalation"]["status"] == "open"
    assert _ms(opened["opened_at"]) == waited


@pytest.mark.kafka
def test_a_transaction_marker_at_the_end_of_the_partition_is_no_backlog(
    kafka: KafkaHarness, redis_url: str, unique: Callable[[str], str], rules: Any
) -> None:
    """A producer that writes in transactions leaves a record at the end that no consumer is given."""
    road = Road(kafka, redis_url, unique)
    running = road.start(rules=rules("1s"), worker=SOON)
    until(lambda: running.worker.health.started)
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "transactional.id": unique("chats"),
            "partitioner": "murmur2_random",
        }
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(road.topics["chat_messages"], encode(chat_message("BAD", at_ms=now_ms())), b"shop|c1")
    producer.commit_transaction(30)
    until(lambda: sample(running.worker, "escalations_total") == 1, what="the alert")
    assert sample(running.worker, "consumer_lag_events") == 1, "the marker, which has an offset of its own"
    running.stop()
    assert len(road.escalations()) == 1


def test_an_answer_in_time_prevents_it(road: Road, rules: Any) -> None:
    running = road.start(rules=rules("3s"), worker=SOON)
    at = now_ms()
    road.publish(
        chat_message("BAD", message="m0", at_ms=at), chat_message("sorry", message="m1", role="agent", at_ms=at + 1)
    )
    until(lambda: sample(running.worker, "events_total") == 2)
    time.sleep(4)
    running.stop()
    assert road.escalations() == []
    assert sample(running.worker, "timers_total") == 0


def test_an_open_alert_of_a_conversation_that_goes_silent_is_resolved_as_expired(mock_road: Road, rules: Any) -> None:
    running = mock_road.start(rules=rules("500ms", ttl="3s"), worker=SOON)
    at = now_ms()
    mock_road.publish(chat_message("BAD", at_ms=at))
    until(lambda: sample(running.worker, "escalation_transitions_total", action="resolved") == 1, what="the end")
    running.stop()
    events = mock_road.escalations()
    assert [(e["action"], e["resolution"]) for e in events] == [("opened", None), ("resolved", "expired")]
    assert _ms(events[1]["resolved_at"]) == at + 3000
    assert mock_road.final_states()[("shop", "c1")]["status"] == "expired"


def test_a_timer_that_fell_due_while_no_worker_ran_fires_when_one_comes(mock_road: Road, rules: Any) -> None:
    first = mock_road.start(rules=rules("2s"), worker=SOON)
    mock_road.publish(chat_message("BAD", at_ms=now_ms()))
    until(lambda: sample(first.worker, "events_total", outcome="scored") == 1)
    first.stop()
    assert mock_road.escalations() == []
    time.sleep(2)
    second = mock_road.start(rules=rules("2s"), worker=SOON)
    until(lambda: sample(second.worker, "escalations_total") == 1, what="the alert")
    second.stop()
    assert len(mock_road.escalations()) == 1


def test_events_of_the_past_are_not_late_because_the_wall_clock_is_far_ahead(mock_road: Road, rules: Any) -> None:
    """A conversation of last year, published now: a minute between two messages is a minute, not a year."""
    past = now_ms() - 365 * 86_400_000
    running = mock_road.start(rules=rules("10m", ttl="24h"), worker=SOON)
    mock_road.publish(chat_message("BAD", message="m0", at_ms=past))
    until(lambda: sample(running.worker, "events_total", outcome="scored") == 1)
    time.sleep(2)
    mock_road.publish(chat_message("BAD", message="m1", at_ms=past + 60_000))
    until(lambda: sample(running.worker, "events_total", outcome="scored") == 2)
    running.stop()
    assert mock_road.escalations() == []


def backlog(road: Road, rules: Any) -> tuple[list[dict[str, Any]], float]:
    """The answer was written in time and lies unread behind a model that takes its time."""
    slow = [0.0]
    running = road.start(
        WordScorer(delay=lambda: time.sleep(slow[0])),
        rules=rules("1s"),
        worker=SOON,
        intake={"window_events": 1, "windows_in_flight": 1, "hold": "50ms"},
        kafka={"max_poll_interval": "60s"},
    )
    until(lambda: running.worker.health.started)
    slow[0] = 0.4
    at = now_ms()
    others = [chat_message("fine", conversation=f"o{n}", message=f"o{n}", at_ms=at + n) for n in range(12)]
    road.publish(
        chat_message("BAD", message="m0", at_ms=at),
        *others,
        chat_message("sorry", message="m1", role="agent", at_ms=at + 300),
    )
    until(lambda: sample(running.worker, "events_total") == 14, 60)
    running.stop()
    return road.escalations(), sample(running.worker, "timers_total")


def test_a_timer_does_not_fire_on_a_backlog_in_which_the_answer_may_wait(mock_road: Road, rules: Any) -> None:
    assert backlog(mock_road, rules) == ([], 0)


def test_an_erased_conversation_has_no_timer_left(mock_road: Road, rules: Any) -> None:
    import redis

    from stream_sentiment.clock import SystemClock
    from stream_sentiment.erasure import erase_conversation
    from stream_sentiment.escalation.rules import load_rules
    from stream_sentiment.worker import open_store

    sections = {"rules": rules("3s"), "worker": SOON}
    running = mock_road.start(**sections)
    mock_road.publish(chat_message("BAD", at_ms=now_ms()))
    until(lambda: sample(running.worker, "events_total", outcome="scored") == 1)
    settings = mock_road.settings(**sections)
    store = open_store(settings, 60_000)
    with redis.Redis.from_url(mock_road.redis_url) as client:
        due = lambda: sum(client.zcard(key) for key in client.scan_iter(f"ss:*{mock_road.group}*:due"))  # noqa: E731
        assert due() == 1
        erase_conversation(settings, store, load_rules(settings.rules.path), SystemClock(), "shop", "c1")
        assert due() == 0
        time.sleep(4)
        running.stop()
        assert due() == 0
    store.close()
    assert mock_road.escalations() == []


def test_off_switch_leaves_timers_to_the_next_event(mock_road: Road, rules: Any) -> None:
    running = mock_road.start(rules=rules("500ms"), worker={**SOON, "timers": False})
    at = now_ms()
    mock_road.publish(chat_message("BAD", message="m0", at_ms=at))
    time.sleep(2)
    assert sample(running.worker, "escalations_total") == 0
    mock_road.publish(chat_message("hm", message="m1", at_ms=at + 2000))
    until(lambda: sample(running.worker, "escalations_total") == 1)
    running.stop()
    assert len(mock_road.escalations()) == 1


@pytest.mark.parametrize(
    ("event", "broker", "wall", "complete", "expected"),
    [
        (None, 0, 5_000, 5_000, None),  # nothing is known before the first event
        (1_000, 1_300, 9_300, 9_300, 9_000),  # caught up: eight seconds of silence
        (1_000, 1_300, 9_300, None, 1_000),  # a backlog: events alone move it
        (1_000, 1_300, 9_300, 5_300, 5_000),  # caught up four seconds ago, not known since
        (1_000, 90_000, 91_000, 91_000, 2_000),  # events of the past keep their own time
        (6_000, 6_000, 2_000, 2_000, 2_000),  # never later than now, whatever the broker's clock says
        (6_000, 6_000, 2_000, None, 2_000),
        (1_000, 5_000, 4_000, 4_000, 1_000),  # the broker's clock is ahead of ours: silence is never negative
    ],
)
def test_the_clock_of_a_partition(
    event: int | None, broker: int, wall: int, complete: int | None, expected: int | None
) -> None:
    assert PartitionClock(event, broker).now_ms(wall, complete) == expected


def test_the_clock_survives_a_change_of_owner_and_late_events_do_not_turn_it_back() -> None:
    clock = PartitionClock()
    assert clock.encode() == ""
    clock.passed(5_000, 5_200)
    clock.passed(1_000, 7_000)
    assert PartitionClock.decode(clock.encode()) == PartitionClock(5_000, 7_000)
    assert PartitionClock.decode("") == PartitionClock()


def test_more_conversations_than_fit_in_one_tick_all_expire_and_the_cache_stays_bounded(
    mock_road: Road, rules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apply_stage, "CACHED_STATES", 40)
    monkeypatch.setattr(timers, "TICK_CONVERSATIONS", 16)
    running = mock_road.start(rules=rules("1s"), worker=SOON)
    at, count = now_ms(), 300
    epochs: set[Epoch] = set()
    real = Timers.run

    def run(self: Timers, given: Any) -> bool:
        epochs.update(given)
        return real(self, given)

    monkeypatch.setattr(Timers, "run", run)
    mock_road.publish(*[chat_message("BAD", conversation=f"c{n}", message=f"c{n}-m", at_ms=at) for n in range(count)])
    try:
        until(lambda: sample(running.worker, "escalations_total") == count, 40, "every alert")
        assert max(len(epoch.states) for epoch in epochs) <= 40 + 16
    finally:
        running.stop()
    # So many at once are a storm, whose notices are on the topic, too.
    assert len({event["escalation_id"] for event in mock_road.escalations() if "escalation_id" in event}) == count


@pytest.mark.parametrize(("states", "connected"), [(["UP", "DOWN"], True), (["DOWN", "TRY_CONNECT"], False)])
def test_without_a_broker_nobody_knows_whether_a_partition_is_at_its_end(states: list[str], connected: bool) -> None:
    statistics = BrokerStatistics(Metrics())
    assert statistics.connected
    brokers = {
        f"b{n}": {"nodeid": n, "source": "learned", "nodename": f"b{n}:9092", "state": state, "rtt": {"p99": 1000}}
        for n, state in enumerate(states)
    }
    statistics(orjson.dumps({"brokers": brokers}).decode())
    assert statistics.connected == connected


class Ends:
    """What librdkafka has cached of a partition's end."""

    def __init__(self, high: int) -> None:
        self.high = high

    def get_watermark_offsets(self, _place: Any, cached: bool) -> tuple[int, int]:
        assert cached
        return 0, self.high


@pytest.mark.parametrize(
    ("change", "complete"),
    [
        ({}, True),
        ({"at_end": False}, False),  # records have come since the end was reached
        ({"watermark": 9}, False),  # read, not applied
        ({"high": 12}, False),  # the broker has more than the client has been given
        ({"high": -1001}, False),  # librdkafka has not heard of the end yet
        ({"reading": False}, False),  # paused, holding, or no broker
    ],
)
def test_a_partition_is_worked_off_only_when_nothing_can_be_unread(change: dict[str, Any], complete: bool) -> None:
    epoch = Epoch(TopicPartition("chat.messages", 0), "chat", "token", 10)
    epoch.at_end, epoch.end_offset = True, 11  # a transaction marker behind the last record
    clock = FakeClock()
    epoch.complete_ms = 1
    for name, value in change.items():
        if name not in ("high", "reading"):
            setattr(epoch, name, value)
    positions = Positions(Metrics(), clock, lambda: [epoch])
    positions.report(Ends(change.get("high", 11)), reading=change.get("reading", True))  # type: ignore[arg-type]
    assert epoch.complete_ms == (clock.now_ms() if complete else None)


def test_a_producer_whose_clock_is_ahead_hurries_nobody() -> None:
    clock = PartitionClock()
    clock.passed(300_000, 10_000)
    assert clock == PartitionClock(10_000, 10_000)


def test_on_a_backlog_the_clock_would_run_over_the_answer_if_it_were_the_walls(
    mock_road: Road, rules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test of the backlog: a worker that believes to have caught up tells what is not true."""
    real = PartitionClock.now_ms
    monkeypatch.setattr(PartitionClock, "now_ms", lambda self, wall, complete: real(self, wall, wall))
    alerts, _ = backlog(mock_road, rules)
    assert [event["action"] for event in alerts] == ["opened", "resolved"]


@pytest.mark.slow
@pytest.mark.redis
def test_killed_again_and_again_every_unanswered_customer_is_told_of_once_and_no_answered_one(
    mock_road: Road, rules: Any, tmp_path: Path
) -> None:
    gap_ms = 2_000
    settings = {
        "kafka.bootstrap_servers": mock_road.broker.bootstrap_servers,
        "kafka.group_id": mock_road.group,
        "kafka.session_timeout": "6s",
        "redis.url": mock_road.redis_url,
        "rules.path": str(rules("2s")["path"]),
        "intake.window_events": "8",
        **{f"worker.{name}": value for name, value in SOON.items()},
        **{f"topics.{name}": topic for name, topic in mock_road.topics.items()},
    }
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.integration.road import WordScorer;"
        "from stream_sentiment import worker; worker.load_scorer = lambda _: WordScorer();"
        "from stream_sentiment.cli.main import main; sys.argv[0] = 'stream-sentiment'; main()"
    )
    written: dict[str, int] = {}
    answers: list[tuple[int, str]] = []
    workers: list[WorkerProcess] = []

    def start() -> None:
        made = WorkerProcess(settings, directory=tmp_path, name=f"worker-{len(workers)}", program=("-c", code))
        workers.append(made.start())

    try:
        start()
        workers[-1].wait_ready(90)
        for number in range(160):
            at, name = now_ms(), f"c{number}"
            written[name] = at
            mock_road.publish(chat_message("BAD", conversation=name, message=f"{name}-0", at_ms=at))
            if number % 3 == 0:
                answers.append((at + 500, name))
            while answers and answers[0][0] <= now_ms():
                _, who = answers.pop(0)
                mock_road.publish(
                    chat_message("sorry", conversation=who, message=f"{who}-1", role="agent", at_ms=now_ms())
                )
            if number in (40, 75, 100, 130):
                workers[-1].sigkill()
                start()
            time.sleep(0.1)
        for _, who in answers:
            mock_road.publish(chat_message("sorry", conversation=who, message=f"{who}-1", role="agent", at_ms=now_ms()))
        answered = {f"c{number}" for number in range(0, 160, 3)}
        expected = written.keys() - answered
        until(lambda: len(opened(mock_road)) >= len(expected), 90, "every alert")
        workers[-1].sigterm()
        assert workers[-1].wait_exit(60) == 0
    finally:
        for worker in workers:
            worker.close()
    told = opened(mock_road)
    assert told.keys() == expected
    # One id and one content each, however often it was published, stamped with the moment at which it fell due.
    assert {len(contents) for contents in told.values()} == {1}
    for name, contents in told.items():
        [content] = contents
        assert _ms(orjson.loads(content)["opened_at"]) == written[name] + gap_ms
    states = mock_road.final_states()
    assert {name for (_, name), state in states.items() if state["escalation"]["status"] == "open"} == expected


def opened(road: Road) -> dict[str, set[bytes]]:
    """Contents of the alerts by conversation; when each was sent is left out."""
    told: dict[str, set[bytes]] = defaultdict(set)
    for event in road.escalations():
        assert (event["action"], event["revision"]) == ("opened", 1)
        del event["timing"]
        told[event["conversation_id"]].add(orjson.dumps(event, option=orjson.OPT_SORT_KEYS))
    return told


def _ms(text: str) -> int:
    from datetime import datetime

    return round(datetime.fromisoformat(text).timestamp() * 1000)
