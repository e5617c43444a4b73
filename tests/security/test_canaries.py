"""Secrets and personal data planted in input and settings are looked for in everything that comes out of a real worker."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from confluent_kafka import Producer

from stream_sentiment.testing.consume import read_topic
from stream_sentiment.testing.events import chat_message, encode, record_key, review
from stream_sentiment.testing.mock_kafka import MockKafka
from stream_sentiment.testing.redis import RedisServer
from stream_sentiment.testing.worker import WorkerProcess, environment

pytestmark = [pytest.mark.redis]

TOPICS = {
    "chat.messages": 2,
    "product.reviews": 1,
    "sentiment.scored": 1,
    "conversation.state": 1,
    "escalation.events": 1,
    "sentiment.dlq": 1,
}

#: In texts, in every form in which a text can come.
TEXT_CANARIES = ["KANARIE-TEXT", "金丝雀文字", "kanarie@example.com", "13800138000", "KANARIE-TITLE", "KANARIE-BROKEN"]
#: Only in ids: they may be in Redis and in the outputs, never in logs, metrics and health.
ID_CANARIES = ["KANARIE-CONVERSATION", "KANARIE-MESSAGE", "KANARIE-SENDER"]
PASSWORD = "kanarie-redis-password"
KAFKA_SECRET = "kanarie-key-password"


@dataclass
class Traces:
    """What the worker left, by place."""

    log: str = ""
    metrics: str = ""
    health: str = ""
    redis: bytes = b""
    outputs: bytes = b""
    dead_letter_headers: bytes = b""
    scored: int = 0
    dead_letters: int = 0
    escalated: int = 0
    commands: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traces]:
    directory = tmp_path_factory.mktemp("canaries")
    with MockKafka(TOPICS) as kafka, RedisServer() as server, server.client() as administrator:
        administrator.execute_command("ACL", "SETUSER", "worker", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        settings = {
            "kafka.bootstrap_servers": kafka.bootstrap_servers,
            "kafka.group_id": "canaries",
            "kafka.ssl_key_password": KAFKA_SECRET,
            "redis.url": server.url.replace("redis://", f"redis://worker:{PASSWORD}@"),
            "model.stub": "true",
            "log.level": "debug",
        }
        publish(kafka.bootstrap_servers)
        made = Traces()
        with WorkerProcess(settings, directory=directory) as worker:
            worker.wait_ready(90)
            deadline = time.monotonic() + 60
            while 'outcome="dead_lettered",topic="chat.messages"} 6.0' not in made.metrics:
                assert time.monotonic() < deadline, worker.log_text()[-2000:]
                time.sleep(0.3)
                made.metrics = worker.get("/metrics")[1]
            # A fault, so that errors with addresses in them are logged too.
            server.kill()
            publish(kafka.bootstrap_servers)
            time.sleep(4)
            made.health = "".join(worker.get(path)[1] for path in ("/readyz", "/livez", "/startupz", "/nothing"))
            made.metrics += worker.get("/metrics")[1]
            made.log = worker.log_text()
        server.restart()
        for command in (["config", "show"], ["check", "--json"]):
            done = subprocess.run(
                [sys.executable, "-m", "stream_sentiment", *command],
                env=environment({**settings, "redis.url": settings["redis.url"].replace(PASSWORD, PASSWORD + "x")}),
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            made.commands[" ".join(command)] = done.stdout + done.stderr
        # What a worker without a fault leaves in Redis and in the topics.
        with WorkerProcess(
            {**settings, "kafka.group_id": "canaries-2", "redis.url": server.url, "log.level": "info"},
            ["--exit-when-idle", "3s"],
            directory=directory,
        ) as worker:
            assert worker.wait_exit(120) == 0, worker.log_text()[-2000:]
        made.redis = dump(server)
        for topic in ("sentiment.scored", "conversation.state", "escalation.events"):
            records = read_topic(kafka.bootstrap_servers, topic)
            made.scored += len(records) if topic == "sentiment.scored" else 0
            made.escalated += len(records) if topic == "escalation.events" else 0
            made.outputs += b"".join((record.value or b"") + repr(record.headers).encode() for record in records)
        letters = read_topic(kafka.bootstrap_servers, "sentiment.dlq")
        made.dead_letters = len(letters)
        made.dead_letter_headers = b"".join(repr(record.headers).encode() for record in letters)
        yield made


def publish(bootstrap_servers: str) -> None:
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    for number in range(20):
        event = chat_message(
            f"KANARIE-TEXT 金丝雀文字 worst service ever, write to kanarie@example.com or 13800138000 ({number})",
            conversation="KANARIE-CONVERSATION",
            message=f"KANARIE-MESSAGE-{number}",
            sender={"role": "customer", "id": "KANARIE-SENDER"},
            at_ms=int(time.time() * 1000) + number * 1000,
        )
        producer.produce("chat.messages", encode(event), record_key(event))
    opinion = review("KANARIE-TEXT", title="KANARIE-TITLE", at_ms=int(time.time() * 1000))
    producer.produce("product.reviews", encode(opinion), record_key(opinion))
    whole = chat_message("KANARIE-BROKEN", at_ms=int(time.time() * 1000))
    for broken in (
        b'{"text": "KANARIE-BROKEN',
        encode({**whole, "created_at": "KANARIE-BROKEN"}),
        encode({**whole, "sender": "KANARIE-BROKEN"}),
        encode({**whole, "channel": "KANARIE-BROKEN"}),
        encode({**whole, "attributes": {"KANARIE-BROKEN": {"a": 1}}}),
        b"\xff\xfe KANARIE-BROKEN",
    ):
        producer.produce("chat.messages", broken, b"shop|KANARIE-CONVERSATION")
    producer.flush(20)


def dump(server: RedisServer) -> bytes:
    """Every key with its value."""
    found = []
    with server.client() as client:
        for key in client.scan_iter("*"):
            kind = client.type(key)
            found.append(
                key + b" " + (repr(client.hgetall(key)).encode() if kind == b"hash" else client.get(key) or b"")
            )
    return b"\n".join(found)


def test_the_worker_did_all_of_its_work(traces: Traces):
    assert traces.scored >= 7
    assert traces.escalated >= 1
    assert traces.dead_letters >= 6
    assert b"KANARIE-CONVERSATION" in traces.redis
    assert "redis_unavailable" in traces.log


@pytest.mark.parametrize("canary", [*TEXT_CANARIES, *ID_CANARIES, PASSWORD, KAFKA_SECRET])
def test_nothing_planted_is_in_logs_metrics_or_health(traces: Traces, canary: str):
    for place in (traces.log, traces.metrics, traces.health):
        assert canary not in place
        assert canary.encode("unicode_escape").decode() not in place


@pytest.mark.parametrize("canary", [*TEXT_CANARIES, PASSWORD, KAFKA_SECRET])
def test_no_text_and_no_secret_is_in_redis_or_in_the_outputs(traces: Traces, canary: str):
    places = {"outputs": traces.outputs, "headers of dead letters": traces.dead_letter_headers}
    # The outbox may still hold a dead letter, which is the record itself.
    places["states"] = b"\n".join(line for line in traces.redis.splitlines() if b":outbox " not in line)
    for name, content in places.items():
        assert canary.encode() not in content, name
        assert canary.encode("unicode_escape") not in content, name


@pytest.mark.parametrize("secret", [PASSWORD, KAFKA_SECRET])
def test_no_command_prints_a_secret(traces: Traces, secret: str):
    for command, output in traces.commands.items():
        assert len(output) > 50
        assert secret not in output, command


def test_a_planted_word_would_be_found(traces: Traces):
    assert "partitions_assigned" in traces.log
    assert "stream_sentiment_events_total" in traces.metrics
    assert b"canaries" in traces.redis
