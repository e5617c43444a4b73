"""A changed rule file of a running worker: taken up, refused with every mistake, mended."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from stream_sentiment.escalation.rules import RuleSet, load_rules
from stream_sentiment.live import rules_file
from stream_sentiment.live.rules_file import RulesFile
from stream_sentiment.observability.health import HealthState
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.scoring.scorer import StubScorer
from stream_sentiment.testing.clock import FakeClock

GOOD = "version: 1\nrules:\n  - {id: one, when: {rolling_score: {open: -0.4}}}\n"
OTHER = GOOD.replace("version: 1", "version: 2")
BAD = "version: 3\nrules:\n  - {id: one, when: {rolling_score: {opn: -0.4}}}\n  - {id: two, when: {signal: nosuch}}\n"


class Watched:
    """A rule file with its source, and what came of each look."""

    def __init__(self, directory: Path, text: str = GOOD) -> None:
        self.path = directory / "rules.yaml"
        self.path.write_text(text)
        self.used: list[RuleSet] = []
        self.clock = FakeClock()
        self.metrics = Metrics(clock=self.clock)
        self.health = HealthState()
        self.source = RulesFile(
            self.path,
            load_rules(self.path),
            interval=1.0,
            use=self.used.append,
            model=lambda: StubScorer().info,
            metrics=self.metrics,
            health=self.health,
        )
        self.settle()

    def settle(self) -> None:
        self.source.look()
        self.source.look()

    def write(self, text: str) -> None:
        self.path.write_text(text)
        self.settle()

    def reloads(self) -> dict[str, float]:
        counters = self.metrics.rules_reload_total
        found = {name: counters.labels(name)._value.get() for name in ("applied", "unchanged", "refused")}
        return {name: value for name, value in found.items() if value}

    @property
    def detail(self) -> str:
        condition = self.health.conditions()["rules"]
        assert condition.ok, "a bad rule file must not take the worker out of service"
        return condition.detail


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_a_new_valid_file_is_taken_up_once(watched: Watched) -> None:
    assert watched.reloads() == {}
    watched.write(OTHER)
    watched.settle()
    assert [rules.file.version for rules in watched.used] == [2]
    assert watched.reloads() == {"applied": 1}
    assert watched.detail == f"version {watched.used[0].version}"
    assert watched.used[0].lexicon is not None, "the lexicon is compiled before a window waits for it"


def test_a_file_that_changes_while_it_is_looked_at_is_not_taken_up_before_it_rests(watched: Watched) -> None:
    watched.path.write_text(OTHER[:20])
    watched.source.look()
    watched.path.write_text(OTHER)
    watched.source.look()
    assert watched.used == []
    assert watched.reloads() == {}
    watched.source.look()
    assert watched.reloads() == {"applied": 1}


def test_a_bad_file_keeps_the_old_rules_and_tells_every_mistake_and_since_when(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, list[str]] = {}
    log = SimpleNamespace(
        error=lambda event, **fields: told.update({event: fields["mistakes"]}), info=lambda *a, **f: None
    )
    monkeypatch.setattr(rules_file, "log", log)
    watched.write(BAD)
    assert watched.used == []
    assert watched.reloads() == {"refused": 1}
    watched.clock.advance(90)
    assert watched.metrics.rules_file_invalid_seconds.seconds() == 90
    assert "1-" in watched.detail
    assert "stays in force" in watched.detail
    assert "line 3" in watched.detail
    assert "and 2 more" in watched.detail
    assert len(told["rules_refused"]) == 3
    assert "did you mean 'open'?" in told["rules_refused"][1]
    assert "line 4, column 22" in told["rules_refused"][2]
    watched.write(BAD + "# still bad\n")
    watched.clock.advance(10)
    assert watched.metrics.rules_file_invalid_seconds.seconds() == 100, "since the first bad one"
    watched.write(OTHER)
    assert watched.metrics.rules_file_invalid_seconds.seconds() == 0
    assert watched.reloads() == {"refused": 2, "applied": 1}
    assert watched.detail == f"version {watched.used[0].version}"


def test_a_bad_file_that_is_put_back_to_what_is_in_force_is_told_as_unchanged(watched: Watched) -> None:
    watched.write(BAD)
    watched.write(GOOD)
    assert watched.used == []
    assert watched.reloads() == {"refused": 1, "unchanged": 1}
    assert watched.metrics.rules_file_invalid_seconds.seconds() == 0


def test_a_comment_changes_no_rule(watched: Watched) -> None:
    watched.write(GOOD + "# a remark\n")
    assert watched.used == []
    assert watched.reloads() == {}


@pytest.mark.parametrize("damage", ["removed", "no utf-8", "no yaml"])
def test_a_file_that_cannot_be_read_is_refused_like_a_bad_one(watched: Watched, damage: str) -> None:
    if damage == "removed":
        watched.path.unlink()
    elif damage == "no utf-8":
        watched.path.write_bytes(b"\xff\xfe")
    else:
        watched.path.write_text("rules: [")
    watched.settle()
    assert watched.reloads() == {"refused": 1}
    assert watched.used == []


def test_a_mistake_that_was_let_pass_at_the_start_is_not_refused_when_somebody_touches_the_file(tmp_path: Path) -> None:
    never = GOOD + "  - {id: never, when: {rolling_score: {open: -1}}}\n"
    watched = Watched(tmp_path, never)
    watched.write(never + "# touched\n")
    assert watched.reloads() == {}
    # A change to such a file is refused: there are better rules to go on with.
    watched.write(never.replace("version: 1", "version: 9"))
    assert watched.reloads() == {"refused": 1}


def test_a_change_between_loading_and_the_first_look_is_not_missed(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(GOOD)
    rules = load_rules(path)
    path.write_text(OTHER)
    used: list[RuleSet] = []
    source = RulesFile(
        path,
        rules,
        interval=1.0,
        use=used.append,
        model=lambda: SimpleNamespace(signal_thresholds={}, labels={}),  # type: ignore[arg-type,return-value]
        metrics=Metrics(),
        health=HealthState(),
    )
    source.look()
    source.look()
    assert [found.file.version for found in used] == [2]
