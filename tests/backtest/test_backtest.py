"""`backtest`: the worker's decisions on conversations of the past, and their figures."""

from __future__ import annotations

import gzip
import json
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from stream_sentiment.backtest.conversations import read_conversations
from stream_sentiment.backtest.decide import by_labels, by_model, decide, with_noise
from stream_sentiment.backtest.picture import precision_recall_svg
from stream_sentiment.backtest.run import alerts_of, compare, figures, parse_sweep, run, sweep
from stream_sentiment.backtest.scores import ScoreCache, gold_score
from stream_sentiment.cli.main import app
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.escalation.rules import load_rules, parse_rules
from stream_sentiment.events.incoming import decode
from stream_sentiment.events.routing import RoutingOptions, route
from stream_sentiment.record_fold import Batch, Moment, RecordFolder
from stream_sentiment.scoring.corrections import Corrector
from stream_sentiment.scoring.corrections import load_rules as load_corrections
from stream_sentiment.scoring.scorer import StubScorer
from stream_sentiment.settings import Settings
from stream_sentiment.stages import Epoch, Record
from stream_sentiment.store.keys import TopicPartition
from tests.integration.road import score_of as road_score

RULES = """
version: 1
defaults: {state: {half_life: null}, renotify_every: 0}
rules:
  - {id: pair, when: {streak: {length: 2}}}
  - {id: law, when: {signal: legal_threat}, severity: error}
"""


def said(label: str, role: str = "customer", **more: Any) -> dict[str, Any]:
    message = {"role": role, "text": "x", **more}
    return (
        message
        if role != "customer"
        else {**message, "polarity": label, "emotion": "neutral", "intensity": 3, "signals": more.get("signals", [])}
    )


def chat(name: str, labels: str, **more: Any) -> dict[str, Any]:
    """`n`, `0`, `+`: the customer's messages; `a`: an agent's."""
    words = {"n": "negative", "0": "neutral", "+": "positive"}
    messages = [said("", "agent") if c == "a" else said(words[c]) for c in labels]
    return {"id": name, "lang": "en", "messages": messages, **more}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


LABELLED = [
    chat("right", "0nna0", escalate=True, earliest_message=1, by_message=2),
    chat("early", "nn0na0n", escalate=True, earliest_message=3, by_message=6),
    chat("late", "n0n0n0nn", escalate=True, earliest_message=0, by_message=2),
    chat("missed", "n0n", escalate=True, earliest_message=0, by_message=2),
    chat("false", "nn", escalate=False),
    chat("calm", "0+a+", escalate=False),
]


def test_figures_follow_their_definitions(tmp_path: Path) -> None:
    rules = parse_rules(RULES)
    report = figures(run(read_conversations(write(tmp_path / "c.jsonl", LABELLED)), rules, by_labels()), rules)
    assert (report["conversations"], report["messages"], report["labelled"]) == (6, 29, 6)
    total = report["total"]
    assert (total["alerts"], total["conversations"]) == (4, 4)
    assert total["recall"] == 0.25  # `right` of four
    assert total["early"] == 0.25
    assert total["precision"] == 0.75  # right, early and late of four alerted
    assert total["f1"] == 0.375
    assert total["false_alarm_rate"] == 0.5
    assert total["median_lead_turns"] == 0  # 0, 4 and -5 customer turns before the last good moment
    assert total["median_lead_seconds"] == 0
    assert report["alerts_per_1000"] == pytest.approx(666.6667)
    assert report["rules"]["law"]["conversations"] == 0
    assert report["rules"]["pair"] == total


def test_without_labels_there_are_volumes_and_no_quality(tmp_path: Path) -> None:
    rules = parse_rules(RULES)
    rows = [{key: value for key, value in row.items() if key not in ("escalate",)} for row in LABELLED]
    total = figures(run(read_conversations(write(tmp_path / "c.jsonl", rows)), rules, by_labels()), rules)["total"]
    assert total["alerts"] == 4
    assert [total[name] for name in ("precision", "recall", "f1", "false_alarm_rate", "median_lead_turns")] == [
        None
    ] * 5


def test_rules_that_speak_together_are_counted_as_overlap(tmp_path: Path) -> None:
    rules = parse_rules(RULES)
    both = {"id": "b", "messages": [said("negative"), said("negative", signals=["legal_threat"])]}
    report = figures(run(read_conversations(write(tmp_path / "c.jsonl", [both])), rules, by_labels()), rules)
    assert report["overlap"] == [{"rules": ["law", "pair"], "conversations": 1}]


TEXTS = [
    *("thanks for nothing", "😡😡", "谢谢，可是还没到", "not happy", "没问题", "good 😍", "ok thanks"),
    *("my parcel is late", "this is the third time", "I'll call my lawyer", "sorry", "谢谢", "the battery is smoking"),
    *("??", "…", "refund me", "no", "转人工", "12315", "stop", "thanks", "bye"),
]
EVENTS: list[dict[str, Any]] = [
    {
        "tenant_id": "t",
        "conversation_id": "c",
        "message_id": f"m{i}",
        "created_at": f"2026-01-01T10:{i:02d}:00Z",
        "channel": "web_chat",
        "sender": {"role": "agent" if i % 4 == 3 else "customer"},
        "text": text,
        "type": "chat.message.created",
    }
    for i, text in enumerate(TEXTS)
]
EVENTS.insert(7, {**EVENTS[2], "type": "chat.message.edited", "text": "I won't", "created_at": "2026-01-01T10:06:30Z"})
EVENTS.append(
    {
        "tenant_id": "t",
        "conversation_id": "c",
        "created_at": "2026-01-01T11:00:00Z",
        "channel": "web_chat",
        "type": "chat.conversation.ended",
    }
)
EVENTS.append({"conversation_id": "c", "tenant_id": "t", "channel": "pigeon", "created_at": "2026-01-01T11:00:00Z"})


@pytest.mark.parametrize("corrected", [False, True])
def test_decisions_are_the_workers_on_the_same_events(tmp_path: Path, corrected: bool) -> None:
    """The worker's own `RecordFolder` on one side, the back-test on the other."""
    rules, scorer = load_rules(None), StubScorer()
    defaults = Settings()
    defaults.corrections.rules.update({rule.id: corrected for rule in load_corrections()})
    counted: list[tuple[str, ...]] = []
    folder = RecordFolder(defaults, rules, scorer.info, SimpleNamespace(scored_chat=lambda *a: None))
    epoch = Epoch(TopicPartition("chat.messages", 0), "chat", "token", 0)
    tally = SimpleNamespace(count=lambda *a: counted.append(a), observe=lambda *a: None)
    batch = Batch(epoch, [], tally)
    for offset, event in enumerate(EVENTS):
        value = orjson.dumps(event)
        try:
            decoded = decode("chat", value, {}, 1 << 20)
        except Exception:
            continue
        text, language, skipped, _ = route(decoded, RoutingOptions())
        record = Record(epoch, offset, decoded.at_ms, 0, b"k", value, None, decoded)
        record.text, record.language, record.skipped_reason, record.conversation = text, language, skipped, "k"
        record.score = None if text is None else scorer.score([text])[0]
        epoch.states.setdefault("k", (None, 0.0))
        folder.fold(batch, record, Moment.at(0))
    worker = [orjson.loads(entry.value) for entry, _ in batch.outputs.values()]

    (conversation,) = read_conversations(write(tmp_path / "events.jsonl", EVENTS))
    texts = {m.text: scorer.score([m.text])[0] for m in conversation.messages if m.text is not None}
    corrector = Corrector.of(defaults.corrections, scorer.info)
    decisions = decide(conversation, rules, by_model(texts, rules.finder(scorer.info), corrector))
    assert worker
    assert any(name == "corrections_total" for name, *_ in counted) == corrected
    if corrected:  # and without them the two would differ
        plain = decide(conversation, rules, by_model(texts, rules.finder(scorer.info)))
        assert [d.transition.score for d in decisions] != [d.transition.score for d in plain]
    assert [
        (
            d.transition.escalation_id,
            d.transition.action,
            d.transition.revision,
            d.transition.severity,
            d.transition.reason,
            round(d.transition.score, 4),
        )
        for d in decisions
    ] == [
        (event["escalation_id"], event["action"], event["revision"], event["severity"], event["reason"], event["score"])
        for event in worker
    ]
    assert {event["trigger"]["kind"] for event in worker} >= {"signal"}


def test_a_record_that_is_folded_again_is_corrected_once_and_counted_again() -> None:
    """After FENCED or GAP the same records are folded anew; a second correction would act on the first one's result."""
    settings = Settings()
    settings.corrections.rules["thanks-sarcastic"] = True
    scorer = StubScorer()
    folder = RecordFolder(settings, load_rules(None), scorer.info, SimpleNamespace(scored_chat=lambda *a: None))
    epoch = Epoch(TopicPartition("chat.messages", 0), "chat", "token", 0)
    value = orjson.dumps({**EVENTS[0], "text": "thanks for nothing"})
    decoded = decode("chat", value, {}, 1 << 20)
    record = Record(epoch, 0, decoded.at_ms, 0, b"k", value, None, decoded)
    record.text, record.conversation, record.score = "thanks for nothing", "k", road_score("positive", "joy")
    seen = []
    for _ in range(2):
        epoch.states = {"k": (None, 0.0)}
        counted: list[tuple[str, ...]] = []
        tally = SimpleNamespace(count=lambda *a, kept=counted: kept.append(a), observe=lambda *a: None)
        batch = Batch(epoch, [], tally)
        folder.fold(batch, record, Moment.at(0))
        seen.append((record.score, record.corrections, batch.touched["k"].score, sorted(counted)))
    assert seen[0] == seen[1]
    assert ("corrections_total", "thanks-sarcastic") in seen[0][3]
    assert seen[0][2] < 0


def test_turns_of_a_data_set_are_read_with_the_ending_as_label(tmp_path: Path) -> None:
    rows = [
        {"conversation_id": "a", "turn": 0, "role": "user", "text": "bad", "lang": "en"},
        {"conversation_id": "a", "turn": 1, "role": "agent", "text": "ok", "lang": "en"},
        {"conversation_id": "a", "turn": 2, "role": "overall", "text": "", "satisfaction": "dissatisfied"},
    ]
    path = tmp_path / "set.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(orjson.dumps(row) + b"\n" for row in rows)))
    (conversation,) = read_conversations(path)
    assert [m.turn.role for m in conversation.messages] == ["customer", "agent"]
    assert conversation.label.escalate


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: no JSON"),
        ("[]", "must be a JSON object"),
        ('{"text": "x"}', "neither a conversation"),
        ('{"id": "a", "messages": [{"role": "boss", "text": "x"}]}', "role 'boss'"),
        ('{"id": "a", "started_at": "today", "messages": []}', "RFC 3339"),
    ],
)
def test_a_line_that_is_neither_is_told_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigurationError, match=message):
        list(read_conversations(path))


def test_scores_are_remembered_by_text_and_model(tmp_path: Path) -> None:
    class Counting(StubScorer):
        asked = 0

        def score(self, texts: Any) -> Any:
            Counting.asked += len(texts)
            return super().score(texts)

    scorer = Counting()
    cache = ScoreCache(tmp_path / "deep" / "scores.sqlite")
    first = cache.scores(scorer, ["a", "b", "a"])
    assert (len(first), Counting.asked) == (2, 2)
    assert cache.scores(scorer, ["b", "c"])["b"] == first["b"]
    assert Counting.asked == 3
    cache.close()


def test_noise_flips_about_its_share_and_the_same_ones_every_time(tmp_path: Path) -> None:
    (conversation,) = read_conversations(write(tmp_path / "c.jsonl", [chat("many", "n" * 400)]))

    def labels(share: float) -> list[str]:
        judge = with_noise(by_labels(), share)
        return [judge(conversation, message)[0].label for message in conversation.messages]

    flipped = sum(label != "negative" for label in labels(0.2))
    assert 50 <= flipped <= 110
    assert labels(0.2) == labels(0.2)
    assert set(labels(0.0)) == {"negative"}


def test_a_sweep_gives_figures_for_every_value_and_tells_those_that_are_refused(tmp_path: Path) -> None:
    conversations = list(read_conversations(write(tmp_path / "c.jsonl", LABELLED)))
    path, values = parse_sweep("rules.pair.when.streak.length=1..3/3")
    rows = sweep(conversations, RULES, path, values, by_labels())
    assert [(row["value"], row["conversations"]) for row in rows] == [(1.0, 5), (2.0, 4), (3.0, 0)]
    svg = precision_recall_svg(rows, "a < b")
    assert svg.count("<circle") == 2
    assert "a &lt; b" in svg
    assert ">false alarms<" in svg
    together = precision_recall_svg([{"value": v, "recall": 0.8, "precision": 1.0} for v in (1, 2, 3)], "t")
    assert together.count("<circle") == 1
    assert ">1-3<" in together
    half = sweep(conversations, RULES, path, [0.0, 1.0], by_labels())
    assert "error" in half[0]
    with pytest.raises(ConfigurationError, match="no value is accepted"):
        sweep(conversations, RULES, path, [0.0, 20.0], by_labels())


@pytest.mark.parametrize("text", ["", "a", "a=1", "a=1..x", "=1..2", "a=1..2/1"])
def test_a_sweep_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_sweep(text)


def test_compare_names_the_conversations_that_would_change(tmp_path: Path) -> None:
    conversations = list(read_conversations(write(tmp_path / "c.jsonl", LABELLED)))
    before = run(conversations, parse_rules(RULES), by_labels())
    after = run(
        conversations,
        parse_rules(
            RULES.replace("length: 2", "length: 2, min_score: -0.2").replace("severity: error", "severity: info")
        ),
        by_labels(),
    )
    assert compare(before, after) == []
    later = run(conversations, parse_rules(RULES.replace("{length: 2}", "{length: 1}")), by_labels())
    assert [row["id"] for row in compare(before, later)] == ["right", "early", "late", "missed", "false"]
    missed = next(row for row in compare(before, later) if row["id"] == "missed")
    assert (missed["escalate"], missed["before"]) == (True, [])
    assert missed["after"][0] == ["opened", "pair", "warning", 0]


def test_the_command_writes_what_it_says_and_fails_under_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "c.jsonl", LABELLED)
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    other = tmp_path / "other.yaml"
    other.write_text(RULES.replace("length: 2", "length: 1"))
    arguments = ["backtest", str(source), "--rules", str(rules), "--labels"]
    full = [
        *arguments,
        "--compare",
        str(other),
        "--sweep",
        "rules.pair.when.streak.length=1..3/3",
        "--output",
        str(tmp_path / "out"),
    ]
    report = json.loads(CliRunner().invoke(app, [*full, "--json"]).stdout)
    assert report["total"]["alerts"] == 4
    assert report["compare"]["total"]["alerts"] > 4
    assert len(report["sweep"]["rows"]) == 3
    lines = (tmp_path / "out" / "decisions.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert (first["id"], first["alerts"][0]["action"], first["alerts"][0]["message_index"]) == ("right", "opened", 2)
    assert set(first["alerts"][0]) >= {"action", "rule_id", "severity", "message_index", "at"}
    assert (tmp_path / "out" / "sweep.svg").read_text().startswith("<svg")
    shown = CliRunner().invoke(app, full)
    assert "conversation(s) would change" in shown.stdout
    monkeypatch.setenv("COLUMNS", "80")
    rules.write_text(RULES.replace("id: pair", "id: unanswered-while-negative"))
    narrow = CliRunner().invoke(app, arguments).stdout.splitlines()
    assert any(line.split()[-1:] == ["open2"] for line in narrow)
    assert any(line.split()[:1] == ["unanswered-while-negative"] for line in narrow)
    assert CliRunner().invoke(app, [*arguments, "--fail-under", "recall=.25"]).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--fail-under", "recall=.26"]).exit_code == 1
    assert CliRunner().invoke(app, [*arguments, "--fail-under", "beauty=1"]).exit_code == 2
    unlabelled = write(tmp_path / "u.jsonl", [{"id": "u", "messages": [{"role": "customer", "text": "x"}]}])
    result = CliRunner().invoke(app, ["backtest", str(unlabelled), "--labels"])
    assert isinstance(result.exception, ConfigurationError)


def test_the_storm_guard_of_the_worker_marks_alerts_of_conversations_that_have_times(tmp_path: Path) -> None:
    rules = parse_rules(RULES + "\nsuppress: {max_open_per_tenant_per_minute: 2}\n")
    at_once = [chat(f"c{i}", "nn", started_at="2026-01-01T10:00:00Z") for i in range(5)]
    later = [chat("later", "nn", started_at="2026-01-01T11:00:00Z")]
    untimed = [chat(f"u{i}", "nn") for i in range(5)]
    path = write(tmp_path / "c.jsonl", [*at_once, *later, *untimed])
    results = run(read_conversations(path), rules, by_labels())
    assert figures(results, rules)["storm"] == {"suppressed": 3, "storms": 1, "applies_to": 6}
    marked = [c.id for c, decisions in results for d in decisions if d.transition.storm_id is not None]
    assert marked == ["c2", "c3", "c4"]
    assert [a["suppressed"] for c, decisions in results if c.id == "c2" for a in alerts_of(decisions)] == [True]


def test_partitions_share_the_limit_of_the_storm_guard(tmp_path: Path) -> None:
    rules = parse_rules(RULES + "\nsuppress: {max_open_per_tenant_per_minute: 2}\n")
    path = write(tmp_path / "c.jsonl", [chat(f"c{i}", "nn", started_at="2026-01-01T10:00:00Z") for i in range(40)])
    results = run(read_conversations(path), rules, by_labels(), partitions=2)
    assert figures(results, rules)["storm"] == {"suppressed": 38, "storms": 2, "applies_to": 40}


def test_a_figure_above_its_limit_fails_the_command(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", LABELLED)
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    command = ["backtest", str(path), "--labels", "--rules", str(rules)]
    assert CliRunner().invoke(app, [*command, "--fail-over", "false_alarm_rate=.6"]).exit_code == 0
    over = CliRunner().invoke(
        app, [*command, "--fail-over", "false_alarm_rate=.4", "--fail-over", "alerts_per_1000=1000"]
    )
    assert over.exit_code == 1
    assert "false_alarm_rate is 0.5, over 0.4" in over.output
    assert "alerts_per_1000" not in over.output.split("beyond")[-1]
    assert CliRunner().invoke(app, [*command, "--fail-over", "recall=.4"]).exit_code == 2


def test_a_range_is_for_topics_only(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", LABELLED)
    done = CliRunner().invoke(app, ["backtest", str(path), "--labels", "--from", "17"])
    assert isinstance(done.exception, ConfigurationError)


WAITING = """
version: 1
defaults: {cooldown: 0, state: {half_life: null, ttl: 2h}, close: {for_messages: 1}}
rules:
  - {id: low, when: {rolling_score: {open: -0.5, close: -0.1}}}
  - id: unanswered
    when: {all: [{rolling_score: {open: -0.2}}, {agent_response_gap: 10m}]}
    severity: error
"""
# Minutes, who, and what is said: silence that is long enough, silence that is not, an answer, and a long silence at the end.
LINES = [(0, "customer", "n"), (3, "customer", "n"), (20, "agent", "a"), (21, "customer", "n"), (25, "agent", "a")]
LINES += [(26, "customer", "+"), (27, "customer", "+"), (30, "customer", "n"), (31, "customer", "n")]
START_MS = 1_767_000_000_000


def worker_decisions(
    rules: Any, ticks: list[int], silence_ms: int
) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """What the worker's folder tells of LINES when it also ticks at these times, and when it does not tick before the end."""
    words = {"n": -0.9, "+": 0.9}
    told: list[list[tuple[Any, ...]]] = []
    for moments in (ticks, []):
        folder = RecordFolder(Settings(), rules, StubScorer().info, SimpleNamespace(scored_chat=lambda *a: None))
        epoch = Epoch(TopicPartition("chat.messages", 0), "chat", "token", 0)
        epoch.states["k"] = (None, 0.0)
        tally = SimpleNamespace(count=lambda *a: None, observe=lambda *a: None)
        batch, waiting = Batch(epoch, [], tally), sorted(moments)
        for offset, (minute, role, text) in enumerate(LINES):
            at = START_MS + minute * 60_000
            while waiting and epoch.states["k"][0] is not None and waiting[0] < at:
                folder.tick(batch, "k", epoch.states["k"][0], waiting.pop(0), "token", Moment.at(0))
            event = {
                "tenant_id": "t",
                "conversation_id": "c",
                "message_id": f"m{offset}",
                "created_at": "2025-12-29T09:20:00+00:00",
                "channel": "web_chat",
                "sender": {"role": role},
                "text": text,
                "type": "chat.message.created",
            }
            decoded = decode("chat", orjson.dumps(event), {}, 1 << 20)._replace(at_ms=at)
            record = Record(epoch, offset, at, 0, b"k", b"", None, decoded)
            record.text, record.conversation = (text, "k") if role == "customer" else (None, "k")
            if role == "customer":
                label = "negative" if words[text] < 0 else "positive"
                record.score = gold_score({"polarity": label, "emotion": "neutral"})
            folder.fold(batch, record, Moment.at(0))
        folder.tick(
            batch, "k", epoch.states["k"][0], START_MS + LINES[-1][0] * 60_000 + silence_ms, "end", Moment.at(0)
        )
        fields = ("action", "escalation_id", "revision", "severity", "reason", "resolution", "opened_at", "score")
        told.append([tuple(orjson.loads(entry.value)[name] for name in fields) for entry, _ in batch.outputs.values()])
    return told[0], told[1]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 40 * 60).map(lambda s: START_MS + s * 1000), max_size=12))
def test_decisions_with_timers_are_the_same_however_often_the_worker_ticked(ticks: list[int]) -> None:
    ticked, untouched = worker_decisions(parse_rules(WAITING), ticks, silence_ms=3 * 3_600_000)
    assert ticked == untouched
    assert [told[0] for told in untouched].count("opened") >= 2


def test_decisions_of_a_silence_at_the_end_are_the_workers(tmp_path: Path) -> None:
    rules = parse_rules(WAITING)
    words = {"n": "negative", "+": "positive"}
    messages = [
        {"role": role, "text": "x", "offset_s": minute * 60, "message_id": f"m{place}"}
        | ({"polarity": words[text], "emotion": "neutral"} if role == "customer" else {})
        for place, (minute, role, text) in enumerate(LINES)
    ]
    row = {"id": "c", "tenant_id": "t", "started_at": "2025-12-29T09:20:00+00:00", "messages": messages}
    start = round(datetime.fromisoformat(row["started_at"]).timestamp() * 1000)
    assert start == START_MS
    for silence_s, last in ((0, None), (300, None), (700, "unanswered"), (3 * 3600, "expired")):
        (conversation,) = read_conversations(write(tmp_path / "c.jsonl", [{**row, "silence_s": silence_s}]))
        decisions = decide(conversation, rules, by_labels())
        worker, _ = worker_decisions(rules, [], silence_s * 1000)
        assert [(d.transition.action, d.transition.escalation_id, d.transition.reason) for d in decisions] == [
            (told[0], told[1], told[4]) for told in worker
        ]
        ends = decisions[-1].transition
        assert last in (None, ends.trigger.kind, ends.resolution)
        assert decisions[-1].message_index == len(LINES) - 1 or last is None
