"""Which words of a message made its score: occlusion with the deployed model.

In: a text and a scorer. Out: an `Explanation`: for every output of the model (polarity, each label, intensity, each signal) its value
and how much every word adds to it, as the difference between the value of the whole message and its value with the word hidden
behind [MASK]. Places are character offsets of the message as it was written. One run of the model for each word, in micro-batches.
A word's weight says what the model would miss without this word alone: where two words say the same, each may weigh little.
Source: occlusion, Zeiler and Fergus 2014; leave-one-out on text, Li, Monroe and Jurafsky 2016 (arXiv 1612.08220).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stream_sentiment.batching import plan_micro_batches
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.bundle import HeadSpec
from stream_sentiment.scoring.calibration import Score
from stream_sentiment.scoring.corrections import Correction, Corrector
from stream_sentiment.scoring.heads import HeadKind
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.scoring.text import prepare
from stream_sentiment.scoring.tokenizer import Unit

SCORE = "score"
"""Name of the output p(positive) - p(negative), beside `head` and `head/label`."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Word:
    """One word of the message; `read` is false in the middle of a long text, which the model never saw."""

    begin: int
    end: int
    read: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """Values and weights by name of the output; weights in the order of `words`."""

    text: str
    words: tuple[Word, ...]
    values: Mapping[str, float]
    weights: Mapping[str, tuple[float, ...]]
    score: Score  # after the corrections
    corrections: tuple[Correction, ...]
    signals: tuple[str, ...]  # that the model's own thresholds give
    truncated: bool

    def top(self, output: str, count: int = 5) -> list[tuple[str, float]]:
        """The words that weigh most, with their sign."""
        order = sorted(range(len(self.words)), key=lambda at: -abs(self.weights[output][at]))[:count]
        return [(self.text[self.words[at].begin : self.words[at].end], self.weights[output][at]) for at in order]


def output_name(scorer: OnnxScorer, head: str | None, label: str | None) -> str | None:
    """The output that a head and a label mean; None for none given. Raises ConfigurationError for what the model has not."""
    if head is None:
        if label is not None:
            raise ConfigurationError("--label needs --head")
        return None
    labels = scorer.info.labels
    if head == SCORE:
        return SCORE
    if head not in labels:
        raise ConfigurationError(f"the model has no head {head!r}; heads: {SCORE}, {', '.join(labels)}")
    if len(labels[head]) == 1:
        return head
    if label is None:
        raise ConfigurationError(f"--head {head} needs --label, one of {', '.join(labels[head])}")
    if label not in labels[head]:
        raise ConfigurationError(f"head {head} has no label {label!r}; labels: {', '.join(labels[head])}")
    return f"{head}/{label}"


def explain(
    scorer: OnnxScorer,
    text: str,
    *,
    corrector: Corrector | None = None,
    tenant_id: str = "",
    rating: float | None = None,
) -> Explanation:
    """Explain every output for one message. A text that is blank after preparation has no words and no weights."""
    ids, units = scorer.units(text)
    logits = _run(scorer, [ids, *hidden(ids, units, scorer.mask_id)])
    names, values = outputs_of(scorer.bundle.heads, logits)
    places = {unit: row for row, unit in enumerate((u for u in units if u.places), 1)}
    weights = {
        name: tuple(float(values[0, column] - values[places[u], column]) if u.places else 0.0 for u in units)
        for column, name in enumerate(names)
    }
    said = scorer.infer([ids])[0]
    score, corrections = (corrector or Corrector()).correct(
        prepare(text).text, said, tenant_id=tenant_id, rating=rating
    )
    given = tuple(
        label
        for label, probability in zip(scorer.info.labels.get("signals", ()), said.signals, strict=False)
        if probability >= scorer.info.signal_thresholds.get(label, 0.5)
    )
    return Explanation(
        text=text,
        words=tuple(Word(u.begin, u.end, bool(u.places)) for u in units),
        values={name: float(values[0, column]) for column, name in enumerate(names)},
        weights=weights,
        score=score,
        corrections=corrections,
        signals=given,
        truncated=any(not u.places for u in units) or scorer.tokenize([text])[0].truncated,
    )


def hidden(ids: Sequence[int], units: Sequence[Unit], mask_id: int | None) -> list[list[int]]:
    """The ids with one word hidden, for each word that the model reads; left out where the vocabulary has no [MASK]."""
    out = []
    for unit in units:
        if not unit.places:
            continue
        gone = set(unit.places)
        if mask_id is None:
            out.append([token for place, token in enumerate(ids) if place not in gone])
        else:
            out.append([mask_id if place in gone else token for place, token in enumerate(ids)])
    return out


def outputs_of(heads: Sequence[HeadSpec], logits: npt.NDArray[np.float32]) -> tuple[list[str], Floats]:
    """Calibrated values of every output, rows x outputs, not rounded: a small weight is a difference of two of them."""
    names: list[str] = []
    columns: list[Floats] = []
    at = 0
    for spec in heads:
        z = logits[:, at : at + spec.head.width].astype(np.float64)
        at += spec.head.width
        if spec.head.kind is HeadKind.REGRESSION:
            columns.append(np.clip(z, 0.0, 3.0))
            names.append(spec.head.name)
            continue
        z = z / spec.temperature
        if spec.head.kind is HeadKind.SOFTMAX:
            e = np.exp(z - z.max(axis=1, keepdims=True))
            p = e / e.sum(axis=1, keepdims=True)
        else:
            p = 1.0 / (1.0 + np.exp(-np.clip(z, -40.0, 40.0)))
        if spec.head.name == "polarity":
            columns.append(p[:, 2:3] - p[:, 0:1])
            names.append(SCORE)
        columns.append(p)
        names += [f"{spec.head.name}/{label}" for label in spec.head.labels]
    return names, np.concatenate(columns, axis=1)


def _run(scorer: OnnxScorer, batch: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    width = sum(spec.head.width for spec in scorer.bundle.heads)
    out = np.zeros((len(batch), width), np.float32)
    for group in plan_micro_batches([len(ids) for ids in batch], scorer.token_budget):
        out[group] = scorer.logits([batch[row] for row in group])
    return out


def as_json(explanation: Explanation, outputs: Sequence[str]) -> dict[str, Any]:
    """`{text, outputs: [{output, value, spans: [{begin, end, weight}]}], not_read: [...], corrections, ...}` with four decimals."""
    e = explanation
    return {
        "text": e.text,
        "label": e.score.label,
        "score": e.score.score,
        "emotion": e.score.emotion_label,
        "intensity": None if e.score.intensity is None else round(e.score.intensity, 4),
        "uncertain": e.score.uncertain,
        "signals": list(e.signals),
        "corrections": [correction.block() for correction in e.corrections],
        "outputs": [
            {
                "output": name,
                "value": round(e.values[name], 4),
                "spans": [
                    {"begin": word.begin, "end": word.end, "weight": round(weight, 4)}
                    for word, weight in zip(e.words, e.weights[name], strict=True)
                    if word.read
                ],
            }
            for name in outputs
        ],
        "not_read": [{"begin": word.begin, "end": word.end} for word in e.words if not word.read],
        "truncated": e.truncated,
    }


def usual_outputs(explanation: Explanation) -> list[str]:
    """What a reader wants to see first: the score, the model's emotion, the intensity, the signals it gives."""
    values = explanation.values
    emotions = [name for name in values if name.startswith("emotion/")]
    out = [SCORE, max(emotions, key=lambda name: values[name])]
    if "intensity" in values:
        out.append("intensity")
    return out + [f"signals/{name}" for name in explanation.signals]
