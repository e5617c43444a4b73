"""CPU seconds of this process, by thread: Linux only, from /proc."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

#: Threads of librdkafka name themselves `rdk:...`; Python's are found by their native ids.
KAFKA_CLIENT = "kafka client"


def cpu_seconds_by_thread() -> dict[str, float]:
    """Seconds of CPU per thread name so far; resolution one tick (10 ms). Threads that have ended are missing."""
    names = {thread.native_id: thread.name for thread in threading.enumerate() if thread.native_id is not None}
    seconds: dict[str, float] = defaultdict(float)
    for task in Path("/proc/self/task").iterdir():
        try:
            comm = (task / "comm").read_text(encoding="utf-8").strip()
            # The command name, in parentheses, may hold spaces: the fields are counted from its end.
            fields = (task / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        name = names.get(int(task.name)) or (KAFKA_CLIENT if comm.startswith("rdk:") else comm)
        if name.startswith("infer"):
            name = "infer"
        seconds[name] += (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
    return dict(seconds)


def difference(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """Seconds per thread between two readings; names that used none are left out."""
    used = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    return {name: seconds for name, seconds in used.items() if seconds > 0}
