"""A real Prometheus scrapes a real worker under load: rules evaluate, every panel has data, counts add up, time adds up."""

from __future__ import annotations

import functools
import itertools
import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_sentiment.scoring.bundle import default_bundle_path
from stream_sentiment.testing.consume import read_topic
from stream_sentiment.testing.events import chat_message
from tests.deploy.promql import PROMETHEUS, ROOT, alerts
from tests.drills.stack import Stack, running

pytestmark = [pytest.mark.slow, pytest.mark.redis]

#: Panels that are empty on purpose in a quiet system without a shadow model.
EMPTY = {"Time to work the backlog off", "Disagreements per message", "Who says what"}

ALL_PANELS = [
    pytest.param(panel, id=f"{path.stem}: {panel['title']}")
    for path in sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
    for panel in json.loads(path.read_text())["panels"]
    if panel["type"] != "row"
]
PANELS = [param for param in ALL_PANELS if param.values[0]["title"] not in EMPTY]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    rules = sorted((PROMETHEUS / "rules").glob("*.yml"))
    with running(tmp_path_factory.mktemp("live"), rules, appendonly="everysec") as made:
        made.add_worker().wait_ready(120)
        made.load.start()
        made.load.send_bytes(b"{broken")
        made.until(lambda: made.value("stream_sentiment_escalations_total") > 2, 120, "escalations")
        made.until(lambda: bool(made.prometheus.query("slo:sli_error:ratio_rate6h")), 60, "recorded series")
        # The statistics of librdkafka come every 10 s.
        made.until(lambda: bool(made.prometheus.query("stream_sentiment_broker_up")), 60, "broker statistics")
        made.until(lambda: bool(made.prometheus.query("stream_sentiment_prediction_psi")), 60, "a full window of drift")
        yield made


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_has_data(stack: Stack, panel: dict):
    found = 0
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "20s").replace("$job", ".+").replace("$instance", ".+")
        found += len(stack.prometheus.query(query))
    assert found > 0


def test_every_rule_evaluates_without_an_error(stack: Stack):
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.prometheus.port}/api/v1/rules", timeout=10) as answer:
        groups = json.load(answer)["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len([rule for rule in rules if rule["type"] == "alerting"]) == len(alerts())
    assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}


def test_promtool_accepts_what_the_worker_exposes(stack: Stack):
    scrape = stack.workers[0].get("/metrics")[1].encode()
    checked = subprocess.run(["promtool", "check", "metrics"], input=scrape, capture_output=True, check=False)
    assert [line for line in checked.stderr.decode().splitlines() if line.startswith("stream_sentiment_")] == []


@pytest.mark.parametrize("thread", ["poll", "score", "apply"])
def test_a_threads_states_sum_to_wall_time_within_two_per_cent(stack: Stack, thread: str):
    name = (
        "stream_sentiment_consumer_time_seconds_total"
        if thread == "poll"
        else f'stream_sentiment_thread_time_seconds_total{{thread="{thread}"}}'
    )

    def reading() -> tuple[float, float]:
        before = time.monotonic()
        body = stack.workers[0].get("/metrics")[1]
        at = (before + time.monotonic()) / 2
        prefix, _, label = name.partition("{")
        wanted = label.removesuffix("}")
        lines = [line for line in body.splitlines() if line.startswith(prefix + "{") and wanted in line]
        return at, sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    first_at, first = reading()
    time.sleep(10)
    last_at, last = reading()
    assert last - first == pytest.approx(last_at - first_at, rel=0.02)


def test_every_record_read_has_one_outcome_once_the_system_rests(stack: Stack):
    stack.load.stop()

    def counts() -> tuple[float, float]:
        return (
            stack.value("stream_sentiment_events_consumed_total"),
            stack.value("stream_sentiment_events_total"),
        )

    stack.until(lambda: counts()[0] == counts()[1] > 0, 60, "as many outcomes as records")
    # The watermark's gauge follows once a commit interval.
    stack.until(lambda: counts()[0] == stack.value("stream_sentiment_watermark_offset"), 30, "a watermark at the end")
    assert stack.value('stream_sentiment_events_total{outcome="dead_lettered"}') == 1


@pytest.mark.parametrize("topic", ["sentiment.scored", "conversation.state", "escalation.events", "sentiment.dlq"])
def test_as_many_records_are_counted_as_acknowledged_as_the_topic_holds(stack: Stack, topic: str):
    stack.load.stop()
    stack.until(
        lambda: stack.value("stream_sentiment_events_consumed_total") == stack.value("stream_sentiment_events_total"),
        60,
        "as many outcomes as records",
    )
    held = len(read_topic(stack.kafka.bootstrap_servers, topic))
    assert held > 0
    stack.until(
        lambda: stack.value(f'stream_sentiment_produce_total{{topic="{topic}", result="ack"}}') == held, 30, str(held)
    )


def test_a_revoked_partition_leaves_the_scrape_of_its_old_owner(stack: Stack):
    first = stack.workers[0]
    before = first.get("/metrics")[1].count("stream_sentiment_consumer_lag_seconds{")
    second = stack.add_worker()
    second.wait_ready(120)
    stack.until(
        lambda: (
            0 < first.get("/metrics")[1].count("stream_sentiment_consumer_lag_seconds{") < before
            and first.get("/metrics")[1].count("stream_sentiment_consumer_lag_seconds{")
            + second.get("/metrics")[1].count("stream_sentiment_consumer_lag_seconds{")
            == before
        ),
        90,
        "partitions shared without doubles",
    )


def test_the_panels_of_a_shadow_have_data_where_there_is_one(stack: Stack):
    shadowed = [param.values[0] for param in ALL_PANELS if "shadow_disagreements" in json.dumps(param.values[0])]
    assert {panel["title"] for panel in shadowed} == EMPTY - {"Time to work the backlog off"}
    worker = stack.add_worker(model__shadow=str(default_bundle_path()), model__shadow_share="1", model__threads="1")
    worker.wait_ready(120)
    sent = itertools.count()

    def has_data(panel: dict) -> bool:
        # A rate needs a series that grows after it has been seen, so messages keep coming.
        for number in itertools.islice(sent, 20):
            now_ms = int(time.time() * 1000)
            stack.load.send(chat_message(f"complaint {number}", conversation=f"shadowed-{number}", at_ms=now_ms))
        (target,) = panel["targets"]
        query = target["expr"].replace("$__rate_interval", "20s").replace("$job", ".+").replace("$instance", ".+")
        return bool(stack.prometheus.query(query))

    for panel in shadowed:
        stack.until(functools.partial(has_data, panel), 90, panel["title"])


def test_the_overview_can_be_drawn_from_what_was_scraped(stack: Stack, tmp_path: Path):
    """Its time series as Grafana would draw them; STREAM_SENTIMENT_TEST_PICTURES=DIR keeps the picture for a person to look at."""
    directory = Path(os.environ.get("STREAM_SENTIMENT_TEST_PICTURES") or tmp_path)
    matplotlib = pytest.importorskip("matplotlib", reason="the extra `train` brings matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = [param.values[0] for param in PANELS if str(param.id).startswith("overview")]
    shown = [panel for panel in panels if panel["type"] == "timeseries"]
    figure, axes = pyplot.subplots((len(shown) + 2) // 3, 3, figsize=(21, 3.2 * ((len(shown) + 2) // 3)))
    for panel, axis in zip(shown, axes.flat, strict=False):
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "20s").replace("$job", ".+").replace("$instance", ".+")
            for labels, points in stack.prometheus.series(query, 120):
                name = " ".join(value for key, value in labels.items() if key not in {"job", "instance", "__name__"})
                axis.plot([at - time.time() for at, _ in points], [value for _, value in points], label=name)
        axis.set_title(f"{panel['title']} [{panel['fieldConfig']['defaults']['unit']}]", fontsize=9)
        if len(axis.lines) <= 10:
            axis.legend(fontsize=6, loc="upper left")
    figure.tight_layout()
    figure.savefig(directory / "overview.png", dpi=70)
    assert sum(bool(axis.lines) for axis in axes.flat) >= len(shown) // 2
