"""`explain --message-id`: the text is looked up where it still is, in the input topics."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from stream_sentiment.cli.main import app
from stream_sentiment.errors import ConfigurationError, TryAgain
from stream_sentiment.events.incoming import ChatEvent
from stream_sentiment.kafka.message_search import FoundMessage, MessageNotFound, find_message
from stream_sentiment.testing.events import chat_message, review
from stream_sentiment.testing.kafka import KafkaHarness
from tests.integration.road import Road


def look(road: Road, message_id: str, since_ms: int = 0, **narrower: str) -> FoundMessage:
    return find_message(road.settings(), message_id, since_ms=since_ms, timeout=30.0, **narrower)  # type: ignore[arg-type]


def text_of(found: FoundMessage) -> str | None:
    assert isinstance(found.decoded.event, ChatEvent)
    return found.decoded.event.text


def test_a_message_is_found_with_its_edits(road: Road) -> None:
    for number in range(20):
        road.publish(chat_message(f"text {number}", conversation=f"c{number % 5}", message=f"m{number}"))
    assert text_of(look(road, "m13")) == "text 13"
    road.publish(chat_message("better text", conversation="c3", message="m13", type="chat.message.edited"))
    found = look(road, "m13")
    assert (text_of(found), found.decoded.kind, found.tenant_id, found.entity_id) == (
        "better text",
        "edited",
        "shop",
        "c3",
    )
    with pytest.raises(MessageNotFound, match="no message 'm99'"):
        look(road, "m99")


def test_a_message_that_its_sender_deleted_is_not_shown(mock_road: Road) -> None:
    mock_road.publish(
        chat_message("secret", message="m1"), chat_message(None, message="m1", type="chat.message.deleted")
    )
    with pytest.raises(MessageNotFound, match="deleted by its sender"):
        look(mock_road, "m1")


def test_the_same_id_in_two_conversations_asks_which(mock_road: Road) -> None:
    mock_road.publish(
        chat_message("one", conversation="a", message="m1"), chat_message("two", conversation="b", message="m1")
    )
    with pytest.raises(MessageNotFound, match=r"is there 2 times .*--conversation"):
        look(mock_road, "m1")
    assert text_of(look(mock_road, "m1", conversation_id="b")) == "two"
    with pytest.raises(MessageNotFound, match="no message"):
        look(mock_road, "m1", tenant_id="another")


def test_reviews_are_found_with_their_rating_and_odd_ids_too(mock_road: Road) -> None:
    mock_road.publish_reviews(review("fine", rating=4, review_id="r-1"))
    assert look(mock_road, "r-1").rating == 4
    mock_road.publish(chat_message("odd", message='é"/\\'))
    assert text_of(look(mock_road, 'é"/\\')) == "odd"


def test_broken_records_are_passed_over(mock_road: Road) -> None:
    mock_road.publish_raw(b'{"message_id": "m1"', b"k")
    mock_road.publish_raw(None, b"k")
    mock_road.publish(chat_message("good", message="m1"))
    assert text_of(look(mock_road, "m1")) == "good"


def test_the_search_begins_where_it_is_told(kafka: KafkaHarness, redis_url: str, unique: Callable[[str], str]) -> None:
    """On a real Kafka: the mock cluster does not look offsets up by time."""
    road = Road(kafka, redis_url, unique)
    road.publish(chat_message("old", message="m1"))
    assert text_of(look(road, "m1", since_ms=round(time.time() * 1000) - 60_000)) == "old"
    with pytest.raises(MessageNotFound, match="--since"):
        look(road, "m1", since_ms=round(time.time() * 1000) + 60_000)


def test_time_and_topics_have_their_errors(mock_road: Road) -> None:
    mock_road.publish(*[chat_message("x", message=f"m{number}") for number in range(50)])
    with pytest.raises(TryAgain, match="larger --timeout"):
        find_message(mock_road.settings(), "m1", since_ms=0, timeout=-1.0)
    settings = mock_road.settings(topics={"chat_messages": "nowhere"})
    with pytest.raises(ConfigurationError, match="topics create"):
        find_message(settings, "m1", since_ms=0, timeout=10.0)


def test_the_command_explains_a_message_of_the_topic(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    road.publish(chat_message("The kettle leaks and nobody answers", message="m7", conversation="c7"))
    road.publish(chat_message("How may I help?", message="m8", conversation="c7", role="agent"))
    monkeypatch.setenv("STREAM_SENTIMENT_KAFKA__BOOTSTRAP_SERVERS", road.broker.bootstrap_servers)
    monkeypatch.setenv("STREAM_SENTIMENT_TOPICS__CHAT_MESSAGES", road.topics["chat_messages"])
    monkeypatch.setenv("STREAM_SENTIMENT_TOPICS__PRODUCT_REVIEWS", road.topics["product_reviews"])
    result = CliRunner().invoke(
        app, ["explain", "--message-id", "m7", "--since", "all", "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert (told["tenant_id"], told["entity_id"], told["topic"]) == ("shop", "c7", road.topics["chat_messages"])
    assert told["text"] == "The kettle leaks and nobody answers"
    assert told["outputs"][0]["spans"]
    with pytest.raises(MessageNotFound, match="not written by a customer"):
        CliRunner().invoke(app, ["explain", "--message-id", "m8", "--since", "all"], catch_exceptions=False)
