"""The thread that looks for new rules and new models, every few seconds or when it is told to.

In: sources, each with its own interval. Out: calls of `Source.look`. A file is looked at by polling, not by inotify: a ConfigMap's
symlinks, network mounts and editors that replace by rename then need no special case. Raises nothing: a source that fails is logged.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from stream_sentiment.observability.logs import get_logger

#: How a file looks without being read, symlinks followed: device, inode, size, times of change. None: it is not there.
Look: TypeAlias = tuple[int, ...] | None

log = get_logger("live")


def look_at(path: Path) -> Look:
    """One `stat`. A replaced file has another inode, one that is written in place another time."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Settled:
    """Tells a change only once it has looked the same twice: a file that is being written is no version of anything."""

    def __init__(self, known: object) -> None:
        self._known = known
        self._candidate = known

    def changed(self, seen: object, *, at_once: bool = False) -> bool:
        """Whether `seen` is new and settled; it is known from then on. `at_once`: a person says that it is complete."""
        if at_once:
            self._known = self._candidate = seen
            return True
        if seen == self._known:
            self._candidate = seen
            return False
        if seen != self._candidate:
            self._candidate = seen
            return False
        self._known = seen
        return True


class Source(Protocol):
    """Something that may change."""

    #: Seconds between two looks; 0: only when told.
    interval: float

    def look(self, *, at_once: bool = False) -> None:
        """Look for a change and act on it. `at_once`: a person asks (SIGHUP), so take up what is there."""


class Watcher:
    """One daemon thread for all sources of a worker."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources: Sequence[Source] = tuple(sources)
        # Not an Event: a signal handler may call `look_now` while its own thread holds the Event's lock.
        self._told: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="live", daemon=True)

    def start(self) -> None:
        if self._sources:
            self._thread.start()

    def look_now(self) -> None:
        """Have every source looked at, soon. May be called from a signal handler."""
        self._told.put(None)

    def stop(self) -> None:
        """End the thread; a model that is being loaded is finished and not used."""
        self._stopping = True
        self._told.put(None)
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _run(self) -> None:
        due = {source: time.monotonic() + source.interval for source in self._sources if source.interval > 0}
        while True:
            wait = max(0.0, min(due.values()) - time.monotonic()) if due else None
            told = self._wait(wait)
            if self._stopping:
                return
            now = time.monotonic()
            for source in self._sources:
                if not told and due.get(source, now + 1.0) > now:
                    continue
                try:
                    source.look(at_once=told)
                except Exception as error:
                    # Whatever it is, the worker goes on with what it has.
                    log.error("live_change_failed", source=type(source).__name__, exc_info=error)
                if source in due:
                    due[source] = time.monotonic() + source.interval

    def _wait(self, seconds: float | None) -> bool:
        """True when told, False when the time is up."""
        try:
            self._told.get(timeout=seconds)
        except queue.Empty:
            return False
        return True
