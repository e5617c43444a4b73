"""Timers: what falls due in a conversation while nobody writes is told by the owner of its partition (docs/delivery.md, "Timers").

In: live epochs, about once a second, between two windows. Out: the transitions of `escalation.machine.tick`, through the same road as
those of an event: state published, one atomic TICK a partition, outbox. Belongs to the apply thread. Blocks while Redis or Kafka
is away.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from stream_sentiment.clock import Clock
from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.escalation.machine import next_deadline
from stream_sentiment.observability.labels import RedisOp, TimerResult
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.observability.tally import Tally
from stream_sentiment.record_fold import Batch, Moment
from stream_sentiment.stages import Epoch
from stream_sentiment.state_reader import StateReader
from stream_sentiment.store.keys import TopicPartition
from stream_sentiment.store.redis import ApplyOutcome, ApplyResult, DueRequest, StateStore, TickBatch

if TYPE_CHECKING:
    from stream_sentiment.escalation.rules import RuleSet
    from stream_sentiment.live.serving import Serving

#: Conversations of one partition in one TICK. Their states are about 2 KB each, and a script that writes them holds Redis up.
TICK_CONVERSATIONS = 128
#: A conversation whose timer cannot be run now (a state of a newer version, a failing rule) is looked at again after this.
POSTPONE_MS = 3_600_000
T = TypeVar("T")

log = get_logger("timers")


class Road(Protocol):
    """What the apply stage does for windows and for timers alike."""

    @property
    def serving(self) -> Serving:
        """Rules and model in force."""

    def persist(self, op: RedisOp, call: Callable[[], T]) -> T:
        """Repeat a Redis call until it is answered."""

    @property
    def states(self) -> StateReader:
        """Reads states into the caches."""

    def publish(self, batches: Sequence[Batch]) -> bool:
        """Publish the new states and wait until Kafka has taken them; False: the partitions are given up."""

    def disagreed(self, epoch: Epoch, outcome: ApplyOutcome) -> None:
        """Redis knows another owner or another watermark than we do."""

    def give_up(self, epoch: Epoch, reason: str) -> None:
        """The partition is to be acquired anew."""

    def announce(self, batch: Batch) -> None:
        """The batch is in Redis: hand its outputs to the outbox, count what it has given."""


class Timers:
    """Fires the timers of the partitions of one worker."""

    def __init__(
        self, store: StateStore, road: Road, metrics: Metrics, clock: Clock, *, grace_ms: int, on: bool
    ) -> None:
        """
        Args:
            grace_ms: how long after its moment a timer waits for an answer that is on its way.
            on: False leaves timers to the conversations' next events.
        """
        self._store = store
        self._road = road
        self._metrics = metrics
        self._clock = clock
        self._grace_ms = grace_ms
        self._on = on
        #: Conversations whose timer raised; postponed when they are met again.
        self._failing: set[tuple[TopicPartition, str]] = set()

    def run(self, epochs: Iterable[Epoch]) -> bool:
        """Fire what is due; True when there may be more. Raises Aborted, as the apply stage's own writes do."""
        wall_ms = self._clock.now_ms()
        due: list[tuple[Epoch, int]] = []
        for epoch in epochs:
            if epoch.kind != "chat" or not epoch.alive:
                continue
            now_ms = epoch.clock.now_ms(wall_ms, epoch.complete_ms) if self._on else None
            if now_ms is None or now_ms - self._grace_ms < epoch.next_due:
                epoch.timers_through = epoch.watermark
            else:
                due.append((epoch, now_ms - self._grace_ms))
        return self._fire(due) if due else False

    def _fire(self, due: Sequence[tuple[Epoch, int]]) -> bool:
        requests = [
            DueRequest(epoch.partition, epoch.token, epoch.watermark, now_ms, TICK_CONVERSATIONS)
            for epoch, now_ms in due
        ]
        results = self._road.persist(RedisOp.READ, lambda: self._store.due(requests))
        found: list[tuple[Epoch, int, list[str]]] = []
        for (epoch, now_ms), result in zip(due, results, strict=True):
            if result.outcome is not ApplyOutcome.OK:
                self._road.disagreed(epoch, result.outcome)
                continue
            # As many as one tick takes: there may be more, which `later_ms` does not speak of.
            more = len(result.conversations) == TICK_CONVERSATIONS
            epoch.next_due = 0 if more else math.inf if result.later_ms is None else result.later_ms
            if result.conversations:
                found.append((epoch, now_ms, result.conversations))
            else:
                epoch.timers_through = epoch.watermark
        if not found:
            return False
        unreadable = self._road.states.read([(epoch, names) for epoch, _, names in found])
        moment = Moment.at(self._clock.now_ms())
        serving = self._road.serving
        ticked: list[tuple[Batch, TickBatch]] = []
        for epoch, now_ms, names in found:
            if epoch not in unreadable:
                continue
            made = self._tick(epoch, now_ms, names, unreadable[epoch], serving, moment)
            if made is None:
                self._road.give_up(epoch, "timer_failed")
            else:
                ticked.append(made)
        if not self._road.publish([batch for batch, _ in ticked]):
            return False
        self._write(ticked)
        return any(len(names) == TICK_CONVERSATIONS for _, _, names in found)

    def _tick(
        self,
        epoch: Epoch,
        now_ms: int,
        names: Sequence[str],
        unreadable: Collection[str],
        serving: Serving,
        moment: Moment,
    ) -> tuple[Batch, TickBatch] | None:
        """Decide on the states, since a deadline is a hint that may be stale; None when a state cannot be ticked.

        It is half changed then. The partition is read again, and the timer is postponed when it is met the second time.
        """
        batch = Batch(epoch, [], Tally(self._metrics))
        token = str(uuid.uuid4())
        deadlines: dict[str, int | None] = {}
        for name in names:
            state = epoch.states[name][0] if name in epoch.states else None
            result = TimerResult.OBSOLETE
            if name in unreadable or (epoch.partition, name) in self._failing:
                deadlines[name] = now_ms + POSTPONE_MS
                result = TimerResult.FAILED
            elif state is None:
                deadlines[name] = None
            else:
                try:
                    if serving.folder.tick(batch, name, state, now_ms, token, moment):
                        result = TimerResult.FIRED
                    deadlines[name] = next_deadline(state, serving.rules)
                except Exception as error:
                    self._failing.add((epoch.partition, name))
                    topic, partition = epoch.partition
                    log.error("timer_failed", topic=topic, partition=partition, exc_info=error)
                    return None
            batch.tally.count("timers_total", result)
        states = {name: state.to_json() for name, state in batch.touched.items()}
        states |= {name: storm.to_json() for name, storm in batch.storms.items()}
        outputs = {name: record.encode() for name, (record, _) in batch.outputs.items()}
        return batch, TickBatch(epoch.partition, epoch.token, token, epoch.watermark, states, outputs, deadlines)

    def _write(self, ticked: Sequence[tuple[Batch, TickBatch]]) -> None:
        requests = [request for _, request in ticked]
        if not requests:
            return
        results: list[ApplyResult] = self._road.persist(RedisOp.APPLY, lambda: self._store.tick(requests))
        for (batch, request), result in zip(ticked, results, strict=True):
            epoch = batch.epoch
            if result.outcome is not ApplyOutcome.OK:
                if result.outcome is ApplyOutcome.ALREADY:
                    batch.tally.settle()
                self._road.disagreed(epoch, result.outcome)
                continue
            epoch.token = request.next_token
            note_deadlines(epoch, request.deadlines)
            self._road.announce(batch)


def changed_deadlines(epoch: Epoch, touched: Mapping[str, ConversationState], rules: RuleSet) -> dict[str, int | None]:
    """What Redis must be told: new deadlines, and None for those that are no more. Most messages change none."""
    known = epoch.deadlines
    changes: dict[str, int | None] = {}
    for name, state in touched.items():
        at = next_deadline(state, rules)
        if at is None:
            if name in known:
                changes[name] = None
        elif known.get(name) != at:
            changes[name] = at
    return changes


def note_deadlines(epoch: Epoch, changes: Mapping[str, int | None]) -> None:
    """Redis has been told."""
    for name, at in changes.items():
        if at is None:
            epoch.deadlines.pop(name, None)
        else:
            epoch.deadlines[name] = at
            epoch.next_due = min(epoch.next_due, at)
