"""Numbers fitted on dev after training: the shortcut's share, one temperature a head, signal thresholds, the
abstain band. Pure.

In: logits and gold labels of dev rows, several sets of equal weight. Out: plain numbers for the manifest.
Never given a test set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stream_sentiment.training.metrics import expected_log_loss, sigmoid, softmax

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
TEMPERATURES: tuple[float, ...] = tuple(round(0.4 * 10 ** (i / 92), 4) for i in range(93))  # 0.4 to 4
SIGNAL_PRECISION = 0.82
"""Micro precision that the thresholds reach on the rows they are chosen on: the bar is .80, and other rows will be a little worse."""


def fit_temperature(sets: Sequence[tuple[Floats, Ints]]) -> float:
    """The temperature of least log loss; every set counts the same (Guo et al. 2017)."""
    return min(TEMPERATURES, key=lambda t: float(np.mean([expected_log_loss(z, y, t) for z, y in sets])))


def fit_binary_temperature(logits: Floats, gold: npt.NDArray[np.bool_]) -> float:
    """The same for independent yes/no outputs, all of them together."""

    def loss(t: float) -> float:
        p = np.clip(sigmoid(logits / t), 1e-9, 1 - 1e-9)
        return float(-np.where(gold, np.log(p), np.log(1 - p)).mean())

    return min(TEMPERATURES, key=loss)


def fit_share(sets: Sequence[tuple[Floats, Floats, Ints]]) -> float:
    """How much of the shortcut's logits to add to the encoder's: least log loss, each share at its own best
    temperature.

    `sets`: encoder logits, shortcut logits, gold labels.
    """

    def loss(share: float) -> float:
        summed = [(deep + share * wide, gold) for deep, wide, gold in sets]
        t = fit_temperature(summed)
        return float(np.mean([expected_log_loss(z, y, t) for z, y in summed]))

    return min(SHARES, key=loss)


def fit_thresholds(
    probability: Floats,
    gold: npt.NDArray[np.bool_],
    said: npt.NDArray[np.bool_] | None = None,
    precision: float = SIGNAL_PRECISION,
) -> list[float]:
    """Per column the threshold, 0.1 to 0.95, so that all signals together reach `precision` (micro) with as many hits as they can.

    `said`: what another source (the lexicon) says already; it counts, whatever the threshold. The columns are tied by one price of a
    false hit: each takes the threshold of most hits less price times false hits, and the lowest price that reaches the precision
    wins (the Lagrangian of the constraint). A precision per column would cost the common signals hits that the rare ones need not pay.
    """
    candidates = np.round(np.arange(0.10, 0.96, 0.05), 2)
    already = np.zeros_like(gold) if said is None else said
    spoken = (probability[:, :, None] >= candidates) | already[:, :, None]  # rows x columns x candidates
    hits, false = ((spoken & kind[:, :, None]).sum(axis=0).astype(np.float64) for kind in (gold, ~gold))
    chosen = np.full(probability.shape[1], len(candidates) - 1)
    for price in np.arange(0.02, 8.0, 0.02):
        worth = hits - price * false
        # Of equal ones the highest threshold: where nothing was seen, it should take most to speak.
        best = worth.shape[1] - 1 - worth[:, ::-1].argmax(axis=1)
        column = np.arange(len(best))
        hit, wrong = hits[column, best].sum(), false[column, best].sum()
        if hit >= precision * (hit + wrong):
            chosen = best
            break
    return [float(candidates[i]) for i in chosen]


def fit_abstain(probability: Floats, gold: Ints, accuracy: float = 0.6) -> float:
    """The confidence below which less than `accuracy` of the labels are right; 0 where even the least
    confident are better.
    """
    best, right = probability.max(axis=1), probability.argmax(axis=1) == gold
    limit = 0.0
    for edge in np.arange(0.36, 0.91, 0.02):
        band = (best >= edge - 0.06) & (best < edge)
        if band.sum() >= 10 and right[band].mean() < accuracy:
            limit = float(edge)
    return round(limit, 2)


def signal_report(probability: Floats, gold: npt.NDArray[np.bool_], thresholds: Sequence[float]) -> tuple[float, float]:
    """Micro precision and recall over all signals."""
    said = probability >= np.asarray(thresholds)[None]
    hit = float((said & gold).sum())
    return hit / max(1.0, float(said.sum())), hit / max(1.0, float(gold.sum()))


def head_probability(logits: Floats, temperature: float) -> npt.NDArray[np.float64]:
    """Softmax at a temperature."""
    return softmax(logits / temperature)
