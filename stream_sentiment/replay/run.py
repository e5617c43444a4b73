"""A replay from beginning to end: which slices, through the engine, into files and topics, beside the live output.

In: settings, `Plan`. Out: `Report`. Blocks on Kafka, Redis and the model. Raises `ConfigurationError`, `ServiceUnavailable` or
`TryAgain`. The live group is asked for its commits and the live topics are read; nothing of either is written.
"""

from __future__ import annotations

import hashlib
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from confluent_kafka import Producer

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.events.envelope import rfc3339
from stream_sentiment.kafka.clients import produce, producer_config
from stream_sentiment.kafka.log_slice import EARLIEST, END, LogReader, Place, Point, Slice
from stream_sentiment.kafka.topics import TopicPlan, create_topics, plan_topics
from stream_sentiment.observability.logs import kafka_logger
from stream_sentiment.replay.compare import Comparison, compare
from stream_sentiment.replay.engine import Published, Replayed, Replayer
from stream_sentiment.replay.outputs import KINDS, Kind, Output, output_of
from stream_sentiment.replay.shadow import Shadow
from stream_sentiment.settings import Settings

FLUSH_SECONDS = 60.0
#: Clocks of brokers and producers differ: live outputs are looked for from so long before the first replayed record.
CLOCK_MARGIN_MS = 5 * 60_000

#: A progress bar: given a name and a total, gives a function that is told how much more is done.
Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay, and where to."""

    begin: Point
    end: Point | None = None  # None: as far as the live group has come
    warm_up_ms: int | None = None  # None: the life of a conversation in the rules
    compare: bool = True
    name: str = ""  # of the shadow namespace; "": a new one
    keep: bool = False  # leave the states in Redis
    topics: str = ""  # prefix of topics to publish to; "": none
    replication: int = 1


@dataclass(slots=True)
class Report:
    """What a replay gave. `digests`: SHA-256 of each file of outputs; equal for equal replays."""

    group: str
    prefix: str
    slices: list[Slice]
    replayed: Replayed
    counts: Counter[str] = field(default_factory=Counter)
    digests: dict[str, str] = field(default_factory=dict)
    comparison: Comparison | None = None
    published: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "group": self.group,
            "redis_prefix": self.prefix,
            "slices": [
                {
                    "topic": place[0],
                    "partition": place[1],
                    "read_from": part.begin,
                    "from": self.replayed.scope.slices.get(place, (part.begin, part.end))[0],
                    "until": part.end,
                }
                for part in self.slices
                for place in (part.place,)
            ],
            "records": self.replayed.records - self.replayed.warm_up,
            "warm_up_records": self.replayed.warm_up,
            **{kind: self.counts[kind] for kind in KINDS},
            "sha256": self.digests,
            "published": self.published,
            "compare": None if self.comparison is None else self.comparison.as_dict(),
        }


class _Sink:
    """Writes outputs into one file a kind, counts and remembers them, and publishes them where topics were asked for."""

    def __init__(self, folder: Path, keep: bool, producer: Producer | None, prefix: str) -> None:
        self.outputs: list[Output] = []
        self.counts: Counter[str] = Counter()
        self.published = 0
        self._keep = keep
        self._files: dict[Kind, IO[bytes]] = {kind: (folder / f"{kind}.jsonl").open("wb") for kind in KINDS}
        self._digests = {kind: hashlib.sha256() for kind in KINDS}
        self._producer = producer
        self._prefix = prefix

    def take(self, output: Output, record: Published) -> None:
        line = output.to_json() + b"\n"
        self._files[output.kind].write(line)
        self._digests[output.kind].update(line)
        self.counts[output.kind] += 1
        if self._keep:
            self.outputs.append(output)
        if self._producer is not None:
            produce(
                self._producer,
                self._producer.poll,
                topic=self._prefix + record.topic,
                key=record.key,
                value=record.value,
                headers=record.headers,
                on_delivery=self._delivered,
            )

    def _delivered(self, error: Any, _message: Any) -> None:
        self.published += error is None

    def close(self) -> dict[str, str]:
        for file in self._files.values():
            file.close()
        if self._producer is not None:
            self._producer.flush(FLUSH_SECONDS)
            if self.published < self.counts.total():
                raise ServiceUnavailable(
                    f"Kafka took {self.published} of {self.counts.total()} outputs; begin the replay again, or without --topics"
                )
        return {kind: digest.hexdigest() for kind, digest in self._digests.items()}


def replay(settings: Settings, rules: Any, scorer: Any, plan: Plan, folder: Path | None, bar: Bar) -> Report:
    """Replay and, where the plan says so, compare. `folder` gets one JSONL file for each kind of output."""
    name = plan.name or uuid.uuid4().hex[:8]
    warm_up_ms = rules.options.ttl_ms if plan.warm_up_ms is None else plan.warm_up_ms
    shadow = Shadow(settings, name, 2 * max(warm_up_ms, rules.options.ttl_ms))
    reader = LogReader(settings.kafka, shadow.group)
    try:
        inputs = reader.partitions(list(settings.topics.inputs()))
        reported = reader.slices(inputs, plan.begin, _end(plan))
        reported = _within_commits(reader, settings, plan, reported)
        slices = _warmed_up(reader, inputs, reported, warm_up_ms)
        producer = _shadow_topics(reader, settings, plan, inputs) if plan.topics else None
        with tempfile.TemporaryDirectory() as scratch:
            where = folder or Path(scratch)
            where.mkdir(parents=True, exist_ok=True)
            sink = _Sink(where, plan.compare, producer, plan.topics)
            engine = Replayer(settings, rules, scorer, shadow, inputs)
            with bar("replaying", sum(part.end - part.begin for part in slices)) as progress:
                done = engine.run(reader, slices, {part.place: part.begin for part in reported}, sink.take, progress)
            digests = sink.close()
        report = Report(shadow.group, shadow.prefix, slices, done, sink.counts, digests, None, sink.published)
        if plan.compare:
            report.comparison = compare(sink.outputs, _live(reader, settings, inputs, reported, bar), done.scope)
        return report
    finally:
        reader.close()
        if not plan.keep:
            shadow.forget()
        shadow.close()


def _end(plan: Plan) -> Point:
    return plan.end or END


def _within_commits(reader: LogReader, settings: Settings, plan: Plan, slices: list[Slice]) -> list[Slice]:
    """What the live group has not applied yet has no live output: it is left out, unless an end was named and nothing is compared."""
    if plan.end is not None and not plan.compare:
        return slices
    committed = reader.committed(settings.kafka.group_id, [part.place for part in slices])
    if not committed:
        return slices  # the group has never worked, and all of it is missing on the live topics
    return [
        Slice(part.place, part.begin, max(part.begin, min(part.end, committed.get(part.place, part.begin))))
        for part in slices
    ]


def _warmed_up(reader: LogReader, inputs: dict[str, int], slices: list[Slice], warm_up_ms: int) -> list[Slice]:
    """The slices with what lies before them, so that conversations under way have their states: by time, from the first record."""
    if not warm_up_ms:
        return slices
    first: dict[Place, int] = {}
    for part in slices:
        if part.begin < part.end:
            record = next(reader.read(Slice(part.place, part.begin, part.end)), None)
            if record is not None:
                first[part.place] = record.timestamp_ms
    earliest = {part.place: part.begin for part in reader.slices(inputs, EARLIEST, END)}
    if not first or all(part.begin <= earliest[part.place] for part in slices):
        return slices
    at = Point("warm-up", at_ms=min(first.values()) - warm_up_ms)
    begins = {part.place: part.begin for part in reader.slices(inputs, at, END)}
    return [Slice(part.place, min(part.begin, begins[part.place]), part.end) for part in slices]


def _shadow_topics(reader: LogReader, settings: Settings, plan: Plan, inputs: dict[str, int]) -> Producer:
    """Create what is missing of the shadow's own output topics; returns the producer for them."""
    known = reader.topics()
    outputs = {
        settings.topics.scored,
        settings.topics.conversation_state,
        settings.topics.escalations,
        settings.topics.dead_letters,
    }
    plans = [
        TopicPlan(plan.topics + planned.name, planned.partitions, planned.config)
        for planned in plan_topics(settings, max(inputs.values()))
        if planned.name in outputs and plan.topics + planned.name not in known
    ]
    if plans:
        create_topics(settings, plans, plan.replication)
    output = settings.output
    return Producer(producer_config(settings.kafka, output.linger, output.delivery_timeout, kafka_logger("replay")))


def _live(
    reader: LogReader, settings: Settings, inputs: dict[str, int], reported: list[Slice], bar: Bar
) -> Iterator[Output]:
    """Everything on the live output topics since the first replayed record, less what is at hand already."""
    topics = settings.topics
    kinds: dict[str, Kind] = {
        topics.escalations: "escalations",
        topics.scored: "scored",
        topics.dead_letters: "dead_letters",
        topics.conversation_state: "states",
    }
    begin = _live_begin(reader, inputs, reported)
    if begin is None:
        return
    slices = reader.slices(reader.partitions(list(kinds)), begin, END)
    with bar("comparing", sum(part.end - part.begin for part in slices)) as progress:
        for part in slices:
            for record in reader.read(part):
                output = output_of(kinds[record.topic], record.key, record.value, record.headers)
                if output is not None:
                    yield output
                progress(1)


def _live_begin(reader: LogReader, inputs: dict[str, int], reported: list[Slice]) -> Point | None:
    """Where the live output of the slices can begin; None: they are all empty."""
    times = []
    for part in reported:
        if part.begin < part.end and (record := next(reader.read(part), None)) is not None:
            times.append(record.timestamp_ms)
    if not times:
        return None
    earliest = {part.place: part.begin for part in reader.slices(inputs, EARLIEST, END)}
    if all(part.begin <= earliest[part.place] for part in reported):
        return EARLIEST
    at_ms = min(times) - CLOCK_MARGIN_MS
    return Point(rfc3339(at_ms), at_ms=at_ms)
