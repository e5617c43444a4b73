"""Settings: where they come from, what is refused, what is shown."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.settings import (
    FORBIDDEN_KAFKA_SETTINGS,
    format_duration,
    load_settings,
    parse_duration,
    redacted,
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("STREAM_SENTIMENT_"):
            monkeypatch.delenv(name)


def test_the_defaults_are_valid() -> None:
    settings = load_settings()
    assert settings.kafka.group_id == "stream-sentiment"
    assert settings.topics.inputs() == {"chat.messages": "chat", "product.reviews": "review"}


def test_the_environment_beats_the_file_and_the_call_beats_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("kafka: {group_id: file, client_id: file}\nhttp: {port: 1}\n")
    monkeypatch.setenv("STREAM_SENTIMENT_CONFIG", str(file))
    monkeypatch.setenv("STREAM_SENTIMENT_KAFKA__GROUP_ID", "environment")
    monkeypatch.setenv("STREAM_SENTIMENT_HTTP__PORT", "2")
    settings = load_settings(http={"port": 3})
    assert (settings.kafka.client_id, settings.kafka.group_id, settings.http.port) == ("file", "environment", 3)


def test_a_toml_file_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[intake]\nwindow_wait = "15ms"\n')
    monkeypatch.setenv("STREAM_SENTIMENT_CONFIG", str(file))
    assert load_settings().intake.window_wait == timedelta(milliseconds=15)


def test_a_secret_may_lie_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kafka__sasl_password").write_text("from-a-file")
    monkeypatch.setenv("STREAM_SENTIMENT_SECRETS_DIR", str(tmp_path))
    password = load_settings().kafka.sasl_password
    assert password is not None
    assert password.get_secret_value() == "from-a-file"


def test_all_mistakes_are_listed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_SENTIMENT_KAFKA__GROP_ID", "typo")
    monkeypatch.setenv("STREAM_SENTIMENT_HTTP__PORT", "99999")
    monkeypatch.setenv("STREAM_SENTIMENT_INTAKE__HOLD", "soon")
    monkeypatch.setenv("STREAM_SENTIMENT_REDSI__URL", "redis://x")
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    message = str(caught.value)
    assert "4 mistakes" in message
    for name in ("KAFKA__GROP_ID", "HTTP__PORT", "INTAKE__HOLD", "REDSI__URL"):
        assert f"STREAM_SENTIMENT_{name}" in message
    assert int(caught.value.exit_status) == 78


@pytest.mark.parametrize("name", sorted(FORBIDDEN_KAFKA_SETTINGS))
def test_a_setting_that_breaks_the_guarantee_or_loads_code_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="may not be set"):
        load_settings(kafka={"extra": {name: "x"}})


def test_a_mock_cluster_cannot_be_smuggled_in() -> None:
    with pytest.raises(ConfigurationError, match="mock"):
        load_settings(kafka={"extra": {"test.mock.num.brokers": "3"}})


@pytest.mark.parametrize("group", ["a{b", "a}b"])
def test_a_group_that_would_break_the_hash_tag_is_refused(group: str) -> None:
    with pytest.raises(ConfigurationError, match="hash tag"):
        load_settings(kafka={"group_id": group})


def test_topics_must_differ_and_some_input_must_be_left() -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        load_settings(topics={"scored": "chat.messages"})
    with pytest.raises(ConfigurationError, match="nothing to read"):
        load_settings(topics={"chat_messages": "", "product_reviews": ""})
    assert load_settings(topics={"product_reviews": ""}).topics.inputs() == {"chat.messages": "chat"}


def test_sasl_is_complete_or_refused() -> None:
    with pytest.raises(ConfigurationError, match="sasl_mechanism"):
        load_settings(kafka={"security_protocol": "SASL_SSL"})
    with pytest.raises(ConfigurationError, match="sasl_password"):
        load_settings(kafka={"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "u"})


def test_no_secret_is_shown() -> None:
    settings = load_settings(
        kafka={
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "PLAIN",
            "sasl_username": "u",
            "sasl_password": "canary-1",
            "extra": {"ssl.keystore.password": "canary-2"},
        },
        redis={"url": "rediss://user:canary-3@redis:6379/0"},
    )
    shown = repr(redacted(settings)) + repr(settings) + str(settings)
    assert "canary" not in shown
    assert redacted(settings)["redis"]["url"] == "rediss://user:**********@redis:6379/0"
    assert redacted(settings)["kafka"]["extra"] == {"ssl.keystore.password": "**********"}


def test_a_missing_or_foreign_file_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STREAM_SENTIMENT_CONFIG", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ConfigurationError, match="no file"):
        load_settings()
    odd = tmp_path / "settings.ini"
    odd.write_text("")
    monkeypatch.setenv("STREAM_SENTIMENT_CONFIG", str(odd))
    with pytest.raises(ConfigurationError, match=r"\.yaml, \.yml or \.toml"):
        load_settings()
    broken = tmp_path / "settings.yaml"
    broken.write_text("kafka: [unclosed")
    monkeypatch.setenv("STREAM_SENTIMENT_CONFIG", str(broken))
    with pytest.raises(ConfigurationError, match=r"settings\.yaml"):
        load_settings()


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("500ms", 0.5), ("10s", 10), ("15m", 900), ("24h", 86400), ("7d", 604800), (3, 3), ("2", 2)],
)
def test_durations_are_read(written: object, seconds: float) -> None:
    assert parse_duration(written) == timedelta(seconds=seconds)


@given(st.integers(0, 10**10))
def test_a_shown_duration_reads_back(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(duration)) == duration
