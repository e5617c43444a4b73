"""The load of the benchmark: chat events with the customers' words of the demo's conversations, repeated in a seeded shuffle."""

from __future__ import annotations

import random
from collections.abc import Iterator
from importlib.resources import files

import orjson

from stream_sentiment.events.envelope import record_key, rfc3339

#: 2026-01-01T00:00:00Z; messages are a second apart in each conversation.
START_MS = 1_767_225_600_000


def customer_texts() -> list[str]:
    """Every text that a customer writes in the demo, zh and en."""
    source = files("stream_sentiment.demo").joinpath("conversations.jsonl").read_text(encoding="utf-8")
    return [
        message["text"]
        for line in source.split("\n")
        if line.strip()
        for message in orjson.loads(line)["messages"]
        if message.get("role") == "customer" and message.get("text")
    ]


def load_texts(count: int, seed: int) -> list[str]:
    """`count` texts; every text occurs equally often, give or take one."""
    texts = customer_texts()
    rng = random.Random(seed)
    drawn: list[str] = []
    while len(drawn) < count:
        rng.shuffle(texts)
        drawn += texts[: count - len(drawn)]
    return drawn


def chat_events(texts: list[str], conversations: int) -> Iterator[tuple[str, bytes]]:
    """Record key and value of one chat event per text, round robin over the conversations."""
    for number, text in enumerate(texts):
        conversation = f"conversation-{number % conversations:05d}"
        event = {
            "tenant_id": "bench",
            "channel": "web_chat",
            "conversation_id": conversation,
            "message_id": f"message-{number:07d}",
            "sequence": number // conversations,
            "sender": {"role": "customer", "id": f"customer-{number % conversations:05d}"},
            "content_type": "text/plain",
            "text": text,
            "created_at": rfc3339(START_MS + number // conversations * 1000),
            "attributes": {"queue": "general"},
        }
        yield record_key("bench", conversation), orjson.dumps(event)
