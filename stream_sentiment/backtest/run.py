"""A back-test from beginning to end: read, score, decide, measure; sweep a value; compare two rule files.

In: files and rule sets. Out: the object that `backtest --json` prints, decisions, sweep rows. Blocks on files and inference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import orjson
import yaml

from stream_sentiment.backtest.choose import holds_int, wilson
from stream_sentiment.backtest.conversations import Conversation
from stream_sentiment.backtest.decide import Decision, Judge, decide
from stream_sentiment.backtest.measure import is_timely, measure
from stream_sentiment.backtest.storm import guard_results
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.escalation.rules import RuleSet, parse_rules, set_path

Results = list[tuple[Conversation, list[Decision]]]

# Values of a sweep whose ends alone are given.
SWEEP_STEPS = 11


def run(
    conversations: Iterable[Conversation],
    rules: RuleSet,
    judge: Judge,
    partitions: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> Results:
    """Every conversation through the rules, then through the storm guard of as many input partitions."""
    results: Results = []
    for conversation in conversations:
        results.append((conversation, decide(conversation, rules, judge)))
        progress()
    return guard_results(results, rules, partitions)


def figures(results: Results, rules: RuleSet) -> dict[str, Any]:
    """Figures per rule and in total, and which pairs of rules speak in the same conversations."""
    ids = [rule.id for rule in rules.default.rules]
    report = measure(results, ids)
    overlap: Counter[tuple[str, str]] = Counter()
    for _, decisions in results:
        spoke = sorted({rule for decision in decisions for rule in decision.transition.attached})
        overlap.update((a, b) for i, a in enumerate(spoke) for b in spoke[i + 1 :])
    report["overlap"] = [{"rules": list(pair), "conversations": n} for pair, n in overlap.most_common()]
    report["rules_version"] = rules.version
    report["intervals"] = _intervals(results)
    marked = [d.transition for _, decisions in results for d in decisions if d.transition.storm_id is not None]
    report["storm"] = {
        "suppressed": sum(t.action == "opened" for t in marked),
        "storms": len({t.storm_id for t in marked}),
        "applies_to": sum(conversation.timed for conversation, _ in results),
    }
    return report


def _intervals(results: Results) -> dict[str, Any]:
    """95 % intervals of the total's shares over conversations; None without labels."""
    timely = right = false = should = should_not = 0
    for conversation, decisions in results:
        label = conversation.label
        if label is None:
            continue
        opened = [d.message_index for d in decisions if d.transition.action == "opened"]
        if label.escalate:
            should += 1
            right += bool(opened)
            timely += bool(opened) and is_timely(conversation, opened[0])
        else:
            should_not += 1
            false += bool(opened)
    shares = {
        "recall": wilson(timely, should),
        "false_alarm_rate": wilson(false, should_not),
        "precision": wilson(right, right + false),
    }
    return {name: None if found is None else [round(end, 4) for end in found] for name, found in shares.items()}


def alerts_of(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    return [
        {
            "action": d.transition.action,
            "rule_id": d.transition.trigger.rule_id,
            "severity": d.transition.severity,
            "message_index": d.message_index,
            "at": d.transition.at_ms,
            "reason": d.transition.reason,
            "resolution": d.transition.resolution,
            "suppressed": d.transition.storm_id is not None,
        }
        for d in decisions
    ]


def write_decisions(results: Results, path: Path) -> None:
    """One conversation a line: `{id, alerts}`."""
    with path.open("wb") as out:
        for conversation, decisions in results:
            out.write(orjson.dumps({"id": conversation.id, "alerts": alerts_of(decisions)}) + b"\n")


def parse_sweep(text: str, option: str = "--sweep") -> tuple[str, list[float]]:
    """`PATH=a..b` (eleven values) or `PATH=a..b/n`; the path as in an override."""
    path, _, span = text.partition("=")
    span, _, steps = span.partition("/")
    low, dots, high = span.partition("..")
    try:
        first, last, count = float(low), float(high), int(steps or SWEEP_STEPS)
    except ValueError:
        first, last, count = 0.0, 0.0, 0
    if not path or not dots or count < 2:
        raise ConfigurationError(
            f"{option} {text!r}: write PATH=a..b, as in rules.sustained-negative.when.rolling_score.open=-0.5..-0.1"
        )
    return path, [round(first + (last - first) * i / (count - 1), 6) for i in range(count)]


def sweep(
    conversations: Sequence[Conversation],
    rules_text: str,
    path: str,
    values: Sequence[float],
    judge: Judge,
    progress: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """The total figures for every value that the rule file accepts at `path`; others are told with their error."""
    raw = yaml.safe_load(rules_text)
    rows: list[dict[str, Any]] = []
    for value in values:
        changed = deepcopy(raw)
        try:
            set_path(changed, path, int(value) if value.is_integer() and holds_int(path) else value)
            rules = parse_rules(yaml.safe_dump(changed, allow_unicode=True))
        except ConfigurationError as error:
            rows.append({"value": value, "error": str(error).splitlines()[-1].strip()})
        else:
            report = figures(run(conversations, rules, judge), rules)
            rows.append({"value": value, **report["total"], "alerts_per_1000": report["alerts_per_1000"]})
        progress()
    if all("error" in row for row in rows):
        raise ConfigurationError(f"--sweep {path}: no value is accepted: {rows[0]['error']}")
    return rows


def compare(before: Results, after: Results) -> list[dict[str, Any]]:
    """Conversations whose alerts differ between two rule files."""
    changed = []
    for (conversation, old), (_, new) in zip(before, after, strict=True):
        was, now = _gist(old), _gist(new)
        if was != now:
            changed.append(
                {
                    "id": conversation.id,
                    "escalate": None if conversation.label is None else conversation.label.escalate,
                    "before": was,
                    "after": now,
                }
            )
    return changed


def _gist(decisions: Sequence[Decision]) -> list[list[Any]]:
    return [
        [d.transition.action, d.transition.trigger.rule_id, d.transition.severity, d.message_index]
        for d in decisions
        if d.transition.action != "resolved"
    ]
