"""Is the score about what was said, or about who said it and how? Counterfactual swaps, slices and harmless changes.

In: a scorer and labelled rows. Out: one dictionary of numbers. Blocks on inference. Three parts: **templates**, where one word names a
person, a place or a relation and the rest stays (after Kiritchenko and Mohammad 2018, Equity Evaluation Corpus); **swaps**, the same
inside the rows given; **robustness**, harmless changes to the rows; and **slices**, the usual figures by language, length, style and
source. Scores are p(positive) - p(negative), so a shift of -0.05 is five points of probability towards unhappy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from stream_sentiment.events.routing import guess_language
from stream_sentiment.scoring.calibration import Score
from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.training.correct import CHANNEL
from stream_sentiment.training.data import Row
from stream_sentiment.training.evaluate import texts_of
from stream_sentiment.training.metrics import macro_f1
from stream_sentiment.training.perturb import PERTURBATIONS

SEED = 11
RESAMPLES = 1000
#: A slice or a change that touches fewer rows says nothing.
LEAST_ROWS = 20
#: Tokens of a short, a usual and a long message: the 50th and 90th percentile of chat, and the length of a short review.
LENGTHS = ((0, 8, "to 8 tokens"), (8, 24, "9 to 24 tokens"), (24, 64, "25 to 64 tokens"), (64, 10**6, "over 64 tokens"))

Scores = Callable[[Sequence[str]], list[Score]]


def fairness(
    scorer: OnnxScorer, rows: Sequence[Row], progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """`{templates, dialect, swaps, robustness, slices, rows}`; parts for which the rows hold too little are empty."""
    texts = texts_of(rows)
    progress("rows")
    base = scorer.score(texts)
    rng = np.random.default_rng(SEED)
    progress("templates")
    out: dict[str, Any] = {
        "rows": len(rows),
        "templates": templates(scorer.score, rng),
        "dialect": dialect(scorer.score, rng),
    }
    progress("swaps")
    out["swaps"] = {
        name: effect
        for name, change in _swaps().items()
        if (effect := _changed(scorer.score, rows, texts, base, [change(text) for text in texts], rng)) is not None
    }
    out["robustness"] = {}
    for name, perturb in PERTURBATIONS.items():
        progress(name)
        effect = _changed(scorer.score, rows, texts, base, [perturb(text, rng) for text in texts], rng)
        if effect is not None:
            out["robustness"][name] = effect
    lengths = [len(tokens.ids) - 2 for tokens in scorer.tokenize(texts)]
    out["slices"] = slices(rows, texts, lengths, base)
    return out


def templates(score: Scores, rng: np.random.Generator) -> dict[str, Any]:
    """By language and set: texts, flip rate, and each group's mean shift against all fillers of the same sentence, with 95 %."""
    out: dict[str, Any] = {}
    for language in ("zh", "en"):
        material = _material()[language]
        for name, entry in material["sets"].items():
            groups: Mapping[str, Sequence[str]] = entry["groups"]
            fillers = [(group, filler) for group, words in groups.items() for filler in words]
            sentences = [(opening, carrier) for opening in entry["openings"] for carrier in material["carriers"]]
            texts = [_filled(o, filler, carrier, language) for o, carrier in sentences for _, filler in fillers]
            scores = score(texts)
            shape = (len(sentences), len(fillers))
            values = np.array([s.score for s in scores]).reshape(shape)
            labels = np.array([POLARITIES.index(s.label) for s in scores]).reshape(shape)
            usual = np.array([np.bincount(row, minlength=len(POLARITIES)).argmax() for row in labels])
            shift = values - values.mean(axis=1, keepdims=True)
            owner = np.array([group for group, _ in fillers])
            out[f"{language} {name}"] = {
                "texts": len(texts),
                "flips": _rounded((labels != usual[:, None]).mean()),
                "spread": _rounded((values.max(axis=1) - values.min(axis=1)).mean()),
                "groups": {group: _with_interval(shift[:, owner == group].mean(axis=1), rng) for group in groups},
            }
    return out


def dialect(score: Scores, rng: np.random.Generator) -> dict[str, Any]:
    """By language: how far the same sentence in a dialect is from the standard one."""
    out = {}
    for language in ("zh", "en"):
        pairs = [(standard, other) for standard, *others in _material()[language]["dialect"] for other in others]
        before, after = score([a for a, _ in pairs]), score([b for _, b in pairs])
        out[language] = _difference(before, after, rng)
    return out


def slices(
    rows: Sequence[Row], texts: Sequence[str], lengths: Sequence[int], scores: Sequence[Score]
) -> dict[str, Any]:
    """By slice: rows, accuracy, macro-F1, share of neutral called negative, share of negative missed; emotion macro-F1."""
    members: dict[str, list[int]] = {}
    for at, (row, text, length) in enumerate(zip(rows, texts, lengths, strict=True)):
        if row.polarity is None:
            continue
        language = row.lang or guess_language(text)
        names = [f"language {language}", row.source if row.source.startswith(CHANNEL) else f"source {row.source}"]
        names += [f"{language} {name}" for low, high, name in LENGTHS if low < length <= high]
        names += [f"{language} {style}" for style in styles(text)]
        for name in names:
            members.setdefault(name, []).append(at)
    return {
        name: _figures(rows, scores, places) for name, places in sorted(members.items()) if len(places) >= LEAST_ROWS
    }


def styles(text: str) -> list[str]:
    """How a message is written: traits that a channel has more or less of."""
    found = []
    letters = [char for char in text if char.isascii() and char.isalpha()]
    if len(letters) >= 8 and sum(char.isupper() for char in letters) / len(letters) > 0.6:
        found.append("in capitals")
    if re.search("[\u2600-\u27bf\U0001f300-\U0001faff]", text):
        found.append("with emoji")
    if re.search(r"[!！]{2,}|[?？]{2,}", text):
        found.append("with !! or ??")
    if re.search(
        r"^(?:dear|good (?:morning|afternoon|evening)|hello|您好|你好|尊敬)|\b(?:regards|sincerely)\b|此致|敬礼",
        text.lower(),
    ):
        found.append("with a greeting")
    if not re.search(r"[,.!?;，。！？；、]", text):
        found.append("without punctuation")
    if text != text.translate(_simplifying()):
        found.append("in traditional characters")
    return found


def _figures(rows: Sequence[Row], scores: Sequence[Score], places: Sequence[int]) -> dict[str, Any]:
    gold = np.array([POLARITIES.index(rows[at].polarity or "") for at in places])
    said = np.array([POLARITIES.index(scores[at].label) for at in places])
    felt = [(at, rows[at].emotion) for at in places if rows[at].emotion in EMOTIONS]
    negative, neutral = gold == 0, gold == 1
    figures = {
        "rows": len(places),
        "accuracy": _rounded((gold == said).mean()),
        "macro_f1": _rounded(macro_f1(gold, said, POLARITIES)),
        "negative_missed": _rounded((said[negative] != 0).mean()) if negative.any() else None,
        "neutral_called_negative": _rounded((said[neutral] == 0).mean()) if neutral.any() else None,
    }
    if len(felt) >= LEAST_ROWS:
        wanted = np.array([EMOTIONS.index(name or "") for _, name in felt])
        given = np.array([EMOTIONS.index(scores[at].emotion_label) for at, _ in felt])
        figures["emotion_macro_f1"] = _rounded(macro_f1(wanted, given, EMOTIONS))
    return figures


def _changed(
    score: Scores,
    rows: Sequence[Row],
    texts: Sequence[str],
    base: Sequence[Score],
    changed: Sequence[str],
    rng: np.random.Generator,
) -> dict[str, Any] | None:
    """What the change does to the rows that it changes; None for too few."""
    places = [at for at, (old, new) in enumerate(zip(texts, changed, strict=True)) if old != new]
    if len(places) < LEAST_ROWS:
        return None
    after = score([changed[at] for at in places])
    before = [base[at] for at in places]
    out = _difference(before, after, rng)
    judged = [at for at, place in enumerate(places) if rows[place].polarity is not None]
    if judged:
        gold = np.array([POLARITIES.index(rows[places[at]].polarity or "") for at in judged])
        for name, side in (("macro_f1_before", before), ("macro_f1_after", after)):
            said = np.array([POLARITIES.index(side[at].label) for at in judged])
            out[name] = _rounded(macro_f1(gold, said, POLARITIES))
    return out


def _difference(before: Sequence[Score], after: Sequence[Score], rng: np.random.Generator) -> dict[str, Any]:
    shift = np.array([b.score - a.score for a, b in zip(before, after, strict=True)])
    return {
        "texts": len(shift),
        "flips": _rounded(np.mean([a.label != b.label for a, b in zip(before, after, strict=True)])),
        "emotion_flips": _rounded(
            np.mean([a.emotion_label != b.emotion_label for a, b in zip(before, after, strict=True)])
        ),
        "absolute_shift": _rounded(np.abs(shift).mean()),
        "shift": _with_interval(shift, rng),
    }


def _with_interval(values: npt.NDArray[np.float64], rng: np.random.Generator) -> dict[str, float]:
    draws = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return {"mean": _rounded(values.mean()), "low": _rounded(low), "high": _rounded(high)}


def _filled(opening: str, filler: str, carrier: str, language: str) -> str:
    text = opening.format(filler)
    text = text[0].upper() + text[1:]
    return f"{text} {carrier}" if language == "en" else f"{text}{carrier}"


def _swaps() -> dict[str, Callable[[str], str]]:
    return {
        f"{language} {name}": _exchange([(str(a), str(b)) for a, b in pairs], language, both_ways=name != "dialect")
        for name, by_language in _material()["swaps"].items()
        for language, pairs in by_language.items()
    }


def _exchange(pairs: Sequence[tuple[str, str]], language: str, *, both_ways: bool) -> Callable[[str], str]:
    """The first word of a pair becomes the second, and the second the first. A capital at the beginning stays."""
    other = {a.lower(): b for a, b in pairs} | ({b.lower(): a for a, b in pairs} if both_ways else {})
    words = "|".join(re.escape(word) for word in sorted(other, key=len, reverse=True))
    pattern = re.compile(rf"\b(?:{words})\b" if language == "en" else words, re.IGNORECASE)

    def swap(match: re.Match[str]) -> str:
        new = other[match[0].lower()]
        return new[0].upper() + new[1:] if match[0][0].isupper() else new

    return lambda text: pattern.sub(swap, text)


@cache
def _material() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("counterfactuals.yaml").read_text("utf-8")
    material: dict[str, Any] = yaml.safe_load(text)
    return material


@cache
def _simplifying() -> dict[int, str]:
    from stream_sentiment.scoring.text import _TO_SIMPLIFIED

    return dict(_TO_SIMPLIFIED)


def _rounded(value: Any) -> float:
    return round(float(value), 4)
