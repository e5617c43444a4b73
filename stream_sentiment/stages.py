"""What passes between the threads of a worker: epochs, records, windows.

An `Epoch` is one assignment of one input partition to this worker. Every record carries the epoch under which it was read;
whatever comes back for a dead epoch is dropped, never applied, never committed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stream_sentiment.events.incoming import Decoded, InvalidEvent, Skip
from stream_sentiment.partition_clock import PartitionClock
from stream_sentiment.store.keys import TopicPartition

if TYPE_CHECKING:
    from concurrent.futures import Future

    from stream_sentiment.conversation.state import ConversationState
    from stream_sentiment.conversation.turn import Signal
    from stream_sentiment.escalation.storm import StormState
    from stream_sentiment.live.serving import Serving
    from stream_sentiment.scoring.corrections import Correction
    from stream_sentiment.scoring.scorer import Score

    BatchFuture = Future[tuple[list[Score | Exception], float]]


class Epoch:
    """One assignment of one partition.

    `alive` is written by the poll thread (and by the apply thread when Redis answers FENCED or GAP), read by all. `watermark` and
    `states` belong to the apply thread once the epoch has started.
    """

    __slots__ = (
        "alive",
        "at_end",
        "attempts",
        "clock",
        "committed",
        "complete_ms",
        "deadlines",
        "end_offset",
        "kind",
        "last_progress",
        "last_timestamp_ms",
        "next_due",
        "partition",
        "read_up_to",
        "settled",
        "states",
        "storms",
        "timers_through",
        "token",
        "watermark",
    )

    def __init__(
        self,
        partition: TopicPartition,
        kind: str,
        token: str,
        watermark: int,
        settled: bytes = b"",
        clock: PartitionClock | None = None,
    ) -> None:
        self.partition = partition
        #: chat or review
        self.kind = kind
        #: A tick changes it; apply thread only.
        self.token = token
        #: Next input offset to apply; equal to what Redis holds.
        self.watermark = watermark
        #: Next input offset to be read; poll thread only.
        self.read_up_to = watermark
        #: Last offset committed to Kafka; poll thread only.
        self.committed = -1
        self.alive = True
        #: Nothing is left to read; poll thread only.
        self.at_end = False
        #: Where the partition ended when `at_end` became true; poll thread only.
        self.end_offset = -1
        #: Wall time at which everything in the partition had been applied; None: there is a backlog. Written by the poll thread.
        self.complete_ms: int | None = None
        #: What time it is in the partition; the last owner's until our first event.
        self.clock = clock or PartitionClock()
        #: Event time of the first deadline in Redis, as far as we know; 0: not asked yet.
        self.next_due: float = 0
        #: Deadlines that Redis holds, of conversations in `states`.
        self.deadlines: dict[str, int] = {}
        #: Watermark at which every timer that was due had fired.
        self.timers_through: float = -1 if kind == "chat" else math.inf
        #: From where the output topics are searched for copies, with `output.exactly_once`; what the last owner settled.
        self.settled = settled
        #: How often the partition was acquired anew because of FENCED or GAP without progress in between.
        self.attempts = 0
        self.last_progress = 0.0
        self.last_timestamp_ms = 0
        #: Write-through cache of conversation states, by conversation key, with the monotonic time of the last write.
        self.states: dict[str, tuple[ConversationState | None, float]] = {}
        #: The same for the storm guard's, by storm key.
        self.storms: dict[str, StormState | None] = {}

    def __repr__(self) -> str:
        return f"Epoch({self.partition.topic}[{self.partition.partition}] wm={self.watermark} alive={self.alive})"


@dataclass(slots=True)
class Record:
    """One Kafka record on its way through the worker."""

    epoch: Epoch
    offset: int
    timestamp_ms: int
    received_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]] | None
    outcome: Decoded | Skip | InvalidEvent
    #: What the model is to read; None when nothing is scored.
    text: str | None = None
    skipped_reason: str | None = None
    #: Key of the conversation's state; None for what needs none.
    conversation: str | None = None
    signals: tuple[Signal, ...] = ()
    language: str = ""
    truncated: bool = False
    score: Score | None = None
    #: What the rules after the model have changed in it.
    corrections: tuple[Correction, ...] = ()
    #: Set when the model failed on this record alone.
    poison: str | None = None
    #: When a canary was published, milliseconds since the epoch; None for everything else.
    canary_ms: int | None = None
    batch_size: int = 0
    inference_ms: float = 0.0
    queue_ms: float = 0.0


@dataclass(slots=True)
class Window:
    """An arrival window: records of any mix of partitions in the order of arrival, and their scores in the making."""

    records: list[Record]
    trigger: str
    #: The rules and the model that all its records are worked on with.
    serving: Serving
    #: Monotonic seconds when the window was closed.
    closed_at: float
    size_bytes: int = 0
    scored: list[Record] = field(default_factory=list)
    #: Indices into `scored`, one list a micro-batch, and the future of each.
    batches: list[list[int]] = field(default_factory=list)
    futures: list[BatchFuture] = field(default_factory=list)
