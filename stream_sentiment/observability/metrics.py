"""Every metric, once: name, type, labels, help, buckets. The documentation page, the rules and the dashboards
are checked against it.

In: increments and observations from the worker's threads (0.4 to 0.9 µs each on a kept child). Out: a
prometheus_client registry for `/metrics`. Nothing blocks. One `Metrics` per worker process; importing this
module registers nothing.

Conversation, message and user ids are never label values; `partition` is a label only of position, lag and
age.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics

from stream_sentiment.clock import Clock, SystemClock
from stream_sentiment.observability import labels as values
from stream_sentiment.observability.definitions import (
    Definition,
    Domain,
    Label,
    age,
    ages,
    counter,
    counters,
    declare,
    gauge,
    gauges,
    histogram,
    histograms,
    state_times,
)

# Seconds. The bounds of the service level objectives are among them: 2 and 30 (freshness), 5 (escalation).
LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900)
# Seconds of one stage for one batch; 0.5 ms is below the shortest Redis round trip worth looking at.
STAGE = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# Events of a micro-batch: 1 to 1024 by powers of two.
BATCH = tuple(float(2**n) for n in range(11))
# Tokens of a micro-batch, padding included: 16 to 131072 by powers of two.
BATCH_TOKENS = tuple(float(2**n) for n in range(4, 18))
# Tokens of one message: 8 to 512 by powers of two.
TOKENS = tuple(float(2**n) for n in range(3, 10))
TENTHS = tuple(n / 10 for n in range(1, 11))
TWENTIETHS = tuple(n / 20 for n in range(1, 21))

TOPIC = Label("topic", Domain.INPUT_TOPIC)
OUTPUT_TOPIC = Label("topic", Domain.OUTPUT_TOPIC)
PARTITION = Label("partition", Domain.PARTITION)


def _text(*names: str) -> tuple[Label, ...]:
    return tuple(Label(name, Domain.TEXT) for name in names)


class Metrics:
    """The live metrics of one worker.

    registry: where they go (None: a registry of their own, with the process's CPU, memory and start time).
    clock: for the gauges that are ages.
    """

    # What runs
    build_info = gauges(
        "1, with the versions and the model in the labels.",
        *_text("version", "commit", "model", "model_sha256_12", "provider", "librdkafka", "onnxruntime"),
    )
    model_ready = gauge("1 when the model is loaded, verified and warmed up.")
    model_load_seconds = gauge("Seconds that verifying, loading and warming up the model took.")
    # Events in
    events_consumed_total = counters("Records read from Kafka.", TOPIC, Label("kind", values.EventKind))
    events_total = counters(
        "Records by how they ended; the sum over outcome equals the records consumed. Heartbeats count as skipped.",
        TOPIC,
        Label("outcome", values.Outcome),
    )
    events_invalid_total = counters("Records that are no event, by what is wrong.", Label("reason", values.Invalid))
    events_skipped_total = counters(
        "Valid events that carry nothing to score, by why: `skipped` in events_total, or folded without a score.",
        Label("reason", values.Skipped),
    )
    events_truncated_total = counters("Texts that were cut before scoring.", Label("by", values.TruncatedBy))
    consumed_bytes_total = counters("Bytes of record values read from Kafka.", TOPIC)
    key_mismatch_total = counters(
        "Records whose Kafka key is not tenant_id|conversation_id: the order within the conversation is "
        "not guaranteed. Fix the producer's key.",
        TOPIC,
    )
    clock_skew_events_total = counters(
        "Events whose time is outside the tolerance around the broker's; latencies are clamped to 0 or more.",
        Label("direction", values.SkewDirection),
    )

    # Latency
    end_to_end_latency_seconds = histograms(
        "Kafka timestamp of the record to its state committed in Redis.", LATENCY, TOPIC
    )
    escalation_latency_seconds = histogram(
        "Timestamp of the triggering event to the broker's acknowledgement of the escalation.", LATENCY
    )
    stage_duration_seconds = histograms(
        "Duration of one stage for one batch; the largest is the one to enlarge.",
        STAGE,
        Label("stage", values.Stage),
    )
    consumer_time_seconds_total = state_times(
        "Where the poll thread spends its time; the rates sum to 1. Much backpressure: scoring or Redis is the limit.",
        values.ConsumerState,
    )
    thread_time_seconds_total = state_times(
        "Where the score and the apply thread spend their time; the rates of each thread sum to 1.",
        values.ThreadState,
        values.PipelineThread,
    )

    # Batching and buffers
    batch_events = histogram("Messages in a micro-batch.", BATCH)
    batch_tokens = histogram("Tokens in a micro-batch, padding included.", BATCH_TOKENS)
    batch_padding_ratio = histogram("Share of a micro-batch's tokens that is padding.", TENTHS)
    batch_flush_total = counters("Why arrival windows were closed.", Label("trigger", values.FlushTrigger))
    input_tokens = histogram("Tokens of one message after truncation.", TOKENS)
    inflight_events = gauge("Events read and not yet applied.")
    queue_events = gauge("Events waiting between the poll thread and scoring.")
    queue_bytes = gauge("Bytes of record values waiting between the poll thread and scoring.")
    paused_partitions = gauge("Partitions paused because the buffers are full.")

    # Model
    inference_errors_total = counters("Failed model runs.", Label("kind", values.InferenceError))
    inference_fallback_total = counters(
        "Model runs repeated in a weaker form: a smaller batch or another provider.", *_text("from", "to")
    )
    predictions_total = counters("Customer messages scored, by polarity label.", Label("label", Domain.LABEL))
    emotion_predictions_total = counters("Customer messages scored, by emotion label.", Label("label", Domain.LABEL))
    prediction_confidence = histogram("Largest polarity probability per message.", TWENTIETHS)
    low_confidence_total = counter("Messages inside the model's abstain band (`uncertain` in the scored event).")
    corrections_total = counters(
        "Scores that a rule after the model has changed; a rule that speaks much more often than at its measurement has met "
        "texts it was not made for.",
        Label("rule", Domain.CORRECTION),
    )
    prediction_psi = gauges(
        "Population stability index of the last messages (`model.drift_window`) against the manifest's reference; "
        "above 0.2 is a shift. No series before `model.drift_minimum` messages, or without a reference.",
        Label("head", values.PredictionHead),
        Label("distribution", values.Distribution),
        Label("language", Domain.LANGUAGE),
    )
    prediction_window_events = gauges(
        "Messages that prediction_psi is computed from.", Label("language", Domain.LANGUAGE)
    )

    # Another model
    model_swap_total = counters(
        "Looks at a changed model bundle, by what became of it.", Label("result", values.SwapResult)
    )
    model_bundle_refused_seconds = age(
        "Time since the model bundle on disk was found to be unusable; the model before it is in force. 0 while it is sound."
    )
    shadow_messages_total = counters(
        "Messages of the shadow model's share. dropped: its queue was full, no window waits for it.",
        Label("result", values.ShadowResult),
    )
    shadow_disagreements_total = counters(
        "Messages on which the shadow model says something else than the one in force; `none` for a signal that one does not give.",
        Label("head", values.ShadowHead),
        Label("live", Domain.LABEL),
        Label("shadow", Domain.LABEL),
    )

    # Rules
    rules_info = gauges("1, with the version of the rules in force in the label.", *_text("version"))
    rules_reload_total = counters(
        "Looks at a changed rule file, by what became of it.", Label("result", values.ReloadResult)
    )
    rules_file_invalid_seconds = age(
        "Time since the rule file was found to be wrong; the rules before it are in force. 0 while it is right."
    )

    # Redis
    redis_op_duration_seconds = histograms(
        "Duration of one pipeline or script call.", STAGE, Label("op", values.RedisOp)
    )
    redis_errors_total = counters("Failed Redis calls.", Label("kind", values.RedisError))
    redis_retries_total = counter("Redis calls sent again.")
    state_updates_total = counters("Events folded into a conversation, by result.", Label("result", values.StateResult))
    state_regressions_total = counter(
        "Watermark in Redis found below the offset committed to Kafka: Redis lost acknowledged writes."
    )
    circuit_state = gauges(
        "0 while the dependency answers, 2 while the pipeline waits for it.", Label("dependency", values.Dependency)
    )

    # Delivery protocol
    watermark_offset = gauges("Next offset to apply, as stored in Redis.", TOPIC, PARTITION)
    fences_total = counter("APPLY refused because another worker has taken the partition.")
    gaps_total = counter("APPLY refused because Redis holds another watermark than this worker expected.")
    already_applied_total = counter("APPLY answered that the batch had been applied: a reply was lost.")
    outbox_entries = gauge("Escalations and dead letters in Redis that Kafka has not acknowledged.")
    outbox_oldest_age_seconds = age("Age of the oldest of them.")
    outbox_redelivered_total = counter(
        "Outbox entries found when a partition was acquired and published (again) with the same id."
    )

    # Timers
    timers_total = counters(
        "Timers that fell due while nobody wrote, by what was found. failed: see `timer_failed` in the log.",
        Label("result", values.TimerResult),
    )

    # Events out
    escalations_total = counters("Escalations opened.", Label("rule", Domain.RULE), Label("severity", values.Severity))
    escalations_suppressed_total = counters(
        "Escalations opened above the storm guard's limit: on the topic, marked as suppressed.",
        Label("rule", Domain.RULE),
    )
    escalation_storms_total = counters(
        "Notices of alert storms, per tenant and input partition.", Label("action", values.EscalationAction)
    )
    escalation_transitions_total = counters("Escalation events by action.", Label("action", values.EscalationAction))
    produce_total = counters(
        "Records of all output topics, by what Kafka said. Scored events and states count as ack once their window is flushed. "
        "Sending a record again counts again.",
        OUTPUT_TOPIC,
        Label("result", values.ProduceResult),
    )
    producer_queue_events = gauge("Records in the producer's queue.")
    dead_letter_total = counters(
        "Dead letters, by error class and delivery.",
        Label("reason", values.DeadLetter),
        Label("result", values.DeadLetterResult),
    )

    # Group membership and position
    assigned_partitions = gauges("Partitions assigned to this worker.", TOPIC)
    topic_partitions = gauges("Partitions that the topic has, as the broker says.", TOPIC)
    rebalances_total = counters("Rebalance callbacks.", Label("kind", values.Rebalance))
    rebalance_duration_seconds = histogram("Revoke to assign, the drain included.", LATENCY)
    commits_total = counters("Offset commits to Kafka.", Label("result", values.CommitResult))
    consumer_lag_events = gauges("High watermark minus the next offset to apply.", TOPIC, PARTITION)
    consumer_lag_seconds = ages("Age of the oldest record not yet applied; 0 without lag.", TOPIC, PARTITION)
    last_progress_timestamp_seconds = gauges(
        "Wall time at which the watermark last advanced, or the partition was assigned.", TOPIC, PARTITION
    )
    heartbeat_timestamp_seconds = gauges(
        "Creation time of the newest canary event seen per stage; 0 until the first.",
        Label("stage", values.HeartbeatStage),
    )
    canary_roundtrip_seconds = histogram("Canary event published to its state committed.", LATENCY)
    broker_up = gauges("1 if librdkafka is connected to the broker.", Label("broker", Domain.BROKER))
    broker_rtt_p99_seconds = gauges(
        "99th percentile of the broker's round trip in the last statistics interval.",
        Label("broker", Domain.BROKER),
    )

    # The process
    ready = gauges("1 if this condition of /readyz holds.", Label("condition", Domain.CONDITION))
    stuck_loops_total = counter("Times that a loop passed its bound; the stacks of all threads went to the log.")
    log_lines_suppressed_total = counters("Log lines dropped by the rate limit.", Label("event", Domain.EVENT))
    shutdown_duration_seconds = gauge("Seconds from SIGTERM to the end of the drain.")
    drain_incomplete_total = counter(
        "Drains that reached their deadline; the next owner redoes the rest, nothing is lost."
    )

    def __init__(self, registry: CollectorRegistry | None = None, *, clock: Clock | None = None) -> None:
        # The `_created` series double every counter and no query here needs them.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.clock = clock or SystemClock()
        if registry is None:
            registry = CollectorRegistry()
            ProcessCollector(registry=registry)
        self.registry = registry
        for definition in TABLE.values():
            self.__dict__[definition.name] = definition.create(registry, self.clock)

    def declare(self, domain: Domain, names: Sequence[str], *, only: Sequence[str] = ()) -> None:
        """Create at 0 the children for label values known from now on.

        domain: what the names are. only: names of the metrics concerned (default: all with a label of this
        domain), because the labels of the polarity head and of the emotion head belong to different metrics.
        """
        for definition in TABLE.values():
            if any(label.values is domain for label in definition.labels) and (not only or definition.name in only):
                declare(self.__dict__[definition.name], definition.labels, {domain: names})

    def drop_partition(self, topic: str, partition: int) -> None:
        """Remove the series of a revoked partition: the new owner reports it now, two reports would double
        the lag.
        """
        for definition in PER_PARTITION:
            self.__dict__[definition.name].remove(topic, partition)


TABLE = MappingProxyType(
    {name: definition for name, definition in vars(Metrics).items() if isinstance(definition, Definition)}
)
"""All definitions by name, in the order above."""

PER_PARTITION: tuple[Definition[Any], ...] = tuple(
    definition for definition in TABLE.values() if "partition" in definition.label_names
)
