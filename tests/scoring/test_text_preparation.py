"""What text preparation does, as a table, and what it never does."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_sentiment.scoring import text as module
from stream_sentiment.scoring.text import prepare


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("  hello \n\t world  ", "hello world"),
        ("ＨＥＬＬＯ，世界！", "HELLO,世界!"),
        ("call 138-1234-5678 now", "call 123 now"),
        ("+86 138 1234 5678", "123"),
        ("order 1234567", "order 123"),
        ("order 123456", "order 123456"),
        ("card 6222 0200 1234 5678", "card 123"),
        ("id 11010519491231002X", "id 123"),
        ("单号１２３４５６７８９", "单号123"),
        ("it cost 10000 yuan", "it cost 10000 yuan"),
        ("write to jo.do+x@mail.example.com please", "write to email please"),
        ("@店小二 在吗", "@user 在吗"),
        ("see https://x.example/a?b=1 or www.y.example", "see http or http"),
        ("soooooooo bad!!!!!!!", "sooo bad!!!"),
        ("退款單號，發貨", "退款单号,发货"),
        ("a\u202eb\u200bc\ufeffd", "abcd"),
        ("a\x00b\x07c", "abc"),
        ("好棒😀😀", "好棒😀😀"),
        ("[SEP] [MASK]", "[SEP] [MASK]"),
        ("", ""),
        ("\u200b", ""),
    ],
)
def test_text_is_prepared_as_the_table_says(given_text: str, expected: str) -> None:
    prepared = prepare(given_text)
    assert prepared.text == expected
    assert not prepared.cut


def test_a_long_text_keeps_its_head_and_its_tail() -> None:
    prepared = prepare("a b " * 1_000 + "middle" + " c d" * 1_000)
    assert prepared.cut
    assert prepared.text.startswith("a b a b")
    assert prepared.text.endswith("c d c d")
    assert "middle" not in prepared.text
    assert len(prepared.text) <= module.HEAD_CHARACTERS + module.TAIL_CHARACTERS + 1


def test_ten_million_characters_cost_no_more_than_the_kept_ones() -> None:
    assert len(prepare("x" * 10_000_000).text) < 10


@given(st.text(max_size=80))
def test_no_control_characters_and_no_outer_white_space_are_left(text: str) -> None:
    prepared = prepare(text).text
    assert prepared == prepared.strip()
    assert not any(unicodedata.category(c) in ("Cc", "Co", "Cs") for c in prepared)


@given(st.text(alphabet=st.sampled_from("快遞單退款，。！？“”—…Ａ１～ab1 😀🤬·é①㈱\u3000"), max_size=40))
def test_the_fast_table_does_what_nfkc_does(text: str) -> None:
    slow = unicodedata.normalize("NFKC", text).translate(module._TO_SIMPLIFIED)
    fast = text.translate(module._TABLE) if module._PLAIN.fullmatch(text) else slow
    assert fast == slow


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_a_plain_text_is_stable_under_nfkc_but_for_full_width_forms(text: str) -> None:
    if module._PLAIN.fullmatch(text):
        widths = {0xFEE0 + code: chr(code) for code in range(0x21, 0x7F)}
        assert text.translate(widths) == unicodedata.normalize("NFKC", text)


def test_every_character_of_the_fast_path_is_one_that_nfkc_leaves_alone_or_narrows() -> None:
    """All of them, not a sample: the set is finite."""
    for code in range(0x110000):
        character = chr(code)
        if module._PLAIN.fullmatch(character) and not 0xFF01 <= code <= 0xFF5E:
            assert unicodedata.normalize("NFKC", character) == character, hex(code)
