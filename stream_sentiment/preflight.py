"""What `stream-sentiment check` looks at: everything a worker needs, asked without being a worker.

In: settings. Out: findings in the order of the road, each with its remedy. Joins no group, reads no record. Blocks on each service for
its time-out; raises nothing: a service that does not answer is a finding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from confluent_kafka import KafkaError, KafkaException, Producer, TopicCollection
from confluent_kafka.admin import AclOperation, AdminClient, ClusterMetadata

from stream_sentiment.errors import ServiceUnavailable, StreamSentimentError
from stream_sentiment.kafka.clients import common_config, first_contact
from stream_sentiment.observability.logs import kafka_logger
from stream_sentiment.settings import Settings, redact_url


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `unavailable` tells a service that does not answer from one that says no."""

    level: Level
    subject: str
    message: str
    remedy: str = ""
    unavailable: bool = False


def inspect(settings: Settings, timeout: float) -> list[Finding]:
    """All findings. `timeout` in seconds, for each service."""
    findings: list[Finding] = []
    for look in (_rules, _model, _kafka, _redis):
        try:
            findings += look(settings, timeout)
        except ServiceUnavailable as error:
            # Kafka's error names its own remedy.
            remedy = "is it running, and is STREAM_SENTIMENT_REDIS__URL right?" if look is _redis else ""
            findings.append(Finding(Level.FAIL, _subject(look), str(error), remedy, unavailable=True))
        except StreamSentimentError as error:
            findings.append(Finding(Level.FAIL, _subject(look), str(error)))
    return findings


def _subject(look: Callable[..., object]) -> str:
    return look.__name__.strip("_")


def _rules(settings: Settings, _timeout: float) -> Iterator[Finding]:
    from stream_sentiment.escalation.rules import load_rules

    rules = load_rules(settings.rules.path)
    yield Finding(Level.OK, "rules", f"{len(rules.default.rules)} rules, version {rules.version}")


def _model(settings: Settings, _timeout: float) -> Iterator[Finding]:
    from stream_sentiment.scoring.corrections import Corrector
    from stream_sentiment.worker import load_scorer

    started = time.monotonic()
    scorer = load_scorer(settings)
    scorer.score(["你好", "hello"])
    info = scorer.info
    provider = getattr(scorer, "provider", "none")
    yield Finding(
        Level.OK,
        "model",
        f"{info.name} {info.version} ({info.precision}) on {provider}, verified and loaded in "
        f"{time.monotonic() - started:.1f} s",
    )
    corrector = Corrector.of(settings.corrections, info)
    yield Finding(Level.OK, "corrections", f"{', '.join(corrector.rule_ids) or 'none on'}; version {corrector.version}")
    if settings.model.stub:
        yield Finding(
            Level.WARN, "model", "model.stub is set: scores mean nothing", "unset STREAM_SENTIMENT_MODEL__STUB"
        )


def _kafka(settings: Settings, timeout: float) -> Iterator[Finding]:
    kafka = settings.kafka
    producer = Producer(common_config(kafka, kafka_logger("check")))
    metadata = first_contact(producer, kafka.bootstrap_servers, timeout)
    yield Finding(Level.OK, "kafka", f"{kafka.bootstrap_servers}: {len(metadata.brokers)} brokers")
    if kafka.security_protocol.startswith("SASL") and not kafka.security_protocol.endswith("SSL"):
        yield Finding(Level.WARN, "kafka", "SASL without TLS: the password can be read on the wire", "use SASL_SSL")
    yield from _topics(settings, metadata)
    yield from _permissions(settings, metadata, timeout)
    yield from _group(settings, timeout)


def _topics(settings: Settings, metadata: ClusterMetadata) -> Iterator[Finding]:
    topics = settings.topics
    outputs = [topics.scored, topics.conversation_state, topics.escalations, topics.dead_letters]
    for name in [*topics.inputs(), *outputs]:
        topic = metadata.topics.get(name)
        if topic is None or (topic.error is not None and topic.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART):
            yield Finding(Level.FAIL, "topic", f"{name} does not exist", "stream-sentiment topics create")
        elif topic.error is not None:
            yield Finding(
                Level.FAIL,
                "topic",
                f"{name}: {topic.error.str()}",
                "grant DESCRIBE, READ on inputs and WRITE on outputs",
            )
        else:
            replicas = min((len(partition.replicas) for partition in topic.partitions.values()), default=0)
            yield Finding(Level.OK, "topic", f"{name}: {len(topic.partitions)} partitions, {replicas} replicas")
            if replicas < 2 and len(metadata.brokers) > 1:
                yield Finding(
                    Level.WARN,
                    "topic",
                    f"{name} has one replica of each partition: a lost disk loses events",
                    "raise its replication factor to 3",
                )


def _permissions(settings: Settings, metadata: ClusterMetadata, timeout: float) -> Iterator[Finding]:
    """READ on inputs and WRITE on outputs, where the broker says what we may do."""
    topics = settings.topics
    wanted = dict.fromkeys(topics.inputs(), AclOperation.READ) | dict.fromkeys(
        (topics.scored, topics.conversation_state, topics.escalations, topics.dead_letters), AclOperation.WRITE
    )
    present = [name for name in wanted if name in metadata.topics and metadata.topics[name].error is None]
    if not present:
        return
    admin = AdminClient(common_config(settings.kafka), logger=kafka_logger("check"))
    futures = admin.describe_topics(
        TopicCollection(present), include_authorized_operations=True, request_timeout=timeout
    )
    for name, future in futures.items():
        try:
            operations = future.result().authorized_operations or []
        except KafkaException as error:
            if error.args[0].code() not in (KafkaError._UNSUPPORTED_FEATURE, KafkaError._TIMED_OUT):  # noqa: SLF001
                yield Finding(Level.WARN, "topic", f"{name}: permissions unknown: {error.args[0].str()}")
            continue  # librdkafka's mock cluster describes no topics
        if operations and wanted[name] not in operations and AclOperation.ALL not in operations:
            verb = "READ" if wanted[name] == AclOperation.READ else "WRITE"
            yield Finding(
                Level.FAIL, "topic", f"no {verb} permission on {name}", f"add an ACL: allow {verb} on topic {name}"
            )


def _group(settings: Settings, timeout: float) -> Iterator[Finding]:
    """Permissions on the inputs and on the group, asked in the ways a worker asks."""
    kafka = settings.kafka
    admin = AdminClient(common_config(kafka), logger=kafka_logger("check"))
    try:
        future = admin.describe_consumer_groups(
            [kafka.group_id], include_authorized_operations=True, request_timeout=timeout
        )[kafka.group_id]
        operations = future.result().authorized_operations or []
        if operations and AclOperation.READ not in operations:
            yield Finding(
                Level.FAIL,
                "group",
                f"no READ permission on group {kafka.group_id}",
                "add an ACL for READ on this group",
            )
        else:
            yield Finding(Level.OK, "group", kafka.group_id)
    except KafkaException as error:
        cause = error.args[0]
        if cause.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            yield Finding(
                Level.FAIL,
                "group",
                f"no permission on group {kafka.group_id}: {cause.str()}",
                "add ACLs for DESCRIBE and READ on this group",
            )
        else:
            # librdkafka's mock cluster cannot describe groups; a real broker that cannot has been found out above.
            yield Finding(Level.WARN, "group", f"{kafka.group_id} could not be described: {cause.str()}")


def _redis(settings: Settings, timeout: float) -> Iterator[Finding]:
    from stream_sentiment.worker import open_store

    store = open_store(settings, state_ttl_ms=1000)
    url = redact_url(settings.redis.url.get_secret_value())
    try:
        reports = store.describe(deadline=time.monotonic() + timeout)
    finally:
        store.close()
    for report in reports:
        message = f"{url}: version {report.version or 'unknown'}, {report.policy or 'policy unknown'}"
        if report.append_only and report.load_truncated is None:
            message += ", aof-load-truncated unknown (this user may not run CONFIG GET; it should be no)"
        yield Finding(Level.OK, "redis", message)
        for found in report.findings:
            level = Level.FAIL if found.severity == "problem" else Level.WARN
            yield Finding(level, "redis", found.message, found.remedy)
