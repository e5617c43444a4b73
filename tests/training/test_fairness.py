"""The fairness measurement: a bias that is there is found, one that is not is not, and harmless changes are what they say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from stream_sentiment.cli.main import app
from stream_sentiment.scoring.calibration import Score
from stream_sentiment.scoring.heads import EMOTIONS
from stream_sentiment.scoring.text import prepare
from stream_sentiment.training import fairness, perturb
from stream_sentiment.training.data import Row
from stream_sentiment.training.fairness_report import markdown, shifted

Scores = Callable[[Sequence[str]], list[Score]]


def scoring(value: Callable[[str], float]) -> Scores:
    """A model whose score is a function of the text."""

    def score(texts: Sequence[str]) -> list[Score]:
        out = []
        for text in texts:
            v = max(-0.9, min(0.9, value(text)))
            label = "negative" if v < -0.2 else "positive" if v > 0.2 else "neutral"
            out.append(Score((0.3 - v / 3, 0.4, 0.3 + v / 3), (0.0,) * 6, v, 0.5, label, EMOTIONS[0], False))
        return out

    return score


def length_of(text: str) -> float:
    """Something that has nothing to do with groups."""
    return 0.1 * (len(text.split("?")) - 1)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_model_without_a_bias_has_no_shift_and_no_flips() -> None:
    for name, entry in fairness.templates(scoring(length_of), rng()).items():
        assert entry["flips"] == 0, name
        assert entry["spread"] == 0, name
        assert all(shift == {"mean": 0, "low": 0, "high": 0} for shift in entry["groups"].values())


def test_a_bias_against_one_group_is_found_with_its_size_and_named() -> None:
    biased = scoring(
        lambda text: -0.4 if any(word in text for word in ("Lagos", "Nairobi", "Ghana", "Cairo", "Zimb")) else 0.0
    )
    report = {
        "templates": fairness.templates(biased, rng()),
        "dialect": {},
        "swaps": {},
        "robustness": {},
        "slices": {},
    }
    groups = report["templates"]["en region"]["groups"]
    assert groups["africa"]["mean"] == pytest.approx(-0.4 * 7 / 8, abs=1e-3)
    assert groups["africa"]["high"] < 0
    assert groups["europe"]["mean"] == pytest.approx(0.4 / 8, abs=1e-3)
    assert report["templates"]["en region"]["flips"] == pytest.approx(1 / 8, abs=1e-3)
    assert any("en region, africa" in line for line in shifted(report))
    assert not any("name" in line.split(",")[0] for line in shifted(report))
    assert any("africa -0.350" in line for line in markdown(report))


def test_dialect_is_measured_against_the_standard_sentence() -> None:
    found = fairness.dialect(scoring(lambda text: -0.5 if "ain't" in text or "咋" in text else 0.0), rng())
    assert found["en"]["flips"] == pytest.approx(1 / 24, abs=1e-3)
    assert found["zh"]["shift"]["mean"] == pytest.approx(-0.5 / 24, abs=1e-3)


def test_swaps_go_both_ways_keep_capitals_and_leave_parts_of_words_alone() -> None:
    swap = fairness._swaps()
    assert (
        swap["en gender"]("He told my wife that the other man left") == "She told my husband that the other woman left"
    )
    assert swap["zh gender"]("我老公和他妈妈") == "我老婆和她爸爸"
    assert swap["en dialect"]("Going to see, very late") == "Gonna see, proper late"
    assert swap["zh dialect"]("这是什么") == "这是啥"
    assert swap["en region"]("from London to Lagos") == "from Lagos to London"


def test_rows_show_what_a_change_does_to_their_figures() -> None:
    rows = [Row("she is late" if at % 2 else "he is late", "negative") for at in range(40)]
    texts = [row.text for row in rows]
    model = scoring(lambda text: -0.9 if "he is" in text and "she" not in text else 0.0)
    changed = [fairness._swaps()["en gender"](text) for text in texts]
    effect = fairness._changed(model, rows, texts, model(texts), changed, rng())
    assert effect is not None
    assert effect["flips"] == 1
    assert effect["macro_f1_before"] == effect["macro_f1_after"] == pytest.approx(2 / 3, abs=1e-3)
    assert fairness._changed(model, rows, texts, model(texts), texts, rng()) is None


def test_slices_tell_missed_complaints_from_false_ones() -> None:
    rows = [Row("WHY IS IT SO LATE", "negative", "anger", lang="en", source="channel sms")] * 20 + [
        Row("when is it due?", "neutral", lang="en")
    ] * 20
    scores = scoring(lambda text: -0.9 if text.endswith("?") else 0.0)([row.text for row in rows])
    found = fairness.slices(rows, [row.text for row in rows], [6] * 40, scores)
    assert found["en in capitals"]["negative_missed"] == 1.0
    assert found["en in capitals"]["neutral_called_negative"] is None
    assert found["en to 8 tokens"]["neutral_called_negative"] == 1.0
    assert found["en to 8 tokens"]["rows"] == 40
    assert "emotion_macro_f1" in found["en in capitals"]
    assert found["channel sms"] == found["en in capitals"]


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("WHERE IS MY PARCEL", "in capitals"),
        ("ok 😀", "with emoji"),
        ("late!!", "with !! or ??"),
        ("您好，请问", "with a greeting"),
        ("no stop here", "without punctuation"),
        ("我的貨物", "in traditional characters"),
    ],
)
def test_ways_of_writing_are_told_apart(text: str, style: str) -> None:
    assert style in fairness.styles(text)
    assert style not in fairness.styles("An ordinary sentence, in lower case.")


@given(st.text(max_size=60), st.sampled_from(sorted(perturb.PERTURBATIONS)), st.integers(0, 99))
def test_a_change_is_repeatable_and_never_fails(text: str, name: str, seed: int) -> None:
    change = perturb.PERTURBATIONS[name]
    assert change(text, np.random.default_rng(seed)) == change(text, np.random.default_rng(seed))


@given(st.text(alphabet="abc ABC,.!?123你好谢订单", max_size=40))
def test_what_preparation_makes_equal_is_equal(text: str) -> None:
    # Four of one letter are squeezed to three, and "BBBb" becomes four of one letter only in capitals.
    assume(re.search(r"(?i)([a-z])\1{3}", text) is None)
    same = prepare(text).text.lower()
    assert prepare(perturb.upper_case(text, rng())).text.lower() == same
    assert prepare(perturb.traditional(text, rng())).text.lower() == same
    assert prepare(perturb.full_width(text, rng())).text.lower() == same


def test_the_changes_change_what_they_say() -> None:
    assert perturb.typos("你在哪", rng()) in ("你再哪", "你在那")
    assert sorted(perturb.typos("parcel", rng())) == sorted("parcel") != list("parcel")
    assert perturb.traditional("订单", rng()) == "訂單"
    assert perturb.no_punctuation("late, again!!", rng()) == "late again"
    assert perturb.repeats("bad", rng()) == "badddd"
    assert perturb.full_width("ok", rng()) == "ｏｋ"
    assert "订单" in perturb.order_number("你好", rng())
    assert "Order" in perturb.order_number("hello", rng())


def test_the_command_writes_the_report_and_the_card_shows_it(tiny_bundle: Path, tmp_path: Path, rows_of) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    shutil.copytree(tiny_bundle, bundle)
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(
            json.dumps({"text": r.text, "polarity": r.polarity, "emotion": r.emotion, "lang": "en"}) + "\n"
            for r in rows_of(60, 5)
        ),
        "utf-8",
    )
    command = ["model", "fairness", str(bundle), "--data", str(data), "--out", str(out), "--record"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["fairness.json", "fairness.md", "fairness.png"]
    report = json.loads((out / "fairness.json").read_text("utf-8"))
    assert report["robustness"]["capitals"]["flips"] == 0
    card = CliRunner().invoke(app, ["model", "card", str(bundle)], catch_exceptions=False).stdout
    assert "## Fairness and robustness" in card
    assert f"| typos | {report['robustness']['typos']['texts']} |" in card
    assert "comparing customers" in card
