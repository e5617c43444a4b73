"""What holds for every conversation, whatever people write and in whatever order it arrives."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from turn_builders import START, WHO, any_turn, customer

from stream_sentiment.conversation import ConversationState, Outcome, StateOptions, Turn, fold
from stream_sentiment.conversation.state import GAIN, KEEP, SCORE
from stream_sentiment.escalation import Transition, advance, tick
from stream_sentiment.escalation.evidence import contributions, evidence_of
from stream_sentiment.escalation.rules import RuleView, parse_rules
from stream_sentiment.escalation.severity import RANK

RULES = parse_rules(
    """
version: 1
defaults: {cooldown: 5m, renotify_every: 10m, skip_first_messages: 1, close: {rolling_score: -0.05, for_messages: 1}}
rules:
  - id: sustained
    when: {rolling_score: {open: -0.30, close: 0.0}}
    min_customer_messages: 2
    severity: [{at: -0.30, level: warning}, {at: -0.50, level: error}]
  - {id: pair, when: {streak: {length: 2, min_score: -0.5}}}
  - {id: patient, when: {streak: {length: 1}}, for_messages: 2, severity: info}
  - {id: extreme, when: {message: {emotion: anger, min_probability: 0.95}}, severity: error}
  - {id: human, when: {signal: human_request, phase: with_bot}}
  - {id: safety, when: {signal: safety_risk}, severity: critical, bypass_cooldown: true, until: conversation_end}
  - {id: unanswered, when: {rolling_score: {open: -0.1}, agent_response_gap: 3m}, severity: error}
overrides:
  - {match: {customer_tier: vip}, set: {rules.sustained.when.rolling_score.open: -0.1}}
"""
)

conversations = st.lists(any_turn(), min_size=1, max_size=50)


def run(turns: list[Turn], reload: bool = False) -> tuple[ConversationState, list[Transition]]:
    state, told = None, []
    for turn in turns:
        result = advance(state, turn, WHO, RULES)
        state = ConversationState.from_json(result.state.to_json()) if reload else result.state
        told += result.transitions
    assert state is not None
    return state, told


@given(conversations)
@settings(max_examples=150, deadline=None)
def test_one_escalation_at_most_is_open_and_each_is_told_in_order_to_its_end(turns: list[Turn]) -> None:
    state, told = run(turns)
    open_id, seen, revision, severity = None, set(), 0, "info"
    for t in told:
        if t.action == "opened":
            assert open_id is None
            assert t.escalation_id not in seen
            assert t.revision == 1
            open_id = t.escalation_id
            seen.add(open_id)
            severity = t.severity
        else:
            assert t.escalation_id == open_id
            assert t.revision == revision + 1
            assert RANK[t.severity] >= RANK[severity]
            severity = t.severity
            if t.action == "resolved":
                assert t.resolution is not None
                assert t.attached == ()
                open_id = None
        revision = t.revision
    assert (state.escalation is not None and state.escalation.status == "open") is (open_id is not None)
    if open_id is not None:
        assert state.escalation.escalation_id == open_id


@given(conversations)
@settings(max_examples=150, deadline=None)
def test_a_reload_after_every_turn_changes_neither_state_nor_transitions(turns: list[Turn]) -> None:
    kept, told = run(turns)
    reloaded, told_again = run(turns, reload=True)
    assert reloaded.to_json() == kept.to_json()
    assert told_again == told


@given(conversations, st.lists(st.integers(0, 400_000), max_size=20))
@settings(max_examples=150, deadline=None)
def test_how_often_a_worker_ticks_changes_nothing(turns: list[Turn], moments: list[int]) -> None:
    ordered = sorted(turns, key=lambda turn: turn.at_ms)
    state, told = run(ordered)
    ticked, told_ticking = None, []
    times = sorted(START + moment * 1000 for moment in moments)
    for turn in ordered:
        while times and times[0] <= turn.at_ms:
            now = times.pop(0)
            if ticked is not None:
                told_ticking += tick(ticked, now, RULES)
        result = advance(ticked, turn, WHO, RULES)
        ticked = result.state
        told_ticking += result.transitions
    assert told_ticking == told
    assert ticked.to_json() == state.to_json()


@given(conversations)
@settings(max_examples=150, deadline=None)
def test_recovered_means_that_the_hysteresis_gap_was_crossed(turns: list[Turn]) -> None:
    alone = parse_rules(
        """
version: 1
defaults: {cooldown: 0, renotify_every: 0, state: {half_life: null}}
rules: [{id: sustained, when: {rolling_score: {open: -0.30, close: 0.05}}, close_for_messages: 2}]
"""
    )
    state, last_two, opened = None, [], 0
    for turn in turns:
        result = advance(state, turn, WHO, alone)
        state = result.state
        if result.outcome is Outcome.EXPIRED_THEN_APPLIED:
            last_two = []
        if (
            turn.kind == "created"
            and turn.score is not None
            and result.outcome not in (Outcome.DUPLICATE, Outcome.LATE)
        ):
            last_two = [*last_two[-1:], state.score]
        for t in result.transitions:
            if t.action == "opened":
                opened += 1
                assert state.score <= -0.30
            if t.resolution == "recovered":
                assert len(last_two) == 2
                assert min(last_two) >= 0.05


@given(conversations)
@settings(max_examples=150, deadline=None)
def test_a_danger_that_is_reported_is_never_lost(turns: list[Turn]) -> None:
    state = None
    for turn in turns:
        result = advance(state, turn, WHO, RULES)
        state = result.state
        reported = turn.kind == "created" and any(signal.name == "safety_risk" for signal in turn.signals)
        if reported and turn.role == "customer" and result.outcome is not Outcome.DUPLICATE:
            assert state.escalation is not None
            assert state.escalation.status == "open"
            assert state.escalation.severity == "critical"


@given(conversations)
@settings(max_examples=150, deadline=None)
def test_evidence_and_remainder_sum_to_the_rolling_score(turns: list[Turn]) -> None:
    for t in run(turns)[1]:
        assert sum(item.contribution for item in t.evidence) + t.remainder == pytest.approx(t.score, abs=1e-12)
        assert len(t.evidence) <= 5
        times = [item.at_ms for item in t.evidence]
        assert times == sorted(times) or t.message_id == t.evidence[-1].message_id


@given(
    st.lists(
        st.tuples(st.floats(-1, 1, allow_subnormal=False), st.sampled_from([0.4, 0.9]), st.integers(0, 4000)),
        min_size=1,
        max_size=25,
    )
)
@settings(max_examples=150, deadline=None)
def test_a_contribution_is_what_the_score_loses_when_the_message_says_nothing(messages: list) -> None:
    """Linear arithmetic: setting one score to 0 moves the rolling score by exactly that message's contribution."""
    at, turns = 0, []
    for place, (value, sure, wait) in enumerate(messages):
        at += wait
        turns.append(customer(f"m{place}", at, value, sure=sure))
    state = whole(turns)
    shares = contributions(state)
    first = len(turns) - len(state.window)
    for place, share in enumerate(shares):
        silent = turns[first + place]._replace(
            score=turns[first + place].score.__class__(
                *((0.0, 0.0, 0.0),), (1.0,), 0.0, messages[first + place][1], "neutral", "neutral", False
            )
        )
        without = whole([*turns[: first + place], silent, *turns[first + place + 1 :]])
        assert state.score - without.score == pytest.approx(share, abs=1e-12)


def whole(turns: list[Turn]) -> ConversationState:
    state = None
    for turn in turns:
        state = fold(state, turn, WHO, StateOptions(ttl_ms=10**12)).state
    return state


def test_contributions_of_constant_weights_are_the_textbook_formula() -> None:
    state = whole([customer(f"m{i}", 0, s) for i, s in enumerate([-1.0, -0.5, 0.5])])
    assert contributions(state) == pytest.approx([0.3 * 0.7**2 * -1.0, 0.3 * 0.7 * -0.5, 0.3 * 0.5])


def test_evidence_is_the_turns_message_and_those_that_pulled_most_in_order_of_time() -> None:
    values = [-0.9, 0.2, -0.9, -0.8, -0.7, -0.9, -0.9, 0.1]
    turns = [customer(f"m{i}", i, value) for i, value in enumerate(values)]
    evidence, remainder = evidence_of(whole(turns), turns[-1])
    assert [item.message_id for item in evidence] == ["m3", "m4", "m5", "m6", "m7"]
    assert evidence[-1].contribution > 0
    assert remainder < 0
    assert [item.message_id for item in evidence_of(whole(turns), None)[0]] == ["m2", "m3", "m4", "m5", "m6"]


def test_a_message_that_spoke_by_its_signal_alone_is_evidence_that_contributes_nothing() -> None:
    from stream_sentiment.conversation import Signal

    turns = [customer(f"m{i}", i, -0.9) for i in range(6)]
    late = customer("late", -7200, None, signals=[Signal("safety_risk", spans=((3, 8),))])
    evidence, _ = evidence_of(whole(turns), late)
    assert [item.message_id for item in evidence] == ["m2", "m3", "m4", "m5", "late"]
    assert (evidence[-1].contribution, evidence[-1].score, evidence[-1].spans) == (0.0, None, ((3, 8),))
    scored = customer("late", -7200, -0.9, signals=["safety_risk"])
    assert evidence_of(whole(turns), scored)[0][-1].label == "negative"
    shares = [e[GAIN] * e[SCORE] * e[KEEP] ** 0 for e in whole(turns).window[-1:]]
    assert contributions(whole(turns))[-1] == pytest.approx(shares[0])


@given(conversations)
@settings(max_examples=100, deadline=None)
def test_skipping_rules_that_cannot_hold_changes_nothing(turns: list[Turn]) -> None:
    """The control looks at every rule for every message, and ticks before every turn."""
    careful = parse_rules(yaml.safe_dump(RULES.raw))
    careful.shortest_gap_ms = careful.shortest_ttl_ms = -inf
    careful.default = everything(careful.default)
    careful.views = {matching: everything(view) for matching, view in careful.views.items()}
    state, told = run(turns)
    other, told_carefully = None, []
    for turn in turns:
        result = advance(other, turn, WHO, careful)
        other, told_carefully = result.state, told_carefully + result.transitions
    assert told_carefully == told
    assert other.to_json() == state.to_json()


def everything(view: RuleView) -> RuleView:
    return replace(view, quiet_rules=view.rules, free_rules=view.rules, ceiling=inf)
