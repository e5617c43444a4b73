"""Looks at the topics from inside the worker's container: `check.py escalation|lossless SECONDS`."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition


def read(topic: str) -> list[dict[str, Any]]:
    """All JSON values of a topic, from its beginning to its present end."""
    servers = os.environ["STREAM_SENTIMENT_KAFKA__BOOTSTRAP_SERVERS"]
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "rehearsal-check", "enable.partition.eof": True})
    partitions = list(consumer.list_topics(topic, timeout=20).topics[topic].partitions)
    consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
    values, open_partitions = [], set(partitions)
    while open_partitions:
        message = consumer.poll(20)
        if message is None:
            raise SystemExit(f"{topic}: no answer within 20 s")
        if message.error() is not None:
            if message.error().code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                open_partitions.discard(message.partition())
            continue
        try:
            values.append(json.loads(message.value() or b"null"))
        except ValueError:
            values.append(None)
    consumer.close()
    return [value for value in values if isinstance(value, dict)]


def escalation(deadline: float) -> None:
    """Wait for the first opened escalation."""
    while time.monotonic() < deadline:
        found = read("escalation.events")
        if found:
            first = found[0]
            print(
                f"{len(found)} escalation events; the first: {first['action']} {first['severity']} by {first['trigger']['rule_id']}"
            )
            return
        time.sleep(3)
    raise SystemExit("no escalation came")


def lossless(deadline: float) -> None:
    """Wait until every customer message of the input has its scored event or is a dead letter; the load has stopped."""
    missing: set[tuple[str, str]] = set()
    while time.monotonic() < deadline:
        sent = {
            (event["conversation_id"], event["message_id"])
            for event in read("chat.messages")
            if event.get("sender", {}).get("role") == "customer"
            and (event.get("text") or "").strip()
            and "message_id" in event
            and "conversation_id" in event
        }
        scored_events = [event for event in read("sentiment.scored") if event.get("conversation_id")]
        scored = {(event["conversation_id"], event["message_id"]) for event in scored_events}
        # Some of the load's broken records are JSON with ids; a dead letter holds the original bytes.
        dead = {(str(letter.get("conversation_id")), str(letter.get("message_id"))) for letter in read("sentiment.dlq")}
        missing = sent - scored - dead
        if sent and not missing:
            ids = [
                event["escalation_id"] + event["action"] + str(event["revision"]) for event in read("escalation.events")
            ]
            print(
                f"{len(sent)} customer messages: {len(sent & scored)} scored, {len(sent & dead - scored)} dead letters, none lost; "
                f"{len(scored_events)} scored events; {len(set(ids))} escalation events by id, {len(ids)} on the topic"
            )
            return
        time.sleep(3)
    raise SystemExit(f"{len(missing)} messages were not scored, for example {sorted(missing)[:3]}")


if __name__ == "__main__":
    {"escalation": escalation, "lossless": lossless}[sys.argv[1]](time.monotonic() + float(sys.argv[2]))
