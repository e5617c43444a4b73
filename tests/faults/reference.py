"""What must come out: one thread, no faults, the records of each input partition folded in their order.

In: the records of the input topics as they stand in Kafka. Out: `Outcome`, the final state of every conversation and every output by
id. `differences` compares it with what the workers have left in Redis and Kafka.

Uses the project's pure parts (decode, route, advance) and none of what joins them in a worker: stages, cache, store, outbox.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.conversation.turn import ConversationIdentity, Turn
from stream_sentiment.escalation.advance import advance
from stream_sentiment.escalation.rules import RuleSet
from stream_sentiment.escalation.storm import StormState, guard_turn, pass_time
from stream_sentiment.events.envelope import record_key
from stream_sentiment.events.incoming import ChatEvent, Decoded, InvalidEvent, Skip, decode
from stream_sentiment.events.outgoing import escalation_event, storm_event
from stream_sentiment.events.routing import RoutingOptions, route
from stream_sentiment.kafka.dead_letter import dead_letter_id
from stream_sentiment.scoring.scorer import StubScorer
from stream_sentiment.store.keys import conversation_key
from stream_sentiment.testing import Record

#: As in the apply stage: event time further ahead of the broker's clock is cut.
FUTURE_TOLERANCE_MS = 5 * 60 * 1000

Place = tuple[str, int]


@dataclass
class Outcome:
    """Everything that must be, or was found, after the run."""

    states: dict[tuple[Place, str], bytes] = field(default_factory=dict)
    #: `<escalation_id>.<revision>` -> key and value without `timing`
    escalations: dict[str, tuple[bytes, Any]] = field(default_factory=dict)
    #: dead letter id -> place and error class
    dead_letters: dict[str, tuple[str, str, str, str]] = field(default_factory=dict)
    #: (tenant, conversation or product, message or review, kind) of every scored event
    scored: set[tuple[str, str, str, str]] = field(default_factory=set)
    #: how often each id of escalations and dead letters is in its topic
    copies: Counter[str] = field(default_factory=Counter)


def sequential_fold(
    inputs: Mapping[str, tuple[str, Iterable[Record]]],
    rules: RuleSet,
    max_event_bytes: int,
    partitions: Mapping[str, int] | None = None,
) -> Outcome:
    """`inputs`: topic -> (kind of its events, its records, partition by partition in order); `partitions`: how many it has."""
    scorer, outcome = StubScorer(), Outcome()
    routing = RoutingOptions(score_roles=rules.options.score_roles)
    states: dict[tuple[Place, str], ConversationState] = {}
    storms: dict[tuple[Place, str], StormState] = {}
    for topic, (kind, records) in inputs.items():
        count = (partitions or {}).get(topic, 1)
        for record in records:
            try:
                headers = {name.lower(): value.encode() for name, value in record.headers.items()}
                decoded = decode(kind, record.value, headers, max_event_bytes)
            except InvalidEvent as invalid:
                place = (topic, str(record.partition), str(record.offset), str(invalid.reason))
                outcome.dead_letters[dead_letter_id(topic, record.partition, record.offset)] = place
                continue
            if isinstance(decoded, Skip):
                continue
            if isinstance(decoded.event, ChatEvent):
                _chat(outcome, states, storms, topic, count, record, decoded, rules, routing, scorer)
            elif decoded.kind != "deleted":
                event = decoded.event
                outcome.scored.add((event.tenant_id, event.product_id, event.review_id, decoded.kind))
    outcome.states = {place: state.to_json() for place, state in states.items()}
    return outcome


def _chat(
    outcome: Outcome,
    states: dict[tuple[Place, str], ConversationState],
    storms: dict[tuple[Place, str], StormState],
    topic: str,
    partitions: int,
    record: Record,
    decoded: Decoded,
    rules: RuleSet,
    routing: RoutingOptions,
    scorer: StubScorer,
) -> None:
    event = decoded.event
    text, language, skipped, _ = route(decoded, routing)
    score = scorer.score([text])[0] if text is not None else None
    signals, topics = rules.finder(scorer.info).hear(text, score, event.tenant_id)
    turn = Turn(
        decoded.kind,
        event.message_id or "",
        min(decoded.at_ms, record.timestamp_ms + FUTURE_TOLERANCE_MS),
        event.sender["role"] if event.sender else "",
        record.offset,
        event.sequence,
        score,
        skipped,
        signals,
        event.channel,
        event.attributes or {},
        event.phase,
        language or event.language or "",
        topics,
    )
    identity = ConversationIdentity(event.tenant_id, event.conversation_id)
    place = ((topic, record.partition), conversation_key(*identity))
    state, what, transitions, _ = advance(states.get(place), turn, identity, rules)
    states[place] = state
    # The workers start with these rules and this model, so a duplicate that leaves the state alone leaves them alone, too.
    state.model_version, state.rules_version = f"{scorer.info.name}@{scorer.info.version}", rules.version
    storm = storms.setdefault(((topic, record.partition), event.tenant_id), StormState(event.tenant_id))
    notices = pass_time(storm, turn.at_ms, partitions)
    transitions, told = guard_turn(storm, state, transitions, rules.view_for(state).storm, partitions)
    for notice in notices + told:
        value = storm_event(
            notice,
            language=rules.default.language,
            source=(topic, record.partition),
            rules_version=rules.version,
            emitted_at_ms=0,
        )
        outcome.escalations[f"{notice.storm.storm_id}.{notice.storm.revision}"] = (
            record_key(event.tenant_id, "").encode(),
            _lasting(value),
        )
    for transition in transitions:
        value = escalation_event(state, transition, model=_model(scorer), rules_version=rules.version, emitted_at_ms=0)
        outcome.escalations[f"{transition.escalation_id}.{transition.revision}"] = (
            record_key(*identity).encode(),
            _lasting(value),
        )
    if what != "duplicate" and turn.role in rules.options.score_roles and turn.kind in ("created", "edited"):
        outcome.scored.add((*identity, turn.message_id, turn.kind))


def _model(scorer: StubScorer) -> dict[str, Any]:
    info = scorer.info
    return {name: getattr(info, name) for name in ("name", "version", "sha256", "precision", "max_length")}


def _lasting(value: Mapping[str, Any]) -> Any:
    """The value as JSON has it, without the wall-clock times: a run with crashes emits later."""
    return orjson.loads(orjson.dumps({name: part for name, part in value.items() if name != "timing"}))


def found_escalations(outcome: Outcome, records: Iterable[Record]) -> list[str]:
    """Take over what stands on the topic; returns problems: two records with one id that do not say the same."""
    problems = []
    for record in records:
        event_id = record.headers["ce_id"]
        content = (record.key or b"", _lasting(record.json()))
        outcome.copies[event_id] += 1
        if outcome.escalations.setdefault(event_id, content) != content:
            problems.append(f"escalation {event_id} was published with two different contents")
    return problems


def found_dead_letters(outcome: Outcome, records: Iterable[Record]) -> list[str]:
    """As `found_escalations`, for the dead letter topic."""
    problems = []
    for record in records:
        name = {part: record.headers[f"__dlq.{part}"] for part in ("id", "topic", "partition", "offset", "error.class")}
        content = (name["topic"], name["partition"], name["offset"], name["error.class"])
        outcome.copies[name["id"]] += 1
        if outcome.dead_letters.setdefault(name["id"], content) != content:
            problems.append(f"dead letter {name['id']} was published with two different contents")
    return problems


def found_scored(outcome: Outcome, records: Iterable[Record]) -> None:
    """As `found_escalations`, for the scored events, which may repeat."""
    for record in records:
        value = record.json()
        entity, item = ("conversation_id", "message_id") if "conversation_id" in value else ("product_id", "review_id")
        outcome.scored.add((value["tenant_id"], value[entity], value[item], value["kind"]))


def differences(expected: Outcome, found: Outcome) -> list[str]:
    """One line for every conversation, escalation, dead letter and scored event that is missing, unexpected or different."""
    problems = []
    for what in ("states", "escalations", "dead_letters"):
        wanted: dict[Any, Any] = getattr(expected, what)
        seen: dict[Any, Any] = getattr(found, what)
        problems += [f"{what}: {name} is missing" for name in wanted.keys() - seen.keys()]
        problems += [f"{what}: {name} was not expected" for name in seen.keys() - wanted.keys()]
        problems += [
            f"{what}: {name} differs: {_parts(seen[name], wanted[name])}"
            for name in wanted.keys() & seen.keys()
            if not _same(what, wanted[name], seen[name])
        ]
    problems += [f"scored: {item} is missing" for item in expected.scored - found.scored]
    problems += [f"scored: {item} was not expected" for item in found.scored - expected.scored]
    return problems


def _parts(seen: Any, wanted: Any) -> str:
    """The fields that differ, where both are JSON objects; escalations carry theirs beside the key."""
    if isinstance(seen, bytes):
        seen, wanted = orjson.loads(seen), orjson.loads(wanted)
    elif isinstance(seen[1], dict) and seen[0] == wanted[0]:
        seen, wanted = seen[1], wanted[1]
    else:
        return f"{seen!r} instead of {wanted!r}"
    names = [name for name in wanted if seen.get(name) != wanted[name]]
    return "; ".join(f"{name}={seen.get(name)!r} instead of {wanted[name]!r}" for name in names) or "order of fields"


def _same(what: str, wanted: Any, seen: Any) -> bool:
    if what == "dead_letters":
        return bool(wanted[:3] == seen[:3])  # the reason becomes one of a few classes on its way
    return bool(wanted == seen)
