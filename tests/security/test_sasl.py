"""SASL_SSL with SCRAM and ACLs against a real broker: it works with exactly the documented rights, and every refusal is clear."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AclOperation, ResourceType

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.testing.consume import read_topic
from stream_sentiment.testing.events import SCRIPTS, encode, record_key
from stream_sentiment.testing.kafka_jars import kafka_jars
from stream_sentiment.testing.redis import RedisServer
from stream_sentiment.testing.worker import WorkerProcess, environment
from tests.security.secured_kafka import PASSWORD, USER, SecuredKafka, make_authority, make_server_store

pytestmark = [pytest.mark.kafka, pytest.mark.redis, pytest.mark.slow]

INPUTS = ("chat.messages", "product.reviews")
OUTPUTS = ("sentiment.scored", "conversation.state", "escalation.events", "sentiment.dlq")
GROUP = "secured"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory, kafka: object) -> Iterator[SecuredKafka]:
    """`kafka` first: it decides whether this machine can have a real broker, and says so."""
    try:
        kafka_jars()
    except ServiceUnavailable as error:
        pytest.skip(f"a broker of our own is needed: {error}")
    directory = tmp_path_factory.mktemp("secured")
    authority = make_authority(directory, "authority")
    make_authority(directory, "stranger")
    broker = SecuredKafka(make_server_store(directory, authority), directory)
    with broker:
        for topic in (*INPUTS, *OUTPUTS):
            broker.create_topic(topic, partitions=2)
        for topic in INPUTS:
            broker.allow(ResourceType.TOPIC, topic, AclOperation.READ, AclOperation.DESCRIBE)
        for topic in OUTPUTS:
            broker.allow(ResourceType.TOPIC, topic, AclOperation.WRITE, AclOperation.DESCRIBE)
        broker.allow(ResourceType.GROUP, GROUP, AclOperation.READ, AclOperation.DESCRIBE)
        broker.authority = directory / "authority.pem"
        broker.stranger = directory / "stranger.pem"
        yield broker


@pytest.fixture
def settings(secured: SecuredKafka, redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "kafka__sasl_password").write_text(PASSWORD)
    return {
        "kafka.bootstrap_servers": secured.secured_servers,
        "kafka.group_id": GROUP,
        "kafka.security_protocol": "SASL_SSL",
        "kafka.sasl_mechanism": "SCRAM-SHA-512",
        "kafka.sasl_username": USER,
        "kafka.ssl_ca_location": str(secured.authority),
        "secrets_dir": str(secrets),
        "redis.url": redis_server.url,
        "redis.prefix": f"sasl{time.time_ns()}",
        "model.stub": "true",
    }


def check(settings: dict[str, str]) -> tuple[int, dict]:
    done = subprocess.run(
        [sys.executable, "-m", "stream_sentiment", "check", "--json"],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout.startswith(("{", "[")) else {
        "text": done.stdout + done.stderr
    }


def test_the_documented_rights_are_enough_from_the_input_to_the_escalation(
    secured: SecuredKafka, settings: dict[str, str], tmp_path: Path
):
    producer = Producer({"bootstrap.servers": secured.bootstrap_servers})
    for script in SCRIPTS:
        for event in script.events():
            producer.produce("chat.messages", encode(event), record_key(event))
    producer.flush(20)
    with WorkerProcess(settings, ["--exit-when-idle", "5s"], directory=tmp_path) as worker:
        assert worker.wait_exit(120) == 0, worker.log_text()
        log = worker.log_text()
    scored = read_topic(secured.bootstrap_servers, "sentiment.scored")
    assert len(scored) > 10
    assert PASSWORD not in log


def test_the_password_shows_in_no_output(settings: dict[str, str]):
    done = subprocess.run(
        [sys.executable, "-m", "stream_sentiment", "config", "show"],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert USER in done.stdout
    assert PASSWORD not in done.stdout + done.stderr


def refused(settings: dict[str, str], tmp_path: Path) -> tuple[int, str]:
    with WorkerProcess(settings, directory=tmp_path) as worker:
        return worker.wait_exit(90), worker.log_text()


def test_a_wrong_password_is_said_in_words_and_ends_with_configuration(settings: dict[str, str], tmp_path: Path):
    (Path(settings["secrets_dir"]) / "kafka__sasl_password").write_text("wrong-password")
    status, log = refused(settings, tmp_path)
    assert status == 78, log
    assert "uthentication" in log
    assert "sasl" in log
    assert "wrong-password" not in log


def test_a_certificate_of_another_authority_is_refused(secured: SecuredKafka, settings: dict[str, str], tmp_path: Path):
    status, log = refused({**settings, "kafka.ssl_ca_location": str(secured.stranger)}, tmp_path)
    assert status == 78, log
    assert "certificate" in log


def test_a_missing_right_on_an_output_is_named_by_check(secured: SecuredKafka, settings: dict[str, str]):
    secured.forbid(ResourceType.TOPIC, "escalation.events", AclOperation.WRITE)
    try:
        status, report = check(settings)
    finally:
        secured.allow(ResourceType.TOPIC, "escalation.events", AclOperation.WRITE)
    assert status == 78
    assert "no WRITE permission on escalation.events" in json.dumps(report)


def test_a_missing_right_on_the_group_is_named_by_check(secured: SecuredKafka, settings: dict[str, str]):
    status, report = check({**settings, "kafka.group_id": "somebody-elses"})
    assert status == 78
    assert "group somebody-elses" in json.dumps(report)


def test_a_missing_right_on_an_input_is_named_by_check(secured: SecuredKafka, settings: dict[str, str]):
    secured.forbid(ResourceType.TOPIC, "chat.messages", AclOperation.READ)
    try:
        status, report = check(settings)
    finally:
        secured.allow(ResourceType.TOPIC, "chat.messages", AclOperation.READ)
    assert status == 78
    assert "no READ permission on chat.messages" in json.dumps(report)
