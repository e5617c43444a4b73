"""librdkafka's statistics as metrics: which brokers are connected and how long they take to answer.

In: the JSON that librdkafka hands to `stats_cb` every interval, on the poll thread (0.1 to 1 ms). Out: `broker_up`,
`broker_rtt_p99_seconds`. Raises nothing: an exception in a callback would end the poll loop.
"""

from __future__ import annotations

import orjson

from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.metrics import Metrics

#: librdkafka aggregates for this long; the percentiles are over one interval.
STATISTICS_MILLISECONDS = 10_000

log = get_logger("kafka")


class BrokerStatistics:
    """A `stats_cb`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._known: set[str] = set()
        #: Whether a broker was connected at the last look; true until the first.
        self.connected = True

    def __call__(self, statistics: str) -> None:
        try:
            self._read(statistics)
        except Exception as error:
            log.warning("statistics_unreadable", reason=type(error).__name__)

    def _read(self, statistics: str) -> None:
        seen, up = set(), False
        for broker in orjson.loads(statistics)["brokers"].values():
            # Bootstrap entries (-1) and the group coordinator's own entry name brokers a second time.
            if broker["nodeid"] < 0 or broker["source"] != "learned":
                continue
            name = broker["nodename"]
            seen.add(name)
            up |= broker["state"] == "UP"
            self._metrics.broker_up.labels(name).set(broker["state"] == "UP")
            self._metrics.broker_rtt_p99_seconds.labels(name).set(broker["rtt"]["p99"] / 1e6)
        for name in self._known - seen:
            self._metrics.broker_up.remove(name)
            self._metrics.broker_rtt_p99_seconds.remove(name)
        self._known = seen
        self.connected = up
