"""The reference distribution of a bundle: measured, written, read again, and how far other predictions are from it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from stream_sentiment.cli.main import app
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.bundle import load_bundle
from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES
from stream_sentiment.scoring.reference import (
    FLOOR,
    MINIMUM,
    Prediction,
    as_document,
    distances,
    measure,
    parse,
    psi,
    write_reference,
)
from stream_sentiment.scoring.scorer import StubScorer

LABELS = {"polarity": POLARITIES, "emotion": EMOTIONS}

shares = st.lists(st.floats(0, 1), min_size=2, max_size=12).filter(lambda xs: sum(xs) > 0.01)


def normal(values: list[float]) -> list[float]:
    return [value / sum(values) for value in values]


def rows(language: str, mix: dict[str, int], confidence: float = 0.9) -> list[Prediction]:
    """So many predictions of each polarity; their confidences spread by thousandths below `confidence`."""
    found = []
    for label, count in mix.items():
        for number in range(count):
            found.append(Prediction(language, (label, "neutral"), (confidence - number % 100 / 1000, 0.8)))
    return found


def test_the_index_of_a_known_pair_is_the_sum_by_hand():
    # (0.5 - 0.2) ln(0.5 / 0.2) + (0.5 - 0.8) ln(0.5 / 0.8) = 0.27489 + 0.14100
    assert psi([0.2, 0.8], [0.5, 0.5]) == pytest.approx(0.41589, abs=1e-5)


@given(shares)
def test_the_index_of_a_distribution_with_itself_is_zero(values: list[float]):
    assert psi(normal(values), normal(values)) == 0


@given(st.integers(2, 12).flatmap(lambda n: st.tuples(*[st.lists(st.floats(0.01, 1), min_size=n, max_size=n)] * 2)))
def test_the_index_is_symmetric_and_never_negative(pair: tuple[list[float], list[float]]):
    one, other = normal(pair[0]), normal(pair[1])
    assert psi(one, other) == pytest.approx(psi(other, one))
    assert psi(one, other) >= 0


def test_a_label_that_did_not_occur_gives_a_large_index_and_no_infinite_one():
    assert psi([0.0, 1.0], [0.5, 0.5]) == pytest.approx(
        (0.5 - FLOOR) * math.log(0.5 / FLOOR) + -0.5 * math.log(0.5), abs=1e-6
    )


def test_the_same_mix_has_distance_zero_and_another_mood_shows_in_the_labels_only():
    reference = measure(rows("zh", {"negative": 100, "neutral": 800, "positive": 100}), LABELS)["zh"]
    same = distances(reference, rows("zh", {"negative": 100, "neutral": 800, "positive": 100}))
    assert set(same) == {(head, what) for head in ("polarity", "emotion") for what in ("labels", "confidence")}
    assert max(same.values()) == pytest.approx(0, abs=1e-9)
    angry = distances(reference, rows("zh", {"negative": 500, "neutral": 400, "positive": 100}))
    assert angry["polarity", "labels"] > 0.2
    assert angry["polarity", "confidence"] == pytest.approx(0, abs=1e-9)
    assert angry["emotion", "labels"] == 0


def test_a_model_that_is_less_sure_shows_in_the_confidence_only():
    mix = {"negative": 100, "neutral": 800, "positive": 100}
    reference = measure(rows("zh", mix), LABELS)["zh"]
    unsure = distances(reference, rows("zh", mix, confidence=0.5))
    assert unsure["polarity", "labels"] == pytest.approx(0, abs=1e-9)
    assert unsure["polarity", "confidence"] > 0.2


def test_a_label_that_the_reference_does_not_know_counts():
    reference = measure(rows("en", {"negative": 500, "neutral": 500}), {**LABELS, "polarity": ("negative", "neutral")})
    found = distances(reference["en"], rows("en", {"negative": 250, "neutral": 250, "positive": 500}))
    assert found["polarity", "labels"] > 1


def test_bins_of_confidence_hold_a_tenth_each_and_equal_values_share_one():
    reference = measure(rows("en", {"neutral": 1000}), LABELS)["en"]
    assert len(reference.heads["polarity"].bounds) == 9
    assert reference.heads["polarity"].confidence == pytest.approx([0.1] * 10, abs=0.011)
    assert reference.heads["emotion"].bounds == ()  # always 0.8
    assert reference.heads["emotion"].confidence == (1.0,)


def test_a_language_with_few_messages_is_left_out():
    few = rows("en", {"neutral": MINIMUM - 1})
    assert measure(few, LABELS) == {}
    assert set(measure(few + rows("zh", {"neutral": MINIMUM}), LABELS)) == {"zh"}


def test_a_regional_subtag_counts_as_its_language():
    score = StubScorer().score(["a"])[0]
    assert Prediction.of(score, "zh-Hans-CN").language == "zh"
    assert Prediction.of(score, "en_GB").language == "en"


def test_what_is_written_is_read_again():
    reference = measure(rows("zh", {"negative": 150, "neutral": 150}), LABELS)
    document = json.loads(json.dumps(as_document(reference, {"a.jsonl": 300})))
    assert document["sources"] == [{"file": "a.jsonl", "rows": 300}]
    assert parse(document) == reference
    assert parse(None) is None


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("labels", "negative"), 0.9),
        (("labels", "negative"), -0.5),
        (("labels", "negative"), float("nan")),
        (("bounds",), [0.9, 0.1]),
        (("confidence",), [1.0, 0.0, 0.0]),
    ],
)
def test_a_damaged_reference_is_refused_when_the_bundle_is_loaded(copied: Path, where: tuple[str, ...], value: object):
    document = as_document(measure(rows("zh", {"negative": 150, "neutral": 150}), LABELS), {})
    write_reference(copied / "manifest.json", document)
    loaded = load_bundle(copied).info.reference
    assert loaded is not None
    assert loaded["zh"].messages == 300
    entry = document["languages"]["zh"]["heads"]["polarity"]
    for name in where[:-1]:
        entry = entry[name]
    entry[where[-1]] = value
    write_reference(copied / "manifest.json", document)
    with pytest.raises(ConfigurationError, match="damaged"):
        load_bundle(copied)


def test_a_bundle_without_a_reference_loads_as_before(copied: Path):
    manifest = json.loads((copied / "manifest.json").read_bytes())
    manifest.pop("reference", None)
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert load_bundle(copied).info.reference is None


def test_the_command_measures_says_what_it_left_out_and_writes_only_when_told(copied: Path, tmp_path: Path):
    manifest = json.loads((copied / "manifest.json").read_bytes())
    manifest.pop("reference", None)
    (copied / "manifest.json").write_text(json.dumps(manifest))
    data = tmp_path / "week.jsonl"
    lines = [
        {"text": f"订单{n}烂透了，气死我了，我要投诉你们" if n % 2 else f"订单{n}很好，非常满意，谢谢"}
        for n in range(MINIMUM)
    ]
    lines += [{"text": "Where is my order?", "language": "en-GB"}]
    data.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    run = CliRunner()
    shown = run.invoke(app, ["model", "reference", str(copied), "--data", str(data), "--json"])
    assert shown.exit_code == 0, shown.output
    assert "en: 1 messages, left out" in shown.output
    document = json.loads(shown.stdout)
    mix = document["languages"]["zh"]["heads"]["polarity"]["labels"]
    assert mix["negative"] == pytest.approx(0.5, abs=0.05)
    assert mix["positive"] == pytest.approx(0.5, abs=0.05)
    assert load_bundle(copied).info.reference is None
    written = run.invoke(app, ["model", "reference", str(copied), "--data", str(data), "--write"])
    assert written.exit_code == 0, written.output
    assert load_bundle(copied).info.reference == parse(document)
    data.write_text(json.dumps(lines[-1]) + "\n")
    refused = run.invoke(app, ["model", "reference", str(copied), "--data", str(data)])
    assert isinstance(refused.exception, ConfigurationError)
