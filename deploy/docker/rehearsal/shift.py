"""A night on call, scripted: five incidents on the running compose stack, each to its alert, through its runbook, to its end.

`rehearse.sh` runs it with SHIFT=1, in real time: the rules are the shipped ones with their windows and their `for`, so it takes
about 40 minutes. Prints what was done and every alert that began and ended, with the minutes since the shift began. Exit status 1 when
an alert does not come, or does not end. `shift.py 4 5` plays only these incidents. Only the standard library.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
RUNBOOKS = ROOT / "deploy/runbooks"
MODEL = sorted((ROOT / "models").glob("*/manifest.json"))[0].parent
PROMETHEUS = f"http://127.0.0.1:{os.environ['PROMETHEUS_PORT']}"
ALERTMANAGER = f"http://127.0.0.1:{os.environ['ALERTMANAGER_PORT']}"
COMPOSE = ["docker-compose", "--profile", "observability", "--profile", "tools", "-f", "docker-compose.yml"]
OVERLAY = ["-f", "deploy/docker/rehearsal/compose.yml"]
BAD_MODEL = ["-f", "deploy/docker/rehearsal/bad-model.yml"]
SHOWN = 4  # samples of a check that are printed

#: These run in a container that has the client library.
DELETE_TOPIC = """
import os
from confluent_kafka.admin import AdminClient
client = AdminClient({"bootstrap.servers": os.environ["STREAM_SENTIMENT_KAFKA__BOOTSTRAP_SERVERS"]})
client.delete_topics(["escalation.events"])["escalation.events"].result(30)
"""

FLOOD = """
import os, sys, time
from confluent_kafka import Producer
producer = Producer({"bootstrap.servers": os.environ["STREAM_SENTIMENT_KAFKA__BOOTSTRAP_SERVERS"]})
rate, end = float(sys.argv[1]), time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    producer.produce("chat.messages", b"{broken", b"shop|broken")
    producer.poll(0)
    time.sleep(1 / rate)
producer.flush(30)
"""

started = time.monotonic()
printing = threading.Lock()


def say(text: str) -> None:
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    with printing:
        for line in text.splitlines():
            print(f"{minutes:3d}:{seconds:02d}  {line}", flush=True)


def get(address: str, form: dict[str, str] | None = None) -> object:
    data = None if form is None else urllib.parse.urlencode(form).encode()
    with urllib.request.urlopen(address, data, timeout=10) as answer:  # noqa: S310 (loopback)
        return json.load(answer)


def firing() -> set[str]:
    """Alerts that fire now, as `Name (severity)`."""
    found = get(f"{PROMETHEUS}/api/v1/alerts")["data"]["alerts"]  # type: ignore[index]
    return {
        f"{alert['labels']['alertname']} ({alert['labels']['severity']})"
        for alert in found
        if alert["state"] == "firing"
    }


def causes(names: set[str]) -> set[str]:
    """Without what looks back over hours: the budgets that the outages of this night have burnt."""
    return {name for name in names if not name.startswith("ErrorBudget") and not name.endswith("(info)")}


def watch(stop: threading.Event) -> None:
    """Print every alert that begins or ends."""
    known: set[str] = set()
    while not stop.wait(5):
        try:
            now = firing()
        except OSError:
            continue
        for name in sorted(now - known):
            say(f"ALERT {name}")
        for name in sorted(known - now):
            say(f"ended {name}")
        known = now


def compose(*arguments: str, overlays: list[str] = OVERLAY, check: bool = True) -> str:
    done = subprocess.run([*COMPOSE, *overlays, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if check and done.returncode:
        sys.exit(f"docker-compose {' '.join(arguments)}: {done.stderr[-800:]}")
    return done.stdout


def inside(program: str, *arguments: str) -> list[str]:
    """The command that runs a Python program in the load generator's container, which no incident touches."""
    return [*COMPOSE, *OVERLAY, "exec", "-T", "load", "python3", "-c", program, *arguments]


def follow(alert: str) -> None:
    """The checks of the runbook that are queries, and what they answer now."""
    page = (RUNBOOKS / f"{alert}.md").read_text(encoding="utf-8")
    say(f"runbook deploy/runbooks/{alert}.md")
    for block in re.findall(r"```promql\n(.*?)```", page, re.DOTALL):
        query = block.replace('{instance="..."}', "")
        try:
            found = get(f"{PROMETHEUS}/api/v1/query", {"query": query})["data"]["result"]  # type: ignore[index]
        except urllib.error.HTTPError as error:
            sys.exit(f"{alert}: Prometheus refuses the runbook's query {query}: {error.read().decode()}")
        say("  ? " + " ".join(query.split()))
        for sample in found[:SHOWN]:
            labels = {k: v for k, v in sample["metric"].items() if k not in {"job", "instance", "__name__"}}
            say(f"      {' '.join(f'{k}={v}' for k, v in labels.items())}  {float(sample['value'][1]):.4g}")
        if len(found) > SHOWN:
            say(f"      and {len(found) - SHOWN} more")
        if not found:
            say("      (nothing)")


@dataclass
class Incident:
    """What is done, which alert must come, and the remedy."""

    what: str
    fault: Callable[[], None]
    alert: str
    severity: str
    remedy_is: str
    remedy: Callable[[], None]
    seen: Callable[[], str] = lambda: ""

    def play(self) -> None:
        say(f"\n--- {self.what}")
        self.fault()
        wanted = f"{self.alert} ({self.severity})"
        until(lambda: wanted in firing(), 1200, f"{wanted} did not fire")
        until(lambda: self.alert in told(), 120, f"Alertmanager has not heard of {self.alert}")
        say(f"Alertmanager sends {self.alert} to {told()[self.alert]}")
        follow(self.alert)
        if seen := self.seen():
            say(seen)
        say(f"remedy: {self.remedy_is}")
        self.remedy()
        until(lambda: wanted not in firing(), 1200, f"{wanted} did not end")


def told() -> dict[str, str]:
    """Alertmanager's receivers by alert."""
    found = get(f"{ALERTMANAGER}/api/v2/alerts")
    return {
        alert["labels"]["alertname"]: ", ".join(r["name"] for r in alert["receivers"])
        for alert in found  # type: ignore[attr-defined]
    }


def until(condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            say(f"FAILED: {otherwise}")
            sys.exit(1)
        time.sleep(2)


def log_of_worker(pattern: str) -> str:
    """The last line of the worker's log that matches."""
    lines = [line for line in compose("logs", "--no-color", "--tail", "50", "worker").splitlines() if pattern in line]
    return f"  $ docker compose logs worker\n      {lines[-1].split('|', 1)[-1].strip()[:230]}" if lines else ""


def main() -> None:
    flood: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        bad = Path(scratch) / "model"
        shutil.copytree(MODEL, bad, ignore=shutil.ignore_patterns("*.safetensors"))
        bad.chmod(0o755)
        Path(scratch).chmod(0o755)
        for graph in bad.glob("*.onnx"):
            content = bytearray(graph.read_bytes())
            content[len(content) // 2] ^= 1
            graph.write_bytes(content)
        os.environ["BAD_MODEL"] = str(bad)

        def broken_records() -> None:
            flood.append(subprocess.Popen(inside(FLOOD, "20", "1200"), cwd=ROOT))

        def repaired_producer() -> None:
            # The client ends; what it began inside the container is ended by name of its program there.
            flood.pop().terminate()
            compose("restart", "load")

        incidents = [
            Incident(
                "Redis is killed",
                lambda: void(compose("kill", "redis")),
                "RedisErrors",
                "ticket",
                "docker compose start redis",
                lambda: void(compose("start", "redis")),
                lambda: log_of_worker("redis_unavailable"),
            ),
            Incident(
                "Redis hangs: the consumer stalls",
                lambda: void(compose("pause", "redis")),
                "ConsumerStalled",
                "page",
                "docker compose unpause redis",
                lambda: void(compose("unpause", "redis")),
                lambda: log_of_worker("redis_unavailable"),
            ),
            Incident(
                "a producer sends 20 broken records a second",
                broken_records,
                "DlqRatio",
                "page",
                "the producer is stopped",
                repaired_producer,
            ),
            Incident(
                "a deployment brings a model with one byte changed",
                lambda: void(compose("up", "-d", "--no-build", "--no-deps", "worker", overlays=[*OVERLAY, *BAD_MODEL])),
                "NoConsumers",
                "page",
                "the deployment is taken back",
                lambda: void(compose("up", "-d", "--no-build", "--no-deps", "worker")),
                lambda: log_of_worker("sha256"),
            ),
            Incident(
                "somebody deletes the topic of the escalations",
                lambda: void(subprocess.run(inside(DELETE_TOPIC), cwd=ROOT, check=True)),
                "OutboxStuck",
                "page",
                "stream-sentiment topics create",
                lambda: void(compose("up", "--no-build", "topics")),
                lambda: log_of_worker("escalation.events"),
            ),
        ]
        stop = threading.Event()
        watcher = threading.Thread(target=watch, args=(stop,), daemon=True)
        watcher.start()
        try:
            wanted = [int(number) for number in sys.argv[1:]] or range(1, len(incidents) + 1)
            for number in wanted:
                incidents[number - 1].play()
        finally:
            for process in flood:
                process.terminate()
        say("\n--- the shift is over; waiting for what still fires")
        until(lambda: not causes(firing()), 1800, "alerts still fire")
        stop.set()
        watcher.join()
        left = sorted(firing())
        say(f"still firing, on windows of hours: {', '.join(left)}" if left else "nothing fires")


def void(_: object) -> None:
    """For a lambda whose result nobody wants."""


if __name__ == "__main__":
    main()
