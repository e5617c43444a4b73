"""Measuring the correction rules: what is counted, what is switched on, where it is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stream_sentiment.cli.main import app
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.bundle import load_bundle
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.training import correct
from stream_sentiment.training.pages import write_block


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


# The tiny model knows "thanks" and "great" as good words, and has no idea of sarcasm.
ROWS: list[dict[str, object]] = [
    {"text": "great thanks for nothing", "polarity": "negative"},
    {"text": "thanks for wasting the great order", "polarity": "negative"},
    {"text": "thanks for losing my order, love it", "polarity": "positive"},
    {"text": "ok thanks", "polarity": "positive"},
    {"text": "my order is late", "polarity": "negative"},
    {"text": "no label"},
]


def test_rules_that_put_more_right_than_they_spoil_are_on(tiny_bundle: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    rows = correct.read_judged(path)
    assert len(rows) == 5
    report = correct.measure(OnnxScorer.load(tiny_bundle, device="cpu"), {"rows": rows})
    sarcastic = report["rules"]["thanks-sarcastic"]
    assert (sarcastic["fixed"], sarcastic["broken"], sarcastic["neither"]) == (2, 1, 0)
    assert (report["rules"]["polite-thanks"]["fixed"], report["rules"]["polite-thanks"]["broken"]) == (0, 1)
    assert report["on"] == ["thanks-sarcastic"]
    assert report["rules"]["emoji-only-positive"]["sets"] == {}
    reversed_labels = [replace(row, polarity="positive") for row in rows[:2]]
    warned = correct.measure(OnnxScorer.load(tiny_bundle, device="cpu"), {"rows": rows}, {"other": reversed_labels})
    assert warned["on"] == report["on"]
    assert warned["rules"]["thanks-sarcastic"]["elsewhere"] == {"fixed": 0, "broken": 2, "neither": 0}
    assert report["together"]["rows"]["after"] > report["together"]["rows"]["before"]


def test_conversations_give_their_labelled_messages(tmp_path: Path) -> None:
    messages = [
        {"role": "customer", "text": "a", "polarity": "negative", "emotion": "anger"},
        {"role": "agent", "text": "b"},
    ]
    path = write(tmp_path / "c.jsonl", [{"id": 1, "lang": "en", "channel": "sms", "messages": messages}])
    assert [(row.text, row.polarity, row.lang, row.source) for row in correct.read_judged(path)] == [
        ("a", "negative", "en", "channel sms")
    ]
    with pytest.raises(ConfigurationError, match="no message has a polarity"):
        correct.read_judged(write(tmp_path / "d.jsonl", [{"id": 1, "messages": messages[1:]}]))


def test_the_command_records_what_is_on_and_fills_the_page(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    assert load_bundle(bundle).info.corrections == ()
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- generated: corrections -->\nold\n<!-- end of corrections -->\nafter\n", "utf-8")
    data = write(tmp_path / "rows.jsonl", ROWS)
    command = ["model", "corrections", str(bundle), "--data", str(data), "--record", "--page", str(page)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert "| `thanks-sarcastic` | 2 | 1 | 0 | 1.00 | on | 0 | 0 |" in result.stdout
    assert load_bundle(bundle).info.corrections == ("thanks-sarcastic",)
    text = page.read_text("utf-8")
    assert text.startswith("before\n<!-- generated")
    assert text.endswith("-->\nafter\n")
    assert "| `thanks-sarcastic` | 2 |" in text
    assert "old" not in text


def test_a_page_without_the_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: other -->", "utf-8")
    with pytest.raises(ConfigurationError, match="has no block corrections"):
        write_block(page, "corrections", ["x"])
