"""What the storm guard would have marked among the alerts of many conversations.

In: the decisions of every conversation. Out: the same, marked. Pure. Only conversations whose messages have times of their own are
looked at: side by side in time they can make a storm, and those without would all begin at one moment. A mark changes no figure of
recall or precision; whether a held-back alert would have been in time depends on what consumers do with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar
from zlib import crc32

from stream_sentiment.backtest.conversations import Conversation
from stream_sentiment.backtest.decide import Decision
from stream_sentiment.escalation.rules import RuleSet
from stream_sentiment.escalation.storm import StormState, guard, pass_time
from stream_sentiment.events.envelope import record_key

Results = TypeVar("Results", bound=Sequence[tuple[Conversation, list[Decision]]])


def guard_results(results: Results, rules: RuleSet, partitions: int = 1) -> Results:
    """Put the decisions of all timed conversations, in the order of event time, through the guard; the lists are changed in place.

    Where a conversation does not come from a topic, its partition is a hash of its key, not Kafka's own: equal parts, other members.
    """
    told = [
        (decision.transition.at_ms, place, number)
        for place, (conversation, decisions) in enumerate(results)
        if conversation.timed
        for number, decision in enumerate(decisions)
    ]
    states: dict[tuple[str, int], StormState] = {}
    held: dict[str, str | None] = {}
    for at_ms, place, number in sorted(told):
        conversation, decisions = results[place]
        tenant = conversation.tenant_id
        partition = conversation.partition
        if partition is None:
            partition = crc32(record_key(tenant, conversation.id).encode()) % partitions
        state = states.setdefault((tenant, partition), StormState(tenant))
        pass_time(state, at_ms, partitions)
        transition = decisions[number].transition
        limits = rules.view(tenant, transition.channel, transition.attributes).storm
        name = transition.escalation_id
        transition, held[name], _ = guard(state, transition, held.get(name), limits, partitions)
        decisions[number] = replace(decisions[number], transition=transition)
    return results
