"""Rules after the model: what they change, what they leave alone, and that they can be switched off."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.bundle import load_bundle
from stream_sentiment.scoring.calibration import Score
from stream_sentiment.scoring.corrections import (
    EMOTIONS_OF,
    MAX_CHARACTERS,
    TENANT_PHRASE,
    Corrector,
    TenantPhrase,
    load_rules,
    read_phrases,
    rules_version,
)
from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES
from stream_sentiment.scoring.scorer import ModelInfo, StubScorer
from stream_sentiment.scoring.text import prepare
from stream_sentiment.settings import CorrectionSettings

RULES = {rule.id: rule for rule in load_rules()}


def score_of(label: str, confidence: float = 0.6, emotion: str | None = None) -> Score:
    rest = (1 - confidence) / 2
    polarity = tuple(confidence if name == label else rest for name in POLARITIES)
    feeling = emotion or {"negative": "anger", "neutral": "neutral", "positive": "joy"}[label]
    emotions = tuple(0.5 if name == feeling else 0.1 for name in EMOTIONS)
    return Score(
        (polarity[0], polarity[1], polarity[2]),
        emotions,
        polarity[2] - polarity[0],
        confidence,
        label,
        feeling,
        False,
        2.0,
    )


FIRES = [
    ("thanks-unsolved", "谢谢，但是退款还没到账", "positive", "negative"),
    ("thanks-unsolved", "Thank you for the new one, unfortunately it is broken as well", "positive", "negative"),
    ("thanks-sarcastic", "真是谢谢你全家了", "positive", "negative"),
    ("thanks-sarcastic", "Thanks for nothing", "positive", "negative"),
    ("polite-thanks", "好的，谢谢", "positive", "neutral"),
    ("polite-thanks", "ok thank you", "positive", "neutral"),
    ("thanks-solved", "终于修好了，谢谢师傅", "negative", "positive"),
    ("thanks-solved", "it finally works now, thanks", "negative", "positive"),
    ("emoji-only-positive", "👍👍🏽❤️", "neutral", "positive"),
    ("emoji-only-negative", "😡😡", "neutral", "negative"),
    ("emoji-tail-positive", "got it yesterday 😍", "negative", "positive"),
    ("emoji-tail-negative", "明天到 😤", "neutral", "negative"),
    ("negated-praise", "I am not happy with this", "positive", "negative"),
    ("negated-praise", "这个我不满意", "positive", "negative"),
    ("negated-blame", "no problem at all, take your time", "negative", "neutral"),
    ("negated-blame", "没什么大问题，慢慢来", "negative", "neutral"),
]
SILENT = [
    ("thanks-unsolved", "谢谢，不过没关系", "positive"),
    ("thanks-unsolved", "thanks but no worries, still have the old one", "positive"),
    ("thanks-sarcastic", "谢谢您帮我解决", "positive"),
    ("polite-thanks", "谢谢你们救了我的生日会", "positive"),
    ("polite-thanks", "THANK YOU!!!!", "positive"),
    ("thanks-solved", "还没修好，谢谢", "negative"),
    ("thanks-solved", "not fixed, thanks", "negative"),
    ("emoji-only-positive", "👍 但是还没到", "neutral"),
    ("emoji-only-positive", "👌", "neutral"),
    ("emoji-tail-positive", "😍 but the box was empty", "negative"),
    ("negated-praise", "不好意思打扰了", "positive"),
    ("negated-praise", "not only good but great", "positive"),
    ("negated-blame", "no problem you said, but it is still broken", "negative"),
]


@pytest.mark.parametrize(("rule_id", "text", "label", "wanted"), FIRES)
def test_a_rule_moves_the_label_and_says_so(rule_id: str, text: str, label: str, wanted: str) -> None:
    corrected, (correction,) = Corrector([RULES[rule_id]]).correct(prepare(text).text, score_of(label))
    assert (corrected.label, correction.rule_id) == (wanted, rule_id)
    assert correction.before["label"] == label
    assert correction.after == {"label": wanted, "score": corrected.score, "emotion": corrected.emotion_label}
    assert corrected.emotion_label in EMOTIONS_OF[wanted]


@pytest.mark.parametrize(("rule_id", "text", "label"), SILENT)
def test_a_rule_leaves_what_only_looks_alike(rule_id: str, text: str, label: str) -> None:
    score = score_of(label)
    assert Corrector([RULES[rule_id]]).correct(prepare(text).text, score) == (score, ())


def test_every_rule_has_a_case_that_fires() -> None:
    assert {case[0] for case in FIRES} | {"rating-praised", "rating-panned"} == set(RULES)


def test_a_rule_that_is_off_changes_nothing() -> None:
    score = score_of("positive")
    others = [rule for name, rule in RULES.items() if name != "thanks-sarcastic"]
    assert Corrector(others).correct("thanks for nothing", score) == (score, ())
    assert Corrector().correct("thanks for nothing", score) == (score, ())


def test_a_certain_model_is_believed_where_the_rule_asks_for_doubt() -> None:
    tail = Corrector([RULES["emoji-tail-positive"]])
    assert tail.correct("late again 😍", score_of("negative", 0.95))[1] == ()
    assert tail.correct("late again 😍", score_of("negative", 0.69))[1] != ()


@pytest.mark.parametrize(("label", "rating", "wanted"), [("negative", 5, "positive"), ("positive", 1, "negative")])
def test_a_rating_decides_where_the_words_leave_the_model_unsure(label: str, rating: int, wanted: str) -> None:
    both = Corrector([RULES["rating-praised"], RULES["rating-panned"]])
    assert both.correct("it is what it is", score_of(label), rating=rating)[0].label == wanted
    assert both.correct("it is what it is", score_of(label), rating=3)[1] == ()
    assert both.correct("it is what it is", score_of(label))[1] == ()
    assert both.correct("it is what it is", score_of(label, 0.9), rating=rating)[1] == ()


@given(
    st.text(max_size=40),
    st.sampled_from(["谢谢", "thanks", "😡", "没问题", "not happy", "fixed", "!", "但是"]),
    st.sampled_from(POLARITIES),
    st.sampled_from(EMOTIONS),
    st.integers(3334, 10000),
)
def test_what_comes_out_is_a_sound_score(text: str, word: str, label: str, emotion: str, confidence: int) -> None:
    score = score_of(label, confidence / 10000, emotion)
    phrases = [TenantPhrase("not happy", "positive", "surprise")]
    corrected, corrections = Corrector(load_rules(), phrases).correct(prepare(text + word).text, score, rating=1)
    assert sorted(corrected.polarity) == sorted(score.polarity)
    assert sorted(corrected.emotion) == sorted(score.emotion)
    assert corrected.score == round(corrected.polarity[2] - corrected.polarity[0], 4) or not corrections
    assert corrected.label == POLARITIES[corrected.polarity.index(max(corrected.polarity))] or confidence < 3335
    assert (corrected.confidence, corrected.uncertain) == (score.confidence, score.uncertain)
    assert (corrected.intensity, corrected.signals) == (score.intensity, score.signals)
    assert len(corrections) <= 1
    assert bool(corrections) == (corrected != score)
    again, _ = Corrector(load_rules(), phrases).correct(prepare(text + word).text, score, rating=1)
    assert again == corrected


def test_a_long_text_is_not_decided_by_one_phrase() -> None:
    rule = Corrector([RULES["thanks-sarcastic"]])
    text = "thanks for nothing " + "x" * (MAX_CHARACTERS - 19)
    assert rule.correct(text, score_of("positive"))[1] != ()
    assert rule.correct(text + "x", score_of("positive"))[1] == ()


def test_a_tenants_phrase_counts_for_that_tenant_alone_and_before_all_rules() -> None:
    phrases = [
        TenantPhrase("sick drop", "positive", "joy", "sneakers"),
        TenantPhrase("坑位", "neutral"),
        TenantPhrase("drop", "negative", tenant_id="elsewhere"),
    ]
    corrector = Corrector([RULES["emoji-only-negative"]], phrases)
    score = score_of("negative")
    moved, (correction,) = corrector.correct("that Sick Drop though", score, tenant_id="sneakers")
    assert (moved.label, moved.emotion_label, correction.rule_id) == ("positive", "joy", TENANT_PHRASE)
    assert corrector.correct("that sick drop though", score, tenant_id="another") == (score, ())
    assert corrector.correct("一个坑位多少钱", score, tenant_id="sneakers")[0].label == "neutral"
    assert corrector.correct("sick dropping", score, tenant_id="sneakers") == (score, ())
    assert corrector.correct("drop", score_of("neutral"), tenant_id="elsewhere")[0].label == "negative"
    assert corrector.correct("sick drop", score_of("positive"), tenant_id="sneakers")[1] == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("phrases: {}", "list under"),
        ("[", "cannot be read"),
        ("phrases: [{phrase: x, polarity: glad}]", "'glad' is none of"),
        ("phrases: [{phrase: x, polarity: positive, emotion: glee}]", "'glee' is none of"),
        ("phrases: [{phrase: '', polarity: positive}]", "entry 1: the phrase is empty"),
        ("phrases: [{phrase: x, polarity: positive, tennant: a}]", "entry 1"),
        ("phrases: [x]", "entry 1"),
    ],
)
def test_a_wrong_phrase_file_says_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "phrases.yaml"
    path.write_text(content, "utf-8")
    with pytest.raises(ConfigurationError, match=message):
        read_phrases(path)


def info(*on: str) -> ModelInfo:
    return replace(StubScorer().info, corrections=on)


def test_the_manifest_switches_on_and_the_settings_have_the_last_word(tmp_path: Path) -> None:
    path = tmp_path / "phrases.yaml"
    path.write_text("phrases: [{phrase: 坑位, polarity: neutral}]", "utf-8")
    of = Corrector.of
    assert of(CorrectionSettings(), info()).rule_ids == ()
    assert of(CorrectionSettings(), info("thanks-sarcastic")).rule_ids == ("thanks-sarcastic",)
    assert of(CorrectionSettings(rules={"thanks-sarcastic": False}), info("thanks-sarcastic")).rule_ids == ()
    assert of(CorrectionSettings(rules={"polite-thanks": True}), info()).rule_ids == ("polite-thanks",)
    assert of(CorrectionSettings(enabled=False), info("thanks-sarcastic")).rule_ids == ()
    assert of(CorrectionSettings(phrases=path), info()).rule_ids == (TENANT_PHRASE,)
    with pytest.raises(ConfigurationError, match="no rule 'polite'"):
        of(CorrectionSettings(rules={"polite": True}), info())


def test_the_version_tells_different_rules_apart() -> None:
    both = [RULES["polite-thanks"], RULES["thanks-solved"]]
    versions = [
        Corrector().version,
        Corrector(both).version,
        Corrector(both[:1]).version,
        Corrector(both[:1], [TenantPhrase("x", "neutral")]).version,
        Corrector(both[:1], [TenantPhrase("x", "positive")]).version,
    ]
    assert versions[0] == "off"
    assert len(set(versions)) == 5
    assert Corrector(both).version == versions[1]


def test_rules_measured_in_another_version_are_off(copied: Path) -> None:
    def on(version: int) -> tuple[str, ...]:
        path = copied / "manifest.json"
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        manifest["corrections"] = {"version": version, "on": ["polite-thanks"]}
        path.write_text(json.dumps(manifest), "utf-8")
        return load_bundle(copied).info.corrections

    assert on(rules_version()) == ("polite-thanks",)
    assert on(rules_version() + 1) == ()
