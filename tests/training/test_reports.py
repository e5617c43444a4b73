"""Reports of `model evaluate`: figures that fit each other, files that are there, and what the manifest keeps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from stream_sentiment.cli.main import app
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.training import evaluate, metrics
from stream_sentiment.training.data import Row
from stream_sentiment.training.report import stem_of


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 20))
def test_the_bins_hold_every_row_and_give_the_calibration_error(rows: list[tuple[float, bool]], bins: int) -> None:
    p = np.array([[max(c, 1 - c), min(c, 1 - c)] for c, _ in rows])
    gold = np.array([0 if hit else 1 for _, hit in rows])
    points = metrics.reliability(p, gold, bins)
    assert sum(point["rows"] for point in points) == len(rows)
    by_hand = sum(point["rows"] / len(rows) * abs(point["confidence"] - point["accuracy"]) for point in points)
    assert metrics.ece(p, gold, bins) == pytest.approx(by_hand)


def test_calibration_error_of_a_known_case() -> None:
    p = np.array([[0.95, 0.05], [0.95, 0.05], [0.55, 0.45], [0.55, 0.45]])
    assert metrics.ece(p, np.array([0, 1, 0, 0])) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)


def test_the_lexicon_is_heard_beside_the_head(tiny_bundle: Path) -> None:
    """The tiny task never had a danger in it; words of danger are believed whatever the head says."""
    rows = [
        Row("the battery is smoking", "negative", "anxiety", 3.0, ("safety_risk",), lang="en"),
        Row("where is my order", "neutral", "neutral", 0.0, (), lang="en"),
    ]
    result = evaluate.report(OnnxScorer.load(tiny_bundle, device="cpu"), rows)
    assert result["signals"]["classes"]["safety_risk"]["recall"] == 0.0
    assert result["signals_with_lexicon"]["classes"]["safety_risk"] == {"precision": 1.0, "recall": 1.0, "support": 1}
    assert result["signals_with_lexicon"]["recall"] == 1.0


def test_a_report_a_set_and_an_index(tiny_bundle: Path, tmp_path: Path, rows_of) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "reports"
    shutil.copytree(tiny_bundle, bundle)
    files = []
    for name, seed in (("a.dev.jsonl", 5), ("b.jsonl", 6)):
        path = tmp_path / name
        rows = [
            {"text": r.text, "polarity": r.polarity, "emotion": r.emotion, "signals": list(r.signals)}
            for r in rows_of(60, seed)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        files += ["--data", str(path)]
    command = ["model", "evaluate", str(bundle), *files, "--out", str(out), "--record"]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert sorted(p.name for p in out.iterdir()) == [
        *("a.dev.json", "a.dev.md", "a.dev.png", "b.json", "b.md", "b.png", "index.md"),
    ]
    figures = json.loads((out / "a.dev.json").read_text("utf-8"))["polarity"]
    assert sum(map(sum, figures["confusion"])) == figures["rows"] == 60
    assert f"macro-F1 {100 * figures['macro_f1']:.1f} %" in (out / "a.dev.md").read_text("utf-8")
    assert "[a.dev](a.dev.md)" in (out / "index.md").read_text("utf-8")
    kept = json.loads((bundle / "manifest.json").read_text("utf-8"))["metrics"]["sets"]["a.dev.jsonl"]["polarity"]
    assert "reliability" not in kept
    assert kept["macro_f1"] == round(figures["macro_f1"], 4)


@pytest.mark.parametrize(("name", "stem"), [("a.jsonl.gz", "a"), ("b.dev.jsonl", "b.dev"), ("c", "c")])
def test_pages_are_named_after_their_sets(name: str, stem: str) -> None:
    assert stem_of(name) == stem
