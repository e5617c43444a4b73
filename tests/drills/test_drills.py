"""Drills: the fault is produced on a running worker, the alert's expression becomes true, the remedy of the runbook makes it false.

One system for all of them, as a night on call has one. Windows are in seconds (`stack.compressed`). Afterwards nothing may be lost.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import pytest

from stream_sentiment.store.keys import TopicPartition
from stream_sentiment.store.redis import StateStore
from stream_sentiment.testing.events import chat_message
from stream_sentiment.testing.mock_kafka import ApiKey
from stream_sentiment.testing.worker import WorkerProcess
from tests.deploy.promql import PROMETHEUS, ROOT
from tests.drills.stack import Stack, alert_expression, compressed, events_of, running

pytestmark = [pytest.mark.slow, pytest.mark.redis]

TOPIC_AUTHORIZATION_FAILED = 29
GROUP_AUTHORIZATION_FAILED = 30


def expression(name: str, severity: str | None = None) -> str:
    return compressed(alert_expression(name, severity))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("drill")
    rules = [PROMETHEUS / "rules/recording.yml"]
    with running(directory, rules, appendonly="always") as made:
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.drills.faulty_worker import main; main({str(directory)!r})"
        worker = WorkerProcess(made.settings, directory=directory, name="worker-1", program=("-c", code))
        worker.start()
        made.workers.append(worker)
        made.retarget()
        worker.wait_ready(90)
        made.load.start()
        made.until_caught_up()
        yield made


@pytest.fixture(autouse=True)
def quiet(stack: Stack) -> Iterator[None]:
    """Each drill begins and ends with a system that keeps up."""
    stack.until_caught_up()
    yield
    stack.until_caught_up()
    assert stack.workers[0].running


def test_redis_killed_and_started_again(stack: Stack):
    query = expression("RedisErrors")
    assert stack.prometheus.query(query) == []
    stack.redis.kill()
    stack.until_true(query)
    stack.until(lambda: stack.workers[0].get("/readyz")[0] == 503, 10, "not ready")
    assert stack.workers[0].get("/livez")[0] == 200
    stack.until_true('stream_sentiment_circuit_state{dependency="redis"} == 2')
    stack.redis.restart()
    stack.until_false(query)
    stack.until(lambda: stack.workers[0].get("/readyz")[0] == 200, 10, "ready again")


def test_redis_that_does_not_answer_stalls_the_consumer_and_lag_grows(stack: Stack):
    stalled, lag = expression("ConsumerStalled"), expression("LagSecondsHigh", "ticket")
    stack.redis.pause()
    stack.until_true(stalled)
    stack.until_true(lag)
    stack.redis.resume()
    stack.until_false(stalled)
    stack.until_false(lag)


def test_redis_out_of_memory(stack: Stack):
    query = expression("RedisOOM")
    with stack.redis.client() as client:
        client.config_set("maxmemory", "1mb")
        stack.until_true(query)
        client.config_set("maxmemory", "256mb")
    stack.until_false(query)


def test_redis_turned_into_a_replica(stack: Stack):
    query = expression("RedisReadOnly")
    with stack.redis.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        stack.until_true(query)
        client.execute_command("REPLICAOF", "NO", "ONE")
    stack.until_false(query)


def test_redis_that_lost_writes(stack: Stack):
    query = expression("StateRegression")
    key = f"ss:{{{stack.settings['kafka.group_id']}:chat.messages:0}}:meta"
    time.sleep(1.5)  # a commit of the watermark has to be on record
    with stack.redis.client() as client:
        client.hincrby(key, "wm", -50)
    stack.until_true(query)
    stack.until_false(query)


def test_another_owner_takes_a_partition_again_and_again(stack: Stack):
    query = expression("FencingRepeats").replace("> 10", "> 2")
    thief = StateStore(stack.redis.url, group=stack.settings["kafka.group_id"], state_ttl_ms=60_000)
    for _ in range(12):
        thief.acquire([(TopicPartition("chat.messages", 1), str(uuid.uuid4()))], member="thief")
        time.sleep(0.4)
        if stack.prometheus.query(query):
            break
    thief.close()
    stack.until_true(query)
    stack.until_false(query)


def test_a_flood_of_broken_records(stack: Stack):
    ticket, page = expression("DlqRatio", "ticket"), expression("DlqRatio", "page")
    stack.load.bad_share = 0.5
    stack.until_true(page.replace("stream_sentiment:dead_letter:ratio_rate10m", dead_letter_ratio()))
    stack.load.bad_share = 0.0
    stack.until_false(ticket.replace("stream_sentiment:dead_letter:ratio_rate10m", dead_letter_ratio()))


def dead_letter_ratio() -> str:
    """The recorded series with its window in seconds."""
    import yaml

    groups = yaml.safe_load((PROMETHEUS / "rules/recording.yml").read_text())["groups"]
    (rule,) = [r for g in groups for r in g["rules"] if r["record"] == "stream_sentiment:dead_letter:ratio_rate10m"]
    return f"({compressed(rule['expr'])})"


def test_the_dead_letter_topic_refuses_records(stack: Stack):
    query = expression("DlqWriteFailing")
    stack.refuse("sentiment.dlq", TOPIC_AUTHORIZATION_FAILED, 3)
    stack.load.send_bytes(b"{broken")
    stack.until_true(query)
    stack.until_false(query)
    stack.until(lambda: stack.value("stream_sentiment_outbox_entries") == 0, 60, "empty outbox")


def test_the_escalation_topic_refuses_records(stack: Stack):
    stuck, errors = expression("OutboxStuck"), expression("ProducerErrors")
    stack.refuse("escalation.events", TOPIC_AUTHORIZATION_FAILED, 40)
    stack.until_true(errors)
    stack.until_true(stuck)
    stack.until_false(stuck)
    stack.until_false(errors)
    stack.until(lambda: stack.value("stream_sentiment_outbox_entries") < 10, 60, "outbox that empties")


def test_commits_are_refused(stack: Stack):
    query = expression("CommitFailing")
    stack.kafka.push_errors(ApiKey.OFFSET_COMMIT, [GROUP_AUTHORIZATION_FAILED] * 12)
    stack.until_true(query)
    stack.kafka.clear_errors(ApiKey.OFFSET_COMMIT)
    stack.until_false(query)


def test_a_producer_with_the_wrong_key(stack: Stack):
    query = expression("KeyMismatch")
    for number in range(20):
        stack.load.send(chat_message(conversation="wrong-key", message=str(number), at_ms=now_ms()), key=b"other")
        time.sleep(0.05)
    stack.until_true(query)
    stack.until_false(query)


def test_a_producer_whose_clock_is_an_hour_ahead(stack: Stack):
    query = expression("ClockSkew")
    for number in range(60):
        stack.load.send(chat_message(conversation="future", message=str(number), at_ms=now_ms() + 3_600_000))
        time.sleep(0.02)
    stack.until_true(query)
    stack.until_false(query)


def test_a_model_that_runs_out_of_memory_for_more_than_one_message(stack: Stack):
    fallback, errors = expression("InferenceFallback"), expression("InferenceErrors")
    (stack.directory / "fail").touch()
    stack.until_true(fallback)
    stack.until_true(errors)
    (stack.directory / "fail").unlink()
    stack.until_false(fallback)
    stack.until_false(errors)


def test_a_model_that_hangs_fails_liveness_and_leaves_the_stacks_in_the_log(stack: Stack):
    query = expression("WorkerStuck")
    (stack.directory / "sleep").touch()
    stack.until_true(expression("ConsumerStalled"))
    (stack.directory / "sleep").unlink()
    stack.until_caught_up()
    assert stack.prometheus.query(query) == []  # the apply thread beats while it waits for the model


def test_the_last_worker_leaves_and_comes_back(stack: Stack):
    gone, down = expression("NoConsumers"), expression("MetricsEndpointDown")
    worker = stack.workers[0]
    worker.sigterm()
    assert worker.wait_exit(60) == 0
    stack.until_true(gone)
    stack.until_true(down)
    worker.start()
    worker.wait_ready(90)
    stack.until_false(gone)
    stack.until_false(down)


def test_at_the_end_every_event_has_one_outcome_and_nothing_waits(stack: Stack):
    stack.load.stop()
    stack.until_caught_up()
    stack.until(lambda: stack.value("stream_sentiment_outbox_entries") == 0, 60, "empty outbox")
    errors = [
        line for line in events_of(stack.workers[0].log_text()) if line["event"] in {"thread_died", "stage_failed"}
    ]
    assert errors == []


def now_ms() -> int:
    return int(time.time() * 1000)
