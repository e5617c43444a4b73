"""Every mistake of a rule file at once, each with its line, its column and what to do about it.

In: the text of a rule file. Out: `Finding`s in the order of the file, none for a good one. Pure; raises nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.escalation import ruleformat
from stream_sentiment.escalation.ruleformat import Condition, Rule, RuleFile
from stream_sentiment.escalation.rules import parse_rules
from stream_sentiment.escalation.yamlmarks import Mark, Marks


class Finding(NamedTuple):
    line: int
    column: int
    path: str
    message: str


def lint(text: str) -> list[Finding]:
    """All mistakes of a rule file."""
    try:
        marks = Marks(text)
        raw = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (1, 1) if mark is None else (mark.line + 1, mark.column + 1)
        return [Finding(line, column, "", f"no YAML: {error.problem or error}")]
    except yaml.YAMLError as error:
        return [Finding(1, 1, "", f"no YAML: {error}")]
    if not isinstance(raw, dict):
        return [Finding(1, 1, "", "the top level must be a mapping with version and rules")]
    findings = [
        Finding(*mark, _dotted(path), f"the key {path[-1]!r} is there twice; YAML would keep the last one only")
        for path, mark in marks.duplicates
    ]
    try:
        file = RuleFile.model_validate(raw)
    except ValidationError as error:
        findings += validation_findings(error, marks)
    else:
        findings += _never_fires(file, marks)
        if not findings:
            findings += _compiled(text, file, marks)
    return sorted(set(findings))


def validation_findings(error: ValidationError, marks: Marks) -> list[Finding]:
    """pydantic's errors as lines that a person can act on."""
    findings = []
    for item in error.errors():
        if item["type"] == "list_type" and isinstance(item["input"], str):
            continue  # of a severity: the other member of the union says it better
        path = marks.known((*item["loc"], *_further(item)))
        mark = marks.of(path)
        findings.append(Finding(mark.line, mark.column, _dotted(path), _message(item)))
    return findings


def _further(item: Any) -> tuple[str | int, ...]:
    """From the place that pydantic names, a rule or the file as a whole, to the key that the mistake is about."""
    message = str(item["msg"]).removeprefix("Value error, ")
    if message.startswith("severity"):
        return ("severity",)
    if message.startswith("for_messages"):
        return ("for_messages",)
    if found := re.match(r"two rules have the id '(.*)'", message):
        places = [place for place, rule in enumerate(item["input"].get("rules", ())) if rule.get("id") == found[1]]
        return "rules", places[1], "id"
    return ()


def _message(item: Any) -> str:
    last = str(item["loc"][-1]) if item["loc"] else ""
    match item["type"]:
        case "extra_forbidden":
            near = get_close_matches(last, _KNOWN_KEYS, 1, 0.6)
            return f"unknown key {last!r}" + (
                f", did you mean {near[0]!r}?" if near else "; `rules schema` lists them all"
            )
        case "missing":
            return f"{last!r} is missing"
        case "literal_error":
            allowed = item["ctx"]["expected"]
            near = get_close_matches(str(item["input"]), [word.strip("'") for word in allowed.split(", ")], 1, 0.6)
            hint = f", did you mean {near[0]!r}?" if near else ""
            return f"{item['input']!r} is none of {allowed}{hint}"
        case "string_pattern_mismatch":
            return f"{item['input']!r}: lower-case letters, digits and hyphens, beginning with a letter, as in sustained-negative"
        case _:
            return str(item["msg"]).removeprefix("Value error, ")


def _compiled(text: str, file: RuleFile, marks: Marks) -> Iterator[Finding]:
    """Overrides and lexicon changes, which are checked by applying them."""
    try:
        parse_rules(text)
    except ConfigurationError as error:
        for line in str(error).splitlines():
            if "mistake(s);" in line:
                continue
            message = line.strip().removeprefix("rule file rules: ")
            path = marks.known(_place_of(message))
            mark = marks.of(path)
            yield Finding(mark.line, mark.column, _dotted(path), message)


def _place_of(message: str) -> tuple[str | int, ...]:
    """Where a mistake stands that was found by applying an override or a lexicon change."""
    if found := re.match(r"(?:override|with overrides(?: \d+ and)*) (\d+): ", message):
        return "overrides", int(found[1]) - 1, "set"
    if found := re.match(r"lexicon: remove: (\w+) has no (\w+) phrase", message):
        return "lexicon", "remove", found[1], found[2]
    return ("overrides",) if "override" in message else ("lexicon",) if "lexicon" in message else ()


def _never_fires(file: RuleFile, marks: Marks) -> Iterator[Finding]:
    if not any(rule.enabled for rule in file.rules):
        yield Finding(*marks.of(("rules",)), "rules", "every rule is disabled: nothing would ever alert")
    for index, rule in enumerate(file.rules):
        mark = marks.of(("rules", index, "when"))
        for message in _contradictions(rule, file):
            yield Finding(mark.line, mark.column, f"rules.{index}.when", f"{rule.id} can never fire: {message}")


def _contradictions(rule: Rule, file: RuleFile) -> Iterator[str]:
    parts = list(_conjuncts(rule.when))
    window = file.defaults.state.window
    phases = {part.phase for part in parts if part.phase is not None}
    signals = {part.signal for part in parts if part.signal is not None}
    if len(phases) > 1:
        yield "it asks for two phases at once"
    for part in parts:
        if part.rolling_score is not None and part.rolling_score.open <= -1:
            yield "the rolling score comes close to -1 but never reaches it"
        if part.shift is not None and part.shift.open <= -1:
            yield "no shift is as low as -1 unless every first score is 1 and every last one is -1"
        if part.streak is not None and part.streak.length > window:
            yield f"a streak of {part.streak.length} does not fit in the window of {window} messages"
        if part.streak is not None and part.streak.min_score is not None:
            wrong = part.streak.min_score > 0 if part.streak.sign == "negative" else part.streak.min_score < 0
            if wrong:
                yield f"a {part.streak.sign} turn has no score of {part.streak.min_score:g} or beyond"
        message = part.message
        if (
            message is not None
            and message.label == "positive"
            and message.max_score is not None
            and message.max_score < 0
        ):
            yield "a positive message has no score below 0"
        if part.not_ is not None:
            if part.not_.phase is not None and part.not_.phase in phases:
                yield f"it asks for the phase {part.not_.phase} and for its absence"
            if part.not_.signal is not None and part.not_.signal in signals:
                yield f"it asks for the signal {part.not_.signal} and for its absence"


def _conjuncts(condition: Condition) -> Iterator[Condition]:
    """The condition and everything that must hold with it."""
    yield condition
    for part in condition.all or ():
        yield from _conjuncts(part)


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path)


def _keys() -> list[str]:
    models = [
        member
        for member in vars(ruleformat).values()
        if isinstance(member, type) and issubclass(member, BaseModel) and member is not BaseModel
    ]
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})


_KNOWN_KEYS = _keys()

__all__ = ["Finding", "Mark", "lint", "validation_findings"]
