"""Numbers of a rule file chosen on labels: the figures that count are of conversations that had no part in the choice."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from stream_sentiment.backtest.choose import MAX_COMBINATIONS, choose, combinations_of, wilson
from stream_sentiment.backtest.conversations import Conversation, read_conversations
from stream_sentiment.backtest.decide import by_labels
from stream_sentiment.cli.main import app
from stream_sentiment.errors import ConfigurationError

RULES = """
version: 1
defaults: {cooldown: 0, state: {alpha: 0.3, half_life: null}}
rules: [{id: sustained, when: {rolling_score: {open: -0.4, close: 0.0}}}]
"""
PATH = "rules.sustained.when.rolling_score.open"


def rows(negatives_where_needed: list[int], negatives_elsewhere: list[int]) -> list[dict[str, Any]]:
    """Conversations of as many negative messages in a row; the first list should escalate, at any of its messages."""
    made = []
    for number, count in enumerate([*negatives_where_needed, *negatives_elsewhere]):
        messages = [{"role": "customer", "text": f"bad {i}", "polarity": "negative"} for i in range(count)]
        messages += [{"role": "customer", "text": "ok", "polarity": "neutral"}]
        needed = number < len(negatives_where_needed)
        label = (
            {"escalate": needed, "earliest_message": 0, "by_message": len(messages) - 1}
            if needed
            else {"escalate": False}
        )
        made.append({"id": f"c{number}", "lang": "en", "messages": messages, **label})
    return made


def conversations(path: Path, needed: list[int], elsewhere: list[int]) -> list[Conversation]:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows(needed, elsewhere)))
    return list(read_conversations(path))


# -0.30, -0.51, -0.657 after one, two and three negative messages.
VALUES = [-0.6, -0.5, -0.28]


def test_the_value_that_tells_the_two_kinds_apart_is_chosen(tmp_path: Path) -> None:
    read = conversations(tmp_path / "c.jsonl", [2, 3, 2, 3, 2, 3], [1, 0, 1, 1, 0, 1])
    choice = choose(read, RULES, [(PATH, VALUES)], by_labels(), max_false_alarms=0.1, folds=3, shuffles=4)
    assert choice.chosen == (-0.5,)
    assert (choice.in_sample.recall, choice.in_sample.false_alarm_rate) == (1.0, 0.0)
    assert (choice.out_of_fold.recall, choice.out_of_fold.false_alarm_rate, choice.out_of_fold.precision) == (
        1.0,
        0.0,
        1.0,
    )
    assert choice.votes == [((-0.5,), 12)]
    assert choice.given.recall == 1.0


def test_a_bound_on_false_alarms_is_kept_on_the_folds_that_are_looked_at(tmp_path: Path) -> None:
    read = conversations(tmp_path / "c.jsonl", [1, 1, 1, 3, 3, 3], [1, 1, 1, 0, 0, 0])
    strict = choose(read, RULES, [(PATH, VALUES)], by_labels(), max_false_alarms=0.1, folds=3, shuffles=2)
    assert strict.chosen == (-0.6,)
    assert (strict.in_sample.recall, strict.in_sample.false_alarm_rate) == (0.5, 0.0)
    loose = choose(read, RULES, [(PATH, VALUES)], by_labels(), max_false_alarms=0.6, folds=3, shuffles=2)
    assert loose.chosen == (-0.28,)
    assert (loose.in_sample.recall, loose.in_sample.false_alarm_rate) == (1.0, 0.5)
    impossible = choose(read, RULES, [(PATH, [-0.28, -0.29])], by_labels(), max_false_alarms=0.0, folds=3, shuffles=1)
    assert impossible.in_sample.false_alarm_rate == 0.5


def test_what_was_chosen_by_luck_is_worse_out_of_fold(tmp_path: Path) -> None:
    rng = Random(3)
    noise = [[rng.randrange(4) for _ in range(12)] for _ in range(2)]
    read = conversations(tmp_path / "c.jsonl", *noise)
    wide = [(PATH, [-0.7, -0.6, -0.5, -0.28]), ("defaults.state.alpha", [0.2, 0.3, 0.4])]
    choice = choose(read, RULES, wide, by_labels(), max_false_alarms=0.3, folds=6, shuffles=30)
    assert choice.in_sample.recall is not None
    assert choice.out_of_fold.recall is not None
    gained = choice.in_sample.recall - (choice.in_sample.false_alarm_rate or 0)
    kept = choice.out_of_fold.recall - (choice.out_of_fold.false_alarm_rate or 0)
    assert kept < gained


def test_the_same_input_gives_the_same_figures(tmp_path: Path) -> None:
    read = conversations(tmp_path / "c.jsonl", [1, 2, 3, 0, 2], [0, 1, 0, 2, 1])
    first, second = (
        choose(read, RULES, [(PATH, VALUES)], by_labels(), max_false_alarms=0.3, folds=5, shuffles=7).as_dict()
        for _ in range(2)
    )
    assert first == second
    assert first["combinations"] == 3
    assert sum(vote["times"] for vote in first["votes"]) == 35


def test_what_cannot_be_chosen_from_is_refused(tmp_path: Path) -> None:
    read = conversations(tmp_path / "c.jsonl", [2, 2], [0, 0, 0, 0, 0])
    with pytest.raises(ConfigurationError, match="2 labelled conversations should escalate"):
        choose(read, RULES, [(PATH, VALUES)], by_labels(), max_false_alarms=0.1)
    with pytest.raises(ConfigurationError, match="no combination of the values is accepted"):
        choose(read, RULES, [(PATH, [0.5, 0.6])], by_labels(), max_false_alarms=0.1, folds=2)
    with pytest.raises(ConfigurationError, match=f"more than {MAX_COMBINATIONS}"):
        combinations_of([("a", list(range(100))), ("b", list(range(100)))])


def test_the_interval_is_wilsons() -> None:
    interval = wilson(8, 10)
    assert interval is not None
    assert interval == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
    assert wilson(0, 0) is None


def test_the_command_prints_the_choice(tmp_path: Path) -> None:
    path, rules = tmp_path / "c.jsonl", tmp_path / "rules.yaml"
    rules.write_text(RULES)
    conversations(path, [2, 3, 2, 3, 2], [1, 0, 1, 1, 0])
    command = ["backtest", str(path), "--labels", "--rules", str(rules), "--choose", f"{PATH}=-0.6..-0.28/3"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "out of fold" in shown.output
    assert f"{PATH}=-0.44" in shown.output
    report = orjson.loads(CliRunner().invoke(app, [*command, "--json", "--shuffles", "2"]).output)
    assert report["choose"]["chosen"] == {PATH: -0.44}
    assert report["choose"]["shuffles"] == 2
    assert report["intervals"]["recall"] == [0.5655, 1.0]
