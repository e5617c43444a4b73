"""Client configurations, built in one place from the settings.

In: `KafkaSettings`. Out: dictionaries for confluent-kafka, and clients made from them. Nothing here talks to a broker by itself;
`first_contact` does, with a deadline, and raises `ServiceUnavailable` or `ConfigurationError` with the remedy.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import ClusterMetadata

from stream_sentiment.errors import ConfigurationError, ServiceUnavailable
from stream_sentiment.settings import GroupProtocol, KafkaSettings

#: The default of 1000 ms stalls a partition for a second whenever the local queue is full (librdkafka #3662).
FETCH_QUEUE_BACKOFF_MS = 50
#: Local queue bounds. The defaults (100,000 messages, 64 MiB a partition set) let a backlog fill the memory.
QUEUED_MIN_MESSAGES = 5_000
QUEUED_MAX_KBYTES = 32_768
#: One fetch of one partition. A single larger record still gets through: the broker sends at least one.
PARTITION_FETCH_BYTES = 1 << 20

#: Refused credentials and missing permissions: waiting does not help.
AUTHENTICATION_ERRORS = frozenset(
    {
        KafkaError._AUTHENTICATION,  # noqa: SLF001 (librdkafka's own error names start with an underscore)
        KafkaError._SSL,  # noqa: SLF001
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)


def produce_failure(error: KafkaError) -> str:
    """How `produce_total` counts a record that was not delivered."""
    return "timeout" if error.code() == KafkaError._MSG_TIMED_OUT else "error"  # noqa: SLF001


#: The last refusal by bootstrap servers. librdkafka tells a client's error callback why it was refused, and its caller only that
#: nobody answered; `first_contact` brings the two together.
_refusals: dict[str, KafkaError] = {}


def _note_refusals(bootstrap_servers: str) -> Callable[[KafkaError], None]:
    def note(error: KafkaError) -> None:
        if error.code() in AUTHENTICATION_ERRORS:
            _refusals[bootstrap_servers] = error

    return note


def _milliseconds(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)


def common_config(settings: KafkaSettings, logger: Any = None) -> dict[str, Any]:
    """What every client shares: addresses, security, and the user's extra settings."""
    config: dict[str, Any] = {
        **settings.extra,
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": settings.client_id,
        "security.protocol": settings.security_protocol,
        "topic.metadata.refresh.interval.ms": 30_000,
        # Client metrics would be pushed to the broker by default (KIP-714); ours are scraped.
        "enable.metrics.push": False,
        "error_cb": _note_refusals(settings.bootstrap_servers),
    }
    optional: dict[str, object | None] = {
        "sasl.mechanism": settings.sasl_mechanism,
        "sasl.username": settings.sasl_username,
        "sasl.password": settings.sasl_password.get_secret_value() if settings.sasl_password else None,
        "ssl.ca.location": settings.ssl_ca_location,
        "ssl.certificate.location": settings.ssl_certificate_location,
        "ssl.key.location": settings.ssl_key_location,
        "ssl.key.password": settings.ssl_key_password.get_secret_value() if settings.ssl_key_password else None,
    }
    config.update({name: str(value) for name, value in optional.items() if value is not None})
    if logger is not None:
        config["logger"] = logger
    return config


def consumer_config(settings: KafkaSettings, protocol: GroupProtocol, logger: Any = None) -> dict[str, Any]:
    """Settings of the worker's consumer under one group protocol (`consumer` or `classic`)."""
    config = common_config(settings, logger) | {
        "group.id": settings.group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        # Only reached when a watermark is older than the retention; the worker counts and reports the jump.
        "auto.offset.reset": "earliest",
        "max.poll.interval.ms": _milliseconds(settings.max_poll_interval),
        "fetch.queue.backoff.ms": FETCH_QUEUE_BACKOFF_MS,
        "queued.min.messages": QUEUED_MIN_MESSAGES,
        "queued.max.messages.kbytes": QUEUED_MAX_KBYTES,
        "max.partition.fetch.bytes": PARTITION_FETCH_BYTES,
        "group.protocol": protocol.value,
    }
    if settings.group_instance_id:
        config["group.instance.id"] = settings.group_instance_id
    if protocol is GroupProtocol.CONSUMER and settings.remote_assignor is not None:
        config["group.remote.assignor"] = settings.remote_assignor
    if protocol is GroupProtocol.CLASSIC:
        # With the new protocol the broker decides about both.
        config["partition.assignment.strategy"] = "cooperative-sticky"
        config["session.timeout.ms"] = _milliseconds(settings.session_timeout)
    return config


def producer_config(
    settings: KafkaSettings, linger: timedelta, delivery_timeout: timedelta, logger: Any = None
) -> dict[str, Any]:
    """Settings of an idempotent producer.

    The partitioner is Java's default, so that a conversation's outputs lie in the partition that its key has everywhere else.
    """
    return common_config(settings, logger) | {
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": _milliseconds(linger),
        "delivery.timeout.ms": _milliseconds(delivery_timeout),
        "partitioner": "murmur2_random",
        "queue.buffering.max.messages": 100_000,
        "queue.buffering.max.kbytes": 131_072,
    }


def first_contact(client: Consumer | Producer, bootstrap_servers: str, timeout: float) -> ClusterMetadata:
    """Metadata of the cluster: proof that addresses and credentials are right.

    Raises:
        ConfigurationError: credentials or certificates were refused.
        ServiceUnavailable: nobody answered within `timeout` seconds.
    """
    try:
        metadata: ClusterMetadata = client.list_topics(timeout=timeout)
        return metadata
    except KafkaException as error:
        client.poll(0)  # serves the error callback
        cause = _refusals.pop(bootstrap_servers, error.args[0])
        if cause.code() in AUTHENTICATION_ERRORS:
            raise ConfigurationError(
                f"Kafka at {bootstrap_servers} refused us: {cause.str()}. Check kafka.security_protocol, sasl_* and ssl_*."
            ) from error
        raise ServiceUnavailable(
            f"Kafka at {bootstrap_servers} does not answer ({cause.str()}). Is it running, and is "
            "STREAM_SENTIMENT_KAFKA__BOOTSTRAP_SERVERS right?"
        ) from error


def produce(producer: Producer, wait: Callable[[float], object], **record: Any) -> None:
    """`producer.produce`, waiting while the local queue is full. `wait(seconds)` serves delivery reports: pass `producer.poll`."""
    while True:
        try:
            producer.produce(**record)
            return
        except BufferError:
            wait(0.05)
