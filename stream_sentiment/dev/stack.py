"""The local stack: Kafka, Redis, topics, workers, Prometheus where it is installed, and load; one process holds them all.

In: `python -m stream_sentiment.dev.stack DIR --workers N --rate R [--mock]` (`dev up` runs it in the background). Out: DIR/state.json
with addresses and process ids once everything is ready, and the log of every part in DIR. Runs until SIGTERM or SIGINT, then ends
the parts in reverse order; should it be killed, the kernel ends them. Raises ServiceUnavailable with the log of the part that failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

from stream_sentiment.errors import StreamSentimentError
from stream_sentiment.kafka.topics import plan_topics
from stream_sentiment.local_process import LocalProcess, free_port
from stream_sentiment.settings import load_settings
from stream_sentiment.testing.kafka_broker import KafkaBroker
from stream_sentiment.testing.mock_kafka import MockKafka
from stream_sentiment.testing.redis import RedisServer
from stream_sentiment.testing.worker import WorkerProcess, environment

STATE_FILE = "state.json"
PARTITIONS = 4
READY_SECONDS = 180.0

#: In a checkout; a wheel has no deploy folder, and Prometheus then runs without rules.
RULES = Path(__file__).parents[2] / "deploy/prometheus/rules"


def prometheus_configuration(ports: list[int]) -> str:
    """Scrapes the workers every 5 s; recording, alert and SLO rules as shipped."""
    targets = json.dumps([f"127.0.0.1:{port}" for port in ports])
    rules = f"rule_files: [{json.dumps(str(RULES / '*.yml'))}]\n" if RULES.is_dir() else ""
    return (
        "global: {scrape_interval: 5s, scrape_timeout: 4s, evaluation_interval: 5s}\n"
        f"{rules}scrape_configs:\n  - job_name: stream-sentiment\n    static_configs: [{{targets: {targets}}}]\n"
    )


def serve(directory: Path, workers: int, rate: float, mock: bool, stop: threading.Event) -> None:
    """Start everything, write the state file, wait for `stop`, end everything."""
    directory.mkdir(parents=True, exist_ok=True)
    state_file = directory / STATE_FILE
    with contextlib.ExitStack() as parts:
        # First in, so last out: while the file is there, something may still run.
        parts.callback(state_file.unlink, missing_ok=True)
        plan = load_settings()
        topics = {topic.name: topic.partitions for topic in plan_topics(plan, PARTITIONS)}
        # With as many as the chats Kafka's uniform assignor gives one worker all the chats and the other all the reviews.
        if plan.topics.product_reviews:
            topics[plan.topics.product_reviews] = 1
        broker: MockKafka | KafkaBroker
        if mock or shutil.which("java") is None:
            broker = parts.enter_context(MockKafka(topics))
        else:
            place = directory / "kafka"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            broker = parts.enter_context(KafkaBroker(directory=place))
            for name, partitions in topics.items():
                broker.create_topic(name, partitions)
        redis = parts.enter_context(RedisServer(appendonly="everysec"))
        settings = {
            "kafka.bootstrap_servers": broker.bootstrap_servers,
            "kafka.group_id": "dev",
            "redis.url": redis.url,
        }
        if os.environ.get("STREAM_SENTIMENT_MODEL__STUB"):
            settings["model.stub"] = os.environ["STREAM_SENTIMENT_MODEL__STUB"]
        if os.environ.get("STREAM_SENTIMENT_MODEL__PATH"):
            settings["model.path"] = os.environ["STREAM_SENTIMENT_MODEL__PATH"]
        running = [
            parts.enter_context(WorkerProcess(settings, name=f"worker-{number + 1}", directory=directory))
            for number in range(workers)
        ]
        for worker in running:
            worker.wait_ready(READY_SECONDS)
        prometheus = _prometheus(directory, [worker.http_port for worker in running], parts)
        if rate > 0:
            command = [sys.executable, "-m", "stream_sentiment.demo.load", "--rate", str(rate)]
            load = LocalProcess("load", command, directory / "load.log", environment(settings))
            load.start()
            parts.callback(load.terminate)
        state = {
            "pid": os.getpid(),
            "kafka": broker.bootstrap_servers,
            "kafka_is": broker.description,
            "group_id": settings["kafka.group_id"],
            "redis": redis.url,
            "redis_pid": redis.pid,
            "workers": [
                {"pid": worker.pid, "http": f"http://127.0.0.1:{worker.http_port}", "log": f"{worker.name}.log"}
                for worker in running
            ],
            "prometheus": prometheus,
            "events_per_second": rate,
        }
        scratch = directory / (STATE_FILE + ".new")
        scratch.write_text(json.dumps(state, indent=1), encoding="utf-8")
        scratch.replace(state_file)
        stop.wait()


def _prometheus(directory: Path, ports: list[int], parts: contextlib.ExitStack) -> str | None:
    """Start Prometheus where it is installed; its address."""
    executable = shutil.which("prometheus")
    if executable is None:
        return None
    port = free_port()
    configuration = directory / "prometheus.yml"
    configuration.write_text(prometheus_configuration(ports), encoding="utf-8")
    process = LocalProcess(
        "prometheus",
        [
            executable,
            f"--config.file={configuration}",
            f"--storage.tsdb.path={directory / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        directory / "prometheus.log",
    )
    process.start()
    parts.callback(process.terminate)
    return f"http://127.0.0.1:{port}"


def main() -> int:
    """Entry point of the background process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--mock", action="store_true")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        serve(options.directory, options.workers, options.rate, options.mock, stop)
    except StreamSentimentError as error:
        print(error, file=sys.stderr, flush=True)
        return int(error.exit_status)
    return 0


if __name__ == "__main__":
    sys.exit(main())
