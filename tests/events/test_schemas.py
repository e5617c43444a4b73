"""The JSON Schemas in the repository are those of the code, and are valid schemas."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from jsonschema import Draft202012Validator

from stream_sentiment.events import schemas
from stream_sentiment.testing.events import chat_message, conversation_event, review

DIRECTORY = Path(__file__).parents[2] / "docs" / "schemas"


@pytest.mark.parametrize("name", sorted(schemas.render()))
def test_the_committed_schema_is_current(name: str) -> None:
    assert (DIRECTORY / name).read_bytes() == schemas.render()[name], (
        "run: stream-sentiment schemas export docs/schemas"
    )


def test_no_schema_lies_there_that_the_code_does_not_know() -> None:
    assert {path.name for path in DIRECTORY.glob("*.json")} == set(schemas.render())


@pytest.mark.parametrize("name", sorted(schemas.render()))
def test_the_schema_is_a_schema(name: str) -> None:
    Draft202012Validator.check_schema(orjson.loads(schemas.render()[name]))


def test_the_builders_events_satisfy_the_input_schemas() -> None:
    chat = Draft202012Validator(orjson.loads(schemas.render()["chat.messages.v1.schema.json"]))
    chat.validate(chat_message())
    chat.validate(conversation_event("ended"))
    assert not chat.is_valid({**chat_message(), "channel": "fax"})
    assert not chat.is_valid({**chat_message(), "attributes": {"a": []}})
    Draft202012Validator(orjson.loads(schemas.render()["product.reviews.v1.schema.json"])).validate(review())
