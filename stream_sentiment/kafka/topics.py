"""The topics that the worker needs, and creating them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from stream_sentiment.errors import ConfigurationError, ServiceUnavailable
from stream_sentiment.kafka.clients import AUTHENTICATION_ERRORS, common_config
from stream_sentiment.observability.logs import kafka_logger
from stream_sentiment.settings import Settings

CREATE_SECONDS = 30.0
REFUSALS = frozenset(
    {KafkaError.INVALID_REPLICATION_FACTOR, KafkaError.INVALID_PARTITIONS, KafkaError.POLICY_VIOLATION}
)
#: Half a year: an escalation or a dead letter is looked at late, and there are few.
LONG_RETENTION_MS = 180 * 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One topic as it should be."""

    name: str
    partitions: int
    config: Mapping[str, str]


def plan_topics(settings: Settings, partitions: int) -> list[TopicPlan]:
    """All topics of the settings, inputs first. Inputs and outputs about conversations share the number of partitions."""
    topics = settings.topics
    plans = [TopicPlan(name, partitions, {}) for name in topics.inputs()]
    plans.append(TopicPlan(topics.scored, partitions, {}))
    plans.append(TopicPlan(topics.conversation_state, partitions, {"cleanup.policy": "compact"}))
    plans.append(TopicPlan(topics.escalations, partitions, {"retention.ms": str(LONG_RETENTION_MS)}))
    plans.append(TopicPlan(topics.dead_letters, max(1, partitions // 4), {"retention.ms": str(LONG_RETENTION_MS)}))
    return plans


def create_topics(settings: Settings, plans: list[TopicPlan], replication: int) -> dict[str, str]:
    """Create what is missing; returns `created` or `exists` by topic.

    Raises:
        ServiceUnavailable: Kafka does not answer.
        ConfigurationError: Kafka refused; the message says why.
    """
    admin = AdminClient(common_config(settings.kafka), logger=kafka_logger("admin"))
    futures = admin.create_topics(
        [
            NewTopic(
                plan.name, num_partitions=plan.partitions, replication_factor=replication, config=dict(plan.config)
            )
            for plan in plans
        ],
        operation_timeout=CREATE_SECONDS,
        request_timeout=CREATE_SECONDS,
    )
    outcome = {}
    for name, future in futures.items():
        try:
            future.result()
            outcome[name] = "created"
        except KafkaException as error:
            cause = error.args[0]
            if cause.code() == KafkaError.TOPIC_ALREADY_EXISTS:
                outcome[name] = "exists"
            elif cause.code() in AUTHENTICATION_ERRORS:
                raise ConfigurationError(
                    f"Kafka does not let us create {name}: {cause.str()}. It needs the CREATE permission."
                ) from error
            elif cause.code() in (
                KafkaError.INVALID_REPLICATION_FACTOR,
                KafkaError.INVALID_PARTITIONS,
                KafkaError.POLICY_VIOLATION,
            ):
                raise ConfigurationError(
                    f"Kafka cannot create {name}: {cause.str()}. Try --replication 1 on a single broker."
                ) from error
            else:
                raise ServiceUnavailable(
                    f"Kafka at {settings.kafka.bootstrap_servers} did not create {name}: {cause.str()}"
                ) from error
    return outcome
