"""From one scored record to everything it gives rise to: new state, scored event, escalations or a dead letter.

In: a record with its score, the state of its conversation. Out: the state changed in place, entries for the outbox, events for the
bulk publisher, counts. No I/O of its own and no clock: wall time comes in with the window. Belongs to the apply thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import orjson

from stream_sentiment.bulk import BulkPublisher, model_block, traceparent_of
from stream_sentiment.conversation.fold import Outcome
from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.conversation.turn import NO_ATTRIBUTES, ConversationIdentity, Turn, TurnKind
from stream_sentiment.escalation.advance import advance
from stream_sentiment.escalation.machine import tick
from stream_sentiment.escalation.storm import StormNotice, StormState, guard_turn, pass_time
from stream_sentiment.events import envelope
from stream_sentiment.events.incoming import ChatEvent, Decoded, InvalidEvent, ReviewEvent, Skip
from stream_sentiment.events.outgoing import escalation_event, storm_event
from stream_sentiment.excerpt import Excerpt, excerpt
from stream_sentiment.kafka.dead_letter import CLASS_OF_REASON, ErrorClass, dead_letter
from stream_sentiment.kafka.outbox_record import OutboxRecord
from stream_sentiment.observability.logs import get_logger
from stream_sentiment.observability.tally import Tally
from stream_sentiment.scoring.corrections import Corrector
from stream_sentiment.scoring.reference import Prediction
from stream_sentiment.settings import Settings
from stream_sentiment.stages import Epoch, Record
from stream_sentiment.store.keys import conversation_key, outbox_field, storm_key, tick_field

if TYPE_CHECKING:
    from stream_sentiment.escalation.rules import RuleSet
    from stream_sentiment.escalation.transition import Transition
    from stream_sentiment.scoring.scorer import ModelInfo

#: Tolerated lead of a producer's clock over the broker's. Event time beyond it is cut, or one wrong clock would make all later
#: messages of the conversation "late".
FUTURE_TOLERANCE_MS = 5 * 60 * 1000

log = get_logger("fold")


@dataclass(slots=True)
class Batch:
    """One partition's part of a window: its records, and what folding them has given so far."""

    epoch: Epoch
    records: list[Record]
    #: Counted when the batch is applied, so that redone work counts once.
    tally: Tally
    #: State after the batch by conversation key.
    touched: dict[str, ConversationState] = field(default_factory=dict)
    #: The storm guard's state after the batch by storm key.
    storms: dict[str, StormState] = field(default_factory=dict)
    #: Outbox field -> the record, and the event time of its cause (None for dead letters).
    outputs: dict[str, tuple[OutboxRecord, int | None]] = field(default_factory=dict)
    #: For the comparison with the model's reference, once the batch is applied.
    predictions: list[Prediction] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Moment:
    """Wall time of one window, read once."""

    now_ms: int
    monotonic: float
    text: str

    @classmethod
    def at(cls, now_ms: int) -> Moment:
        return cls(now_ms, time.monotonic(), envelope.rfc3339(now_ms))


class RecordFolder:
    """Folds records under one rule set and one model."""

    def __init__(
        self,
        settings: Settings,
        rules: RuleSet,
        model: ModelInfo,
        bulk: BulkPublisher,
        partitions: Mapping[str, int] | None = None,
    ) -> None:
        """`partitions`: number of each input topic's, which share the limits of the storm guard; unnamed topics have one."""
        self._topics = settings.topics
        self._keep_bodies = settings.output.dead_letter_bodies
        self._excerpts = settings.output.excerpts
        self._rules = rules
        self._signals = rules.finder(model)
        self._corrector = Corrector.of(settings.corrections, model)
        self._model_block = model_block(model)
        self._model_version = f"{model.name}@{model.version}"
        self._bulk = bulk
        self._escalation_headers = {
            action: envelope.constant_headers(envelope.ESCALATION + action, "escalation.events:1")
            for action in ("opened", "updated", "resolved")
        }
        self._storm_headers = {
            action: envelope.constant_headers(envelope.STORM + action, "escalation.storm:1")
            for action in ("opened", "updated", "resolved")
        }
        self._partitions = {} if partitions is None else partitions

    def fold(self, batch: Batch, record: Record, moment: Moment) -> None:
        """Work on one record of a live epoch, whose state is in the epoch's cache."""
        outcome = record.outcome
        tally = batch.tally
        topic = batch.epoch.partition.topic
        if record.poison is not None:
            self.dead_letter(batch, record, ErrorClass.POISON_MODEL, record.poison, moment)
        elif isinstance(outcome, InvalidEvent):
            tally.count("events_invalid_total", outcome.reason.value)
            self.dead_letter(batch, record, CLASS_OF_REASON[outcome.reason], outcome.detail, moment)
        elif isinstance(outcome, Skip):
            tally.count("events_total", topic, "skipped")
            tally.count("events_skipped_total", outcome.reason.value)
        elif batch.epoch.kind == "chat":
            tally.count("events_total", topic, self._chat(batch, record, outcome, moment))
        else:
            tally.count("events_total", topic, self._review(batch, record, outcome, moment))

    def dead_letter(self, batch: Batch, record: Record, error_class: ErrorClass, message: str, moment: Moment) -> None:
        """Put the record aside with the reason, in the same atomic write that passes it."""
        topic, partition = batch.epoch.partition
        entry = dead_letter(
            self._topics.dead_letters,
            topic=topic,
            partition=partition,
            offset=record.offset,
            timestamp_ms=record.timestamp_ms,
            key=record.key,
            value=record.value,
            headers=record.headers,
            error_class=error_class,
            error_message=message,
            attempts=1,
            failed_at_ms=moment.now_ms,
            keep_body=self._keep_bodies,
        )
        batch.outputs[outbox_field(record.offset, 0)] = (entry, None)
        batch.tally.count("events_total", topic, "dead_lettered")

    def _chat(self, batch: Batch, record: Record, decoded: Decoded, moment: Moment) -> str:
        event = cast(ChatEvent, decoded.event)
        key = record.conversation or ""
        cache = batch.epoch.states
        state = cache[key][0]
        tally = batch.tally
        at_ms = decoded.at_ms
        if record.key != envelope.record_key(event.tenant_id, event.conversation_id).encode():
            tally.count("key_mismatch_total", batch.epoch.partition.topic)
        if at_ms > record.timestamp_ms + FUTURE_TOLERANCE_MS:
            at_ms = record.timestamp_ms + FUTURE_TOLERANCE_MS
            tally.count("clock_skew_events_total", "future")
        batch.epoch.clock.passed(at_ms, record.timestamp_ms)
        self._correct(tally, record, event.tenant_id)
        signals, topics = self._signals.hear(record.text, record.score, event.tenant_id)
        turn = Turn(
            cast(TurnKind, decoded.kind),
            event.message_id or "",
            at_ms,
            event.sender["role"] if event.sender is not None else "",
            record.offset,
            event.sequence,
            record.score,
            record.skipped_reason,
            signals,
            event.channel,
            event.attributes or NO_ATTRIBUTES,
            event.phase,
            record.language or event.language or "",
            topics,
        )
        rules = self._rules
        version = None if state is None else state.state_version
        state, outcome, transitions, _ = advance(
            state, turn, ConversationIdentity(event.tenant_id, event.conversation_id), rules
        )
        if outcome is Outcome.DUPLICATE:
            tally.count("state_updates_total", "duplicate")
            if state.state_version == version:  # else a timer fell due before it
                return "duplicate"
        state.model_version = self._model_version
        state.rules_version = rules.version
        notices = self._guard(batch, key, state, at_ms, transitions)
        for sequence, transition in enumerate(transitions):
            place = outbox_field(record.offset, sequence)
            # A timer that fell due before this event tells the same as if it had fired on time: nothing of the event.
            cause = record if transition.message_id == turn.message_id else None
            self._escalate(batch, place, cause, state, transition, moment)
        for sequence, notice in enumerate(notices, len(transitions)):
            self._tell_of_storm(batch, outbox_field(record.offset, sequence), notice, moment)
        batch.touched[key] = state
        cache[key] = (state, moment.monotonic)
        if outcome is Outcome.DUPLICATE:
            return "duplicate"
        late = outcome is Outcome.LATE
        tally.count("state_updates_total", "stale" if late else "applied")
        if turn.role in rules.options.score_roles and decoded.kind in ("created", "edited"):
            self._bulk.scored_chat(record, decoded, event, state, turn, moment.text)
            _count_prediction(batch, record)
        if late:
            return "stale"
        return "skipped" if record.score is None else "scored"

    def tick(self, batch: Batch, key: str, state: ConversationState, now_ms: int, token: str, moment: Moment) -> bool:
        """Fire what falls due in a conversation by event time `now_ms` without a message; False when nothing does.

        `token` tells the entries of this tick from those of another owner's at the same watermark.
        """
        version = state.state_version
        transitions = tick(state, now_ms, self._rules)
        if state.state_version == version:
            return False
        state.rules_version = self._rules.version
        notices = self._guard(batch, key, state, transitions[-1].at_ms, transitions) if transitions else []
        watermark = batch.epoch.watermark
        for transition in transitions:
            place = tick_field(watermark, transition.at_ms, len(batch.outputs), token)
            self._escalate(batch, place, None, state, transition, moment)
        for notice in notices:
            self._tell_of_storm(batch, tick_field(watermark, notice.at_ms, len(batch.outputs), token), notice, moment)
        batch.touched[key] = state
        batch.epoch.states[key] = (state, moment.monotonic)
        return True

    def _review(self, batch: Batch, record: Record, decoded: Decoded, moment: Moment) -> str:
        if decoded.kind == "deleted":
            return "skipped"
        event = cast(ReviewEvent, decoded.event)
        self._correct(batch.tally, record, event.tenant_id, event.rating)
        self._bulk.scored_review(record, decoded, event, moment.text)
        _count_prediction(batch, record)
        return "skipped" if record.score is None else "scored"

    def _correct(self, tally: Tally, record: Record, tenant_id: str, rating: float | None = None) -> None:
        """Before anything is decided on the score; once, though a record may be folded again."""
        if record.score is None:
            return
        if not record.corrections:
            record.score, record.corrections = self._corrector.correct(
                record.text, record.score, tenant_id=tenant_id, rating=rating
            )
        for correction in record.corrections:
            tally.count("corrections_total", correction.rule_id)

    def _guard(
        self, batch: Batch, key: str, state: ConversationState, at_ms: int, transitions: list[Transition]
    ) -> list[StormNotice]:
        """Put the turn's transitions through the storm guard, in place; returns what is to be told of storms."""
        name = storm_key(key)
        storms = batch.epoch.storms
        storm = storms.get(name)
        if not transitions and (storm is None or storm.storm is None):
            return []
        if storm is None:
            storm = StormState(state.tenant_id)
        partitions = self._partitions.get(batch.epoch.partition.topic, 1)
        notices = pass_time(storm, at_ms, partitions)
        if transitions:
            limits = self._rules.view_for(state).storm
            transitions[:], told = guard_turn(storm, state, transitions, limits, partitions)
            notices += told
        if transitions or notices:
            storms[name] = batch.storms[name] = storm
        return notices

    def _tell_of_storm(self, batch: Batch, place: str, notice: StormNotice, moment: Moment) -> None:
        """One notice into the outbox, the counter and the log; its key keeps a tenant's notices in order."""
        storm = notice.storm
        value = storm_event(
            notice,
            language=self._rules.default.language,
            source=batch.epoch.partition,
            rules_version=self._rules.version,
            emitted_at_ms=moment.now_ms,
        )
        headers = envelope.event_headers(
            self._storm_headers[notice.action],
            f"{storm.storm_id}.{storm.revision}",
            envelope.rfc3339(notice.at_ms),
            storm.storm_id,
            None,
        )
        headers.append(("ce_severitytext", storm.severity.encode()))
        key = envelope.record_key(notice.tenant_id, "").encode()
        entry = OutboxRecord(self._topics.escalations, key, orjson.dumps(value), headers)
        batch.outputs[place] = (entry, None)
        batch.tally.count("escalation_storms_total", notice.action)
        topic, partition = batch.epoch.partition
        log.warning(
            "escalation_storm",
            action=notice.action,
            tenant_id=notice.tenant_id,
            topic=topic,
            partition=partition,
            held_back=storm.held_back,
        )

    def _escalate(
        self,
        batch: Batch,
        place: str,
        record: Record | None,
        state: ConversationState,
        transition: Transition,
        moment: Moment,
    ) -> None:
        """One transition into the outbox under the field `place`, and the counters. `record`: its message's; a timer has none."""
        value: Mapping[str, Any] = escalation_event(
            state,
            transition,
            model=self._model_block,
            rules_version=self._rules.version,
            emitted_at_ms=moment.now_ms,
            excerpts=_excerpt_of(record, transition) if self._excerpts and record is not None else None,
        )
        headers = envelope.event_headers(
            self._escalation_headers[transition.action],
            f"{transition.escalation_id}.{transition.revision}",
            envelope.rfc3339(transition.at_ms),
            state.conversation_id,
            transition.message_id or None,
            None if record is None else traceparent_of(record),
        )
        headers.append(("ce_severitytext", transition.severity.encode()))
        if transition.storm_id is not None:
            headers.append(("ce_suppressed", b"true"))
        key = envelope.record_key(state.tenant_id, state.conversation_id).encode()
        entry = OutboxRecord(self._topics.escalations, key, orjson.dumps(value), headers)
        batch.outputs[place] = (entry, transition.message_at_ms)
        if transition.action == "opened":
            batch.tally.count("escalations_total", transition.rule_id, transition.severity)
            if transition.storm_id is not None:
                batch.tally.count("escalations_suppressed_total", transition.rule_id)
        batch.tally.count("escalation_transitions_total", transition.action)


def _excerpt_of(record: Record, transition: Transition) -> Mapping[str, Excerpt] | None:
    """Of the message that caused the transition. The others' texts are not kept anywhere, and what happened to be in this batch would
    not be there again after a crash: the same event must come out.
    """
    event = record.outcome.event if isinstance(record.outcome, Decoded) else None
    if record.text is None or not isinstance(event, ChatEvent) or event.message_id != transition.message_id:
        return None
    spans = next((item.spans for item in transition.evidence if item.message_id == transition.message_id), ())
    return {transition.message_id: excerpt(record.text, spans)}


def _count_prediction(batch: Batch, record: Record) -> None:
    tally, score = batch.tally, record.score
    if score is None:
        if record.skipped_reason is not None:
            tally.count("events_skipped_total", record.skipped_reason)
        return
    tally.count("predictions_total", score.label)
    tally.count("emotion_predictions_total", score.emotion_label)
    tally.observe("prediction_confidence", score.confidence)
    if score.uncertain:
        tally.count("low_confidence_total")
    batch.predictions.append(Prediction.of(score, record.language or ""))


def conversation_of(record: Record) -> str | None:
    """The conversation whose state the record needs; None for reviews, dead letters and skipped records."""
    outcome = record.outcome
    if record.epoch.kind != "chat" or not isinstance(outcome, Decoded) or record.poison is not None:
        return None
    event = cast(ChatEvent, outcome.event)
    return conversation_key(event.tenant_id, event.conversation_id)
