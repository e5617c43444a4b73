"""Explanations: arithmetic of the weights, places in the original, faithfulness, and what the command shows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from stream_sentiment.cli.explain_view import coloured, render
from stream_sentiment.cli.main import app
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.corrections import Corrector, load_rules
from stream_sentiment.scoring.explain import (
    SCORE,
    Explanation,
    as_json,
    explain,
    hidden,
    output_name,
    outputs_of,
    usual_outputs,
)
from stream_sentiment.scoring.faithfulness import faithfulness
from stream_sentiment.scoring.scorer import OnnxScorer

# Synthetic, written for this test.
TEXTS = [
    "The parcel never came and nobody answers my mails",
    "My kettle leaks and I am really angry about it",
    "Wonderful service, the repair was done in a day, thank you",
    "Where can I change the delivery address of my order?",
    "The colour is lovely but the zip broke on day one",
    "I am worried that the gift will not arrive before Friday",
    "You are all liars, I want to speak to a manager",
    "Do you ship to the islands, and what does it cost?",
    "快递三天没动静了，到底还送不送",
    "客服态度特别好，问题一下就解决了，谢谢",
    "这个杯子漏水，太让人失望了",
    "请问这款有没有蓝色的，什么时候发货",
    "再不退款我就去投诉你们",
    "我担心孩子的药赶不上，能不能加急",
    "收到了，比图片上还好看，很喜欢",
    "发票抬头怎么改，订单里找不到",
]


def test_a_weight_is_what_hiding_the_word_takes_away(scorer: OnnxScorer) -> None:
    text = "The parcel never came"
    explanation = explain(scorer, text)
    ids, units = scorer.units(text)
    names, whole = outputs_of(scorer.bundle.heads, scorer.logits([ids]))
    for number, unit in enumerate(units):
        without = list(ids)
        for place in unit.places:
            without[place] = scorer.mask_id or 0
        _, values = outputs_of(scorer.bundle.heads, scorer.logits([without]))
        for column, name in enumerate(names):
            assert explanation.weights[name][number] == pytest.approx(whole[0, column] - values[0, column], abs=1e-12)


def test_values_are_the_scores_of_the_product(scorer: OnnxScorer) -> None:
    (score,) = scorer.score([TEXTS[0]])
    values = explain(scorer, TEXTS[0]).values
    assert round(values[SCORE], 3) == pytest.approx(score.score, abs=1e-3)
    assert round(values["polarity/negative"], 4) == score.polarity[0]
    assert values["intensity"] == score.intensity
    for name, probability in zip(scorer.info.labels["signals"], score.signals, strict=True):
        assert values[f"signals/{name}"] == probability


def test_every_label_of_every_head_is_an_output(scorer: OnnxScorer) -> None:
    names = set(explain(scorer, "hello").values)
    expected = {SCORE, "intensity"} | {
        f"{head}/{label}" for head, labels in scorer.info.labels.items() if len(labels) > 1 for label in labels
    }
    assert names == expected


def test_spans_count_characters_of_the_message_as_it_was_written(scorer: OnnxScorer) -> None:
    text = "我的貨物壞了！！！！！see https://shop.example/1 now\u200b 138-0013-8000"
    explanation = explain(scorer, text)
    words = [text[word.begin : word.end] for word in explanation.words]
    assert "https://shop.example/1" in words
    assert "138-0013-8000" in words
    assert "貨物" in words
    assert "！！！！！" in words
    assert "".join(words).replace("\u200b", "") == "".join(text.split()).replace("\u200b", "")


def test_the_middle_of_a_long_message_has_no_weight_and_says_so(scorer: OnnxScorer) -> None:
    text = "angry " + " ".join(f"word{number}" for number in range(200)) + " angry"
    explanation = explain(scorer, text)
    unread = [at for at, word in enumerate(explanation.words) if not word.read]
    assert unread
    assert explanation.truncated
    assert {explanation.weights[SCORE][at] for at in unread} == {0.0}
    assert len(as_json(explanation, [SCORE])["not_read"]) == len(unread)


def test_a_blank_message_has_nothing_to_explain(scorer: OnnxScorer) -> None:
    explanation = explain(scorer, " \u200b ")
    assert explanation.words == ()
    assert as_json(explanation, [SCORE])["outputs"][0]["spans"] == []


def test_without_a_mask_token_the_word_is_left_out(scorer: OnnxScorer) -> None:
    ids, units = scorer.units("never came")
    assert hidden(ids, units, None) == [[ids[0], ids[2], ids[3]], [ids[0], ids[1], ids[3]]]
    assert hidden(ids, units, 4) == [[ids[0], 4, ids[2], ids[3]], [ids[0], ids[1], 4, ids[3]]]


def test_corrections_are_told_beside_the_models_own_weights(scorer: OnnxScorer) -> None:
    text = "thanks for nothing"
    plain, corrected = explain(scorer, text), explain(scorer, text, corrector=Corrector(load_rules()))
    assert plain.weights == corrected.weights
    if plain.score.label != "negative":
        assert (corrected.score.label, corrected.corrections[0].rule_id) == ("negative", "thanks-sarcastic")
        assert "thanks-sarcastic" in shown(corrected)


@pytest.mark.parametrize(
    ("head", "label", "message"),
    [
        ("mood", None, "no head 'mood'; heads: score, polarity"),
        ("emotion", "glee", "no label 'glee'; labels: anger"),
        ("emotion", None, "needs --label, one of anger"),
        (None, "anger", "--label needs --head"),
    ],
)
def test_an_output_that_the_model_has_not_is_refused(
    scorer: OnnxScorer, head: str | None, label: str | None, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        output_name(scorer, head, label)


def test_heads_with_one_output_need_no_label(scorer: OnnxScorer) -> None:
    assert output_name(scorer, "intensity", None) == "intensity"
    assert output_name(scorer, "score", None) == SCORE
    assert output_name(scorer, "emotion", "anger") == "emotion/anger"


def shown(explanation: Explanation) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(explanation, usual_outputs(explanation)))
    return console.export_text()


def test_the_terminal_shows_the_whole_message_and_the_heaviest_words_first(scorer: OnnxScorer) -> None:
    explanation = explain(scorer, TEXTS[1])
    assert coloured(explanation, SCORE).plain == TEXTS[1]
    assert coloured(explanation, SCORE).spans
    (word, weight), (_, second) = explanation.top(SCORE, 2)
    assert abs(weight) >= abs(second)
    assert f"{weight:+.3f}" in shown(explanation)
    assert word in shown(explanation)


def test_named_words_matter_more_than_random_ones_and_a_blind_choice_does_not(scorer: OnnxScorer) -> None:
    figures = faithfulness(scorer, TEXTS)["heads"]
    blind = np.random.default_rng(1)
    control = faithfulness(scorer, TEXTS, choose=lambda e, _: int(blind.integers(len(e.words))))["heads"]
    for head in ("polarity", "emotion"):
        assert figures[head]["messages"] == len(TEXTS)
        assert figures[head]["low"] > 0
        assert control[head]["low"] <= 0
        assert figures[head]["difference"] > control[head]["difference"]


def test_the_command_gives_spans_as_json() -> None:
    text = "你们真是太让人失望了"
    arguments = ["explain", text, "--head", "emotion", "--label", "disappointment", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    (output,) = json.loads(result.stdout)["outputs"]
    assert output["output"] == "emotion/disappointment"
    heaviest = max(output["spans"], key=lambda span: span["weight"])
    assert "失望" in text[heaviest["begin"] : heaviest["end"]]


def test_the_command_draws_a_picture_and_measures_a_file(tmp_path: Path) -> None:
    picture, data, page = tmp_path / "e.svg", tmp_path / "rows.jsonl", tmp_path / "page.md"
    assert CliRunner().invoke(app, ["explain", TEXTS[0], "--svg", str(picture)]).exit_code == 0
    assert picture.read_text("utf-8").startswith("<svg")
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), "utf-8")
    page.write_text("<!-- generated: faithfulness -->\n<!-- end of faithfulness -->\n", "utf-8")
    result = CliRunner().invoke(app, ["explain", "--faithfulness", "--data", str(data), "--page", str(page)])
    assert result.exit_code == 0
    assert "| rows.jsonl | polarity | 16 |" in page.read_text("utf-8")


@pytest.mark.parametrize(
    "arguments", [["explain"], ["explain", "x", "--message-id", "m"], ["explain", "--faithfulness"]]
)
def test_it_says_what_it_needs(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
