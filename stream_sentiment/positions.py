"""What Kafka is told about our position, and what the metrics are: commits, watermarks, lag.

In: the live epochs. Out: asynchronous commits (advisory: the watermark in Redis rules, and no commit runs ahead of it), gauges.
Belongs to the poll thread. Never blocks, raises nothing: a commit that fails is said again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from stream_sentiment.clock import Clock
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.stages import Epoch

#: The group has gone on without us: another member owns what we wanted to commit.
FENCED_ERRORS = frozenset(
    {
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError.STALE_MEMBER_EPOCH,
    }
)

log = get_logger("positions")


class Positions:
    """Commits and reports the positions of the epochs that `epochs()` gives."""

    def __init__(self, metrics: Metrics, clock: Clock, epochs: Callable[[], Iterable[Epoch]]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._epochs = epochs

    def commit(self, consumer: Consumer, epochs: Iterable[Epoch]) -> None:
        """Tell Kafka the watermarks that have advanced, for lag tooling and as a fallback."""
        advanced = [epoch for epoch in epochs if epoch.alive and epoch.watermark > max(epoch.committed, 0)]
        if not advanced:
            return
        offsets = []
        for epoch in advanced:
            epoch.committed = epoch.watermark
            offsets.append(KafkaPartition(epoch.partition.topic, epoch.partition.partition, epoch.committed))
        try:
            consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self.committed(error.args[0], [])

    def committed(self, error: KafkaError | None, _partitions: list[KafkaPartition]) -> None:
        """The client's `on_commit` callback."""
        if error is None:
            self._metrics.commits_total.labels("ok").inc()
            return
        self._metrics.commits_total.labels("fenced" if error.code() in FENCED_ERRORS else "failed").inc()
        log.warning("commit_failed", reason=error.name(), detail=error.str())
        for epoch in self._epochs():
            epoch.committed = -1  # the next round says it again

    def report(self, consumer: Consumer, *, reading: bool) -> None:
        """Gauges of position and lag, per partition; and whether a partition has been worked off.

        `reading`: nothing keeps us from seeing new records. Else a partition that looks finished may only be unread.
        """
        metrics = self._metrics
        for epoch in self._epochs():
            topic, partition = epoch.partition
            labels = (topic, str(partition))
            metrics.watermark_offset.labels(*labels).set(epoch.watermark)
            try:
                _, high = consumer.get_watermark_offsets(KafkaPartition(topic, partition), cached=True)
            except KafkaException:
                continue
            lag = max(0, high - epoch.watermark) if high >= 0 else 0
            # Against the end that the client has reached, not the watermark: transaction markers have offsets too.
            done = epoch.at_end and epoch.watermark >= epoch.read_up_to and 0 <= high <= epoch.end_offset
            epoch.complete_ms = self._clock.now_ms() if done and reading else None
            metrics.consumer_lag_events.labels(*labels).set(lag)
            # The newest record applied is a little older than the oldest one that waits: an age never too small. After a quiet
            # hour it is the moment at which nothing waited yet, or the first new record would look an hour old.
            if lag == 0:
                epoch.last_timestamp_ms = self._clock.now_ms()
            metrics.consumer_lag_seconds.labels(*labels).since(epoch.last_timestamp_ms or None if lag else None)
