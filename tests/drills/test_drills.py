"""Drills: the fault is produced on a running worker, the alert's expression becomes true, the remedy of the runbook makes it false.

One system for all of them, as a night on call has one. Windows are in seconds (`stack.compressed`). Afterwards nothing may be lost.
"""

from __future__ import annotations

import threading
import time
import uuid

import pytest

from stream_sentiment.canary import publish
from stream_sentiment.settings import load_settings
from stream_sentiment.store.keys import TopicPartition
from stream_sentiment.store.redis import StateStore
from stream_sentiment.testing.events import chat_message
from stream_sentiment.testing.mock_kafka import ApiKey
from tests.drills.stack import Stack, alert_query, events_of

pytestmark = [pytest.mark.slow, pytest.mark.redis, pytest.mark.usefixtures("quiet")]

TOPIC_AUTHORIZATION_FAILED = 29
GROUP_AUTHORIZATION_FAILED = 30


def test_redis_killed_and_started_again(stack: Stack):
    stack.until_false("RedisErrors")
    stack.redis.kill()
    stack.note("Redis killed")
    stack.until_true("RedisErrors")
    stack.until(lambda: stack.workers[0].get("/readyz")[0] == 503, 10, "not ready")
    assert stack.workers[0].get("/livez")[0] == 200
    stack.note("/readyz 503, /livez 200")
    waits = 'stream_sentiment_circuit_state{dependency="redis"} == 2'
    stack.until_true("the worker waits for Redis", expression=waits)
    stack.redis.restart()
    stack.note("Redis started")
    stack.until_false("RedisErrors")
    stack.until(lambda: stack.workers[0].get("/readyz")[0] == 200, 30, "ready again")
    stack.note("/readyz 200")


def test_redis_that_does_not_answer_stalls_the_consumer_and_lag_grows(stack: Stack):
    stack.redis.pause()
    stack.note("Redis stopped (SIGSTOP)")
    stack.until_true("ConsumerStalled")
    stack.until_true("LagSecondsHigh:ticket")
    stack.redis.resume()
    stack.note("Redis continued (SIGCONT)")
    stack.until_false("ConsumerStalled")
    stack.until_false("LagSecondsHigh:ticket")


def test_redis_out_of_memory(stack: Stack):
    with stack.redis.client() as client:
        client.config_set("maxmemory", "1mb")
        stack.note("maxmemory 1mb")
        stack.until_true("RedisOOM")
        client.config_set("maxmemory", "256mb")
        stack.note("maxmemory 256mb")
    stack.until_false("RedisOOM")


def test_redis_turned_into_a_replica(stack: Stack):
    with stack.redis.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        stack.note("REPLICAOF an address where nobody is")
        stack.until_true("RedisReadOnly")
        client.execute_command("REPLICAOF", "NO", "ONE")
        stack.note("REPLICAOF NO ONE")
    stack.until_false("RedisReadOnly")


def test_redis_that_lost_writes(stack: Stack):
    key = f"ss:{{{stack.settings['kafka.group_id']}:chat.messages:0}}:meta"
    time.sleep(1.5)  # a commit of the watermark has to be on record
    with stack.redis.client() as client:
        client.hincrby(key, "wm", -50)
    stack.note("watermark of chat.messages[0] set back by 50")
    stack.until_true("StateRegression")
    stack.until_false("StateRegression")


def test_another_owner_takes_a_partition_again_and_again(stack: Stack):
    query = alert_query("FencingRepeats").replace("> 10", "> 2")
    thief = StateStore(stack.redis.url, group=stack.settings["kafka.group_id"], state_ttl_ms=60_000)
    for _ in range(20):
        thief.acquire([(TopicPartition("chat.messages", 1), str(uuid.uuid4()))], member="thief")
        time.sleep(0.4)
        if stack.prometheus.query(query):
            break
    thief.close()
    stack.until_true("FencingRepeats", expression=query)
    stack.note("the other owner is gone")
    stack.until_false("FencingRepeats", expression=query)


def test_a_flood_of_broken_records(stack: Stack):
    stack.load.bad_share = 0.5
    stack.note("half of the records are broken")
    stack.until_true("DlqRatio:ticket")
    stack.until_true("DlqRatio:page")
    stack.load.bad_share = 0.0
    stack.note("the producer is repaired")
    stack.until_false("DlqRatio:page")
    stack.until_false("DlqRatio:ticket")


def test_the_dead_letter_topic_refuses_records(stack: Stack):
    stack.refuse("sentiment.dlq", TOPIC_AUTHORIZATION_FAILED, 3)
    stack.load.send_bytes(b"{broken")
    stack.note("a broken record, and a topic that refuses three times")
    stack.until_true("DlqWriteFailing")
    stack.until_false("DlqWriteFailing")
    stack.until(lambda: stack.value("stream_sentiment_outbox_entries") < 10, 60, "outbox that empties")


def test_the_escalation_topic_refuses_records(stack: Stack):
    stack.refuse("escalation.events", TOPIC_AUTHORIZATION_FAILED, 40)
    stack.note("escalation.events refuses 40 times")
    stack.until_true("ProducerErrors")
    stack.until_true("OutboxStuck")
    stack.until_false("OutboxStuck", 180)
    stack.until_false("ProducerErrors", 180)
    stack.until(lambda: stack.value("stream_sentiment_outbox_entries") < 10, 60, "outbox that empties")


def test_commits_are_refused(stack: Stack):
    stack.kafka.push_errors(ApiKey.OFFSET_COMMIT, [GROUP_AUTHORIZATION_FAILED] * 12)
    stack.note("the coordinator refuses commits")
    stack.until_true("CommitFailing")
    stack.kafka.clear_errors(ApiKey.OFFSET_COMMIT)
    stack.note("it accepts them again")
    stack.until_false("CommitFailing")


def test_a_producer_with_the_wrong_key(stack: Stack):
    for number in range(20):
        stack.load.send(chat_message(conversation="wrong-key", message=str(number), at_ms=now_ms()), key=b"other")
        time.sleep(0.05)
    stack.note("20 records under another key")
    stack.until_true("KeyMismatch")
    stack.until_false("KeyMismatch")


def test_a_producer_whose_clock_is_an_hour_ahead(stack: Stack):
    for number in range(60):
        stack.load.send(chat_message(conversation="future", message=str(number), at_ms=now_ms() + 3_600_000))
        time.sleep(0.02)
    stack.note("60 events of the next hour")
    stack.until_true("ClockSkew")
    stack.until_false("ClockSkew")


def test_a_model_that_runs_out_of_memory_for_more_than_one_message(stack: Stack):
    (stack.directory / "fail").touch()
    stack.note("the model fails for batches of more than one")
    stack.until_true("InferenceFallback")
    stack.until_true("GpuOom")
    (stack.directory / "fail").unlink()
    stack.note("it takes batches again")
    stack.until_false("InferenceFallback")
    stack.until_false("GpuOom")


def test_a_model_that_fails_otherwise(stack: Stack):
    (stack.directory / "break").touch()
    stack.note("the model fails with a CUDA error")
    stack.until_true("InferenceErrors")
    (stack.directory / "break").unlink()
    stack.note("it works again")
    stack.until_false("InferenceErrors")


def test_a_model_that_hangs(stack: Stack):
    (stack.directory / "sleep").touch()
    stack.note("the model hangs")
    stack.until_true("ConsumerStalled")
    (stack.directory / "sleep").unlink()
    stack.note("the model goes on")
    stack.until_false("ConsumerStalled")


def test_the_canary_stops_and_sings_again(stack: Stack):
    query = alert_query("CanaryMissing").replace("> 120", "> 6")
    settings = load_settings(kafka={"bootstrap_servers": stack.kafka.bootstrap_servers})
    assert stack.prometheus.query(query) == []
    for what in ("the canary sings", "it sings again"):
        stop = threading.Event()
        singer = threading.Thread(target=publish, args=(settings, 0.5, stop))
        singer.start()
        stack.note(what)
        newest = 'time() - stream_sentiment_heartbeat_timestamp_seconds{stage="applied"} < 5'
        stack.until_true("a fresh canary has been applied", expression=newest)
        assert stack.prometheus.query(query) == []
        stop.set()
        singer.join(10)
        if what == "the canary sings":
            stack.note("it stops")
            stack.until_true("CanaryMissing", expression=query)
    assert stack.value("stream_sentiment_canary_roundtrip_seconds_count") > 4
    assert stack.value('stream_sentiment_events_consumed_total{kind="heartbeat"}') > 4


def test_the_last_worker_leaves_and_comes_back(stack: Stack):
    worker = stack.workers[0]
    worker.sigterm()
    assert worker.wait_exit(60) == 0
    stack.note("SIGTERM: drained, exit status 0")
    stack.until_true("NoConsumers")
    stack.until_true("MetricsEndpointDown")
    worker.start()
    worker.wait_ready(90)
    stack.note("started, ready")
    stack.until_false("NoConsumers")
    stack.until_false("MetricsEndpointDown")


def test_at_the_end_nothing_waits_and_no_thread_has_died(stack: Stack):
    stack.load.stop()
    stack.until_caught_up()
    stack.until(lambda: stack.value("stream_sentiment_outbox_entries") == 0, 120, "empty outbox")
    lines = events_of(stack.workers[0].log_text())
    assert [line for line in lines if line["event"] in {"thread_died", "stage_failed"}] == []


def now_ms() -> int:
    return int(time.time() * 1000)
