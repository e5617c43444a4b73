"""A rule file loaded, checked and compiled.

In: the path of a YAML file, or None for the rules that come with the package. Out: `RuleSet`; its `view` is what the machine reads.
Blocks on one small file. Raises `ConfigurationError` that lists every mistake of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import yaml
from pydantic import ValidationError

from stream_sentiment.conversation.options import StateOptions
from stream_sentiment.conversation.rolling import shift_of
from stream_sentiment.conversation.state import ConversationState
from stream_sentiment.conversation.turn import ConversationIdentity, Scalar, Turn
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.escalation.conditions import Compiled, Holds, Released, compile_condition
from stream_sentiment.escalation.ruleformat import SIGNALS, Defaults, Desk, Rule, RuleFile
from stream_sentiment.escalation.severity import Severity
from stream_sentiment.escalation.signals import Lexicon, SignalFinder, changed_lexicon, load_lexicon, load_topics
from stream_sentiment.escalation.storm import StormLimits
from stream_sentiment.escalation.yamlmarks import Marks

if TYPE_CHECKING:
    from stream_sentiment.scoring.bundle import ModelInfo

DEFAULT_RULES = Path(__file__).with_name("default_rules.yaml")

_CONTEXT_ATTRIBUTES = ("queue", "customer_tier", "order_id", "product_id")


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """One rule as the machine reads it."""

    id: str
    index: int
    holds: Holds
    released: Released
    condition: Compiled
    severity: Severity  # the lowest one
    steps: tuple[tuple[float, Severity], ...]  # measured at or below -> severity, from mild to grave
    steps_on_shift: bool  # they measure the shift, not the rolling score
    min_messages: int
    for_messages: int
    close_for_messages: int
    until_end: bool
    cooldown_ms: int
    renotify_ms: int
    bypass: bool
    suggested_queue: str | None
    suggested_action: str | None

    def severity_of(self, state: ConversationState) -> Severity:
        """The gravest step that the state has reached."""
        reached = self.severity
        if not self.steps:
            return reached
        observed = shift_of(state) if self.steps_on_shift else state.score
        for at, level in self.steps:
            if observed <= at:
                reached = level
        return reached


@dataclass(frozen=True, slots=True)
class RuleView:
    """The rules and options for one kind of conversation (tenant, channel, attributes)."""

    version: str
    options: StateOptions
    rules: tuple[CompiledRule, ...]
    quiet_rules: tuple[CompiledRule, ...]  # those that can hold for a message without signals
    free_rules: tuple[CompiledRule, ...]  # those of them that can hold whatever the rolling score
    ceiling: float  # above this rolling score only the free ones can hold
    by_id: Mapping[str, CompiledRule]
    timed: tuple[CompiledRule, ...]
    skip_first_messages: int
    close_score: float
    language: str
    desks: Mapping[str, Desk]
    storm: StormLimits


@dataclass(slots=True)
class RuleSet:
    """A rule file. `version` names the file's own version and its content: every change of a byte that matters changes it."""

    version: str
    raw: dict[str, Any]
    file: RuleFile
    default: RuleView
    shortest_gap_ms: float = inf  # no timer of any view is due before a customer has waited this long
    shortest_ttl_ms: float = inf
    lexicon: Lexicon | None = None  # made when it is first asked for
    topics: Lexicon | None = None
    tenant_lexicons: dict[str, Lexicon] = field(default_factory=dict)
    views: dict[tuple[int, ...], RuleView] = field(default_factory=dict)

    @property
    def options(self) -> StateOptions:
        return self.default.options

    def finder(self, model: ModelInfo | None = None) -> SignalFinder:
        """The signals of this rule file: its lexicon, and the model's head where the model has one."""
        if self.lexicon is None:
            self.lexicon = changed_lexicon(load_lexicon(), self.file.lexicon)
            self.topics = load_topics({str(name): lists for name, lists in self.file.complaints.words.items()})
            self.tenant_lexicons = {
                tenant: changed_lexicon(self.lexicon.copy(), changes)
                for tenant, changes in self.file.lexicon.tenants.items()
            }
        thresholds = {} if model is None else model.signal_thresholds
        labels = SIGNALS if model is None else model.labels.get("signals", ())
        return SignalFinder(self.lexicon, thresholds, labels, self.tenant_lexicons, self.topics)

    def view(self, tenant_id: str, channel: str, attributes: Mapping[str, Scalar]) -> RuleView:
        """The rules for a conversation, overrides applied. The combinations are few and compiled once."""
        overrides = self.file.overrides
        if not overrides:
            return self.default
        known = {**attributes, "tenant_id": tenant_id, "channel": channel}
        matching = tuple(
            place
            for place, override in enumerate(overrides)
            if all(name in known and known[name] == value for name, value in override.match.items())
        )
        # Every set that a conversation can match has been compiled when the file was loaded (`_matching_sets`).
        return self.views[matching]

    def view_for(self, state: ConversationState) -> RuleView:
        if not self.file.overrides:
            return self.default
        return self.view(state.tenant_id, state.channel, state.attributes)

    def options_of(self, state: ConversationState) -> StateOptions:
        return self.view_for(state).options

    def options_for(self, state: ConversationState | None, turn: Turn, identity: ConversationIdentity) -> StateOptions:
        """The options with which this turn has to be folded."""
        if not self.file.overrides:
            return self.default.options
        if state is None:
            return self.view(identity.tenant_id, turn.channel, turn.attributes).options
        return self.view(identity.tenant_id, state.channel, {**state.attributes, **turn.attributes}).options


def load_rules(path: Path | str | None = None) -> RuleSet:
    """Read, check and compile a rule file; None: the rules of the package."""
    source = DEFAULT_RULES if path is None else Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"rule file {source} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"rule file {source} is no UTF-8 text: {error}") from error
    return parse_rules(text, str(source))


def parse_rules(text: str, name: str = "rules") -> RuleSet:
    """The same from text; `name` stands for the file in messages."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"rule file {name} is no YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"rule file {name}: the top level must be a mapping with version and rules")
    try:
        file = RuleFile.model_validate(raw)
    except ValidationError as error:
        raise _configuration_error(name, "", error, text) from error
    content = orjson.dumps(raw, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str)
    version = f"{file.version}-{sha256(content).hexdigest()[:12]}"
    default = _compile(file, version)
    rules = RuleSet(version, raw, file, default)
    for matching in _matching_sets(file):
        try:
            rules.views[matching] = _compile(_override(raw, file, matching), version)
        except ValidationError as error:
            where = "overrides " + " and ".join(f"{place + 1}" for place in matching)
            raise _configuration_error(name, f"with {where}: ", error) from error
        except _NoSuchPath as error:
            raise ConfigurationError(f"rule file {name}: {error}") from error
    views = [default, *rules.views.values()]
    gaps = [gap for view in views for rule in view.timed for gap in rule.condition.gaps_ms]
    rules.shortest_gap_ms = min(gaps, default=inf)
    rules.shortest_ttl_ms = min(view.options.ttl_ms for view in views)
    if "lexicon" in raw or "complaints" in raw:
        rules.finder()  # a mistake in it is found now
    return rules


class _NoSuchPath(ValueError):
    pass


def _matching_sets(file: RuleFile) -> list[tuple[int, ...]]:
    """Every set of overrides that one conversation can match: they must not ask for different values of the same name."""
    sets: list[tuple[tuple[int, ...], dict[str, Scalar]]] = [((), {})]
    for place, override in enumerate(file.overrides):
        for chosen, wanted in list(sets):
            if all(wanted.get(name, value) == value for name, value in override.match.items()):
                sets.append(((*chosen, place), {**wanted, **override.match}))
        if len(sets) > MAX_OVERRIDE_SETS:
            raise ConfigurationError(
                f"overrides: more than {MAX_OVERRIDE_SETS} combinations can match one conversation; "
                "make the matches exclusive (the same attribute with different values)"
            )
    return [chosen for chosen, _ in sets]


# Each is checked and compiled when the file is loaded, at about a millisecond, so that no combination surprises a running worker.
MAX_OVERRIDE_SETS = 512


def _override(raw: dict[str, Any], file: RuleFile, matching: tuple[int, ...]) -> RuleFile:
    changed = deepcopy(raw)
    for place in matching:
        for path, value in file.overrides[place].set.items():
            try:
                set_path(changed, path, value)
            except ConfigurationError as error:
                raise _NoSuchPath(f"override {place + 1}: {error}") from None
    return RuleFile.model_validate(changed)


def set_path(raw: dict[str, Any], path: str, value: Any) -> None:
    """`rules.<id>.<key>...`, `suppress.<key>` or a path below defaults (`state.half_life` is short for `defaults.state.half_life`)."""
    keys = path.split(".")
    where: Any = raw
    if keys[0] == "rules" and len(keys) > 2:
        where = next((rule for rule in raw["rules"] if rule["id"] == keys[1]), None)
        if where is None:
            known = [rule["id"] for rule in raw["rules"]]
            near = get_close_matches(keys[1], known, 1)
            hint = f", did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"
            raise ConfigurationError(f"{path}: there is no rule {keys[1]!r}{hint}")
        keys = keys[2:]
    elif keys[0] in Defaults.model_fields:
        where = raw.setdefault("defaults", {})
    elif keys[0] == "defaults" and len(keys) > 1:
        where = raw.setdefault("defaults", {})
        keys = keys[1:]
    elif keys[0] == "suppress" and len(keys) > 1:
        where = raw.setdefault("suppress", {})
        keys = keys[1:]
    else:
        raise ConfigurationError(f"{path}: a path starts with rules.<id>, defaults, state or suppress")
    for key in keys[:-1]:
        if not isinstance(where, dict) or not isinstance(where.setdefault(key, {}), dict):
            raise ConfigurationError(f"{path}: {key!r} holds a value, not further keys")
        where = where[key]
    where[keys[-1]] = value


def _compile(file: RuleFile, version: str) -> RuleView:
    defaults = file.defaults
    state = defaults.state
    matched = {name for override in file.overrides for name in override.match} - {"tenant_id", "channel"}
    options = StateOptions(
        alpha=state.alpha,
        prior=state.prior,
        half_life_ms=state.half_life,
        window=state.window,
        ttl_ms=state.ttl,
        max_lateness_ms=state.max_lateness,
        use_intensity=state.use_intensity,
        min_confidence=defaults.min_confidence,
        low_confidence_weight=defaults.low_confidence_weight,
        score_roles=frozenset(defaults.score_roles),
        kept_attributes=tuple(sorted({*_CONTEXT_ATTRIBUTES, *matched})),
    )
    rules = tuple(_compile_rule(rule, place, defaults) for place, rule in enumerate(file.rules) if rule.enabled)
    quiet = tuple(rule for rule in rules if not rule.condition.needs_signal)
    return RuleView(
        version=version,
        options=options,
        rules=rules,
        quiet_rules=quiet,
        free_rules=tuple(rule for rule in quiet if rule.condition.ceiling == inf),
        ceiling=max((rule.condition.ceiling for rule in quiet if rule.condition.ceiling < inf), default=-inf),
        by_id={rule.id: rule for rule in rules},
        timed=tuple(rule for rule in rules if rule.condition.gaps_ms),
        skip_first_messages=defaults.skip_first_messages,
        close_score=defaults.close.rolling_score,
        language=defaults.language,
        desks={str(name): desk for name, desk in file.complaints.desks.items()},
        storm=StormLimits(
            file.suppress.max_open_per_tenant_per_minute,
            file.suppress.max_open_per_rule_per_minute,
            file.suppress.max_open_per_category_per_minute,
        ),
    )


def _compile_rule(rule: Rule, place: int, defaults: Defaults) -> CompiledRule:
    condition = compile_condition(rule.when, defaults.min_confidence)
    steps: tuple[tuple[float, Severity], ...] = ()
    if isinstance(rule.severity, str):
        lowest = rule.severity
    else:
        lowest = rule.severity[0].level
        steps = tuple((step.at, step.level) for step in rule.severity)
    return CompiledRule(
        id=rule.id,
        index=place,
        holds=condition.holds,
        released=condition.released,
        condition=condition,
        severity=lowest,
        steps=steps,
        steps_on_shift=rule.when.rolling_score is None,
        min_messages=rule.min_customer_messages,
        for_messages=rule.for_messages,
        close_for_messages=rule.close_for_messages or defaults.close.for_messages,
        until_end=rule.until == "conversation_end",
        cooldown_ms=defaults.cooldown if rule.cooldown is None else rule.cooldown,
        renotify_ms=defaults.renotify_every if rule.renotify_every is None else rule.renotify_every,
        bypass=rule.bypass_cooldown,
        suggested_queue=rule.suggested_queue,
        suggested_action=rule.suggested_action,
    )


def _configuration_error(name: str, prefix: str, error: ValidationError, text: str = "") -> ConfigurationError:
    marks = Marks(text)
    lines = [f"rule file {name} has {error.error_count()} mistake(s); `stream-sentiment rules lint {name}` says more:"]
    for item in error.errors():
        mark = marks.of(marks.known(item["loc"]))
        place = f"line {mark.line}, column {mark.column}: " if text else ""
        where = ".".join(str(part) for part in item["loc"]) or "file"
        lines.append(f"  {place}{prefix}{where}: {str(item['msg']).removeprefix('Value error, ')}")
    return ConfigurationError("\n".join(lines))
