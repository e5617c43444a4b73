"""Every fault of docs/delivery.md that Redis or the network can have, on real servers: nothing is lost, nothing counts twice."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from stream_sentiment.errors import ConfigurationError, ExitStatus
from stream_sentiment.store import (
    ApplyOutcome,
    ApplyResult,
    LoadRequest,
    PartitionBatch,
    StateStore,
    StoreRefused,
    StoreUnavailable,
)
from stream_sentiment.store.connection import LinkOptions, RedisLink, redact_url
from stream_sentiment.store.errors import StoreFault
from stream_sentiment.store.redis import SCRIPTS
from stream_sentiment.testing.clock import FakeClock
from stream_sentiment.testing.proxy import TcpProxy
from stream_sentiment.testing.redis import RedisServer
from tests.store.reading import TP, states

pytestmark = pytest.mark.redis

ANN = "acme|ann"


def soon(seconds: float) -> float:
    return time.monotonic() + seconds


def one(first: int, following: int, token: str = "T1", state: bytes = b"state") -> PartitionBatch:
    return PartitionBatch(TP, token, first, following, {ANN: state}, {f"{first}:0": b"record"})


def started(store: StateStore) -> None:
    store.acquire([(TP, "T1")], "w")
    store.initialise(TP, "T1", 0)


@contextlib.contextmanager
def after(seconds: float, action: object) -> Iterator[None]:
    timer = threading.Timer(seconds, action)  # type: ignore[arg-type]
    timer.start()
    try:
        yield
    finally:
        timer.join()


@pytest.fixture
def faults() -> list[StoreFault]:
    return []


@pytest.fixture
def proxied(server: RedisServer, group: str, faults: list[StoreFault]) -> Iterator[tuple[StateStore, TcpProxy]]:
    with TcpProxy("127.0.0.1", server.port) as proxy:
        store = StateStore(
            f"redis://{proxy.address}/0",
            group=group,
            state_ttl_ms=60_000,
            socket_timeout=0.3,
            connect_timeout=0.3,
            on_fault=faults.append,
        )
        yield store, proxy
        store.close()


def test_scripts_are_loaded_again_after_redis_lost_them(server: RedisServer, store: StateStore) -> None:
    started(store)
    with server.client() as client:
        client.script_flush()
    assert store.apply([one(0, 5)]) == [ApplyResult(ApplyOutcome.OK, 5, 1)]


def test_the_default_client_applies_a_script_twice_when_a_reply_is_lost(server: RedisServer) -> None:
    """Why the scripts must be safe to send twice: redis-py sends again by itself, and says nothing."""
    with TcpProxy("127.0.0.1", server.port) as proxy, redis.Redis(port=proxy.port, protocol=2) as client:
        client.set("counter", 0)
        proxy.swallow_reply()
        assert client.eval("return redis.call('INCR', KEYS[1])", 1, "counter") == 2


def test_a_batch_whose_reply_was_lost_is_applied_once_and_reported_as_already(
    proxied: tuple[StateStore, TcpProxy], faults: list[StoreFault]
) -> None:
    store, proxy = proxied
    started(store)
    del faults[:]
    proxy.swallow_reply()
    assert store.apply([one(0, 5)], deadline=soon(5)) == [ApplyResult(ApplyOutcome.ALREADY, 5)]
    assert faults == [StoreFault.CONNECTION]
    assert store.apply([one(5, 6)]) == [ApplyResult(ApplyOutcome.OK, 6, 2)]
    assert store.acquire([(TP, "T2")], "w")[0].outbox == {"0:0": b"record", "5:0": b"record"}


def test_every_other_step_survives_a_lost_reply(proxied: tuple[StateStore, TcpProxy]) -> None:
    store, proxy = proxied
    store.acquire([(TP, "T0")], "w")
    proxy.swallow_reply()
    [acquired] = store.acquire([(TP, "T1")], "w", deadline=soon(5))
    token = acquired.token
    assert token == "T1/2"
    proxy.swallow_reply()
    assert store.initialise(TP, token, 7, deadline=soon(5)) == 7
    store.apply([one(7, 8, token)])
    proxy.swallow_reply()
    assert store.load([LoadRequest(TP, token, 8, [ANN])], deadline=soon(5))[0].states == [b"state"]
    proxy.swallow_reply()
    assert store.forget(TP, token, ["7:0"], deadline=soon(5)) == 0
    assert store.acquire([(TP, "T2")], "w")[0].outbox == {}


def test_an_acquire_that_redis_executes_late_gives_the_partition_to_nobody(
    server: RedisServer, store: StateStore
) -> None:
    # Given an owner whose first ACQUIRE lies in a socket's buffer while Redis hangs
    server.pause()
    with pytest.raises(StoreUnavailable):
        store.acquire([(TP, "T1")], "w", deadline=soon(0.1))
    server.resume()
    # When it acquires again, and the first copy is executed at some time
    [acquired] = store.acquire([(TP, "T2")], "w", deadline=soon(5))
    late = store.acquire([(TP, "T1")], "late copy")[0]
    # Then the owner is fenced and acquires once more: no token that an owner uses comes back by itself
    assert late.previous_token == acquired.token
    assert store.apply([one(0, 5, acquired.token)])[0].outcome is ApplyOutcome.FENCED


def test_a_cut_network_raises_after_the_deadline_and_the_same_call_works_afterwards(
    proxied: tuple[StateStore, TcpProxy], faults: list[StoreFault]
) -> None:
    store, proxy = proxied
    started(store)
    proxy.down()
    with pytest.raises(StoreUnavailable) as caught:
        store.apply([one(0, 5)], deadline=soon(0.4))
    assert caught.value.fault is StoreFault.CONNECTION
    assert caught.value.exit_status is ExitStatus.UNAVAILABLE
    assert len(faults) > 1
    proxy.up()
    assert store.apply([one(0, 5)], deadline=soon(5)) == [ApplyResult(ApplyOutcome.OK, 5, 1)]


def test_a_redis_that_hangs_raises_a_timeout_and_what_it_did_late_counts_once(
    server: RedisServer, store: StateStore
) -> None:
    started(store)
    server.pause()
    try:
        with pytest.raises(StoreUnavailable) as caught:
            store.apply([one(0, 5)], deadline=soon(0.1))
        assert caught.value.fault is StoreFault.TIMEOUT
    finally:
        server.resume()
    # The request lay in the socket's buffer: Redis executes it although nobody waits any more.
    with server.client() as client:
        while client.hget(f"ss:{{{store.group}:{TP.topic}:{TP.partition}}}:meta", "wm") != b"5":
            time.sleep(0.01)
    assert store.apply([one(0, 5)], deadline=soon(5)) == [ApplyResult(ApplyOutcome.ALREADY, 5)]


def test_a_short_pause_of_redis_is_waited_out(server: RedisServer, store: StateStore) -> None:
    started(store)
    with server.client() as client:
        client.client_pause(800)
    assert store.apply([one(0, 5)], deadline=soon(5))[0].watermark == 5


def test_a_replica_refuses_the_batch_and_a_new_connection_finds_the_master(server: RedisServer, group: str) -> None:
    faults: list[StoreFault] = []
    store = StateStore(server.url, group=group, state_ttl_ms=60_000, on_fault=faults.append)
    started(store)
    del faults[:]
    admin = server.client()
    admin.replicaof("127.0.0.1", 1)
    try:
        with pytest.raises(StoreUnavailable) as caught:
            store.apply([one(0, 5)], deadline=soon(0.1))
        assert caught.value.fault is StoreFault.READONLY
        with after(0.3, lambda: admin.replicaof("NO", "ONE")):
            assert store.apply([one(0, 5)], deadline=soon(5)) == [ApplyResult(ApplyOutcome.OK, 5, 1)]
        assert set(faults) == {StoreFault.READONLY}
    finally:
        admin.replicaof("NO", "ONE")
        admin.close()


def test_a_full_redis_refuses_the_whole_batch_and_takes_it_when_there_is_room(
    server: RedisServer, store: StateStore
) -> None:
    started(store)
    store.apply([one(0, 5)])
    admin = server.client()
    admin.config_set("maxmemory", "1")
    admin.config_set("maxmemory-policy", "noeviction")
    try:
        # Deleting a state needs no memory; the batch must not be half done for it.
        delete_and_write = PartitionBatch(TP, "T1", 5, 9, {ANN: None, "acme|bob": b"x"}, {"5:0": b"record"})
        with pytest.raises(StoreUnavailable) as caught:
            store.apply([delete_and_write], deadline=soon(0.1))
        assert caught.value.fault is StoreFault.OOM
        assert states(store, ANN, "acme|bob") == [b"state", None]
        # What is delivered can still be forgotten: it makes room.
        assert store.forget(TP, "T1", ["0:0"]) == 1
        with after(0.3, lambda: admin.config_set("maxmemory", "256mb")):
            assert store.apply([delete_and_write], deadline=soon(5)) == [ApplyResult(ApplyOutcome.OK, 9, 1)]
    finally:
        admin.config_set("maxmemory", "256mb")
        admin.close()


def test_an_emptied_redis_fences_its_owner_and_says_that_no_watermark_is_known(
    server: RedisServer, store: StateStore
) -> None:
    started(store)
    store.apply([one(0, 5)])
    with server.client() as client:
        client.flushall()
    assert store.apply([one(5, 6)]) == [ApplyResult(ApplyOutcome.FENCED, None)]
    [acquired] = store.acquire([(TP, "T2")], "w")
    assert (acquired.watermark, acquired.outbox) == (None, {})
    assert store.apply([one(5, 6, token="T2")]) == [ApplyResult(ApplyOutcome.GAP, None)]


def test_watermark_states_and_outbox_come_back_together_after_kill_9(group: str, server: RedisServer) -> None:
    with RedisServer(source=server.source, appendonly="everysec") as own:
        store = StateStore(own.url, group=group, state_ttl_ms=600_000)
        started(store)
        stop = time.monotonic() + 1.5
        applied = 0
        while time.monotonic() < stop:
            store.apply([one(applied, applied + 1, state=b"%d" % (applied + 1))])
            applied += 1
        own.kill()
        own.restart()
        [state] = states(store, ANN)
        # The same token still stands, as after any restart: the batch that follows tells the owner where it is.
        [result] = store.apply([one(applied + 1, applied + 2)])
        assert result.outcome is ApplyOutcome.GAP
        assert result.watermark is not None
        assert 0 < result.watermark <= applied
        assert state == b"%d" % result.watermark
        [acquired] = store.acquire([(TP, "T2")], "w")
        assert list(acquired.outbox) == [f"{offset}:0" for offset in range(result.watermark)]


def test_a_wrong_password_and_a_forbidden_command_are_refused_at_once_with_exit_status_78(
    server: RedisServer, group: str
) -> None:
    admin = server.client()
    admin.acl_setuser("worker", enabled=True, passwords=["+secret"], keys=["ss:*"], commands=["+@read", "+ping"])
    try:
        url = server.url.replace("redis://", "redis://worker:wrong@")
        with pytest.raises(StoreRefused, match="password") as caught:
            started(StateStore(url, group=group, state_ttl_ms=1000))
        assert caught.value.exit_status is ExitStatus.CONFIGURATION
        with pytest.raises(StoreRefused, match="ACL"):
            started(StateStore(server.url, group=group, state_ttl_ms=1000, username="worker", password="secret"))
    finally:
        admin.acl_deluser("worker")
        admin.close()


def test_the_documented_acl_is_enough(server: RedisServer, group: str) -> None:
    admin = server.client()
    rules = ["-@all", "+@read", "+@write", "+@scripting", "-@dangerous", "+ping", "+info"]
    admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">p@ss:w{rd}", "~ss:*", *rules)
    try:
        url = server.url.replace("redis://", "redis://worker:p%40ss%3Aw%7Brd%7D@")
        store = StateStore(url, group=group, state_ttl_ms=1000)
        started(store)
        assert store.apply([one(0, 5)])[0].outcome is ApplyOutcome.OK
        assert store.describe()[0].findings == ()
        with pytest.raises(StoreRefused):
            started(StateStore(url, group=group, state_ttl_ms=1000, prefix="foreign"))
    finally:
        admin.acl_deluser("worker")
        admin.close()


def test_a_key_of_a_foreign_type_is_an_error_for_a_person(server: RedisServer, store: StateStore) -> None:
    with server.client() as client:
        client.set(f"ss:{{{store.group}:{TP.topic}:{TP.partition}}}:meta", "not a hash")
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        store.acquire([(TP, "T1")], "w")


def test_describe_names_every_condition_that_does_not_hold_with_its_remedy(
    server: RedisServer, store: StateStore
) -> None:
    [report] = store.describe()
    assert report.findings == ()
    assert (report.role, report.policy, report.append_only) == ("master", "noeviction", True)
    admin = server.client()
    try:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        admin.config_set("appendonly", "no")
        findings = {finding.message.split(" ")[0]: finding for finding in store.describe()[0].findings}
        assert findings["maxmemory-policy"].severity == "problem"
        assert findings["maxmemory-policy"].remedy == "CONFIG SET maxmemory-policy noeviction, and in redis.conf"
        assert findings["appendonly"].severity == "warning"
        admin.config_set("appendonly", "yes")
        admin.config_set("aof-load-truncated", "yes")
        _, torn = store.describe()[0].findings
        assert torn.severity == "warning"
        assert torn.message.startswith("aof-load-truncated is yes")
        assert torn.remedy.startswith("aof-load-truncated no in redis.conf")
    finally:
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set("appendonly", "yes")
        admin.config_set("aof-load-truncated", "no")
        admin.close()


def test_pauses_between_attempts_grow_and_end_at_the_deadline() -> None:
    clock = FakeClock()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.advance(seconds)

    link = RedisLink(LinkOptions("redis://127.0.0.1:1/0"), SCRIPTS, clock=clock, sleep=sleep)
    with pytest.raises(StoreUnavailable):
        link.exchange([("PING",)], deadline=3.0)
    assert clock.monotonic() == pytest.approx(3.0)
    assert 0.01 <= slept[0] <= 0.02
    assert max(slept) <= 0.5
    assert 9 <= len(slept) <= 18


def test_one_attempt_is_made_even_after_the_deadline(server: RedisServer) -> None:
    link = RedisLink(LinkOptions(server.url), SCRIPTS)
    assert link.exchange([("PING",)], deadline=0.0) == [b"PONG"]


@pytest.mark.parametrize(
    "url", ["http://localhost", "localhost:6379", "redis+sentinel://h:1", "redis+cluster://h:nope", "redis://h:nope"]
)
def test_a_url_that_names_no_redis_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigurationError):
        started(StateStore(url, group="g", state_ttl_ms=1000))


def test_a_password_is_never_shown() -> None:
    assert redact_url("rediss://user:s3cret@host:6379/0") == "rediss://user:***@host:6379/0"
    assert redact_url("redis://host/0") == "redis://host/0"


def test_a_unix_socket_works(tmp_path: Path, server: RedisServer, group: str) -> None:
    socket = str(tmp_path / "redis.sock")
    with RedisServer(source=server.source, options={"unixsocket": socket}):
        store = StateStore(f"unix://{socket}?db=1", group=group, state_ttl_ms=1000)
        started(store)
        assert store.apply([one(0, 5)])[0].outcome is ApplyOutcome.OK
