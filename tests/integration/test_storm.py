"""A storm of alerts through a whole worker: on the topic, in Redis, in the metrics, in the log, and across a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis as redis_client

from stream_sentiment.events.schemas import SCHEMAS
from stream_sentiment.testing.events import chat_message
from stream_sentiment.testing.redis import RedisServer
from tests.integration.road import Road, sample

START = 1_790_000_040_000  # begins a minute
RULES = """
version: 1
rules: [{id: bad, when: {rolling_score: {open: -0.2, close: 0.0}}}]
suppress: {max_open_per_tenant_per_minute: 2}
"""


def complaint(number: int, at_s: int = 0, tenant: str = "shop") -> dict[str, Any]:
    return chat_message(
        "BAD", tenant=tenant, conversation=f"c{number}", message=f"m{number}", at_ms=START + at_s * 1000
    )


def told(road: Road) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Escalations and storm notices on the topic, without the wall-clock times."""
    values = [{name: part for name, part in value.items() if name != "timing"} for value in road.escalations()]
    return [v for v in values if "escalation_id" in v], [v for v in values if "escalation_id" not in v]


@pytest.fixture
def stormy(mock_kafka: Any, redis_url: str, unique: Any, tmp_path: Path) -> tuple[Road, dict[str, Any]]:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return Road(mock_kafka, redis_url, unique, partitions=1), {"rules": {"path": path}}


def test_alerts_above_the_limit_are_on_the_topic_marked_and_a_storm_is_told(
    stormy: tuple[Road, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    road, settings = stormy
    road.publish(*[complaint(number, number) for number in range(5)], complaint(9, 6, tenant="other"))
    road.publish(chat_message("hm", conversation="c0", message="later", at_ms=START + 180_000))

    worker = road.work(**settings)

    escalations, notices = told(road)
    assert [(e["conversation_id"], e["suppressed"]) for e in escalations if e["action"] == "opened"] == [
        ("c0", False),
        ("c1", False),
        ("c2", True),
        ("c3", True),
        ("c4", True),
        ("c9", False),
    ]
    assert [(n["action"], n["revision"], n["held_back"]) for n in notices] == [("opened", 1, 1), ("resolved", 2, 3)]
    assert {e["storm_id"] for e in escalations if e["suppressed"]} == {notices[0]["storm_id"]}
    assert notices[1]["limits"] == [{"scope": "tenant", "per_minute": 2, "share": 2}]
    for record in road.read("escalations"):
        storm = "storm" in record.headers["ce_type"]
        SCHEMAS["escalation.storm.v1" if storm else "escalation.events.v1"].validate_python(record.json())
        assert (record.headers.get("ce_suppressed") == "true") is record.json().get("suppressed", False)
        if storm:
            assert record.key == b"shop|"
            assert record.headers["ce_dataschema"] == "urn:stream-sentiment:schema:escalation.storm:1"
    assert sample(worker, "escalations_total") == 6
    assert sample(worker, "escalations_suppressed_total", rule="bad") == 3
    assert sample(worker, "escalation_storms_total", action="opened") == 1
    assert sample(worker, "escalation_storms_total", action="resolved") == 1


def test_a_restart_in_the_middle_of_a_storm_changes_nothing(
    stormy: tuple[Road, dict[str, Any]], unique: Any, redis_server: RedisServer
) -> None:
    road, settings = stormy
    events = [complaint(number, number * 4) for number in range(40)]
    road.publish(*events[:1])
    road.work(**settings)
    road.publish(*events[1:25])
    road.work(**settings)
    road.publish(*events[25:])
    road.work(**settings)
    with_restarts = told(road)

    again = Road(road.broker, road.redis_url, lambda name: unique(name + "-whole"), partitions=1)
    again.publish(*events)
    again.work(**settings)
    whole = told(again)

    for notice in [*with_restarts[1], *whole[1]]:
        assert notice.pop("source")["partition"] == 0
    assert with_restarts == whole
    assert sum(e["suppressed"] for e in whole[0]) == 34
    with redis_client.Redis.from_url(road.redis_url) as client:
        [key] = client.keys(f"ss:{{{road.group}:*}}:storm:*")
        assert key.decode().endswith(":storm:shop")
        assert client.pttl(key) > 0
        assert b'"c1"' not in client.get(key)  # no conversation ids: an erasure need not look here
