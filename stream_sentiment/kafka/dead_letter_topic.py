"""The dead letter topic as a person uses it: read it, and send letters in again."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from stream_sentiment.errors import ConfigurationError, ServiceUnavailable, TryAgain
from stream_sentiment.kafka.clients import common_config, first_contact, produce, producer_config
from stream_sentiment.kafka.dead_letter import PREFIX
from stream_sentiment.observability.logs import kafka_logger
from stream_sentiment.settings import Settings

REPLAY_OF = PREFIX + "replay_of"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the dead letter topic with its provenance read."""

    identity: str
    topic: str
    partition: int
    offset: int
    error_class: str
    error_message: str
    first_failed_at: str
    body: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]

    @property
    def replayable(self) -> bool:
        """Its original bytes were kept."""
        return self.body == "original"

    def summary(self) -> dict[str, Any]:
        """Everything but the customer's words."""
        return {
            "id": self.identity,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "error_class": self.error_class,
            "error_message": self.error_message,
            "first_failed_at": self.first_failed_at,
            "body": self.body,
            "bytes": len(self.value or b""),
        }


def read_dead_letters(settings: Settings, timeout: float) -> list[DeadLetter]:
    """Every dead letter once by id, oldest first.

    Raises ServiceUnavailable when Kafka does not answer, ConfigurationError when the topic does not exist, TryAgain when the topic
    was not read to its end within `timeout` seconds.
    """
    topic = settings.topics.dead_letters
    consumer = Consumer(
        common_config(settings.kafka, kafka_logger("dead-letters"))
        | {
            "group.id": f"{settings.kafka.group_id}-dead-letters-{uuid.uuid4().hex[:8]}",  # never joined
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
        }
    )
    try:
        metadata = first_contact(consumer, settings.kafka.bootstrap_servers, timeout)
        if topic not in metadata.topics or metadata.topics[topic].error is not None:
            raise ConfigurationError(f"{topic} does not exist; `stream-sentiment topics create` makes it")
        partitions = list(metadata.topics[topic].partitions)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
        letters: dict[str, tuple[int, DeadLetter]] = {}
        unfinished = set(partitions)
        deadline = time.monotonic() + timeout
        while unfinished:
            if time.monotonic() > deadline:
                raise TryAgain(f"{topic} was not read to its end within {timeout:g} s; give it a larger --timeout")
            for message in consumer.consume(500, 0.2):
                error = message.error()
                if error is None:
                    letter = _letter(message)
                    letters.setdefault(letter.identity, (message.timestamp()[1], letter))
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                    unfinished.discard(message.partition())
                elif not error.retriable():
                    raise ServiceUnavailable(f"{topic}: {error.str()}")
        return [letter for _, letter in sorted(letters.values(), key=lambda item: item[0])]
    finally:
        consumer.close()


def replay_dead_letters(settings: Settings, letters: Sequence[DeadLetter]) -> int:
    """Send the letters to the topics they came from; returns how many Kafka has taken. Raises TryAgain if not all of them."""
    output = settings.output
    producer = Producer(
        producer_config(settings.kafka, output.linger, output.delivery_timeout, kafka_logger("dead-letters"))
    )
    taken = 0

    def report(error: KafkaError | None, _message: Message) -> None:
        nonlocal taken
        taken += error is None

    for letter in letters:
        own = [(name, value) for name, value in letter.headers if not name.startswith(PREFIX)]
        try:
            produce(
                producer,
                producer.poll,
                topic=letter.topic,
                key=letter.key,
                value=letter.value,
                headers=[*own, (REPLAY_OF, letter.identity.encode())],
                on_delivery=report,
            )
        except KafkaException as error:
            raise ServiceUnavailable(f"{letter.topic}: {error.args[0].str()}") from error
    producer.flush(output.delivery_timeout.total_seconds())
    if taken < len(letters):
        raise TryAgain(f"Kafka took {taken} of {len(letters)} records; replay again, copies are recognised")
    return taken


def _letter(message: Message) -> DeadLetter:
    headers: Any = message.headers() or []
    marks = {
        name[len(PREFIX) :]: (value or b"").decode("utf-8", "replace")
        for name, value in headers
        if name.startswith(PREFIX)
    }
    place = f"{message.topic()}/{message.partition()}/{message.offset()}"
    return DeadLetter(
        identity=marks.get("id", place),
        topic=marks.get("topic", ""),
        partition=int(marks.get("partition", -1)),
        offset=int(marks.get("offset", -1)),
        error_class=marks.get("error.class", "unknown"),
        error_message=marks.get("error.message", ""),
        first_failed_at=marks.get("first_failed_at", ""),
        body=marks.get("body", "unknown"),
        key=message.key(),
        value=message.value(),
        headers=list(headers),
    )
