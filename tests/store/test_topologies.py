"""The same store on a Redis Cluster and behind Sentinel."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stream_sentiment.local_process import LocalProcess, free_port
from stream_sentiment.store import ApplyOutcome, Erasure, LoadRequest, PartitionBatch, StateStore, TopicPartition
from stream_sentiment.store.embedded import RedisSource
from stream_sentiment.testing.redis import RedisServer

EXECUTABLE = shutil.which("redis-server") or shutil.which("valkey-server")
pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(EXECUTABLE is None, reason="no redis-server on PATH"),
]
SOURCE = RedisSource("system", EXECUTABLE)
SLOTS = 16_384
ANN = "acme|ann"


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    with contextlib.ExitStack() as stack:
        options = {"cluster-enabled": "yes", "cluster-node-timeout": "2000", "cluster-require-full-coverage": "no"}
        nodes = [
            stack.enter_context(RedisServer(source=SOURCE, options={**options, "cluster-port": str(free_port())}))
            for _ in range(3)
        ]
        clients = [stack.enter_context(node.client()) for node in nodes]
        bus = [int(client.config_get("cluster-port")["cluster-port"]) for client in clients]
        for number, client in enumerate(clients):
            low, high = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, bus[0])

        def agree() -> bool:
            infos = [client.execute_command("CLUSTER", "INFO") for client in clients]
            return all(b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info for info in infos)

        wait_until(agree)
        yield nodes


def test_the_protocol_runs_on_a_cluster_with_partitions_on_every_node(cluster: list[RedisServer]) -> None:
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in cluster)
    store = StateStore(f"redis+cluster://{hosts}", group="g", state_ttl_ms=60_000)
    tps = [TopicPartition("chat.messages", number) for number in range(12)]
    store.acquire([(tp, "T1") for tp in tps], "w", partition_counts={"chat.messages": 12})
    for tp in tps:
        store.initialise(tp, "T1", 0)
    batches = [
        PartitionBatch(tp, "T1", 0, 5, {f"acme|{n}": b"s%d" % n for n in range(20)}, {"1:0": b"r"}) for tp in tps
    ]

    assert {result.outcome for result in store.apply(batches)} == {ApplyOutcome.OK}
    assert {result.outcome for result in store.apply(batches)} == {ApplyOutcome.ALREADY}
    loaded = store.load([LoadRequest(tp, "T1", 5, ["acme|3", "acme|99"]) for tp in tps])
    assert [result.states for result in loaded] == [[b"s3", None]] * 12
    assert store.forget(tps[4], "T1", ["1:0"]) == 1
    assert [acquired.watermark for acquired in store.acquire([(tp, "T2") for tp in tps], "w")] == [5] * 12
    assert len(store.find("chat.messages", "acme|7")) == 12
    assert len(store.describe()) == 3
    used = []
    for node in cluster:
        with node.client() as client:
            used.append(client.dbsize())
    assert all(used), "every node holds partitions"

    for node in cluster:
        with node.client() as client:
            client.script_flush()
    assert store.erase([Erasure(store.find("chat.messages", "acme|7")[0], [b"tombstone"])], "E1")
    store.close()
    assert len(store.find("chat.messages", "acme|7")) == 11


def test_a_dead_node_of_a_cluster_holds_up_only_until_it_is_back(cluster: list[RedisServer]) -> None:
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in cluster)
    store = StateStore(f"redis+cluster://{hosts}", group="g2", state_ttl_ms=60_000, socket_timeout=0.5)
    tps = [TopicPartition("t", number) for number in range(12)]
    store.acquire([(tp, "T1") for tp in tps], "w")
    for tp in tps:
        store.initialise(tp, "T1", 0)
    batches = [PartitionBatch(tp, "T1", 0, 5, {ANN: b"s"}, {}) for tp in tps]
    cluster[1].pause()
    try:
        with pytest.raises(Exception, match="Redis is unavailable"):
            store.apply(batches, deadline=time.monotonic() + 0.2)
    finally:
        cluster[1].resume()
    results = store.apply(batches, deadline=time.monotonic() + 20)
    assert {result.outcome for result in results} <= {ApplyOutcome.OK, ApplyOutcome.ALREADY}
    loaded = store.load([LoadRequest(tp, "T1", 5, [ANN]) for tp in tps])
    assert [result.states for result in loaded] == [[b"s"]] * 12


def test_a_sentinel_failover_is_waited_out(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(RedisServer(source=SOURCE))
        replica = stack.enter_context(
            RedisServer(
                source=SOURCE, options={"replicaof": f"127.0.0.1 {master.port}", "repl-diskless-sync-delay": "0"}
            )
        )
        with replica.client() as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        port = free_port()
        config = tmp_path / "sentinel.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\nsentinel monitor shop 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds shop 500\nsentinel failover-timeout shop 5000\n"
        )
        sentinel = LocalProcess("sentinel", [str(EXECUTABLE), str(config), "--sentinel"], tmp_path / "sentinel.log")
        sentinel.start()
        stack.callback(sentinel.kill)
        store = StateStore(
            f"redis+sentinel://127.0.0.1:{port}/shop/0", group="g", state_ttl_ms=60_000, socket_timeout=0.5
        )
        tp = TopicPartition("t", 0)
        patience = time.monotonic() + 30
        token = store.acquire([(tp, "T1")], "w", deadline=patience)[0].token
        store.initialise(tp, token, 0, deadline=patience)
        assert store.apply([PartitionBatch(tp, token, 0, 5, {ANN: b"v5"}, {})], deadline=patience)[0].watermark == 5
        with replica.client() as client:
            wait_until(lambda: client.hget("ss:{g:t:0}:meta", "wm") == b"5")

        master.kill()
        [result] = store.apply([PartitionBatch(tp, token, 5, 9, {ANN: b"v9"}, {})], deadline=patience)

        assert (result.outcome, result.watermark) == (ApplyOutcome.OK, 9)
        with replica.client() as client:
            assert client.get(f"ss:{{g:t:0}}:c:{ANN}") == b"v9"
