"""A Kafka that comes along: librdkafka's mock cluster inside this process, for `demo` and, with faults, for tests.

In: topic names with partition counts. Out: bootstrap servers on 127.0.0.1 that this and other processes can use. Starting takes
about 65 ms and blocks no longer. Raises `ServiceUnavailable` when the installed librdkafka has no mock cluster.

**Nothing is durable**: records lie in memory, at most 5 MiB or 100,000 of them per partition (older ones are dropped), gone with
the process. It has no admin requests, no ACLs, no TLS, and its transactions do not isolate: those need a real broker.

`stream_sentiment.testing.MockKafka` adds the faults.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any, Self

import confluent_kafka
import confluent_kafka.cimpl

from stream_sentiment.errors import ServiceUnavailable

_PRODUCER = 0  # rd_kafka_type_t; the mock cluster hangs on a client instance of any type
_ERROR_TEXT_SIZE = 512

#: A new group waits this long for further members before its first assignment; librdkafka's mock default is 3000 ms.
REBALANCE_DELAY_MS = 100


class MockApi:
    """The functions of librdkafka's mock cluster, looked up by name, because the C API is declared experimental.

    `confluent_kafka`'s extension module depends on the librdkafka that it was built with, so the symbols are found through it,
    whether that library is bundled in the wheel or comes from the system.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(confluent_kafka.cimpl.__file__)

    def has(self, name: str) -> bool:
        """Whether the installed librdkafka exports `rd_kafka_<name>`."""
        return hasattr(self._library, f"rd_kafka_{name}")

    def function(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        """`rd_kafka_<name>` with its C types; raises `ServiceUnavailable` when it is not exported."""
        try:
            function = self._library[f"rd_kafka_{name}"]  # a new object per look-up: its types are ours alone
        except AttributeError:
            raise ServiceUnavailable(
                f"librdkafka {confluent_kafka.libversion()[0]} has no rd_kafka_{name}; install confluent-kafka 2.16 or newer from PyPI"
            ) from None
        function.restype = result
        function.argtypes = arguments
        return function


class EmbeddedKafka:
    """A mock cluster of one to three brokers, ids from 1; a context manager.

    ```python
    with EmbeddedKafka(topics={"chat.messages": 4}) as kafka:
        producer = confluent_kafka.Producer({"bootstrap.servers": kafka.bootstrap_servers})
    ```
    """

    description = "in-process mock Kafka: nothing is durable"

    def __init__(
        self,
        topics: Mapping[str, int] | None = None,
        *,
        brokers: int = 1,
        rebalance_delay_ms: int = REBALANCE_DELAY_MS,
        session_timeout_ms: int | None = None,
        heartbeat_interval_ms: int | None = None,
    ) -> None:
        """`topics`: name -> partitions, created by `start`. The two timings, in milliseconds, are those that the broker prescribes to
        members of KIP-848 groups (`group.protocol=consumer`); classic members bring their own."""
        self.brokers = brokers
        self._topics = dict(topics or {})
        self._rebalance_delay_ms = rebalance_delay_ms
        self._session_timeout_ms = session_timeout_ms
        self._heartbeat_interval_ms = heartbeat_interval_ms
        self._api = MockApi()
        self._client: int | None = None
        self._cluster: int | None = None
        self._bootstrap_servers = ""

    @property
    def bootstrap_servers(self) -> str:
        """`host:port` of every broker, separated by commas; raises before `start`."""
        if not self._bootstrap_servers:
            raise ServiceUnavailable("the embedded Kafka has not been started")
        return self._bootstrap_servers

    def start(self) -> Self:
        """Start the brokers and create the topics."""
        new_conf = self._api.function("conf_new", ctypes.c_void_p)
        set_conf = self._api.function(
            "conf_set",
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_size_t,
        )
        new_client = self._api.function(
            "new", ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
        )
        new_cluster = self._api.function("mock_cluster_new", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)
        bootstraps = self._api.function("mock_cluster_bootstraps", ctypes.c_char_p, ctypes.c_void_p)
        error = ctypes.create_string_buffer(_ERROR_TEXT_SIZE)
        conf = new_conf()
        # The client that carries the cluster connects to nothing and would complain about that on standard error.
        set_conf(conf, b"log_level", b"2", error, _ERROR_TEXT_SIZE)
        self._client = new_client(_PRODUCER, conf, error, _ERROR_TEXT_SIZE)
        if not self._client:
            raise ServiceUnavailable(f"librdkafka: {error.value.decode()}")
        self._cluster = new_cluster(self._client, self.brokers)
        if not self._cluster:
            self.stop()
            raise ServiceUnavailable(f"librdkafka could not start a mock cluster of {self.brokers} brokers")
        self._bootstrap_servers = bootstraps(self._cluster).decode()
        self._set_group_timings()
        for name, partitions in self._topics.items():
            self.create_topic(name, partitions)
        return self

    def stop(self) -> None:
        """End the brokers; every record is gone. Harmless when it is not running."""
        if self._cluster:
            self._api.function("mock_cluster_destroy", None, ctypes.c_void_p)(self._cluster)
            self._cluster = None
        if self._client:
            self._api.function("destroy", None, ctypes.c_void_p)(self._client)
            self._client = None
        self._bootstrap_servers = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic, replicated on every broker; raises `ServiceUnavailable` when it exists."""
        self._checked(
            "mock_topic_create", (ctypes.c_char_p, ctypes.c_int, ctypes.c_int), name.encode(), partitions, self.brokers
        )

    def _set_group_timings(self) -> None:
        self._call("mock_group_initial_rebalance_delay_ms", None, (ctypes.c_int32,), self._rebalance_delay_ms)
        if self._session_timeout_ms is not None:
            self._call("mock_set_group_consumer_session_timeout_ms", None, (ctypes.c_int,), self._session_timeout_ms)
        if self._heartbeat_interval_ms is not None:
            self._call(
                "mock_set_group_consumer_heartbeat_interval_ms", None, (ctypes.c_int,), self._heartbeat_interval_ms
            )

    def _call(self, name: str, result: Any, types: tuple[Any, ...], *arguments: Any) -> Any:
        """Call a function whose first argument is the cluster."""
        if not self._cluster:
            raise ServiceUnavailable("the embedded Kafka has not been started")
        return self._api.function(name, result, ctypes.c_void_p, *types)(self._cluster, *arguments)

    def _checked(self, name: str, types: tuple[Any, ...], *arguments: Any) -> None:
        """As `_call`, for functions that return an rd_kafka_resp_err_t; raises `ServiceUnavailable` when it is not 0."""
        code = self._call(name, ctypes.c_int, types, *arguments)
        if code:
            raise ServiceUnavailable(f"rd_kafka_{name}: {confluent_kafka.KafkaError(code).str()}")
