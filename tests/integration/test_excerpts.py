"""Excerpts of messages in escalations: none unless they were asked for, masked where they were, and nowhere else."""

from __future__ import annotations

import pytest
import redis as redis_client

from stream_sentiment.events.schemas import SCHEMAS
from stream_sentiment.testing.events import chat_message
from tests.integration.road import Road

START = 1_790_000_000_000
SECRETS = ("kanarie@example.com", "13800138000", "482913", "KX-99-1234", "17 Canary Wharf Road", "Kara Canary")
SAID = (
    "BAD KANARIEWORT from the start",
    "BAD! my name is Kara Canary, 17 Canary Wharf Road, kanarie@example.com, 13800138000, code 482913, order KX-99-1234",
)


def tell(road: Road) -> None:
    road.publish(
        *[
            chat_message(text, conversation="c1", message=f"m{number}", at_ms=START + number * 60_000)
            for number, text in enumerate(SAID)
        ]
    )


def everything_else(road: Road) -> bytes:
    """States in Redis, scored events and conversation states; the outbox is empty by then."""
    with redis_client.Redis.from_url(road.redis_url) as client:
        stored = b"".join(client.get(key) or b"" for key in client.scan_iter("*:c:*"))
        assert not list(client.scan_iter("*:outbox"))
    records = [*road.read("scored"), *road.read("conversation_state")]
    return stored + b"".join(record.value for record in records)


@pytest.mark.parametrize("asked_for", [False, True])
def test_an_excerpt_is_there_only_where_it_was_asked_for(
    mock_road: Road, capfd: pytest.CaptureFixture[str], asked_for: bool
) -> None:
    tell(mock_road)
    mock_road.work(output={"excerpts": asked_for})

    records = mock_road.read("escalations")
    assert records
    for record in records:
        SCHEMAS["escalation.events.v1"].validate_python(record.json())
    evidence = {item["message_id"]: item for item in records[0].json()["evidence"]}
    assert set(evidence) == {"m0", "m1"}
    # The text of the message before is kept nowhere, so there is nothing to show of it.
    assert "excerpt" not in evidence["m0"]
    assert ("excerpt" in evidence["m1"]) is asked_for
    if asked_for:
        assert evidence["m1"]["excerpt"].startswith("BAD! ")
        assert evidence["m1"]["excerpt_begin"] == 0
        assert len(evidence["m1"]["excerpt"]) <= 120
    published = b"".join(record.value + repr(record.headers).encode() for record in records).decode()
    logged = "".join(capfd.readouterr())
    rest = everything_else(mock_road).decode()
    for place in (published, logged, rest):
        for secret in (*SECRETS, "KANARIEWORT"):
            assert secret not in place
    assert "BAD" not in logged + rest
