"""The pure escalation machine: state, turn and rules in, transitions (opened, updated, resolved) out."""

from stream_sentiment.escalation.advance import Advance, advance
from stream_sentiment.escalation.machine import close, next_deadline, step, tick
from stream_sentiment.escalation.rules import RuleSet, load_rules
from stream_sentiment.escalation.transition import Evidence, Transition, Trigger

__all__ = [
    "Advance",
    "Evidence",
    "RuleSet",
    "Transition",
    "Trigger",
    "advance",
    "close",
    "load_rules",
    "next_deadline",
    "step",
    "tick",
]
