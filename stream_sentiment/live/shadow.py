"""A second model that scores a share of the messages silently: what would change if it were in force?

In: scored records of a window, from the apply thread. Out: metrics and a log line a minute; never an output, a state or an error. Its
own thread, of a lower priority, behind a bounded queue: what does not fit is dropped and counted, so that no window waits for it.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from stream_sentiment.batching import plan_micro_batches
from stream_sentiment.events.incoming import ChatEvent, Decoded, ReviewEvent
from stream_sentiment.observability.labels import ShadowHead, ShadowResult
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.scoring.scorer import TOKEN_BUDGET, ModelInfo, Score, Scorer

if TYPE_CHECKING:
    from stream_sentiment.stages import Record

#: Messages that may wait; about a megabyte of text. At 750 messages/s a core that is under two seconds of work.
CAPACITY = 1_024
#: Messages scored together.
WINDOW = 64
REPORT_SECONDS = 60.0
#: Added to the niceness of the thread: it takes what the pipeline leaves.
NICENESS = 10

log = get_logger("shadow")


class _Item(NamedTuple):
    text: str
    score: Score
    live: ModelInfo


def in_share(record: Record, share: float) -> bool:
    """Whether a record belongs to the share: by the hash of its message id, so the same ones on every worker and in every run."""
    event = record.outcome.event if isinstance(record.outcome, Decoded) else None
    if isinstance(event, ChatEvent):
        name = f"{event.tenant_id}|{event.conversation_id}|{event.message_id}"
    elif isinstance(event, ReviewEvent):
        name = f"{event.tenant_id}|{event.product_id}|{event.review_id}"
    else:
        return False
    return zlib.crc32(name.encode("utf-8", "surrogatepass")) < share * 2**32


def disagreements(
    live: Score, live_info: ModelInfo, other: Score, other_info: ModelInfo
) -> Iterator[tuple[str, str, str]]:
    """(head, what the live model says, what the other one says) wherever they differ; a signal that one does not give is `none`."""
    if live.label != other.label:
        yield ShadowHead.POLARITY, live.label, other.label
    if live.emotion_label != other.emotion_label:
        yield ShadowHead.EMOTION, live.emotion_label, other.emotion_label
    ours, theirs = _signals(live, live_info), _signals(other, other_info)
    for name in sorted(ours - theirs):
        yield ShadowHead.SIGNALS, name, "none"
    for name in sorted(theirs - ours):
        yield ShadowHead.SIGNALS, "none", name


def _signals(score: Score, info: ModelInfo) -> set[str]:
    labels = info.labels.get("signals", ())
    return {
        name
        for name, probability in zip(labels, score.signals, strict=False)
        if probability >= info.signal_thresholds.get(name, 0.5)
    }


class Shadow:
    """Compares a scorer with the live one."""

    def __init__(self, scorer: Scorer, share: float, metrics: Metrics, *, capacity: int = CAPACITY) -> None:
        """`share`: 0 to 1 of the messages."""
        self._scorer = scorer
        self._share = share
        self._metrics = metrics
        self._queue: queue.Queue[_Item | None] = queue.Queue(capacity)
        self._tally: Counter[str] = Counter()
        self._difference = 0.0
        self._live: ModelInfo | None = None
        self._next_report = time.monotonic() + REPORT_SECONDS
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what waits is not compared any more."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            while not self._queue.empty():
                self._queue.get_nowait()
            self._queue.put_nowait(None)
        if self._thread.is_alive():
            self._thread.join(5.0)
        self._report()

    def offer(self, records: Iterable[Record], live: ModelInfo) -> None:
        """Scores of the live model, before anything corrects them. Never blocks."""
        for record in records:
            if record.score is None or record.text is None or not in_share(record, self._share):
                continue
            try:
                self._queue.put_nowait(_Item(record.text, record.score, live))
            except queue.Full:
                self._count(ShadowResult.DROPPED)

    def _run(self) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        except OSError:
            log.info("shadow_priority_unchanged")
        while True:
            try:
                first = self._queue.get(timeout=max(0.1, self._next_report - time.monotonic()))
            except queue.Empty:
                self._report()
                continue
            if first is None:
                return
            items = [first]
            while len(items) < WINDOW and not self._queue.empty():
                item = self._queue.get_nowait()
                if item is None:
                    return
                items.append(item)
            try:
                self._compare(items)
            except Exception as error:
                self._count(ShadowResult.FAILED, len(items))
                log.error("shadow_failed", reason=type(error).__name__, detail=str(error))
            if time.monotonic() >= self._next_report:
                self._report()

    def _compare(self, items: list[_Item]) -> None:
        tokens = [tokenised.ids for tokenised in self._scorer.tokenize([item.text for item in items])]
        for group in plan_micro_batches([len(ids) for ids in tokens], TOKEN_BUDGET):
            for index, other in zip(group, self._scorer.infer([tokens[index] for index in group]), strict=True):
                self._note(items[index], other)

    def _note(self, item: _Item, other: Score) -> None:
        self._count(ShadowResult.COMPARED)
        self._live = item.live
        self._difference += abs(item.score.score - other.score)
        differing = set()
        for head, ours, theirs in disagreements(item.score, item.live, other, self._scorer.info):
            self._metrics.shadow_disagreements_total.labels(head, ours, theirs).inc()
            differing.add(head)
        self._tally.update(differing)

    def _count(self, result: ShadowResult, number: int = 1) -> None:
        self._metrics.shadow_messages_total.labels(result).inc(number)
        self._tally[result] += number

    def _report(self) -> None:
        """One line of the shares since the last one."""
        self._next_report = time.monotonic() + REPORT_SECONDS
        tally, self._tally = self._tally, Counter()
        difference, self._difference = self._difference, 0.0
        compared = tally[ShadowResult.COMPARED]
        if not sum(tally.values()):
            return
        log.info(
            "shadow_report",
            live="" if self._live is None else f"{self._live.name}@{self._live.version}",
            shadow=f"{self._scorer.info.name}@{self._scorer.info.version}",
            compared=compared,
            dropped=tally[ShadowResult.DROPPED],
            failed=tally[ShadowResult.FAILED],
            **{f"{head}_differ": round(tally[head] / compared, 4) if compared else None for head in ShadowHead},
            mean_score_difference=round(difference / compared, 4) if compared else None,
        )
