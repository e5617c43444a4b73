"""`output.exactly_once` on a real Kafka: what a `read_committed` consumer sees, whatever happens to owners and to Redis."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import redis
from confluent_kafka import KafkaException, Producer

from stream_sentiment.kafka.outbox_record import record_id
from stream_sentiment.store.redis import StateStore
from stream_sentiment.testing import WorkerProcess, chat_message, read_topic
from stream_sentiment.testing.kafka import KafkaBroker, KafkaHarness
from tests.integration.road import Road

pytestmark = [pytest.mark.kafka, pytest.mark.redis]

EXACTLY_ONCE = {"output": {"exactly_once": True}}


@pytest.fixture
def road(kafka: KafkaHarness, redis_url: str, unique: Callable[[str], str]) -> Road:
    return Road(kafka, redis_url, unique)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A worker that dies between the publish and FORGET, each time: what it published stays in the outbox."""
    monkeypatch.setattr(StateStore, "forget", lambda *_, **__: None)
    yield
    monkeypatch.undo()


def publish_troubles(road: Road, conversations: int = 6) -> None:
    """Events that escalate, and poison: both end in the outbox."""
    for number in range(conversations):
        for message in range(4):
            road.publish(
                chat_message(
                    "BAD", conversation=f"c{number}", message=f"m{message}", at_ms=1_767_603_600_000 + 60_000 * message
                )
            )
        road.publish_raw(b"no JSON", key=f"shop|c{number}".encode())


def ids(road: Road, *, read_committed: bool = True) -> Counter[str]:
    """How often each id of an escalation or a dead letter is in its topic."""
    found: Counter[str] = Counter()
    for name in ("escalations", "dead_letters"):
        for record in read_topic(
            road.broker.bootstrap_servers, road.topics[name], timeout_s=60, read_committed=read_committed
        ):
            found[record_id([(key, value.encode()) for key, value in record.headers.items()])] += 1
    return found


def copies(found: Counter[str]) -> dict[str, int]:
    return {identity: count for identity, count in found.items() if count != 1}


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def snapshot(url: str) -> dict[bytes, bytes]:
    with redis.Redis.from_url(url) as client:
        return {key: client.dump(key) for key in client.keys("*")}


def restore(url: str, keys: dict[bytes, bytes]) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        for key, dumped in keys.items():
            client.restore(key, 0, dumped)


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("exactly_once", [True, False])
def test_what_was_published_before_a_crash_is_found_and_not_published_again(
    road: Road, monkeypatch: pytest.MonkeyPatch, exactly_once: bool
) -> None:
    # Given a worker that published its outbox and died before FORGET
    sections = {"output": {"exactly_once": exactly_once}}
    publish_troubles(road)
    road.work(**sections)
    first = ids(road)
    assert len(first) == 18
    assert sum(first.values()) == 18
    # When the next owner adopts the same outbox
    monkeypatch.undo()
    road.work(**sections)
    # Then it publishes nothing again; without the option every record has a copy
    assert sum(ids(road).values()) == (18 if exactly_once else 36)
    with redis.Redis.from_url(road.redis_url) as client:
        assert not client.keys("*:outbox")


@pytest.mark.usefixtures("forgetful")
def test_copies_behind_an_open_transaction_of_another_producer_are_found(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an owner whose producers are open
    for partition in range(3):
        road.publish_raw(b"no JSON", partition=partition)
    first_owner = road.start(**EXACTLY_ONCE)
    wait_until(lambda: len(ids(road)) == 3)
    # And a foreign transaction before what it publishes then: read_committed consumers cannot see past it
    stranger = Producer(
        {"bootstrap.servers": road.broker.bootstrap_servers, "transactional.id": f"stranger-{road.group}"}
    )
    stranger.init_transactions(30)
    stranger.begin_transaction()
    for name in ("escalations", "dead_letters"):
        for number in range(3):
            stranger.produce(road.topics[name], b"{}", partition=number, headers=[("ce_id", b"stranger")])
    stranger.flush(30)
    publish_troubles(road)
    wait_until(lambda: len(ids(road, read_committed=False)) == 22)
    first_owner.stop()
    assert len(ids(road)) == 3
    monkeypatch.undo()
    # When the next owner searches while it is still open, and it ends a little later
    timer = threading.Timer(3.0, lambda: stranger.abort_transaction(30))
    timer.start()
    try:
        road.work(**EXACTLY_ONCE)
    finally:
        timer.join()
    # Then nothing was published twice
    found = ids(road)
    assert len(found) == 21
    assert copies(found) == {}


def test_a_producer_of_the_last_owner_cannot_publish_after_the_next_has_begun(road: Road) -> None:
    # Given the last owner, frozen in the middle of a transaction of partition 0
    zombie = Producer(
        {
            "bootstrap.servers": road.broker.bootstrap_servers,
            "transactional.id": f"{road.group}:{road.topics['chat_messages']}:0",
        }
    )
    zombie.init_transactions(30)
    zombie.begin_transaction()
    zombie.produce(road.topics["escalations"], b"{}", partition=0, headers=[("ce_id", b"zombie")])
    zombie.flush(30)
    # When the next owner has taken the partition
    publish_troubles(road)
    road.work(**EXACTLY_ONCE)
    # Then the zombie's commit is refused, its record stays invisible, and everything else is there once
    with pytest.raises(KafkaException):
        zombie.commit_transaction(30)
    found = ids(road)
    assert "zombie" not in found
    assert len(found) == 18
    assert copies(found) == {}
    assert "zombie" in ids(road, read_committed=False)


def test_events_redone_after_a_redis_failover_are_not_published_again(road: Road) -> None:
    # Given a Redis whose replica has seen the first half
    publish_troubles(road, conversations=3)
    road.work(**EXACTLY_ONCE)
    replica = snapshot(road.redis_url)
    for number in range(3, 6):
        road.publish_raw(b"no JSON either", key=f"shop|c{number}".encode())
    road.work(**EXACTLY_ONCE)
    before = ids(road)
    # When it takes over, and the second half is folded and published from there
    restore(road.redis_url, replica)
    worker = road.work(**EXACTLY_ONCE)
    # Then the redone dead letters are found in the topic
    assert worker.metrics.registry.get_sample_value("stream_sentiment_state_regressions_total") > 0  # type: ignore[operator]
    assert ids(road) == before
    assert copies(before) == {}
    assert len(before) == 12


def test_settled_positions_shorten_the_search(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_sentiment.kafka.transactional.SETTLE_SECONDS", 0.2)
    publish_troubles(road)
    worker = road.start(**EXACTLY_ONCE)
    with redis.Redis.from_url(road.redis_url) as client:
        wait_until(lambda: sum(client.hexists(key, "settled") for key in client.keys("*chat*:meta")) == 3)
        worker.stop()
        positions = max((client.hget(key, "settled") for key in client.keys("*chat*:meta")), key=len)
    # A position counts transaction markers, too: it lies beyond the 18 records.
    assert sum(sum(partitions.values()) for partitions in json.loads(positions).values()) > 18
    assert copies(ids(road)) == {}


@pytest.mark.parametrize("exactly_once", [True, False])
def test_a_record_too_large_for_its_topic_is_shrunk_and_holds_up_nothing(
    road: Road, kafka: KafkaBroker, unique: Callable[[str], str], exactly_once: bool
) -> None:
    road.topics["dead_letters"] = unique("small.dlq")
    kafka.create_topic(road.topics["dead_letters"], 1, {"max.message.bytes": "2000"})
    for value in (b"small, no JSON", b"large, no JSON" * 400, b"small again"):
        road.publish_raw(value, partition=0)
    road.work(output={"exactly_once": exactly_once})
    letters = road.read("dead_letters")
    assert {letter.headers["__dlq.offset"]: letter.headers["__dlq.body"] for letter in letters} == {
        "0": "original",
        "1": "sha256",
        "2": "original",
    }
    assert copies(ids(road)) == {}


@pytest.mark.slow
def test_a_broker_that_dies_in_the_middle_of_transactions_leaves_each_dead_letter_once(
    crashable_kafka: KafkaBroker, redis_url: str, unique: Callable[[str], str]
) -> None:
    road = Road(crashable_kafka, redis_url, unique)
    worker = road.start(**EXACTLY_ONCE)
    for number in range(150):
        road.publish_raw(b"poison %d" % number, partition=number % 3)
        if number == 75:
            crashable_kafka.kill()
            crashable_kafka.restart()
    wait_until(lambda: sum(ids(road).values()) >= 150, seconds=120)
    worker.stop()
    found = ids(road)
    assert len(found) == 150
    assert copies(found) == {}


@pytest.mark.slow
def test_workers_killed_again_and_again_publish_each_dead_letter_once(road: Road) -> None:
    events = 600
    settings = {
        "kafka.bootstrap_servers": road.broker.bootstrap_servers,
        "kafka.group_id": road.group,
        "kafka.session_timeout": "6s",
        "redis.url": road.redis_url,
        "model.stub": "true",
        "output.exactly_once": "true",
        **{f"topics.{name}": topic for name, topic in road.topics.items()},
    }
    stop = threading.Event()

    def feed() -> None:
        producer = Producer({"bootstrap.servers": road.broker.bootstrap_servers, "linger.ms": 0})
        for number in range(events):
            producer.produce(road.topics["chat_messages"], b"poison %d" % number, partition=number % 3)
            producer.poll(0)
            if stop.wait(0.02):
                break
        producer.flush(30)

    feeder = threading.Thread(target=feed)
    workers = [WorkerProcess(settings).start() for _ in range(2)]
    try:
        workers[0].wait_ready()
        feeder.start()
        for kill in range(5):
            time.sleep(2.0)
            workers[kill % 2].sigkill()
            workers[kill % 2].close()
            workers[kill % 2] = WorkerProcess(settings).start()
        feeder.join()
        deadline = time.monotonic() + 90
        while sum(ids(road).values()) < events and time.monotonic() < deadline:
            time.sleep(0.5)
    finally:
        stop.set()
        for worker in workers:
            worker.close()
    found = ids(road)
    assert copies(found) == {}
    assert len(found) == events
