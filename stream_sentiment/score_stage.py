"""The score stage: tokenise a window, cut it into micro-batches, run them on a small pool.

In: windows from the intake, in order. Out: the same windows, in order, each with the futures of its micro-batches; the next
window is tokenised while the last one's batches still run. Blocks on its queue only. A text on which the model fails alone is
marked `poison` and becomes a dead letter; the rest of its batch is scored as if it had not been there.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from stream_sentiment.batching import plan_micro_batches
from stream_sentiment.flow import Flow
from stream_sentiment.observability.labels import PipelineThread, ThreadState
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.observability.tally import observe_all
from stream_sentiment.scoring.errors import InferenceError
from stream_sentiment.stages import Window

if TYPE_CHECKING:
    from stream_sentiment.scoring.scorer import Score, Scorer


class ScoreStage:
    """One tokenising thread and `threads` inference threads sharing the model session of the window's `Serving`."""

    def __init__(
        self,
        flow: Flow,
        metrics: Metrics,
        *,
        threads: int,
        token_budget: int,
        beat: Callable[[], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._flow = flow
        self._metrics = metrics
        self._time = metrics.thread_time_seconds_total.of(PipelineThread.SCORE)
        self._token_budget = token_budget
        self._beat = beat
        self._on_error = on_error
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="infer")
        self._thread = threading.Thread(target=self._run, name="score", daemon=True)

    def start(self) -> None:
        """Start the tokenising thread."""
        self._thread.start()

    def join(self, timeout: float) -> bool:
        """Wait for the end of the thread after `Flow.close`; True when it has ended."""
        self._thread.join(timeout)
        self._pool.shutdown(wait=False, cancel_futures=True)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while True:
                self._beat()
                self._time.switch(ThreadState.WAIT_INPUT)
                try:
                    window = self._flow.to_score.get(timeout=0.5)
                except queue.Empty:
                    continue
                self._time.switch(ThreadState.WORK)
                if window is not None:
                    self._dispatch(window)
                self._flow.to_apply.put(window)
                if window is None:
                    self._time.stop()
                    return
        except BaseException as error:
            self._on_error(error)

    def _dispatch(self, window: Window) -> None:
        scored = [record for record in window.records if record.text is not None and record.epoch.alive]
        window.scored = scored
        if not scored:
            return
        started = time.monotonic()
        self._time.switch(ThreadState.TOKENIZE)
        scorer = window.serving.scorer
        tokenised = scorer.tokenize([record.text or "" for record in scored])
        self._time.switch(ThreadState.WORK)
        now = time.monotonic()
        self._metrics.stage_duration_seconds.labels("tokenize").observe(now - started)
        self._metrics.stage_duration_seconds.labels("queue").observe(started - window.closed_at)
        truncated = 0
        for record, tokens in zip(scored, tokenised, strict=True):
            if tokens.text is not None:
                record.text = tokens.text
            if tokens.truncated:
                record.truncated = True
                truncated += 1
        lengths = [len(tokens.ids) for tokens in tokenised]
        observe_all(self._metrics.input_tokens, lengths)
        if truncated:
            self._metrics.events_truncated_total.labels("tokens").inc(truncated)
        window.batches = plan_micro_batches(lengths, self._token_budget)
        metrics = self._metrics
        for batch in window.batches:
            longest = max(1, lengths[batch[0]])
            padded = longest * len(batch)
            metrics.batch_events.observe(len(batch))
            metrics.batch_tokens.observe(padded)
            metrics.batch_padding_ratio.observe(1.0 - sum(lengths[index] for index in batch) / padded)
            window.futures.append(self._pool.submit(self._infer, scorer, [tokenised[index].ids for index in batch]))

    def _infer(self, scorer: Scorer, batch: list[Sequence[int]]) -> tuple[list[Score | Exception], float]:
        started = time.monotonic()
        results = infer_or_split(scorer, batch, self._metrics)
        seconds = time.monotonic() - started
        self._metrics.stage_duration_seconds.labels("infer").observe(seconds)
        return results, seconds


def infer_or_split(scorer: Scorer, batch: list[Sequence[int]], metrics: Metrics) -> list[Score | Exception]:
    """The scores of a batch; texts that the model cannot take are told apart, the others are scored as if alone.

    A failure that names no text halves the batch until one text stands alone. Whether then the text or the model is at fault,
    the smallest possible text decides: where that fails too, the error goes up and ends the worker.
    """
    try:
        return list(scorer.infer(batch))
    except InferenceError as error:
        metrics.inference_errors_total.labels("other").inc()
        bad = set(error.items) or {0}
        rest = [ids for index, ids in enumerate(batch) if index not in bad]
        scores = iter(infer_or_split(scorer, rest, metrics) if rest else [])
        return [error if index in bad else next(scores) for index in range(len(batch))]
    except Exception as error:
        metrics.inference_errors_total.labels("oom" if _out_of_memory(error) else "provider").inc()
        if len(batch) == 1:
            scorer.infer([scorer.tokenize(["."])[0].ids])
            return [error]
        metrics.inference_fallback_total.labels("batch", "half_batch").inc()
        half = len(batch) // 2
        return infer_or_split(scorer, batch[:half], metrics) + infer_or_split(scorer, batch[half:], metrics)


def _out_of_memory(error: Exception) -> bool:
    """ONNX Runtime has no type of its own for it: its arena and CUDA say it in words."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "failed to allocate memory" in text or "out of memory" in text
