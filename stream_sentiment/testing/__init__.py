"""The test kit: what this project tests itself with, public so that you test your own producers and consumers with it.

Real services where a test needs one (Redis, Apache Kafka, a worker process), librdkafka's mock cluster where faults matter more than
durability, a TCP proxy that misbehaves on order, a clock turned by hand, and builders for events. See docs/testing.md.
"""

from stream_sentiment.testing.clock import FakeClock
from stream_sentiment.testing.mock_kafka import ALL_BROKERS, ApiKey, MockKafka, MockRequest
from stream_sentiment.testing.redis import FakeRedisServer, RedisServer

__all__ = [
    "ALL_BROKERS",
    "ApiKey",
    "FakeClock",
    "FakeRedisServer",
    "MockKafka",
    "MockRequest",
    "RedisServer",
]
