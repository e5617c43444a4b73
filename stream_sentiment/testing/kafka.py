"""A real Apache Kafka for tests, from wherever this machine can get one.

`start_kafka()` takes the first that works: the cluster that `KAFKA_BOOTSTRAP_SERVERS` names, a container where Docker runs and
the image can be had, a subprocess where Java and Maven (or the jars) are. It raises `NoKafka` with every reason when none does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any, Self

from confluent_kafka import KafkaException

from stream_sentiment.errors import ServiceUnavailable, StreamSentimentError
from stream_sentiment.local_process import free_port
from stream_sentiment.testing.kafka_admin import KafkaHarness, TopicsByAdmin, quiet
from stream_sentiment.testing.kafka_broker import KafkaBroker
from stream_sentiment.testing.kafka_jars import JARS_VARIABLE, KAFKA_VERSION, kafka_jars

__all__ = [
    "BOOTSTRAP_VARIABLE",
    "IMAGE_VARIABLE",
    "JARS_VARIABLE",
    "ExternalKafka",
    "KafkaBroker",
    "KafkaContainer",
    "KafkaHarness",
    "NoKafka",
    "kafka_jars",
    "quiet",
    "start_kafka",
]

BOOTSTRAP_VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"
IMAGE_VARIABLE = "STREAM_SENTIMENT_KAFKA_IMAGE"

_DEFAULT_IMAGE = f"apache/kafka:{KAFKA_VERSION}"


class NoKafka(ServiceUnavailable):
    """This machine has no way to a real Kafka; the message names each way and why it is closed."""


class ExternalKafka(TopicsByAdmin):
    """A cluster that exists already. `stop` deletes the topics that were created through it, and nothing else."""

    timeout_s = 10.0  #: for its first answer

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._created: list[str] = []

    @property
    def description(self) -> str:
        return f"the Kafka at {self._bootstrap_servers} ({BOOTSTRAP_VARIABLE})"

    @property
    def bootstrap_servers(self) -> str:
        return self._bootstrap_servers

    def start(self) -> Self:
        """Check that it answers."""
        try:
            self.admin().list_topics(timeout=self.timeout_s)
        except KafkaException as error:
            raise ServiceUnavailable(f"{self.description} does not answer: {error.args[0].str()}") from None
        return self

    def create_topic(self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        super().create_topic(name, partitions, config)
        self._created.append(name)

    def stop(self) -> None:
        """Delete the topics created through this object."""
        for name in self._created:
            with contextlib.suppress(KafkaException):
                self.delete_topic(name)
        self._created.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class KafkaContainer(TopicsByAdmin):
    """The image `apache/kafka` (or what `STREAM_SENTIMENT_KAFKA_IMAGE` names) by testcontainers, on a fixed loopback port."""

    def __init__(self, image: str | None = None) -> None:
        self._image = image or os.environ.get(IMAGE_VARIABLE) or _DEFAULT_IMAGE
        self._port = 0
        self._container: Any = None

    @property
    def description(self) -> str:
        return f"{self._image} (container)"

    @property
    def bootstrap_servers(self) -> str:
        if not self._port:
            raise ServiceUnavailable("the Kafka container has not been started")
        return f"127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Pull the image when it is not there, start it and wait for the broker; raises `ServiceUnavailable` with the reason."""
        try:
            from docker.errors import DockerException  # type: ignore[import-untyped]
            from testcontainers.core.container import DockerContainer
            from testcontainers.core.waiting_utils import wait_for_logs
        except ImportError as error:
            raise ServiceUnavailable(f"testcontainers is not installed ({error.name})") from None
        # Clients are told the advertised address, so the host's port must be known before the container starts.
        self._port = free_port()
        environment = {
            "KAFKA_NODE_ID": "1",
            "KAFKA_PROCESS_ROLES": "broker,controller",
            "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
            "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
            "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
            "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{self._port}",
            "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
            "KAFKA_LOG_RETENTION_MS": "-1",
            "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
            "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
            "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
            "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        }
        try:
            container = DockerContainer(self._image).with_bind_ports(9092, self._port).with_envs(**environment)
            self._container = container.start()
            wait_for_logs(container, "Kafka Server started", timeout=90)
        except (DockerException, OSError, TimeoutError) as error:
            self.stop()
            raise ServiceUnavailable(f"no container of {self._image}: {str(error).splitlines()[0]}") from None
        return self

    def stop(self) -> None:
        """Remove the container."""
        if self._container is not None:
            self._container.stop()
            self._container = None
        self._port = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_kafka() -> ExternalKafka | KafkaContainer | KafkaBroker:
    """The first real Kafka that works here, started; the caller stops it. Raises `NoKafka` with a reason per way."""
    reasons = []
    if servers := os.environ.get(BOOTSTRAP_VARIABLE):
        # Named on purpose: when it does not answer, another Kafka would be the wrong answer.
        return ExternalKafka(servers).start()
    reasons.append(f"{BOOTSTRAP_VARIABLE} is not set")
    for kafka in (KafkaContainer(), KafkaBroker()):
        try:
            if isinstance(kafka, KafkaContainer):
                _check_docker()
            return kafka.start()
        except StreamSentimentError as error:
            reasons.append(str(error).splitlines()[0])
    raise NoKafka("no real Kafka here: " + "; ".join(reasons))


def _check_docker() -> None:
    """Raise `ServiceUnavailable` when no Docker daemon answers; much faster than letting testcontainers find out."""
    try:
        import docker  # type: ignore[import-untyped]
        from docker.errors import DockerException
    except ImportError:
        raise ServiceUnavailable("the Docker client library is not installed") from None
    try:
        client = docker.from_env(timeout=5)
        client.ping()
        client.close()
    except DockerException:
        raise ServiceUnavailable("no Docker daemon answers") from None
