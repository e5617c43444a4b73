"""Live and replayed outputs side by side: what is a difference, and what the replay cannot know."""

from __future__ import annotations

from typing import Any

import orjson

from stream_sentiment.replay.compare import Scope, compare
from stream_sentiment.replay.outputs import Output, output_of

T = "2026-01-05T10:0{}:00.000Z"


def escalation(identity: str = "e.1", minute: int = 1, message: str | None = "m1", **more: Any) -> Output:
    value = {"tenant_id": "t", "conversation_id": "c", "updated_at": T.format(minute), **more}
    headers = [("ce_id", identity.encode()), ("ce_type", b"x.sentiment.escalation.opened")]
    if message is not None:
        headers.append(("ce_causationid", message.encode()))
    output = output_of("escalations", b"t|c", orjson.dumps({**value, "timing": {"emitted_at": "now"}}), headers)
    assert output is not None
    return output


def state(version: int, **more: Any) -> Output:
    value = {"tenant_id": "t", "conversation_id": "c", "updated_at": T.format(1), "state_version": version, **more}
    output = output_of("states", b"t|c", orjson.dumps(value), [])
    assert output is not None
    return output


def scope(*messages: str) -> Scope:
    scope = Scope()
    for number, message in enumerate(messages, 1):
        scope.add("t", "c", message, T.format(number))
    return scope


def told(replayed: list[Output], live: list[Output], of: Scope | None = None) -> list[tuple[str, str]]:
    return [(d.what, d.id) for d in compare(replayed, live, of or scope("m1", "m2")).differences]


def test_equal_outputs_are_equal_whenever_they_were_emitted() -> None:
    result = compare([escalation()], [escalation(), escalation()], scope("m1"))
    assert (result.differences, result.equal["escalations"], result.copies["escalations"]) == ([], 1, 1)


def test_each_side_may_lack_one_or_say_something_else() -> None:
    assert told([escalation()], []) == [("only_replay", "e.1")]
    assert told([], [escalation()]) == [("only_live", "e.1")]
    [difference] = compare([escalation(level=2)], [escalation(level=3)], scope("m1")).differences
    assert (difference.what, difference.fields) == ("differs", {"level": [3, 2]})


def test_a_copy_that_says_something_else_is_a_difference() -> None:
    assert told([escalation()], [escalation(), escalation(level=3)]) == [("differs", "e.1")]


def test_an_output_of_another_message_or_conversation_is_outside() -> None:
    assert told([], [escalation(message="m0")]) == []
    assert told([], [escalation()], Scope()) == []
    assert compare([], [escalation(message="m0")], scope("m1")).outside["escalations"] == 1


def test_what_a_clock_told_after_the_last_record_is_outside() -> None:
    assert told([], [escalation(minute=9, message=None)]) == []
    assert told([], [escalation(minute=2, message=None)]) == [("only_live", "e.1")]


def test_an_erasure_is_outside() -> None:
    assert told([], [escalation(resolution="erased")]) == []


def test_a_state_is_compared_at_its_version() -> None:
    assert told([state(3)], [state(2), state(3)]) == []
    assert told([state(3)], [state(3, score=1)]) == [("differs", "t|c")]
    assert told([state(3)], [state(4, score=1)]) == []  # it has gone on
    assert told([state(3)], [state(2)]) == [("differs", "t|c")]  # it lags behind
    assert told([state(3)], []) == [("only_replay", "t|c")]
    assert told([], [state(3)]) == [("only_live", "t|c")]
    assert output_of("states", b"t|c", None, []) is None


def test_an_id_may_stand_for_two_outputs() -> None:
    twice = [escalation(level=1), escalation(level=2)]
    assert told(twice, list(reversed(twice))) == []
    assert told(twice, twice[1:]) == [("only_replay", "e.1")]
    assert told(twice, [twice[0], escalation(level=9)]) == [("differs", "e.1")]


def test_what_the_warm_up_has_made_is_outside() -> None:
    of = scope("m1", "m2")
    of.pass_over(escalation("before.1", message=None))
    of.pass_over(escalation("both.1", level=1))
    live = [escalation("before.1", message=None), escalation("both.1", level=1), escalation("both.1", level=2)]
    assert told([escalation("both.1", level=2)], live, of) == []


def test_a_dead_letter_is_in_the_slice_or_not() -> None:
    def letter(offset: int, error: str = "schema") -> Output:
        marks = {"id": f"d{offset}", "topic": "in", "partition": "0", "offset": str(offset), "error.class": error}
        headers = [(f"__dlq.{name}", value.encode()) for name, value in marks.items()]
        output = output_of("dead_letters", None, b"words of a customer", [*headers, ("__dlq.first_failed_at", b"now")])
        assert output is not None
        assert b"customer" not in output.to_json()
        return output

    of = Scope(slices={("in", 0): (5, 9)})
    assert told([], [letter(4), letter(9)], of) == []
    assert told([], [letter(5)], of) == [("only_live", "d5")]
    assert told([letter(5)], [letter(5, "decode")], of) == [("differs", "d5")]
    assert output_of("dead_letters", None, None, [("__dlq.id", b"d")]) is not None


def test_a_storm_is_in_the_slice_where_it_began_in_it() -> None:
    def notice(minute: int, partition: int = 0) -> Output:
        source = {"topic": "in", "partition": partition}
        value = {"tenant_id": "t", "began_at": T.format(minute), "updated_at": T.format(minute), "source": source}
        headers = [("ce_id", b"s.1"), ("ce_type", b"x.sentiment.escalation_storm.opened")]
        output = output_of("escalations", b"t|", orjson.dumps(value), headers)
        assert output is not None
        return output

    of = scope("m1")
    of.slices[("in", 0)] = (0, 9)
    assert told([], [notice(0)], of) == []
    assert told([], [notice(2, partition=1)], of) == []
    assert told([], [notice(2)], of) == [("only_live", "s.1")]


def test_what_cannot_be_read_differs_from_everything() -> None:
    unreadable = output_of("escalations", b"k", b"\xff no json", [("ce_id", b"e.1")])
    assert unreadable is not None
    assert unreadable.id != "e.1"
    assert compare([], [unreadable], scope("m1")).outside["escalations"] == 1
