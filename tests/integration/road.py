"""A whole road in a test: topics of its own on any broker, a Redis, a worker in this process, and what came out."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from stream_sentiment.events.envelope import record_key
from stream_sentiment.scoring.errors import InferenceError
from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES
from stream_sentiment.scoring.scorer import Score, StubScorer
from stream_sentiment.settings import Settings, load_settings
from stream_sentiment.testing.consume import Record, read_topic
from stream_sentiment.testing.events import encode
from stream_sentiment.testing.kafka import KafkaHarness
from stream_sentiment.worker import Worker

INPUTS = ("chat_messages", "product_reviews")
TOPICS = (*INPUTS, "scored", "conversation_state", "escalations", "dead_letters")


def score_of(polarity: str, emotion: str) -> Score:
    p = tuple(0.9 if name == polarity else 0.05 for name in POLARITIES)
    e = tuple(0.75 if name == emotion else 0.05 for name in EMOTIONS)
    return Score((p[0], p[1], p[2]), e, round(p[2] - p[0], 4), 0.9, polarity, emotion, False)


class WordScorer(StubScorer):
    """Scores by a word in the text: BAD, GOOD, else neutral. POISON cannot be scored, CRASH breaks the batch it is in."""

    def __init__(self, delay: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.delay = delay
        self.batches: list[int] = []

    def infer(self, batch: Sequence[Sequence[int]]) -> list[Score]:
        self.delay()
        self.batches.append(len(batch))
        texts = ["".join(map(chr, ids[1:-1])) for ids in batch]
        if any("CRASH" in text for text in texts):
            raise RuntimeError("the session failed")
        poisoned = [index for index, text in enumerate(texts) if "POISON" in text]
        if poisoned:
            raise InferenceError("logits that are not numbers", poisoned)
        return [self._score(text) for text in texts]

    @staticmethod
    def _score(text: str) -> Score:
        if "BAD" in text:
            return score_of("negative", "anger")
        return score_of("positive", "joy") if "GOOD" in text else score_of("neutral", "neutral")


class Road:
    """One test's topics, group, Redis and worker."""

    def __init__(self, broker: KafkaHarness, redis_url: str, unique: Callable[[str], str], partitions: int = 3) -> None:
        self.broker = broker
        self.redis_url = redis_url
        self.topics = {name: unique(name.replace("_", ".")) for name in TOPICS}
        self.group = unique("group")
        for name in self.topics.values():
            broker.create_topic(name, partitions)
        self._producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "partitioner": "murmur2_random"})

    def settings(self, **sections: dict[str, Any]) -> Settings:
        """Settings of a worker on this road; `sections` add to them."""
        base: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap_servers": self.broker.bootstrap_servers, "group_id": self.group},
            "redis": {"url": self.redis_url},
            "topics": self.topics,
            "http": {"port": 0},
            "rules": {"path": Path(__file__).with_name("rules.yaml")},
            "worker": {"drain_timeout": "10s", "commit_interval": "200ms"},
        }
        for name, fields in sections.items():
            base[name] = base.get(name, {}) | fields
        return load_settings(**base)

    def publish(self, *events: dict[str, Any]) -> None:
        """Chat events under the contract's key."""
        for event in events:
            self.publish_raw(encode(event), record_key(event["tenant_id"], event["conversation_id"]).encode())

    def publish_reviews(self, *events: dict[str, Any]) -> None:
        for event in events:
            key = record_key(event["tenant_id"], event["product_id"])
            self._producer.produce(self.topics["product_reviews"], encode(event), key=key)
        self._producer.flush(30)

    def publish_raw(
        self,
        value: bytes | None,
        key: bytes | None = None,
        headers: Iterable[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> None:
        place = {} if partition is None else {"partition": partition}
        self._producer.produce(self.topics["chat_messages"], value, key=key, headers=list(headers), **place)
        self._producer.flush(30)

    def work(self, scorer: StubScorer | None = None, **sections: dict[str, Any]) -> Worker:
        """Run a worker in this thread until it has been idle for a second; returns it for its metrics."""
        worker = Worker(self.settings(**sections), scorer=scorer or WordScorer(), exit_when_idle=1.0)
        worker.run()
        return worker

    def start(self, scorer: StubScorer | None = None, **sections: dict[str, Any]) -> RunningWorker:
        """Run a worker in a thread of its own."""
        return RunningWorker(Worker(self.settings(**sections), scorer=scorer or WordScorer()))

    def read(self, topic: str, at_least: int = 0) -> list[Record]:
        return read_topic(self.broker.bootstrap_servers, self.topics[topic], at_least=at_least, timeout_s=30)

    def escalations(self) -> list[dict[str, Any]]:
        return [record.json() for record in self.read("escalations")]

    def final_states(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The newest published state of every conversation."""
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        for record in self.read("conversation_state"):
            value = record.json()
            place = (value["tenant_id"], value["conversation_id"])
            if place not in newest or newest[place]["state_version"] < value["state_version"]:
                newest[place] = value
        return newest

    def committed(self) -> dict[int, int]:
        """Committed offset of each partition of the chat topic that has one."""
        consumer = Consumer({"bootstrap.servers": self.broker.bootstrap_servers, "group.id": self.group})
        try:
            partitions = consumer.list_topics(self.topics["chat_messages"], timeout=10)
            count = len(partitions.topics[self.topics["chat_messages"]].partitions)
            places = [TopicPartition(self.topics["chat_messages"], number) for number in range(count)]
            return {tp.partition: tp.offset for tp in consumer.committed(places, timeout=10) if tp.offset >= 0}
        finally:
            consumer.close()


class RunningWorker:
    """A worker in a thread; `stop` drains it and raises what `run` raised."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="worker-under-test")
        self._thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self.worker.stop()
        self.join()

    def join(self, timeout: float = 60) -> None:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the worker did not stop"
        if self.error is not None:
            raise self.error


def outcomes(worker: Worker) -> dict[str, float]:
    """events_total by outcome."""
    totals: dict[str, float] = defaultdict(float)
    for metric in worker.metrics.registry.collect():
        for sample in metric.samples:
            if sample.name == "stream_sentiment_events_total" and sample.value:
                totals[sample.labels["outcome"]] += sample.value
    return dict(totals)


def sample(worker: Worker, name: str, **labels: str) -> float:
    """Sum of the samples of one metric whose labels match."""
    return sum(
        found.value
        for metric in worker.metrics.registry.collect()
        for found in metric.samples
        if found.name == f"stream_sentiment_{name}" and labels.items() <= found.labels.items()
    )
