"""Loading a rule file: what is accepted, and that every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.escalation.rules import load_rules, parse_rules


def stepped(opens: float, steps: str) -> str:
    return f"version: 1\nrules: [{{id: a, when: {{rolling_score: {{open: {opens}}}}}, severity: [{steps}]}}]"


GOOD = "version: 7\nrules: [{id: a, when: {streak: {length: 2}}}]\n"


def test_the_rules_of_the_package_load_and_name_their_version() -> None:
    rules = load_rules(None)
    assert rules.version.startswith(f"{rules.file.version}-")
    assert {rule.id for rule in rules.default.rules} >= {"sustained-negative", "two-in-a-row", "single-extreme"}


def test_the_version_follows_the_content_and_not_the_layout() -> None:
    same = 'rules:\n  - when:\n      streak: {length: 2}   # a comment\n    id: "a"\nversion: 7\n'
    assert parse_rules(GOOD).version == parse_rules(same).version
    assert parse_rules(GOOD).version != parse_rules(GOOD.replace("length: 2", "length: 3")).version
    assert parse_rules(GOOD).version.startswith("7-")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        """
version: 1
defaults: {cooldown: 10, min_confidence: 2}
rules:
  - {id: Bad Id, when: {rolling_score: {open: -0.4, close: -0.5}}}
  - {id: b, when: {}, severity: awful, extra: 1}
"""
    )
    with pytest.raises(ConfigurationError) as error:
        load_rules(path)
    text = str(error.value)
    for part in (
        str(path),
        "defaults.cooldown",
        "defaults.min_confidence",
        "rules.0.id",
        "must be above open",
        "rules.1.when",
        "rules.1.severity",
        "rules.1.extra",
    ):
        assert part in text


BROKEN = {
    "no yaml": "version: [",
    "a list": "- 1",
    "empty": "",
    "no rules": "version: 1",
    "an empty rule list": "version: 1\nrules: []",
    "no version": "rules: [{id: a, when: {streak: {length: 2}}}]",
    "no id": "version: 1\nrules: [{when: {streak: {length: 2}}}]",
    "no condition": "version: 1\nrules: [{id: a}]",
    "two of one id": "version: 1\nrules: [{id: a, when: {streak: {length: 2}}}, {id: a, when: {streak: {length: 3}}}]",
    "an unknown signal": "version: 1\nrules: [{id: a, when: {signal: rage}}]",
    "an unknown emotion": "version: 1\nrules: [{id: a, when: {message: {emotion: rage}}}]",
    "a message that says nothing": "version: 1\nrules: [{id: a, when: {message: {}}}]",
    "a probability of nothing": "version: 1\nrules: [{id: a, when: {message: {min_probability: 0.9, label: negative}}}]",
    "a streak longer than the window": "version: 1\nrules: [{id: a, when: {streak: {length: 11}}}]",
    "a score out of range": "version: 1\nrules: [{id: a, when: {rolling_score: {open: -4}}}]",
    "a duration without unit": "version: 1\nrules: [{id: a, when: {agent_response_gap: 180}}]",
    "a duration with an unknown unit": "version: 1\nrules: [{id: a, when: {agent_response_gap: 3 min}}]",
    "a negative duration": "version: 1\nrules: [{id: a, when: {agent_response_gap: -3m}}]",
    "true for a duration": "version: 1\nrules: [{id: a, when: {agent_response_gap: true}}]",
    "a timer that counts messages": "version: 1\nrules: [{id: a, when: {agent_response_gap: 3m}, for_messages: 2}]",
    "a nested timer that counts messages": "version: 1\nrules: [{id: a, when: {any: [{agent_response_gap: 3m}]}, for_messages: 2}]",
    "steps without a measure": "version: 1\nrules: [{id: a, when: {streak: {length: 2}}, severity: [{at: -0.4, level: error}]}]",
    "no steps": stepped(-0.4, ""),
    "steps that rise": stepped(-0.4, "{at: -0.6, level: info}, {at: -0.5, level: error}"),
    "steps that get milder": stepped(-0.4, "{at: -0.4, level: error}, {at: -0.5, level: info}"),
    "an unreachable severity": stepped(-0.6, "{at: -0.4, level: info}, {at: -0.5, level: error}"),
    "an empty all": "version: 1\nrules: [{id: a, when: {all: []}}]",
    "a half-life of nothing": GOOD + "defaults: {state: {half_life: 0}}",
    "a ttl of nothing": GOOD + "defaults: {state: {ttl: 0}}",
    "agents scored": GOOD + "defaults: {score_roles: [agent]}",
    "an override of nothing": GOOD + "overrides: [{match: {channel: sms}, set: {}}]",
    "an override for nobody": GOOD + "overrides: [{match: {}, set: {state.alpha: 0.2}}]",
    "an override of an unknown rule": GOOD + "overrides: [{match: {channel: sms}, set: {rules.b.enabled: false}}]",
    "an override of an unknown key": GOOD + "overrides: [{match: {channel: sms}, set: {rules.a.enable: false}}]",
    "an override outside rules and defaults": GOOD + "overrides: [{match: {channel: sms}, set: {version: 2}}]",
    "an override through a value": GOOD + "overrides: [{match: {channel: sms}, set: {rules.a.id.b: 2}}]",
    "an override to a wrong value": GOOD + "overrides: [{match: {channel: sms}, set: {defaults.state.alpha: 2}}]",
    "two overrides that clash": GOOD.replace("streak: {length: 2}", "rolling_score: {open: -0.4, close: 0}")
    + "overrides: [{match: {channel: sms}, set: {rules.a.when.rolling_score.open: -0.1}},"
    + " {match: {tier: a}, set: {rules.a.when.rolling_score.close: -0.2}}]",
    "too many overrides that overlap": GOOD
    + "overrides: ["
    + ", ".join(f"{{match: {{a{i}: 1}}, set: {{state.alpha: 0.2}}}}" for i in range(10))
    + "]",
    "a storm guard of nothing": GOOD + "suppress: {max_open_per_tenant_per_minute: 0}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_rules(BROKEN[name])


def test_a_file_that_is_not_there_or_no_text_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_rules(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        load_rules(tmp_path / "bytes.yaml")


def test_overrides_that_exclude_each_other_may_be_many() -> None:
    many = ", ".join(f"{{match: {{tenant_id: t{i}}}, set: {{state.alpha: 0.2}}}}" for i in range(300))
    rules = parse_rules(GOOD + f"overrides: [{many}]")
    assert rules.view("t17", "sms", {}).options.alpha == 0.2
    assert rules.view("other", "sms", {}).options.alpha == 0.3


def test_a_near_miss_in_a_rule_name_is_suggested() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'sustained'"):
        parse_rules(
            "version: 1\nrules: [{id: sustained, when: {streak: {length: 2}}}]\n"
            "overrides: [{match: {channel: sms}, set: {rules.sustaned.enabled: false}}]"
        )


def test_durations_are_whole_numbers_with_a_unit() -> None:
    rules = parse_rules(GOOD + "defaults: {cooldown: 90s, renotify_every: 0, state: {ttl: 2d, half_life: 1500ms}}")
    assert (rules.options.ttl_ms, rules.options.half_life_ms) == (172_800_000, 1500)
    assert (rules.default.rules[0].cooldown_ms, rules.default.rules[0].renotify_ms) == (90_000, 0)
