"""The player: from a chat log to a stream of records as a live chat floor would send them.

`schedule` is pure: conversations share a number of lanes, so that about that many are open at any time, and each record gets the
moment at which it is sent. `play` is the clockwork: it waits, and calls `publish`. It blocks as long as the stream lasts.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import orjson

from stream_sentiment.demo.chatlog import ChatLog, Conversation
from stream_sentiment.events.envelope import record_key, rfc3339

_Item = TypeVar("_Item")

#: Conversations that are open at the same time.
LANES: Final = 12

#: Nobody watches a chat for an hour: longer silences are shortened to this on the floor. The events keep their true times.
MAX_GAP_S: Final = 75.0

#: Between the end of a conversation and the next one in its lane.
_PAUSE_S = 8.0

#: The first conversations begin this far apart, so that the floor fills at a pace that the eye can follow.
_STAGGER_S = 4.0


@dataclass(frozen=True, slots=True)
class TimedRecord:
    """One record with the moment at which it is sent."""

    at_s: float  # floor seconds since the start
    topic_kind: str  # chat or review
    key: str
    value: bytes
    event: dict[str, Any] | None  # None: a broken record


def schedule(log: ChatLog, end_ms: int, *, lanes: int = LANES, repeat: int = 1) -> list[TimedRecord]:
    """Every record of the log in the order of sending.

    Args:
        end_ms: event time of the last event, milliseconds since the epoch; events without a time are dated back from here.
        lanes: conversations that are open at the same time.
        repeat: how often the log is played, each time under new ids.
    """
    conversations = [_renamed(c, turn) for turn in range(repeat) for c in log.conversations]
    starts, floor_s = _starts(conversations, lanes)
    span_s = max(
        (start + c.lines[-1].offset_s for c, start in zip(conversations, starts, strict=True)), default=floor_s
    )
    begin_ms = end_ms - round(span_s * 1000)
    records: list[TimedRecord] = []
    for conversation, start_s in zip(conversations, starts, strict=True):
        records.extend(_conversation_records(conversation, start_s, begin_ms))
    reviews = [_renamed_review(review, turn) for turn in range(repeat) for review in log.reviews]
    for at_s, review in _spread(reviews, floor_s):
        event = {"created_at": rfc3339(begin_ms + round(at_s * 1000)), **review}
        key = record_key(str(event["tenant_id"]), str(event["product_id"]))
        records.append(TimedRecord(at_s, "review", key, orjson.dumps(event), event))
    for at_s, broken in _spread(log.broken, floor_s):
        records.append(TimedRecord(at_s, broken.topic_kind, "broken", broken.value, None))
    records.sort(key=lambda record: record.at_s)  # stable: a conversation keeps its order
    return records


class Waiter(Protocol):
    """What `play` needs of time; `threading.Event` and the monotonic clock in the program, a fake in tests."""

    def monotonic(self) -> float: ...

    def wait(self, seconds: float) -> bool:
        """Wait; True when playing should end."""


def play(
    records: Sequence[TimedRecord], publish: Callable[[TimedRecord], None], waiter: Waiter, speed: float | None
) -> int:
    """Publish the records; returns how many. `speed` is floor seconds per second; None: as fast as `publish` takes them."""
    began = waiter.monotonic()
    for count, record in enumerate(records):
        delay = 0.0 if speed is None else began + record.at_s / speed - waiter.monotonic()
        if waiter.wait(max(delay, 0.0)):
            return count
        publish(record)
    return len(records)


def _starts(conversations: Sequence[Conversation], lanes: int) -> tuple[list[float], float]:
    """When each conversation begins, and when the last one ends, in floor seconds."""
    free = [index * _STAGGER_S for index in range(max(1, min(lanes, len(conversations))))]
    heapq.heapify(free)
    starts: list[float] = []
    end_s = 0.0
    for conversation in conversations:
        start_s = heapq.heappop(free)
        starts.append(start_s)
        finish_s = start_s + _shown_offsets(conversation)[-1]
        end_s = max(end_s, finish_s)
        heapq.heappush(free, finish_s + _PAUSE_S)
    return starts, end_s


def _shown_offsets(conversation: Conversation) -> list[float]:
    """Offsets with long silences shortened."""
    shown: list[float] = []
    at_s, before = 0.0, 0.0
    for line in conversation.lines:
        at_s += min(line.offset_s - before, MAX_GAP_S)
        before = line.offset_s
        shown.append(at_s)
    return shown


def _conversation_records(conversation: Conversation, start_s: float, begin_ms: int) -> Iterable[TimedRecord]:
    key = record_key(conversation.tenant_id, conversation.conversation_id)
    for line, shown_s in zip(conversation.lines, _shown_offsets(conversation), strict=True):
        created_at = rfc3339(begin_ms + round((start_s + line.offset_s) * 1000))
        event = {"created_at": created_at, **line.event}
        yield TimedRecord(start_s + shown_s, "chat", key, orjson.dumps(event), event)


def _spread(items: Sequence[_Item], floor_s: float) -> Iterable[tuple[float, _Item]]:
    """The items evenly over the floor's time."""
    step = floor_s / (len(items) or 1)
    return ((step * (index + 0.5), item) for index, item in enumerate(items))


def _renamed(conversation: Conversation, turn: int) -> Conversation:
    if turn == 0:
        return conversation
    suffix = f"~{turn + 1}"
    lines = []
    for line in conversation.lines:
        event = {**line.event, "conversation_id": conversation.conversation_id + suffix}
        event.pop("created_at", None)
        lines.append(type(line)(line.offset_s, event))
    return Conversation(
        conversation.tenant_id,
        conversation.conversation_id + suffix,
        conversation.title,
        conversation.language,
        tuple(lines),
        conversation.expect,
    )


def _renamed_review(review: dict[str, Any], turn: int) -> dict[str, Any]:
    return review if turn == 0 else {**review, "review_id": f"{review['review_id']}~{turn + 1}"}
