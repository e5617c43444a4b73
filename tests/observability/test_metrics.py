"""The table of metrics: what a scrape shows, and when."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from stream_sentiment.events.incoming import InvalidReason, SkippedReason
from stream_sentiment.kafka.dead_letter import ErrorClass
from stream_sentiment.observability import labels
from stream_sentiment.observability.definitions import Domain, Kind
from stream_sentiment.observability.metrics import TABLE, Metrics
from stream_sentiment.observability.phases import TimeInState
from stream_sentiment.observability.reference import render_docs

ROOT = Path(__file__).parents[2]


class Clock:
    """Wall and monotonic time, turned by hand."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def now_ms(self) -> int:
        return int(self.seconds * 1000)

    def monotonic(self) -> float:
        return self.seconds


def scrape(metrics: Metrics) -> dict[str, float]:
    """Every sample by `name{labels}`."""
    lines = generate_latest(metrics.registry).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[:1] != "#")}


def test_every_enumerated_series_exists_at_zero_before_the_first_event():
    samples = scrape(Metrics())
    assert samples['stream_sentiment_redis_errors_total{kind="timeout"}'] == 0
    assert samples['stream_sentiment_batch_flush_total{trigger="revoke"}'] == 0
    assert samples['stream_sentiment_dead_letter_total{reason="schema",result="ack"}'] == 0
    assert samples['stream_sentiment_consumer_time_seconds_total{state="backpressure"}'] == 0
    assert samples['stream_sentiment_thread_time_seconds_total{state="infer",thread="score"}'] == 0


def test_a_declared_topic_gets_all_its_outcomes_at_zero_and_no_partition_series():
    metrics = Metrics()
    metrics.declare(Domain.INPUT_TOPIC, ["chat.messages"])
    samples = scrape(metrics)
    assert samples['stream_sentiment_events_total{outcome="duplicate",topic="chat.messages"}'] == 0
    assert samples['stream_sentiment_events_consumed_total{kind="review",topic="chat.messages"}'] == 0
    assert not any("partition=" in name for name in samples)


def test_declaring_labels_for_one_head_leaves_the_other_head_alone():
    metrics = Metrics()
    metrics.declare(Domain.LABEL, ["negative", "positive"], only=["predictions_total"])
    samples = scrape(metrics)
    assert samples['stream_sentiment_predictions_total{label="negative"}'] == 0
    assert not any(name.startswith("stream_sentiment_emotion_predictions_total{") for name in samples)


def test_the_series_of_a_revoked_partition_leave_the_scrape_and_the_others_stay():
    metrics = Metrics()
    for partition in (3, 4):
        metrics.consumer_lag_events.labels("chat.messages", partition).set(10)
        metrics.consumer_lag_seconds.labels("chat.messages", partition).since(0)
        metrics.watermark_offset.labels("chat.messages", partition).set(7)
        metrics.last_progress_timestamp_seconds.labels("chat.messages", partition).set(1)
    metrics.drop_partition("chat.messages", 3)
    samples = scrape(metrics)
    assert not [name for name in samples if 'partition="3"' in name]
    assert len([name for name in samples if 'partition="4"' in name]) == 4
    metrics.drop_partition("chat.messages", 3)


def test_a_partition_that_comes_back_starts_a_new_series():
    metrics = Metrics()
    metrics.consumer_lag_events.labels("chat.messages", 3).set(10)
    metrics.drop_partition("chat.messages", 3)
    metrics.consumer_lag_events.labels("chat.messages", "3").set(2)
    assert scrape(metrics)['stream_sentiment_consumer_lag_events{partition="3",topic="chat.messages"}'] == 2


def test_three_and_the_text_three_are_the_same_series():
    metrics = Metrics()
    assert metrics.watermark_offset.labels("t", 3) is metrics.watermark_offset.labels("t", "3")


def test_an_age_grows_between_scrapes_although_nobody_sets_it():
    clock = Clock()
    metrics = Metrics(clock=clock)
    metrics.outbox_oldest_age_seconds.since(clock.now_ms())
    lag = metrics.consumer_lag_seconds.labels("chat.messages", 0)
    lag.since(clock.now_ms() - 500)
    clock.seconds += 4
    samples = scrape(metrics)
    assert samples["stream_sentiment_outbox_oldest_age_seconds"] == 4.0
    assert samples['stream_sentiment_consumer_lag_seconds{partition="0",topic="chat.messages"}'] == 4.5


def test_an_age_is_zero_without_a_start_and_never_negative():
    clock = Clock()
    metrics = Metrics(clock=clock)
    metrics.outbox_oldest_age_seconds.since(clock.now_ms() + 60_000)
    assert scrape(metrics)["stream_sentiment_outbox_oldest_age_seconds"] == 0
    metrics.outbox_oldest_age_seconds.since(None)
    clock.seconds += 100
    assert scrape(metrics)["stream_sentiment_outbox_oldest_age_seconds"] == 0


def test_the_seconds_of_all_states_sum_to_wall_time_within_two_per_cent():
    times = TimeInState(("poll", "work", "idle"))
    started = time.perf_counter()
    stop = started + 0.3
    rounds = 0
    while time.perf_counter() < stop:
        times.switch("poll")
        times.switch("work")
        sum(range(200))
        with times.enter("idle"):
            time.sleep(0.0005)
        rounds += 1
    seconds = times.seconds()
    wall = time.perf_counter() - started
    assert rounds > 10
    assert sum(seconds.values()) == pytest.approx(wall, rel=0.02)
    assert min(seconds.values()) > 0


def test_a_thread_that_never_leaves_a_state_is_seen_at_the_next_scrape():
    clock = Clock()
    times = TimeInState(("poll", "work"), now=clock.monotonic)
    times.switch("poll")
    clock.seconds += 30
    assert times.seconds() == {"poll": 30.0, "work": 0.0}
    clock.seconds += 10
    assert times.seconds()["poll"] == 40.0


def test_a_block_returns_to_the_state_before_it_even_when_it_raises():
    clock = Clock()
    times = TimeInState(("poll", "commit"), now=clock.monotonic)

    def commit() -> None:
        with times.enter("commit"):
            clock.seconds += 2
            raise RuntimeError

    times.switch("poll")
    with pytest.raises(RuntimeError):
        commit()
    clock.seconds += 5
    times.stop()
    clock.seconds += 100
    assert times.seconds() == {"poll": 5.0, "commit": 2.0}


def test_an_unknown_state_is_refused_and_changes_nothing():
    times = TimeInState(("poll",))
    times.switch("poll")
    with pytest.raises(KeyError):
        times.switch("lunch")
    assert set(times.seconds()) == {"poll"}


def test_scraping_while_a_thread_switches_never_shows_a_counter_going_back():
    times = TimeInState(("a", "b"))
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            times.switch("a")
            times.switch("b")

    thread = threading.Thread(target=work)
    thread.start()
    last = {"a": 0.0, "b": 0.0}
    for _ in range(2_000):
        now = times.seconds()
        assert now["a"] >= last["a"]
        assert now["b"] >= last["b"]
        last = now
    stop.set()
    thread.join()


def test_names_follow_the_convention_of_their_type():
    suffix = re.compile(r"_(seconds|bytes|ratio|total|info|events|entries|offset|tokens|state|ready|up|partitions)$")
    bare = {"input_tokens", "batch_tokens", "prediction_confidence", "prediction_psi"}
    for definition in TABLE.values():
        assert (definition.kind is Kind.COUNTER) == definition.name.endswith("_total"), definition.name
        assert suffix.search(definition.name) or definition.name in bare | {"ready"}, definition.name
        assert ":" not in definition.name


def test_no_label_can_hold_a_conversation_a_message_a_user_or_a_tenant():
    for definition in TABLE.values():
        assert not {"conversation", "conversation_id", "message_id", "user", "tenant_id", "tenant"} & set(
            definition.label_names
        ), definition.name


def test_two_workers_in_one_process_do_not_share_their_figures():
    one, two = Metrics(), Metrics()
    one.fences_total.inc()
    assert scrape(one)["stream_sentiment_fences_total"] == 1
    assert scrape(two)["stream_sentiment_fences_total"] == 0


def test_objectives_lie_on_bucket_bounds():
    assert {2, 30} <= set(TABLE["end_to_end_latency_seconds"].buckets)
    assert 5 in TABLE["escalation_latency_seconds"].buckets


def test_a_latency_can_carry_the_trace_that_caused_it():
    metrics = Metrics()
    metrics.end_to_end_latency_seconds.labels("chat.messages").observe(3.0, exemplar={"trace_id": "abc"})
    families = text_string_to_metric_families(generate_openmetrics(metrics.registry).decode())
    exemplars = [
        sample.exemplar.labels for family in families for sample in family.samples if sample.exemplar is not None
    ]
    assert exemplars == [{"trace_id": "abc"}]


def test_reasons_have_the_names_that_the_rooms_give_them():
    assert {str(reason) for reason in labels.Invalid} == {str(reason) for reason in InvalidReason}
    assert {str(reason) for reason in labels.Skipped} == {str(reason) for reason in SkippedReason} | {"not_a_customer"}
    assert {str(reason) for reason in labels.DeadLetter} == {str(reason) for reason in ErrorClass}


def test_the_page_of_the_metrics_is_current():
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert page == render_docs(), "run: python -m stream_sentiment.observability.reference docs/metrics.md"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)")
def test_promtool_accepts_the_whole_exposition():
    metrics = Metrics()
    metrics.declare(Domain.INPUT_TOPIC, ["chat.messages"])
    metrics.consumer_lag_seconds.labels("chat.messages", 0).since(None)
    exposition = generate_latest(metrics.registry)
    checked = subprocess.run(["promtool", "check", "metrics"], input=exposition, capture_output=True, check=False)
    own = [line for line in checked.stderr.decode().splitlines() if line.startswith("stream_sentiment_")]
    assert own == []
