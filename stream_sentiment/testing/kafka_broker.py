"""A real Apache Kafka in a subprocess: one KRaft node, broker and controller in one, on free loopback ports.

In: Java 17 and the jars of `kafka_jars()`. Out: bootstrap servers. `start` blocks until the broker answers metadata (2 to 6 s),
`restart` until every partition has its leader again. Raises `ServiceUnavailable` with the end of the broker's log.

Set for tests: no automatic topic creation (a forgotten topic is an error), groups without initial delay, KIP-848 session time-outs
down to one second, records kept whatever their timestamp says.
"""

from __future__ import annotations

import base64
import contextlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.local_process import LocalProcess, free_port
from stream_sentiment.testing.kafka_admin import TopicsByAdmin, quiet
from stream_sentiment.testing.kafka_jars import KAFKA_VERSION, kafka_jars

__all__ = ["KafkaBroker"]

_NODE_ID = "1"

#: The JVM's flags: a small heap, the collector and the compiler that start fastest. 340 MB resident in all.
_JVM_FLAGS = [
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
]


class KafkaBroker(TopicsByAdmin):
    """One Apache Kafka node; a context manager.

    ```python
    with KafkaBroker() as kafka:
        kafka.create_topic("in", partitions=12)
        kafka.kill()       # SIGKILL, as a power cut would
        kafka.restart()    # same ports, same log directory
    ```
    """

    restartable = True

    def __init__(
        self,
        *,
        directory: Path | None = None,
        group_session_timeout_ms: int = 6_000,
        group_heartbeat_interval_ms: int = 500,
        settings: Mapping[str, str] | None = None,
        format_options: tuple[str, ...] = (),
    ) -> None:
        """`directory` holds configuration, logs and data (default: a temporary one, removed by `stop`). The two timings hold for
        members of KIP-848 groups. `settings` override the broker's configuration, `format_options` go to the storage formatter."""
        self.port = 0
        self.controller_port = 0
        self._own_directory = directory is None
        self._directory = directory
        self._session_timeout_ms = group_session_timeout_ms
        self._heartbeat_interval_ms = group_heartbeat_interval_ms
        self._settings = dict(settings or {})
        self._format_options = format_options
        self._process: LocalProcess | None = None

    @property
    def description(self) -> str:
        return f"Apache Kafka {KAFKA_VERSION} (subprocess)"

    @property
    def bootstrap_servers(self) -> str:
        """Of the plain-text listener; raises before `start`."""
        if not self.port:
            raise ServiceUnavailable("the Kafka broker has not been started")
        return f"127.0.0.1:{self.port}"

    @property
    def process(self) -> LocalProcess:
        """The JVM; raises before the first start."""
        if self._process is None:
            raise ServiceUnavailable("the Kafka broker has not been started")
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> Self:
        """Format the storage, start the broker and wait until it answers."""
        java = shutil.which("java")
        if java is None:
            raise ServiceUnavailable("java is not on PATH (Apache Kafka 4 needs Java 17 or newer)")
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="stream-sentiment-kafka-"))
        self.port, self.controller_port = free_port(), free_port()
        configuration = self._directory / "server.properties"
        configuration.write_text(
            "".join(f"{name}={value}\n" for name, value in self._configuration().items()), encoding="utf-8"
        )
        run = [java, *_JVM_FLAGS, "-cp", f"{kafka_jars()}/*"]
        _format_storage([*run, "kafka.tools.StorageTool"], configuration, self._format_options)
        self._process = LocalProcess(
            "Kafka broker", [*run, "kafka.Kafka", str(configuration)], self._directory / "broker.log"
        )
        self._process.start()
        try:
            self._wait_for_leaders(timeout_s=180)  # 2 s on an idle machine
        except ServiceUnavailable:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the broker and remove its temporary directory."""
        if self._process is not None:
            # A controlled shutdown waits for a controller that is going away, too: half a minute for nothing that a test could see.
            self._process.kill() if self._own_directory else self._process.terminate(timeout_s=30)
        self.port = self.controller_port = 0
        if self._own_directory and self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def kill(self) -> None:
        """SIGKILL; acknowledged records are in the page cache and survive, open connections are reset."""
        self.process.kill()

    def restart(self) -> None:
        """Start again on the same ports and log directory, after a clean stop if it still runs; waits for every partition's leader."""
        self.process.terminate(timeout_s=30)
        self.process.start()
        self._wait_for_leaders(timeout_s=90)

    def _configuration(self) -> dict[str, str]:
        listeners = f"PLAINTEXT://127.0.0.1:{self.port}"
        return {
            "process.roles": "broker,controller",
            "node.id": _NODE_ID,
            "controller.quorum.voters": f"{_NODE_ID}@127.0.0.1:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"{listeners},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": listeners,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL",
            "log.dirs": f"{self._directory}/data",
            "auto.create.topics.enable": "false",
            "log.retention.ms": "-1",  # tests write records with timestamps of the past
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "group.consumer.min.session.timeout.ms": "1000",
            "group.consumer.session.timeout.ms": str(self._session_timeout_ms),
            "group.consumer.min.heartbeat.interval.ms": "100",
            "group.consumer.heartbeat.interval.ms": str(self._heartbeat_interval_ms),
            # After kill -9 the controller waits for the dead broker's session to run out before it lets the new one in: 9 s by default.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            **self._settings,
        }

    def _wait_for_leaders(self, timeout_s: float) -> None:
        admin = AdminClient(quiet({"bootstrap.servers": self.bootstrap_servers}))

        def ready() -> bool:
            with contextlib.suppress(KafkaException):
                metadata = admin.list_topics(timeout=1)
                return bool(metadata.brokers) and all(
                    partition.leader >= 0
                    for topic in metadata.topics.values()
                    for partition in topic.partitions.values()
                )
            return False

        self.process.wait_until(ready, timeout_s, every_s=0.1)


def _format_storage(tool: list[str], configuration: Path, options: tuple[str, ...]) -> None:
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    if cluster_id.startswith("-"):
        cluster_id = "A" + cluster_id[1:]  # the tool would take it for an option
    done = subprocess.run(
        [*tool, "format", "-t", cluster_id, "-c", str(configuration), "--ignore-formatted", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode:
        raise ServiceUnavailable(f"Kafka's storage could not be formatted:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
