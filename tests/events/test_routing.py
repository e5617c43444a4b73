"""Which text the model reads, and why some are skipped."""

from __future__ import annotations

from typing import Any

import pytest

from stream_sentiment.events.incoming import Decoded, SkippedReason, decode
from stream_sentiment.events.routing import Routed, RoutingOptions, guess_language, route
from stream_sentiment.testing.events import chat_message, encode, review


def routed(options: RoutingOptions | None = None, **fields: Any) -> Routed:
    decoded = decode("chat", encode(chat_message(**fields)), {}, 1 << 20)
    assert isinstance(decoded, Decoded)
    return route(decoded, options or RoutingOptions())


def test_a_customers_text_is_scored_in_its_language() -> None:
    assert routed(text="退款呢") == Routed("退款呢", "zh", None, False)
    assert routed(text="Where is it?") == Routed("Where is it?", "en", None, False)


@pytest.mark.parametrize("role", ["agent", "bot", "system", "supervisor"])
def test_nobody_but_the_customer_is_scored(role: str) -> None:
    assert routed(role=role) == Routed(None, "", None, False)


@pytest.mark.parametrize("text", ["", " ", "\n\t  \u3000"])
def test_blank_text_is_skipped(text: str) -> None:
    assert routed(text=text).skipped is SkippedReason.EMPTY_TEXT


def test_pictures_are_skipped_and_markdown_is_text() -> None:
    assert routed(content_type="image/png", text=None).skipped is SkippedReason.UNSUPPORTED_CONTENT_TYPE
    assert routed(content_type="text/markdown; charset=utf-8", text="**bad**").text == "**bad**"


@pytest.mark.parametrize("language", ["de", "fr-CA", "ja", "nonsense!"])
def test_a_language_that_the_model_cannot_read_is_skipped(language: str) -> None:
    assert routed(language=language).skipped is SkippedReason.LANGUAGE_UNSUPPORTED


@pytest.mark.parametrize("language", ["zh-CN", "zh_TW", "EN-us", "zh-Hant-HK"])
def test_a_region_or_script_does_not_matter(language: str) -> None:
    assert routed(language=language).skipped is None


def test_long_text_is_cut_and_marked() -> None:
    result = routed(text="x" * 10_001)
    assert result.text == "x" * 10_000
    assert result.truncated
    assert not routed(text="x" * 10_000).truncated


def test_the_tenants_default_language_stands_for_events_that_name_none() -> None:
    assert routed(RoutingOptions(default_language="fr"), text="bonjour").skipped is SkippedReason.LANGUAGE_UNSUPPORTED


def test_a_reviews_title_is_part_of_its_text() -> None:
    decoded = decode("review", encode(review("Broke.", title="Never again")), {}, 1 << 20)
    assert isinstance(decoded, Decoded)
    assert route(decoded, RoutingOptions()).text == "Never again\nBroke."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("hello", "en"),
        ("退款什么时候到", "zh"),
        ("这个 size 太小了", "zh"),
        ("order 123 还没到", "zh"),
        ("café très bien", "en"),
        ("こんにちは、注文が届きません", "ja"),
        ("안녕하세요 주문이", "ko"),
        ("где мой заказ", "ru"),
        ("😡😡😡", "en"),
    ],
)
def test_the_language_is_guessed_from_the_script(text: str, language: str) -> None:
    assert guess_language(text) == language
