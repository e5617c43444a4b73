"""A load generator: plays the demo's conversations for ever, under new ids each round.

`python -m stream_sentiment.demo.load --rate 20 [--seconds 60]`: events a second on average. It reads the same settings as a worker
(STREAM_SENTIMENT_KAFKA__...). The schedule is fixed in advance (an open loop): when Kafka is slow the events do not wait for it, so
that the delay shows in the latencies instead of in a lower rate.
"""

from __future__ import annotations

import argparse
import itertools
import time
import uuid

import orjson
from confluent_kafka import Producer

from stream_sentiment.demo.chatlog import bundled
from stream_sentiment.demo.player import schedule
from stream_sentiment.events.envelope import record_key, rfc3339
from stream_sentiment.kafka.clients import common_config
from stream_sentiment.settings import load_settings

#: Rounds of which one sends the script's broken records. They are 1.2 % of a round: with each, DlqRatio (above 1 %) would never end.
BROKEN_EVERY = 4


def main() -> None:
    parser = argparse.ArgumentParser(description="Plays the demo's conversations at a steady rate.")
    parser.add_argument("--rate", type=float, default=20.0, help="events a second")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long")
    options = parser.parse_args()
    settings = load_settings()
    topics = {kind: topic for topic, kind in settings.topics.inputs().items()}
    producer = Producer({**common_config(settings.kafka), "linger.ms": 20, "enable.idempotence": True})
    failed = 0

    def delivered(error: object, _message: object) -> None:
        nonlocal failed
        failed += error is not None

    sent = 0
    start = time.monotonic()
    print(f"publishing {options.rate:g} events a second to {', '.join(topics.values())}", flush=True)
    for round_number in itertools.count():
        if time.monotonic() - start >= options.seconds:
            break
        round_id = uuid.uuid4().hex[:8]
        for record in schedule(bundled(), int(time.time() * 1000)):
            if record.event is None and round_number % BROKEN_EVERY:
                continue
            due = start + sent / options.rate
            while (ahead := due - time.monotonic()) > 0:
                producer.poll(min(ahead, 0.2))
            if time.monotonic() - start >= options.seconds:
                break
            key, value = record.key, record.value
            if record.event is not None:
                event = dict(record.event)
                # New ids and the present time: otherwise the second round would be duplicates, or late.
                for name in ("conversation_id", "message_id", "review_id"):
                    if name in event:
                        event[name] = f"{round_id}-{event[name]}"
                event["created_at"] = rfc3339(int(time.time() * 1000))
                entity = str(event.get("conversation_id") or event.get("product_id"))
                key, value = record_key(event["tenant_id"], entity), orjson.dumps(event)
            if record.topic_kind in topics:
                producer.produce(topics[record.topic_kind], value, key, on_delivery=delivered)
                producer.poll(0)
            sent += 1
            if sent % max(1, int(options.rate * 30)) == 0:
                print(f"{sent} sent, {failed} failed", flush=True)
    producer.flush(30)
    print(f"{sent} sent, {failed} failed", flush=True)


if __name__ == "__main__":
    main()
