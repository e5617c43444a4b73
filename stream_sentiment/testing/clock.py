"""A clock that tests turn by hand."""

from __future__ import annotations

__all__ = ["FakeClock"]

#: 2026-01-05T09:00:00Z, a Monday: what the event builders use as "now", too.
DEFAULT_START_MS = 1_767_603_600_000


class FakeClock:
    """`stream_sentiment.clock.Clock` for tests: time passes only in `advance`.

    Wall and monotonic time advance together; `set_wall` moves only the wall clock, as an administrator or NTP would.
    """

    def __init__(self, start_ms: int = DEFAULT_START_MS) -> None:
        self._wall_ms = float(start_ms)
        self._monotonic_s = 0.0

    def now_ms(self) -> int:
        """Wall time in milliseconds since the epoch."""
        return int(self._wall_ms)

    def monotonic(self) -> float:
        """Seconds since this clock was made."""
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass; raises ValueError when negative."""
        if seconds < 0:
            raise ValueError("time does not go back: use set_wall for a wall clock that is set back")
        self._wall_ms += seconds * 1000
        self._monotonic_s += seconds

    def set_wall(self, now_ms: int) -> None:
        """Set the wall clock, forward or back; monotonic time does not notice."""
        self._wall_ms = float(now_ms)
