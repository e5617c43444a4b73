"""Redis, the system of record: one slot per input partition holds its owner's token, watermark, outbox and states.

`StateStore` (redis.py) is the whole interface; the steps it implements are those of docs/delivery.md, with the same names.
"""

from stream_sentiment.store.errors import StoreRefused, StoreUnavailable
from stream_sentiment.store.keys import TopicPartition, conversation_key, outbox_field, tick_field
from stream_sentiment.store.redis import (
    Acquired,
    ApplyOutcome,
    ApplyResult,
    DueRequest,
    DueResult,
    Erasure,
    Found,
    LoadRequest,
    LoadResult,
    PartitionBatch,
    StateStore,
    TickBatch,
)

__all__ = [
    "Acquired",
    "ApplyOutcome",
    "ApplyResult",
    "DueRequest",
    "DueResult",
    "Erasure",
    "Found",
    "LoadRequest",
    "LoadResult",
    "PartitionBatch",
    "StateStore",
    "StoreRefused",
    "StoreUnavailable",
    "TickBatch",
    "TopicPartition",
    "conversation_key",
    "outbox_field",
    "tick_field",
]
