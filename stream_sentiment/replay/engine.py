"""A slice of the log through the worker's own decoding, routing, scoring, fold, rules and storm guard.

In: slices, rules, a scorer, a shadow. Out: `Output`s in the order of the log and, after each partition, its final states; the same for
the same log, rules and model, whatever else runs. One thread, no clock. Blocks on Kafka, the model and Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, cast

from stream_sentiment.batching import plan_micro_batches
from stream_sentiment.bulk import BulkPublisher
from stream_sentiment.events.envelope import header_map, rfc3339
from stream_sentiment.events.incoming import ChatEvent, Decoded, InvalidEvent, ReviewEvent, decode
from stream_sentiment.events.routing import RoutingOptions, route
from stream_sentiment.kafka.dead_letter import ErrorClass
from stream_sentiment.kafka.log_slice import LogReader, LogRecord, Slice
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.observability.tally import Tally
from stream_sentiment.record_fold import FUTURE_TOLERANCE_MS, Batch, Moment, RecordFolder, conversation_of
from stream_sentiment.replay.compare import Scope
from stream_sentiment.replay.outputs import Kind, Output, output_of
from stream_sentiment.replay.shadow import Shadow
from stream_sentiment.score_stage import infer_or_split
from stream_sentiment.settings import Settings
from stream_sentiment.stages import Epoch, Record
from stream_sentiment.store.keys import TopicPartition, storm_key

#: Records scored and applied together.
WINDOW = 256
#: States kept of one partition; beyond that they are read from Redis again.
CACHED_STATES = 20_000


@dataclass(frozen=True, slots=True)
class Published:
    """A record as it would be on its output topic."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class _Captured:
    """Stands where the worker has its bulk producer."""

    def __init__(self) -> None:
        self.records: list[Published] = []

    def __len__(self) -> int:
        return 0

    def produce(self, topic: str, value: bytes, key: str, headers: list[tuple[str, bytes]]) -> None:
        self.records.append(Published(topic, key.encode(), value, headers))


@dataclass(slots=True)
class Replayed:
    """Counts and scope of a replay; the outputs went to the sink."""

    records: int = 0
    warm_up: int = 0
    scope: Scope = field(default_factory=Scope)


class Replayer:
    """One replay under one rule file and one model."""

    def __init__(self, settings: Settings, rules: Any, scorer: Any, shadow: Shadow, partitions: dict[str, int]) -> None:
        """`partitions`: how many each input topic has, as the live worker knows it."""
        self._settings = settings
        self._rules = rules
        self._scorer = scorer
        self._shadow = shadow
        self._partitions = partitions
        self._metrics = Metrics()
        self._captured = _Captured()
        self._marks: list[int] = []  # after each record of the window: how many scored events there are
        self._bulk = BulkPublisher(settings, self._metrics, scorer.info, rules.version)
        self._bulk.use(cast(Any, self._captured))
        self._folder = RecordFolder(settings, rules, scorer.info, self._bulk, partitions)
        intake = settings.intake
        self._routing = RoutingOptions(
            frozenset(intake.languages), intake.default_language, intake.max_text_chars, rules.options.score_roles
        )
        topics = settings.topics
        self._kinds: dict[str, Kind] = {
            topics.scored: "scored",
            topics.escalations: "escalations",
            topics.dead_letters: "dead_letters",
            topics.conversation_state: "states",
        }

    def run(
        self,
        reader: LogReader,
        slices: Iterable[Slice],
        reported_from: dict[tuple[str, int], int],
        sink: Callable[[Output, Published], None],
        progress: Callable[[int], None] = lambda n: None,
    ) -> Replayed:
        """Replay every slice; outputs of records before `reported_from` make states only.

        `sink` is given each output with the record it would be. Final states come after the last record of their partition.
        """
        done = Replayed()
        kinds = self._settings.topics.inputs()
        for part in slices:
            place = TopicPartition(*part.place)
            begin = reported_from.get(part.place, part.begin)
            done.scope.slices[part.place] = begin, part.end
            epoch = self._shadow.open(place, kinds[place.topic], part.begin, self._partitions[place.topic])
            told: dict[str, None] = {}
            records = reader.read(part)
            while window := list(islice(records, WINDOW)):
                self._window(epoch, window, begin, done, told, sink)
                progress(len(window))
            self._final_states(epoch, told, done.scope, sink)
        return done

    def _window(
        self,
        epoch: Epoch,
        window: list[LogRecord],
        begin: int,
        done: Replayed,
        told: dict[str, None],
        sink: Callable[[Output, Published], None],
    ) -> None:
        records = [self._record(epoch, raw) for raw in window]
        self._score(records)
        put_aside: dict[int, str] = {}
        while (batch := self._fold(epoch, records, put_aside)) is None:
            pass
        reported: list[Published] = []
        for record, made in zip(records, self._made(batch, records), strict=True):
            done.records += 1
            if record.offset < begin:
                done.warm_up += 1
                for published in made:
                    done.scope.pass_over(self._output(published))
                continue
            reported += made
            _enter(done.scope, record)
            if record.conversation is not None and record.conversation in batch.touched:
                told[record.conversation] = None
        self._emit(reported, sink)
        states: dict[str, bytes | None] = {name: state.to_json() for name, state in batch.touched.items()}
        states |= {name: storm.to_json() for name, storm in batch.storms.items()}
        self._shadow.apply(epoch, records[-1].offset + 1, states)
        if len(epoch.states) > CACHED_STATES:
            epoch.states.clear()

    def _record(self, epoch: Epoch, raw: LogRecord) -> Record:
        """As intake takes a record."""
        outcome: Any
        try:
            outcome = decode(
                epoch.kind,
                raw.value,
                header_map(raw.headers) if raw.headers else {},
                self._settings.intake.max_event_bytes,
            )
        except InvalidEvent as invalid:
            outcome = invalid
        record = Record(epoch, raw.offset, raw.timestamp_ms, 0, raw.key, raw.value, raw.headers, outcome)
        if isinstance(outcome, Decoded):
            record.text, record.language, record.skipped_reason, record.truncated = route(outcome, self._routing)
        record.conversation = conversation_of(record)
        return record

    def _score(self, records: list[Record]) -> None:
        """As the score stage scores a window; a message's score does not depend on its neighbours."""
        scored = [record for record in records if record.text is not None]
        if not scored:
            return
        tokenised = self._scorer.tokenize([record.text for record in scored])
        for record, tokens in zip(scored, tokenised, strict=True):
            if tokens.text is not None:
                record.text = tokens.text
            record.truncated = record.truncated or tokens.truncated
        lengths = [len(tokens.ids) for tokens in tokenised]
        for batch in plan_micro_batches(lengths, self._settings.model.token_budget):
            results = infer_or_split(self._scorer, [tokenised[index].ids for index in batch], self._metrics)
            for index, result in zip(batch, results, strict=True):
                if isinstance(result, Exception):
                    scored[index].poison = f"the model failed on this text: {result}"
                    scored[index].conversation = None
                else:
                    scored[index].score = result

    def _fold(self, epoch: Epoch, records: list[Record], put_aside: dict[int, str]) -> Batch | None:
        """Fold a window; None when a record could not be folded, which is put aside when the window is folded once more."""
        wanted: dict[str, None] = {}
        for record in records:
            key = record.conversation
            if key is not None:
                if key not in epoch.states:
                    wanted[key] = None
                if (storm := storm_key(key)) not in epoch.storms:
                    wanted[storm] = None
        self._shadow.load(epoch, list(wanted))
        batch = Batch(epoch, records, Tally(self._metrics))
        moment = Moment(0, 0.0, rfc3339(0))
        self._captured.records.clear()
        self._marks = []
        for record in records:
            known = put_aside.get(record.offset)
            if known is not None:
                self._folder.dead_letter(batch, record, ErrorClass.STATE_CONFLICT, known, moment)
            else:
                try:
                    self._folder.fold(batch, record, moment)
                except Exception as error:
                    put_aside[record.offset] = f"the state machine failed: {type(error).__name__}"
                    epoch.states.clear()
                    epoch.storms.clear()
                    return None
            self._marks.append(len(self._captured.records))
        return batch

    def _made(self, batch: Batch, records: list[Record]) -> Iterator[list[Published]]:
        """What each record gave rise to, in the order of the outbox."""
        by_offset: dict[int, list[tuple[int, Published]]] = {}
        for name, (entry, _) in batch.outputs.items():
            offset, _, number = name.partition(":")
            published = Published(entry.topic, entry.key, entry.value, entry.headers)
            by_offset.setdefault(int(offset), []).append((int(number), published))
        before = 0
        for record, mark in zip(records, self._marks, strict=True):
            outputs = sorted(by_offset.get(record.offset, ()), key=lambda item: item[0])
            yield [*self._captured.records[before:mark], *[published for _, published in outputs]]
            before = mark

    def _emit(self, records: Iterable[Published], sink: Callable[[Output, Published], None]) -> None:
        for record in records:
            sink(self._output(record), record)

    def _output(self, record: Published) -> Output:
        output = output_of(self._kinds[record.topic], record.key, record.value, record.headers)
        assert output is not None
        return output

    def _final_states(
        self, epoch: Epoch, told: dict[str, None], scope: Scope, sink: Callable[[Output, Published], None]
    ) -> None:
        """The `conversation.state` of every conversation that has a reported record; and how far its event time has come."""
        names = sorted(told)
        for start in range(0, len(names), WINDOW):
            some = names[start : start + WINDOW]
            self._shadow.load(epoch, [name for name in some if name not in epoch.states])
            states = [state for name in some if (state := epoch.states[name][0]) is not None]
            for state in states:
                name = state.tenant_id, state.conversation_id
                scope.last[name] = max(scope.last[name], rfc3339(state.last_event_at_ms))
            self._captured.records.clear()
            self._bulk.states(states, self._rules.options)
            self._emit(list(self._captured.records), sink)
            if len(epoch.states) > CACHED_STATES:
                epoch.states.clear()


def _enter(scope: Scope, record: Record) -> None:
    """Into the scope, under the names that its outputs will have."""
    outcome = record.outcome
    if not isinstance(outcome, Decoded):
        return
    event = outcome.event
    if isinstance(event, ChatEvent):
        at_ms = min(outcome.at_ms, record.timestamp_ms + FUTURE_TOLERANCE_MS)
        scope.add(event.tenant_id, event.conversation_id, event.message_id, rfc3339(at_ms))
    elif isinstance(event, ReviewEvent):
        scope.add(event.tenant_id, event.product_id, event.review_id, rfc3339(outcome.at_ms))
