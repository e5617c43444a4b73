"""`rules lint`: each broken file is refused on the line that is wrong, with a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from stream_sentiment.cli.rules import app
from stream_sentiment.escalation.explain import explain
from stream_sentiment.escalation.lint import lint
from stream_sentiment.escalation.ruleformat import RuleFile
from stream_sentiment.escalation.rules import DEFAULT_RULES, load_rules, parse_rules
from stream_sentiment.escalation.yamlmarks import Marks

HEAD = "version: 1\nrules:\n  - id: a\n"
GOOD = HEAD + "    when: {streak: {length: 2}}\n"
ROLLING = HEAD + "    when: {rolling_score: {open: -0.4, close: 0.0}}\n"

# What is wrong -> the file, the line of the mistake, words of the message.
BROKEN: dict[str, tuple[str, int, str]] = {
    "no YAML": ("version: [", 1, "no YAML"),
    "a tab": ("version: 1\nrules:\n\t- id: a\n", 3, "no YAML"),
    "a control character": ("version: 1 \x00", 1, "no YAML"),
    "a list": ("- 1", 1, "top level"),
    "empty": ("", 1, "top level"),
    "no rules": ("version: 1\n", 1, "'rules' is missing"),
    "an empty rule list": ("version: 1\nrules: []\n", 2, "at least 1"),
    "no version": (GOOD.removeprefix("version: 1\n"), 1, "'version' is missing"),
    "no id": ("version: 1\nrules:\n  - when: {streak: {length: 2}}\n", 3, "'id' is missing"),
    "no condition": (HEAD, 3, "'when' is missing"),
    "an empty condition": (HEAD + "    when: {}\n", 4, "every message"),
    "a capital in an id": (GOOD.replace("id: a", "id: Angry"), 3, "lower-case"),
    "two of one id": (GOOD + "  - id: a\n    when: {streak: {length: 3}}\n", 5, "two rules have the id 'a'"),
    "a key twice": (GOOD + "    severity: error\n    severity: info\n", 6, "there twice"),
    "a misspelt key": (GOOD + "    severty: error\n", 5, "did you mean 'severity'?"),
    "a misspelt condition": (HEAD + "    when: {roling_score: {open: -0.4}}\n", 4, "did you mean 'rolling_score'?"),
    "a misspelt default": (GOOD + "defaults:\n  cool_down: 10m\n", 6, "did you mean 'cooldown'?"),
    "an unknown key": (GOOD + "    zzzz: 1\n", 5, "rules schema"),
    "an unknown severity": (GOOD + "    severity: serious\n", 5, "'critical'"),
    "a misspelt signal": (HEAD + "    when: {signal: legal_treat}\n", 4, "did you mean 'legal_threat'?"),
    "a misspelt emotion": (HEAD + "    when: {message: {emotion: angry}}\n", 4, "did you mean 'anger'?"),
    "an unknown phase": (HEAD + "    when: {phase: with_boss}\n", 4, "with_bot"),
    "close below open": (ROLLING.replace("0.0", "-0.5"), 4, "must be above open"),
    "close equal to open": (ROLLING.replace("0.0", "-0.4"), 4, "must be above open"),
    "a score out of range": (ROLLING.replace("-0.4", "-4"), 4, "greater than or equal to -1"),
    "a word for a score": (ROLLING.replace("-0.4", "low"), 4, "valid number"),
    "a score that is never reached": (ROLLING.replace("-0.4", "-1"), 4, "can never fire"),
    "a shift that is never reached": (HEAD + "    when: {shift: {open: -1}}\n", 4, "can never fire"),
    "a message that says nothing": (HEAD + "    when: {message: {}}\n", 4, "name an emotion"),
    "a probability of nothing": (
        HEAD + "    when: {message: {min_probability: 0.9, label: negative}}\n",
        4,
        "needs an emotion",
    ),
    "a probability over 1": (
        HEAD + "    when: {message: {emotion: anger, min_probability: 95}}\n",
        4,
        "less than or equal to 1",
    ),
    "a positive message below 0": (
        HEAD + "    when: {message: {label: positive, max_score: -0.1}}\n",
        4,
        "can never fire",
    ),
    "a streak of nothing": (HEAD + "    when: {streak: {length: 0}}\n", 4, "greater than or equal to 1"),
    "a streak longer than any window": (HEAD + "    when: {streak: {length: 11}}\n", 4, "less than or equal to 10"),
    "a streak longer than this window": (
        HEAD + "    when: {streak: {length: 5}}\ndefaults: {state: {window: 4}}\n",
        4,
        "does not fit",
    ),
    "a negative streak of positive scores": (
        HEAD + "    when: {streak: {length: 2, min_score: 0.5}}\n",
        4,
        "can never fire",
    ),
    "a duration without unit": (HEAD + "    when: {agent_response_gap: 180}\n", 4, "90s, 30m or 24h"),
    "a duration with an unknown unit": (GOOD + "    cooldown: 3 min\n", 5, "90s, 30m or 24h"),
    "a timer that counts messages": (
        HEAD + "    when: {agent_response_gap: 3m}\n    for_messages: 2\n",
        5,
        "fires when nobody writes",
    ),
    "steps without a measure": (GOOD + "    severity: [{at: -0.4, level: error}]\n", 5, "severity steps need"),
    "an unreachable severity": (
        ROLLING.replace("-0.4", "-0.6") + "    severity: [{at: -0.4, level: info}, {at: -0.5, level: error}]\n",
        5,
        "info is unreachable",
    ),
    "steps that get milder": (
        ROLLING + "    severity: [{at: -0.4, level: error}, {at: -0.5, level: info}]\n",
        5,
        "graver",
    ),
    "an empty any": (HEAD + "    when: {any: []}\n", 4, "at least 1"),
    "two phases at once": (HEAD + "    when: {phase: with_bot, all: [{phase: with_agent}]}\n", 4, "two phases at once"),
    "a signal and its absence": (HEAD + "    when: {signal: abuse, not: {signal: abuse}}\n", 4, "and for its absence"),
    "a phase and its absence": (
        HEAD + "    when: {phase: with_bot, not: {phase: with_bot}}\n",
        4,
        "and for its absence",
    ),
    "everything switched off": (GOOD + "    enabled: false\n", 2, "every rule is disabled"),
    "a half-life of nothing": (GOOD + "defaults:\n  state: {half_life: 0}\n", 6, "null switches time off"),
    "agents scored": (GOOD + "defaults:\n  score_roles: [agent]\n", 6, "customer"),
    "an override for nobody": (GOOD + "overrides:\n  - {match: {}, set: {state.alpha: 0.2}}\n", 6, "at least 1"),
    "an override of an unknown rule": (
        GOOD + "overrides:\n  - {match: {channel: sms}, set: {rules.b.enabled: false}}\n",
        6,
        "no rule 'b'",
    ),
    "an override of an unknown key": (
        GOOD + "overrides:\n  - {match: {channel: sms}, set: {rules.a.enable: 1}}\n",
        6,
        "enable",
    ),
    "an override to a wrong value": (
        GOOD + "overrides:\n  - {match: {channel: sms}, set: {state.alpha: 2}}\n",
        6,
        "alpha",
    ),
    "overrides that combine too freely": (
        GOOD
        + "overrides:\n"
        + "".join(f"  - {{match: {{attribute_{n}: x}}, set: {{state.alpha: 0.{n + 1}}}}}\n" for n in range(9))
        + "  - {match: {channel: sms}, set: {state.alpha: 0.5}}\n",
        5,
        "make the matches exclusive",
    ),
    "a lexicon without such a phrase": (GOOD + "lexicon:\n  remove: {thanks: {en: [nope]}}\n", 6, "no en phrase"),
    "a storm limit of nothing": (
        GOOD + "suppress:\n  max_open_per_tenant_per_minute: 0\n",
        6,
        "greater than or equal to 1",
    ),
    "a misspelt storm limit": (
        GOOD + "suppress:\n  max_open_per_tenant_per_minut: 5\n",
        6,
        "did you mean 'max_open_per_tenant_per_minute'?",
    ),
    "an override of the second of two": (
        GOOD
        + "overrides:\n  - {match: {channel: sms}, set: {state.alpha: 0.2}}\n"
        + "  - {match: {channel: sms}, set: {state.alpha: 7}}\n",
        7,
        "alpha",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_on_the_line_that_is_wrong(name: str) -> None:
    text, line, message = BROKEN[name]
    findings = lint(text)
    assert [finding.line for finding in findings] == [line], findings
    assert message in findings[0].message


def test_there_are_at_least_forty_broken_files() -> None:
    assert len(BROKEN) >= 40


def test_all_mistakes_come_at_once_in_the_order_of_the_file() -> None:
    text = GOOD + "    severity: serious\n    cooldown: soon\ndefaults:\n  min_confidence: 7\n"
    assert [(f.line, f.path) for f in lint(text)] == [
        (5, "rules.0.severity"),
        (6, "rules.0.cooldown"),
        (8, "defaults.min_confidence"),
    ]


def test_a_good_file_has_no_mistake_and_the_packages_own_is_good() -> None:
    assert lint(GOOD) == []
    assert lint(DEFAULT_RULES.read_text()) == []


def test_the_command_prints_file_line_column_and_exits_with_1(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(GOOD + "    severty: error\n")
    result = CliRunner().invoke(app, ["lint", str(path)])
    assert result.exit_code == 1
    assert f"{path}:5:5: rules.0.severty: unknown key 'severty', did you mean 'severity'?" in result.output
    as_json = json.loads(CliRunner().invoke(app, ["lint", str(path), "--json"]).stdout)
    assert (as_json["ok"], as_json["mistakes"][0]["line"], as_json["mistakes"][0]["column"]) == (False, 5, 5)
    path.write_text(GOOD)
    assert CliRunner().invoke(app, ["lint", str(path)]).exit_code == 0


def test_the_rules_of_the_package_are_printed_as_they_are() -> None:
    assert CliRunner().invoke(app, ["default"]).stdout == DEFAULT_RULES.read_text(encoding="utf-8")


def test_the_schema_accepts_what_loads_and_refuses_a_misspelt_key() -> None:
    schema = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    jsonschema.validate(yaml.safe_load(DEFAULT_RULES.read_text()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(GOOD + "    severty: error\n"), schema)


def test_every_default_rule_is_one_sentence_in_both_languages() -> None:
    file = load_rules(None).file
    for rule in file.rules:
        english, chinese = explain(rule, file.defaults), explain(rule, file.defaults, "zh")
        assert english.startswith(f"{rule.id}: ")
        assert english.endswith(".")
        assert chinese.startswith(f"{rule.id}：")
        assert not set(chinese.removeprefix(rule.id)) & set(",;:()")
        assert chinese.endswith("。")


def test_a_sentence_leaves_no_part_of_a_rule_out() -> None:
    file = parse_rules(
        """
version: 1
rules:
  - id: long
    when:
      rolling_score: {open: -0.3}
      shift: {open: -0.2}
      streak: {length: 2, min_score: -0.5}
      message: {emotion: anger, min_probability: 0.8, label: negative, max_score: -0.4, min_intensity: 2}
      signals_seen: {signal: complaint, at_least: 3}
      agent_response_gap: 90s
      phase: with_bot
      any: [{signal: abuse}, {signal_any: [churn, thanks]}]
      not: {phase: with_agent}
    min_customer_messages: 4
    close_for_messages: 1
    cooldown: 1500ms
  - {id: patient, when: {signal: churn}, for_messages: 2, until: conversation_end, cooldown: 0}
  - {id: switched, when: {signal: churn}, enabled: false}
"""
    ).file
    assert isinstance(file, RuleFile)
    assert explain(file.rules[0], file.defaults) == (
        "long: warning when the rolling score is at or below -0.3 and the mood has shifted by -0.2 or worse since the "
        "beginning and the last 2 customer messages are negative of -0.5 or beyond and the message is negative and of "
        "anger (probability 0.8 or more) and scored -0.4 or below and of intensity 2 or more and the customer "
        "complains, for the third time or more and the customer has waited 90 seconds for an answer and a bot is in "
        "charge and (the customer uses abusive words or the customer says they will leave or says thanks) and it is not"
        " so that an agent is in charge, after at least 4 customer messages; it is resolved once that is over for 1 "
        "message, and then quiet for 1500 milliseconds."
    )
    assert explain(file.rules[1], file.defaults) == (
        "patient: warning when the customer says they will leave, for 2 messages in a row; it stays open until the conversation ends."
    )
    assert (
        explain(file.rules[1], file.defaults, "zh")
        == "patient：当客户表示不再光顾，并连续 2 条消息成立时，发出警告级告警；直到会话结束才解除。"
    )
    assert explain(file.rules[2], file.defaults) == "switched: switched off."
    assert explain(file.rules[2], file.defaults, "zh") == "switched：已停用。"
    assert "负面、愤怒（概率不低于 0.8）、得分不高于 -0.4、强度不低于 2" in explain(file.rules[0], file.defaults, "zh")


def test_a_sentence_may_hold_parts_of_parts_and_half_of_a_message() -> None:
    file = parse_rules(
        """
version: 1
rules:
  - {id: nested, when: {all: [{signal: churn}, {message: {max_score: -0.5}}]}}
  - {id: word, when: {message: {emotion: joy}}}
"""
    ).file
    said = [explain(rule, file.defaults) for rule in file.rules]
    assert "when the customer says they will leave and the message is scored -0.5 or below;" in said[0]
    assert "the message is of joy (probability 0.5 or more)" in said[1]


def test_the_place_of_what_is_not_there_is_that_of_what_is_around_it() -> None:
    marks = Marks("a:\n  b: 1\n")
    assert marks.of(("a", "c", 3)) == marks.of(("a",))
    assert marks.of(("z",)) == (1, 1)
