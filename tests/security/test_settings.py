"""The free map of Kafka settings cannot load code, run a shell, or undo the delivery guarantee."""

from __future__ import annotations

import pytest

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.settings import load_settings


@pytest.mark.parametrize(
    "name",
    [
        "plugin.library.paths",
        "sasl.kerberos.kinit.cmd",
        "ssl.engine.location",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "group.id",
        "isolation.level",
        "bootstrap.servers",
        "transactional.id",
        "test.mock.num.brokers",
        "enable.ssl.certificate.verification",
        "ssl.endpoint.identification.algorithm",
        "debug",
    ],
)
def test_a_setting_that_would_do_harm_is_refused_with_the_reason(name: str):
    with pytest.raises(ConfigurationError, match=f"{name} may not be set: ") as refused:
        load_settings(kafka={"extra": {name: "x"}})
    assert "KAFKA__EXTRA" in str(refused.value)


def test_a_setting_that_does_no_harm_is_taken():
    settings = load_settings(kafka={"extra": {"socket.keepalive.enable": "true"}})
    assert settings.kafka.extra == {"socket.keepalive.enable": "true"}
