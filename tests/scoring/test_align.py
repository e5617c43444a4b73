"""Every prepared character knows where in the original it comes from."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream_sentiment.scoring.align import prepare_aligned
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.scoring.text import prepare

PIECES = st.sampled_from(
    [
        *(
            "a",
            "Ｆ",
            "ﬁ",
            "é",
            "e\u0301",
            "\u200b",
            "貨",
            "物",
            "!",
            "!!!!!!",
            " ",
            "\n ",
            "@bob",
            "a@b.cn",
            "https://x.y/z",
        ),
        *(
            "www.a.b",
            "138 0013 8000",
            "+86 13800138000",
            "7",
            "😡",
            "👍🏽",
            "\ufeff",
            "各",
            "\uac00",
            "\u1100\u1161",
            "ｶﾞ",
        ),
        *("㍿", "．", "x\u0323\u0307"),
    ]
)


@settings(max_examples=400)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=20).map("".join)))
@example("x" * 3000)
@example("\u0344\u0308")
def test_it_is_the_same_text_and_the_spans_lie_in_the_original(text: str) -> None:
    prepared, spans = prepare_aligned(text)
    assert prepared == prepare(text).text
    assert len(spans) == len(prepared)
    assert all(0 <= begin <= end <= len(text) for begin, end in spans)
    assert all(one[0] <= two[0] and one[1] <= two[1] for one, two in pairwise(spans))


def covered(text: str, prepared_part: str) -> str:
    prepared, spans = prepare_aligned(text)
    at = prepared.index(prepared_part)
    return text[spans[at][0] : spans[at + len(prepared_part) - 1][1]]


@pytest.mark.parametrize(
    ("text", "part", "original"),
    [
        ("see https://shop.example/a?b=1 please", "http", "https://shop.example/a?b=1"),
        ("call 138-0013-8000 now", "123", "138-0013-8000"),
        ("call 138-0013-8000 now", "now", "now"),
        ("soooooooo late", "late", "late"),
        ("soooooooo late", "sooo", "soooooooo"),
        ("我的貨物壞了", "坏了", "壞了"),
        ("ｗｏｗ  ok", "wow", "ｗｏｗ"),
        ("the\u200b ﬁrst", "first", "ﬁrst"),
        ("cafe\u0301 bad", "café", "cafe\u0301"),
        ("@anna_b hello", "@user", "@anna_b"),
    ],
)
def test_a_part_of_the_prepared_text_points_at_what_was_written(text: str, part: str, original: str) -> None:
    assert covered(text, part) == original


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=20).map("".join)))
def test_units_are_disjoint_and_hold_every_token(text: str) -> None:
    scorer = _scorer()
    ids, units = scorer.units(text)
    assert ids == scorer.tokenize([text])[0].ids
    assert all(0 <= unit.begin <= unit.end <= len(text) for unit in units)
    assert all(one.end <= two.begin for one, two in pairwise(units))
    assert sorted(place for unit in units for place in unit.places) == list(range(1, len(ids) - 1))


def test_the_middle_of_a_long_text_has_units_without_places(scorer: OnnxScorer) -> None:
    words = " ".join(f"w{number}" for number in range(200))
    ids, units = scorer.units(words)
    assert len(ids) == scorer.info.max_length
    unread = [words[unit.begin : unit.end] for unit in units if not unit.places]
    assert unread
    assert "w0" not in unread
    assert "w199" not in unread


_LOADED: list[OnnxScorer] = []


def _scorer() -> OnnxScorer:
    if not _LOADED:
        _LOADED.append(OnnxScorer.load(device="cpu"))
    return _LOADED[0]
