"""Canary events: one small record to every input partition every few seconds, to see that whatever is published gets through.

A consumer that stands still has no bad events, so no ratio shows it; a canary that does not come through does. Publishing blocks
only for the producer's time-outs. In the worker a canary is a skipped event: it changes no state and no output, and is counted as
`kind="heartbeat"`. Raises ServiceUnavailable when Kafka cannot be reached at the start.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable

from confluent_kafka import KafkaError, Message, Producer

from stream_sentiment.clock import Clock, SystemClock
from stream_sentiment.events.envelope import rfc3339
from stream_sentiment.kafka.clients import common_config, first_contact
from stream_sentiment.observability.logs import get_logger, kafka_logger
from stream_sentiment.settings import Settings

HEADER = "canary"
"""Kafka header with the time of publishing, in milliseconds since the epoch."""

EVENT_TYPE = "stream-sentiment.canary"
CONTACT_SECONDS = 15.0

log = get_logger("canary")


def canary_time(headers: Iterable[tuple[str, bytes | None]] | None) -> int | None:
    """When the record was published, if it is a canary."""
    for name, value in headers or ():
        if name == HEADER and value is not None and value.isdigit() and len(value) < 16:
            return int(value)
    return None


def publish(settings: Settings, interval: float, stop: threading.Event, clock: Clock | None = None) -> int:
    """Publish to every partition of every input topic each `interval` seconds until `stop`; how many were acknowledged."""
    clock = clock or SystemClock()
    producer = Producer(
        common_config(settings.kafka, kafka_logger("canary"))
        # One that takes longer than the interval is worth nothing: the next one says the same.
        | {"acks": "all", "delivery.timeout.ms": max(1000, round(interval * 1000)), "linger.ms": 0}
    )
    metadata = first_contact(producer, settings.kafka.bootstrap_servers, CONTACT_SECONDS)
    places = [
        (topic, partition)
        for topic in settings.topics.inputs()
        if topic in metadata.topics
        for partition in metadata.topics[topic].partitions
    ]
    log.info("canary_started", partitions=len(places), interval_seconds=interval)
    delivered = 0

    def report(error: KafkaError | None, message: Message) -> None:
        nonlocal delivered
        if error is None:
            delivered += 1
        else:
            log.warning(
                "canary_not_delivered", topic=message.topic(), partition=message.partition(), reason=error.name()
            )

    while True:
        now_ms = clock.now_ms()
        for topic, partition in places:
            headers = {
                "ce_specversion": "1.0",
                "ce_type": EVENT_TYPE,
                "ce_source": "stream-sentiment",
                "ce_id": str(uuid.uuid4()),
                "ce_time": rfc3339(now_ms),
                HEADER: str(now_ms),
            }
            producer.produce(
                topic, b"{}", f"canary|{partition}", partition, on_delivery=report, headers=list(headers.items())
            )
        producer.poll(0)
        if stop.wait(interval):
            break
    producer.flush(5)
    return delivered
