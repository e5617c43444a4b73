"""Where each partition is read from: the watermark in Redis, set once at the first start, checked against the log ever after.

In: what ACQUIRE returned, the group's commits, the bounds of the log. Out: one offset a partition. Blocks on questions to the broker
(`OFFSETS_SECONDS` each). Raises `ConfigurationError` where a person must decide, `KafkaException` while the broker is away, `Fenced`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from confluent_kafka import OFFSET_INVALID, Consumer
from confluent_kafka import TopicPartition as KafkaPartition

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.settings import MissingWatermarkPolicy, Settings
from stream_sentiment.store.keys import TopicPartition
from stream_sentiment.store.redis import Acquired, StateStore

#: Questions to the broker about one partition's offsets.
OFFSETS_SECONDS = 10.0

log = get_logger("start_offsets")


class StartOffsets:
    """Resolves the start of acquired partitions."""

    def __init__(
        self, settings: Settings, store: StateStore, metrics: Metrics, partition_counts: Mapping[str, int]
    ) -> None:
        """`partition_counts`: input topic to its number of partitions now."""
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._partition_counts = partition_counts

    def resolve(self, consumer: Consumer, acquired: Sequence[Acquired]) -> dict[TopicPartition, int]:
        """The watermark of each partition; resolved and recorded where Redis has none, checked against the log where it has."""
        commits = {
            (tp.topic, tp.partition): tp.offset
            for tp in consumer.committed(
                [KafkaPartition(taken.tp.topic, taken.tp.partition) for taken in acquired], timeout=OFFSETS_SECONDS
            )
        }
        starts = {}
        for taken in acquired:
            topic, partition = taken.tp
            count = self._partition_counts.get(topic)
            if taken.partitions is not None and count is not None and taken.partitions != count:
                raise ConfigurationError(
                    f"{topic} has {count} partitions, but {taken.partitions} when its state was written: conversations have moved "
                    "and their state would be stranded. Use another kafka.group_id, or set redis.ignore_partition_count to go on."
                )
            low, high = consumer.get_watermark_offsets(KafkaPartition(topic, partition), timeout=OFFSETS_SECONDS)
            committed = commits.get((topic, partition), OFFSET_INVALID)
            starts[taken.tp] = self._start_of(taken, committed if committed >= 0 else None, low, high)
        return starts

    def _start_of(self, taken: Acquired, committed: int | None, low: int, high: int) -> int:
        """Where to read one partition from, given the group's commit and the log's bounds [low, high)."""
        place = f"{taken.tp.topic}[{taken.tp.partition}]"
        policy = self._settings.redis.missing_watermark
        watermark = taken.watermark
        if watermark is not None and watermark <= high:
            if committed is not None and committed > watermark:
                # Commits never run ahead of the watermark, so Redis has lost acknowledged writes; the log has them still.
                self._metrics.state_regressions_total.inc()
                log.error(
                    "state_regression",
                    topic=taken.tp.topic,
                    partition=taken.tp.partition,
                    watermark=watermark,
                    committed=committed,
                )
            if watermark < low:
                log.error(
                    "retention_passed_watermark",
                    topic=taken.tp.topic,
                    partition=taken.tp.partition,
                    watermark=watermark,
                    low=low,
                )
            return watermark
        if watermark is not None:
            problem = f"the watermark {watermark} of {place} lies beyond its end {high}: the topic was created anew"
        elif committed is not None:
            problem = (
                f"the group has committed offset {committed} of {place}, but Redis holds no watermark: "
                "Redis was wiped, or is the wrong one"
            )
        else:
            start = low if self._settings.kafka.start_from == "earliest" else high
            return self._store.initialise(taken.tp, taken.token, start)
        if policy is MissingWatermarkPolicy.FAIL:
            raise ConfigurationError(
                f"{problem}. Check redis.url; if the state is really gone, set redis.missing_watermark to 'continue' (go on from "
                "the commit with empty state) or 'rewind' (fold the retained events again)."
            )
        go_on = committed if committed is not None and low <= committed <= high else low
        start = low if policy is MissingWatermarkPolicy.REWIND else go_on
        log.error("missing_watermark", reason=policy.value, detail=problem, start=start)
        return self._store.initialise(taken.tp, taken.token, start, replaces=watermark)
