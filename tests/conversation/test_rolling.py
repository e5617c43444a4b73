"""What is read off a state: levels, trends, extremes, the Contact Lens score."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from turn_builders import WHO, agent, customer, event, folded

from stream_sentiment.conversation import StateOptions, fold, level_of, snapshot, trend_of
from stream_sentiment.conversation.rolling import contact_lens_progressive, slope, volatility

# The labels of Amazon's published chat example (thirteen turns each) and the scores that its file shows for them.
AGENT = [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1]
CUSTOMER = [-1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0]


def test_progressive_score_matches_the_published_example_in_all_26_turns() -> None:
    third = 5 / 3
    assert contact_lens_progressive(AGENT) == pytest.approx(
        [0, 0, 0, 0, 0, third, third, third, 0, 0, third, third, 2 * third]
    )
    assert contact_lens_progressive(CUSTOMER) == pytest.approx(
        [-third, -3.75, -3.75, -2.5, 0, 0, 0, 0, 0, 0, third, 3.75, 3.75]
    )


def test_progressive_score_of_the_worked_example() -> None:
    assert contact_lens_progressive([0, -1, -1, 0, 1, 1]) == pytest.approx([0, -5 / 3, -3.75, -3.75, -1.25, 3.75])


def test_progressive_score_extrapolated_to_three_negatives_is_the_lowest_there_is() -> None:
    assert contact_lens_progressive([-1, -1, -1]) == pytest.approx([-5 / 3, -3.75, -5.0])


def test_the_states_progressive_score_counts_runs_that_began_before_the_window() -> None:
    signs = [-1] * 13 + [1, -1]
    state = folded([customer(f"m{i}", i, sign * 0.8) for i, sign in enumerate(signs)], StateOptions(window=3))
    assert snapshot(state).progressive_score == pytest.approx(contact_lens_progressive(signs)[-1])


@given(st.lists(st.sampled_from([-0.8, 0.0, 0.8]), min_size=1, max_size=40))
def test_the_states_progressive_score_is_the_formulas_for_any_history(values: list[float]) -> None:
    state = folded([customer(f"m{i}", i, value) for i, value in enumerate(values)])
    signs = [(value > 0) - (value < 0) for value in values]
    assert snapshot(state).progressive_score == contact_lens_progressive(signs)[-1]


@pytest.mark.parametrize(
    ("score", "level"),
    [
        (-1, 1),
        (-0.6, 1),
        (-0.59, 2),
        (-0.4, 2),
        (-0.39, 3),
        (-0.15, 3),
        (-0.14, 4),
        (0, 4),
        (0.14, 4),
        (0.15, 5),
        *[(0.39, 5), (0.4, 6), (0.59, 6), (0.6, 7), (1, 7)],
    ],
)
def test_levels_are_cut_where_the_documentation_says(score: float, level: int) -> None:
    assert level_of(score) == level


@pytest.mark.parametrize(
    ("shift", "trend"),
    [
        (0.55, "improving"),
        (0.54, "slightly_improving"),
        (0.2, "slightly_improving"),
        (0.19, "no_change"),
        *[(-0.19, "no_change"), (-0.2, "slightly_declining"), (-0.54, "slightly_declining"), (-0.55, "declining")],
    ],
)
def test_trend_classes_are_genesys_scaled_to_one(shift: float, trend: str) -> None:
    assert trend_of(shift) == trend


def test_shift_compares_the_first_three_with_the_last_three_even_when_the_first_have_left_the_window() -> None:
    values = [0.6, 0.3, 0.0] + [0.1] * 9 + [-0.3, -0.6, -0.9]
    shot = snapshot(folded([customer(f"m{i}", i, value) for i, value in enumerate(values)]))
    assert shot.begin_score == pytest.approx(0.3)
    assert shot.end_score == pytest.approx(-0.6)
    assert (shot.shift, shot.trend) == (pytest.approx(-0.45), "slightly_declining")


def test_shift_of_a_short_conversation_compares_its_halves() -> None:
    shot = snapshot(folded([customer("a", 0, -0.8), customer("b", 1, 0.0), customer("c", 2, 0.8)]))
    assert (shot.begin_score, shot.end_score, shot.shift) == (-0.8, 0.8, pytest.approx(0.8))
    assert snapshot(folded([customer("a", 0, -0.8)])).shift == 0.0


def test_a_conversation_without_scored_messages_reads_as_neutral() -> None:
    shot = snapshot(folded([agent("a", 0)]))
    assert (shot.score, shot.level, shot.trend, shot.window_n) == (0.0, 4, "no_change", 0)
    assert (shot.last, shot.lowest, shot.highest, shot.progressive_score, shot.volatility) == (
        None,
        None,
        None,
        0.0,
        0.0,
    )
    assert shot.emotion_mix == {}


def test_extremes_remember_messages_that_left_the_window() -> None:
    values = [0.1, -0.95, 0.9] + [0.0] * 12
    shot = snapshot(folded([customer(f"m{i}", i, value) for i, value in enumerate(values)]))
    assert shot.lowest == (-0.95, "m1")
    assert shot.highest == (0.9, "m2")
    assert shot.last == (0.0, "m14")


def test_mean_slope_and_volatility_of_the_window() -> None:
    shot = snapshot(folded([customer(f"m{i}", i, value) for i, value in enumerate([-0.4, -0.2, 0.0, 0.2])]))
    assert (shot.window_mean, shot.window_n) == (pytest.approx(-0.1), 4)
    assert shot.slope == pytest.approx(0.2)
    assert shot.volatility == pytest.approx(0.05**0.5)
    assert (slope([0.5]), volatility([0.5])) == (0.0, 0.0)


def test_streak_counts_turns_of_one_sign_and_a_neutral_one_ends_it() -> None:
    angry = snapshot(folded([customer(f"m{i}", i, -0.8) for i in range(3)]))
    assert (angry.streak_sign, angry.streak_length) == (-1, 3)
    calm = snapshot(folded([customer("a", 0, -0.8), customer("b", 1, 0.0)]))
    assert (calm.streak_sign, calm.streak_length) == (0, 0)


def test_emotion_mix_is_shares_of_all_scored_messages() -> None:
    state = folded(
        [customer("a", 0, -0.8), customer("b", 1, -0.8, emotion="anxiety"), customer("c", 2, -0.8), customer("d", 3)]
    )
    assert snapshot(state).emotion_mix == {"anger": 0.5, "anxiety": 0.25, "neutral": 0.25}


def test_response_gap_runs_to_the_newest_event() -> None:
    assert snapshot(folded([customer("a", 0, 0.0), customer("b", 90, 0.0)])).agent_response_gap_s == 90.0
    assert snapshot(folded([customer("a", 0, 0.0), agent("b", 90)])).agent_response_gap_s == 0.0


def test_an_opportunity_is_a_happy_customer_who_was_happy_before() -> None:
    once = folded([customer("a", 0, 0.9)])
    assert not snapshot(once).opportunity
    state = folded([customer("a", 0, 0.9), customer("b", 1, 0.9)])
    assert snapshot(state).opportunity
    fold(state, customer("c", 2, 0.0), WHO, StateOptions())
    assert not snapshot(state).opportunity


def test_a_deleted_message_is_no_extreme_any_more() -> None:
    state = folded([customer("a", 0, -0.95), customer("b", 1, -0.2), event("deleted", 2, "a")])
    assert snapshot(state).lowest == (-0.2, "b")
