"""The arrival window and the micro-batches inside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_sentiment.batching import ArrivalWindow, plan_micro_batches

lengths = st.lists(st.integers(1, 96), max_size=200)


def window(**changes: float) -> ArrivalWindow[int]:
    settings = {"max_events": 3, "max_bytes": 100, "max_wait": 0.5} | changes
    return ArrivalWindow(int(settings["max_events"]), int(settings["max_bytes"]), settings["max_wait"])


def test_an_empty_window_is_never_due() -> None:
    assert window().trigger(1e9) is None
    assert window().remaining(0.0) is None


def test_a_window_is_due_by_events() -> None:
    w = window()
    for item in (1, 2):
        w.add(item, 1, now=0.0)
    assert w.trigger(0.0) is None
    assert w.room == 1
    w.add(3, 1, now=0.0)
    assert w.trigger(0.0) == "size"
    assert w.room == 0
    assert w.take() == [1, 2, 3]
    assert len(w) == 0


def test_a_window_is_due_by_bytes() -> None:
    w = window()
    w.add(1, 100, now=0.0)
    assert w.trigger(0.0) == "size"
    assert w.room == 0


def test_a_window_is_due_when_its_oldest_event_has_waited() -> None:
    w = window()
    w.add(1, 1, now=10.0)
    w.add(2, 1, now=10.4)
    assert w.trigger(10.49) is None
    assert w.remaining(10.4) == pytest.approx(0.1)
    assert w.trigger(10.5) == "time"


def test_the_wait_begins_anew_with_the_next_window() -> None:
    w = window()
    w.add(1, 1, now=0.0)
    w.take()
    assert w.trigger(9.0) is None
    w.add(2, 1, now=9.0)
    assert w.trigger(9.4) is None


@given(lengths, st.integers(1, 1024))
def test_every_text_is_in_one_micro_batch(texts: list[int], budget: int) -> None:
    planned = [index for batch in plan_micro_batches(texts, budget) for index in batch]
    assert sorted(planned) == list(range(len(texts)))


@given(lengths, st.integers(1, 1024))
def test_a_padded_micro_batch_keeps_the_budget_unless_it_is_one_text(texts: list[int], budget: int) -> None:
    for batch in plan_micro_batches(texts, budget):
        assert len(batch) == 1 or max(texts[index] for index in batch) * len(batch) <= budget


@given(lengths, st.integers(1, 1024))
def test_texts_of_like_length_lie_together(texts: list[int], budget: int) -> None:
    order = [texts[index] for batch in plan_micro_batches(texts, budget) for index in batch]
    assert order == sorted(order, reverse=True)


def test_sorting_is_what_saves_the_padding() -> None:
    """The control: the same texts in the order of arrival pay for three times as many tokens."""
    texts = [5, 64] * 64
    sorted_cost = sum(max(texts[i] for i in batch) * len(batch) for batch in plan_micro_batches(texts, 512))
    unsorted_cost = 64 * len(texts)
    assert sorted_cost == 64 * 64 + 64 * 5
    assert unsorted_cost == 8192
