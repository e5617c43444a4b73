"""Forget one conversation: its state in Redis, its open escalation, its record in the compacted topic.

In: tenant and conversation id. Out: what was found and done. Blocks on Redis and, when Redis holds nothing, on Kafka. Raises
`TryAgain` when the conversation keeps changing. The owner of the partition may be at work: the store takes the partition from it, and
the owner reads the state anew (docs/delivery.md).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from confluent_kafka import Producer

from stream_sentiment.clock import Clock
from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.errors import ServiceUnavailable, TryAgain
from stream_sentiment.escalation.machine import close
from stream_sentiment.escalation.rules import RuleSet
from stream_sentiment.events import envelope
from stream_sentiment.events.outgoing import escalation_event
from stream_sentiment.kafka.clients import first_contact, producer_config
from stream_sentiment.kafka.outbox_record import OutboxRecord
from stream_sentiment.observability.logs import kafka_logger
from stream_sentiment.settings import Settings
from stream_sentiment.store.keys import conversation_key
from stream_sentiment.store.redis import Erasure, Found, StateStore

#: A busy conversation may change between our look and the erasure; each try takes two round trips.
_ATTEMPTS: Final = 10

_FLUSH_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did."""

    states: int  # removed from Redis
    escalations: int  # open ones that are resolved as `erased`
    tombstone: str  # "outbox": published by the partition's owner; "kafka": published here, as Redis held nothing


def newest(found: Sequence[Found]) -> Found | None:
    """Of several states of one conversation (the partition count was changed) the living one; None when there is none."""
    return max(found, key=lambda item: ConversationState.from_json(item.state).last_event_at_ms, default=None)


def erase_conversation(
    settings: Settings, store: StateStore, rules: RuleSet, clock: Clock, tenant_id: str, conversation_id: str
) -> Erased:
    """Erase it everywhere in this group's Redis, and tell the consumers of the output topics.

    Raises:
        TryAgain: it changed at every attempt.
        ServiceUnavailable: Redis, or Kafka where it is needed, does not answer.
    """
    topic = settings.topics.chat_messages
    for _ in range(_ATTEMPTS):
        found = store.find(topic, conversation_key(tenant_id, conversation_id))
        if not found:
            _publish_tombstone(settings, tenant_id, conversation_id)
            return Erased(0, 0, "kafka")
        outputs = [_outputs(settings, item, rules, clock) for item in found]
        if all(
            store.erase([Erasure(item, records)], str(uuid.uuid4()))
            for item, records in zip(found, outputs, strict=True)
        ):
            return Erased(len(found), sum(len(records) - 1 for records in outputs), "outbox")
    raise TryAgain(f"the conversation changed during each of {_ATTEMPTS} attempts; try again")


def _outputs(settings: Settings, found: Found, rules: RuleSet, clock: Clock) -> list[bytes]:
    """The `resolved` of an open escalation, and the tombstone: the last thing that is said of the conversation."""
    state = ConversationState.from_json(found.state)
    key = envelope.record_key(state.tenant_id, state.conversation_id).encode()
    records = []
    for transition in close(state, "erased", state.last_event_at_ms, rules):
        name, _, version = state.model_version.partition("@")
        value = escalation_event(
            state,
            transition,
            # No model made this decision: only what the state says of the one that scored it.
            model={"name": name, "version": version, "sha256": "", "precision": "", "max_length": 0},
            rules_version=rules.version,
            emitted_at_ms=clock.now_ms(),
        )
        # The erased messages are not named in the event that tells of their erasure.
        value["evidence"] = []
        value["evidence_remainder"] = value["score"]
        value["context"] = {**dict.fromkeys(value["context"]), "channel": state.channel}
        headers = envelope.event_headers(
            envelope.constant_headers(envelope.ESCALATION + transition.action, "escalation.events:1"),
            f"{transition.escalation_id}.{transition.revision}",
            envelope.rfc3339(transition.at_ms),
            state.conversation_id,
            None,
        )
        headers.append(("ce_severitytext", transition.severity.encode()))
        records.append(OutboxRecord(settings.topics.escalations, key, orjson.dumps(value), headers).encode())
    records.append(OutboxRecord(settings.topics.conversation_state, key, None, _tombstone_headers(state)).encode())
    return records


def _tombstone_headers(state: ConversationState) -> envelope.Headers:
    identity = envelope.stable_id(state.tenant_id, state.conversation_id, str(state.state_version), "erased")
    return envelope.event_headers(
        envelope.constant_headers(envelope.CONVERSATION_STATE, "conversation.state:1"),
        identity,
        envelope.rfc3339(state.last_event_at_ms),
        state.conversation_id,
        None,
    )


def _publish_tombstone(settings: Settings, tenant_id: str, conversation_id: str) -> None:
    """Redis forgot the state at the end of its life; the compacted topic keeps the last one until it is told."""
    producer = Producer(
        producer_config(
            settings.kafka, settings.output.linger, settings.output.delivery_timeout, kafka_logger("erasure")
        )
    )
    first_contact(producer, settings.kafka.bootstrap_servers, _FLUSH_SECONDS)
    key = envelope.record_key(tenant_id, conversation_id).encode()
    producer.produce(settings.topics.conversation_state, key=key, value=None)
    if producer.flush(_FLUSH_SECONDS):
        raise ServiceUnavailable("Kafka did not take the tombstone; nothing is erased in the topic of states")
