"""What time it is in a partition: event time decides, wall time informs.

In: event times and broker times of applied records; how far in wall time the partition is known to be worked off. Out: the event
time by which timers are due. Pure.

    caught up      newest event + (wall - broker time of the last event)
    else           newest event
    never later than the wall

An event counts as no newer than the broker's time of its record: one producer whose clock is ahead hurries nobody. The second
summand is how long the partition has been silent: while nobody writes, wall time moves the clock, at its own pace. A backlog is not
silence: what waits in it may be the answer, so there events alone move the clock. Events of the past, published now, keep their
own time.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PartitionClock:
    """Times in milliseconds since the epoch."""

    #: The newest event time applied; None before the first event.
    event_ms: int | None = None
    #: When the broker took the last event applied, by the timestamp of its record.
    broker_ms: int = 0

    def passed(self, event_ms: int, broker_ms: int) -> None:
        """An event has been applied."""
        event_ms = min(event_ms, broker_ms)
        if self.event_ms is None or event_ms > self.event_ms:
            self.event_ms = event_ms
        self.broker_ms = broker_ms

    def now_ms(self, wall_ms: int, complete_ms: int | None) -> int | None:
        """Event time now; None while it is not known.

        Args:
            complete_ms: wall time at which everything that the partition held had been applied; None: there is a backlog.
        """
        if self.event_ms is None:
            return None
        if complete_ms is None:
            return min(wall_ms, self.event_ms)
        return min(complete_ms, self.event_ms + max(0, complete_ms - self.broker_ms))

    def encode(self) -> str:
        """For the next owner; "" before the first event."""
        return "" if self.event_ms is None else f"{self.event_ms}:{self.broker_ms}"

    @classmethod
    def decode(cls, text: str) -> PartitionClock:
        if not text:
            return cls()
        event_ms, _, broker_ms = text.partition(":")
        return cls(int(event_ms), int(broker_ms))
