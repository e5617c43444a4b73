"""Figures of a back-test: alerts, precision, recall, false alarms, lead, re-opens; per rule and in total.

In: the decisions of every conversation. Out: plain numbers. Pure. What needs labels is None without them.

An alert is *timely* from message `earliest` to one customer turn after `by`; what counts is the first alert of a conversation.
Recall is the share of conversations that should escalate whose first alert is timely; precision the share of alerted conversations
that should; the false-alarm rate the share of conversations that should not escalate with any alert.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from stream_sentiment.backtest.conversations import Conversation
from stream_sentiment.backtest.decide import Decision


@dataclass(slots=True)
class Tally:
    """Counts of one rule, or of all."""

    alerts: int = 0
    conversations: int = 0
    reopened: int = 0
    should: int = 0  # labelled conversations that should escalate
    should_not: int = 0
    timely: int = 0
    early: int = 0
    false_alarms: int = 0
    right: int = 0  # alerted and should
    lead_turns: list[int] = field(default_factory=list)
    lead_seconds: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        labelled = self.should + self.should_not
        alerted = self.right + self.false_alarms
        precision = self.right / alerted if alerted else None
        recall = self.timely / self.should if self.should else None
        return {
            "alerts": self.alerts,
            "conversations": self.conversations,
            "precision": _round(precision) if labelled else None,
            "recall": _round(recall),
            "f1": _round(2 * precision * recall / (precision + recall)) if precision and recall else None,
            "early": _round(self.early / self.should) if self.should else None,
            "false_alarm_rate": _round(self.false_alarms / self.should_not) if self.should_not else None,
            "median_lead_turns": median(self.lead_turns) if self.lead_turns else None,
            "median_lead_seconds": _round(median(self.lead_seconds)) if self.lead_seconds else None,
            "reopen_rate": _round(self.reopened / self.conversations) if self.conversations else None,
        }


def measure(results: Iterable[tuple[Conversation, Sequence[Decision]]], rule_ids: Sequence[str]) -> dict[str, Any]:
    """The object that `backtest --json` prints."""
    total, rules = Tally(), {rule_id: Tally() for rule_id in rule_ids}
    conversations = messages = labelled = 0
    for conversation, decisions in results:
        conversations += 1
        messages += len(conversation.messages)
        labelled += conversation.label is not None
        opened = [d.message_index for d in decisions if d.transition.action == "opened"]
        _add(total, conversation, opened)
        for rule_id, tally in rules.items():
            _add(tally, conversation, _spoke(decisions, rule_id))
    return {
        "conversations": conversations,
        "messages": messages,
        "labelled": labelled,
        "rules": {rule_id: tally.as_dict() for rule_id, tally in rules.items()},
        "total": total.as_dict(),
        "alerts_per_1000": _round(1000 * total.alerts / conversations) if conversations else None,
    }


def _spoke(decisions: Sequence[Decision], rule_id: str) -> list[int]:
    """Messages at which the rule opened an escalation or was attached to one that was announced."""
    found: list[int] = []
    attached = False
    for decision in decisions:
        holds = rule_id in decision.transition.attached
        if holds and not attached:
            found.append(decision.message_index)
        attached = holds
    return found


def _add(tally: Tally, conversation: Conversation, alerts: list[int]) -> None:
    label = conversation.label
    tally.alerts += len(alerts)
    if alerts:
        tally.conversations += 1
        tally.reopened += len(alerts) > 1
    if label is None:
        return
    if not label.escalate:
        tally.should_not += 1
        tally.false_alarms += bool(alerts)
        return
    tally.should += 1
    if not alerts:
        return
    tally.right += 1
    first = alerts[0]
    if first < label.earliest:
        tally.early += 1
    elif is_timely(conversation, first):
        tally.timely += 1
    if label.by is not None:
        customers = [i for i, message in enumerate(conversation.messages) if message.by_customer]
        low, high = sorted((first, label.by))
        turns = sum(low < i <= high for i in customers)
        tally.lead_turns.append(turns if first <= label.by else -turns)
        then, now = conversation.messages[label.by].turn, conversation.messages[first].turn
        if then is not None and now is not None:
            tally.lead_seconds.append((then.at_ms - now.at_ms) / 1000)


def is_timely(conversation: Conversation, index: int) -> bool:
    """Whether a first alert at this message is in time; False for a conversation that should not escalate."""
    label = conversation.label
    if label is None or not label.escalate or index < label.earliest:
        return False
    return label.by is None or index <= last_good_index(conversation, label.by)


def last_good_index(conversation: Conversation, by: int) -> int:
    """One customer turn after `by`."""
    following = (i for i, message in enumerate(conversation.messages) if i > by and message.by_customer)
    return next(following, by)


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
