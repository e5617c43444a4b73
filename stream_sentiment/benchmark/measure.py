"""The measurement: raw model, worker with a stub, worker with the model, in turns within one run.

In: counts and settings. Out: one report. The mock broker runs in a process of its own and Redis is a server process (or the
fallback of the demo), so that neither is counted; librdkafka's threads in our process are. Rounds are interleaved, since the load of
the machine moves figures more than most code does: compare within one report only.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from confluent_kafka import Producer

from stream_sentiment.batching import plan_micro_batches
from stream_sentiment.benchmark.cpu import KAFKA_CLIENT, cpu_seconds_by_thread, difference
from stream_sentiment.benchmark.load import chat_events, load_texts
from stream_sentiment.kafka.clients import produce, producer_config
from stream_sentiment.settings import Settings, load_settings
from stream_sentiment.store.embedded import EmbeddedRedis
from stream_sentiment.worker import Worker, inference_threads, load_scorer

if TYPE_CHECKING:
    from stream_sentiment.scoring.scorer import Scorer

#: Bounds of the mock broker: 5 MiB or 100,000 records a partition, the oldest are dropped beyond. 12 partitions hold 100,000 events.
MAX_EVENTS = 100_000


@dataclass(slots=True)
class Run:
    """One round of one variant. CPU and wall in seconds for all messages."""

    cpu: float
    wall: float
    threads: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """Everything `bench` prints."""

    events: int
    conversations: int
    partitions: int
    threads: int
    model: dict[str, Any] | None
    redis: str
    mean_tokens: float
    runs: dict[str, list[Run]]

    def best(self, variant: str) -> Run:
        """The round with the least CPU: the one that the machine disturbed least."""
        return min(self.runs[variant], key=lambda run: run.cpu)

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object; times per message in microseconds."""
        variants = {}
        for name, runs in self.runs.items():
            best = self.best(name)
            variants[name] = {
                "cpu_us_per_message": round(best.cpu / self.events * 1e6, 2),
                "wall_us_per_message": round(best.wall / self.events * 1e6, 2),
                "messages_per_cpu_second": round(self.events / best.cpu, 1),
                "messages_per_second": round(self.events / best.wall, 1),
                "cpu_us_per_message_all_rounds": [round(run.cpu / self.events * 1e6, 2) for run in runs],
                "cpu_us_by_thread": {k: round(v / self.events * 1e6, 2) for k, v in sorted(best.threads.items())},
                "wall_us_by_stage": {k: round(v / self.events * 1e6, 2) for k, v in best.stages.items()},
            }
        result = {
            "events": self.events,
            "conversations": self.conversations,
            "partitions": self.partitions,
            "threads": self.threads,
            "model": self.model,
            "redis": self.redis,
            "mean_tokens": round(self.mean_tokens, 1),
            "variants": variants,
        }
        if "raw" in self.runs and "worker" in self.runs:
            result["worker_to_raw_ratio"] = round(self.best("raw").cpu / self.best("worker").cpu, 4)
        return result


def measure(
    *,
    events: int,
    conversations: int,
    partitions: int,
    rounds: int,
    with_model: bool,
    seed: int,
    overrides: dict[str, Any],
    progress: Callable[[str], None],
) -> Report:
    """Run every variant `rounds` times, in turns."""
    from stream_sentiment.scoring.scorer import StubScorer

    texts = load_texts(events, seed)
    scorer: Scorer | None = None
    threads = inference_threads(None)
    with _mock_broker(partitions) as bootstrap, EmbeddedRedis() as redis:
        settings = load_settings(
            **{
                **overrides,
                "kafka": {"bootstrap_servers": bootstrap, **overrides.get("kafka", {})},
                "redis": {"url": redis.url},
                "http": {"port": 0},
            }
        )
        if with_model:
            scorer = load_scorer(settings)
            threads = inference_threads(settings.model.threads)
        ids = [tokens.ids for tokens in scorer.tokenize(texts)] if scorer is not None else []
        _publish(settings, texts, conversations)
        runs: dict[str, list[Run]] = {"stub": []} if scorer is None else {"raw": [], "stub": [], "worker": []}
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            if scorer is not None:
                runs["raw"].append(_raw(scorer, ids, settings, threads))
            runs["stub"].append(_worker(settings, StubScorer(), events))
            if scorer is not None:
                runs["worker"].append(_worker(settings, scorer, events))
        source = redis.source.kind if hasattr(redis, "source") else "embedded"
    info = None
    if scorer is not None:
        info = {"name": scorer.info.name, "version": scorer.info.version, "precision": scorer.info.precision}
    mean = sum(map(len, ids)) / len(ids) if ids else 0.0
    return Report(events, conversations, partitions, threads, info, source, mean, runs)


def _raw(scorer: Scorer, ids: Sequence[Sequence[int]], settings: Settings, threads: int) -> Run:
    """The model alone: the same texts, already tokenised, the same windows, budget and threads; no Kafka, no Redis, no JSON."""
    window = settings.intake.window_events
    budget = settings.model.token_budget
    batches = [
        [ids[start + index] for index in batch]
        for start in range(0, len(ids), window)
        for batch in plan_micro_batches([len(x) for x in ids[start : start + window]], budget)
    ]
    scorer.infer(batches[0])
    with ThreadPoolExecutor(threads) as pool:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in pool.map(scorer.infer, batches):
            pass
        return Run(time.process_time() - cpu, time.perf_counter() - wall)


def _worker(settings: Settings, scorer: Scorer, events: int) -> Run:
    """A whole worker, from the first record read to the last applied."""
    run_settings = settings.model_copy(
        update={"kafka": settings.kafka.model_copy(update={"group_id": f"bench-{uuid.uuid4().hex[:8]}"})}
    )
    worker = Worker(run_settings, scorer=scorer)
    result: list[Run] = []
    watcher = threading.Thread(target=_watch, args=(worker, events, result), name="bench-watch")
    watcher.start()
    worker.run()
    watcher.join()
    return result[0]


def _watch(worker: Worker, events: int, result: list[Run]) -> None:
    """Wait for the first and for the last event, and read the clocks at both."""
    registry = worker.metrics.registry

    while not worker.health.started:
        time.sleep(0.002)
    while worker.metrics.events_consumed_total.labels("chat.messages", "chat")._value.get() == 0:  # noqa: SLF001
        time.sleep(0.001)
    wall, cpu, threads = time.perf_counter(), time.process_time(), cpu_seconds_by_thread()
    deadline = wall + 600
    applied = 0.0
    while applied < events and time.perf_counter() < deadline:
        time.sleep(0.02)
        applied = sum(
            worker.metrics.events_total.labels("chat.messages", outcome)._value.get()  # noqa: SLF001
            for outcome in ("scored", "skipped", "dead_lettered", "duplicate", "stale")
        )
    run = Run(time.process_time() - cpu, time.perf_counter() - wall)
    run.threads = difference(cpu_seconds_by_thread(), threads)
    run.threads.pop("bench-watch", None)
    for metric in registry.collect():
        if metric.name == "stream_sentiment_stage_duration_seconds":
            for sample in metric.samples:
                if sample.name.endswith("_sum") and sample.value:
                    run.stages[sample.labels["stage"]] = sample.value
    result.append(run)
    worker.stop()


def _publish(settings: Settings, texts: list[str], conversations: int) -> None:
    producer = Producer(producer_config(settings.kafka, timedelta(milliseconds=5), timedelta(seconds=60)))
    for key, value in chat_events(texts, conversations):
        produce(producer, producer.poll, topic=settings.topics.chat_messages, key=key, value=value)
    producer.flush(60)


@contextmanager
def _mock_broker(partitions: int) -> Iterator[str]:
    """librdkafka's mock cluster in a process of its own; its bootstrap servers."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve_broker, args=(theirs, partitions), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        ours.send("stop")
        process.join(10)


def _serve_broker(pipe: Connection, partitions: int) -> None:
    from stream_sentiment.kafka.embedded import EmbeddedKafka
    from stream_sentiment.settings import TopicSettings

    topics = TopicSettings()
    names = [*topics.inputs(), topics.scored, topics.conversation_state, topics.escalations, topics.dead_letters]
    with EmbeddedKafka(dict.fromkeys(names, partitions)) as kafka:
        pipe.send(kafka.bootstrap_servers)
        pipe.recv()


__all__ = ["KAFKA_CLIENT", "MAX_EVENTS", "Report", "Run", "measure"]
