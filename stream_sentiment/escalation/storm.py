"""The storm guard: when one tenant's alerts come faster than people can take them, the rest are marked and summed up, never dropped.

In: a transition of the machine, the tenant's `StormState` of this input partition, the limits in force. Out: the transition, marked
with the storm's id where the budget of its minute is spent, and the notices that tell of the storm. Pure: the minute is event time, so
that a partition folded again gives the same marks. Never blocks, raises nothing but `StateUnreadable`. docs/rules.md tells the rest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Literal, NamedTuple
from uuid import uuid5

import orjson

from stream_sentiment.conversation.state import ConversationState, StateUnreadable
from stream_sentiment.escalation.severity import RANK, Severity
from stream_sentiment.escalation.transition import ESCALATION_NAMESPACE, Transition

MINUTE_MS = 60_000
#: Minutes whose spent budgets are remembered. An alert of an older minute is counted in the oldest that is.
REMEMBERED_MINUTES = 16
#: Ids of held-back escalations that a notice names; the others are found on the topic by their `storm_id`.
SAMPLE = 20
SCHEMA = 1

StormAction = Literal["opened", "updated", "resolved"]


class StormLimits(NamedTuple):
    """Openings a minute that are announced: of a tenant, of any one rule of it, of any one complaint category. None: no limit."""

    tenant: int | None = 200
    rule: int | None = None
    category: int | None = None


@dataclass(slots=True)
class Minute:
    """What has been announced in one minute of event time."""

    announced: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Storm:
    """A storm under way. Counts are of openings held back since it began."""

    storm_id: str
    began_at_ms: int
    minute: int  # the newest in which an opening was held back
    told: int  # the minute of the last notice
    revision: int = 1
    held_back: int = 0
    severity: Severity = "info"  # the gravest of them
    limits: dict[str, int] = field(default_factory=dict)  # tenant, rule:<id>, category:<name> -> openings a minute
    rules: dict[str, int] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)
    severities: dict[str, int] = field(default_factory=dict)
    sample: list[str] = field(default_factory=list)


@dataclass(slots=True)
class StormState:
    """One tenant's alerts in one input partition, as Redis keeps it beside the conversations: no text, no conversation ids."""

    tenant_id: str
    minutes: dict[int, Minute] = field(default_factory=dict)
    storm: Storm | None = None

    def to_json(self) -> bytes:
        minutes = {str(minute): asdict(counts) for minute, counts in self.minutes.items()}
        storm = None if self.storm is None else asdict(self.storm)
        return orjson.dumps({"schema": SCHEMA, "tenant_id": self.tenant_id, "minutes": minutes, "storm": storm})

    @staticmethod
    def from_json(data: bytes) -> StormState:
        try:
            raw = orjson.loads(data)
            if raw["schema"] != SCHEMA:
                raise StateUnreadable(f"storm state has schema {raw['schema']}, this version reads {SCHEMA}")
            return StormState(
                raw["tenant_id"],
                {int(minute): Minute(**counts) for minute, counts in raw["minutes"].items()},
                None if raw["storm"] is None else Storm(**raw["storm"]),
            )
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise StateUnreadable(f"stored bytes are no storm state: {error}") from error


@dataclass(frozen=True, slots=True)
class StormNotice:
    """What the escalation topic is told of a storm: that it began, how it stands after each of its minutes, that it is over."""

    action: StormAction
    tenant_id: str
    at_ms: int
    partitions: int  # that share the limits
    storm: Storm


def share_of(limit: int, partitions: int) -> int:
    """One partition's part of a limit, at least one: partitions know nothing of each other, so each takes an equal part."""
    return -(-limit // partitions)


def pass_time(state: StormState, at_ms: int, partitions: int) -> list[StormNotice]:
    """The tenant's event time has come to `at_ms`: sum up a stormy minute that is over; end a storm after a minute without."""
    storm, minute = state.storm, at_ms // MINUTE_MS
    if storm is None or minute <= storm.told:
        return []
    storm.revision += 1
    storm.told = minute
    over = minute > storm.minute + 1
    if over:
        state.storm = None
    return [StormNotice("resolved" if over else "updated", state.tenant_id, at_ms, partitions, _copy(storm))]


def guard(
    state: StormState, transition: Transition, held: str | None, limits: StormLimits, partitions: int
) -> tuple[Transition, str | None, list[StormNotice]]:
    """Announce a transition, or hold it back.

    Args:
        held: id of the storm that holds this escalation back already.

    Returns:
        The transition, with `storm_id` where it is held back; what `held` is from now on; notices to be published after it.

    An opening is announced while its minute has budget. One that was held back is announced by its first update for which there
    is room; what consumers then see first is a revision above 1. An exempt transition is always announced and spends nothing.
    """
    if transition.action == "opened":
        held = None
    elif held is None:
        return transition, None, []
    if transition.exempt:
        return replace(transition, storm_id=None), None, []
    if transition.action == "resolved":
        return replace(transition, storm_id=held), held, []
    minute = _minute(state, transition.at_ms // MINUTE_MS)
    counts = state.minutes[minute]
    spent = _spent(counts, transition, limits, partitions)
    if not spent:
        counts.announced += 1
        _add(counts.rules, transition.rule_id)
        _add(counts.categories, transition.category or "other")
        return replace(transition, storm_id=None), None, []
    if transition.action == "updated":
        return replace(transition, storm_id=held), held, []
    notices: list[StormNotice] = []
    storm = state.storm
    began = storm is None
    if storm is None:
        storm_id = str(uuid5(ESCALATION_NAMESPACE, f"storm {transition.escalation_id}"))
        storm = state.storm = Storm(storm_id, transition.at_ms, minute, minute)
    storm.minute = max(storm.minute, minute)
    storm.held_back += 1
    storm.limits.update(spent)
    _add(storm.rules, transition.rule_id)
    _add(storm.categories, transition.category or "other")
    _add(storm.severities, transition.severity)
    storm.severity = max(storm.severity, transition.severity, key=RANK.__getitem__)
    if len(storm.sample) < SAMPLE:
        storm.sample.append(transition.escalation_id)
    if began:
        notices.append(StormNotice("opened", state.tenant_id, transition.at_ms, partitions, _copy(storm)))
    return replace(transition, storm_id=storm.storm_id), storm.storm_id, notices


def guard_turn(
    state: StormState,
    conversation: ConversationState,
    transitions: list[Transition],
    limits: StormLimits,
    partitions: int,
) -> tuple[list[Transition], list[StormNotice]]:
    """`guard` for what one turn or tick has caused in a conversation, which remembers whether its escalation is held back."""
    held: dict[str, str | None] = {}
    guarded: list[Transition] = []
    notices: list[StormNotice] = []
    for transition in transitions:
        name = transition.escalation_id
        result, held[name], told = guard(state, transition, held.get(name, transition.storm_id), limits, partitions)
        guarded.append(result)
        notices += told
    escalation = conversation.escalation
    if escalation is not None and escalation.escalation_id in held:
        escalation.storm_id = held[escalation.escalation_id]
    return guarded, notices


def notice_reason(notice: StormNotice, language: str) -> str:
    """One sentence in `language` (zh or en) that says why alerts are marked."""
    storm = notice.storm
    limits_zh = "、".join(f"{_scope(name, 1)}每分钟 {n} 条" for name, n in sorted(storm.limits.items()))
    limits = ", ".join(f"{n} a minute for {_scope(name, 0)}" for name, n in sorted(storm.limits.items()))
    shared = f" over {notice.partitions} partitions" if notice.partitions > 1 else ""
    shared_zh = f"（由 {notice.partitions} 个分区分摊）" if notice.partitions > 1 else ""
    n = storm.held_back
    if language == "zh":
        end = "告警风暴已结束。" if notice.action == "resolved" else ""
        return f"告警超出上限（{limits_zh}）{shared_zh}，已有 {n} 条仅标记、未单独通知。{end}"
    end = " The storm is over." if notice.action == "resolved" else ""
    return f"Alerts came faster than the limit ({limits}{shared}): {n} {'is' if n == 1 else 'are'} marked, not announced.{end}"


def _scope(name: str, zh: int) -> str:
    kind, _, what = name.partition(":")
    return {
        "tenant": ("the tenant", "租户"),
        "rule": (f"rule {what}", f"规则 {what} "),
        "category": (f"category {what}", f"类别 {what} "),
    }[kind][zh]


def _minute(state: StormState, minute: int) -> int:
    """The minute in whose budget an alert counts; makes room for it."""
    minutes = state.minutes
    if minute in minutes:
        return minute
    if len(minutes) >= REMEMBERED_MINUTES:
        oldest = min(minutes)
        if minute < oldest:
            return oldest
        del minutes[oldest]
    minutes[minute] = Minute()
    return minute


def _spent(counts: Minute, transition: Transition, limits: StormLimits, partitions: int) -> dict[str, int]:
    """The limits that leave no room, by scope."""
    rule, category = transition.rule_id, transition.category or "other"
    scopes = (
        ("tenant", limits.tenant, counts.announced),
        (f"rule:{rule}", limits.rule, counts.rules.get(rule, 0)),
        (f"category:{category}", limits.category, counts.categories.get(category, 0)),
    )
    return {scope: limit for scope, limit, used in scopes if limit is not None and used >= share_of(limit, partitions)}


def _add(counts: dict[str, int], name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _copy(storm: Storm) -> Storm:
    """As it stands now: a notice must not change with the storm."""
    return Storm(**asdict(storm))
