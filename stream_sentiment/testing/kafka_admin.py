"""What every real Kafka of the test kit offers, wherever it runs: topics, made and grown through the admin API."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from stream_sentiment.errors import ServiceUnavailable

__all__ = ["KafkaHarness", "TopicsByAdmin", "quiet"]

#: Takes what librdkafka would print: a client whose broker is gone prints a line every 50 ms.
_SILENT = logging.getLogger("stream_sentiment.testing.librdkafka")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False

_ADMIN_TIMEOUT_S = 30


def quiet(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Client settings that keep librdkafka from printing about brokers that tests take away."""
    return {"logger": _SILENT, **settings}


class KafkaHarness(Protocol):
    """A cluster that tests can use without knowing which: `MockKafka`, `KafkaBroker`, `KafkaContainer`, `ExternalKafka`."""

    @property
    def description(self) -> str:
        """For the line that says what the tests ran on."""

    @property
    def bootstrap_servers(self) -> str:
        """`host:port`, separated by commas."""

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic and return when it is usable; raises when it exists."""


class TopicsByAdmin:
    """`create_topic` and its like for clusters that have an admin API."""

    #: Whether `kill` and `restart` exist: not for a cluster that others use, too.
    restartable = False

    @property
    def bootstrap_servers(self) -> str:
        raise NotImplementedError

    def create_topic(self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        """Create a topic with one replica (or as many as the broker has as default) and return when it exists."""
        replicas = 1 if self.restartable else -1
        topic = NewTopic(name, num_partitions=partitions, replication_factor=replicas, config=dict(config or {}))
        admin = self.admin()  # kept in a name: the futures of a client that is garbage fail
        admin.create_topics([topic], operation_timeout=_ADMIN_TIMEOUT_S)[name].result(_ADMIN_TIMEOUT_S)
        _wait_for_partitions(admin, name, partitions)

    def grow_topic(self, name: str, partitions: int) -> None:
        """Raise the number of partitions to `partitions`."""
        admin = self.admin()
        grown = admin.create_partitions([NewPartitions(name, partitions)], operation_timeout=_ADMIN_TIMEOUT_S)
        grown[name].result(_ADMIN_TIMEOUT_S)
        _wait_for_partitions(admin, name, partitions)

    def delete_topic(self, name: str) -> None:
        """Delete a topic with its records."""
        admin = self.admin()
        admin.delete_topics([name], operation_timeout=_ADMIN_TIMEOUT_S)[name].result(_ADMIN_TIMEOUT_S)

    def admin(self) -> AdminClient:
        """An admin client for what is not wrapped here."""
        return AdminClient(quiet({"bootstrap.servers": self.bootstrap_servers}))


def _wait_for_partitions(admin: AdminClient, topic: str, partitions: int) -> None:
    """The controller answers before the brokers' metadata show the change."""
    deadline = time.monotonic() + _ADMIN_TIMEOUT_S
    while time.monotonic() < deadline:
        found = admin.list_topics(topic, timeout=_ADMIN_TIMEOUT_S).topics[topic].partitions
        if len(found) == partitions and all(partition.leader >= 0 for partition in found.values()):
            return
        time.sleep(0.02)
    raise ServiceUnavailable(f"topic {topic} did not get its {partitions} partitions within {_ADMIN_TIMEOUT_S} s")
