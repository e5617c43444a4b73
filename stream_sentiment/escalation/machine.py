"""The escalation machine: none -> pending -> open -> (closing) -> resolved -> cooldown -> none.

In: the state after the fold, the turn, the fold's outcome, the rules. Out: the transitions in order; only `state.escalation` changes
(and `state_version`, by a timer). Pure: the time is the state's event time. Never blocks, raises nothing.

One escalation at most is open per conversation. The gravest rule that holds opens it; every other rule that holds is attached and may
raise the severity; it is resolved when each attached rule has been released for its `close_for_messages` customer messages in a row.
docs/rules.md tells the same for the people who write rules.
"""

from __future__ import annotations

from stream_sentiment.conversation.fold import Outcome
from stream_sentiment.conversation.state import ID, SCORE, WEIGHT, ConversationState, EscalationState
from stream_sentiment.conversation.turn import Turn
from stream_sentiment.escalation.announce import transition_of
from stream_sentiment.escalation.rules import CompiledRule, RuleSet, RuleView
from stream_sentiment.escalation.severity import RANK
from stream_sentiment.escalation.transition import Resolution, Transition, escalation_id

# Openings remembered per conversation, so that a late edit of a message cannot open under an id that has been told before.
REMEMBERED_OPENINGS = 8

_DUPLICATE, _UNKNOWN, _LATE = Outcome.DUPLICATE, Outcome.UNKNOWN_MESSAGE, Outcome.LATE


def step(
    state: ConversationState,
    turn: Turn,
    outcome: Outcome,
    rules: RuleSet,
    expired: ConversationState | None = None,
) -> list[Transition]:
    """The transitions that this turn causes; `expired` is the fold's, whose open escalation resolves first."""
    done: list[Transition] = []
    if expired is not None:
        done += close(expired, "expired", expired.last_event_at_ms + rules.options_of(expired).ttl_ms, rules)
    if outcome is _DUPLICATE:
        return done
    view = rules.view_for(state)
    kind = turn.kind
    if kind == "created" or kind == "edited":
        if turn.role == "customer":
            if turn.score is not None or turn.signals:
                _customer_turn(state, turn, outcome, view, done)
        elif state.escalation is not None:
            _others_turn(state, turn, view, done)
    elif kind == "ended":
        if state.status == "ended" and outcome is not _LATE:
            done += close(state, "conversation_ended", turn.at_ms, rules)
    elif kind != "deleted" and state.escalation is not None:
        _others_turn(state, turn, view, done)
    return done


def tick(state: ConversationState, now_ms: int, rules: RuleSet) -> list[Transition]:
    """Everything that falls due by event time `now_ms` without a message, each stamped with the moment at which it fell due.

    Because of the stamp the result does not depend on how often a worker ticks; `advance` ticks before every turn.
    """
    done: list[Transition] = []
    view = rules.view_for(state)
    while (due := _next_due(state, view)) is not None and due[0] <= now_ms:
        at, rule = due
        if rule is None:
            done += _expire(state, at, rules)
        else:
            _timer_fires(state, at, rule, view, done)
        state.state_version += 1
    return done


def next_deadline(state: ConversationState, rules: RuleSet) -> int | None:
    """The earliest event time at which `tick` would do something; None: only a message can change this conversation."""
    due = _next_due(state, rules.view_for(state))
    return None if due is None else due[0]


def close(state: ConversationState, resolution: Resolution, at_ms: int, rules: RuleSet) -> list[Transition]:
    """Resolve the open escalation for a reason outside the rules; nothing when none is open."""
    esc = state.escalation
    if esc is None:
        return []
    if esc.status != "open":
        esc.pending = {}
        if esc.status == "pending":
            esc.status = "none"
        return []
    done: list[Transition] = []
    _resolve(state, esc, None, resolution, max(at_ms, esc.opened_at_ms or at_ms), rules.view_for(state), done)
    return done


def _customer_turn(
    state: ConversationState, turn: Turn, outcome: Outcome, view: RuleView, done: list[Transition]
) -> None:
    now = state.last_event_at_ms
    esc = state.escalation
    # A message that is late, or was written before the conversation ended, speaks only to rules that must never be missed.
    limited = outcome is _LATE or outcome is _UNKNOWN or state.status != "active"
    if esc is None or esc.status != "open":
        if esc is not None and esc.cooldown_until_ms is not None and now >= esc.cooldown_until_ms:
            esc.cooldown_until_ms = esc.cooldown_severity = None
            esc.status = "none"
        holding: list[CompiledRule] | None = None
        quiet = view.quiet_rules if state.score <= view.ceiling else view.free_rules
        rules = view.rules if turn.signals else quiet
        for rule in rules:
            if rule.holds(state, turn, now):
                if _guarded(state, rule, view, limited):
                    continue
                if holding is None:
                    holding = []
                holding.append(rule)
        if holding is not None:
            _may_open(state, turn, now, holding, view, done)
        elif esc is not None and esc.pending and not limited and turn.kind == "created":
            esc.pending = {}
            if esc.status == "pending":
                esc.status = "none"
        return
    _while_open(state, esc, turn, now, view, limited, done)


def _guarded(state: ConversationState, rule: CompiledRule, view: RuleView, limited: bool) -> bool:
    """Whether a guard keeps a rule that holds from opening."""
    if state.scored < rule.min_messages and not (rule.bypass and rule.min_messages == 1):
        return True
    if rule.bypass:
        return False
    if limited or state.counts["customer"] <= view.skip_first_messages:
        return True
    # Unsure messages cannot open alone: one that the model was sure of has to point the same way.
    sign = rule.condition.sign
    return sign != 0 and not any(entry[WEIGHT] >= 1.0 and entry[SCORE] * sign > 0 for entry in state.window)


def _may_open(
    state: ConversationState,
    turn: Turn,
    now: int,
    holding: list[CompiledRule],
    view: RuleView,
    done: list[Transition],
) -> None:
    esc = state.escalation
    if esc is None:
        esc = state.escalation = EscalationState()
    ready = _count_pending(esc, holding, counts=turn.kind == "created")
    cooling = esc.cooldown_until_ms is not None  # one that is over has been cleared before
    if not cooling:
        esc.status = "pending" if esc.pending else "none"
    opener: CompiledRule | None = None
    best = -1
    for rule in ready:
        grade = RANK[rule.severity_of(state)]
        if grade <= best or (cooling and not _breaks_cooldown(state, esc, rule)):
            continue
        if [turn.message_id, rule.id] not in esc.opened:
            opener, best = rule, grade
    if opener is not None:
        _open(state, turn.message_id, turn, now, opener, ready, view, done)


def _breaks_cooldown(state: ConversationState, esc: EscalationState, rule: CompiledRule) -> bool:
    return rule.bypass or RANK[rule.severity_of(state)] > RANK[esc.cooldown_severity or "info"]


def _open(
    state: ConversationState,
    message_id: str,
    turn: Turn | None,
    now: int,
    opener: CompiledRule,
    attached: list[CompiledRule],
    view: RuleView,
    done: list[Transition],
) -> None:
    esc = state.escalation
    if esc is None:
        esc = state.escalation = EscalationState()
    esc.status = "open"
    esc.escalation_id = escalation_id(state.identity, state.started_at_ms, message_id, opener.id)
    esc.storm_id = None
    esc.rule_id = opener.id
    esc.message_id = message_id
    esc.severity = max((rule.severity_of(state) for rule in attached), key=RANK.__getitem__)
    esc.opened_at_ms = esc.notified_at_ms = now
    esc.notified_count = esc.revision = 1
    esc.attached = {rule.id: 0 for rule in attached}
    esc.pending = {}
    esc.cooldown_until_ms = esc.cooldown_severity = None
    esc.opened = [*esc.opened[1 - REMEMBERED_OPENINGS :], [message_id, opener.id]]
    done.append(transition_of("opened", state, esc, opener, turn, now, view, None))


def _count_pending(esc: EscalationState, holding: list[CompiledRule], counts: bool) -> list[CompiledRule]:
    """The rules that have held long enough; an edit does not count as one message more."""
    pending: dict[str, int] = {}
    ready = []
    for rule in holding:
        if rule.for_messages == 1:
            ready.append(rule)
            continue
        held = esc.pending.get(rule.id, 0) + counts
        pending[rule.id] = held
        if held >= rule.for_messages:
            ready.append(rule)
    esc.pending = pending
    return ready


def _while_open(
    state: ConversationState,
    esc: EscalationState,
    turn: Turn,
    now: int,
    view: RuleView,
    limited: bool,
    done: list[Transition],
) -> None:
    counts = turn.kind == "created" and turn.score is not None and not limited
    attached = esc.attached
    for rule_id in [known for known in attached if known not in view.by_id]:
        del attached[rule_id]  # the rule file has changed under an open escalation
    graver: CompiledRule | None = None
    new_family: CompiledRule | None = None
    holding: list[CompiledRule] = []
    for rule in view.rules:
        holds = rule.holds(state, turn, now) and not _guarded(state, rule, view, limited)
        if rule.id not in attached:
            if holds:
                holding.append(rule)
            continue
        if holds:
            attached[rule.id] = 0
            if RANK[rule.severity_of(state)] > RANK[esc.severity or "info"]:
                esc.severity, graver = rule.severity_of(state), rule
        elif counts:
            if _released(rule, state, now, view):
                attached[rule.id] += 1
                if attached[rule.id] >= rule.close_for_messages:
                    del attached[rule.id]
            else:
                attached[rule.id] = 0
    for rule in _count_pending(esc, holding, counts=turn.kind == "created"):
        attached[rule.id] = 0
        esc.pending.pop(rule.id, None)
        if RANK[rule.severity_of(state)] > RANK[esc.severity or "info"]:
            esc.severity, graver = rule.severity_of(state), rule
        elif rule.condition.kind == "signal":
            new_family = rule
    if not attached:
        _resolve(state, esc, turn, "recovered", now, view, done)
    elif graver is not None or new_family is not None:
        _update(state, esc, graver or new_family, turn, now, view, done)
    else:
        opener = view.by_id.get(esc.rule_id or "")
        every = opener.renotify_ms if opener is not None else 0
        # "Still not resolved" with the very message that says thanks would be wrong, though the score has some way to go.
        pleased = turn.score is not None and turn.score.score > 0
        if every and not pleased and now - (esc.notified_at_ms or 0) >= every and not any(attached.values()):
            _update(state, esc, None, turn, now, view, done)


def _released(rule: CompiledRule, state: ConversationState, now: int, view: RuleView) -> bool:
    if rule.until_end:
        return False
    if rule.released is None:
        return state.score >= view.close_score
    return rule.released(state, now)


def _others_turn(state: ConversationState, turn: Turn, view: RuleView, done: list[Transition]) -> None:
    """An agent's answer or a transfer releases the rules that waited for it, at once: nothing here can flap."""
    esc = state.escalation
    assert esc is not None
    if esc.status != "open":
        return
    now = state.last_event_at_ms
    for rule_id in list(esc.attached):
        rule = view.by_id.get(rule_id)
        if rule is None or (rule.condition.discrete and _released(rule, state, now, view)):
            del esc.attached[rule_id]
    if not esc.attached:
        _resolve(state, esc, turn, "recovered", now, view, done)


def _next_due(state: ConversationState, view: RuleView) -> tuple[int, CompiledRule | None] | None:
    """When, and which timed rule; None instead of a rule is the end of a conversation whose escalation is still open."""
    esc = state.escalation
    best: tuple[int, CompiledRule | None] | None = None
    if esc is not None and esc.status == "open":
        best = state.last_event_at_ms + view.options.ttl_ms, None
    if state.waiting_since_ms is not None and state.status == "active":
        for rule in view.timed:
            if state.score > rule.condition.ceiling:
                continue
            due = _rule_due(state, rule, view)
            if due is not None and (best is None or due < best[0]):
                best = due, rule
    return best


def _rule_due(state: ConversationState, rule: CompiledRule, view: RuleView) -> int | None:
    """The first moment at which a timed rule opens or attaches while nobody writes; None: it will not."""
    esc = state.escalation
    if esc is not None and (rule.id in esc.attached or [_newest_message(state), rule.id] in esc.opened):
        return None
    if _guarded(state, rule, view, limited=False):
        return None
    earliest = state.last_event_at_ms
    if esc is not None and esc.cooldown_until_ms is not None and not _breaks_cooldown(state, esc, rule):
        earliest = max(earliest, esc.cooldown_until_ms)
    waiting = state.waiting_since_ms
    assert waiting is not None
    for gap in rule.condition.gaps_ms:
        due = max(waiting + gap, earliest)
        if rule.holds(state, None, due):
            return due
    return None


def _timer_fires(state: ConversationState, at: int, rule: CompiledRule, view: RuleView, done: list[Transition]) -> None:
    esc = state.escalation
    if esc is None or esc.status != "open":
        _open(state, _newest_message(state), None, at, rule, [rule], view, done)
        return
    esc.attached[rule.id] = 0
    severity = rule.severity_of(state)
    if RANK[severity] > RANK[esc.severity or "info"]:
        esc.severity = severity
        _update(state, esc, rule, None, at, view, done)


def _newest_message(state: ConversationState) -> str:
    return state.window[-1][ID] if state.window else ""


def _expire(state: ConversationState, at: int, rules: RuleSet) -> list[Transition]:
    done = close(state, "expired", at, rules)
    state.status = "expired"
    state.ended_at_ms = at
    state.waiting_since_ms = None
    return done


def _update(
    state: ConversationState,
    esc: EscalationState,
    rule: CompiledRule | None,
    turn: Turn | None,
    now: int,
    view: RuleView,
    done: list[Transition],
) -> None:
    esc.revision += 1
    esc.notified_at_ms = now
    esc.notified_count += 1
    done.append(transition_of("updated", state, esc, rule, turn, now, view, None))


def _resolve(
    state: ConversationState,
    esc: EscalationState,
    turn: Turn | None,
    resolution: Resolution,
    now: int,
    view: RuleView,
    done: list[Transition],
) -> None:
    opener = view.by_id.get(esc.rule_id or "")
    cooldown = 0 if opener is None else opener.cooldown_ms
    esc.revision += 1
    esc.attached = {}
    esc.pending = {}
    esc.status = "cooldown" if cooldown else "none"
    esc.cooldown_until_ms = now + cooldown if cooldown else None
    esc.cooldown_severity = esc.severity if cooldown else None
    done.append(transition_of("resolved", state, esc, None, turn, now, view, resolution))
