"""`rediss://`: the server's certificate is checked, by default and against a CA of one's own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.local_process import free_port
from stream_sentiment.store import StateStore, StoreRefused, TopicPartition
from stream_sentiment.store.embedded import RedisSource
from stream_sentiment.testing.redis import RedisServer

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


def test_an_unknown_certificate_is_refused_at_once_with_the_reason(secured: tuple[int, Path]) -> None:
    port, _ = secured
    with pytest.raises(StoreRefused, match="certificate"):
        watermark(f"rediss://localhost:{port}/0")
