"""Redis comes back without its last writes, and no further event ever arrives to make the worker notice."""

import time

import pytest
from confluent_kafka import Producer

from stream_sentiment.testing import WorkerProcess, encode, record_key
from stream_sentiment.testing.events import SCRIPTS

TOPICS = {
    "chat.messages": 2,
    "product.reviews": 1,
    "sentiment.scored": 1,
    "conversation.state": 1,
    "escalation.events": 1,
    "sentiment.dlq": 1,
}
GROUP = "lost-writes"


def applied(client) -> int:
    """Sum of the watermarks."""
    return sum(int(client.hget(key, "wm") or 0) for key in client.scan_iter(match=f"ss:*{GROUP}*:meta"))


def wait_for(client, events: int) -> None:
    deadline = time.monotonic() + 60
    while applied(client) != events:
        assert time.monotonic() < deadline, f"{applied(client)} of {events} events applied after 60 s"
        time.sleep(0.05)


def conversations(client) -> dict[bytes, bytes]:
    return {key: client.get(key) for key in client.scan_iter(match="*:c:*")}


@pytest.mark.redis
def test_a_quiet_partition_notices_that_redis_has_lost_its_writes(mock_kafka, redis_server, redis_url):
    for name, partitions in TOPICS.items():
        mock_kafka.create_topic(name, partitions)
    events = [event for script in SCRIPTS for event in script.events()]
    half = len(events) // 2
    producer = Producer({"bootstrap.servers": mock_kafka.bootstrap_servers})
    settings = {
        "kafka.bootstrap_servers": mock_kafka.bootstrap_servers,
        "kafka.group_id": GROUP,
        "redis.url": redis_url,
        "model.stub": "true",
    }

    def publish(some: list) -> None:
        for event in some:
            producer.produce("chat.messages", encode(event), key=record_key(event))
        producer.flush(10)

    with WorkerProcess(settings), redis_server.client() as client:
        # Given half of the events, and what Redis holds of them
        publish(events[:half])
        wait_for(client, half)
        replica = {key: client.dump(key) for key in client.scan_iter()}
        # And the other half, and how it ends
        publish(events[half:])
        wait_for(client, len(events))
        end = conversations(client)
        # When Redis is replaced by the replica that was behind
        with client.pipeline(transaction=True) as failover:
            failover.flushdb()
            for key, value in replica.items():
                failover.restore(key, 0, value)
            failover.execute()
        assert applied(client) == half
        # Then the events since are read again, though no new one comes
        wait_for(client, len(events))
        assert conversations(client) == end
