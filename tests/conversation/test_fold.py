"""The fold: arithmetic of the rolling score, and what happens to the unusual turn."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from turn_builders import START, WHO, agent, any_turn, customer, event, folded

from stream_sentiment.conversation import ConversationState, Outcome, StateOptions, fold
from stream_sentiment.conversation.state import AT, KEEP, WINDOW_FIELDS, StateUnreadable

TIMELESS = StateOptions(half_life_ms=None)
HOUR = 3600


def test_plain_complaints_in_a_row_take_the_score_down_the_published_steps() -> None:
    scores = [folded([customer(f"m{i}", i, -1.0) for i in range(n)], TIMELESS).score for n in (1, 2, 3, 4)]
    assert scores == pytest.approx([-0.300, -0.510, -0.657, -0.7599])


def test_half_an_hour_of_silence_halves_what_was_there_before_the_next_message_counts() -> None:
    state = folded([customer("a", 0, -1.0), customer("b", 1800, 0.0)])
    assert state.score == pytest.approx(-0.3 * 0.5 * 0.7)


def test_silence_pulls_towards_the_prior_and_a_conversation_starts_there() -> None:
    options = StateOptions(prior=0.2, half_life_ms=1_800_000)
    state = folded([customer("a", 0, 0.2), customer("b", 1800, 0.2)], options)
    assert state.score == pytest.approx(0.2)
    moved = folded([customer("a", 0, -1.0), customer("b", 1800, 0.2)], options)
    # -0.16 after a; half of the way back to 0.2 is 0.02; then 0.7 of that and 0.3 of the new message.
    assert moved.score == pytest.approx(0.7 * (0.2 + (-0.16 - 0.2) / 2) + 0.3 * 0.2)


def test_an_unsure_message_weighs_half() -> None:
    assert folded([customer("a", 0, -1.0, sure=0.54)]).score == pytest.approx(-0.15)
    assert folded([customer("a", 0, -1.0, sure=0.55)]).score == pytest.approx(-0.30)
    assert folded([customer("a", 0, -1.0, sure=0.9, uncertain=True)]).score == pytest.approx(-0.15)


def test_only_customers_move_the_score() -> None:
    spoken = customer("b", 1, -1.0)._replace(role="agent")
    assert folded([customer("a", 0, -1.0), spoken]).score == folded([customer("a", 0, -1.0)]).score


def test_a_repeated_message_changes_nothing_not_even_the_version() -> None:
    turns = [customer("a", 0, -1.0), agent("b", 5), customer("c", 9, 0.4)]
    state = folded(turns)
    before = state.to_json()
    for turn in turns:
        result = fold(state, turn, WHO, StateOptions())
        assert result.outcome is Outcome.DUPLICATE
        assert result.state.to_json() == before


def test_a_message_is_remembered_for_as_many_messages_as_the_options_say() -> None:
    options = StateOptions(remembered_ids=3)
    state = folded([customer(f"m{i}", i, -0.5) for i in range(4)], options)
    assert list(state.recent_ids) == ["m1", "m2", "m3"]
    assert fold(state, customer("m1", 1, -0.5), WHO, options).outcome is Outcome.DUPLICATE
    assert fold(state, customer("m0", 0, -0.5), WHO, options).outcome is Outcome.APPLIED


def test_a_message_older_than_max_lateness_is_counted_and_not_scored() -> None:
    state = folded([customer("a", 2 * HOUR, -1.0)])
    score = state.score
    result = fold(state, customer("b", HOUR - 1, -1.0), WHO, StateOptions())
    assert result.outcome is Outcome.LATE
    assert (state.score, state.scored, state.counts["customer"], state.counts["late"]) == (score, 1, 2, 1)
    assert fold(state, customer("b", HOUR - 1, -1.0), WHO, StateOptions()).outcome is Outcome.DUPLICATE
    assert fold(state, customer("c", HOUR, -1.0), WHO, StateOptions()).outcome is Outcome.APPLIED


@given(st.permutations(range(10)))
@settings(max_examples=50)
def test_messages_out_of_order_give_the_state_that_order_gives_bit_by_bit(order: list[int]) -> None:
    turns = [customer(f"m{i}", 60 * i, [-0.9, 0.1, -0.4, 0.8, -0.7][i % 5], sure=0.5 + i / 20) for i in range(10)]
    in_order, shuffled = folded(turns), folded([turns[i] for i in order])
    for name in ("score", "weight", "run", "window", "emotions", "scored", "last_event_at_ms"):
        assert getattr(shuffled, name) == getattr(in_order, name), name
    assert not shuffled.approximate


def test_a_message_older_than_the_window_is_put_before_it_and_the_state_says_approximate() -> None:
    state = folded([customer(f"m{i}", 10 + i, -0.5) for i in range(11)])
    fold(state, customer("old", 1, 0.9), WHO, StateOptions())
    assert state.approximate
    assert (len(state.window), state.scored) == (10, 12)
    assert [entry[AT] for entry in state.window] == sorted(entry[AT] for entry in state.window)


def test_messages_of_one_moment_keep_the_order_of_arrival() -> None:
    state = folded([customer("b", 5, -1.0), customer("a", 5, 1.0), customer("late", 4, 0.0)])
    assert [entry[0] for entry in state.window] == ["late", "b", "a"]


def test_an_edit_in_the_window_gives_the_state_of_a_conversation_that_said_so_at_once() -> None:
    turns = [customer(f"m{i}", 60 * i, -0.5) for i in range(6)]
    edited = folded([*turns, customer("m3", 900, 0.9, kind="edited")])
    at_once = folded([*turns[:3], customer("m3", 180, 0.9), *turns[4:]])
    for name in ("score", "weight", "run", "window", "emotions", "scored"):
        assert getattr(edited, name) == getattr(at_once, name), name
    assert not edited.approximate


def test_an_edit_of_a_message_that_left_the_window_marks_the_state_approximate() -> None:
    turns = [customer(f"m{i}", i, -0.5) for i in range(12)]
    state = folded(turns)
    score = state.score
    result = fold(state, customer("m0", 20, 0.9, kind="edited"), WHO, StateOptions())
    assert (result.outcome, state.score, state.approximate) == (Outcome.APPROXIMATE, score, True)


def test_an_edit_that_overtakes_its_message_stands_for_it() -> None:
    state = folded([customer("a", 0, 0.0)])
    assert fold(state, customer("b", 9, -0.8, kind="edited"), WHO, StateOptions()).outcome is Outcome.APPLIED
    assert fold(state, customer("b", 8, 0.8), WHO, StateOptions()).outcome is Outcome.DUPLICATE
    assert state.window[-1][2] == -0.8


def test_an_edit_of_a_message_that_may_have_been_forgotten_is_not_counted_twice() -> None:
    options = StateOptions(remembered_ids=3, window=2)
    state = folded([customer(f"m{i}", i, -0.5) for i in range(5)], options)
    result = fold(state, customer("m0", 9, -0.9, kind="edited"), WHO, options)
    assert (result.outcome, state.scored, state.approximate) == (Outcome.UNKNOWN_MESSAGE, 5, True)


def test_the_newer_of_two_edits_wins_whatever_their_order_and_a_repeated_edit_is_a_duplicate() -> None:
    state = folded([customer("a", 0, 0.0)])
    newer, older = customer("a", 20, -0.8, kind="edited"), customer("a", 10, 0.8, kind="edited")
    assert fold(state, newer, WHO, StateOptions()).outcome is Outcome.APPLIED
    before = state.to_json()
    assert fold(state, older, WHO, StateOptions()).outcome is Outcome.DUPLICATE
    assert fold(state, newer, WHO, StateOptions()).outcome is Outcome.DUPLICATE
    assert state.to_json() == before


def test_an_edit_can_take_a_score_away_or_bring_the_first_one() -> None:
    state = folded([customer("a", 0, -0.8), customer("b", 1, -0.8)])
    fold(state, customer("b", 5, None, kind="edited"), WHO, StateOptions())
    assert [entry[0] for entry in state.window] == ["a"]
    picture = folded([customer("a", 0, None, skipped_reason="unsupported_content_type")])
    assert picture.scored == 0
    assert fold(picture, customer("a", 3, None, kind="edited"), WHO, StateOptions()).outcome is Outcome.APPLIED
    fold(picture, customer("a", 5, -0.8, kind="edited"), WHO, StateOptions())
    assert picture.score == pytest.approx(-0.24)


def test_an_agents_edit_changes_no_score() -> None:
    state = folded([customer("a", 0, -0.8), agent("b", 1)])
    score = state.score
    assert fold(state, event("edited", 3, "b", role="agent"), WHO, StateOptions()).outcome is Outcome.APPLIED
    assert state.score == score


def test_a_deletion_gives_the_state_of_a_conversation_that_never_said_it() -> None:
    turns = [customer("a", 0, -0.5), customer("b", 60, -0.9, emotion="anxiety"), customer("c", 120, 0.5)]
    state = folded([*turns, event("deleted", 130, "b")])
    never = folded([turns[0], turns[2]])
    for name in ("score", "weight", "run", "window", "emotions", "scored"):
        assert getattr(state, name) == getattr(never, name), name
    assert fold(state, event("deleted", 130, "b"), WHO, StateOptions()).outcome is Outcome.DUPLICATE
    assert fold(state, customer("b", 140, 0.9, kind="edited"), WHO, StateOptions()).outcome is Outcome.DUPLICATE


def test_a_deletion_that_overtakes_its_message_keeps_it_out() -> None:
    state = folded([customer("a", 0, 0.0)])
    assert fold(state, event("deleted", 9, "b"), WHO, StateOptions()).outcome is Outcome.UNKNOWN_MESSAGE
    assert fold(state, customer("b", 8, -0.9), WHO, StateOptions()).outcome is Outcome.DUPLICATE
    assert not state.approximate


def test_deletions_that_cannot_be_undone_mark_the_state_approximate() -> None:
    left_window = folded([customer(f"m{i}", i, -0.5) for i in range(12)])
    assert fold(left_window, event("deleted", 20, "m0"), WHO, StateOptions()).outcome is Outcome.APPROXIMATE
    assert left_window.approximate
    options = StateOptions(remembered_ids=2, window=2)
    forgotten = folded([customer(f"m{i}", i, -0.5) for i in range(4)], options)
    assert fold(forgotten, event("deleted", 20, "m0"), WHO, options).outcome is Outcome.UNKNOWN_MESSAGE
    assert forgotten.approximate
    agents = folded([customer("a", 0, -0.5), agent("b", 1)])
    assert fold(agents, event("deleted", 20, "b"), WHO, StateOptions()).outcome is Outcome.APPLIED
    assert not agents.approximate


def test_a_gap_as_long_as_the_ttl_starts_a_new_state_and_hands_the_old_one_over() -> None:
    state = folded([customer("a", 0, -1.0)])
    result = fold(state, customer("b", 24 * HOUR, -1.0), WHO, StateOptions())
    assert (result.outcome, result.expired) == (Outcome.EXPIRED_THEN_APPLIED, state)
    assert (result.state.scored, result.state.state_version) == (1, 2)
    kept = fold(folded([customer("a", 0, -1.0)]), customer("b", 24 * HOUR - 1, -1.0), WHO, StateOptions())
    assert (kept.outcome, kept.state.scored) == (Outcome.APPLIED, 2)


def test_an_edit_or_the_end_after_the_ttl_still_belongs_to_the_old_state() -> None:
    state = folded([customer("a", 0, -1.0)])
    assert fold(state, event("ended", 25 * HOUR), WHO, StateOptions()).expired is None
    assert state.status == "ended"


def test_a_customer_who_writes_after_the_end_reopens_the_conversation() -> None:
    state = folded([customer("a", 0, -1.0), event("ended", 10)])
    assert (state.status, state.waiting_since_ms) == ("ended", None)
    fold(state, customer("before", 5, 0.0), WHO, StateOptions())
    assert state.status == "ended"
    fold(state, customer("b", 11, 0.0), WHO, StateOptions())
    assert (state.status, state.ended_at_ms) == ("active", None)


def test_an_end_that_the_customer_has_overtaken_does_not_end() -> None:
    state = folded([customer("a", 0, -1.0), customer("b", 20, 0.0)])
    assert fold(state, event("ended", 10), WHO, StateOptions()).outcome is Outcome.LATE
    assert state.status == "active"
    assert fold(state, event("ended", 10), WHO, StateOptions()).outcome is Outcome.DUPLICATE


def test_the_customer_waits_from_the_first_unanswered_message_until_an_agent_answers() -> None:
    waiting = folded([agent("hello", 0), customer("a", 10, 0.0), customer("b", 20, 0.0)])
    assert waiting.waiting_since_ms == START + 10_000
    assert folded([customer("a", 10, 0.0), agent("x", 30)]).waiting_since_ms is None
    assert folded([customer("a", 10, 0.0), agent("x", 30, "system")]).waiting_since_ms == START + 10_000


def test_an_answer_out_of_order_leaves_those_waiting_who_wrote_after_it() -> None:
    state = folded([customer("a", 10, 0.0), customer("b", 30, 0.0), agent("x", 20)])
    assert state.waiting_since_ms == START + 30_000
    answered_before = folded([agent("x", 20), customer("a", 10, 0.0)])
    assert answered_before.waiting_since_ms is None


def test_a_bot_answers_only_while_it_is_in_charge() -> None:
    with_bot = folded([agent("hi", 0, "bot"), customer("a", 10, 0.0), agent("x", 11, "bot")])
    assert (with_bot.phase, with_bot.waiting_since_ms) == ("with_bot", None)
    with_agent = folded([agent("hi", 0), customer("a", 10, 0.0), agent("x", 11, "bot")])
    assert (with_agent.phase, with_agent.waiting_since_ms) == ("with_agent", START + 10_000)


def test_phase_follows_the_transfer_of_the_latest_event_time() -> None:
    state = folded([event("started", 0, phase="with_bot"), event("transferred", 20, phase="with_agent")])
    assert state.phase == "with_agent"
    assert fold(state, event("transferred", 10, phase="with_bot"), WHO, StateOptions()).outcome is Outcome.APPLIED
    assert state.phase == "with_agent"
    assert fold(state, event("transferred", 20, phase="with_agent"), WHO, StateOptions()).outcome is Outcome.DUPLICATE
    late = fold(state, event("transferred", -2 * HOUR, phase="with_bot"), WHO, StateOptions())
    assert (late.outcome, state.phase) == (Outcome.LATE, "with_agent")
    early = folded([customer("a", 10, 0.0), event("started", 0)])
    assert early.started_at_ms == START


def test_an_agent_who_speaks_is_there_unless_a_later_transfer_said_otherwise() -> None:
    state = folded([event("transferred", 20, phase="with_bot"), agent("x", 10)])
    assert state.phase == "with_bot"
    assert folded([event("transferred", 5, phase="with_bot"), agent("x", 10)]).phase == "with_agent"


def test_attributes_that_rules_and_alerts_use_are_kept_and_others_are_not() -> None:
    state = folded([customer("a", 0, 0.0, attributes={"customer_tier": "vip", "mood": "x", "queue": "q"})])
    assert state.attributes == {"queue": "q", "customer_tier": "vip"}
    fold(state, event("transferred", 1, attributes={"queue": "complaints"}), WHO, StateOptions())
    assert state.attributes["queue"] == "complaints"


def test_signals_count_messages_that_carry_them_once_each() -> None:
    state = folded([customer("a", 0, 0.0, signals=["thanks", "thanks"]), customer("b", 1, 0.0, signals=["thanks"])])
    assert state.signals == {"thanks": 2}


def test_the_language_is_the_customers_last_one() -> None:
    assert folded([customer("a", 0, 0.0, language="zh-CN"), customer("b", 1, 0.0)]).language == "zh-CN"


def test_a_smaller_window_after_a_reload_keeps_the_score() -> None:
    state = folded([customer(f"m{i}", i, -0.5) for i in range(8)])
    fold(state, customer("m8", 8, -0.5), WHO, StateOptions(window=3))
    assert len(state.window) == 3
    assert state.score == pytest.approx(folded([customer(f"m{i}", i, -0.5) for i in range(9)]).score)


def test_the_stored_form_is_json_with_its_schema_number_and_named_window_fields() -> None:
    state = folded([customer("a", 0, -0.5)])
    stored = orjson.loads(state.to_json())
    assert (stored["schema"], stored["tenant_id"], stored["conversation_id"]) == (1, "acme", "c-1")
    assert dict(zip(WINDOW_FIELDS, stored["window"][0], strict=True)) == {
        "message_id": "a",
        "at_ms": START,
        "score": -0.5,
        "label": "negative",
        "emotion": "anger",
        "weight": 1.0,
        "gain": 0.3,
        "keep": state.window[0][KEEP],
    }


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"nonsense", b'{"schema": 2}', b'{"schema": 1}', b"\xff"])
def test_bytes_that_are_no_state_are_refused_with_one_error(data: bytes) -> None:
    with pytest.raises(StateUnreadable):
        ConversationState.from_json(data)


@given(st.lists(any_turn(), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_crash_and_a_reload_after_every_turn_end_in_the_same_bytes(turns: list) -> None:
    kept = reloaded = None
    for turn in turns:
        kept = fold(kept, turn, WHO, StateOptions()).state
        result = fold(reloaded, turn, WHO, StateOptions())
        reloaded = ConversationState.from_json(result.state.to_json())
        assert reloaded == result.state
        assert reloaded.to_json() == kept.to_json()


@given(st.lists(any_turn(), min_size=1, max_size=30), st.data())
@settings(max_examples=100, deadline=None)
def test_delivering_the_newest_turn_again_never_changes_a_byte(turns: list, data: st.DataObject) -> None:
    state = None
    for turn in turns:
        state = fold(state, turn, WHO, StateOptions()).state
        if data.draw(st.booleans()):
            before = state.to_json()
            again = fold(state, turn, WHO, StateOptions())
            assert again.outcome is Outcome.DUPLICATE
            assert state.to_json() == before


@given(st.lists(any_turn(), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_whatever_comes_the_state_keeps_its_invariants(turns: list) -> None:
    state, version = None, 0
    for turn in turns:
        result = fold(state, turn, WHO, StateOptions())
        state = result.state
        if state.base is None:
            assert state.scored == len(state.window)
        assert -1 - 1e-9 <= state.score <= 1 + 1e-9
        assert 0 <= state.weight <= 1 + 1e-9
        assert len(state.window) <= 10
        assert len(state.recent_ids) <= 32
        assert len(state.revisions) <= 8
        times = [entry[AT] for entry in state.window]
        assert times == sorted(times)
        assert sum(state.emotions.values()) == state.scored
        if result.outcome is Outcome.DUPLICATE:
            assert state.state_version == version
        else:
            assert state.state_version == version + 1
        version = state.state_version


@given(st.lists(any_turn(), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
def test_the_score_can_be_folded_again_from_base_and_window(turns: list) -> None:
    state = folded(turns)
    value = 0.0 if state.base is None else state.base["score"]
    for _, _, one, _, _, _, gain, keep in state.window:
        value = keep * value + gain * one
    assert value == pytest.approx(state.score, abs=1e-12)


def test_intensity_scales_a_message_only_where_options_and_model_have_it() -> None:
    strong, mild, none = (customer("a", 0, -0.9) for _ in range(3))
    strong = strong._replace(score=replace(strong.score, intensity=3.4))
    mild = mild._replace(score=replace(mild.score, intensity=1.0))
    using = StateOptions(use_intensity=True)
    assert folded([strong], using).score == pytest.approx(-0.27)
    assert folded([mild], using).score == pytest.approx(-0.09)
    assert folded([none], using).score == pytest.approx(-0.27)
    assert folded([mild]).score == pytest.approx(-0.27)
    edited = folded([strong, customer("a", 5, -0.9, kind="edited")._replace(score=mild.score)], using)
    assert edited.window[0][2] == pytest.approx(-0.3)
    assert (
        fold(edited, customer("a", 5, -0.9, kind="edited")._replace(score=mild.score), WHO, using).outcome
        is Outcome.DUPLICATE
    )
