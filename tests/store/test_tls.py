"""`rediss://`: the server's certificate is checked, by default and against a CA of one's own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_sentiment.errors import ConfigurationError, ServiceUnavailable
from stream_sentiment.local_process import free_port
from stream_sentiment.settings import load_settings
from stream_sentiment.store import StateStore, StoreRefused, StoreUnavailable, TopicPartition
from stream_sentiment.store.embedded import RedisSource
from stream_sentiment.testing.redis import RedisServer
from stream_sentiment.worker import open_store

TP = TopicPartition("chat.messages", 0)
EXECUTABLE = shutil.which("redis-server")
pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(EXECUTABLE is None or shutil.which("openssl") is None, reason="needs redis-server and openssl"),
]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A Redis that speaks TLS on a port, and the certificate that vouches for it."""
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    request = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*request.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    port = free_port()
    options = {
        "tls-port": str(port),
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(certificate),
        "tls-auth-clients": "no",
    }
    try:
        server = RedisServer(source=RedisSource("system", EXECUTABLE), options=options).start()
    except ServiceUnavailable as error:
        pytest.skip(f"this Redis was built without TLS: {error}")
    yield port, certificate
    server.stop()


def watermark(url: str, **options: str) -> int | None:
    store = StateStore(url, group="g", state_ttl_ms=1000, **options)  # type: ignore[arg-type]
    return store.acquire([(TP, "T1")], "w")[0].watermark


def test_a_certificate_of_an_own_ca_is_trusted_by_option_or_in_the_url(secured: tuple[int, Path]) -> None:
    port, certificate = secured
    assert watermark(f"rediss://localhost:{port}/0", ssl_ca_certs=str(certificate)) is None
    assert watermark(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}") is None


def test_the_settings_name_the_files(secured: tuple[int, Path]) -> None:
    port, certificate = secured
    settings = load_settings(
        redis={
            "url": f"rediss://localhost:{port}/0",
            "ssl_ca_location": certificate,
            "ssl_certificate_location": certificate,
            "ssl_key_location": certificate.with_name("key.pem"),
        }
    )
    store = open_store(settings, 1000)
    assert store.acquire([(TP, "T1")], "w")[0].watermark is None
    store.close()
    unknown = open_store(load_settings(redis={"url": f"rediss://localhost:{port}/0"}), 1000)
    with pytest.raises(StoreRefused, match="certificate"):
        unknown.acquire([(TP, "T1")], "w")


def test_a_server_that_asks_for_a_certificate_gets_the_clients(tmp_path: Path, secured: tuple[int, Path]) -> None:
    _, certificate = secured
    key, port = certificate.with_name("key.pem"), free_port()
    options = {"tls-port": str(port), "tls-cert-file": str(certificate), "tls-key-file": str(key)}
    options |= {"tls-ca-cert-file": str(certificate), "tls-auth-clients": "yes"}
    ours = {"ssl_certificate_location": certificate, "ssl_key_location": key}
    with RedisServer(source=RedisSource("system", EXECUTABLE), options=options):
        for files, welcome in ((ours, True), ({}, False)):
            url = f"rediss://localhost:{port}/0"
            store = open_store(load_settings(redis={"url": url, "ssl_ca_location": certificate, **files}), 1000)
            if welcome:
                assert store.acquire([(TP, "T1")], "w")[0].watermark is None
            else:
                with pytest.raises(StoreUnavailable):
                    store.acquire([(TP, "T1")], "w")
            store.close()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"url": "redis://localhost/0", "ssl_ca_location": "ca.pem"}, "not encrypted; use rediss://"),
        ({"url": "rediss://localhost/0", "ssl_certificate_location": "a.pem"}, "go together"),
    ],
)
def test_settings_that_would_leave_the_connection_open_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_settings(redis=given)


def test_an_unknown_certificate_is_refused_at_once_with_the_reason(secured: tuple[int, Path]) -> None:
    port, _ = secured
    with pytest.raises(StoreRefused, match="certificate"):
        watermark(f"rediss://localhost:{port}/0")
