"""The Redis ACL file under the worker's own store: enough, and no more. Against a real redis-server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from stream_sentiment.errors import StreamSentimentError
from stream_sentiment.store.keys import TopicPartition, conversation_key
from stream_sentiment.store.redis import ApplyOutcome, Erasure, LoadRequest, PartitionBatch, StateStore
from stream_sentiment.testing.redis import RedisServer

ROOT = Path(__file__).parents[2]
TP = TopicPartition("chat.messages", 0)

pytestmark = pytest.mark.redis


class Secured:
    """A Redis that has loaded the ACL file which make_secrets.py wrote."""

    def __init__(self, server: RedisServer, directory: Path) -> None:
        self.server = server
        self.directory = directory

    def url(self, user: str) -> str:
        address = self.server.url.removeprefix("redis://").removesuffix("/0")
        if user in {"worker", "operator"}:
            return (self.directory / user / "redis__url").read_text().replace("redis:6379", address)
        if user == "exporter":
            (password,) = set(json.loads((self.directory / "redis/exporter_password.json").read_text()).values())
        else:
            password = (self.directory / "redis/probe_password").read_text()
        return f"redis://{user}:{password}@{address}/0"

    def client(self, user: str) -> redis.Redis:
        return redis.Redis.from_url(self.url(user), socket_timeout=5, retry=None)


def make_secrets(directory: Path) -> str:
    environment = {**os.environ, "USERS_ACL": str(ROOT / "deploy/redis/users.acl")}
    command = [sys.executable, str(ROOT / "deploy/docker/make_secrets.py"), str(directory)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("secrets")
    make_secrets(directory)
    users = directory / "loaded.acl"
    users.write_text("user default on nopass ~* &* +@all\n")
    with RedisServer(options={"aclfile": str(users)}) as server, server.client() as administrator:
        users.write_text((directory / "redis/users.acl").read_text())
        administrator.execute_command("ACL", "LOAD")
        yield Secured(server, directory)
        os.kill(server.pid, 9)


@pytest.fixture
def store(secured: Secured) -> Iterator[StateStore]:
    made = StateStore(secured.url("worker"), group=f"acl-{uuid.uuid4().hex[:8]}", state_ttl_ms=60_000)
    yield made
    made.close()


def test_the_workers_whole_protocol_runs_with_the_workers_rights(store: StateStore):
    token = str(uuid.uuid4())
    (acquired,) = store.acquire([(TP, token)], member="test")
    assert acquired.watermark is None
    assert store.initialise(TP, token, 0) == 0
    conversation = conversation_key("shop", "c-1")
    batch = PartitionBatch(TP, token, 0, 3, {conversation: b'{"schema":1}'}, {"2:0": b"record"})
    (result,) = store.apply([batch])
    assert result.outcome is ApplyOutcome.OK
    assert store.load([LoadRequest(TP, token, 3, [conversation])])[0].states == [b'{"schema":1}']
    (again,) = store.acquire([(TP, token)], member="test")
    assert again.outbox == {"2:0": b"record"}
    store.forget(TP, token, ["2:0"])
    (empty,) = store.acquire([(TP, token)], member="test")
    assert empty.outbox == {}
    (report,) = store.describe()
    assert report.policy == "noeviction"
    assert not [finding for finding in report.findings if "refused" in finding.message]


@pytest.mark.parametrize(
    "command",
    [
        ("SET", "other:key", "1"),
        ("GET", "other:key"),
        ("EVAL", "return 1", "0"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"),
        ("SCRIPT", "FLUSH"),
        ("SHUTDOWN",),
        ("REPLICAOF", "127.0.0.1", "1"),
        ("ACL", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("MODULE", "LIST"),
        ("PUBLISH", "channel", "x"),
        ("MONITOR",),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_the_worker_may_not(secured: Secured, command: tuple[str, ...]):
    with secured.client("worker") as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.execute_command(*command)


def test_a_script_reaches_no_key_outside_the_prefix(secured: Secured):
    with secured.client("worker") as client:
        sha = client.script_load("return redis.call('SET', KEYS[1], '1')")
        client.evalsha(sha, 1, "ss:{x}:y")
        with pytest.raises(redis.exceptions.RedisError, match=r"(?i)permission|NOPERM|can't access"):
            client.evalsha(sha, 1, "other:key")


def test_nobody_gets_in_without_a_password(secured: Secured):
    with secured.server.client() as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()


def test_a_wrong_password_is_a_clear_error_of_the_store_that_does_not_show_it(secured: Secured):
    url = secured.url("worker").replace("worker:", "worker:x")
    store = StateStore(url, group="acl", state_ttl_ms=60_000)
    with pytest.raises(StreamSentimentError) as refused:
        store.acquire([(TP, str(uuid.uuid4()))], member="test")
    store.close()
    assert "password" in str(refused.value).lower() or "auth" in str(refused.value).lower()
    assert url.split(":")[2].split("@")[0] not in str(refused.value)


def test_the_probe_may_ask_whether_the_server_lives_and_nothing_else(secured: Secured):
    with secured.client("probe") as client:
        assert client.ping() is True
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command("INFO")


def test_the_exporter_sees_the_server_and_no_key(secured: Secured):
    with secured.client("exporter") as client:
        assert client.execute_command("INFO")["maxmemory_policy"]
        assert client.execute_command("CONFIG", "GET", "maxmemory")
        assert client.execute_command("CLIENT", "SETNAME", "exporter")  # redis_exporter does, at every scrape
        for command in (("GET", "ss:{g:t:0}:c:x"), ("KEYS", "*"), ("CONFIG", "SET", "maxmemory", "1mb")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


def test_the_operator_can_find_and_erase_a_conversation_but_write_no_state(secured: Secured, store: StateStore):
    token = str(uuid.uuid4())
    conversation = conversation_key("shop", "c-1")
    store.acquire([(TP, token)], member="test", partition_counts={TP.topic: 1})
    store.initialise(TP, token, 0)
    store.apply([PartitionBatch(TP, token, 0, 1, {conversation: b"{}"}, {})])
    operator = StateStore(secured.url("operator"), group=store.group, state_ttl_ms=60_000)
    (found,) = operator.find(TP.topic, conversation)
    assert operator.erase([Erasure(found)], str(uuid.uuid4())) is True
    assert operator.find(TP.topic, conversation) == []
    operator.close()
    with secured.client("operator") as client:
        assert client.hget(next(client.scan_iter(f"ss:*{store.group}*:meta")), "member") == b"erasure"
        for command in (("SET", "ss:{x}:c:y", "{}"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


def test_passwords_are_made_once_and_each_file_is_for_its_reader_alone(tmp_path: Path):
    assert make_secrets(tmp_path) == "secrets written\n"
    files = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o400"}
    assert make_secrets(tmp_path) == "secrets exist, nothing to do\n"
    assert {path: path.read_bytes() for path in files} == files
    acl = (tmp_path / "redis/users.acl").read_text()
    assert (tmp_path / "redis/probe_password").read_text() not in acl
