"""A running system for drills: mock Kafka, a real Redis, real worker processes, a real Prometheus, and load.

Time is compressed: Prometheus scrapes every half second, and `compressed` shortens the windows of an alert's expression, so that
a drill takes seconds. What the expression means does not change; its `for` and its windows are proved by the promtool tests.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import re
import shutil
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import orjson
import yaml
from confluent_kafka import Producer

from stream_sentiment.local_process import LocalProcess, free_port
from stream_sentiment.testing.events import SCRIPTS, encode, record_key, timestamp
from stream_sentiment.testing.mock_kafka import ApiKey, MockKafka
from stream_sentiment.testing.redis import RedisServer
from stream_sentiment.testing.worker import WorkerProcess
from tests.deploy.promql import PROMETHEUS, ROOT, alerts, rules

PARTITIONS = 4
TOPICS = {
    "chat.messages": PARTITIONS,
    "product.reviews": 1,
    "sentiment.scored": 1,
    "conversation.state": 1,
    "escalation.events": 1,
    "sentiment.dlq": 1,
}

#: What `faulty_worker.py` can be told.
FAULTS = ("sleep", "delay", "slow", "stuck", "fail", "break", "angry")

Sample = tuple[dict[str, str], float]


def compressed(query: str) -> str:
    """The query with its windows in seconds instead of minutes and hours, and thresholds in seconds a twentieth or less."""

    def window(found: re.Match[str]) -> str:
        seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[found[2]]
        # A week is compared with an hour: it has to stay the longer one.
        return "[60s]" if found[2] == "w" else f"[{max(4, min(20, seconds // 60))}s]"

    query = re.sub(r"\[(\d+)([smhdw])\]", window, query)
    query = query.replace("1800 * stream", "30 * stream")
    return re.sub(r"(_seconds[^<>]*?) > (60|120|300)\b", lambda found: f"{found[1]} > {int(found[2]) // 20}", query)


def alert_expression(name: str, label: str | None = None) -> str:
    """The shipped expression of an alert; of several with this name the one with this value of a label."""
    (rule, *_) = [r for r in alerts() if r["alert"] == name and label in (None, *r["labels"].values())]
    return str(rule["expr"])


def recorded_alert_query(name: str) -> str:
    """The compressed expression, on what the compressed recording rules make (`running(compress_rules=True)`)."""
    alert, _, label = name.partition(":")
    return compressed(alert_expression(alert, label or None))


def compressed_rules(directory: Path) -> list[Path]:
    """Copies of the recording and objective rules with their windows compressed."""
    files = []
    for name in ("recording.yml", "slo.yml"):
        content = yaml.safe_load((PROMETHEUS / "rules" / name).read_text())
        for group in content["groups"]:
            for rule in group["rules"]:
                rule["expr"] = compressed(rule["expr"])
                rule.pop("for", None)
        files.append(directory / name)
        files[-1].write_text(yaml.safe_dump(content))
    return files


def alert_query(name: str) -> str:
    """The compressed expression; `DlqRatio:page` is the rule with that value of a label. Recorded ratios are put in its place."""
    alert, _, severity = name.partition(":")
    query = alert_expression(alert, severity or None)
    for rule in rules():
        if "record" in rule and rule["record"] in query:
            query = query.replace(rule["record"], f"({rule['expr']})")
    return compressed(query)


class Prometheus:
    """A Prometheus on a free loopback port that scrapes the given targets twice a second."""

    def __init__(self, directory: Path, rules: Sequence[Path] = ()) -> None:
        self.port = free_port()
        self.directory = directory
        (directory / "targets.json").write_text("[]")
        rule_files = "".join(f"  - {json.dumps(str(path))}\n" for path in rules)
        (directory / "prometheus.yml").write_text(
            "global: {scrape_interval: 500ms, scrape_timeout: 450ms, evaluation_interval: 1s}\n"
            + (f"rule_files:\n{rule_files}" if rules else "")
            + "scrape_configs:\n  - job_name: stream-sentiment\n"
            "    file_sd_configs: [{files: [targets.json], refresh_interval: 1s}]\n"
        )
        self.process = LocalProcess(
            "prometheus",
            [
                "prometheus",
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            directory / "prometheus.log",
        )

    def scrape(self, ports: Sequence[int]) -> None:
        """Replace the targets."""
        content = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
        scratch = self.directory / "targets.new"
        scratch.write_text(json.dumps(content))
        scratch.replace(self.directory / "targets.json")

    def start(self) -> None:
        self.process.start()
        self.process.wait_until(self._answers, 30)

    def _answers(self) -> bool:
        try:
            self.query("vector(1)")
        except OSError:
            return False
        return True

    def query(self, query: str) -> list[Sample]:
        """The instant vector of a query now."""
        form = urllib.parse.urlencode({"query": query}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/query", form, timeout=10) as answer:
            result = json.load(answer)["data"]["result"]
        return [(sample["metric"], float(sample["value"][1])) for sample in result]

    def series(
        self, query: str, seconds: float, step: float = 0.5
    ) -> list[tuple[dict[str, str], list[tuple[float, float]]]]:
        """The last `seconds` of a query, for pictures."""
        now = time.time()
        form = urllib.parse.urlencode({"query": query, "start": now - seconds, "end": now, "step": step}).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/query_range", form, timeout=10) as answer:
            result = json.load(answer)["data"]["result"]
        return [(row["metric"], [(float(at), float(value)) for at, value in row["values"]]) for row in result]

    def stop(self) -> None:
        self.process.terminate()


class Load:
    """Publishes scripted conversations at a steady rate from a thread, until stopped."""

    def __init__(self, bootstrap_servers: str, rate: float) -> None:
        self.rate = rate
        self.sent = 0
        self.bad_share = 0.0
        self._producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 5})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)
        self._producer.flush(10)

    def send(self, event: dict[str, Any], *, key: bytes | None = None, topic: str = "chat.messages") -> None:
        self._producer.produce(topic, encode(event), key or record_key(event))
        self._producer.poll(0)

    def send_bytes(self, value: bytes, topic: str = "chat.messages") -> None:
        self._producer.produce(topic, value, b"shop|bad")
        self._producer.poll(0)

    def _run(self) -> None:
        number = 0
        credit_bad = 0.0
        start = time.monotonic()
        while not self._stop.is_set():
            number += 1
            for script in SCRIPTS:
                now_ms = int(time.time() * 1000)
                events = list(script.events(conversation=f"{script.name}-{number}", start_ms=now_ms))
                for index, event in enumerate(events):
                    event["created_at"] = timestamp(now_ms + index)
                    if self._stop.wait(max(0.0, start + self.sent / self.rate - time.monotonic())):
                        return
                    credit_bad += self.bad_share
                    if credit_bad >= 1:
                        credit_bad -= 1
                        self.send_bytes(b"{not json")
                    else:
                        self.send(event)
                    self.sent += 1


class Stack:
    """Everything together. Use `running(...)`."""

    def __init__(self, directory: Path, kafka: MockKafka, redis: RedisServer, prometheus: Prometheus) -> None:
        self.directory = directory
        self.kafka = kafka
        self.redis = redis
        self.prometheus = prometheus
        self.workers: list[WorkerProcess] = []
        self.timeline: list[str] = []
        self._drill_since = time.monotonic()
        self.load = Load(kafka.bootstrap_servers, 15.0)
        self.settings = {
            "kafka.bootstrap_servers": kafka.bootstrap_servers,
            "kafka.group_id": f"drill-{directory.name}",
            "kafka.session_timeout": "6s",
            "redis.url": redis.url,
            "redis.timeout": "500ms",
            "model.stub": "true",
            # Three rounds of the load in each language: its mix is then the same in every full window.
            "model.drift_window": "30",
            "model.drift_minimum": "30",
            "rules.path": str(Path(__file__).with_name("rules.yaml")),
            "worker.stall_timeout": "5s",
            "worker.drain_timeout": "3s",
        }

    def add_faulty_worker(self) -> WorkerProcess:
        """A worker whose model misbehaves as the files in `directory` say (`faulty_worker.py`)."""
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
            f"from tests.drills.faulty_worker import main; main({str(self.directory)!r})"
        )
        name = f"worker-{len(self.workers) + 1}"
        worker = WorkerProcess(self.settings, directory=self.directory, name=name, program=("-c", code))
        worker.start()
        self.workers.append(worker)
        self.retarget()
        return worker

    def remove_worker(self, worker: WorkerProcess) -> None:
        """End it gracefully if it runs, and scrape it no more."""
        if worker.running:
            worker.sigterm()
            worker.wait_exit(60)
        self.workers.remove(worker)
        self.retarget()

    def fault(self, name: str, value: str = "") -> None:
        """Let the model misbehave."""
        (self.directory / name).write_text(value)

    def faults(self) -> list[str]:
        """What misbehaves now."""
        return [name for name in FAULTS if (self.directory / name).exists()]

    def mend(self, name: str) -> None:
        (self.directory / name).unlink()

    def add_worker(self, **more: str) -> WorkerProcess:
        settings = {**self.settings, **{name.replace("__", "."): value for name, value in more.items()}}
        worker = WorkerProcess(settings, directory=self.directory, name=f"worker-{len(self.workers) + 1}")
        worker.start()
        self.workers.append(worker)
        self.retarget()
        return worker

    def retarget(self) -> None:
        self.prometheus.scrape([worker.http_port for worker in self.workers])

    def refuse(self, topic: str, error: int, times: int) -> None:
        """Answer the next produce requests for the topic (of one partition) with this error code."""
        codes = [error] * times
        types = (ctypes.c_char_p, ctypes.c_int32, ctypes.c_int16, ctypes.c_size_t, *[ctypes.c_int] * times)
        name = "mock_partition_push_request_errors"
        self.kafka._checked(name, types, topic.encode(), 0, ApiKey.PRODUCE, times, *codes)

    def value(self, query: str) -> float:
        """The sum of an instant vector; 0 when it is empty."""
        return sum(value for _, value in self.prometheus.query(query))

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> float:
        """Wait for a condition; how long it took. Fails with the logs' ends."""
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > seconds:
                logs = "\n".join(worker.log_text()[-1500:] for worker in self.workers)
                raise AssertionError(f"not within {seconds} s: {what}\n{logs}")
            time.sleep(0.25)
        return time.monotonic() - started

    def begin(self, drill: str) -> None:
        """A new drill in the timeline."""
        self._drill_since = time.monotonic()
        self.timeline.append(f"\n{drill}")

    def note(self, what: str) -> None:
        """A line of the timeline, with the seconds since the drill began."""
        self.timeline.append(f"{time.monotonic() - self._drill_since:7.1f} s  {what}")

    def until_true(self, alert: str, seconds: float = 90.0, expression: str | None = None) -> None:
        """Wait until the alert's expression, compressed, gives something."""
        expression = expression or alert_query(alert)
        self.until(lambda: bool(self.prometheus.query(expression)), seconds, f"true: {expression}")
        self.note(f"{alert} is true")

    def until_false(self, alert: str, seconds: float = 90.0, expression: str | None = None) -> None:
        expression = expression or alert_query(alert)
        self.until(lambda: not self.prometheus.query(expression), seconds, f"false: {expression}")
        self.note(f"{alert} is false")

    def until_caught_up(self, seconds: float = 120.0) -> None:
        """Every partition reports, and no record waits for 5 seconds."""
        query = "stream_sentiment_consumer_lag_seconds"

        def caught_up() -> bool:
            ages = [age for _, age in self.prometheus.query(query)]
            return len(ages) > PARTITIONS and max(ages) < 5

        self.until(caught_up, seconds, "no lag")


@contextlib.contextmanager
def running(
    directory: Path, rules: Sequence[Path] = (), *, compress_rules: bool = False, **redis_options: Any
) -> Iterator[Stack]:
    """A stack without workers and without load; ends everything it started."""
    if shutil.which("prometheus") is None:
        import pytest

        pytest.skip("prometheus is not installed (Debian package prometheus)")
    with MockKafka(TOPICS) as kafka, RedisServer(**redis_options) as redis:
        prometheus = Prometheus(directory, [*rules, *(compressed_rules(directory) if compress_rules else ())])
        stack = Stack(directory, kafka, redis, prometheus)
        try:
            prometheus.start()
            yield stack
        finally:
            if stack.load._thread.is_alive():
                stack.load.stop()
            for worker in stack.workers:
                worker.close()
            prometheus.stop()


def events_of(log: str) -> list[dict[str, Any]]:
    """The JSON lines of a worker's log."""
    return [orjson.loads(line) for line in log.splitlines() if line.startswith("{")]
