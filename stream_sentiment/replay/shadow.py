"""The replay's own place in Redis: other keys, another group, and nothing left behind.

In: settings and a name. Out: epochs whose states live under `<prefix>:replay:{<group>-replay-<name>:...}`. Blocks on Redis. Raises
what the store raises. The worker's own calls are used (ACQUIRE, INITIALISE, LOAD, APPLY), so that states take the same way.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence

from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.escalation.storm import StormState
from stream_sentiment.settings import Settings
from stream_sentiment.stages import Epoch
from stream_sentiment.store.keys import STORM, PartitionKeys, TopicPartition
from stream_sentiment.store.redis import ApplyOutcome, LoadRequest, PartitionBatch, StateStore
from stream_sentiment.worker import open_store

#: How long one call waits for a Redis that is away.
CALL_SECONDS = 30.0
#: Keys deleted in one call.
DELETED_AT_ONCE = 500


class Shadow:
    """One replay's namespace."""

    def __init__(self, settings: Settings, name: str, state_ttl_ms: int) -> None:
        # Below the worker's prefix, so that the worker's ACL covers it.
        self.prefix = settings.redis.prefix[:33] + ":replay"
        self.group = f"{settings.kafka.group_id}-replay-{name}"
        own = settings.model_copy(
            update={
                "kafka": settings.kafka.model_copy(update={"group_id": self.group}),
                "redis": settings.redis.model_copy(update={"prefix": self.prefix}),
            }
        )
        self._store: StateStore = open_store(own, state_ttl_ms)
        self._keys = PartitionKeys(self.prefix, self.group)
        self._written: dict[TopicPartition, dict[str, None]] = {}

    def open(self, place: TopicPartition, kind: str, begin: int, partitions: int) -> Epoch:
        """Take a partition that nobody has, at `begin`."""
        [acquired] = self._store.acquire(
            [(place, str(uuid.uuid4()))], "replay", partition_counts={place.topic: partitions}, deadline=_deadline()
        )
        self._store.initialise(place, acquired.token, begin, deadline=_deadline())
        self._written[place] = {}
        return Epoch(place, kind, acquired.token, begin)

    def load(self, epoch: Epoch, names: Sequence[str]) -> None:
        """Read states and storm states into the epoch's cache."""
        if not names:
            return
        [result] = self._store.load(
            [LoadRequest(epoch.partition, epoch.token, epoch.watermark, names)], deadline=_deadline()
        )
        _agree(epoch, result.outcome)
        for name, value in zip(names, result.states, strict=True):
            if name.startswith(STORM):
                epoch.storms[name] = None if value is None else StormState.from_json(value)
            else:
                epoch.states[name] = (None if value is None else ConversationState.from_json(value), 0.0)

    def apply(self, epoch: Epoch, following: int, states: Mapping[str, bytes | None]) -> None:
        """Write states and move the watermark; the outputs go elsewhere."""
        batch = PartitionBatch(epoch.partition, epoch.token, epoch.watermark, following, states, {})
        [result] = self._store.apply([batch], deadline=_deadline())
        if result.outcome is not ApplyOutcome.ALREADY:  # of a call that was sent again
            _agree(epoch, result.outcome)
        epoch.watermark = following
        self._written[epoch.partition].update(dict.fromkeys(states))

    def written(self, place: TopicPartition) -> list[str]:
        """Names of every state that this replay has written in the partition, sorted."""
        return sorted(self._written[place])

    def forget(self) -> int:
        """Delete everything that this replay has written; returns how many keys."""
        deleted = 0
        for place, names in self._written.items():
            keys = [self._keys.meta(place), self._keys.outbox(place)]
            keys += [self._keys.conversation(place, name) for name in names]
            for start in range(0, len(keys), DELETED_AT_ONCE):
                some = [("DEL", key) for key in keys[start : start + DELETED_AT_ONCE]]
                deleted += sum(self._store.link.exchange(some, _deadline()))
        self._written = {}
        return deleted

    def close(self) -> None:
        self._store.close()


def _deadline() -> float:
    return time.monotonic() + CALL_SECONDS


def _agree(epoch: Epoch, outcome: ApplyOutcome) -> None:
    if outcome is not ApplyOutcome.OK:
        raise ServiceUnavailable(
            f"Redis has lost writes of this replay ({epoch.partition.topic}[{epoch.partition.partition}]: {outcome.value}); "
            "begin it again"
        )
