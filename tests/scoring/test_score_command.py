"""`stream-sentiment score` and the blocks of a scored event."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from stream_sentiment.cli.main import app
from stream_sentiment.scoring.blocks import emotion_block, sentiment_block
from stream_sentiment.scoring.scorer import OnnxScorer

runner = CliRunner()


def test_the_blocks_are_those_of_the_contract(scorer: OnnxScorer) -> None:
    score = scorer.score(["太差了，退款！"])[0]
    sentiment = sentiment_block(score, scorer.info)
    assert list(sentiment) == ["label", "score", "probabilities", "confidence", "level"]
    assert list(sentiment["probabilities"]) == ["negative", "neutral", "positive"]
    emotion = emotion_block(score, scorer.info)
    assert list(emotion["probabilities"]) == ["anger", "disappointment", "anxiety", "joy", "surprise", "neutral"]


def test_texts_on_the_command_line_are_scored_in_their_order() -> None:
    done = runner.invoke(app, ["score", "thank you so much, this is wonderful", "太差了，我要投诉你们"])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["sentiment"]["label"] for r in rows] == ["positive", "negative"]
    assert [r["id"] for r in rows] == [1, 2]


def test_rows_of_a_file_keep_their_ids_and_their_order(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(
        "".join(json.dumps({"id": f"m{i}", "text": "great " * (i % 7 + 1), "extra": 1}) + "\n" for i in range(600)),
        "utf-8",
    )
    target = tmp_path / "out.jsonl"
    done = runner.invoke(app, ["score", "--input", str(source), "--output", str(target)])
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in target.read_text("utf-8").splitlines()]
    assert [r["id"] for r in rows] == [f"m{i}" for i in range(600)]
    assert {r["sentiment"]["label"] for r in rows} == {"positive"}


def test_bad_rows_are_named_and_the_others_still_scored(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b'{"id": 1, "text": "nice"}\n{"id": 2}\n{broken\n\n\xff\xfe\n{"id": 6, "text": 7}\nplain words\n{"id": 8, "text": "  "}\n'
    )
    done = runner.invoke(app, ["score", "--input", str(source)])
    assert done.exit_code == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r.get("id") for r in rows] == [1, None, 8]
    assert rows[2] == {"id": 8, "skipped_reason": "empty_text"}
    for number in (2, 3, 5, 6):
        assert f"row {number}:" in done.stderr
    assert "row 4:" not in done.stderr
    assert "4 row(s) could not be scored" in done.stderr


def test_a_language_that_the_model_does_not_know_is_skipped() -> None:
    done = runner.invoke(app, ["score"], input='{"id": "r", "text": "всё плохо"}\n')
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"id": "r", "skipped_reason": "language_unsupported"}


def test_the_name_of_a_file_is_a_text_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "hello"}\n')
    named = runner.invoke(app, ["score", str(path)])
    assert (named.exit_code, len(named.stdout.splitlines())) == (0, 1)
    assert f"--input {path}" in named.stderr
    assert runner.invoke(app, ["score", "没有文件." + "好" * 5000]).stderr == ""


def test_a_missing_file_is_a_clear_error(tmp_path: Path) -> None:
    done = runner.invoke(app, ["score", "--input", str(tmp_path / "none.jsonl")])
    assert done.exit_code != 0
    assert "none.jsonl cannot be read" in str(done.exception) + done.output


def test_verify_says_which_file_is_wrong_and_ends_with_one(copied: Path) -> None:
    assert runner.invoke(app, ["model", "verify", str(copied)]).exit_code == 0
    content = bytearray((copied / "model.int8.onnx").read_bytes())
    content[1000] ^= 1
    (copied / "model.int8.onnx").write_bytes(content)
    done = runner.invoke(app, ["model", "verify", str(copied), "--json"])
    assert done.exit_code == 1
    result = json.loads(done.stdout)
    assert result["sound"] is False
    assert "model.int8.onnx" in result["problem"]
