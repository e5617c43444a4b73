"""The demonstration run: embedded broker and Redis, the real worker, the player, and a reader of the output topics.

In: a chat log and a pace. Out: the `Floor` after the last event. Blocks until everything that was sent has been worked on. Threads:
the worker in one, the player in one; the caller's reads the output topics and draws. Raises what the worker raised.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition

from stream_sentiment.demo.floor import Floor
from stream_sentiment.demo.player import TimedRecord, play
from stream_sentiment.demo.view import Frame
from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.kafka.clients import common_config, producer_config
from stream_sentiment.kafka.dead_letter import PREFIX
from stream_sentiment.kafka.embedded import EmbeddedKafka
from stream_sentiment.observability.logs import kafka_logger
from stream_sentiment.settings import Settings, load_settings
from stream_sentiment.store.embedded import EmbeddedRedis
from stream_sentiment.store.redis import SCRIPTS

if TYPE_CHECKING:
    from stream_sentiment.scoring.scorer import Scorer
    from stream_sentiment.worker import Worker

#: Partitions of every topic: enough to show several, and the mock broker keeps 5 MiB of each.
PARTITIONS: Final = 8

#: Records that may be on the road with --fast. The mock broker forgets the oldest records of a full partition: 5 MiB hold about
#: 4,000 scored events of 1.2 kB, so 8 partitions hold over 30,000.
MAX_ON_THE_ROAD: Final = 8_000

#: Events in one arrival window: about a quarter of the floor.
_WINDOW_EVENTS = 128

#: The worker's counter of finished events by outcome, as it is called in the registry.
_EVENTS_METRIC = "stream_sentiment_events"

#: Pictures a second.
_FRAMES_PER_SECOND = 8

#: The worker has this long to join its group, and to finish what was sent.
_START_TIMEOUT_S = 60.0
_DRAIN_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the floor is played."""

    speed: float | None  # floor seconds per second; None: as fast as the worker takes it
    seconds: float | None = None  # stop sending after so many seconds

    def __str__(self) -> str:
        return "as fast as it goes" if self.speed is None else f"{self.speed:g} times the pace of people"


def demo_settings(kafka: str, redis: str) -> Settings:
    """The user's settings (model, rules, ...) with everything that leads outside replaced by the embedded services.

    Timers wait for the conversation's next event: the floor shortens silences, so a partition's clock runs ahead of the
    conversations beside the silent one, and would tell of customers who waited when nobody did.
    """
    return load_settings(
        kafka={
            "bootstrap_servers": kafka,
            "group_id": "demo",
            "group_protocol": "consumer",
            "group_instance_id": None,
            "security_protocol": "PLAINTEXT",
            "sasl_mechanism": None,
            "start_from": "earliest",
            "extra": {},
        },
        redis={"url": redis, "cluster": False},
        http={"host": "127.0.0.1", "port": 0},
        # Small windows: with --fast the first results come while the last records are still being sent.
        intake={"window_events": _WINDOW_EVENTS},
        worker={"timers": False},
        output={"scored": True, "conversation_state": True, "exactly_once": False},
    )


class Demo:
    """One run; `run` may be called once."""

    def __init__(
        self,
        records: Sequence[TimedRecord],
        floor: Floor,
        pace: Pace,
        *,
        draw: Callable[[Floor, Frame], None] | None = None,
        show_text: bool = False,
        scorer: Scorer | None = None,
        began: float | None = None,
    ) -> None:
        """
        Args:
            records: in the order of sending (`player.schedule`).
            floor: filled while it runs; it is the result.
            draw: called about eight times a second.
            scorer: in place of the model that the settings name.
            began: `time.monotonic()` when the command began; times in the floor count from here.
        """
        self.floor = floor
        self.redis = ""  # what the embedded Redis is, once it runs
        self._records = records
        self._pace = pace
        self._draw = draw
        self._show_text = show_text
        self._scorer = scorer
        self._began = time.monotonic() if began is None else began
        self._began_wall_s = time.time() - (time.monotonic() - self._began)
        self._sent: queue.SimpleQueue[tuple[TimedRecord, float]] = queue.SimpleQueue()
        self._stop_playing = threading.Event()
        self._played = threading.Event()
        self._processed = 0.0
        self._failure: BaseException | None = None
        self._next_frame = 0.0
        self._model = ""
        self._stage = "starting"

    def now(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self._began

    def stop(self) -> None:
        """Send nothing more; `run` finishes what was sent and returns."""
        self._stop_playing.set()

    def run(self) -> None:
        """Play everything, wait for the results, end the services."""
        with ExitStack() as stack:
            self._show("starting")
            kafka = EmbeddedKafka()
            stack.enter_context(kafka)
            redis = stack.enter_context(EmbeddedRedis())
            # Which Redis it found: a person's first question when it is slow.
            self.redis = redis.source.kind
            if redis.source.executable is None:
                # fakeredis closes a connection after an error reply, so that the NOSCRIPT of a pipeline never arrives.
                with redis.client() as client:
                    for script in SCRIPTS:
                        client.script_load(script.source)
            settings = demo_settings(kafka.bootstrap_servers, redis.url)
            topics = settings.topics
            outputs = (topics.scored, topics.conversation_state, topics.escalations, topics.dead_letters)
            for topic in (*topics.inputs(), *outputs):
                kafka.create_topic(topic, PARTITIONS)
            consumer = _reader(settings, outputs)
            stack.callback(consumer.close)
            self._show("loading the model")
            worker = self._load_worker(settings)
            worker_thread = threading.Thread(target=self._work, args=(worker,), name="worker")
            worker_thread.start()
            try:
                if self._is_ready(worker, worker_thread):
                    self._play_and_watch(worker, worker_thread, settings, consumer)
            finally:
                self._stop_playing.set()
                worker.stop()
                worker_thread.join(settings.worker.drain_timeout.total_seconds() + 10)
            self._read_to_the_end(consumer, settings)
            self._show("done", force=True)
        if self._failure is not None:
            raise self._failure

    # The worker

    def _load_worker(self, settings: Settings) -> Worker:
        from stream_sentiment.worker import Worker

        worker = Worker(settings, scorer=self._scorer)
        info = worker.live.current.scorer.info
        self._model = f"{info.name} {info.version} {info.precision}"
        self.floor.model = {
            "name": info.name,
            "version": info.version,
            "precision": info.precision,
            "sha256": info.sha256,
        }
        return worker

    def _work(self, worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:
            self._failure = error

    def _is_ready(self, worker: Worker, thread: threading.Thread) -> bool:
        """Wait until the worker has joined its group; False when it failed instead, or when nothing is wanted of it any more."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not worker.health.started:
            if not thread.is_alive() or self._stop_playing.is_set():
                return False
            if time.monotonic() > deadline:
                raise ServiceUnavailable(f"the worker was not ready after {_START_TIMEOUT_S:.0f} seconds")
            self._show("joining the group")
            time.sleep(0.02)
        return True

    # Sending

    def _play(self, settings: Settings) -> None:
        producer = Producer(
            producer_config(
                settings.kafka, timedelta(milliseconds=2), settings.output.delivery_timeout, kafka_logger("demo")
            )
        )
        topics = {kind: topic for topic, kind in settings.topics.inputs().items()}

        def publish(record: TimedRecord) -> None:
            self._sent.put((record, self.now()))
            producer.produce(topics[record.topic_kind], value=record.value, key=record.key.encode())
            producer.poll(0)

        try:
            records = [record for record in self._records if record.topic_kind in topics]
            play(records, publish, _Waiter(self._stop_playing, self._on_the_road), self._pace.speed)
            producer.flush(30)
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._played.set()

    def _on_the_road(self) -> float:
        """Records sent that the worker has not finished; read without a lock, a guess is enough."""
        return self.floor.sent + self._sent.qsize() - self._processed

    # Watching

    def _play_and_watch(
        self, worker: Worker, worker_thread: threading.Thread, settings: Settings, consumer: Consumer
    ) -> None:
        player = threading.Thread(target=self._play, args=(settings,), name="player", daemon=True)
        player.start()
        self._stage = "playing"
        started = time.monotonic()
        drain_deadline = 0.0
        while worker_thread.is_alive() and self._failure is None:
            self._read(consumer, settings)
            self._processed = _finished(worker)
            if self._pace.seconds is not None and time.monotonic() - started > self._pace.seconds:
                self._stop_playing.set()
            if self._played.is_set():
                self._stage = "finishing"
                drain_deadline = drain_deadline or time.monotonic() + _DRAIN_TIMEOUT_S
                if self._sent.empty() and self._processed >= self.floor.sent:
                    break
                if time.monotonic() > drain_deadline:
                    raise ServiceUnavailable(
                        f"{self.floor.sent - self._processed:.0f} of {self.floor.sent} events had no result after "
                        f"{_DRAIN_TIMEOUT_S:.0f} seconds"
                    )
            self._show(self._stage)
        player.join(1)

    def _read(self, consumer: Consumer, settings: Settings) -> int:
        messages = consumer.consume(500, 0.03)
        self._note_sent()
        for message in messages:
            if message.error() is None:
                self._take(message, settings)
        return len(messages)

    def _read_to_the_end(self, consumer: Consumer, settings: Settings) -> None:
        """What the worker published while it drained."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self._read(consumer, settings) == 0 and _at_end(consumer):
                return

    def _note_sent(self) -> None:
        while True:
            try:
                record, at_s = self._sent.get_nowait()
            except queue.Empty:
                return
            self.floor.record_sent(record.event, at_s)

    def _take(self, message: Message, settings: Settings) -> None:
        # The moment at which the worker published it, not the one at which we came to look.
        at_s = message.timestamp()[1] / 1000 - self._began_wall_s
        topic, value = message.topic(), message.value()
        topics = settings.topics
        if topic == topics.dead_letters:
            headers = dict(message.headers() or [])
            self.floor.record_dead_letter(
                _text(headers.get(PREFIX + "id")), _text(headers.get(PREFIX + "error.class")), at_s
            )
        elif value is not None:
            event = orjson.loads(value)
            if topic == topics.scored:
                self.floor.record_scored(event, at_s)
            elif topic == topics.escalations:
                self.floor.record_escalation(event, self.now())
            else:
                self.floor.record_state(event, at_s)

    def _show(self, stage: str, force: bool = False) -> None:
        now = time.monotonic()
        if self._draw is None or (now < self._next_frame and not force):
            return
        self._next_frame = now + 1 / _FRAMES_PER_SECOND
        self._draw(self.floor, self.frame(stage))

    def frame(self, stage: str) -> Frame:
        """What the view needs now."""
        return Frame(
            at_s=self.now(),
            progress=self.floor.sent / max(len(self._records), 1),
            pace=str(self._pace),
            services=EmbeddedKafka.description,
            show_text=self._show_text,
            model=self._model,
            stage=stage,
        )


class _Waiter:
    """Waits on the stop signal, and holds the player back while too much is on the road."""

    def __init__(self, stopped: threading.Event, on_the_road: Callable[[], float]) -> None:
        self._stopped = stopped
        self._on_the_road = on_the_road

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> bool:
        if seconds > 0 and self._stopped.wait(seconds):
            return True
        while self._on_the_road() > MAX_ON_THE_ROAD and not self._stopped.wait(0.02):
            pass
        return self._stopped.is_set()


def _reader(settings: Settings, topics: Iterable[str]) -> Consumer:
    """A reader of whole topics: no group membership, nothing committed."""
    consumer = Consumer(
        common_config(settings.kafka, kafka_logger("demo"))
        | {
            "group.id": "demo-view",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 20,
        }
    )
    consumer.assign(
        [TopicPartition(topic, number, OFFSET_BEGINNING) for topic in topics for number in range(PARTITIONS)]
    )
    return consumer


def _at_end(consumer: Consumer) -> bool:
    places = consumer.position(consumer.assignment())
    for place in places:
        _, high = consumer.get_watermark_offsets(place, timeout=5)
        if max(place.offset, 0) < high:
            return False
    return True


def _finished(worker: Worker) -> float:
    """Events that the worker has applied, whatever became of them."""
    return sum(
        sample.value
        for metric in worker.metrics.registry.collect()
        if metric.name == _EVENTS_METRIC
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


def _text(header: Any) -> str:
    return header.decode("utf-8", "replace") if isinstance(header, bytes) else ""
