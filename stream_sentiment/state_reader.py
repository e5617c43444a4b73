"""Reads conversation states into the caches of their partitions.

In: epochs and the conversations to be worked on. Out: `Epoch.states`, `Epoch.storms`. Belongs to the apply thread. Blocks while
Redis is away. The read is fenced like the write: without that, a failover between the two folds events twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from stream_sentiment.conversation.state import ConversationState, StateUnreadable
from stream_sentiment.escalation.machine import next_deadline
from stream_sentiment.escalation.storm import StormState
from stream_sentiment.observability.labels import RedisOp
from stream_sentiment.stages import Epoch
from stream_sentiment.store.keys import STORM, storm_key
from stream_sentiment.store.redis import ApplyOutcome, LoadRequest, StateStore

if TYPE_CHECKING:
    from stream_sentiment.escalation.rules import RuleSet

#: In `Epoch.deadlines`: Redis may hold a deadline of this conversation; whoever had the partition before has written it.
UNKNOWN = -1

T = TypeVar("T")


class Persistence(Protocol):
    """What the apply stage knows of Redis."""

    def persist(self, op: RedisOp, call: Callable[[], T]) -> T:
        """Repeat a Redis call until it is answered."""

    def disagreed(self, epoch: Epoch, outcome: ApplyOutcome) -> None:
        """Redis knows another owner or another watermark than we do: the epoch is given up."""


class StateReader:
    """The reading side of the apply stage."""

    def __init__(self, store: StateStore, persistence: Persistence, rules: RuleSet) -> None:
        self._store = store
        self._persistence = persistence
        self._rules = rules
        #: Half of a conversation's event-time life: the cache forgets long before Redis does. The shortest that there has been,
        #: since Redis keeps a state for as long as the rules said that it was written under.
        self._cache_seconds = rules.options.ttl_ms / 2000

    def use(self, rules: RuleSet) -> None:
        """Other rules are in force."""
        self._rules = rules
        self._cache_seconds = min(self._cache_seconds, rules.options.ttl_ms / 2000)

    def read(self, wanted: Sequence[tuple[Epoch, Iterable[str]]]) -> Mapping[Epoch, Mapping[str, StateUnreadable]]:
        """Read what the caches do not hold, all partitions in one round trip.

        Returns:
            For every epoch that can go on, the states that cannot be read; the others have been given up.
        """
        done: dict[Epoch, dict[str, StateUnreadable]] = {}
        missing: list[tuple[Epoch, list[str]]] = []
        for epoch, conversations in wanted:
            names = self._missing(epoch, conversations)
            if names:
                missing.append((epoch, names))
            else:
                done[epoch] = {}
        if not missing:
            return done
        requests = [LoadRequest(epoch.partition, epoch.token, epoch.watermark, names) for epoch, names in missing]
        results = self._persistence.persist(RedisOp.READ, lambda: self._store.load(requests))
        now = time.monotonic()
        for (epoch, names), result in zip(missing, results, strict=True):
            if result.outcome is ApplyOutcome.OK:
                done[epoch] = self._keep(epoch, names, result.states, now)
            else:
                self._persistence.disagreed(epoch, result.outcome)
        return done

    def _missing(self, epoch: Epoch, conversations: Iterable[str]) -> list[str]:
        written_before = time.monotonic() - self._cache_seconds
        cache, storms = epoch.states, epoch.storms
        names: dict[str, None] = {}
        for name in conversations:
            if name not in cache or cache[name][1] < written_before:
                names[name] = None
            if (storm := storm_key(name)) not in storms:
                names[storm] = None
        return list(names)

    def _keep(
        self, epoch: Epoch, names: Sequence[str], states: Sequence[bytes | None], now: float
    ) -> dict[str, StateUnreadable]:
        unreadable: dict[str, StateUnreadable] = {}
        for name, value in zip(names, states, strict=True):
            try:
                if name.startswith(STORM):
                    epoch.storms[name] = None if value is None else StormState.from_json(value)
                    continue
                state = None if value is None else ConversationState.from_json(value)
            except StateUnreadable as error:
                unreadable[name] = error
                continue
            epoch.states[name] = (state, now)
            if state is not None and next_deadline(state, self._rules) is not None:
                epoch.deadlines[name] = UNKNOWN
        return unreadable
