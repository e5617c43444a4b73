"""The storm guard: never silent, never in the way of safety, the same after every restart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from turn_builders import START, customer, event

from stream_sentiment.conversation import ConversationIdentity, ConversationState
from stream_sentiment.conversation.state import StateUnreadable
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.escalation import Transition, advance, close
from stream_sentiment.escalation.rules import RuleSet, parse_rules
from stream_sentiment.escalation.storm import (
    MINUTE_MS,
    REMEMBERED_MINUTES,
    StormLimits,
    StormNotice,
    StormState,
    guard,
    guard_turn,
    notice_reason,
    pass_time,
    share_of,
)

RULES = """
version: 1
defaults: {cooldown: 0, renotify_every: 2m, close: {rolling_score: 0.0, for_messages: 1}, state: {half_life: null}}
rules:
  - {id: bad, when: {rolling_score: {open: -0.25, close: 0.0}}, severity: [{at: -0.25, level: error}, {at: -0.6, level: critical}]}
  - {id: law, when: {signal: legal_threat}}
  - {id: danger, when: {signal: safety_risk}, severity: error, bypass_cooldown: true}
"""
# A minute of event time that starts with a minute, so that tests can say which minute they are in.
BEGIN = START - START % MINUTE_MS - START
FIRST = (START + BEGIN) // MINUTE_MS


class Partition:
    """One input partition of tenant acme, as the worker folds it: one conversation's turn after another's."""

    def __init__(self, limit: str = "{max_open_per_tenant_per_minute: 2}", partitions: int = 1, restart: bool = False):
        self.rules: RuleSet = parse_rules(f"{RULES}suppress: {limit}\n")
        self.storm = StormState("acme")
        self.states: dict[str, ConversationState] = {}
        self.partitions = partitions
        self.limits: StormLimits | None = None  # in place of the file's
        self.restart = restart  # everything that is kept goes through its stored form between two turns
        self.told: list[Transition] = []
        self.notices: list[StormNotice] = []

    def turn(self, conversation: str, at_s: float, value: float = -0.9, **more: Any) -> list[Transition]:
        turn = customer(f"{conversation}-{at_s}", BEGIN / 1000 + at_s, value, **more)
        return self.fold(conversation, turn)

    def fold(self, conversation: str, turn: Any) -> list[Transition]:
        who = ConversationIdentity("acme", conversation)
        result = advance(self.states.get(conversation), turn, who, self.rules)
        notices = pass_time(self.storm, turn.at_ms, self.partitions)
        limits = self.limits or self.rules.view_for(result.state).storm
        guarded, more = guard_turn(self.storm, result.state, result.transitions, limits, self.partitions)
        self.states[conversation] = result.state
        if self.restart:
            self.states[conversation] = ConversationState.from_json(result.state.to_json())
            self.storm = StormState.from_json(self.storm.to_json())
        self.told += guarded
        self.notices += notices + more
        return guarded


def marks(told: list[Transition]) -> list[bool]:
    return [t.storm_id is not None for t in told if t.action == "opened"]


def test_alerts_above_the_limit_are_marked_and_told_of_not_dropped() -> None:
    place = Partition()
    for number in range(5):
        place.turn(f"c{number}", number)
    assert [t.action for t in place.told] == ["opened"] * 5
    assert marks(place.told) == [False, False, True, True, True]
    [notice] = place.notices
    assert (notice.action, notice.storm.held_back, notice.storm.limits) == ("opened", 1, {"tenant": 2})
    assert {t.storm_id for t in place.told[2:]} == {notice.storm.storm_id}


def test_without_a_limit_nothing_is_marked() -> None:
    place = Partition("{max_open_per_tenant_per_minute: null}")
    for number in range(300):
        place.turn(f"c{number}", number / 10)
    assert not any(marks(place.told))
    assert place.notices == []


def test_two_hundred_a_minute_is_the_limit_where_the_file_names_none() -> None:
    assert parse_rules(RULES).default.storm == StormLimits(200, None, None)


def test_every_minute_of_event_time_has_a_budget_of_its_own() -> None:
    place = Partition()
    for number, at_s in enumerate((0, 1, 2, 60, 61, 62)):
        place.turn(f"c{number}", at_s)
    assert marks(place.told) == [False, False, True, False, False, True]


def test_a_storm_is_summed_up_after_each_of_its_minutes_and_ends_after_a_quiet_one() -> None:
    place = Partition()
    for number, at_s in enumerate((0, 1, 2, 3, 60, 61, 62, 120)):
        place.turn(f"c{number}", at_s)
    place.turn("c0", 179, 0.0)
    place.turn("c0", 180, 0.0)
    assert [(n.action, n.storm.revision, n.storm.held_back) for n in place.notices] == [
        ("opened", 1, 1),
        ("updated", 2, 2),
        ("updated", 3, 3),
        ("resolved", 4, 3),
    ]
    assert len({n.storm.storm_id for n in place.notices}) == 1
    resolved = place.notices[-1].storm
    assert resolved.rules == {"bad": 3}
    assert resolved.severities == {"error": 3}
    assert resolved.severity == "error"
    assert len(resolved.sample) == 3
    assert place.storm.storm is None


def test_a_storm_counts_all_and_names_some() -> None:
    place = Partition("{max_open_per_tenant_per_minute: 1}")
    for number in range(30):
        place.turn(f"c{number}", number)
    assert place.storm.storm is not None
    assert (place.storm.storm.held_back, len(place.storm.storm.sample)) == (29, 20)


def test_a_second_storm_has_an_id_of_its_own() -> None:
    place = Partition()
    for number, at_s in enumerate((0, 1, 2, 240, 241, 242)):
        place.turn(f"c{number}", at_s)
    assert [n.action for n in place.notices] == ["opened", "resolved", "opened"]
    assert place.notices[0].storm.storm_id != place.notices[2].storm.storm_id


def test_safety_is_always_announced_and_spends_no_budget() -> None:
    place = Partition("{max_open_per_tenant_per_minute: 1}")
    for number in range(3):
        place.turn(f"s{number}", number, 0.0, signals=["safety_risk"])
    place.turn("a", 4)
    place.turn("b", 5)
    place.turn("s3", 6, 0.0, signals=["safety_risk"])
    assert [(t.rule_id, t.storm_id is None) for t in place.told] == [
        *[("danger", True)] * 3,
        ("bad", True),
        ("bad", False),
        ("danger", True),
    ]


def test_safety_that_joins_an_equally_grave_rule_of_the_same_message_is_announced() -> None:
    place = Partition("{max_open_per_tenant_per_minute: 1}")
    place.turn("a", 0)
    [opened] = place.turn("b", 1, signals=["safety_risk"])
    assert opened.rule_id == "bad"
    assert set(opened.attached) == {"bad", "danger"}
    assert opened.storm_id is None


def test_safety_that_joins_a_held_back_escalation_announces_it() -> None:
    place = Partition("{max_open_per_tenant_per_minute: 1}")
    place.turn("a", 0)
    assert marks(place.turn("b", 1)) == [True]
    [updated] = place.turn("b", 2, -0.1, signals=["safety_risk"])
    assert (updated.action, updated.storm_id) == ("updated", None)
    [resolved] = place.fold("b", event("ended", BEGIN / 1000 + 4))
    assert (resolved.action, resolved.storm_id) == ("resolved", None)


def test_a_held_back_escalation_is_announced_by_its_first_update_for_which_there_is_room() -> None:
    place = Partition()
    for number in range(4):
        place.turn(f"c{number}", number)
    assert place.states["c3"].escalation is not None
    assert place.states["c3"].escalation.storm_id is not None
    for number in (0, 1):  # two others take the budget of minute two
        place.turn(f"d{number}", 120 + number)
    [reminder] = place.turn("c3", 130)
    assert (reminder.action, reminder.storm_id is not None) == ("updated", True)
    [announced] = place.turn("c3", 251)
    assert (announced.action, announced.revision, announced.storm_id) == ("updated", 3, None)
    place.turn("d2", 252)
    assert marks(place.turn("d3", 253)) == [True]  # the announcement has taken its place in the minute


def test_the_end_of_a_held_back_escalation_is_marked_too() -> None:
    place = Partition("{max_open_per_tenant_per_minute: 1}")
    place.turn("a", 0)
    [opened] = place.turn("b", 1)
    [resolved] = place.turn("b", 2, 0.9)
    assert (resolved.action, resolved.storm_id) == ("resolved", opened.storm_id)
    [again] = [t for at_s in (65, 66) for t in place.turn("b", at_s, -1.0)]
    assert again.storm_id is None


def test_erasure_marks_the_end_of_a_held_back_escalation() -> None:
    place = Partition("{max_open_per_tenant_per_minute: 1}")
    place.turn("a", 0)
    [opened] = place.turn("b", 1)
    [erased] = close(place.states["b"], "erased", START + 60_000, place.rules)
    assert erased.storm_id == opened.storm_id


def test_what_opens_and_is_updated_in_one_step_is_held_back_as_one() -> None:
    place = Partition("{max_open_per_tenant_per_minute: 1}")
    place.turn("a", 0)
    [opened] = place.turn("b", 1)
    plain = replace(opened, storm_id=None)
    after = replace(plain, action="updated", revision=2)
    told, _ = guard_turn(place.storm, place.states["b"], [plain, after], StormLimits(1), 1)
    assert [t.storm_id for t in told] == [opened.storm_id, opened.storm_id]


def test_a_rule_and_a_category_may_have_limits_of_their_own() -> None:
    place = Partition("{max_open_per_rule_per_minute: 1}")
    place.turn("a", 0)
    place.turn("b", 1, 0.0, signals=["legal_threat"])
    place.turn("c", 2)
    assert marks(place.told) == [False, False, True]
    assert place.notices[0].storm.limits == {"rule:bad": 1}

    place = Partition("{max_open_per_category_per_minute: 1}")
    for number, topic in enumerate(("logistics", "quality", "logistics", None, None)):
        place.turn(f"c{number}", number, topics=() if topic is None else (topic,))
    assert marks(place.told) == [False, False, True, False, True]
    assert place.notices[0].storm.limits == {"category:logistics": 1}


def test_a_tenant_may_have_a_limit_of_its_own() -> None:
    rules = parse_rules(
        f"{RULES}suppress: {{max_open_per_tenant_per_minute: 50}}\n"
        "overrides: [{match: {tenant_id: acme}, set: {suppress.max_open_per_tenant_per_minute: 3}}]\n"
    )
    assert rules.view("acme", "web_chat", {}).storm.tenant == 3
    assert rules.view("other", "web_chat", {}).storm.tenant == 50
    with pytest.raises(ConfigurationError, match=r"max_open_per_tenant_per_minute"):
        parse_rules(
            f"{RULES}overrides: [{{match: {{tenant_id: acme}}, set: {{suppress.max_open_per_tenant_per_minute: 0}}}}]"
        )
    with pytest.raises(ConfigurationError, match="a path starts with"):
        parse_rules(f"{RULES}overrides: [{{match: {{tenant_id: acme}}, set: {{suppress: 3}}}}]")


def test_partitions_share_a_limit_and_each_has_one_at_least() -> None:
    assert [share_of(200, 12), share_of(200, 1), share_of(3, 12)] == [17, 200, 1]
    place = Partition("{max_open_per_tenant_per_minute: 4}", partitions=2)
    for number in range(4):
        place.turn(f"c{number}", number)
    assert marks(place.told) == [False, False, True, True]


def test_a_late_minute_counts_where_there_is_still_a_count() -> None:
    place = Partition("{max_open_per_tenant_per_minute: 1}")
    for minute in range(REMEMBERED_MINUTES + 4):
        place.turn(f"c{minute}", minute * 60)
    assert len(place.storm.minutes) == REMEMBERED_MINUTES
    assert not any(marks(place.told))
    assert marks(place.turn("late", 0)) == [True]  # in the budget of the oldest minute that is remembered
    assert marks(place.turn("same", (REMEMBERED_MINUTES + 3) * 60 + 1)) == [True]


def test_a_state_of_the_version_before_is_read() -> None:
    place = Partition()
    place.turn("a", 0)
    stored = orjson.loads(place.states["a"].to_json())
    assert "storm_id" not in stored["escalation"]
    state = ConversationState.from_json(orjson.dumps(stored))
    assert state.escalation is not None
    assert state.escalation.storm_id is None


@pytest.mark.parametrize(
    "stored", [b"{", b"[]", b'{"schema": 9}', b'{"schema":1,"tenant_id":"a","minutes":{"x":{}},"storm":null}']
)
def test_what_is_no_storm_state_is_refused(stored: bytes) -> None:
    with pytest.raises(StateUnreadable):
        StormState.from_json(stored)


def test_the_reason_is_one_sentence_in_both_languages() -> None:
    place = Partition("{max_open_per_tenant_per_minute: 24, max_open_per_rule_per_minute: 12}", partitions=12)
    place.turn("a", 0)
    place.turn("b", 1)
    place.turn("q", 200, 0.0)
    opened, resolved = place.notices
    assert notice_reason(opened, "en") == (
        "Alerts came faster than the limit (12 a minute for rule bad over 12 partitions): 1 is marked, not announced."
    )
    assert notice_reason(resolved, "en").endswith("The storm is over.")
    assert (
        notice_reason(opened, "zh")
        == "告警超出上限（规则 bad 每分钟 12 条）（由 12 个分区分摊），已有 1 条仅标记、未单独通知。"
    )
    assert notice_reason(resolved, "zh").endswith("告警风暴已结束。")


turns = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(0, 400),
        st.sampled_from([-0.9, -0.9, 0.9, 0.0]),
        st.sampled_from([(), (), ("safety_risk",), ("legal_threat",)]),
    ),
    max_size=60,
)


def play(said: list[tuple[int, int, float, tuple[str, ...]]], restart: bool = False, limit: int = 2) -> Partition:
    place = Partition(restart=restart)
    place.limits = StormLimits(limit)
    for number, (who, at_s, value, signals) in enumerate(said):
        place.fold(f"c{who}", customer(f"m{number}", BEGIN / 1000 + at_s, value, signals=signals))
    return place


@given(turns)
@settings(max_examples=120, deadline=None)
def test_the_guard_changes_no_decision_and_announces_no_more_than_the_limit(said: Any) -> None:
    guarded, free = play(said), play(said, limit=1_000_000)
    assert [replace(t, storm_id=None) for t in guarded.told] == free.told
    announced: dict[int, int] = {}
    seen: set[str] = set()
    for t in guarded.told:
        if t.storm_id is None and not t.exempt and t.action != "resolved" and t.escalation_id not in seen:
            minute = t.at_ms // MINUTE_MS
            announced[minute] = announced.get(minute, 0) + 1
        if t.storm_id is None:
            seen.add(t.escalation_id)
        if t.exempt:
            assert t.storm_id is None
    assert all(count <= 2 for count in announced.values())
    held_back = sum(t.action == "opened" and t.storm_id is not None for t in guarded.told)
    told_of = {n.storm.storm_id: n.storm.held_back for n in guarded.notices}
    if guarded.storm.storm is not None:
        told_of[guarded.storm.storm.storm_id] = guarded.storm.storm.held_back
    assert sum(told_of.values()) == held_back


@given(turns)
@settings(max_examples=120, deadline=None)
def test_a_restart_after_every_turn_changes_no_mark_and_no_notice(said: Any) -> None:
    kept, restarted = play(said), play(said, restart=True)
    assert restarted.told == kept.told
    assert restarted.notices == kept.notices
    assert restarted.storm.to_json() == kept.storm.to_json()


@given(turns)
@settings(max_examples=120, deadline=None)
def test_storms_are_told_in_order_one_at_a_time(said: Any) -> None:
    current, revision = None, 0
    for notice in play(said, limit=1).notices:
        if notice.action == "opened":
            assert current is None
            assert notice.storm.revision == 1
            current = notice.storm.storm_id
        else:
            assert notice.storm.storm_id == current
            assert notice.storm.revision == revision + 1
            if notice.action == "resolved":
                current = None
        revision = notice.storm.revision


def test_the_guard_asks_nothing_of_what_was_announced_before() -> None:
    place = Partition("{max_open_per_tenant_per_minute: 1}")
    [opened] = place.turn("a", 0)
    updated = replace(opened, action="updated", revision=2)
    assert guard(place.storm, updated, None, StormLimits(1), 1) == (updated, None, [])


def test_the_counts_begin_with_the_first_alert() -> None:
    place = Partition()
    place.turn("a", 0, 0.0)
    assert place.storm.minutes == {}
    place.turn("a", 1)
    assert list(place.storm.minutes) == [FIRST]
