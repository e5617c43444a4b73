"""What the fuzz's workers compute: a log with holes, a fold that remembers every event, and the sequential truth to compare with.

Pure. A state lists the events folded into it, so that one applied twice, skipped, or folded into a stale state is seen at once. An
event's outputs carry a digest of the state they arose from, so that an output of a wrong state is a wrong output.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stream_sentiment.store.keys import TopicPartition, conversation_key, outbox_field

CONVERSATIONS = 4
ESCALATES_EVERY = 3
"""Every third event of a conversation opens an escalation."""

TIMED = 3
"""An event whose offset is a multiple of this sets a timer, which fires once: before the conversation's next event at the latest."""

POISON_SHARE = 0.08
"""Share of records that no one can read: each becomes a dead letter and changes no state."""


@dataclass(frozen=True, slots=True)
class Record:
    """One input record; `conversation` is None for a poison record."""

    offset: int
    conversation: str | None


@dataclass(frozen=True, slots=True)
class Output:
    """One record of an output topic. `id` is deterministic: partition, offset and number."""

    id: str
    content: str

    def encode(self) -> bytes:
        return json.dumps([self.id, self.content]).encode()

    @classmethod
    def decode(cls, encoded: bytes) -> Output:
        identity, content = json.loads(encoded)
        return cls(identity, content)


@dataclass(slots=True)
class State:
    """The events of one conversation so far, and what each worker's model added to them. A timer that the event at offset o has set
    and that has fired is the entry -o - 1."""

    offsets: list[int] = field(default_factory=list)
    noise: list[int] = field(default_factory=list)

    def encode(self) -> bytes:
        return json.dumps([self.offsets, self.noise]).encode()

    @classmethod
    def decode(cls, encoded: bytes | None) -> State:
        return cls(*json.loads(encoded)) if encoded else cls()


def due(state: State) -> int | None:
    """The offset of the event whose timer has not fired."""
    last = state.offsets[-1] if state.offsets else -1
    return last if last >= 0 and last % TIMED == 0 else None


def fire(tp: TopicPartition, state: State, noise: int) -> Output | None:
    """Fires the timer that is set, in place; its output's id names the event that set it, whoever fires it and when."""
    offset = due(state)
    if offset is None:
        return None
    state.offsets.append(-offset - 1)
    state.noise.append(noise)
    return Output(f"{tp.topic}/{tp.partition}/{offset}/timer", hashlib.sha256(state.encode()).hexdigest()[:16])


def make_log(rng: random.Random, tp: TopicPartition, events: int, start: int) -> list[Record]:
    """Records with strictly growing offsets from `start`; compaction and transaction markers leave holes."""
    log, offset = [], start
    for _ in range(events):
        offset += rng.choice((0, 0, 0, 1, 3))
        poison = rng.random() < POISON_SHARE
        name = conversation_key("tenant", f"{tp.topic}-{tp.partition}-{rng.randrange(CONVERSATIONS)}")
        log.append(Record(offset, None if poison else name))
        offset += 1
    return log


def outputs_of(tp: TopicPartition, record: Record, state: State | None, noise: int) -> dict[str, Output]:
    """Folds the record into the state, in place; returns its outputs by outbox field."""
    prefix = f"{tp.topic}/{tp.partition}/"
    if state is None:
        dead_letter = outbox_field(record.offset, 0)
        return {dead_letter: Output(f"{prefix}{dead_letter}/dead-letter", "unreadable")}
    outputs = {}
    timer = fire(tp, state, noise)
    if timer is not None:
        outputs[outbox_field(record.offset, 2)] = timer
    state.offsets.append(record.offset)
    state.noise.append(noise)
    if len(state.offsets) % ESCALATES_EVERY == 0:
        digest = hashlib.sha256(state.encode()).hexdigest()[:16]
        for number in range(1 + record.offset % 2):
            name = outbox_field(record.offset, number)
            outputs[name] = Output(f"{prefix}{name}/escalation", digest)
    return outputs


class Erased(NamedTuple):
    """An erasure as Redis executed it."""

    tp: TopicPartition
    conversation: str
    watermark: int
    state: bytes


@dataclass(slots=True)
class Truth:
    """States and outputs of a sequential fold without any fault."""

    states: dict[tuple[TopicPartition, str], bytes]
    outputs: dict[str, str]


def sequential_fold(logs: dict[TopicPartition, list[Record]], erasures: Sequence[Erased] = ()) -> Truth:
    """Each event once, in partition order; an erasure empties the conversation before the event at its watermark. What is due at the
    end fires at the end."""
    states: dict[tuple[TopicPartition, str], State] = {}
    outputs: dict[str, str] = {}
    for tp, log in logs.items():
        pending = sorted((erased for erased in erasures if erased.tp == tp), key=lambda erased: erased.watermark)
        for record in [*log, Record(log[-1].offset + 1, None)]:
            while pending and pending[0].watermark <= record.offset:
                erased = pending.pop(0)
                gone = states.pop((tp, erased.conversation), None)
                # A timer may have fired before the erasure, at the same watermark: the erased state tells.
                if gone is not None and len(State.decode(erased.state).offsets) > len(gone.offsets):
                    timer = fire(tp, gone, noise=0)
                    if timer is not None:  # else the protocol is broken, and the states differ
                        outputs[timer.id] = timer.content
            if record.offset > log[-1].offset:
                break
            state = None if record.conversation is None else states.setdefault((tp, record.conversation), State())
            for output in outputs_of(tp, record, state, noise=0).values():
                outputs[output.id] = output.content
    for (tp, _), state in states.items():
        timer = fire(tp, state, noise=0)
        if timer is not None:
            outputs[timer.id] = timer.content
    return Truth({key: state.encode() for key, state in states.items()}, outputs)
