"""A Kafka cluster inside the test's process, with faults on demand.

`MockKafka` is `EmbeddedKafka` (librdkafka's mock cluster, reached by ctypes) plus the faults that librdkafka exports. What it can
not do, a real broker must: see `stream_sentiment.testing.kafka`. Methods return when the cluster has taken the order; what clients
notice of it, and when, is up to them. A method whose C function the installed librdkafka does not export raises `ServiceUnavailable`
with the name of the function.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from stream_sentiment.kafka.embedded import EmbeddedKafka

__all__ = ["ALL_BROKERS", "ApiKey", "MockKafka", "MockRequest"]

ALL_BROKERS = -1


class ApiKey(IntEnum):
    """Requests of the Kafka protocol that tests make fail."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12  # of classic members
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    END_TXN = 26
    CONSUMER_GROUP_HEARTBEAT = 68  # of KIP-848 members


@dataclass(frozen=True, slots=True)
class MockRequest:
    """One request that a broker of the mock cluster has received."""

    broker_id: int
    api_key: int
    timestamp_us: int


class MockKafka(EmbeddedKafka):
    """A mock cluster with faults; a context manager like its base.

    ```python
    with MockKafka({"in": 4}, brokers=3) as kafka:
        kafka.push_errors(ApiKey.PRODUCE, [KafkaError.NOT_LEADER_FOR_PARTITION] * 2)   # the next two requests fail
        kafka.broker_down()                                                             # then all brokers go away
    ```
    """

    def delete_topic(self, name: str) -> None:
        """Delete a topic with its records; create it again with more partitions to imitate a partition increase."""
        self._checked("mock_topic_delete", (ctypes.c_char_p,), name.encode())

    def set_topic_error(self, name: str, error: int) -> None:
        """Answer metadata requests for the topic with this error code (0: well again)."""
        self._call("mock_topic_set_error", None, (ctypes.c_char_p, ctypes.c_int), name.encode(), error)

    def push_errors(self, api: int, errors: Sequence[int]) -> None:
        """Fail the next `len(errors)` requests of this kind, on whichever broker, with these codes in this order.

        `KafkaError._TRANSPORT` (-195) makes the broker cut the connection instead of answering.
        """
        codes = (ctypes.c_int * len(errors))(*errors)
        self._call(
            "mock_push_request_errors_array",
            None,
            (ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)),
            api,
            len(errors),
            codes,
        )

    def clear_errors(self, api: int) -> None:
        """Forget the errors pushed for this kind of request and not used yet."""
        self._call("mock_clear_request_errors", None, (ctypes.c_int16,), api)

    def push_broker_error(self, broker_id: int, api: int, error: int, delay_ms: int = 0) -> None:
        """Fail (or, with error 0, only delay) the next request of this kind on one broker; goes before `push_errors`."""
        self._checked(
            "mock_broker_push_request_error_rtts",
            (ctypes.c_int32, ctypes.c_int16, ctypes.c_size_t),  # further arguments are variadic: pairs of int
            broker_id,
            api,
            1,
            ctypes.c_int(error),
            ctypes.c_int(delay_ms),
        )

    def broker_down(self, broker_id: int = ALL_BROKERS) -> None:
        """Close its connections and refuse new ones. Elects no new leaders: `set_partition_leader` does."""
        self._checked("mock_broker_set_down", (ctypes.c_int32,), broker_id)

    def broker_up(self, broker_id: int = ALL_BROKERS) -> None:
        """Accept connections again."""
        self._checked("mock_broker_set_up", (ctypes.c_int32,), broker_id)

    def set_broker_delay(self, broker_id: int, delay_ms: int) -> None:
        """Answer every request this much later; `ALL_BROKERS` for the whole cluster, 0 for none."""
        self._checked("mock_broker_set_rtt", (ctypes.c_int32, ctypes.c_int), broker_id, delay_ms)

    def advertise(self, broker_id: int, host: str, port: int) -> None:
        """Tell clients this address instead of the broker's own: that of a `TcpProxy` before it."""
        self._call(
            "mock_broker_set_host_port",
            None,
            (ctypes.c_int32, ctypes.c_char_p, ctypes.c_int),
            broker_id,
            host.encode(),
            port,
        )

    def set_partition_leader(self, topic: str, partition: int, broker_id: int) -> None:
        """Move a partition's leadership; -1 leaves it without a leader."""
        self._checked(
            "mock_partition_set_leader",
            (ctypes.c_char_p, ctypes.c_int32, ctypes.c_int32),
            topic.encode(),
            partition,
            broker_id,
        )

    def set_group_coordinator(self, group_id: str, broker_id: int) -> None:
        """Move a consumer group's coordinator."""
        self._checked(
            "mock_coordinator_set",
            (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int32),
            b"group",
            group_id.encode(),
            broker_id,
        )

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Drop the records below this offset, as retention would."""
        self._checked(
            "mock_partition_delete_records",
            (ctypes.c_char_p, ctypes.c_int32, ctypes.c_int64),
            topic.encode(),
            partition,
            before,
        )

    def disable_api(self, api: int) -> None:
        """Do not offer this kind of request: an old broker. Affects clients that connect from now on."""
        self._checked("mock_set_apiversion", (ctypes.c_int16, ctypes.c_int16, ctypes.c_int16), api, -1, -1)

    def track_requests(self) -> None:
        """Record requests from now on, after dropping what was recorded."""
        self._call("mock_clear_requests", None, ())
        self._call("mock_start_request_tracking", None, ())

    def requests(self) -> list[MockRequest]:
        """The requests received since `track_requests`, oldest first."""
        count = ctypes.c_size_t()
        pointers = self._call(
            "mock_get_requests",
            ctypes.POINTER(ctypes.c_void_p),
            (ctypes.POINTER(ctypes.c_size_t),),
            ctypes.byref(count),
        )
        broker_id = self._api.function("mock_request_id", ctypes.c_int32, ctypes.c_void_p)
        api_key = self._api.function("mock_request_api_key", ctypes.c_int16, ctypes.c_void_p)
        timestamp = self._api.function("mock_request_timestamp", ctypes.c_int64, ctypes.c_void_p)
        found = [
            MockRequest(broker_id(pointers[i]), api_key(pointers[i]), timestamp(pointers[i]))
            for i in range(count.value)
        ]
        self._api.function("mock_request_destroy_array", None, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t)(
            pointers, count.value
        )
        return found
