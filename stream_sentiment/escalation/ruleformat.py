"""The rule file as typed models: every key, its unit, its default, its bounds; the JSON Schema for editors comes from here.

In: the parsed YAML. Out: `RuleFile`. Raises pydantic's `ValidationError`, which `rules.load_rules` and `rules lint` turn into lines a
person can act on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from stream_sentiment.conversation.options import MAX_WINDOW
from stream_sentiment.escalation.severity import RANK, Severity

SIGNALS = (
    "human_request",
    "complaint",
    "refund_request",
    "legal_threat",
    "regulator_mention",
    "media_threat",
    "abuse",
    "churn",
    "safety_risk",
    "repeat_issue",
    "delivery_delay",
    "quality_defect",
    "thanks",
)
EMOTIONS = ("anger", "disappointment", "anxiety", "joy", "surprise", "neutral")

_UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)")


def parse_duration(value: Any) -> Any:
    """`90s`, `30m`, `24h` to milliseconds; 0 needs no unit."""
    if value == 0 and not isinstance(value, bool):
        return 0
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is no duration: write a whole number and a unit, as in 90s, 30m or 24h")
    return int(match[1]) * _UNIT_MS[match[2]]


Duration = Annotated[
    int,
    BeforeValidator(parse_duration),
    Field(ge=0, le=366 * _UNIT_MS["d"]),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+(ms|s|m|h|d)|0)$"}),
]
Score = Annotated[float, Field(ge=-1, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
RuleId = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
SignalName = Literal[
    "human_request",
    "complaint",
    "refund_request",
    "legal_threat",
    "regulator_mention",
    "media_threat",
    "abuse",
    "churn",
    "safety_risk",
    "repeat_issue",
    "delivery_delay",
    "quality_defect",
    "thanks",
]
EmotionName = Literal["anger", "disappointment", "anxiety", "joy", "surprise", "neutral"]
PhaseName = Literal["with_bot", "with_agent"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Threshold(_Strict):
    """Opens at or below `open`, is released at or above `close`; the gap between them is the hysteresis."""

    open: Score
    close: Score | None = Field(None, description="default: 0.25 above open")

    @model_validator(mode="after")
    def _close_is_above_open(self) -> Threshold:
        if self.close is not None and self.close <= self.open:
            raise ValueError(f"close ({self.close:g}) must be above open ({self.open:g}), or the alert would flap")
        return self


class Streak(_Strict):
    """The last `length` customer turns all have this sign, each at least this strong."""

    sign: Literal["negative", "positive"] = "negative"
    length: int = Field(ge=1, le=MAX_WINDOW)
    min_score: Score | None = Field(None, description="weakest score that still counts: at or below it for negative")


class Message(_Strict):
    """This one message, when the model is sure enough of it (`min_confidence`)."""

    emotion: EmotionName | None = None
    min_probability: Share | None = Field(None, description="of the emotion; default 0.5")
    max_score: Score | None = Field(None, description="holds at or below it")
    label: Literal["negative", "neutral", "positive"] | None = None
    min_intensity: float | None = Field(
        None, ge=0, le=3, description="0 none .. 3 strong; ignored by a model without it"
    )

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.emotion is None and self.max_score is None and self.label is None:
            raise ValueError("name an emotion, a max_score or a label")
        if self.min_probability is not None and self.emotion is None:
            raise ValueError("min_probability needs an emotion")
        return self


class SignalsSeen(_Strict):
    """The signal has been in at least this many messages of the conversation, this one included."""

    signal: SignalName
    at_least: int = Field(ge=1, le=1000)


class Condition(_Strict):
    """All keys given must hold."""

    rolling_score: Threshold | None = None
    streak: Streak | None = None
    message: Message | None = None
    signal: SignalName | None = None
    signal_any: list[SignalName] | None = Field(None, min_length=1)
    signals_seen: SignalsSeen | None = None
    shift: Threshold | None = Field(None, description="(end - begin) / 2, negative when it gets worse")
    agent_response_gap: Duration | None = Field(None, description="the customer has waited this long for an answer")
    phase: PhaseName | None = None
    all: list[Condition] | None = Field(None, min_length=1)
    any: list[Condition] | None = Field(None, min_length=1)
    not_: Condition | None = Field(None, alias="not")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _says_something(self) -> Condition:
        if not any(True for _ in self.parts()):
            raise ValueError("an empty condition would hold for every message")
        return self

    def parts(self) -> Iterator[tuple[str, Any]]:
        """The keys that were given, in the order of the model, with their values."""
        for name, value in self:
            if value is not None:
                yield name.rstrip("_"), value

    def has_timer(self) -> bool:
        """Whether it can begin to hold without a message."""
        return self.agent_response_gap is not None or any(
            part.has_timer() for part in [*(self.all or ()), *(self.any or ())]
        )


class SeverityStep(_Strict):
    at: Score
    level: Severity


class Rule(_Strict):
    id: RuleId
    description: str = ""
    enabled: bool = True
    when: Condition
    severity: Severity | list[SeverityStep] = "warning"
    min_customer_messages: int = Field(1, ge=1, le=1000, description="scored customer messages before it may open")
    for_messages: int = Field(1, ge=1, le=100, description="consecutive messages the condition must hold")
    close_for_messages: int | None = Field(None, ge=1, le=100, description="default: defaults.close.for_messages")
    until: Literal["recovered", "conversation_end"] = "recovered"
    cooldown: Duration | None = Field(None, description="default: defaults.cooldown")
    renotify_every: Duration | None = Field(None, description="default: defaults.renotify_every; 0 never")
    bypass_cooldown: bool = Field(False, description="ignores cooldown, skip_first_messages, lateness and storm guard")
    suggested_queue: str | None = Field(None, max_length=100)
    suggested_action: str | None = Field(None, max_length=100)

    @model_validator(mode="after")
    def _timers_do_not_count_messages(self) -> Rule:
        if self.for_messages > 1 and self.when.has_timer():
            raise ValueError(
                "for_messages counts messages, and agent_response_gap fires when nobody writes: use one of them"
            )
        return self

    @model_validator(mode="after")
    def _steps_make_sense(self) -> Rule:
        if isinstance(self.severity, str):
            return self
        if not self.severity:
            raise ValueError("severity: an empty list of steps")
        if self.when.rolling_score is None and self.when.shift is None:
            raise ValueError("severity steps need a rolling_score or a shift at the top of `when` to be measured on")
        measured = self.when.rolling_score or self.when.shift
        assert measured is not None
        for step, deeper in zip(self.severity, self.severity[1:], strict=False):
            if deeper.at >= step.at or RANK[deeper.level] <= RANK[step.level]:
                raise ValueError(f"severity: the step at {deeper.at:g} must be lower and graver than the one before it")
            if deeper.at >= measured.open:
                raise ValueError(
                    f"severity: {step.level} is unreachable, because the rule opens at {measured.open:g} "
                    f"and {deeper.level} begins at {deeper.at:g} already"
                )
        return self


class StateDefaults(_Strict):
    alpha: Share = Field(0.3, description="EWMA weight of one message")
    prior: Score = 0.0
    window: int = Field(MAX_WINDOW, ge=1, le=MAX_WINDOW)
    half_life: Duration | None = Field(30 * 60_000, description="null: time is ignored")
    use_intensity: bool = Field(False, description="scale a message's score by the model's intensity / 3")
    ttl: Duration = 24 * 3_600_000
    max_lateness: Duration = 3_600_000

    @model_validator(mode="after")
    def _durations_are_positive(self) -> StateDefaults:
        if self.half_life == 0:
            raise ValueError("half_life: 0 would forget every message at once; null switches time off")
        if self.ttl == 0:
            raise ValueError("ttl: 0 would end a conversation with every message")
        return self


class CloseDefaults(_Strict):
    """How an escalation closes whose rule has no closing condition of its own."""

    rolling_score: Score = 0.0
    for_messages: int = Field(2, ge=1, le=100)


class Defaults(_Strict):
    language: Literal["zh", "en"] = Field("en", description="of the reason, when a conversation's own is unknown")
    score_roles: tuple[Literal["customer"], ...] = ("customer",)
    min_confidence: float = Field(0.55, ge=0, le=1)
    low_confidence_weight: float = Field(0.5, gt=0, le=1)
    skip_first_messages: int = Field(0, ge=0, le=100)
    cooldown: Duration = 10 * 60_000
    renotify_every: Duration = 15 * 60_000
    close: CloseDefaults = CloseDefaults()
    state: StateDefaults = StateDefaults()


class Override(_Strict):
    """For conversations that match all of `match` (tenant_id, channel or attributes), set dotted paths; later entries win."""

    match: dict[str, str | int | float | bool] = Field(min_length=1)
    set: dict[str, Any] = Field(min_length=1)


class Suppress(_Strict):
    """The storm guard: how many escalations of one tenant are announced in a minute; the others are marked and summed up."""

    max_open_per_tenant_per_minute: int | None = Field(200, ge=1, description="null: no limit")
    max_open_per_rule_per_minute: int | None = Field(None, ge=1, description="of any one rule of the tenant")
    max_open_per_category_per_minute: int | None = Field(
        None, ge=1, description="of any one complaint category of the tenant; `other` where there is none"
    )


CATEGORIES = ("quality", "service", "logistics", "price_promo", "refund_after_sales", "account_payment", "other")
CategoryName = Literal[
    "quality", "service", "logistics", "price_promo", "refund_after_sales", "account_payment", "other"
]


class Desk(_Strict):
    """Where a complaint of one category goes."""

    suggested_queue: str | None = Field(None, max_length=100)
    suggested_action: str | None = Field(None, max_length=100)


class Complaints(_Strict):
    """Queue and action by category, for rules that name none; and words that speak of a category."""

    desks: dict[CategoryName, Desk] = {}
    words: dict[CategoryName, PhraseLists] = {}


class PhraseLists(_Strict):
    zh: list[str] = []
    en: list[str] = []


class LexiconChanges(_Strict):
    """Changes to the lexicon of the package, signal by signal."""

    add: dict[SignalName, PhraseLists] = {}
    remove: dict[SignalName, PhraseLists] = {}
    exceptions: dict[SignalName, PhraseLists] = Field(
        {}, alias="except", description="longer phrases that do not count"
    )

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class LexiconSection(LexiconChanges):
    tenants: dict[str, LexiconChanges] = Field({}, description="further changes for one tenant")


class RuleFile(_Strict):
    version: int | str
    defaults: Defaults = Defaults()
    rules: list[Rule] = Field(min_length=1)
    overrides: list[Override] = []
    suppress: Suppress = Suppress()
    lexicon: LexiconSection = LexiconSection()
    complaints: Complaints = Complaints()

    @model_validator(mode="after")
    def _ids_are_unique(self) -> RuleFile:
        seen: set[str] = set()
        for rule in self.rules:
            if rule.id in seen:
                raise ValueError(f"two rules have the id {rule.id!r}")
            seen.add(rule.id)
        return self
