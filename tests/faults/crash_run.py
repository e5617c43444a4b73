"""The crash run: a real Kafka, a real Redis, three workers, and everything that can be killed is killed while events flow.

    python -m tests.faults.crash_run --events 20000 --conversations 500 --kills 30

Afterwards the final state of every conversation, every escalation and every dead letter is compared with a sequential fold of the
input topics. Prints one line per fault as it happens and the figures at the end; exit status 1 when anything differs.

Faults come at points of progress, not of time, so that each hits workers that are at work: the k-th kill when a (k + 1/2)-th of
the events has been applied. Input comes in bursts, spread over the whole run.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import redis
from confluent_kafka import Consumer, Producer, TopicPartition

from stream_sentiment.errors import StreamSentimentError
from stream_sentiment.escalation.rules import DEFAULT_RULES, load_rules
from stream_sentiment.store.keys import PartitionKeys
from stream_sentiment.store.keys import TopicPartition as Place
from stream_sentiment.testing import KafkaBroker, Record, RedisServer, WorkerProcess, quiet, read_topic
from tests.faults.reference import (
    Outcome,
    differences,
    found_dead_letters,
    found_escalations,
    found_scored,
    sequential_fold,
)
from tests.faults.traffic import CHAT, MAX_EVENT_BYTES, REVIEWS, traffic

GROUP = "crash-run"
TOPICS = {
    CHAT: "chat.messages",
    REVIEWS: "product.reviews",
    "scored": "sentiment.scored",
    "state": "conversation.state",
    "escalations": "escalation.events",
    "dead_letters": "sentiment.dlq",
}
#: A member of the group that says nothing for so long is taken out; the broker is told, workers inherit it.
SESSION_TIMEOUT_MS = 3_000
#: Seconds from fault to fault: the traffic is spread over so long.
INTERVAL_S = 3.0
#: Records come in bursts, so that a fault that follows progress finds the rest of a burst in flight.
BURST_S = 0.25
#: One alert a minute and partition, so that storms come and go all the time.
STORMY = "\nsuppress: {max_open_per_tenant_per_minute: 1}\n"
#: No progress for so long, with no fault under way, is a stuck partition.
STUCK_SECONDS = 60.0
#: How a script's writes end in the append-only file.
SCRIPT_END = b"*1\r\n$4\r\nEXEC\r\n"
#: A worker that Kafka or Redis cannot be reached from at its start says 69; its supervisor starts it again, and so do we.
UNAVAILABLE = 69


@dataclass(frozen=True)
class Plan:
    """How much of what."""

    events: int = 2_000
    conversations: int = 80
    kills: int = 6
    zombies: int = 1
    redis_restarts: int = 1
    redis_losses: int = 1
    broker_kills: int = 1
    workers: int = 3
    partitions: int = 12
    seed: int = 1

    @property
    def faults(self) -> int:
        """All of them together."""
        return self.kills + self.zombies + self.redis_restarts + self.redis_losses + self.broker_kills


@dataclass
class Report:
    """What happened, and what is wrong with it."""

    problems: list[str] = field(default_factory=list)
    figures: dict[str, int | float] = field(default_factory=dict)


class CrashRun:
    """One run; `run` does everything and returns the report."""

    def __init__(
        self, plan: Plan, directory: Path, kafka: KafkaBroker, redis: RedisServer, say: Callable[[str], None] = print
    ) -> None:
        """`kafka` and `redis` are running, empty, and ours to kill; Redis writes an append-only file. Logs go to `directory`."""
        self.plan = plan
        self.directory = directory
        self.rng = random.Random(plan.seed)
        self.records = list(traffic(plan.events, plan.conversations, plan.seed))
        self.kafka = kafka
        self.redis = redis
        self.keys = PartitionKeys("ss", GROUP)
        self.rules = directory / "rules.yaml"
        self.rules.write_text(DEFAULT_RULES.read_text(encoding="utf-8") + STORMY, encoding="utf-8")
        self.workers: list[WorkerProcess] = []
        self.killed: list[WorkerProcess] = []
        self.report = Report()
        self._say = say
        self._began = time.monotonic()
        self._produced = 0
        self._acknowledged = 0
        self._refused = 0
        self._applied = 0
        self._stop_producing = threading.Event()
        self._counts = dict.fromkeys(("kills", "zombies", "redis restarts", "redis losses", "broker kills"), 0)

    def run(self) -> Report:
        """Start everything, break it, let it finish, compare."""
        for name, topic in TOPICS.items():
            partitions = {REVIEWS: 4, "dead_letters": 3}.get(name, self.plan.partitions)
            self.kafka.create_topic(topic, partitions, {"max.message.bytes": "2000000"})
        self.places = [
            Place(TOPICS[name], partition)
            for name, count in ((CHAT, self.plan.partitions), (REVIEWS, 4))
            for partition in range(count)
        ]
        try:
            self.workers = [self._worker(index) for index in range(self.plan.workers)]
            producing = threading.Thread(target=self._produce, daemon=True)  # a failed run must end all the same
            producing.start()
            for point, fault in self._schedule():
                self._wait_until(lambda point=point: self._applied >= point, f"{point} events applied")
                time.sleep(self.rng.random() * 0.1)
                fault()
            producing.join()
            self._wait_until(self._finished, "everything to be applied")
            self._end_workers()
            self._run_clean_owner()
            self._compare()
        finally:
            self._stop_producing.set()
            for worker in [*self.workers, *self.killed]:
                worker.close()
        return self.report

    # -- the parts that work -------------------------------------------------------------------------------------------

    def _worker(self, index: int, *arguments: str) -> WorkerProcess:
        settings = {
            "kafka.bootstrap_servers": self.kafka.bootstrap_servers,
            "kafka.group_id": GROUP,
            "kafka.client_id": f"worker-{index}",
            "redis.url": self.redis.url,
            "model.stub": "true",
            "rules.path": str(self.rules),
            # The conversations of this traffic have clocks of their own, hours apart; timers under kills: tests/live/test_timers.py.
            "worker.timers": "false",
            "model.threads": "1",
            "intake.max_event_bytes": str(MAX_EVENT_BYTES),
            "intake.window_events": "32",  # many small windows: many points at which to be killed
        }
        number = len(self.workers) + len(self.killed)
        return WorkerProcess(settings, arguments, directory=self.directory, name=f"worker-{index}-{number}").start()

    def _produce(self) -> None:
        """Produce the traffic in bursts, spread over the time that the faults need."""
        producer = Producer(
            quiet(
                {
                    "bootstrap.servers": self.kafka.bootstrap_servers,
                    "enable.idempotence": True,
                    "linger.ms": 5,
                    "message.timeout.ms": 300_000,
                }
            )
        )

        def report(error: object, _message: object) -> None:
            if error is None:
                self._acknowledged += 1
            else:
                self._refused += 1

        burst = max(1, round(self.plan.events * BURST_S / (INTERVAL_S * (self.plan.faults + 1))))
        for record in self.records:
            if self._produced % burst == 0 and self._stop_producing.wait(BURST_S):
                return
            producer.produce(
                TOPICS[record.topic],
                value=record.value,
                key=record.key,
                headers=list(record.headers),
                on_delivery=report,
            )
            producer.poll(0)
            self._produced += 1
        producer.flush(120)

    # -- the faults ----------------------------------------------------------------------------------------------------

    def _schedule(self) -> Iterator[tuple[int, Callable[[], None]]]:
        plan, total = self.plan, self.plan.events
        faults = [(total * (k + 0.5) / plan.kills, self._kill_worker) for k in range(plan.kills)]
        others = [
            *[self._make_zombie] * plan.zombies,
            *[self._restart_redis] * plan.redis_restarts,
            *[self._kill_broker] * plan.broker_kills,
            *[self._lose_redis_writes] * plan.redis_losses,
        ]
        faults += [(total * (k + 1) / (len(others) + 1), fault) for k, fault in enumerate(others)]
        return iter(sorted(((round(point), fault) for point, fault in faults), key=lambda pair: pair[0]))

    def _kill_worker(self) -> None:
        index = self.rng.randrange(len(self.workers))
        self._tell(f"SIGKILL worker {index}")
        self._counts["kills"] += 1
        self._replace(index)

    def _make_zombie(self) -> None:
        """Freeze a worker for longer than its session, then let it go on as if nothing had been."""
        index = self.rng.randrange(len(self.workers))
        self._tell(f"SIGSTOP worker {index}")
        self.workers[index].sigstop()
        time.sleep(2.5 * SESSION_TIMEOUT_MS / 1000)
        self.workers[index].sigcont()
        self._tell(f"SIGCONT worker {index}, a zombie by now")
        self._counts["zombies"] += 1

    def _restart_redis(self) -> None:
        self._tell("kill -9 Redis, restart after 1 s")
        self.redis.kill()
        time.sleep(1)
        self.redis.restart()
        self._counts["redis restarts"] += 1

    def _lose_redis_writes(self) -> None:
        """A failover to a replica that was behind: the last writes, acknowledged to the workers, are gone."""
        self.redis.kill()
        files = [*self.redis.directory.glob("**/*.aof*.incr.aof")] or [*self.redis.directory.glob("appendonly.aof")]
        (newest,) = files
        written = newest.read_bytes()
        # Between two scripts, as a replica has them. A tail torn inside one is another matter: test_torn_append_only_file.py.
        kept = written.rfind(SCRIPT_END, 0, len(written) - min(200_000, len(written) // 10)) + len(SCRIPT_END)
        newest.write_bytes(written[:kept])
        size, lost = len(written), len(written) - kept
        self._tell(f"kill -9 Redis, the last {lost:,} of {size:,} bytes of its append-only file are lost")
        self.redis.restart()
        self._counts["redis losses"] += 1

    def _kill_broker(self) -> None:
        self._tell("kill -9 Kafka, restart after 1 s")
        self.kafka.kill()
        time.sleep(1)
        self.kafka.restart()
        self._counts["broker kills"] += 1

    def _replace(self, index: int) -> None:
        worker = self.workers[index]
        worker.sigkill()
        self.killed.append(worker)
        self.workers[index] = self._worker(index)

    # -- waiting -------------------------------------------------------------------------------------------------------

    def _wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait while there is progress; workers that end by themselves are noted and started again."""
        best, since = -1, time.monotonic()
        while True:
            self._look()
            if condition():
                return
            if self._applied != best:
                best, since = self._applied, time.monotonic()
            if time.monotonic() - since > STUCK_SECONDS:
                self._dump_stacks()
                raise StreamSentimentError(
                    f"no progress for {STUCK_SECONDS:g} s at {self._applied} of {self._produced}, waiting for {what}\n"
                    + "\n".join([self._behind(), *self.report.problems])
                )
            for index, worker in enumerate(self.workers):
                if not worker.running:
                    status = worker.process.returncode
                    self._tell(f"worker {index} ended by itself with status {status}")
                    if status != UNAVAILABLE:
                        self.report.problems.append(
                            f"{worker.name} ended by itself with status {status}:\n{worker.process.log_tail(12)}"
                        )
                    self._replace(index)
            time.sleep(0.05)

    def _look(self) -> None:
        """Sum of the watermarks: how many records have been applied. An unreachable Redis tells nothing new."""
        try:
            with self.redis.client(socket_timeout=1) as client, client.pipeline(transaction=False) as pipeline:
                for place in self.places:
                    pipeline.hget(self.keys.meta(place), "wm")
                self._applied = sum(int(watermark or 0) for watermark in pipeline.execute())
        except redis.RedisError:
            return

    def _dump_stacks(self) -> None:
        """Every thread of every worker into its log (PYTHONFAULTHANDLER), to see what a stuck one waits for."""
        for worker in self.workers:
            worker.process.send(signal.SIGABRT)
            worker.process.wait(10)

    def _behind(self) -> str:
        """What is not applied and what is not published, by partition."""
        consumer = Consumer(quiet({"bootstrap.servers": self.kafka.bootstrap_servers, "group.id": "looking-on"}))
        lines = []
        with self.redis.client() as client:
            for place in self.places:
                end = consumer.get_watermark_offsets(TopicPartition(*place), timeout=10)[1]
                watermark = int(client.hget(self.keys.meta(place), "wm") or 0)
                outbox = [field.decode() for field in client.hkeys(self.keys.outbox(place))]
                if watermark != end or outbox:
                    lines.append(f"{place.topic}[{place.partition}]: applied {watermark} of {end}; outbox {outbox}")
        consumer.close()
        return "\n".join([*lines, f"{self._acknowledged} acknowledged, {self._refused} refused"])

    def _finished(self) -> bool:
        return self._acknowledged + self._refused == self.plan.events and self._applied >= self._acknowledged

    def _end_workers(self) -> None:
        for worker in self.workers:
            worker.wait_ready()  # one just started would not know yet what to do on SIGTERM
        for worker in self.workers:
            worker.sigterm()
        for worker in self.workers:
            status = worker.wait_exit(60)
            if status != 0:
                self.report.problems.append(
                    f"{worker.name} drained with status {status}:\n{worker.process.log_tail(12)}"
                )

    def _run_clean_owner(self) -> None:
        """One worker more, alone and undisturbed: what the others had to leave behind, it finds in Redis and publishes."""
        last = self._worker(0, "--exit-when-idle", "3s")
        self.workers.append(last)
        status = last.wait_exit(120)
        if status != 0:
            self.report.problems.append(f"the last worker ended with status {status}:\n{last.process.log_tail(12)}")
        with self.redis.client() as client:
            left = {place: client.hkeys(self.keys.outbox(place)) for place in self.places}
        self.report.problems += [f"left in the outbox of {place}: {fields}" for place, fields in left.items() if fields]

    # -- the verdict ---------------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        took = time.monotonic() - self._began
        problems = self.report.problems
        inputs = {TOPICS[CHAT]: ("chat", self._read(CHAT)), TOPICS[REVIEWS]: ("review", self._read(REVIEWS))}
        in_log = sum(len(records) for _, records in inputs.values())
        if self._refused or in_log != self._acknowledged:
            problems.append(f"{in_log} records in the log, {self._acknowledged} acknowledged, {self._refused} refused")
        partitions = {TOPICS[CHAT]: self.plan.partitions, TOPICS[REVIEWS]: 4}
        expected = sequential_fold(inputs, load_rules(self.rules), MAX_EVENT_BYTES, partitions)

        found = Outcome(states=self._states())
        escalations, dead_letters = self._read("escalations"), self._read("dead_letters")
        scored = self._read("scored")
        problems += found_escalations(found, escalations)
        problems += found_dead_letters(found, dead_letters)
        found_scored(found, scored)
        problems += differences(expected, found)
        problems += self._commits_that_differ(inputs)
        self.report.figures = {
            "seconds": round(took, 1),
            "events": in_log,
            "conversations": len(expected.states),
            **self._counts,
            "escalation events": len(expected.escalations),
            "held back by the storm guard": sum(bool(v.get("suppressed")) for _, v in expected.escalations.values()),
            "storm notices": sum("escalation_id" not in v for _, v in expected.escalations.values()),
            "copies of escalation events": len(escalations) - len(found.escalations),
            "dead letters": len(expected.dead_letters),
            "copies of dead letters": len(dead_letters) - len(found.dead_letters),
            "scored events": len(expected.scored),
            "copies of scored events": len(scored) - len(found.scored),
            **self._log_counts(),
            "problems": len(problems),
        }

    def _read(self, name: str) -> list[Record]:
        return read_topic(self.kafka.bootstrap_servers, TOPICS[name], timeout_s=120)

    def _states(self) -> dict[tuple[tuple[str, int], str], bytes]:
        states = {}
        with self.redis.client() as client:
            for place in self.places:
                prefix = self.keys.conversation(place, "").encode()
                names = list(client.scan_iter(match=_literal(prefix) + b"*", count=1000))
                values = client.mget(names) if names else []
                for name, value in zip(names, values, strict=True):
                    states[((place.topic, place.partition), name[len(prefix) :].decode())] = value
        return states

    def _commits_that_differ(self, inputs: dict[str, tuple[str, list[Record]]]) -> list[str]:
        """After a graceful end the group's commits stand at the watermarks, which stand at the ends."""
        ends = dict.fromkeys(self.places, 0)
        for topic, (_, records) in inputs.items():
            for record in records:
                ends[Place(topic, record.partition)] = record.offset + 1
        consumer = Consumer(quiet({"bootstrap.servers": self.kafka.bootstrap_servers, "group.id": GROUP}))
        committed = consumer.committed([TopicPartition(*place) for place in self.places], timeout=30)
        consumer.close()
        return [
            f"{tp.topic}[{tp.partition}]: committed {tp.offset}, the end is {ends[Place(tp.topic, tp.partition)]}"
            for tp in committed
            if max(0, tp.offset) != ends[Place(tp.topic, tp.partition)]
        ]

    def _log_counts(self) -> dict[str, int]:
        logs = [worker.log_text() for worker in [*self.workers, *self.killed]]
        names = ("partitions_lost", "fenced", "gap", "already_applied", "state_regression", "offsets_not_delivered")
        return {f"log: {name}": sum(text.count(f'"{name}"') for text in logs) for name in names}

    def _tell(self, what: str) -> None:
        self._say(f"{time.monotonic() - self._began:7.1f} s  {self._applied:6d} applied  {what}")


def _literal(pattern: bytes) -> bytes:
    """For Redis' MATCH: the braces and brackets of a key are no pattern."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"[]*?\\" else bytes([byte]) for byte in pattern)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in asdict(Plan()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, default=default)
    parser.add_argument("--logs", type=Path, help="keep the workers' logs in this directory")
    arguments = vars(parser.parse_args())
    logs = arguments.pop("logs")
    with tempfile.TemporaryDirectory(prefix="crash-run-") as temporary:
        directory = logs or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        kafka = KafkaBroker(group_session_timeout_ms=SESSION_TIMEOUT_MS, group_heartbeat_interval_ms=300)
        with RedisServer(appendonly="everysec") as server, kafka:
            report = CrashRun(Plan(**arguments), directory, kafka, server).run()
    for name, figure in report.figures.items():
        print(f"{name:>32}  {figure:,}")
    for problem in islice(report.problems, 20):
        print(problem)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
