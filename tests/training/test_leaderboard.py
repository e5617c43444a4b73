"""Baselines, leaderboard and folds: known answers, missing files, and conversations that stay whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from stream_sentiment.cli.main import app
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.training import crossval as folds_of
from stream_sentiment.training.baselines import LexiconClassifier, NgramClassifier, ngrams
from stream_sentiment.training.data import Row
from stream_sentiment.training.leaderboard import definition, leaderboard, markdown


@pytest.mark.parametrize(
    ("text", "polarity", "emotion"),
    [
        ("I am angry", "negative", "anger"),
        ("this is great, I love it", "positive", "joy"),
        ("I am not happy", "negative", "disappointment"),
        ("the lid isn't good", "negative", "disappointment"),
        ("no complaint, it is not broken", "neutral", "neutral"),
        ("where is my order", "neutral", "neutral"),
        ("我很生气", "negative", "anger"),
        ("质量很好，非常喜欢", "positive", "joy"),
        ("我不太满意", "negative", "disappointment"),
        ("订单在哪里", "neutral", "neutral"),
        ("担心赶不上", "negative", "anxiety"),
    ],
)
def test_the_lexicon_reads_plain_sentences(text: str, polarity: str, emotion: str) -> None:
    for head, labels, wanted in (("polarity", POLARITIES, polarity), ("emotion", EMOTIONS, emotion)):
        (row,) = LexiconClassifier(head, labels).logits([text])
        assert labels[int(row.argmax())] == wanted


def test_ngrams_are_characters_in_chinese_and_words_elsewhere() -> None:
    assert ngrams("退款") == ["退", "款", "退款"]
    assert ngrams("Not good!") == ["not", "good", "!", "not good", "good !"]


def test_the_linear_model_learns_what_words_say_and_weighs_rare_classes() -> None:
    texts = ["the parcel is late"] * 4 + ["where is the parcel"] * 60 + ["the parcel is lovely"] * 4
    gold = np.array([0] * 4 + [1] * 60 + [2] * 4)
    model = NgramClassifier(POLARITIES).fit(texts, gold)
    assert model.logits(["so late", "where", "lovely"]).argmax(axis=1).tolist() == [0, 1, 2]
    shuffled = NgramClassifier(POLARITIES).fit(texts, np.random.default_rng(0).permutation(gold))
    assert (shuffled.logits(texts).argmax(axis=1) == gold).mean() < (model.logits(texts).argmax(axis=1) == gold).mean()


def test_dense_features_tell_what_the_words_do_not() -> None:
    gold = np.arange(60) % 3
    dense = np.eye(3, dtype=np.float32)[gold] * 5 + 7
    texts = ["the same words"] * 60
    model = NgramClassifier(POLARITIES).fit(texts, gold, dense)
    assert (model.logits(texts, dense).argmax(axis=1) == gold).all()
    assert (NgramClassifier(POLARITIES).fit(texts, gold).logits(texts).argmax(axis=1) == gold).mean() < 0.5


def test_a_text_without_known_words_gets_the_bias() -> None:
    model = NgramClassifier(POLARITIES).fit(["good"] * 3 + ["bad"] * 3, np.array([2] * 3 + [0] * 3))
    assert model.logits(["", "unheard"]).shape == (2, 3)
    assert model.logits([]).shape == (0, 3)


@given(st.lists(st.integers(0, 12), min_size=20, max_size=80), st.integers(2, 5))
def test_no_conversation_is_on_both_sides_of_a_fold(groups: list[int], folds: int) -> None:
    names = [str(group) for group in groups]
    if len(set(names)) < folds:
        with pytest.raises(ConfigurationError, match="cannot make"):
            folds_of.split(names, folds)
        return
    found = folds_of.split(names, folds)
    assert set(found.tolist()) == set(range(folds))
    assert all(len(set(found[[at for at, n in enumerate(names) if n == name]].tolist())) == 1 for name in set(names))


def write(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def as_dict(row: Row) -> dict[str, object]:
    return {"text": row.text, "polarity": row.polarity, "emotion": row.emotion, "signals": list(row.signals or ())}


def test_the_board_measures_what_is_there_and_names_what_is_not(tiny_bundle: Path, tmp_path: Path, rows_of) -> None:
    for name, count, seed in (("dev.zh", 80, 3), ("dev.en", 80, 4), ("train.zh", 200, 5), ("train.en", 200, 6)):
        write(tmp_path / f"service/{name}.jsonl", [as_dict(row) for row in rows_of(count, seed)])
    scorer = OnnxScorer.load(tiny_bundle, device="cpu")
    board = leaderboard(scorer, tmp_path)
    assert [(e["title"], e["head"]) for e in board["sets"]] == [
        (f"service dev {language}", head) for language in ("zh", "en") for head in ("polarity", "emotion")
    ]
    for entry in board["sets"]:
        figures = entry["figures"]
        assert figures["n-grams"] > figures["majority"]
        assert figures["this model"] > figures["majority"]
    assert "test_public/sst2.test.jsonl.gz" in board["missing"]
    assert set(board["calibration"]) == {"polarity", "emotion", "signals"}
    page = "\n".join(markdown(board))
    first = board["sets"][0]
    assert f"**{first['figures']['this model']:.2f}** | 85.0 | 90.0" in page
    assert "Not measured, no such file:" in page
    changed = {**first, "figures": {**first["figures"], "n-grams": 12.3, "this model": 0.0}}
    again = leaderboard(scorer, tmp_path, earlier={"sets": [changed, {**board["sets"][1], "rows": 7}]})
    assert again["sets"][0]["figures"] == {**first["figures"], "n-grams": 12.3}
    assert again["sets"][1]["figures"] == board["sets"][1]["figures"]  # of another size: fitted anew
    plain = leaderboard(scorer, tmp_path, baselines=False)["sets"][0]["figures"]
    assert set(plain) == {"this model", "majority"}
    assert plain["this model"] == first["figures"]["this model"]


def test_a_bar_that_is_met_only_by_rounding_is_not_met() -> None:
    entry = {"title": "t", "head": "polarity", "measure": "macro_f1", "rows": 9, "bar": 87, "aim": 91}
    board = {"sets": [], "alarms": [], "missing": []}
    verdicts = {86.96: "missed by 0.04", 87.0: "met", 91.0: "aim met"}
    for value, verdict in verdicts.items():
        page = markdown({**board, "sets": [{**entry, "figures": {"this model": value, "majority": 20.0}}]})
        assert any(line.endswith(f"| **{value:.2f}** | 87.0 | 91.0 | {verdict} |") for line in page)


def test_every_entry_of_the_plan_is_complete() -> None:
    plan = definition()
    for entry in plan["sets"]:
        assert {"title", "file", "language", "head", "measure", "train"} <= set(entry)
        assert entry["measure"] in ("macro_f1", "accuracy")
        assert entry.get("aim", 100) >= entry.get("bar", 0)


def test_the_command_writes_board_and_page(tiny_bundle: Path, tmp_path: Path, rows_of) -> None:
    write(tmp_path / "service/dev.zh.jsonl", [as_dict(row) for row in rows_of(40, 3)])
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: leaderboard -->\n<!-- end of leaderboard -->\n", "utf-8")
    command = ["model", "leaderboard", str(tiny_bundle), "--data-root", str(tmp_path), "--no-baselines"]
    result = CliRunner().invoke(
        app, [*command, "--page", str(page), "--out", str(tmp_path / "out")], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "| service dev zh | polarity, macro-F1 | 40 |" in page.read_text("utf-8")
    assert json.loads((tmp_path / "out/leaderboard.json").read_text("utf-8"))["sets"]


@pytest.mark.parametrize("method", ["linear", "finetune"])
def test_folds_predict_every_row_out_of_its_conversation(
    tiny_bundle: Path, tmp_path: Path, rows_of, method: str
) -> None:
    rows = [{**as_dict(row), "conversation_id": at // 5} for at, row in enumerate(rows_of(120, 8))]
    path = write(tmp_path / "turns.jsonl", rows)
    command = ["model", "crossval", str(tiny_bundle), "--data", str(path), "--folds", "3", "--threads", "1", "--json"]
    command += ["--method", method]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert (told["rows"], told["groups"], told["folds"]) == (120, 24, 3)
    assert told["this model"] > 80
    assert told["before"] > 80
    with pytest.raises(ConfigurationError, match="has no 'dialogue'"):
        folds_of.read_grouped(path, "dialogue", "polarity")
