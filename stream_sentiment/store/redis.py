"""The state store: acquire, initialise, load, apply, due, tick, forget; find and erase for a person.

The words are those of docs/delivery.md.

In: tokens, watermarks, encoded states and records. Out: what Redis holds, and whether a write counted. Every call is one round trip for
any number of partitions, blocks until its deadline while Redis is away, and raises `StoreUnavailable` or `StoreRefused`. Every call may
be sent again with the same arguments. Safe to use from several threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from stream_sentiment.clock import Clock, SystemClock
from stream_sentiment.store.connection import Command, Link, LinkOptions, RedisLink, Script
from stream_sentiment.store.describe import ServerReport, describe
from stream_sentiment.store.errors import Fenced, StoreFault
from stream_sentiment.store.keys import PartitionKeys, TopicPartition, outbox_order

CALL_BUDGET_S: Final = 1.0
"""How long a call goes on trying where the caller names no deadline. Short, because the poll thread may be the caller."""

COUNT_IS_ASKED_OF: Final = 64
"""How many of a topic's partitions are asked for the recorded number of partitions: one that was ever owned suffices."""

ACQUIRE: Final = Script("acquire.lua")
INITIALISE: Final = Script("initialise.lua")
LOAD: Final = Script("load.lua")
APPLY: Final = Script("apply.lua")
DUE: Final = Script("due.lua")
TICK: Final = Script("tick.lua")
FORGET: Final = Script("forget.lua")
SETTLE: Final = Script("settle.lua")
ERASE: Final = Script("erase.lua")
SCRIPTS: Final = (ACQUIRE, INITIALISE, LOAD, APPLY, DUE, TICK, FORGET, SETTLE, ERASE)

NO_DEADLINES: Final[Mapping[str, int | None]] = MappingProxyType({})


class ApplyOutcome(StrEnum):
    """What became of a batch (or of a read, which is never ALREADY)."""

    OK = "ok"
    """Written. Continue with the cache."""
    ALREADY = "already"
    """The batch lies before the watermark: a lost reply, or redone work. Success: go on from the returned watermark, but with
    an empty cache and a re-read outbox (acquire again)."""
    GAP = "gap"
    """The batch does not begin at the watermark; Redis lost writes, or we did. Acquire again, seek to its watermark."""
    FENCED = "fenced"
    """Someone else took the partition. Acquire again if it is still assigned to us, else let it go."""


class LoadRequest(NamedTuple):
    """Conversations (each a `conversation_key`) whose states are wanted, under the token and at the watermark the caller holds."""

    tp: TopicPartition
    token: str
    watermark: int
    conversations: Sequence[str]


class LoadResult(NamedTuple):
    """`states` in the order asked, None where Redis holds none; empty unless the outcome is OK."""

    outcome: ApplyOutcome
    states: list[bytes | None]


class PartitionBatch(NamedTuple):
    """A contiguous run of one partition's events after scoring, folded.

    `first` is the watermark the caller holds, never the first record's offset; `next` is the last record's offset + 1: logs have holes.
    `states` maps `conversation_key` or `storm_key` to the encoded state, None to delete it; `outputs` maps `outbox_field` to the
    encoded record. `deadlines` maps `conversation_key` to the event time at which a timer falls due, None where none does any more;
    those that are not named stay. `clock` is what `Acquired.clock` gives the next owner; "" leaves it.
    """

    tp: TopicPartition
    token: str
    first: int
    next: int
    states: Mapping[str, bytes | None]
    outputs: Mapping[str, bytes]
    deadlines: Mapping[str, int | None] = NO_DEADLINES
    clock: str = ""


class DueRequest(NamedTuple):
    """Conversations with a timer that falls due by event time `now_ms` are wanted, `limit` at most."""

    tp: TopicPartition
    token: str
    watermark: int
    now_ms: int
    limit: int


class DueResult(NamedTuple):
    """`conversations` are `conversation_key`s, the longest overdue first; `later_ms` is the first deadline after the moment asked for,
    None where there is none. Both empty unless the outcome is OK."""

    outcome: ApplyOutcome
    conversations: list[str]
    later_ms: int | None


class TickBatch(NamedTuple):
    """What fell due in a partition while nobody wrote. The caller's token is `next_token` afterwards, a new UUID."""

    tp: TopicPartition
    token: str
    next_token: str
    watermark: int
    states: Mapping[str, bytes]
    outputs: Mapping[str, bytes]
    deadlines: Mapping[str, int | None]


class ApplyResult(NamedTuple):
    """`watermark` is the stored one: None where none is stored, and where the batch was FENCED. `outbox` counts entries after OK."""

    outcome: ApplyOutcome
    watermark: int | None
    outbox: int = 0


@dataclass(frozen=True, slots=True)
class Acquired:
    """What the partition's last owner left. `outbox` is in the order in which it must be published."""

    tp: TopicPartition
    token: str
    watermark: int | None
    outbox: dict[str, bytes]
    partitions: int | None
    """How many partitions the topic had when this one was first acquired. Where it has another number now, keys map to other
    partitions and their states are stranded: refuse to start unless told."""
    previous_token: str = ""
    settled: bytes = b""
    """What the last owner's `settle` stored; empty where none did."""
    clock: str = ""
    """What the last `apply` that named one stored; empty where none did."""


@dataclass(frozen=True, slots=True)
class Found:
    """A conversation's state and where it lies."""

    tp: TopicPartition
    conversation: str
    state: bytes
    watermark: int | None


@dataclass(frozen=True, slots=True)
class Erasure:
    """A conversation to forget: the state as `find` returned it, and the records that tell consumers of it.

    These are the `resolved` of an open escalation, and the tombstone for the topic of states."""

    found: Found
    outputs: Sequence[bytes] = field(default=())


class StateStore:
    """One consumer group's partitions in Redis."""

    def __init__(
        self,
        url: str,
        *,
        group: str,
        state_ttl_ms: int,
        prefix: str = "ss",
        username: str | None = None,
        password: str | None = None,
        connect_timeout: float = 1.0,
        socket_timeout: float = 1.0,
        ssl_ca_certs: str | None = None,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
        clock: Clock | None = None,
        on_fault: Callable[[StoreFault], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
        link: Link | None = None,
    ) -> None:
        """Opens no connection (a `redis+cluster://` URL asks the cluster for its nodes).

        `state_ttl_ms` is how long Redis keeps a state after its last write; the worker's cache must not keep one longer.
        `link` replaces the connection: the protocol fuzz uses it. Raises ConfigurationError for a bad URL, prefix or group.
        """
        if state_ttl_ms <= 0:
            raise ValueError("state_ttl_ms must be positive")
        self._clock = clock or SystemClock()
        self._keys = PartitionKeys(prefix, group)
        self._ttl = str(state_ttl_ms)
        options = LinkOptions(
            url, username, password, connect_timeout, socket_timeout, ssl_ca_certs, ssl_certfile, ssl_keyfile
        )
        self.link: Link = link or RedisLink(options, SCRIPTS, clock=self._clock, on_fault=on_fault, sleep=sleep)

    @property
    def group(self) -> str:
        return self._keys.group

    def keep_states(self, state_ttl_ms: int) -> None:
        """Write states with this time to live from now on; those in Redis keep theirs until they are written again."""
        if state_ttl_ms <= 0:
            raise ValueError("state_ttl_ms must be positive")
        self._ttl = str(state_ttl_ms)

    def acquire(
        self,
        assignments: Sequence[tuple[TopicPartition, str]],
        member: str,
        *,
        partition_counts: Mapping[str, int] | None = None,
        accept_partition_counts: bool = False,
        deadline: float | None = None,
    ) -> list[Acquired]:
        """Step 1: takes each partition under its token (a new UUID per assignment, from the caller).

        The token that counts is the result's: where the call had to be sent again it is another one (see acquire.lua).
        `partition_counts` (topic to number of partitions now) is recorded at the first acquisition, and again where
        `accept_partition_counts` says that a change is wanted. A deadline is a time of the clock's `monotonic`.
        """
        counts = partition_counts or {}
        replies = self._run(
            [
                self._script(
                    ACQUIRE,
                    (self._keys.meta(tp), self._keys.outbox(tp)),
                    (token, member, self._clock.now_ms(), counts.get(tp.topic, ""), int(accept_partition_counts)),
                )
                for tp, token in assignments
            ],
            deadline,
            _with_another_token,
        )
        acquired = []
        for (tp, _), reply in zip(assignments, replies, strict=True):
            watermark, partitions, previous, flat, settled, token, clock = reply
            entries = {name.decode(): record for name, record in zip(flat[::2], flat[1::2], strict=True)}
            acquired.append(
                Acquired(
                    tp,
                    token.decode(),
                    _number(watermark),
                    {name: entries[name] for name in sorted(entries, key=outbox_order)},
                    _number(partitions),
                    previous.decode(),
                    settled,
                    clock.decode(),
                )
            )
        return acquired

    def initialise(
        self,
        tp: TopicPartition,
        token: str,
        start: int,
        *,
        replaces: int | None = None,
        deadline: float | None = None,
    ) -> int:
        """First start: sets the watermark to the offset to read from, unless one is stored; returns the stored one.

        `replaces` is a stored one that may be moved, where a policy says so (the topic was created anew). Raises Fenced.
        """
        [reply] = self._run(
            [self._script(INITIALISE, (self._keys.meta(tp),), (token, start, "" if replaces is None else replaces))],
            deadline,
        )
        if reply[0] == b"FENCED":
            raise Fenced(reply[1].decode())
        return int(reply[1])

    def load(self, requests: Sequence[LoadRequest], *, deadline: float | None = None) -> list[LoadResult]:
        """Step 3: reads states, of each partition at one moment, and only while token and watermark are the caller's.

        Anything but OK means what it means after `apply`: acquire again.
        """
        replies = self._run(
            [
                self._script(
                    LOAD,
                    [self._keys.meta(tp), *[self._keys.conversation(tp, name) for name in conversations]],
                    (token, watermark),
                )
                for tp, token, watermark, conversations in requests
            ],
            deadline,
        )
        return [LoadResult(_OUTCOMES[reply[0]], reply[1] if reply[0] == b"OK" else []) for reply in replies]

    def apply(self, batches: Sequence[PartitionBatch], *, deadline: float | None = None) -> list[ApplyResult]:
        """Step 4: writes each batch's states, outputs and watermark, or nothing of it; partitions are independent.

        After StoreUnavailable some batches may be written: send the same batches again, ALREADY then tells which.
        """
        commands: list[Command] = []
        for tp, token, first, following, states, outputs, deadlines, clock in batches:
            if following <= first:
                raise ValueError(f"{tp}: an empty batch [{first}, {following}) cannot be applied")
            command = self._writing(APPLY, tp, states)
            command += (token, first, following, self._ttl, clock)
            command += [state or b"" for state in states.values()]
            command += _changes(deadlines, outputs)
            commands.append(command)
        return [_apply_result(reply) for reply in self._run(commands, deadline)]

    def due(self, requests: Sequence[DueRequest], *, deadline: float | None = None) -> list[DueResult]:
        """Which conversations a timer of which has fallen due; their states are decided on after `load`. Fenced like it."""
        commands = [
            self._script(
                DUE,
                (self._keys.meta(request.tp), self._keys.due(request.tp)),
                (request.token, request.watermark, request.now_ms, request.limit),
            )
            for request in requests
        ]
        results = []
        for reply in self._run(commands, deadline):
            if reply[0] == b"OK":
                later = float(reply[2]) if reply[2] else None
                names = [name.decode() for name in reply[1]]
                results.append(DueResult(ApplyOutcome.OK, names, None if later is None else int(later)))
            else:
                results.append(DueResult(_OUTCOMES[reply[0]], [], None))
        return results

    def tick(self, batches: Sequence[TickBatch], *, deadline: float | None = None) -> list[ApplyResult]:
        """Writes each partition's ticked states, outputs and deadlines, or nothing of it, and changes the owner's token.

        After StoreUnavailable send the same batches again; ALREADY says that it was in: acquire again, the outbox has the outputs.
        """
        commands: list[Command] = []
        for tp, token, next_token, watermark, states, outputs, deadlines in batches:
            command = self._writing(TICK, tp, states)
            command += (token, next_token, watermark, self._ttl)
            command += states.values()
            command += _changes(deadlines, outputs)
            commands.append(command)
        return [_apply_result(reply) for reply in self._run(commands, deadline)]

    def _writing(
        self, script: Script, tp: TopicPartition, states: Mapping[str, bytes | None]
    ) -> list[str | bytes | int]:
        """The beginning of a call of APPLY or TICK."""
        base = self._keys.base(tp)
        command: list[str | bytes | int] = ["EVALSHA", script.sha, 3 + len(states)]
        command += (base + "meta", base + "outbox", base + "due")
        command += [self._keys.conversation(tp, name) for name in states]
        return command

    def forget(
        self, tp: TopicPartition, token: str, fields: Sequence[str], *, deadline: float | None = None
    ) -> int | None:
        """Step 5: removes delivered outbox entries; returns how many there were, None where another owner has the partition now."""
        if not fields:
            return 0
        keys = (self._keys.meta(tp), self._keys.outbox(tp))
        [reply] = self._run([self._script(FORGET, keys, (token, *fields))], deadline)
        return None if reply[0] == b"FENCED" else int(reply[1])

    def settle(
        self,
        tp: TopicPartition,
        token: str,
        watermark: int,
        positions: bytes,
        outbox: Collection[str],
        *,
        deadline: float | None = None,
    ) -> ApplyOutcome:
        """With `output.exactly_once`: no entry that may have a copy below these output positions is left, but those in `outbox`.

        `outbox` names every entry that the caller knows to be there. Anything but OK: acquire again.
        """
        keys = (self._keys.meta(tp), self._keys.outbox(tp))
        [reply] = self._run([self._script(SETTLE, keys, (token, watermark, positions, *outbox))], deadline)
        return _OUTCOMES[reply[0]]

    def find(
        self, topic: str, conversation: str, *, partitions: int | None = None, deadline: float | None = None
    ) -> list[Found]:
        """Every partition of the topic is asked, in one round trip: there is no second index to keep true.

        `partitions` defaults to the recorded number. More than one answer means that the number was changed, and that the conversation
        went on in another partition; the one with the newest state is the living one. Empty: no state, or an unknown topic.
        """
        count = partitions or self.partition_count(topic, deadline=deadline) or 0
        places = [TopicPartition(topic, number) for number in range(count)]
        commands: list[Command] = []
        for tp in places:
            commands += [("GET", self._keys.conversation(tp, conversation)), ("HGET", self._keys.meta(tp), "wm")]
        replies = self._run(commands, deadline)
        return [
            Found(tp, conversation, state, _number(watermark))
            for tp, state, watermark in zip(places, replies[::2], replies[1::2], strict=True)
            if state is not None
        ]

    def partition_count(self, topic: str, *, deadline: float | None = None) -> int | None:
        """The number of partitions that owners of the topic recorded; None where none did. The largest, while it is changing."""
        places = [TopicPartition(topic, number) for number in range(COUNT_IS_ASKED_OF)]
        replies = self._run([("HGET", self._keys.meta(tp), "partitions") for tp in places], deadline)
        return max((int(reply) for reply in replies if reply), default=None)

    def erase(self, erasures: Sequence[Erasure], token: str, *, deadline: float | None = None) -> bool:
        """Forgets conversations of one partition, all or none, and takes the partition from its owner under `token`, a new UUID.

        False: a state changed since `find` returned it; find again and try again. The owner notices by FENCED, see erase.lua.
        """
        [tp] = {erasure.found.tp for erasure in erasures}
        keys = [self._keys.meta(tp), self._keys.outbox(tp), self._keys.due(tp)]
        keys += [self._keys.conversation(tp, erasure.found.conversation) for erasure in erasures]
        arguments: list[str | bytes] = [token, *[erasure.found.state for erasure in erasures]]
        arguments += [erasure.found.conversation for erasure in erasures]
        arguments += [record for erasure in erasures for record in erasure.outputs]
        [reply] = self._run([self._script(ERASE, keys, arguments)], deadline)
        return bool(reply[0] == b"OK")

    def describe(self, *, deadline: float | None = None) -> list[ServerReport]:
        """For `check` and a worker's start: what the servers are, and which conditions of the guarantee do not hold."""
        if not isinstance(self.link, RedisLink):
            return []
        scratch = self._keys.base(TopicPartition("__check__", 0)) + "scratch"
        return describe(self.link, scratch, self._deadline(deadline))

    def close(self) -> None:
        """Closes the connections."""
        self.link.close()

    def _run(
        self,
        commands: Sequence[Command],
        deadline: float | None,
        again: Callable[[Command, int], Command] | None = None,
    ) -> list[Any]:
        if not commands:
            return []
        return self.link.exchange(commands, self._deadline(deadline), again)

    def _deadline(self, deadline: float | None) -> float:
        return self._clock.monotonic() + CALL_BUDGET_S if deadline is None else deadline

    @staticmethod
    def _script(script: Script, keys: Sequence[str], arguments: Sequence[str | bytes | int]) -> Command:
        return ("EVALSHA", script.sha, len(keys), *keys, *arguments)


def _with_another_token(command: Command, sending: int) -> Command:
    """An ACQUIRE as it is sent the n-th time: a token of its own, recognisably the same owner's."""
    first_argument = 3 + int(command[2])
    token = f"{command[first_argument]!s}/{sending}"
    return (*command[:first_argument], token, *command[first_argument + 1 :])


def _changes(deadlines: Mapping[str, int | None], outputs: Mapping[str, bytes]) -> list[str | bytes | int]:
    """The end of a call of APPLY or TICK."""
    arguments: list[str | bytes | int] = [len(deadlines)]
    for name, at in deadlines.items():
        arguments += (name, "" if at is None else at)
    for field_and_record in outputs.items():
        arguments += field_and_record
    return arguments


def _apply_result(reply: list[Any]) -> ApplyResult:
    outcome = _OUTCOMES[reply[0]]
    if outcome is ApplyOutcome.OK:
        return ApplyResult(outcome, int(reply[1]), reply[2])
    return ApplyResult(outcome, None if outcome is ApplyOutcome.FENCED else _number(reply[1]))


_OUTCOMES: Final = {outcome.value.upper().encode(): outcome for outcome in ApplyOutcome}


def _number(text: bytes | None) -> int | None:
    return int(text) if text else None
