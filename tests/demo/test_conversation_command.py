"""`conversation show` and `conversation erase`, against a real worker's Redis."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Producer

from stream_sentiment.settings import load_settings
from stream_sentiment.testing import MockKafka
from stream_sentiment.testing.consume import Record, read_topic
from stream_sentiment.testing.worker import environment
from stream_sentiment.worker import Worker
from tests.demo.words import WordScorer

pytestmark = pytest.mark.redis

TOPICS = (
    "chat.messages",
    "product.reviews",
    "sentiment.scored",
    "conversation.state",
    "escalation.events",
    "sentiment.dlq",
)


class Place:
    """A broker, a Redis and workers that come and go between them."""

    def __init__(self, kafka: MockKafka, redis_url: str) -> None:
        self.kafka = kafka
        self.settings = {
            "kafka.bootstrap_servers": kafka.bootstrap_servers,
            "redis.url": redis_url,
            "rules.path": str(Path(__file__).with_name("rules.yaml")),
        }
        self._producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})

    def send(self, tenant: str, conversation: str, *texts: str, first: int = 0) -> None:
        for number, text in enumerate(texts, first):
            event = {
                "tenant_id": tenant,
                "conversation_id": conversation,
                "message_id": f"m-{number}",
                "channel": "web_chat",
                "sender": {"role": "customer"},
                "text": text,
                "created_at": f"2026-01-05T09:{number:02d}:00.000Z",
            }
            self._producer.produce("chat.messages", json.dumps(event), key=f"{tenant}|{conversation}")
        assert self._producer.flush(20) == 0

    def worker(self, exit_when_idle: float | None = 0.5) -> Worker:
        sections: dict[str, dict[str, str | int]] = {"http": {"port": 0}}
        for name, value in self.settings.items():
            section, _, field = name.partition(".")
            sections.setdefault(section, {})[field] = value
        return Worker(load_settings(**sections), scorer=WordScorer(), exit_when_idle=exit_when_idle)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "stream_sentiment", "conversation", *arguments],
            env=environment(self.settings),
            capture_output=True,
            timeout=120,
            check=False,
        )

    def show(self, tenant: str, conversation: str) -> dict[str, object]:
        done = self.command("show", tenant, conversation, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def topic(self, name: str, **how: object) -> list[Record]:
        return read_topic(self.kafka.bootstrap_servers, name, **how)  # type: ignore[arg-type]


@pytest.fixture
def place(mock_kafka: MockKafka, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in os.environ.keys() - environment({}).keys():
        monkeypatch.delenv(name)
    for topic in TOPICS:
        mock_kafka.create_topic(topic, 4)
    return Place(mock_kafka, redis_url)


def test_show_tells_what_the_worker_knows_and_no_word_of_the_customer(place: Place) -> None:
    place.send("acme", "会话/1", "hello", "bad", "bad", "so bad")
    place.worker().run()

    card = place.show("acme", "会话/1")
    assert card["status"] == "active"
    assert card["counts"]["customer"] == 4  # type: ignore[index]
    assert [entry["message_id"] for entry in card["recent_messages"]] == ["m-0", "m-1", "m-2", "m-3"]  # type: ignore[attr-defined]
    assert card["escalation"]["status"] == "open"  # type: ignore[index]
    assert card["stored_in"]["topic"] == "chat.messages"  # type: ignore[index]

    text = place.command("show", "acme", "会话/1").stdout.decode()
    for said in ("acme / 会话/1", "rolling score", "4 customer", "open,", "m-3", "anger", "model words@1"):
        assert said in text, said
    assert "so bad" not in text
    last = card["recent_messages"][-1]  # type: ignore[index]
    row = next(line for line in text.splitlines() if "m-3" in line)
    for figure in (f"{last['score']:+.2f}", last["label"], f"{last['weight']:.2f}"):
        assert figure in row  # uncut in a terminal of 80 columns


def test_show_of_an_unknown_conversation_says_so_with_status_1(place: Place) -> None:
    place.send("acme", "c-1", "hello")
    place.worker().run()

    done = place.command("show", "acme", "c-2")

    assert done.returncode == 1
    assert b"no state of conversation 'c-2' of 'acme'" in done.stderr


def test_show_without_redis_ends_with_status_69(place: Place) -> None:
    place.settings["redis.url"] = "redis://127.0.0.1:1/0"

    done = place.command("show", "acme", "c-1")

    assert done.returncode == 69, done.stderr
    assert b"Traceback" not in done.stderr


def test_erase_forgets_one_conversation_resolves_its_escalation_and_leaves_a_tombstone(place: Place) -> None:
    place.send("acme", "c-1", "bad", "bad", "bad", "bad")
    place.send("acme", "c-2", "hello")
    place.worker().run()

    done = place.command("erase", "acme", "c-1", "--yes", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"states": 1, "escalations": 1, "tombstone": "outbox"}
    assert place.command("show", "acme", "c-1").returncode == 1
    assert place.show("acme", "c-2")["counts"]["customer"] == 1  # type: ignore[index]

    place.worker().run()  # the next owner publishes what the erasure left in the outbox

    last_state = [r for r in place.topic("conversation.state") if r.key == b"acme|c-1"][-1]
    assert last_state.value is None
    last = [r.json() for r in place.topic("escalation.events") if r.key == b"acme|c-1"][-1]
    assert (last["action"], last["resolution"], last["evidence"]) == ("resolved", "erased", [])
    assert "m-" not in json.dumps(last["context"])


def test_a_worker_goes_on_through_an_erasure_and_a_further_message_begins_anew(place: Place) -> None:
    place.send("acme", "c-1", "bad", "bad", "bad")
    worker = place.worker(exit_when_idle=None)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        place.topic("sentiment.scored", at_least=3)
        wait_until(lambda: place.command("show", "acme", "c-1").returncode == 0)

        assert place.command("erase", "acme", "c-1", "--yes").returncode == 0
        place.send("acme", "c-1", "hello", first=10)
        place.topic("sentiment.scored", at_least=4)
        wait_until(lambda: place.command("show", "acme", "c-1").returncode == 0)
    finally:
        worker.stop()
        thread.join(60)

    assert [entry["message_id"] for entry in place.show("acme", "c-1")["recent_messages"]] == ["m-10"]  # type: ignore[attr-defined]
    states = [r for r in place.topic("conversation.state") if r.key == b"acme|c-1"]
    assert [r.value is None for r in states].count(True) == 1
    assert states[-1].json()["counts"]["customer"] == 1


def test_erasing_what_redis_has_forgotten_still_tells_the_state_topic(place: Place) -> None:
    done = place.command("erase", "acme", "gone", "--yes", "--json")

    assert json.loads(done.stdout) == {"states": 0, "escalations": 0, "tombstone": "kafka"}
    [record] = place.topic("conversation.state")
    assert (record.key, record.value) == (b"acme|gone", None)


def test_without_yes_nothing_is_erased_unless_confirmed(place: Place) -> None:
    place.send("acme", "c-1", "hello")
    place.worker().run()

    done = place.command("erase", "acme", "c-1")  # standard input is empty: no confirmation

    assert done.returncode == 130
    assert place.show("acme", "c-1")["status"] == "active"


def wait_until(condition: Callable[[], bool], attempts: int = 40) -> None:
    pause = threading.Event()
    for _ in range(attempts):
        if condition():
            return
        pause.wait(0.25)
    raise AssertionError("the condition never came true")
