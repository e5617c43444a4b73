"""Why Redis should run with `aof-load-truncated no`: a file torn inside a script comes back, at the second start, as half a script.

By default Redis cuts a torn file behind the last whole *command* and starts. A `MULTI` without its `EXEC` stays in the file, the next
script's `EXEC` ends it, and the next start applies the first part of a write that never happened: a watermark without its states.
"""

import shutil
import subprocess

import pytest

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.testing import RedisServer

WRITE = """
redis.call('HSET', KEYS[1], 'wm', ARGV[1])
redis.call('SET', KEYS[2], ARGV[1])
redis.call('SET', KEYS[3], ARGV[1])
"""
ACQUIRE = "redis.call('HSET', KEYS[1], 'token', 't') redis.call('HSET', KEYS[1], 'member', 'x')"
SCRIPT_END = b"*1\r\n$4\r\nEXEC\r\n"


def tear(server: RedisServer) -> None:
    """Two writes, of which the second is torn inside its last command, as by a power cut."""
    with server.client() as client:
        for number in ("1", "2"):
            client.eval(WRITE, 3, "meta", "state-1", "state-2", number)
    server.kill()
    (file,) = list(server.directory.glob("**/*.incr.aof")) or list(server.directory.glob("appendonly.aof"))
    written = file.read_bytes()
    assert written.endswith(SCRIPT_END)
    file.write_bytes(written[: -len(SCRIPT_END) - 4])


def write_and_start_again(server: RedisServer) -> tuple:
    """What the data are after one more script and one more start."""
    with server.client() as client:
        client.eval(ACQUIRE, 1, "meta")
    server.kill()
    server.restart()
    with server.client() as client:
        return client.hget("meta", "wm"), client.get("state-1"), client.get("state-2")


@pytest.mark.redis
def test_by_default_half_of_a_torn_script_is_applied_at_the_second_start():
    with RedisServer(appendonly="always") as server:
        tear(server)
        server.restart()
        assert write_and_start_again(server) == (b"2", b"2", b"1")


@pytest.mark.redis
def test_told_not_to_load_a_truncated_file_redis_refuses_and_the_repair_removes_the_whole_script():
    with RedisServer(appendonly="always", options={"aof-load-truncated": "no"}) as server:
        repair = shutil.which("redis-check-aof")
        if repair is None:
            pytest.skip("redis-check-aof is not beside redis-server; Debian has it in redis-tools")
        tear(server)
        with pytest.raises(ServiceUnavailable, match="Unexpected end of file reading the append only file"):
            server.restart()
        (file,) = list(server.directory.glob("**/*.manifest")) or list(server.directory.glob("appendonly.aof"))
        subprocess.run([repair, "--fix", str(file)], input=b"y\n", check=True, capture_output=True)
        server.restart()
        assert write_and_start_again(server) == (b"1", b"1", b"1")
