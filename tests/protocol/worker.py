"""A worker as a generator: every `yield` is a point where it may crash, stall or lose a partition without being told.

The steps are those of docs/delivery.md. It calls the shipped `StateStore`; only Kafka and the model are imitated.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar
from uuid import UUID

from stream_sentiment.store import (
    ApplyOutcome,
    DueRequest,
    Erasure,
    LoadRequest,
    PartitionBatch,
    StoreUnavailable,
    TickBatch,
    TopicPartition,
    tick_field,
)
from stream_sentiment.store.errors import Fenced
from tests.protocol.model import Output, State, due, fire, outputs_of
from tests.protocol.world import World

T = TypeVar("T")
Steps = Generator[None, None, T]

LEARNS = 0.15
"""Chance, per poll, that a worker hears of partitions it has lost."""

FORGETS = 0.4
"""Chance, per round, that delivered entries are removed from the outbox: removal is batched and may come any time later."""


TICKS = 0.2
"""Chance, per round, that a worker looks for timers that have fallen due."""


SETTLES = 0.2
"""Chance, per round, that a worker takes positions of the output topic for `settle`, or looks whether it may store them."""


class Publishing(StrEnum):
    """How the outbox reaches the topic."""

    IDEMPOTENT = "idempotent"
    TRANSACTIONAL = "transactional"
    """`output.exactly_once`: one fenced producer per partition; what the topic holds already is not published again."""
    UNFENCED = "control: transactional without the fence"
    UNPROBED = "control: transactional without the search"
    TIMERLESS = "control: settled before lost timers are redone"
    BARRIERLESS = "control: settled before lost events are redone"
    HASTY = "control: settled before the entries are forgotten"


@dataclass(slots=True)
class Partition:
    """What a worker holds of one partition under one token."""

    tp: TopicPartition
    token: str
    watermark: int
    cache: dict[str, State] = field(default_factory=dict)
    delivered: list[str] = field(default_factory=list)
    producer: int = 0
    present: frozenset[str] = frozenset()
    unsettled: set[str] = field(default_factory=set)
    mark: tuple[int, set[str]] | None = None
    idle: bool = False
    """Nothing was due when it was last looked."""
    timers_run: bool = False
    """Whether nothing was found due once, after the barrier had been reached: a lost timeline's timers are redone."""
    barrier: int = 0
    """End of the input when the producer was opened: what was read before lies below, in this timeline or in a lost one."""


def eraser(world: World, number: int) -> Steps[None]:
    """A person who erases one conversation, whoever owns its partition at the time."""
    store = world.store()
    tp = world.rng.choice(list(world.logs))
    conversation = world.rng.choice([record.conversation for record in world.logs[tp] if record.conversation])
    while True:
        try:
            found = store.find(tp.topic, conversation, partitions=tp.partition + 1)
            yield
            notice = Output(f"erased-{number}-{world.rng.getrandbits(32)}", "erased").encode()
            token = str(UUID(int=world.rng.getrandbits(128)))
            done = not found
            while not done:
                try:
                    done = store.erase([Erasure(found[0], [notice])], token)
                except StoreUnavailable:
                    yield
                    continue
                break
        except StoreUnavailable:
            done = False
        yield
        if done:
            return


class Worker:
    """One process. `run` ends when every partition it believes to own is at its end and its outbox is empty."""

    def __init__(self, world: World, name: str, assigned: list[TopicPartition], publishing: Publishing) -> None:
        self.world = world
        self.name = name
        self.assigned = assigned
        self.publishing = publishing
        self.rng = random.Random(world.rng.random())
        self.store = world.store()
        self.partitions: dict[TopicPartition, Partition] = {}
        for tp in assigned:
            world.owner[tp] = name

    def run(self) -> Steps[None]:
        yield from self.acquire(self.assigned)
        while self.partitions:
            self.learn()
            batches, outputs = yield from self.score()
            if batches:
                yield from self.apply(batches, outputs)
            for partition in list(self.partitions.values()):
                if partition.delivered and (not batches or self.rng.random() < FORGETS):
                    yield from self.forget(partition)
                if self.publishing is not Publishing.IDEMPOTENT and self.rng.random() < SETTLES:
                    yield from self.settle(partition)
                if partition.tp in self.partitions and (not batches or self.rng.random() < TICKS):
                    yield from self.tick(partition)
            yield
            if not batches and not any(
                partition.delivered or not partition.idle for partition in self.partitions.values()
            ):
                return

    def attempt(self, call: Callable[[], T]) -> Steps[T]:
        """The same call with the same arguments until a reply comes."""
        while True:
            try:
                result = call()
            except StoreUnavailable:
                yield
                continue
            yield
            return result

    def learn(self) -> None:
        """A poll: the consumer group may tell that a partition went to someone else."""
        for tp in list(self.partitions):
            if self.world.owner[tp] != self.name and self.rng.random() < LEARNS:
                del self.partitions[tp]

    def acquire(self, tps: list[TopicPartition]) -> Steps[None]:
        """Step 1, with a new token per partition, and step 5 for what the last owner left."""
        # As the link does: what is sent again carries another token.
        acquired = yield from self.attempt(
            lambda: self.store.acquire([(tp, self.new_token()) for tp in tps], self.name)
        )
        for found in acquired:
            self.partitions.pop(found.tp, None)
            watermark = found.watermark
            if watermark is None:
                start = self.world.logs[found.tp][0].offset
                try:
                    watermark = yield from self.attempt(
                        lambda tp=found.tp, token=found.token, start=start: self.store.initialise(tp, token, start)
                    )
                except Fenced:
                    yield from self.acquire_again(found.tp)
                    continue
            partition = self.partitions[found.tp] = Partition(found.tp, found.token, watermark)
            if self.publishing is not Publishing.IDEMPOTENT:
                yield from self.open_producer(partition, int(found.settled or 0))
            yield from self.publish(partition, {name: Output.decode(raw) for name, raw in found.outbox.items()})

    def new_token(self) -> str:
        return str(UUID(int=self.rng.getrandbits(128)))

    def acquire_again(self, tp: TopicPartition) -> Steps[None]:
        """Step 8: unless the next poll says that the partition is no longer ours."""
        self.partitions.pop(tp, None)
        yield
        if self.world.owner[tp] == self.name or self.rng.random() > LEARNS:
            yield from self.acquire([tp])

    def score(self) -> Steps[tuple[list[PartitionBatch], list[dict[str, Output]]]]:
        """Steps 2 and 3, and the fold: one window of all partitions, in any mix."""
        batches, all_outputs = [], []
        for partition in list(self.partitions.values()):
            ahead = [record for record in self.world.logs[partition.tp] if record.offset >= partition.watermark]
            window = ahead[: self.rng.randint(1, 4)]
            if not window:
                continue
            end = window[-1].offset + 1
            self.world.read_up_to[partition.tp] = max(end, self.world.read_up_to.get(partition.tp, 0))
            names = sorted({record.conversation for record in window if record.conversation} - partition.cache.keys())
            if names:
                request = LoadRequest(partition.tp, partition.token, partition.watermark, names)
                [loaded] = yield from self.attempt(lambda r=request: self.store.load([r]))
                if loaded.outcome is not ApplyOutcome.OK:
                    yield from self.acquire_again(partition.tp)
                    continue
                read = zip(names, loaded.states, strict=True)
                partition.cache.update({name: State.decode(state) for name, state in read})
            outputs: dict[str, Output] = {}
            states: dict[str, bytes | None] = {}
            for record in window:
                state = partition.cache[record.conversation] if record.conversation else None
                noise = self.rng.randrange(1_000_000) if self.world.noisy else 0
                outputs |= outputs_of(partition.tp, record, state, noise)
                if record.conversation and state is not None:
                    states[record.conversation] = state.encode()
                yield
            encoded = {name: output.encode() for name, output in outputs.items()}
            timers = {name: due(partition.cache[name]) for name in states}
            batches.append(
                PartitionBatch(partition.tp, partition.token, partition.watermark, end, states, encoded, timers)
            )
            all_outputs.append(outputs)
        return batches, all_outputs

    def apply(self, batches: list[PartitionBatch], all_outputs: list[dict[str, Output]]) -> Steps[None]:
        """Steps 4 to 6, and 8."""
        results = yield from self.attempt(lambda: self.store.apply(batches))
        for batch, outputs, result in zip(batches, all_outputs, results, strict=True):
            partition = self.partitions.get(batch.tp)
            if partition is None or partition.token != batch.token:
                continue
            if result.outcome is ApplyOutcome.OK:
                partition.watermark = batch.next
                partition.idle = False
                yield from self.publish(partition, outputs)
                self.world.commit(batch.tp, batch.next, self.world.watermark(batch.tp))
            else:
                yield from self.acquire_again(batch.tp)

    def tick(self, partition: Partition) -> Steps[None]:
        """Timers: what is due by the watermark, in any number of conversations, under a new token."""
        request = DueRequest(
            partition.tp, partition.token, partition.watermark, partition.watermark, self.rng.randint(1, 3)
        )
        [found] = yield from self.attempt(lambda: self.store.due([request]))
        if found.outcome is not ApplyOutcome.OK:
            yield from self.acquire_again(partition.tp)
            return
        if not found.conversations:
            partition.idle = True
            partition.timers_run |= partition.watermark >= partition.barrier
            return
        partition.idle = False
        names = [name for name in found.conversations if name not in partition.cache]
        if names:
            load = LoadRequest(partition.tp, partition.token, partition.watermark, names)
            [loaded] = yield from self.attempt(lambda: self.store.load([load]))
            if loaded.outcome is not ApplyOutcome.OK:
                yield from self.acquire_again(partition.tp)
                return
            partition.cache.update(
                {name: State.decode(state) for name, state in zip(names, loaded.states, strict=True)}
            )
        token = self.new_token()
        outputs: dict[str, Output] = {}
        states: dict[str, bytes] = {}
        for name in found.conversations:
            state = partition.cache[name]
            noise = self.rng.randrange(1_000_000) if self.world.noisy else 0
            at = due(state)
            output = fire(partition.tp, state, noise)
            if output is not None and at is not None:
                outputs[tick_field(partition.watermark, at, len(outputs), token)] = output
                states[name] = state.encode()
            yield
        batch = TickBatch(
            partition.tp,
            partition.token,
            token,
            partition.watermark,
            states,
            {field: output.encode() for field, output in outputs.items()},
            dict.fromkeys(found.conversations),
        )
        [result] = yield from self.attempt(lambda: self.store.tick([batch]))
        if result.outcome is ApplyOutcome.OK:
            partition.token = partition.token if self.world.keeps_token else token
            yield from self.publish(partition, outputs)
        else:
            yield from self.acquire_again(partition.tp)

    def publish(self, partition: Partition, outputs: dict[str, Output]) -> Steps[None]:
        """Step 5: at any point between two records the worker may die."""
        partition.unsettled |= outputs.keys()
        for name, output in outputs.items():
            yield
            if output.id not in partition.present:
                if self.publishing is not Publishing.IDEMPOTENT and not self.world.may_publish(
                    partition.tp, partition.producer
                ):
                    if self.partitions.get(partition.tp) is partition:
                        yield from self.acquire_again(partition.tp)
                    return
                self.world.topic.append(output)
            partition.delivered.append(name)

    def open_producer(self, partition: Partition, settled: int) -> Steps[None]:
        """Fence the last owner's producer, then look what it has published."""
        partition.producer = self.world.open_producer(partition.tp, fence=self.publishing is not Publishing.UNFENCED)
        yield
        end = len(self.world.topic)
        yield
        partition.barrier = self.world.read_up_to.get(partition.tp, 0)
        if self.publishing is not Publishing.UNPROBED:
            partition.present = frozenset(output.id for output in self.world.topic[settled:end])

    def settle(self, partition: Partition) -> Steps[None]:
        """Move the start of later searches up: first take a position, then wait until all entries of that time are forgotten.

        Not before the input up to the barrier is applied and its timers have fired: a lost timeline's copies of what is still to be
        redone lie below.
        """
        if partition.watermark < partition.barrier and self.publishing is not Publishing.BARRIERLESS:
            return
        hasty = self.publishing in (Publishing.TIMERLESS, Publishing.BARRIERLESS, Publishing.HASTY)
        if not partition.timers_run and not hasty:
            return
        if partition.mark is None:
            partition.mark = (len(self.world.topic), set(partition.unsettled))
            return
        position, waiting = partition.mark
        if self.publishing is Publishing.HASTY or not waiting & partition.unsettled:
            partition.mark = None
            outcome = yield from self.attempt(
                lambda: self.store.settle(
                    partition.tp, partition.token, partition.watermark, b"%d" % position, partition.unsettled
                )
            )
            if outcome is not ApplyOutcome.OK and self.partitions.get(partition.tp) is partition:
                yield from self.acquire_again(partition.tp)

    def forget(self, partition: Partition) -> Steps[None]:
        fields, partition.delivered = partition.delivered, []
        token = partition.token
        forgotten = yield from self.attempt(lambda: self.store.forget(partition.tp, token, fields))
        if forgotten is not None:
            partition.unsettled.difference_update(fields)
