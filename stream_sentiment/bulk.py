"""The bulk publisher: `sentiment.scored` and `conversation.state`, at least once, with deterministic ids.

In: a record with its score and the state after it. Out: records on the two high-volume topics. They are outside the outbox: a window's
events are produced and flushed before its APPLY, so that none can be missing behind a watermark; after a crash some are
published again under the same id. Belongs to the apply thread. `flush` blocks while Kafka is away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from stream_sentiment.conversation.options import StateOptions
from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.conversation.turn import Turn
from stream_sentiment.events import envelope
from stream_sentiment.events.incoming import ChatEvent, Decoded, ReviewEvent
from stream_sentiment.events.outgoing import conversation_state_event, rolling_block, signals_block
from stream_sentiment.kafka.clients import produce_failure
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.scoring.blocks import emotion_block, sentiment_block
from stream_sentiment.scoring.corrections import Corrector, corrections_block
from stream_sentiment.settings import Settings
from stream_sentiment.stages import Record

if TYPE_CHECKING:
    from stream_sentiment.scoring.scorer import ModelInfo, Score

#: Distance between the rating, mapped from 1..5 to -1..1, and the text's score from which they disagree: half of the scale.
RATING_DISAGREEMENT = 1.0
#: One wait of `flush`; between two the caller's heartbeat is given and its abort is asked for.
FLUSH_SECONDS = 0.5

log = get_logger("bulk")


def model_block(info: ModelInfo) -> dict[str, Any]:
    """The model as every output names it."""
    return {
        "name": info.name,
        "version": info.version,
        "sha256": info.sha256,
        "precision": info.precision,
        "max_length": info.max_length,
    }


class BulkPublisher:
    """Builds and produces the high-volume events of one worker."""

    def __init__(self, settings: Settings, metrics: Metrics, model: ModelInfo, rules_version: str) -> None:
        self._topics = settings.topics
        self._corrections = settings.corrections
        self._scored = settings.output.scored
        self._states = settings.output.conversation_state
        self._metrics = metrics
        self._scored_headers = envelope.constant_headers(envelope.SCORED, "sentiment.scored:1")
        self._state_headers = envelope.constant_headers(envelope.CONVERSATION_STATE, "conversation.state:1")
        self._producer: Producer | None = None
        self._errors = 0
        #: Records by topic that wait for the flush which says that Kafka has them: a report for each would cost more than its event.
        self._unflushed: dict[str, int] = {}
        self.serve(model, rules_version)

    def serve(self, model: ModelInfo, rules_version: str) -> None:
        """Name this model and these rules in the events from now on."""
        self._model = model
        self._rules_version = rules_version
        self._model_json = orjson.Fragment(orjson.dumps(model_block(model)))
        # Model, corrections and rules are part of a scored event's id: hashed once, copied for each event.
        self._corrections_version = Corrector.of(self._corrections, model).version
        parts = [model.sha256, rules_version]
        if self._corrections_version != "off":
            parts.append(self._corrections_version)
        self._id_seed = hashlib.blake2b("".join(f"{part}\n" for part in parts).encode(), digest_size=16)

    def use(self, producer: Producer) -> None:
        """Set the producer; its delivery reports for errors must go to `delivery_failed`."""
        self._producer = producer

    def delivery_failed(self, error: KafkaError | None, message: Message) -> None:
        """Delivery report, for errors only (`delivery.report.only.error`)."""
        if error is not None:
            topic = message.topic() or ""
            self._errors += 1
            self._unflushed[topic] = self._unflushed.get(topic, 0) - 1
            self._metrics.produce_total.labels(topic, produce_failure(error)).inc()
            log.error("publish_failed", topic=message.topic(), reason=error.name())

    @property
    def queued(self) -> int:
        """Records that the client has not got rid of yet."""
        return 0 if self._producer is None else len(self._producer)

    def scored_chat(
        self, record: Record, decoded: Decoded, event: ChatEvent, state: ConversationState, turn: Turn, now: str
    ) -> None:
        """One customer message, scored or skipped. `now`: RFC 3339 wall time of the window."""
        if not self._scored:
            return
        score = record.score
        created_at = envelope.rfc3339(decoded.at_ms)
        value = {
            "tenant_id": event.tenant_id,
            "conversation_id": event.conversation_id,
            "message_id": event.message_id,
            "kind": decoded.kind,
            "role": turn.role,
            "channel": event.channel,
            "created_at": created_at,
            "sentiment": None if score is None else sentiment_block(score, self._model),
            "emotion": None if score is None else emotion_block(score, self._model),
            "uncertain": False if score is None else score.uncertain,
            "corrections": corrections_block(record.corrections),
            "corrections_version": self._corrections_version,
            "signals": signals_block(turn.signals) if turn.signals else [],
            "complaint": _complaint(score, turn),
            "language": record.language,
            "model": self._model_json,
            "rules_version": self._rules_version,
            "truncated": record.truncated,
            "skipped_reason": record.skipped_reason,
            "timing": self._timing(record, now),
            "rolling": rolling_block(state),
        }
        self._produce_scored(
            record, event.tenant_id, event.conversation_id, event.message_id or "", decoded, created_at, value
        )

    def scored_review(self, record: Record, decoded: Decoded, event: ReviewEvent, now: str) -> None:
        """One review, scored or skipped."""
        if not self._scored:
            return
        score = record.score
        disagreement = None
        if score is not None and event.rating is not None:
            said = record.corrections[0].before["score"] if record.corrections else score.score  # by the model
            disagreement = abs((event.rating - 3) / 2 - said) >= RATING_DISAGREEMENT
        created_at = envelope.rfc3339(decoded.at_ms)
        value: dict[str, Any] = {
            "tenant_id": event.tenant_id,
            "product_id": event.product_id,
            "review_id": event.review_id,
            "kind": decoded.kind,
            "created_at": created_at,
            "rating": event.rating,
            "rating_text_disagreement": disagreement,
            "sentiment": None if score is None else sentiment_block(score, self._model),
            "emotion": None if score is None else emotion_block(score, self._model),
            "uncertain": False if score is None else score.uncertain,
            "corrections": corrections_block(record.corrections),
            "corrections_version": self._corrections_version,
            "signals": [],
            "complaint": None,
            "language": record.language,
            "model": self._model_json,
            "rules_version": self._rules_version,
            "truncated": record.truncated,
            "skipped_reason": record.skipped_reason,
            "timing": self._timing(record, now),
        }
        self._produce_scored(record, event.tenant_id, event.product_id, event.review_id, decoded, created_at, value)

    def states(self, states: Iterable[ConversationState], options: StateOptions) -> None:
        """The new states of a window's conversations, one event each however many of its messages the window held."""
        if not self._states:
            return
        for state in states:
            value = conversation_state_event(
                state,
                options,
                updated_at_ms=state.last_event_at_ms,
                expires_at_ms=state.last_event_at_ms + options.ttl_ms,
            )
            event_id = envelope.stable_id(state.tenant_id, state.conversation_id, str(state.state_version))
            self._produce(
                self._topics.conversation_state,
                envelope.record_key(state.tenant_id, state.conversation_id),
                orjson.dumps(value),
                [*self._state_headers, ("ce_id", event_id.encode()), ("ce_time", value["updated_at"].encode())],
            )

    def flush(self, keep_waiting: Callable[[], bool]) -> bool:
        """Wait until Kafka has taken everything; False when it refused a record, or when `keep_waiting` said no."""
        assert self._producer is not None
        while self._producer.flush(FLUSH_SECONDS) > 0:
            if not keep_waiting():
                return False
        for topic, count in self._unflushed.items():
            self._metrics.produce_total.labels(topic, "ack").inc(max(0, count))
        self._unflushed.clear()
        failed, self._errors = self._errors, 0
        return failed == 0

    @staticmethod
    def _timing(record: Record, now: str) -> dict[str, Any]:
        return {
            "received_at": envelope.rfc3339(record.received_ms),
            "scored_at": now,
            "queue_ms": record.queue_ms,
            "inference_ms": record.inference_ms,
            "batch_size": record.batch_size,
        }

    def _produce_scored(
        self,
        record: Record,
        tenant_id: str,
        entity_id: str,
        item_id: str,
        decoded: Decoded,
        created_at: str,
        value: dict[str, Any],
    ) -> None:
        digest = self._id_seed.copy()
        digest.update(
            f"{len(tenant_id)}:{tenant_id}{len(entity_id)}:{entity_id}{item_id}|{decoded.kind}|{decoded.at_ms}".encode(
                "utf-8", "surrogatepass"
            )
        )
        headers = [*self._scored_headers, ("ce_id", digest.hexdigest().encode()), ("ce_time", created_at.encode())]
        if record.headers:
            traceparent = traceparent_of(record)
            if traceparent is not None:
                headers.append(("traceparent", traceparent))
        self._produce(self._topics.scored, envelope.record_key(tenant_id, entity_id), orjson.dumps(value), headers)

    def _produce(self, topic: str, key: str, value: bytes, headers: envelope.Headers) -> None:
        producer = self._producer
        assert producer is not None
        while True:
            try:
                producer.produce(topic, value=value, key=key, headers=headers)  # type: ignore[arg-type]
                self._unflushed[topic] = self._unflushed.get(topic, 0) + 1
                return
            except BufferError:
                # A bounded queue: the client sheds records after delivery.timeout, so this ends.
                producer.poll(0.05)
            except KafkaException as error:
                # A topic that the broker has refused before is refused here, without a delivery report.
                if error.args[0].fatal():
                    raise
                self._errors += 1
                self._metrics.produce_total.labels(topic, "error").inc()
                log.error("publish_failed", topic=topic, reason=error.args[0].name())
                return


def _complaint(score: Score | None, turn: Turn) -> dict[str, Any] | None:
    """What an unhappy message is about: the first category that its words speak of. A calm question complains of nothing."""
    if score is None or score.label != "negative" or not turn.topics:
        return None
    return {"category": turn.topics[0], "confidence": None}


def traceparent_of(record: Record) -> bytes | None:
    """W3C trace context of the input record."""
    for name, value in record.headers or ():
        if name == "traceparent":
            return value
    return None
