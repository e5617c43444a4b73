"""The machine, one sentence of docs/rules.md at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from turn_builders import START, WHO, agent, customer, event, folded

from stream_sentiment.conversation import ConversationState, Outcome, StateOptions, Turn, fold
from stream_sentiment.escalation import RuleSet, Transition, advance, close, next_deadline, step, tick
from stream_sentiment.escalation.rules import parse_rules
from stream_sentiment.escalation.transition import escalation_id

SUSTAINED = """
version: 1
defaults: {cooldown: 10m, renotify_every: 0, state: {half_life: null}}
rules:
  - id: sustained
    when: {rolling_score: {open: -0.40, close: 0.0}}
    min_customer_messages: 2
    close_for_messages: 2
    severity: [{at: -0.40, level: warning}, {at: -0.60, level: error}, {at: -0.75, level: critical}]
"""

HUMAN = """
version: 1
defaults: {renotify_every: 0, state: {half_life: null}}
rules:
  - {id: human, when: {signal: human_request, phase: with_bot}, severity: warning}
  - {id: legal, when: {signal: legal_threat}, severity: error, bypass_cooldown: true, until: conversation_end}
  - {id: safety, when: {signal: safety_risk}, severity: critical, bypass_cooldown: true}
"""

UNANSWERED = """
version: 1
defaults: {renotify_every: 0, cooldown: 10m, state: {half_life: null}}
rules:
  - {id: unanswered, when: {rolling_score: {open: -0.25, close: 0.0}, agent_response_gap: 3m}, severity: error}
"""


class Conversation:
    """A conversation and its rules; `say` returns what was announced, as (action, rule, severity, revision)."""

    def __init__(self, rules: str | RuleSet) -> None:
        self.rules = parse_rules(rules) if isinstance(rules, str) else rules
        self.state: ConversationState | None = None
        self.transitions: list[Transition] = []

    def say(self, *turns: Turn) -> list[tuple[str, str, str, int]]:
        told: list[Transition] = []
        for turn in turns:
            result = advance(self.state, turn, WHO, self.rules)
            self.state = result.state
            told += result.transitions
        self.transitions += told
        return [brief(t) for t in told]

    def tick(self, at_s: float) -> list[tuple[str, str, str, int]]:
        assert self.state is not None
        told = tick(self.state, START + round(at_s * 1000), self.rules)
        self.transitions += told
        return [brief(t) for t in told]


def brief(t: Transition) -> tuple[str, str, str, int]:
    return t.action, t.trigger.rule_id, t.severity, t.revision


def complaints(n: int, first: int = 0, value: float = -1.0, every_s: int = 10) -> list[Turn]:
    return [customer(f"m{i}", i * every_s, value) for i in range(first, first + n)]


def test_two_plain_complaints_open_and_deeper_steps_raise_the_severity() -> None:
    chat = Conversation(SUSTAINED)
    assert chat.say(*complaints(1)) == []
    assert chat.say(*complaints(1, 1)) == [("opened", "sustained", "warning", 1)]
    assert chat.say(*complaints(1, 2)) == [("updated", "sustained", "error", 2)]
    assert chat.say(*complaints(1, 3)) == [("updated", "sustained", "critical", 3)]
    assert chat.say(*complaints(1, 4)) == []


def test_one_strong_message_does_not_open_a_rule_that_wants_two() -> None:
    chat = Conversation(SUSTAINED.replace("-0.40", "-0.30"))
    assert chat.say(customer("a", 0, -1.0)) == []
    without_guard = Conversation(SUSTAINED.replace("-0.40", "-0.30").replace("min_customer_messages: 2", ""))
    assert without_guard.say(customer("a", 0, -1.0)) == [("opened", "sustained", "warning", 1)]


def test_the_first_messages_can_be_skipped() -> None:
    skipping = SUSTAINED.replace("cooldown: 10m", "cooldown: 10m, skip_first_messages: 3")
    assert Conversation(skipping).say(*complaints(3)) == []
    assert Conversation(skipping).say(*complaints(4)) == [("opened", "sustained", "critical", 1)]


def test_an_escalation_closes_after_two_messages_in_a_row_at_or_above_close() -> None:
    chat = Conversation(SUSTAINED)
    chat.say(*complaints(2))
    assert chat.say(customer("a", 100, 1.0)) == []  # -0.51 -> -0.057: not there yet
    assert chat.say(customer("b", 110, 1.0)) == []  # 0.26: the first at or above close
    assert chat.say(customer("c", 120, 0.0)) == [("resolved", "sustained", "warning", 2)]
    assert chat.transitions[-1].resolution == "recovered"


def test_a_relapse_while_closing_keeps_the_escalation_open_without_an_event() -> None:
    chat = Conversation(SUSTAINED)
    chat.say(*complaints(2))
    chat.say(customer("a", 100, 1.0), customer("b", 110, 1.0))
    assert chat.state.escalation.attached == {"sustained": 1}
    assert chat.say(customer("c", 120, -1.0), customer("d", 130, 0.0)) == []
    assert chat.state.escalation.attached == {"sustained": 0}


def test_between_close_and_open_nothing_flaps() -> None:
    chat = Conversation(SUSTAINED)
    values = [-1.0, -1.0, 0.5, -0.9, 0.5, -0.9, 0.5, -0.9]
    assert chat.say(*[customer(f"m{i}", i, v) for i, v in enumerate(values)]) == [("opened", "sustained", "warning", 1)]
    # The control: a gap of almost nothing, one message to close and no cooldown, and the same chat opens again and again.
    flapping = SUSTAINED.replace("close: 0.0", "close: -0.39").replace("cooldown: 10m", "cooldown: 0")
    flapping = flapping.replace("close_for_messages: 2", "close_for_messages: 1")
    told = Conversation(flapping).say(*[customer(f"m{i}", i, v) for i, v in enumerate(values)])
    assert [action for action, *_ in told].count("opened") > 1


def test_after_resolving_the_same_or_a_milder_alert_stays_quiet_until_the_cooldown_is_over() -> None:
    def replay(rules: str) -> list[str]:
        chat = Conversation(rules)
        chat.say(*complaints(2))
        chat.say(*[customer(f"ok{i}", 100 + i, 1.0) for i in range(4)])
        chat.transitions.clear()
        chat.say(*[customer(f"again{i}", 200 + i, -0.8) for i in range(4)])
        return [f"{t.action} {t.severity}" for t in chat.transitions]

    assert replay(SUSTAINED) == []
    assert replay(SUSTAINED.replace("cooldown: 10m", "cooldown: 1m")) == ["opened warning"]


def test_a_graver_alert_breaks_the_cooldown() -> None:
    chat = Conversation(SUSTAINED)
    chat.say(*complaints(2))
    chat.say(*[customer(f"ok{i}", 100 + i, 1.0) for i in range(4)])
    chat.transitions.clear()
    chat.say(*[customer(f"again{i}", 200 + i, -1.0) for i in range(6)])
    assert brief(chat.transitions[0]) == ("opened", "sustained", "error", 1)


def test_the_cooldown_ends_in_event_time_and_the_state_says_so() -> None:
    chat = Conversation(SUSTAINED)
    chat.say(*complaints(2), *[customer(f"ok{i}", 100 + i, 1.0) for i in range(4)])
    assert chat.state.escalation.status == "cooldown"
    resolved_at = chat.transitions[-1].at_ms
    assert chat.state.escalation.cooldown_until_ms == resolved_at + 600_000
    chat.say(customer("later", 102 + 600, 0.0))
    assert chat.state.escalation.status == "none"


def test_a_rule_may_ask_for_several_messages_in_a_row_and_starts_again_when_one_fails() -> None:
    patient = SUSTAINED.replace("min_customer_messages: 2", "for_messages: 2")
    chat = Conversation(patient)
    assert chat.say(*complaints(2)) == []
    assert (chat.state.escalation.status, chat.state.escalation.pending) == ("pending", {"sustained": 1})
    assert chat.say(customer("x", 90, 1.0)) == []
    assert chat.state.escalation.status == "none"
    assert chat.say(customer("y", 91, -1.0), customer("z", 92, -1.0)) == []
    assert chat.state.escalation.pending == {"sustained": 1}
    assert chat.say(customer("zz", 93, -1.0)) == [("opened", "sustained", "error", 1)]


def test_an_edit_is_judged_but_is_not_one_message_more() -> None:
    patient = SUSTAINED.replace("min_customer_messages: 2", "for_messages: 2")
    chat = Conversation(patient)
    chat.say(*complaints(2))
    assert chat.say(customer("m1", 50, -0.95, kind="edited")) == []
    assert chat.state.escalation.pending == {"sustained": 1}
    angry = Conversation(SUSTAINED)
    angry.say(customer("a", 0, -1.0), customer("b", 1, 0.0))
    assert angry.say(customer("b", 50, -1.0, kind="edited")) == [("opened", "sustained", "warning", 1)]


def test_unsure_messages_cannot_open_alone() -> None:
    unsure = [customer(f"m{i}", i, -1.0, sure=0.4) for i in range(8)]
    assert Conversation(SUSTAINED).say(*unsure) == []
    assert Conversation(SUSTAINED).say(customer("sure", -5, -1.0), *unsure) != []
    believing = SUSTAINED.replace("cooldown: 10m", "cooldown: 10m, min_confidence: 0.3")
    assert Conversation(believing).say(*unsure) != []


def test_one_extreme_message_opens_only_when_the_model_is_sure_of_it() -> None:
    rules = """
version: 1
rules:
  - {id: extreme, when: {message: {emotion: anger, min_probability: 0.95}}}
"""
    assert Conversation(rules).say(customer("a", 0, -0.9, probability=0.96)) == [("opened", "extreme", "warning", 1)]
    assert Conversation(rules).say(customer("a", 0, -0.9, probability=0.94)) == []
    assert Conversation(rules).say(customer("a", 0, -0.9, probability=0.96, sure=0.5)) == []
    assert Conversation(rules).say(customer("a", 0, -0.9, probability=0.96, uncertain=True)) == []
    assert Conversation(rules).say(customer("a", 0, -0.9, probability=0.96, emotion="anxiety")) == []


def test_two_in_a_row_wants_both_to_be_strong_enough() -> None:
    rules = """
version: 1
rules:
  - {id: pair, when: {streak: {sign: negative, length: 2, min_score: -0.5}}}
"""
    assert Conversation(rules).say(*complaints(2, value=-0.5)) == [("opened", "pair", "warning", 1)]
    assert Conversation(rules).say(customer("a", 0, -0.9), customer("b", 1, -0.4)) == []
    assert Conversation(rules).say(customer("a", 0, -0.9), customer("n", 1, 0.0), customer("b", 2, -0.9)) == []
    weak = rules.replace(", min_score: -0.5", "")
    assert Conversation(weak).say(customer("a", 0, -0.9), customer("b", 1, -0.4)) != []


def test_a_rule_that_knows_no_close_is_closed_by_the_default() -> None:
    rules = """
version: 1
defaults: {close: {rolling_score: -0.1, for_messages: 1}, state: {half_life: null}}
rules:
  - {id: pair, when: {streak: {length: 2}}}
"""
    chat = Conversation(rules)
    chat.say(*complaints(2))
    assert chat.say(customer("a", 50, 0.2)) == []  # -0.297
    assert chat.say(customer("b", 60, 0.4)) == [("resolved", "pair", "warning", 2)]  # -0.088
    assert chat.transitions[-1].trigger.close_threshold == -0.1


def test_a_second_rule_attaches_to_the_open_escalation_and_raises_its_severity() -> None:
    chat = Conversation(SUSTAINED + "  - {id: pair, when: {streak: {length: 3}}, severity: critical}\n")
    assert chat.say(*complaints(2)) == [("opened", "sustained", "warning", 1)]
    assert chat.say(*complaints(1, 2)) == [("updated", "pair", "critical", 2)]
    assert chat.state.escalation.attached == {"sustained": 0, "pair": 0}
    assert chat.transitions[1].rule_id == "sustained"


def test_the_gravest_of_the_rules_that_hold_opens_and_the_first_of_equals() -> None:
    rules = """
version: 1
rules:
  - {id: mild, when: {streak: {length: 1}}, severity: info}
  - {id: grave, when: {streak: {length: 1}}, severity: error}
  - {id: grave-too, when: {streak: {length: 1}}, severity: error}
"""
    chat = Conversation(rules)
    assert chat.say(customer("a", 0, -0.9)) == [("opened", "grave", "error", 1)]
    assert chat.transitions[0].attached == ("mild", "grave", "grave-too")


def test_an_escalation_stays_open_until_every_attached_rule_is_released() -> None:
    chat = Conversation(SUSTAINED + "  - {id: any-law, when: {signal: legal_threat}, until: conversation_end}\n")
    chat.say(*complaints(2), customer("law", 30, -0.5, signals=["legal_threat"]))
    assert chat.say(*[customer(f"ok{i}", 100 + i, 1.0) for i in range(6)]) == []
    assert chat.state.escalation.attached == {"any-law": 0}
    assert chat.say(event("ended", 200)) == [("resolved", "sustained", "warning", 3)]
    assert chat.transitions[-1].resolution == "conversation_ended"


def test_a_new_kind_of_signal_is_worth_an_update_even_when_it_is_no_graver() -> None:
    rules = HUMAN.replace("severity: error", "severity: warning")
    chat = Conversation(rules)
    chat.say(agent("hi", 0, "bot"))
    assert chat.say(customer("a", 1, 0.0, signals=["human_request"])) == [("opened", "human", "warning", 1)]
    assert chat.say(customer("b", 2, 0.0, signals=["legal_threat"])) == [("updated", "legal", "warning", 2)]
    assert chat.say(customer("c", 3, 0.0, signals=["legal_threat"])) == []


def test_a_request_for_a_human_is_settled_by_the_transfer() -> None:
    chat = Conversation(HUMAN)
    chat.say(agent("hi", 0, "bot"), customer("a", 1, 0.0, signals=["human_request"]))
    assert chat.say(customer("b", 2, 0.5), customer("c", 3, 0.5)) == []
    assert chat.say(event("transferred", 5, phase="with_agent")) == [("resolved", "human", "warning", 2)]
    assert Conversation(HUMAN).say(agent("hi", 0), customer("a", 1, 0.0, signals=["human_request"])) == []


def test_an_agent_who_speaks_settles_it_too() -> None:
    chat = Conversation(HUMAN)
    chat.say(agent("hi", 0, "bot"), customer("a", 1, 0.0, signals=["human_request"]))
    assert chat.say(agent("bot again", 4, "bot")) == []
    assert chat.say(agent("here", 5)) == [("resolved", "human", "warning", 2)]


def test_reminders_come_with_messages_while_nothing_gets_better() -> None:
    chat = Conversation(SUSTAINED.replace("renotify_every: 0", "renotify_every: 15m"))
    chat.say(*complaints(4))
    assert chat.say(customer("a", 30 + 14 * 60, -1.0)) == []
    assert chat.say(customer("b", 30 + 15 * 60, -1.0)) == [("updated", "sustained", "critical", 4)]
    assert chat.say(customer("c", 30 + 16 * 60, -1.0)) == []
    assert chat.transitions[-1].notified_count == 4
    getting_better = [customer(f"ok{i}", 30 + 31 * 60 + i, 1.0) for i in range(3)]
    assert chat.say(*getting_better[:2]) == []


def test_nobody_is_reminded_of_an_escalation_that_is_closing() -> None:
    chat = Conversation(SUSTAINED.replace("renotify_every: 0", "renotify_every: 1m"))
    chat.say(*complaints(2), customer("a", 20, 1.0), customer("b", 30, 1.0))
    assert chat.state.escalation.attached == {"sustained": 1}
    chat.transitions.clear()
    chat.say(customer("law", 300, None, signals=["thanks"]))
    assert chat.transitions == []


def test_an_end_resolves_and_a_customer_who_comes_back_finds_the_cooldown() -> None:
    chat = Conversation(SUSTAINED)
    chat.say(*complaints(2))
    assert chat.say(event("ended", 60)) == [("resolved", "sustained", "warning", 2)]
    assert chat.say(event("ended", 60)) == []
    assert chat.say(customer("back", 90, -0.4)) == []
    assert chat.state.escalation.status == "cooldown"


def test_an_end_forgets_what_was_pending() -> None:
    chat = Conversation(SUSTAINED.replace("min_customer_messages: 2", "for_messages: 2"))
    chat.say(*complaints(2))
    chat.say(event("ended", 60))
    assert (chat.state.escalation.status, chat.state.escalation.pending) == ("none", {})


def test_silence_past_the_ttl_resolves_as_expired_at_the_moment_it_was_reached() -> None:
    chat = Conversation(SUSTAINED)
    chat.say(*complaints(2))
    assert next_deadline(chat.state, chat.rules) == START + 10_000 + 86_400_000
    told = advance(chat.state, customer("next", 3 * 86_400, -1.0), WHO, chat.rules)
    assert [brief(t) for t in told.transitions] == [("resolved", "sustained", "warning", 2)]
    assert (told.transitions[0].resolution, told.transitions[0].at_ms) == ("expired", START + 10_000 + 86_400_000)
    assert told.state.scored == 1


def test_step_alone_resolves_the_expired_state_when_nobody_ticked() -> None:
    rules = parse_rules(SUSTAINED)
    chat = Conversation(rules)
    chat.say(*complaints(2))
    turn = customer("next", 3 * 86_400, -1.0)
    result = fold(chat.state, turn, WHO, rules.options)
    told = step(result.state, turn, result.outcome, rules, result.expired)
    assert [(t.action, t.resolution, t.at_ms) for t in told] == [("resolved", "expired", START + 10_000 + 86_400_000)]


def test_a_tick_past_the_ttl_expires_the_conversation_once() -> None:
    chat = Conversation(SUSTAINED)
    chat.say(*complaints(2))
    assert chat.tick(10 + 86_399) == []
    assert chat.tick(10 + 86_400) == [("resolved", "sustained", "warning", 2)]
    assert (chat.state.status, chat.tick(10 + 90_000)) == ("expired", [])


def test_an_unanswered_unhappy_customer_raises_the_alert_when_nobody_writes() -> None:
    chat = Conversation(UNANSWERED)
    chat.say(customer("a", 0, -0.9))
    assert next_deadline(chat.state, chat.rules) == START + 180_000
    assert chat.tick(179) == []
    assert chat.tick(500) == [("opened", "unanswered", "error", 1)]
    opened = chat.transitions[-1]
    assert (opened.at_ms, opened.trigger.kind, opened.trigger.observed) == (START + 180_000, "unanswered", 180.0)
    assert opened.escalation_id == escalation_id(WHO, START, "a", "unanswered")
    assert chat.say(agent("sorry", 510)) == [("resolved", "unanswered", "error", 2)]


def test_an_answered_or_a_happy_customer_raises_none() -> None:
    answered = Conversation(UNANSWERED)
    answered.say(customer("a", 0, -0.9), agent("b", 170))
    assert (next_deadline(answered.state, answered.rules), answered.tick(9999)) == (None, [])
    happy = Conversation(UNANSWERED)
    happy.say(customer("a", 0, 0.9))
    assert happy.tick(9999) == []


def test_the_next_message_finds_the_timer_fired_even_if_no_worker_ticked() -> None:
    chat = Conversation(UNANSWERED)
    told = chat.say(customer("a", 0, -0.9), customer("b", 300, -0.9))
    assert told == [("opened", "unanswered", "error", 1)]
    assert (chat.transitions[0].at_ms, chat.transitions[0].message_id) == (START + 180_000, "a")


def test_a_timer_attaches_to_what_is_open_and_speaks_only_when_it_is_graver() -> None:
    chat = Conversation(UNANSWERED + "  - {id: pair, when: {streak: {length: 2}}, severity: warning}\n")
    chat.say(*complaints(2, value=-0.8))
    assert chat.tick(180) == [("updated", "unanswered", "error", 2)]
    quiet = Conversation(UNANSWERED + "  - {id: pair, when: {streak: {length: 2}}, severity: critical}\n")
    quiet.say(*complaints(2, value=-0.8))
    assert quiet.tick(180) == []
    assert quiet.state.escalation.attached == {"pair": 0, "unanswered": 0}
    assert quiet.say(agent("here", 200)) == []
    assert quiet.state.escalation.attached == {"pair": 0}


def test_a_timer_waits_for_the_cooldown_of_an_equal_alert() -> None:
    chat = Conversation(UNANSWERED)
    chat.say(customer("a", 0, -0.9))
    chat.tick(180)
    chat.say(agent("b", 200), customer("c", 210, -0.9))
    assert next_deadline(chat.state, chat.rules) == START + 800_000
    assert chat.tick(799) == []
    assert chat.tick(800) == [("opened", "unanswered", "error", 1)]


def test_a_timer_does_not_tell_the_same_message_twice() -> None:
    chat = Conversation(UNANSWERED.replace("cooldown: 10m", "cooldown: 0"))
    chat.say(customer("a", 0, -0.9))
    chat.tick(180)
    assert (
        close(chat.state, "acknowledged_by_service", START + 190_000, chat.rules)[0].resolution
        == "acknowledged_by_service"
    )
    assert (next_deadline(chat.state, chat.rules), chat.tick(9999)) == (None, [])


def test_a_guard_holds_back_a_timer_too() -> None:
    chat = Conversation(UNANSWERED.replace("severity: error", "severity: error, min_customer_messages: 2"))
    chat.say(customer("a", 0, -0.9))
    assert chat.tick(9999) == []


def test_a_late_message_and_one_from_before_the_end_speak_only_to_rules_that_must_not_be_missed() -> None:
    for signal, told in (("safety_risk", [("opened", "safety", "critical", 1)]), ("human_request", [])):
        late = Conversation(HUMAN)
        late.say(event("started", 0, phase="with_bot"), customer("now", 7200, 0.0))
        assert late.say(customer("late", 60, -0.9, signals=[signal])) == told
        ended = Conversation(HUMAN)
        ended.say(event("started", 0, phase="with_bot"), customer("now", 10, 0.0), event("ended", 60))
        assert ended.say(customer("before", 30, -0.9, signals=[signal])) == told


def test_safety_is_heard_through_cooldown_skipping_and_an_unknown_edit() -> None:
    chat = Conversation(HUMAN.replace("renotify_every: 0", "renotify_every: 0, skip_first_messages: 50"))
    chat.say(customer("a", 0, -0.9, signals=["safety_risk"]))
    chat.say(event("ended", 10))
    chat.transitions.clear()
    assert chat.say(customer("b", 20, -0.9, signals=["safety_risk"])) == [("opened", "safety", "critical", 1)]
    forgotten = Conversation(HUMAN)
    forgotten.say(*[customer(f"m{i}", i, 0.0) for i in range(40)])
    assert forgotten.say(customer("m0", 50, -0.9, kind="edited", signals=["safety_risk"])) == [
        ("opened", "safety", "critical", 1)
    ]


def test_an_edit_cannot_open_again_under_an_id_that_was_told_before() -> None:
    chat = Conversation(HUMAN)
    chat.say(customer("a", 0, -0.9, signals=["safety_risk"]), event("ended", 10))
    assert chat.say(customer("a", 20, -0.9, kind="edited", signals=["safety_risk"])) == []


def test_a_duplicate_causes_nothing() -> None:
    chat = Conversation(SUSTAINED)
    turns = complaints(2)
    chat.say(*turns)
    assert chat.say(*turns) == []
    assert step(chat.state, turns[1], Outcome.DUPLICATE, chat.rules) == []


def test_other_peoples_turns_cause_nothing_in_a_conversation_without_an_alert() -> None:
    chat = Conversation(SUSTAINED)
    assert chat.say(agent("a", 0), event("transferred", 1, phase="with_agent"), event("deleted", 2, "a")) == []
    assert chat.say(customer("b", 3, None, skipped_reason="unsupported_content_type")) == []
    assert chat.state.escalation is None
    chat.say(*complaints(2, 10), customer("ok", 200, 1.0), customer("ok2", 210, 1.0), customer("ok3", 220, 1.0))
    assert chat.state.escalation.status == "cooldown"
    assert chat.say(agent("c", 230)) == []


def test_a_rule_that_leaves_the_file_lets_go_of_what_it_held_open() -> None:
    chat = Conversation(SUSTAINED + "  - {id: pair, when: {streak: {length: 2}}, severity: critical}\n")
    chat.say(*complaints(2))
    chat.rules = parse_rules(SUSTAINED)
    assert chat.say(customer("a", 50, -1.0)) == []
    assert chat.state.escalation.attached == {"sustained": 0}
    chat.rules = parse_rules("version: 2\nrules: [{id: renamed, when: {signal: abuse}}]\n")
    assert chat.say(agent("b", 60)) == [("resolved", "pair", "critical", 2)]
    resolved = chat.transitions[-1]
    assert (resolved.trigger.kind, resolved.resolution) == ("retired", "recovered")
    assert chat.state.escalation.status == "none"


def test_an_erased_conversation_resolves_once() -> None:
    chat = Conversation(SUSTAINED)
    assert close(folded([customer("a", 0, 0.0)]), "erased", START, chat.rules) == []
    chat.say(*complaints(2))
    assert [t.resolution for t in close(chat.state, "erased", START + 60_000, chat.rules)] == ["erased"]
    assert close(chat.state, "erased", START + 60_000, chat.rules) == []


def test_deterioration_needs_six_messages_and_closes_by_its_own_shift() -> None:
    rules = """
version: 1
defaults: {renotify_every: 0, close: {for_messages: 1}, state: {half_life: null}}
rules:
  - {id: worse, when: {shift: {open: -0.55}, rolling_score: {open: -0.1, close: 0.1}}, min_customer_messages: 6}
"""
    chat = Conversation(rules)
    values = [0.8, 0.8, 0.8, -0.9, -0.9, -0.9]
    told = chat.say(*[customer(f"m{i}", i, v) for i, v in enumerate(values)])
    assert told == [("opened", "worse", "warning", 1)]
    trigger = chat.transitions[0].trigger
    assert (trigger.kind, trigger.observed) == ("deterioration", pytest.approx(-0.85))
    assert (trigger.open_threshold, trigger.close_threshold, trigger.min_messages) == (-0.55, pytest.approx(-0.30), 6)
    assert chat.say(customer("m6", 6, 0.0)) == []  # shift -0.7
    assert chat.say(customer("m7", 7, 0.9)) == []  # shift -0.4
    assert chat.say(customer("m8", 8, 0.9)) == [("resolved", "worse", "warning", 2)]  # shift -0.1


def test_severity_steps_can_be_measured_on_the_shift() -> None:
    rules = """
version: 1
rules:
  - {id: worse, when: {shift: {open: -0.3}}, severity: [{at: -0.3, level: info}, {at: -0.8, level: critical}]}
"""
    assert Conversation(rules).say(customer("a", 0, 0.2), customer("b", 1, -0.9)) == [("opened", "worse", "info", 1)]
    assert Conversation(rules).say(customer("a", 0, 0.9), customer("b", 1, -0.9)) == [
        ("opened", "worse", "critical", 1)
    ]


LOGIC: list[tuple[str, list[Any], bool]] = [
    ("{all: [{signal: refund_request}, {rolling_score: {open: -0.2}}]}", [(-0.9, "refund_request")], True),
    ("{all: [{signal: refund_request}, {rolling_score: {open: -0.2}}]}", [(0.0, "refund_request")], False),
    ("{all: [{signal: refund_request}, {rolling_score: {open: -0.2}}]}", [(-0.9, None)], False),
    ("{any: [{signal: abuse}, {rolling_score: {open: -0.2}}]}", [(0.0, "abuse")], True),
    ("{any: [{signal: abuse}, {rolling_score: {open: -0.2}}]}", [(-0.9, None)], True),
    ("{any: [{signal: abuse}, {rolling_score: {open: -0.2}}]}", [(0.0, None)], False),
    ("{signal: refund_request, not: {phase: with_agent}}", [(0.0, "refund_request")], True),
    ("{signal: refund_request, not: {signal: thanks}}", [(0.0, "thanks")], False),
    ("{signal_any: [legal_threat, abuse]}", [(0.0, "abuse")], True),
    ("{signal_any: [legal_threat, abuse]}", [(0.0, "thanks")], False),
    ("{signals_seen: {signal: human_request, at_least: 2}}", [(0.0, "human_request")], False),
    ("{signals_seen: {signal: human_request, at_least: 2}}", [(0.0, "human_request")] * 2, True),
    ("{signals_seen: {signal: human_request, at_least: 1}}", [(0.0, "human_request")], True),
    ("{message: {max_score: -0.8}}", [(-0.8, None)], True),
    ("{message: {max_score: -0.8}}", [(-0.79, None)], False),
    ("{message: {label: negative}}", [(-0.5, None)], True),
    ("{message: {label: negative}}", [(0.0, None)], False),
    ("{message: {emotion: anger}}", [(-0.5, None)], True),
    ("{streak: {sign: positive, length: 2, min_score: 0.5}}", [(0.5, None), (0.6, None)], True),
    ("{streak: {sign: positive, length: 2, min_score: 0.5}}", [(0.5, None), (0.4, None)], False),
    ("{all: [{any: [{signal: abuse}, {signal: thanks}]}, {not: {phase: with_bot}}]}", [(0.0, "abuse")], True),
]


@pytest.mark.parametrize(("when", "messages", "opens"), LOGIC)
def test_conditions_hold_when_they_should(when: str, messages: list[Any], opens: bool) -> None:
    chat = Conversation(f"version: 1\ndefaults: {{min_confidence: 0}}\nrules: [{{id: r, when: {when}}}]\n")
    turns = [
        customer(f"m{i}", i, value, signals=[signal] if signal else []) for i, (value, signal) in enumerate(messages)
    ]
    assert bool(chat.say(*turns)) is opens


def test_a_conjunction_is_released_by_the_part_that_can_be_taken_back() -> None:
    rules = """
version: 1
defaults: {renotify_every: 0, close: {for_messages: 1}, state: {half_life: null}}
rules:
  - {id: refund, when: {all: [{signal: refund_request}, {rolling_score: {open: -0.2, close: 0.1}}]}}
"""
    chat = Conversation(rules)
    chat.say(customer("a", 0, -0.9, signals=["refund_request"]))
    assert chat.say(customer("b", 1, 0.0), customer("c", 2, 0.5)) == []  # -0.19, 0.02
    assert chat.say(customer("d", 3, 0.5)) == [("resolved", "refund", "warning", 2)]  # 0.16


def test_a_disjunction_is_released_when_every_part_is_that_can_be() -> None:
    rules = """
version: 1
defaults: {renotify_every: 0, close: {for_messages: 1}, state: {half_life: null}}
rules:
  - {id: either, when: {any: [{phase: with_bot}, {rolling_score: {open: -0.2, close: 0.0}}]}}
"""
    chat = Conversation(rules)
    assert chat.say(agent("hi", 0, "bot"), customer("a", 1, -0.9)) == [("opened", "either", "warning", 1)]
    assert chat.say(event("transferred", 2, phase="with_agent")) == []
    assert chat.say(customer("b", 3, 0.9)) == [("resolved", "either", "warning", 2)]


def test_overrides_change_rules_and_state_for_those_who_match() -> None:
    rules = parse_rules(
        SUSTAINED
        + """
overrides:
  - {match: {channel: email}, set: {state.alpha: 0.6, rules.sustained.min_customer_messages: 1}}
  - {match: {customer_tier: vip}, set: {rules.sustained.when.rolling_score.open: -0.20}}
  - {match: {tenant_id: other}, set: {rules.sustained.enabled: false}}
"""
    )
    assert Conversation(rules).say(customer("a", 0, -0.9)) == []
    assert Conversation(rules).say(customer("a", 0, -0.9, channel="email")) == [("opened", "sustained", "warning", 1)]
    vip = {"customer_tier": "vip"}
    vips = [customer("a", 0, -0.5, attributes=vip), customer("b", 1, -0.5)]
    assert Conversation(rules).say(*vips) == [("opened", "sustained", "warning", 1)]
    assert Conversation(rules).say(*complaints(2, value=-0.5)) == []
    assert rules.view("other", "web_chat", {}).rules == ()
    assert rules.view("other", "email", vip).options.alpha == 0.6
    assert rules.view("acme", "web_chat", {}).options == StateOptions(
        half_life_ms=None, kept_attributes=("customer_tier", "order_id", "product_id", "queue")
    )


def test_ids_with_any_separator_do_not_collide() -> None:
    from stream_sentiment.conversation import ConversationIdentity

    ids = {
        escalation_id(ConversationIdentity(tenant, conversation), START, message, rule)
        for tenant, conversation, message, rule in [
            ("a", "b|c", "d", "r"),
            ("a|b", "c", "d", "r"),
            ("a", "b", 'c","d', "r"),
            ("a", 'b","c', "d", "r"),
            ("a", "b", "c|d", "r"),
        ]
    }
    assert len(ids) == 5
    assert escalation_id(WHO, START, "m1", "sustained") == "690140d4-0bea-5c89-94ba-9f451a36582d"


def test_the_event_tells_everything_about_the_conversation_at_that_moment() -> None:
    chat = Conversation(SUSTAINED)
    chat.say(*[t._replace(language="zh-CN", attributes={"queue": "refund"}) for t in complaints(2)])
    opened = chat.transitions[0]
    assert (opened.channel, opened.phase, opened.attributes) == ("web_chat", None, {"queue": "refund"})
    assert (opened.level, opened.trend, opened.emotion, opened.priority) == (2, "no_change", "anger", "P3")
    assert (opened.message_id, opened.at_ms, opened.opened_at_ms) == ("m1", START + 10_000, START + 10_000)
    assert opened.trigger.open_threshold == -0.40
    assert opened.trigger.close_threshold == 0.0
    assert opened.trigger.rule_version == chat.rules.version
    assert opened.language == "zh"
    assert opened.reason == "客户发送 2 条消息后，滚动情绪分降至 -0.51（告警阈值 -0.40）。"


def test_an_alert_of_a_conversation_that_began_anew_is_no_copy_of_the_old_one() -> None:
    # The edit of an old message opens an alert a day later, when the conversation of that name has expired and begun anew.
    assert escalation_id(WHO, START, "m2", "sustained") != escalation_id(WHO, START + 86_400_000, "m2", "sustained")


def test_what_was_pending_during_a_cooldown_starts_again_after_a_message_that_does_not_count() -> None:
    chat = Conversation(
        """
version: 1
defaults: {cooldown: 10m, renotify_every: 0, state: {half_life: null}}
rules:
  - {id: now, when: {signal: human_request}}
  - {id: patient, when: {streak: {length: 1}}, for_messages: 2, severity: error}
"""
    )
    assert chat.say(customer("a", 0, 0.0, signals=["human_request"])) == [("opened", "now", "warning", 1)]
    assert [t[0] for t in chat.say(event("ended", 1))] == ["resolved"]
    chat.say(customer("b", 2, -0.5))
    assert chat.state is not None
    assert chat.state.escalation is not None
    assert chat.state.escalation.pending == {"patient": 1}
    chat.say(customer("c", 3, 0.5))
    assert (chat.state.escalation.pending, chat.state.escalation.status) == ({}, "cooldown")
    assert chat.say(customer("d", 4, -0.5)) == []
    assert chat.say(customer("e", 5, -0.5)) == [
        ("opened", "patient", "error", 1)
    ]  # graver than the one that cools down


def test_a_message_condition_may_ask_for_a_label() -> None:
    chat = Conversation("version: 1\nrules: [{id: praise, when: {message: {label: positive}}, severity: info}]\n")
    assert chat.say(customer("a", 0, -0.9), customer("b", 1, 0.0)) == []
    assert chat.say(customer("c", 2, 0.9)) == [("opened", "praise", "info", 1)]
    assert chat.transitions[-1].trigger.observed == 0.9


def test_a_reminder_by_a_message_without_score_observes_nothing() -> None:
    chat = Conversation(
        """
version: 1
defaults: {renotify_every: 1m, state: {half_life: null}}
rules: [{id: rage, when: {message: {emotion: anger}}, until: conversation_end}]
"""
    )
    chat.say(customer("a", 0, -0.9))
    assert chat.transitions[-1].trigger.observed == 0.9
    assert chat.say(customer("b", 90, None, signals=["thanks"])) == [("updated", "rage", "warning", 2)]
    assert chat.transitions[-1].trigger.observed == 0.0


def test_a_message_condition_may_ask_for_an_intensity_where_the_model_has_one() -> None:
    rules = "version: 1\nrules: [{id: rage, when: {message: {emotion: anger, min_intensity: 2}}}]\n"
    mild, strong = (
        turn._replace(score=replace(turn.score, intensity=intensity))
        for turn, intensity in ((customer("a", 0, -0.9), 1.5), (customer("b", 1, -0.9), 2.0))
        if turn.score is not None
    )
    chat = Conversation(rules)
    assert chat.say(mild) == []
    assert chat.say(strong) == [("opened", "rage", "warning", 1)]
    assert Conversation(rules).say(customer("c", 0, -0.9)) == [("opened", "rage", "warning", 1)]


def test_the_end_of_an_alert_on_a_message_without_score_names_that_message() -> None:
    chat = Conversation("version: 1\nrules: [{id: law, when: {signal: legal_threat}, bypass_cooldown: true}]\n")
    chat.say(customer("a", 0, None, signals=["legal_threat"]))
    assert chat.state is not None
    [expired] = close(chat.state, "expired", START + 86_400_000, chat.rules)
    assert (expired.message_id, expired.resolution) == ("a", "expired")


def test_any_of_one_is_that_one() -> None:
    chat = Conversation("version: 1\nrules: [{id: a, when: {any: [{streak: {length: 2}}]}}]\n")
    assert chat.say(*complaints(2, value=-0.5)) == [("opened", "a", "warning", 1)]
    assert chat.transitions[-1].trigger.kind == "streak"


def test_without_overrides_every_conversation_has_the_rules_of_the_file() -> None:
    rules = parse_rules(SUSTAINED)
    assert rules.view("anyone", "sms", {"customer_tier": "vip"}) is rules.default


def test_no_reminder_comes_with_a_message_that_says_thanks() -> None:
    rules = """
version: 1
defaults: {renotify_every: 10m, state: {half_life: null, alpha: 0.2}}
rules: [{id: a, when: {rolling_score: {open: -0.3, close: 0.0}}}]
"""
    chat = Conversation(rules)
    chat.say(*complaints(3))
    assert [t.action for t in chat.transitions] == ["opened"]
    assert chat.say(customer("x", 1200, 0.3)) == []
    assert chat.say(customer("y", 1210, 0.0)) == [("updated", "a", "warning", 2)]
