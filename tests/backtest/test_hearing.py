"""How well signals are heard, counted on rows that are few enough to count by hand."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from stream_sentiment.backtest.hearing import Row, measure_signals, read_rows
from stream_sentiment.cli.rules import app
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.escalation.rules import load_rules
from stream_sentiment.scoring.calibration import Score
from stream_sentiment.scoring.scorer import StubScorer

ROWS = [
    {"text": "I want a refund", "signals": ["refund_request"], "polarity": "negative"},
    {"text": "a refund would be nice", "signals": [], "polarity": "neutral"},
    {"text": "give it to me then", "signals": ["refund_request"], "polarity": "negative"},
    {"text": "thank you so much", "signals": ["thanks"], "satisfaction": "satisfied"},
    {"text": "refund it", "role": "agent", "signals": []},
    {"text": "the battery is smoking", "signals": ["safety_risk"]},
]


def unheard(rows: list[Row]) -> dict[str, Score]:
    """Scores of a model without a signals head, which doubts no word."""
    return {row.text: replace(StubScorer().score([row.text])[0], signals=()) for row in rows}


def write(path: Path) -> Path:
    path.write_bytes(b"\n".join(orjson.dumps(row) for row in ROWS) + b"\n\n")
    return path


def test_each_source_is_counted_against_labels_and_moods(tmp_path: Path) -> None:
    rows = list(read_rows(write(tmp_path / "rows.jsonl")))
    figures = measure_signals(rows, load_rules(None).finder(), unheard(rows))
    assert (figures["messages"], figures["labelled"], figures["rated"], figures["dissatisfied"]) == (5, 5, 4, 0.5)
    refund = figures["signals"]["refund_request"]
    assert refund["lexicon"] == {
        "heard": 2,
        "precision": 0.5,
        "recall": 0.5,
        "rated": 2,
        "dissatisfied": 0.5,
        "dissatisfied_interval": [0.0945, 0.9055],
    }
    assert refund["both"] == refund["lexicon"]
    assert refund["model"]["heard"] == 0
    assert (refund["model"]["precision"], refund["model"]["recall"]) == (None, 0.0)
    assert figures["all"]["both"]["heard"] == 5
    assert figures["all"]["both"]["recall"] == 0.75


def test_rows_without_labels_have_moods_only(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(orjson.dumps({"text": "a refund", "role": "user", "satisfaction": "dissatisfied"})))
    rows = list(read_rows(path))
    figures = measure_signals(rows, load_rules(None).finder(), unheard(rows))
    assert figures["labelled"] == 0
    assert figures["signals"]["refund_request"]["lexicon"]["precision"] is None
    assert figures["signals"]["refund_request"]["lexicon"]["dissatisfied"] == 1.0


@pytest.mark.parametrize("line", ["{", "[1]", '{"words": "x"}', '{"text": 3}'])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "x"}\n' + line)
    with pytest.raises(ConfigurationError, match="line 2"):
        list(read_rows(path))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        list(read_rows(tmp_path / "none.jsonl"))


def test_the_command_prints_a_table_and_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_SENTIMENT_MODEL__STUB", "true")
    arguments = ["signals", str(write(tmp_path / "rows.jsonl")), "--cache", str(tmp_path / "cache")]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "5 messages, 5 labelled, 4 rated" in shown.output
    assert "safety_risk        lexicon       1   1.00   1.00" in shown.output
    assert orjson.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)["all"]["lexicon"]["heard"] == 1
