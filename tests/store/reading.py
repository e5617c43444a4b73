"""States as Redis holds them, read beside the protocol: without a token, and without taking one."""

from __future__ import annotations

import time

from stream_sentiment.store import StateStore, TopicPartition

TP = TopicPartition("chat.messages", 3)


def states(store: StateStore, *conversations: str, tp: TopicPartition = TP) -> list[bytes | None]:
    base = f"ss:{{{store.group}:{tp.topic}:{tp.partition}}}:c:"
    return store.link.exchange([("GET", base + name) for name in conversations], time.monotonic() + 5)
