"""A replay beside the live worker: the same bytes twice, every difference told, and nothing of the live one touched."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis as redis_client

from stream_sentiment.cli.progress import progress_bar
from stream_sentiment.escalation.rules import RuleSet, load_rules
from stream_sentiment.kafka.log_slice import EARLIEST, END, LogReader, Point, parse_point
from stream_sentiment.replay.run import Plan, Report, replay
from stream_sentiment.scoring.scorer import StubScorer
from stream_sentiment.testing.events import chat_message
from stream_sentiment.testing.worker import environment
from tests.faults.traffic import CHAT, traffic
from tests.integration.road import Road

RULES = """
version: 1
defaults: {cooldown: 0, renotify_every: 1m, close: {rolling_score: -0.05, for_messages: 1}}
rules:
  - {id: sustained, when: {rolling_score: {open: -0.2, close: 0.0}}}
  - {id: waiting, when: {rolling_score: {open: -0.1}, agent_response_gap: 3m}, severity: error}
suppress: {max_open_per_tenant_per_minute: 1}
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return path


def publish_traffic(road: Road, events: int, seed: int = 3, skip: int = 0) -> None:
    """Conversations with everything that goes wrong on a real topic: edits, deletions, late and broken records, reviews."""
    for number, item in enumerate(traffic(events, 30, seed)):
        if number < skip:
            continue
        name = "chat_messages" if item.topic == CHAT else "product_reviews"
        road._producer.produce(road.topics[name], item.value, key=item.key)
    road._producer.flush(30)


def live(road: Road, rules: Path, scorer: StubScorer | None = None, timers: bool = False, **sections: Any) -> None:
    """The live worker. Without its timers where the traffic mixes old events with new ones: they go by the partition's clock, and
    what arrives after its conversation has expired by it is no longer what a fold in order would make of it.
    """
    road.work(scorer or StubScorer(), rules={"path": rules}, worker={"timers": timers}, **sections)


def again(road: Road, rules: Path, folder: Path | None = None, **plan: Any) -> Report:
    settings = road.settings(rules={"path": rules}, model={"stub": True})
    ruleset: RuleSet = load_rules(rules)
    return replay(settings, ruleset, StubScorer(), Plan(**{"begin": EARLIEST, **plan}), folder, progress_bar)


def keys_of(road: Road) -> set[bytes]:
    with redis_client.Redis.from_url(road.redis_url) as client:
        return set(client.scan_iter("*"))


def test_two_replays_give_the_same_bytes_and_those_of_the_live_worker(road: Road, rules: Path, tmp_path: Path) -> None:
    publish_traffic(road, 600)
    live(road, rules)
    before = keys_of(road)

    first = again(road, rules, tmp_path / "a")
    second = again(road, rules, tmp_path / "b")

    for kind in ("escalations", "scored", "dead_letters", "states"):
        content = (tmp_path / "a" / f"{kind}.jsonl").read_bytes()
        assert content == (tmp_path / "b" / f"{kind}.jsonl").read_bytes()
        assert content.count(b"\n") == first.counts[kind] > 5, kind
    assert first.digests == second.digests
    assert first.comparison is not None
    assert first.comparison.differences == []
    assert first.comparison.equal == first.counts
    assert first.comparison.outside.total() == 0
    assert b'"suppressed":true' in (tmp_path / "a" / "escalations.jsonl").read_bytes()
    assert b'"storm_id"' in (tmp_path / "a" / "escalations.jsonl").read_bytes()
    assert keys_of(road) == before


def test_another_rule_file_differs_in_every_decision_that_it_changes(
    mock_road: Road, rules: Path, tmp_path: Path
) -> None:
    publish_traffic(mock_road, 300)
    live(mock_road, rules)
    milder = tmp_path / "milder.yaml"
    milder.write_text(RULES.replace("open: -0.2,", "open: -0.35,"))

    result = again(mock_road, milder).comparison

    assert result is not None
    kinds = {(difference.kind, difference.what) for difference in result.differences}
    assert ("escalations", "only_live") in kinds
    # The rules version stands on every scored event.
    assert {tuple(d.fields) for d in result.differences if d.kind == "scored"} == {("rules_version",)}


def test_the_rights_of_the_worker_are_enough(mock_road: Road, rules: Path) -> None:
    template = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"
    line = next(row for row in template.read_text().splitlines() if row.startswith("user worker"))
    rights = [part for part in line.split()[2:] if not part.startswith("#")]
    with redis_client.Redis.from_url(mock_road.redis_url) as client:
        client.execute_command("ACL", "SETUSER", "replayer", *rights, ">secret")
        try:
            publish_traffic(mock_road, 60)
            mock_road.redis_url = mock_road.redis_url.replace("redis://", "redis://replayer:secret@")
            report = again(mock_road, rules, compare=False)
        finally:
            client.execute_command("ACL", "DELUSER", "replayer")
        assert report.counts["scored"] > 10
        assert list(client.scan_iter("*replay*")) == []


def test_what_was_lost_added_or_changed_on_a_live_topic_is_told(mock_road: Road, rules: Path) -> None:
    publish_traffic(mock_road, 300)
    live(mock_road, rules)
    published = mock_road.read("escalations")
    escalation = next(record for record in published if record.json().get("action") == "opened")
    changed = {**escalation.json(), "severity": "critical"}
    invented = {**escalation.json(), "escalation_id": "made-up"}
    for value, event_id in ((changed, escalation.headers["ce_id"]), (invented, "made-up.1")):
        headers = [(name, part.encode()) for name, part in {**escalation.headers, "ce_id": event_id}.items()]
        mock_road._producer.produce(
            mock_road.topics["escalations"], orjson.dumps(value), escalation.key, headers=headers
        )
    mock_road._producer.flush(10)

    result = again(mock_road, rules).comparison

    assert result is not None
    assert [(d.what, d.id, dict(d.fields)) for d in result.differences] == [
        ("differs", escalation.headers["ce_id"], {"severity": ["critical", escalation.json()["severity"]]}),
        ("only_live", "made-up.1", {}),
    ]
    assert result.copies["escalations"] == 1


def test_a_live_worker_that_has_lost_an_event_is_found_out(mock_road: Road, rules: Path) -> None:
    publish_traffic(mock_road, 300)
    live(mock_road, rules, output={"scored": False})

    result = again(mock_road, rules).comparison

    assert result is not None
    assert {(d.kind, d.what) for d in result.differences} == {("scored", "only_replay")}


@pytest.mark.kafka
def test_a_replay_from_a_time_reads_before_it_for_the_states(
    kafka: Any, redis_url: str, unique: Callable[[str], str], rules: Path
) -> None:
    road = Road(kafka, redis_url, unique)
    publish_traffic(road, 300)
    time.sleep(1.2)
    half = Point("half", at_ms=int(time.time() * 1000))
    time.sleep(0.2)
    publish_traffic(road, 600, skip=300)
    live(road, rules)

    report = again(road, rules, begin=half)

    assert report.comparison is not None
    assert report.replayed.warm_up == 300
    assert report.replayed.records == 600
    assert report.comparison.differences == []
    assert report.comparison.equal.total() > 50
    # Control: without the states from before, the decisions are others.
    cold = again(road, rules, begin=half, warm_up_ms=0)
    assert cold.replayed.warm_up == 0
    assert cold.comparison is not None
    assert cold.comparison.differences


def test_what_the_live_worker_has_not_reached_is_left_out(mock_road: Road, rules: Path) -> None:
    publish_traffic(mock_road, 200)
    live(mock_road, rules)
    publish_traffic(mock_road, 300, skip=200)

    report = again(mock_road, rules)
    assert report.replayed.records == 200
    assert report.comparison is not None
    assert report.comparison.differences == []

    ahead = again(mock_road, rules, end=END, compare=False)
    assert ahead.replayed.records == 300
    assert ahead.comparison is None


def test_timers_that_the_live_worker_fired_are_told_by_the_next_event_or_lie_outside(
    mock_kafka: Any, redis_url: str, unique: Callable[[str], str], rules: Path
) -> None:
    road = Road(mock_kafka, redis_url, unique, partitions=1)
    begin = int(time.time() * 1000) - 600_000

    def said(conversation: str, message: str, minute: int, role: str = "customer") -> dict[str, Any]:
        return chat_message(
            "terrible, the worst" if role == "customer" else "sorry",
            conversation=conversation,
            message=message,
            role=role,
            at_ms=begin + minute * 60_000,
        )

    for number in range(2):
        road.publish(said(f"c{number}", "m0", 0), said(f"c{number}", "m1", 0))
    road.publish(said("other", "m0", 5))
    live(road, rules, timers=True)
    road.publish(said("c0", "m2", 6, "agent"))
    live(road, rules, timers=True)
    fired = [e for e in road.escalations() if e.get("trigger", {}).get("rule_id") == "waiting"]
    assert {e["conversation_id"] for e in fired} >= {"c0", "c1"}

    report = again(road, rules)

    assert report.comparison is not None
    assert report.comparison.differences == []
    assert report.comparison.outside["escalations"] >= 1
    assert report.comparison.outside["states"] >= 1


def test_outputs_can_go_to_topics_of_their_own(mock_road: Road, rules: Path) -> None:
    publish_traffic(mock_road, 200)
    before = {name: len(mock_road.read(name)) for name in ("escalations", "scored")}

    for name in ("escalations", "scored", "dead_letters", "conversation_state"):
        mock_road.broker.create_topic("again." + mock_road.topics[name], 3)

    report = again(mock_road, rules, topics="again.", compare=False)

    mock_road.topics = {name: "again." + topic for name, topic in mock_road.topics.items()}
    assert before == {"escalations": 0, "scored": 0}
    assert len(mock_road.read("escalations")) == report.counts["escalations"] > 0
    assert len(mock_road.read("scored")) == report.counts["scored"] > 0
    assert report.published == report.counts.total()


def test_a_text_that_the_model_cannot_take_is_a_dead_letter_in_both(mock_road: Road, rules: Path) -> None:
    from tests.integration.road import WordScorer

    for number, text in enumerate(("BAD", "POISON", "BAD", "CRASH", "BAD", "fine")):
        mock_road.publish(chat_message(text, conversation="c", message=f"m{number}", at_ms=1_790_000_000_000 + number))
    live(mock_road, rules, WordScorer())
    settings = mock_road.settings(rules={"path": rules})
    report = replay(settings, load_rules(rules), WordScorer(), Plan(EARLIEST), None, progress_bar)
    assert report.counts["dead_letters"] == 2
    assert report.comparison is not None
    assert report.comparison.differences == []


def test_a_record_that_breaks_the_state_machine_is_put_aside_as_the_worker_does(
    mock_road: Road, rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stream_sentiment.record_fold as record_fold

    advance = record_fold.advance

    def breaking(state: Any, turn: Any, identity: Any, ruleset: Any) -> Any:
        result = advance(state, turn, identity, ruleset)
        if turn.message_id == "m1":
            raise RuntimeError("broken")
        return result

    monkeypatch.setattr(record_fold, "advance", breaking)
    for number in range(4):
        mock_road.publish(chat_message("BAD", conversation="c", message=f"m{number}", at_ms=1_790_000_000_000 + number))
    live(mock_road, rules)
    report = again(mock_road, rules)
    assert report.counts["dead_letters"] == 1
    assert report.comparison is not None
    assert report.comparison.differences == []


def test_the_command_says_whether_the_live_output_is_the_same(mock_road: Road, rules: Path, tmp_path: Path) -> None:
    publish_traffic(mock_road, 200)
    live(mock_road, rules)
    variables = environment(
        {
            "kafka.bootstrap_servers": mock_road.broker.bootstrap_servers,
            "kafka.group_id": mock_road.group,
            "redis.url": mock_road.redis_url,
            "model.stub": "true",
            "rules.path": str(rules),
            **{f"topics.{name}": topic for name, topic in mock_road.topics.items()},
        }
    )

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stream_sentiment", "replay", *arguments],
            env=variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    same = command("--from", "earliest", "--json", "--output", str(tmp_path / "out"))
    assert same.returncode == 0, same.stderr
    report = orjson.loads(same.stdout)
    assert report["records"] == 200
    assert report["compare"]["same"] is True
    assert (tmp_path / "out" / "differences.jsonl").read_bytes() == b""
    assert orjson.loads((tmp_path / "out" / "report.json").read_bytes()) == report

    other = tmp_path / "other.yaml"
    other.write_text(RULES.replace("open: -0.2,", "open: -0.35,"))
    differs = command("--from", "0", "--rules", str(other))
    assert differs.returncode == 1, differs.stderr
    assert differs.stdout.count(": only ") + differs.stdout.count(": differs: ") == 20
    assert "--json or --output for all" in differs.stdout

    kept = command("--from", "0", "--no-compare", "--keep")
    assert kept.returncode == 0, kept.stderr
    assert "states kept: redis.prefix ss:replay" in kept.stdout
    assert any(b"ss:replay:{" in key for key in keys_of(mock_road))

    wrong = command("--from", "yesterday")
    assert wrong.returncode == 78
    assert "2026-11-22T06:00:00Z" in wrong.stderr
    missing = command("--from", "earliest", "--warm-up", "soon")
    assert missing.returncode == 78
    assert "no duration" in missing.stderr


@pytest.mark.parametrize("text", ["2026-11-22T06:00:00", "yesterday", "-1", "", "1.5"])
def test_a_point_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Exception, match="earliest, or a time with its zone"):
        parse_point(text, "--from")


def test_points_are_read() -> None:
    assert parse_point("earliest", "--from") == EARLIEST
    assert parse_point(" 17 ", "--from") == Point("17", offset=17)
    assert parse_point("2026-11-22T06:00:00+08:00", "--from").at_ms == 1_795_298_400_000


@pytest.mark.kafka
def test_a_slice_by_time_begins_with_the_first_record_of_that_time(
    kafka: Any, redis_url: str, unique: Callable[[str], str]
) -> None:
    road = Road(kafka, redis_url, unique, partitions=1)
    topic = road.topics["chat_messages"]
    for number in range(6):
        road._producer.produce(topic, str(number).encode(), timestamp=1_790_000_000_000 + number * 1000)
    road._producer.flush(10)
    reader = LogReader(road.settings().kafka, road.group + "-reader")
    try:
        [part] = reader.slices({topic: 1}, Point("", at_ms=1_790_000_001_500), Point("", at_ms=1_790_000_004_000))
        assert [record.value for record in reader.read(part)] == [b"2", b"3"]
        [late] = reader.slices({topic: 1}, Point("", at_ms=1_790_000_009_000), END)
        assert (late.begin, late.end) == (6, 6)
        [clipped] = reader.slices({topic: 1}, Point("4", offset=4), Point("99", offset=99))
        assert (clipped.begin, clipped.end) == (4, 6)
        assert list(reader.read(late)) == []
    finally:
        reader.close()


@pytest.mark.kafka
def test_missing_topics_of_its_own_are_created(
    kafka: Any, redis_url: str, unique: Callable[[str], str], rules: Path
) -> None:
    road = Road(kafka, redis_url, unique)
    publish_traffic(road, 60)
    report = again(road, rules, topics="again.", compare=False)
    road.topics = {name: "again." + topic for name, topic in road.topics.items()}
    assert len(road.read("scored")) == report.counts["scored"] > 0
