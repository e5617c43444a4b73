"""The test kit: what this project tests itself with, public so that you test your own producers and consumers with it.

Real services where a test needs one (Redis, Apache Kafka, a worker process), librdkafka's mock cluster where faults matter more than
durability, a TCP proxy that misbehaves on order, a clock turned by hand, and builders for events. See docs/testing.md.
"""

from stream_sentiment.testing.clock import FakeClock
from stream_sentiment.testing.consume import Record, read_topic
from stream_sentiment.testing.events import chat_message, conversation_event, encode, record_key, review
from stream_sentiment.testing.kafka import (
    ExternalKafka,
    KafkaBroker,
    KafkaContainer,
    KafkaHarness,
    NoKafka,
    quiet,
    start_kafka,
)
from stream_sentiment.testing.mock_kafka import ALL_BROKERS, ApiKey, MockKafka, MockRequest
from stream_sentiment.testing.proxy import TcpProxy
from stream_sentiment.testing.redis import FakeRedisServer, RedisServer
from stream_sentiment.testing.worker import WorkerProcess

__all__ = [
    "ALL_BROKERS",
    "ApiKey",
    "ExternalKafka",
    "FakeClock",
    "FakeRedisServer",
    "KafkaBroker",
    "KafkaContainer",
    "KafkaHarness",
    "MockKafka",
    "MockRequest",
    "NoKafka",
    "Record",
    "RedisServer",
    "TcpProxy",
    "WorkerProcess",
    "chat_message",
    "conversation_event",
    "encode",
    "quiet",
    "read_topic",
    "record_key",
    "review",
    "start_kafka",
]
