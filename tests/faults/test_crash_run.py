"""The crash run of `crash_run.py`, shortened; and proof that its verdict sees what it must see."""

import copy

import orjson
import pytest

from stream_sentiment.escalation.rules import load_rules
from stream_sentiment.testing import Record
from tests.faults.crash_run import CrashRun, Plan
from tests.faults.reference import Outcome, differences, found_dead_letters, found_escalations, sequential_fold
from tests.faults.traffic import CHAT, MAX_EVENT_BYTES, traffic


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nothing_is_lost_doubled_or_different_after_everything_has_been_killed(
    tmp_path, crashable_kafka, crashable_redis
):
    said = []
    report = CrashRun(Plan(events=2_000, kills=6), tmp_path, crashable_kafka, crashable_redis, said.append).run()
    assert report.problems == [], "\n".join(said)
    assert report.figures["kills"] == 6
    assert report.figures["events"] == 2_000
    # Traffic that gives rise to nothing would prove nothing.
    assert report.figures["escalation events"] > 50
    assert report.figures["dead letters"] > 20
    assert report.figures["held back by the storm guard"] >= 3
    assert report.figures["storm notices"] >= 3


@pytest.fixture(scope="module")
def expected() -> Outcome:
    records = [
        Record("chat.messages", 0, offset, 1_767_603_600_000, item.key, item.value, {})
        for offset, item in enumerate(item for item in traffic(2000, 60, seed=7) if item.topic == CHAT)
    ]
    return sequential_fold({"chat.messages": ("chat", records)}, load_rules(None), MAX_EVENT_BYTES)


def test_equal_outcomes_show_no_difference(expected):
    assert differences(expected, copy.deepcopy(expected)) == []


def test_the_traffic_holds_every_kind_of_outcome(expected):
    assert len(expected.states) > 20
    assert len(expected.escalations) > 10
    assert {reason for *_, reason in expected.dead_letters.values()} >= {"json", "encoding", "schema", "too_large"}
    assert len(expected.scored) > 200


@pytest.mark.parametrize("what", ["states", "escalations", "dead_letters"])
def test_one_missing_thing_is_seen(expected, what):
    found = copy.deepcopy(expected)
    name, _ = getattr(found, what).popitem()
    assert differences(expected, found) == [f"{what}: {name} is missing"]


@pytest.mark.parametrize("what", ["states", "escalations", "dead_letters"])
def test_one_thing_too_many_is_seen(expected, what):
    found = copy.deepcopy(expected)
    getattr(found, what)["intruder"] = next(iter(getattr(found, what).values()))
    assert differences(expected, found) == [f"{what}: intruder was not expected"]


def test_one_event_folded_twice_is_seen(expected):
    found = copy.deepcopy(expected)
    place, state = next(iter(found.states.items()))
    twice = orjson.loads(state)
    twice["counts"]["customer"] += 1
    found.states[place] = orjson.dumps(twice)
    (problem,) = differences(expected, found)
    assert problem.startswith(f"states: {place} differs: counts=")


def test_a_scored_event_that_is_missing_or_foreign_is_seen(expected):
    found = copy.deepcopy(expected)
    gone = found.scored.pop()
    found.scored.add(("shop", "c", "nobody wrote it", "created"))
    assert differences(expected, found) == [
        f"scored: {gone} is missing",
        "scored: ('shop', 'c', 'nobody wrote it', 'created') was not expected",
    ]


def escalation(value: bytes) -> Record:
    return Record("escalation.events", 0, 0, 0, b"k", value, {"ce_id": "e.1"})


def test_copies_that_differ_only_in_when_they_were_sent_are_copies():
    found = Outcome()
    records = [escalation(b'{"severity":"error","timing":{"emitted_at":%d}}' % n) for n in (1, 2)]
    assert found_escalations(found, records) == []
    assert found.copies == {"e.1": 2}


def test_two_records_with_one_id_that_say_different_things_are_a_problem():
    problems = found_escalations(Outcome(), [escalation(b'{"severity":"error"}'), escalation(b'{"severity":"info"}')])
    assert problems == ["escalation e.1 was published with two different contents"]


def test_two_dead_letters_with_one_id_from_two_places_are_a_problem():
    def letter(offset: str) -> Record:
        headers = {"id": "d", "topic": "in", "partition": "0", "offset": offset, "error.class": "decode"}
        return Record("dlq", 0, 0, 0, b"k", b"", {f"__dlq.{name}": value for name, value in headers.items()})

    assert found_dead_letters(Outcome(), [letter("1"), letter("2")]) == [
        "dead letter d was published with two different contents"
    ]
