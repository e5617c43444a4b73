"""The shapes of what we publish, as pydantic models: the source of the JSON Schemas under `docs/schemas`, and a test's judge.

The hot path does not build these: `events.outgoing` builds dictionaries, and a test validates them here. Changes to a schema are
additive within a major version (the number in the file's name); consumers ignore what they do not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema

from stream_sentiment.events.envelope import SCHEMA_BASE
from stream_sentiment.events.incoming import ChatEvent, ReviewEvent

Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Unit = Annotated[float, Field(ge=0, le=1)]
SignedUnit = Annotated[float, Field(ge=-1, le=1)]
Level = Annotated[int, Field(ge=1, le=7, description="1 is the most negative")]
Trend = Literal["declining", "slightly_declining", "no_change", "slightly_improving", "improving"]
Severity = Literal["info", "warning", "error", "critical"]


class _Out(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Span(_Out):
    begin: int = Field(ge=0, description="first character, in the masked text")
    end: int = Field(ge=0, description="one past the last")


class Polarity(_Out):
    negative: Unit
    neutral: Unit
    positive: Unit


class Sentiment(_Out):
    label: Literal["negative", "neutral", "positive"]
    score: SignedUnit = Field(description="p(positive) - p(negative)")
    probabilities: Polarity = Field(description="calibrated; sum 1")
    confidence: Unit = Field(description="the largest probability")
    level: Level


class Emotion(_Out):
    label: str
    probabilities: dict[str, Unit] = Field(description="labels of the model's manifest")


class SignalHit(_Out):
    name: str
    source: str = Field(description="lexicon or model")
    rule_id: str
    spans: list[Span]
    weight: Unit


class Correction(_Out):
    rule_id: str
    before: dict[str, Any]
    after: dict[str, Any]
    reason: str


class Complaint(_Out):
    category: str
    confidence: Unit | None = None


class Model(_Out):
    name: str
    version: str
    sha256: str
    precision: str
    max_length: int = Field(description="tokens")


class ScoredTiming(_Out):
    received_at: Time
    scored_at: Time
    queue_ms: float = Field(description="from the read to the close of its arrival window")
    inference_ms: float = Field(description="of the micro-batch that it was in")
    batch_size: int = Field(description="messages in that micro-batch")


class Rolling(_Out):
    score: SignedUnit
    level: Level
    trend: Trend
    customer_message_count: int


class _Scored(_Out):
    tenant_id: str
    kind: Literal["created", "edited"]
    created_at: Time
    sentiment: Sentiment | None = Field(description="null when the message was skipped")
    emotion: Emotion | None
    uncertain: bool = Field(description="inside the model's abstain band")
    corrections: list[Correction] = Field(
        description="what rules after the model have changed; sentiment and emotion are the result"
    )
    corrections_version: str = Field("off", description="the rules in force, by version and digest; off: none")
    complaint: Complaint | None
    language: str
    model: Model
    rules_version: str
    truncated: bool = Field(description="the text was cut, by characters or by tokens")
    skipped_reason: Literal["unsupported_content_type", "language_unsupported", "empty_text"] | None
    signals: list[SignalHit]
    timing: ScoredTiming = Field(description="wall clock; everything else is event time")


class ScoredMessage(_Scored):
    """`sentiment.scored`, of a chat message. The text is not repeated."""

    conversation_id: str
    message_id: str
    role: str
    channel: str
    rolling: Rolling = Field(description="the conversation after this message")


class ScoredReview(_Scored):
    """`sentiment.scored`, of a product review."""

    product_id: str
    review_id: str
    rating: float | None
    rating_text_disagreement: bool | None


class PointOfScore(_Out):
    score: SignedUnit
    message_id: str


class Streak(_Out):
    sign: Literal[-1, 0, 1]
    length: int


class RollingState(_Out):
    score: SignedUnit = Field(description="time-decayed EWMA, weighted by confidence")
    weight: float
    alpha: Unit
    level: Level
    window_mean: SignedUnit
    window_n: int
    min: PointOfScore | None
    max: PointOfScore | None
    last: PointOfScore | None
    begin_score: SignedUnit
    end_score: SignedUnit
    shift: SignedUnit = Field(description="(end - begin) / 2")
    trend_class: Trend
    slope: float = Field(description="score per message over the window")
    volatility: float = Field(description="standard deviation over the window")
    streak: Streak
    progressive_score: float = Field(ge=-5, le=5, description="Amazon Connect Contact Lens's formula")
    emotion_mix: dict[str, Unit]


class EscalationStatus(_Out):
    status: Literal["none", "pending", "open", "cooldown"]
    escalation_id: str | None
    severity: Severity | None
    opened_at: Time | None
    notified_count: int
    cooldown_until: Time | None


class ConversationStateValue(_Out):
    """`conversation.state`, compacted; a tombstone is erasure or expiry. Drop a value whose state_version is not above the last."""

    tenant_id: str
    conversation_id: str
    channel: str
    language: str
    status: Literal["active", "ended", "expired"]
    phase: Literal["with_bot", "with_agent"] | None
    started_at: Time
    last_message_at: Time
    updated_at: Time
    expires_at: Time
    counts: dict[str, int]
    rolling: RollingState
    agent_response_gap_s: float
    signals_seen: dict[str, int]
    escalation: EscalationStatus
    opportunity: bool
    approximate: bool
    model_version: str
    rules_version: str
    state_version: int


class TriggerBlock(_Out):
    rule_id: str
    rule_version: str
    kind: str
    observed: float
    open_threshold: float | None
    close_threshold: float | None
    min_messages: int


class EvidenceItem(_Out):
    message_id: str
    created_at: Time
    score: SignedUnit | None
    label: str | None
    emotion: str | None
    weight: Unit
    contribution: float = Field(description="exact share of the rolling score")
    spans: list[Span]
    excerpt: str | None = Field(None, max_length=120, description="masked; only where excerpts were asked for")
    excerpt_begin: int | None = Field(
        None, ge=0, description="place of the excerpt's first character in the masked text, into which spans point"
    )


class Context(_Out):
    channel: str
    phase: str | None
    queue: Any = None
    customer_tier: Any = None
    order_id: Any = None
    product_id: Any = None


class EscalationTiming(_Out):
    message_created_at: Time
    emitted_at: Time
    detection_latency_ms: int


class EscalationValue(_Out):
    """`escalation.events`. Drop an event whose revision is not above the last one seen for its escalation_id."""

    tenant_id: str
    conversation_id: str
    escalation_id: str = Field(description="UUIDv5 over tenant, conversation, its start, opening message and rule")
    dedup_key: str
    action: Literal["opened", "updated", "resolved"]
    revision: int = Field(ge=1)
    severity: Severity
    priority: Literal["P1", "P2", "P3", "P4"]
    rule_id: str = Field(description="the rule that opened it")
    attached_rules: list[str] = Field(description="every rule that holds it open")
    trigger: TriggerBlock
    reason: str = Field(description="one sentence in `language`")
    language: str
    score: SignedUnit
    level: Level
    trend: Trend
    emotion: str | None
    signals: list[str]
    complaint: Complaint | None
    suggested_queue: str | None
    suggested_action: str | None
    evidence: list[EvidenceItem] = Field(max_length=5)
    evidence_remainder: float = Field(description="share of older messages: contributions and remainder sum to score")
    evidence_omitted: bool = Field(False, description="the topic accepts no event of this size")
    context: Context
    opened_at: Time
    updated_at: Time
    resolved_at: Time | None
    resolution: (
        Literal["recovered", "conversation_ended", "expired", "acknowledged_by_service", "superseded", "erased"] | None
    )
    notified_count: int
    suppressed: bool = Field(
        False,
        description="held back by the storm guard: count it, page nobody; a later event of the id without it announces it",
    )
    storm_id: str | None = Field(None, description="the storm that holds it back")
    timing: EscalationTiming
    model: Model
    rules_version: str


class StormLimit(_Out):
    scope: str = Field(description="tenant, rule:<id> or category:<name>")
    per_minute: int
    share: int = Field(description="of this input partition")


class StormSource(_Out):
    topic: str
    partition: int
    partitions: int


class StormTiming(_Out):
    emitted_at: Time


class StormValue(_Out):
    """A storm's notice, on `escalation.events` with `ce_type` ...escalation_storm.*: one storm per tenant and input partition."""

    tenant_id: str
    storm_id: str
    action: Literal["opened", "updated", "resolved"]
    revision: int = Field(ge=1)
    severity: Severity = Field(description="the gravest that was held back")
    reason: str = Field(description="one sentence in `language`")
    language: str
    held_back: int = Field(ge=1, description="openings marked since the storm began")
    limits: list[StormLimit]
    by_rule: dict[str, int]
    by_category: dict[str, int]
    by_severity: dict[str, int]
    sample_escalation_ids: list[str] = Field(max_length=20)
    source: StormSource
    began_at: Time
    updated_at: Time
    resolved_at: Time | None
    timing: StormTiming
    rules_version: str


class DeadLetterHeaders(_Out):
    """Headers of `sentiment.dlq`, each named `__dlq.` + field; the value is the original record's, the key too."""

    id: str = Field(description="UUIDv5 over topic, partition and offset: a copy has the same")
    topic: str
    partition: str
    offset: str
    timestamp: Time
    error_class: Literal["decode", "schema", "too_large", "poison_model", "state_conflict"] = Field(alias="error.class")
    error_message: str = Field(alias="error.message", max_length=500)
    first_failed_at: Time
    attempts: str
    worker_version: str = Field(alias="worker.version")
    body: Literal["original", "sha256"]


SCHEMAS: dict[str, TypeAdapter[Any]] = {
    "chat.messages.v1": TypeAdapter(ChatEvent),
    "product.reviews.v1": TypeAdapter(ReviewEvent),
    "sentiment.scored.v1": TypeAdapter(ScoredMessage | ScoredReview),
    "conversation.state.v1": TypeAdapter(ConversationStateValue),
    "escalation.events.v1": TypeAdapter(EscalationValue),
    "escalation.storm.v1": TypeAdapter(StormValue),
    "sentiment.dlq.headers.v1": TypeAdapter(DeadLetterHeaders),
}


def render() -> dict[str, bytes]:
    """File name -> JSON Schema (draft 2020-12), indented, ending in a new line."""
    rendered = {}
    for name, adapter in SCHEMAS.items():
        mode: Literal["validation", "serialization"] = "validation"
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": SCHEMA_BASE + name.replace(".v", ":"),
            **adapter.json_schema(mode=mode),
        }
        rendered[f"{name}.schema.json"] = orjson.dumps(schema, option=orjson.OPT_INDENT_2) + b"\n"
    return rendered


def export(directory: Path) -> list[Path]:
    """Write every schema into `directory`; returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in render().items():
        path = directory / name
        path.write_bytes(content)
        written.append(path)
    return written
