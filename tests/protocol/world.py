"""The world of one schedule: input logs, who owns what, the output topic, and a Redis that loses replies, calls and writes.

The Redis is a real one or fakeredis; what runs in it are the project's own Lua files, called by the project's own `StateStore`.
Every call is one attempt: a lost reply reaches the worker as StoreUnavailable, and other workers run before it is sent again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from stream_sentiment.store.connection import Command, Link
from stream_sentiment.store.errors import StoreFault, StoreUnavailable
from stream_sentiment.store.keys import TopicPartition
from stream_sentiment.store.redis import ACQUIRE, APPLY, ERASE, SCRIPTS, TICK, StateStore
from tests.protocol.model import Erased, Output, Record, State

LOST_REPLY = 0.10
LOST_CALL = 0.03
LATE_CALL = 0.03
"""A call that Redis executes long after its sender gave up: it lay in a socket's buffer while Redis hung."""

MOST_LOST_WRITES = 8
Again: TypeAlias = Callable[[Command, int], Command] | None
GROUP = "fuzz"


@dataclass(slots=True)
class Write:
    """One script call that changed something; a failover keeps a prefix of a partition's writes."""

    command: Command


class ScriptedRedis:
    """A Redis (client) that runs the shipped scripts, or what `mutate` made of them (name and source to source)."""

    def __init__(self, client: Any, mutate: Callable[[str, str], str]) -> None:
        self.client = client
        self._shas = {script.sha: client.script_load(mutate(script.name, script.source)) for script in SCRIPTS}
        client.flushdb()

    def execute(self, command: Command) -> Any:
        if command[0] == "EVALSHA":
            command = ("EVALSHA", self._shas[str(command[1])], *command[2:])
        return self.client.execute_command(*command)

    def exchange(self, commands: Sequence[Command], deadline: float, again: Again = None) -> list[Any]:
        """`Link.exchange` without any fault."""
        del deadline, again
        return [self.execute(command) for command in commands]

    def close(self) -> None:
        """`Link.close`."""


def make_store(link: Link) -> StateStore:
    return StateStore("redis://nowhere", group=GROUP, state_ttl_ms=86_400_000, link=link)


@dataclass(slots=True)
class World:
    """Everything outside the workers."""

    rng: random.Random
    scripts: ScriptedRedis
    logs: dict[TopicPartition, list[Record]]
    noisy: bool = False
    owner: dict[TopicPartition, str] = field(default_factory=dict)
    topic: list[Output] = field(default_factory=list)
    writes: dict[TopicPartition, list[Write]] = field(default_factory=dict)
    read_up_to: dict[TopicPartition, int] = field(default_factory=dict)
    """The input that exists so far: the log grows just ahead of whoever reads furthest."""
    producers: dict[TopicPartition, int] = field(default_factory=dict)
    late: list[Command] = field(default_factory=list)
    commits: dict[TopicPartition, int] = field(default_factory=dict)
    erasures: list[Erased] = field(default_factory=list)
    notices: set[str] = field(default_factory=set)
    """Ids of the records that tell consumers of an erasure; each must reach the topic."""
    faulty: bool = True
    keeps_token: bool = False
    failovers: int = 0
    broken_lineages: int = 0
    commits_ahead: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        self.writes = {tp: [] for tp in self.logs}

    @property
    def redis(self) -> Any:
        return self.scripts.client

    def store(self) -> StateStore:
        """A store of its own for a worker, over this world's Redis."""
        return make_store(self)

    def exchange(self, commands: Sequence[Command], deadline: float, again: Again = None) -> list[Any]:
        """`Link.exchange`, once, with faults. The commands of one pipeline are independent: each may be lost alone."""
        del deadline, again
        replies = []
        failure = None
        for command in commands:
            self.calls += 1
            fate = self.rng.random() if self.faulty else 1.0
            if fate < LOST_CALL:
                failure = StoreUnavailable(StoreFault.CONNECTION, "lost on the way to Redis")
            elif fate < LOST_CALL + LATE_CALL:
                self.late.append(command)
                failure = StoreUnavailable(StoreFault.TIMEOUT, "Redis hangs")
            else:
                replies.append(self._execute(command))
                if fate < LOST_CALL + LATE_CALL + LOST_REPLY:
                    failure = StoreUnavailable(StoreFault.TIMEOUT, "lost on the way back")
        if failure is not None:
            raise failure
        return replies

    def close(self) -> None:
        """`Link.close`."""

    def execute_late_call(self) -> None:
        """One of the calls that nobody waits for any more."""
        if self.late:
            self._execute(self.late.pop(self.rng.randrange(len(self.late))))

    def fail_over(self, tps: Sequence[TopicPartition], lost: int) -> None:
        """The replica that takes over has not seen the last `lost` writes of these partitions (of one slot, or of one node's)."""
        self.failovers += 1
        for tp in tps:
            kept = self.writes[tp][: max(0, len(self.writes[tp]) - lost)]
            base = f"ss:{{{GROUP}:{tp.topic}:{tp.partition}}}:"
            self.redis.delete(
                base + "meta",
                base + "outbox",
                base + "due",
                *{base + f"c:{record.conversation}" for record in self.logs[tp] if record.conversation},
            )
            for write in kept:
                self.scripts.execute(write.command)
            self.writes[tp] = kept

    def open_producer(self, tp: TopicPartition, *, fence: bool) -> int:
        """init_transactions: from now on the older producers of this partition cannot publish."""
        self.producers[tp] = self.producers.get(tp, 0) + fence
        return self.producers[tp]

    def may_publish(self, tp: TopicPartition, producer: int) -> bool:
        return self.producers[tp] == producer

    def commit(self, tp: TopicPartition, offset: int, watermark: int | None) -> None:
        """A commit to Kafka. Nobody may commit beyond the watermark, except where a failover took the watermark back."""
        if not self.failovers and (watermark is None or offset > watermark):
            self.commits_ahead += 1
        self.commits[tp] = offset

    def state(self, tp: TopicPartition, conversation: str) -> bytes | None:
        value: bytes | None = self.redis.get(f"ss:{{{GROUP}:{tp.topic}:{tp.partition}}}:c:{conversation}")
        return value

    def watermark(self, tp: TopicPartition) -> int | None:
        value = self.redis.hget(f"ss:{{{GROUP}:{tp.topic}:{tp.partition}}}:meta", "wm")
        return None if value is None else int(value)

    def deadlines(self, tp: TopicPartition) -> int:
        return int(self.redis.zcard(f"ss:{{{GROUP}:{tp.topic}:{tp.partition}}}:due"))

    def outbox_size(self, tp: TopicPartition) -> int:
        return int(self.redis.hlen(f"ss:{{{GROUP}:{tp.topic}:{tp.partition}}}:outbox"))

    def _execute(self, command: Command) -> Any:
        if command[0] != "EVALSHA":
            return self.scripts.execute(command)
        before = self._states_before(command)
        reply = self.scripts.execute(command)
        if command[1] == ACQUIRE.sha or (reply[0] == b"OK" and reply[1] not in (0, b"0")):
            self.writes[self._partition(command)].append(Write(command))
        if before and reply[0] == b"OK":
            self._check_lineage(command, before)
        if command[1] == ERASE.sha and reply[0] == b"OK" and reply[1]:
            self._note_erasure(command)
        return reply

    def _partition(self, command: Command) -> TopicPartition:
        _, topic, number = str(command[3]).partition("{")[2].partition("}")[0].rsplit(":", 2)
        return TopicPartition(topic, int(number))

    def _states_before(self, command: Command) -> list[bytes | None]:
        if command[1] not in (APPLY.sha, TICK.sha):
            return []
        keys = command[6 : 3 + int(command[2])]
        return self.redis.mget(keys) if keys else []

    def _check_lineage(self, command: Command, before: list[bytes | None]) -> None:
        """A written state is the state it overwrites plus events of this batch (or one timer), or someone worked on a stale copy."""
        arguments = command[3 + int(command[2]) :]
        ticks = command[1] == TICK.sha
        low, high = (0, 0) if ticks else (int(arguments[1]), int(arguments[2]))
        begin = 4 if ticks else 5
        for old, new in zip(before, arguments[begin : begin + len(before)], strict=True):
            ancestor, state = State.decode(old), State.decode(bytes(new))  # type: ignore[arg-type]
            length = len(ancestor.offsets)
            descends = state.offsets[:length] == ancestor.offsets and state.noise[:length] == ancestor.noise
            added = [offset for offset in state.offsets[length:] if offset >= 0]
            fits = len(state.offsets) == length + 1 and not added if ticks else all(low <= o < high for o in added)
            if not descends or not fits:
                self.broken_lineages += 1

    def _note_erasure(self, command: Command) -> None:
        tp = self._partition(command)
        conversation = str(command[6]).partition(":c:")[2]
        self.erasures.append(Erased(tp, conversation, self.watermark(tp) or 0, bytes(command[8])))  # type: ignore[arg-type]
        self.notices.update(Output.decode(bytes(record)).id for record in command[10:])  # type: ignore[arg-type]
