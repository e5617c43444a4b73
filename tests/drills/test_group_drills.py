"""Drills that need a second worker, or hours: the group, the process, drift and the error budgets.

As in test_drills.py the fault is produced on running workers and the shipped expression, compressed, is asked. Thresholds that count
how often something happened in ten minutes or more are lowered where the drill says so.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer

from stream_sentiment.testing.events import chat_message
from stream_sentiment.testing.worker import WorkerProcess
from tests.drills.faulty_worker import POISON
from tests.drills.stack import Stack, alert_query, events_of, recorded_alert_query

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.usefixtures("quiet")]

ASSIGNED = 'sum by (instance) (stream_sentiment_assigned_partitions{topic="chat.messages"}) > 0'


@contextlib.contextmanager
def second_worker(stack: Stack) -> Iterator[WorkerProcess]:
    """A second worker that has taken its share of the partitions; gone again at the end."""
    worker = stack.add_faulty_worker()
    try:
        worker.wait_ready(90)
        stack.until(lambda: len(stack.prometheus.query(ASSIGNED)) == 2, 90, "two workers with partitions")
        stack.note("two workers share the partitions")
        yield worker
    finally:
        stack.remove_worker(worker)


def test_a_worker_dies_and_its_partitions_have_no_owner_until_its_session_ends(stack: Stack):
    with second_worker(stack) as worker:
        assert stack.prometheus.query(alert_query("PartitionsUnassigned")) == []
        worker.sigkill()
        stack.note("SIGKILL to one of them")
        stack.until_true("PartitionsUnassigned")
        stack.until_false("PartitionsUnassigned")


def test_a_model_that_is_slower_than_the_input_makes_the_backlog_grow(stack: Stack):
    query = recorded_alert_query("LagGrowing")
    assert stack.prometheus.query(query) == []
    stack.fault("slow", "0.4")
    stack.note("the model takes 0.4 s a message, less than half of what comes in")
    for number in range(400):
        stack.load.send(chat_message(conversation=f"campaign-{number}", message="1", at_ms=now_ms()))
    stack.note("400 messages at once on top of it")
    stack.until_true("LagGrowing", expression=query)
    stack.mend("slow")
    stack.note("the model is as fast as before")
    stack.until_false("LagGrowing", expression=query)


def test_a_neighbour_that_joins_and_leaves_makes_everybody_rebalance(stack: Stack):
    # More than 1 in 20 s instead of more than 4 in 10 minutes.
    query = alert_query("RebalanceStorm").replace("[10s]", "[20s]").replace("> 4", "> 1")
    stack.until_false("RebalanceStorm", expression=query)
    for _ in range(12):
        neighbour = Consumer(
            {
                "bootstrap.servers": stack.kafka.bootstrap_servers,
                "group.id": stack.settings["kafka.group_id"],
                "group.protocol": "consumer",
                "enable.auto.commit": False,
            }
        )
        neighbour.subscribe(["chat.messages"])
        deadline = time.monotonic() + 12
        while not neighbour.assignment() and time.monotonic() < deadline:
            neighbour.poll(0.1)
        neighbour.close()
        if stack.prometheus.query(query):
            break
    stack.until_true("RebalanceStorm", 20, expression=query)
    stack.note("the neighbour stays away")
    stack.until_false("RebalanceStorm", expression=query)


def test_a_worker_that_is_killed_again_and_again(stack: Stack):
    # More than 2 in 20 s instead of more than 3 in 15 minutes.
    query = alert_query("WorkerCrashLoop").replace("[15s]", "[20s]").replace("> 3", "> 2")
    with second_worker(stack) as worker:
        assert stack.prometheus.query(query) == []
        for number in range(1, 9):
            worker.sigkill()
            worker.start()
            stack.until(lambda: worker.get("/livez")[0] == 200, 60, "a worker that answers")
            time.sleep(0.6)  # one scrape
            if stack.prometheus.query(query):
                stack.note(f"killed {number} times")
                break
        stack.until_true("WorkerCrashLoop", 5, expression=query)
        worker.wait_ready(90)
        stack.note("it runs")
        stack.until_false("WorkerCrashLoop", expression=query)


def test_a_loop_that_hangs_is_told_with_the_stacks_of_all_threads(stack: Stack):
    worker = stack.workers[0]
    stack.fault("stuck")
    stack.note("the tokenizer hangs")
    stack.until_true("WorkerStuck")
    assert worker.get("/livez")[0] == 503
    stack.note("/livez 503")
    (stuck,) = [line for line in events_of(worker.log_text()) if line["event"] == "loop_stuck"]
    assert set(stuck["loops"]) == {"score"}
    assert "faulty_worker.py" in worker.log_text()  # the stack says where it hangs
    stack.note("the log says loop_stuck, score, and has the stacks")
    stack.mend("stuck")
    stack.note("the tokenizer goes on")
    stack.until(lambda: worker.get("/livez")[0] == 200, 30, "alive")
    stack.note("/livez 200")
    stack.until_false("WorkerStuck")


def test_a_drain_that_reaches_its_deadline(stack: Stack):
    stack.fault("sleep")
    stack.note("the model hangs")
    stack.until(lambda: stack.value("stream_sentiment_inflight_events") > 0, 30, "something in flight")
    with second_worker(stack):
        stack.until_true("DrainIncomplete")
        stack.mend("sleep")
        stack.note("the model goes on")
        stack.until_false("DrainIncomplete")


@pytest.mark.parametrize("against", ["reference", "last_week"])
def test_a_model_that_calls_every_message_angry(stack: Stack, against: str):
    # 20 and 50 messages instead of 100 and 500.
    query = recorded_alert_query(f"PredictionDrift:{against}").replace("> 100", "> 20").replace("> 500", "> 50")
    stack.until_false(f"PredictionDrift:{against}", expression=query)
    stack.fault("angry")
    stack.note("a bad model: every message is angry")
    stack.until_true(f"PredictionDrift:{against}", expression=query)
    stack.mend("angry")
    stack.note("the right model")
    stack.until_false(f"PredictionDrift:{against}", expression=query)


def test_a_slow_model_burns_the_budget_of_freshness_fast(stack: Stack):
    query = f'({recorded_alert_query("ErrorBudgetBurnFast")}) and on (slo) slo:error_budget:ratio{{slo="freshness"}}'
    stack.until_false("ErrorBudgetBurnFast, freshness", expression=query)
    stack.fault("delay", "2.5")
    stack.note("each model run takes 2.5 s: no event is fresh within 2 s")
    stack.until_true("ErrorBudgetBurnFast, freshness", expression=query)
    stack.mend("delay")
    stack.note("the model is as fast as before")
    stack.until_false("ErrorBudgetBurnFast, freshness", expression=query)


def test_a_poison_message_among_many_burns_the_budget_of_delivery_slowly(stack: Stack):
    budget = 'and on (slo) slo:error_budget:ratio{slo="delivery"}'
    slow, fast = (f"({recorded_alert_query(name)}) {budget}" for name in ("ErrorBudgetBurnSlow", "ErrorBudgetBurnFast"))
    stack.until_false("ErrorBudgetBurnSlow, delivery", expression=slow)
    acknowledged = 'stream_sentiment_dead_letter_total{reason="poison_model", result="ack"}'
    before = stack.value(acknowledged)
    for number in range(500):
        stack.load.send(chat_message(conversation=f"many-{number}", message="1", at_ms=now_ms()))
    stack.load.send(chat_message(f"poison {POISON}", conversation="poison", message="1", at_ms=now_ms()))
    stack.note("501 messages, one of which the model cannot take")
    stack.until(lambda: stack.value(acknowledged) > before, 60, "the dead letter")
    stack.until_true("ErrorBudgetBurnSlow, delivery", expression=slow)
    assert stack.prometheus.query(fast) == []
    stack.until_false("ErrorBudgetBurnSlow, delivery", expression=slow)


def now_ms() -> int:
    return int(time.time() * 1000)
