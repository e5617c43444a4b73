"""What an agent may read of the message behind an alert."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_sentiment.excerpt import MAX_CHARACTERS, excerpt, starred
from stream_sentiment.scoring.text import prepare

PLANTED = [
    "kanarie@example.com",
    "13800138000",
    "+86 138 0013 8000",
    "110101199003074514",
    "4111 1111 1111 1111",
    "JD2026112200817",
    "SF-778-KX21",
    "GB29 NWBK 6016 1331 9268 19",
    "https://shop.example/order/kanarie?token=abc",
    "@kanarie_handle",
    "password=Kanarie99",
    "Bearer kanarie.token.value",
    "482913",
    "京A8K2F9",
    "上海市徐汇区漕溪北路333号",
    "人民路88号3栋402室",
    "17 Canary Wharf Road",
    "SW1A 2AA",
    "我叫金丝雀",
    "收件人:金丝雀",
    "my name is Kara Canary",
]


@pytest.mark.parametrize("secret", PLANTED)
@pytest.mark.parametrize("around", ["{}", "it never came: {} and nobody answers", "快递一直没到,{}。太差了!"])
def test_nothing_personal_that_was_planted_can_be_read(secret: str, around: str) -> None:
    shown = excerpt(around.format(secret)).text
    for word in (secret, secret.lower(), *secret.replace(":", " ").split()):
        if len(word) > 4 and word not in around and word != "Bearer":
            assert word not in shown


@pytest.mark.parametrize("text", ["我叫金丝雀,快递一直没到", "my code is 482913", "17 Canary Wharf Road"])
def test_without_the_masks_it_could_be_read(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert excerpt(text).text != prepare(text).text
    monkeypatch.setattr("stream_sentiment.excerpt.starred", lambda text: text)
    assert excerpt(text).text == prepare(text).text


@pytest.mark.parametrize(
    "text",
    [
        "The charger got so hot that it smokes, I paid 1299 for it!",
        "这已经是第三次了,充电器冒烟,我要投诉到消协",
        "I have been waiting for 3 weeks and 2 days",
    ],
)
def test_ordinary_words_stay_as_they_are(text: str) -> None:
    assert excerpt(text).text == prepare(text).text


def test_a_span_points_at_the_same_words_in_the_excerpt() -> None:
    text = prepare("write to me at kanarie@example.com, order KX-99-1234: I will call my lawyer about this").text
    begin = text.index("my lawyer")
    shown = excerpt(text, [(begin, begin + 9)])
    assert shown.text[begin - shown.begin : begin + 9 - shown.begin] == "my lawyer"
    assert "KX-99" not in shown.text


def test_a_signal_far_into_a_long_message_is_in_the_excerpt() -> None:
    text = prepare("well then " * 60 + "I will call my lawyer now " + "and so on " * 60).text
    begin = text.index("my lawyer")
    shown = excerpt(text, [(begin, begin + 9)])
    assert shown.begin > 0
    assert shown.text[begin - shown.begin :].startswith("my lawyer")
    assert len(shown.text) == MAX_CHARACTERS


def test_a_number_is_masked_before_the_text_is_cut() -> None:
    text = "x" * (MAX_CHARACTERS - 3) + " 482913 and more"
    assert "48" not in excerpt(text).text


@given(st.text(max_size=400), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 30)), max_size=3))
def test_it_is_short_and_keeps_every_place(text: str, spans: list[tuple[int, int]]) -> None:
    prepared = prepare(text).text
    assert len(starred(prepared)) == len(prepared)
    shown = excerpt(prepared, [(begin, begin + length) for begin, length in spans])
    assert len(shown.text) <= MAX_CHARACTERS
    original = prepared[shown.begin : shown.begin + len(shown.text)]
    assert all(a in (b, "*") for a, b in zip(shown.text, original, strict=True))
