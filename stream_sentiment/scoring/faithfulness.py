"""Are the explanations true of the model? Delete the word they name from the message, and see whether the model cares.

In: texts. Out: how much the probability of the model's own label falls when the word of the largest weight is deleted, against a
word drawn at random; the mean difference with its 95 % interval (bootstrap over messages). Deleted means: taken out of the message
as it was written, then prepared, tokenised and scored anew. The weights come from another operation, [MASK] in the ids, or the
measure would agree with itself. Blocks on inference. The measure is the comprehensiveness of DeYoung et al. 2020 (ACL, ERASER)
for one word, with a random word as the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stream_sentiment.batching import plan_micro_batches
from stream_sentiment.scoring.explain import Explanation, explain, outputs_of
from stream_sentiment.scoring.scorer import OnnxScorer

HEADS = ("polarity", "emotion")
#: Fewer words leave nothing to choose from.
LEAST_WORDS = 3
RESAMPLES = 2000

Chooser = Callable[[Explanation, str], int]
"""From an explanation and an output the word that should matter most; the tests put a blind one in its place."""


@dataclass(frozen=True, slots=True)
class _Case:
    head: str
    text: str
    output: str
    value: float
    without_top: str
    without_random: str


def largest_weight(explanation: Explanation, output: str) -> int:
    """The word that adds most to the output."""
    return max(range(len(explanation.words)), key=lambda at: explanation.weights[output][at])


def faithfulness(
    scorer: OnnxScorer,
    texts: Sequence[str],
    *,
    seed: int = 0,
    choose: Chooser = largest_weight,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """`{texts, heads: {head: {messages, top, random, difference, low, high, wins}}}`.

    `top` and `random`: mean fall of the label's probability; `wins`: share of messages in which the named word's deletion costs more
    (ties count half). Messages of fewer than three words are left out.
    """
    rng = np.random.default_rng(seed)
    cases: list[_Case] = []
    for text in texts:
        explanation = explain(scorer, text)
        if len(explanation.words) >= LEAST_WORDS:
            cases += [_case(explanation, head, choose, rng) for head in HEADS]
        progress(1)
    changed = [text for case in cases for text in (case.without_top, case.without_random)]
    names, values = _values(scorer, changed)
    column = {name: at for at, name in enumerate(names)}
    falls: dict[str, list[tuple[float, float]]] = {head: [] for head in HEADS}
    for number, case in enumerate(cases):
        at = column[case.output]
        falls[case.head].append((case.value - values[2 * number, at], case.value - values[2 * number + 1, at]))
    return {"texts": len(texts), "heads": {head: _summary(np.array(rows), rng) for head, rows in falls.items() if rows}}


def _case(explanation: Explanation, head: str, choose: Chooser, rng: np.random.Generator) -> _Case:
    labels = [name for name in explanation.values if name.startswith(f"{head}/")]
    output = max(labels, key=lambda name: explanation.values[name])
    top = choose(explanation, output)
    others = [at for at in range(len(explanation.words)) if at != top]
    random = int(rng.choice(others))
    return _Case(
        head,
        explanation.text,
        output,
        explanation.values[output],
        _without(explanation, top),
        _without(explanation, random),
    )


def _without(explanation: Explanation, at: int) -> str:
    word = explanation.words[at]
    return explanation.text[: word.begin] + explanation.text[word.end :]


def _values(scorer: OnnxScorer, texts: Sequence[str]) -> tuple[list[str], npt.NDArray[np.float64]]:
    ids = [tokens.ids for tokens in scorer.tokenize(texts)]
    width = sum(spec.head.width for spec in scorer.bundle.heads)
    logits = np.zeros((len(texts), width), np.float32)
    for group in plan_micro_batches([len(x) for x in ids], scorer.token_budget):
        logits[group] = scorer.logits([ids[row] for row in group])
    return outputs_of(scorer.bundle.heads, logits)


def _summary(falls: npt.NDArray[np.float64], rng: np.random.Generator) -> dict[str, Any]:
    difference = falls[:, 0] - falls[:, 1]
    draws = rng.integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.quantile(difference[draws].mean(axis=1), (0.025, 0.975))
    return {
        "messages": len(falls),
        "top": round(float(falls[:, 0].mean()), 4),
        "random": round(float(falls[:, 1].mean()), 4),
        "difference": round(float(difference.mean()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "wins": round(float(((difference > 0) + 0.5 * (difference == 0)).mean()), 4),
    }
