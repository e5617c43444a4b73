import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from stream_sentiment.testing import RedisServer, TcpProxy

INCREMENT = "return redis.call('INCR', KEYS[1])"


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str):
    with TcpProxy("127.0.0.1", redis_server.port) as proxy:
        yield proxy


def client(proxy: TcpProxy, retries: int = 0, timeout: float = 2.0) -> redis.Redis:
    retry = Retry(NoBackoff(), retries) if retries else None
    return redis.Redis(port=proxy.port, socket_timeout=timeout, retry=retry)


def test_bytes_pass_unchanged(proxy):
    value = bytes(range(256)) * 4096
    with client(proxy) as through:
        through.set("k", value)
        assert through.get("k") == value


def test_a_swallowed_reply_makes_a_retrying_client_apply_a_script_twice(proxy):
    """Why the project's own scripts carry a token and a watermark: the caller sees one success, the server did it twice."""
    with client(proxy, retries=3) as naive:
        naive.ping()
        proxy.swallow_reply()
        assert naive.eval(INCREMENT, 1, "n") == 2


def test_without_a_swallowed_reply_the_same_client_applies_it_once(proxy):
    with client(proxy, retries=3) as naive:
        naive.ping()
        assert naive.eval(INCREMENT, 1, "n") == 1


def test_a_swallowed_reply_is_a_connection_error_for_a_client_that_does_not_retry(proxy, redis_server):
    with client(proxy) as plain, redis_server.client() as direct:
        plain.ping()
        proxy.swallow_reply()
        with pytest.raises(redis.exceptions.ConnectionError):
            plain.eval(INCREMENT, 1, "n")
        assert direct.get("n") == b"1"


def test_down_cuts_old_connections_and_refuses_new_ones_until_up(proxy):
    with client(proxy) as old:
        old.ping()
        proxy.down()
        with pytest.raises(redis.exceptions.ConnectionError):
            old.ping()
        with client(proxy) as new, pytest.raises(redis.exceptions.ConnectionError):
            new.ping()
        proxy.up()
        assert old.ping()


def test_a_reset_cuts_open_connections_only(proxy):
    with client(proxy) as connection:
        connection.ping()
        proxy.reset()
        with pytest.raises(redis.exceptions.ConnectionError):
            connection.ping()
        assert connection.ping()


def test_a_blackhole_lets_clients_wait_and_delivers_afterwards(proxy, redis_server):
    with client(proxy, timeout=0.3) as waiting, redis_server.client() as direct:
        waiting.ping()
        proxy.blackhole()
        with pytest.raises(redis.exceptions.TimeoutError):
            waiting.set("k", "v")
        assert direct.get("k") is None
        proxy.up()
        for _ in range(100):
            if waiting.get("other") is None:
                break
        assert waiting.ping()


def test_latency_longer_than_the_clients_patience_is_a_timeout(proxy):
    with client(proxy, timeout=0.3) as impatient:
        impatient.ping()
        proxy.latency_s = 0.4
        with pytest.raises(redis.exceptions.TimeoutError):
            impatient.ping()
        proxy.latency_s = 0.0
        assert impatient.ping()


def test_a_narrow_line_takes_long_for_a_large_value_and_not_for_a_small_one(proxy):
    with client(proxy, timeout=0.5) as narrow:
        proxy.bandwidth = 20_000
        narrow.set("small", b"x" * 100)
        with pytest.raises(redis.exceptions.TimeoutError):
            narrow.set("large", b"x" * 50_000)
