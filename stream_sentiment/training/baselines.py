"""What the model must beat: a lexicon with negation, and a linear model over character and word n-grams.

In: texts and labels. Out: predicted label indices. Blocks on fitting (a minute for forty thousand texts). Both use the product's text
preparation. The linear model is the usual strong floor of text classification: sublinear term frequency times inverse document
frequency, rows of length 1, multinomial logistic regression with balanced classes and an L2 term of one over the number of rows
(scikit-learn's C = 1), solved with L-BFGS. Chinese by characters 1 to 3, everything else by words 1 to 2.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import yaml

from stream_sentiment.scoring.text import prepare

BUCKETS = 1 << 20
MINIMUM_COUNT = 2
ITERATIONS = 60
#: Dense columns of unit variance against n-grams of a row of length 1. On JDDC in folds 0.1, 0.05 and 0.02 gave 60.4, 61.0 and 61.5.
DENSE_SCALE = 0.02

_HAN = re.compile(r"[\u4e00-\u9fff]")
_WORD = re.compile(r"[a-z0-9@']+|[^\sa-z0-9@']")

POLARITY_OF = {"anger": "negative", "disappointment": "negative", "anxiety": "negative", "joy": "positive"}


def ngrams(text: str) -> list[str]:
    """The n-grams of a prepared text in lower case."""
    text = text.lower()
    if _HAN.search(text):
        return [text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1)]
    words = _WORD.findall(text)
    return words + [f"{a} {b}" for a, b in pairwise(words)]


class NgramClassifier:
    """Hashed TF-IDF and logistic regression, beside dense features where there are any. `fit` once, then `logits`."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)

    def fit(
        self, texts: Sequence[str], gold: npt.NDArray[np.int64], dense: npt.NDArray[np.float32] | None = None
    ) -> NgramClassifier:
        """`gold`: index into `labels` for each text. `dense`: texts x features, brought to one scale here."""
        keys = [_counts(text) for text in texts]
        documents = np.zeros(BUCKETS, np.int64)
        for row in keys:
            documents[list(row)] += 1
        known = documents >= MINIMUM_COUNT
        self._idf = np.where(known, np.log((1 + len(texts)) / (1 + documents)) + 1, 0.0).astype(np.float32)
        # Only buckets in use get a row of weights.
        self._place = np.cumsum(known) - 1
        x = self._features(keys)
        if dense is not None:
            self._centre, self._spread = dense.mean(axis=0), dense.std(axis=0) + 1e-6
        extra = self._scaled(dense, len(texts))
        target = torch.from_numpy(gold)
        share = torch.bincount(target, minlength=len(self.labels)).float().clamp_min(1.0)
        balance = len(texts) / (int((share > 0).sum()) * share)
        weight = torch.zeros((int(known.sum()), len(self.labels)), requires_grad=True)
        bias = torch.zeros(len(self.labels), requires_grad=True)
        mixed = torch.zeros((extra.shape[1], len(self.labels)), requires_grad=True)
        solver = torch.optim.LBFGS(
            [weight, mixed, bias], max_iter=ITERATIONS, history_size=8, line_search_fn="strong_wolfe"
        )
        each = balance[target]

        def closure() -> float:
            solver.zero_grad()
            logits = _linear(x, weight) + extra @ mixed + bias
            loss = (F.cross_entropy(logits, target, reduction="none") * each).mean()
            loss = loss + 0.5 / len(texts) * (weight.square().sum() + mixed.square().sum())
            loss.backward()  # type: ignore[no-untyped-call]
            return float(loss.detach())

        solver.step(closure)  # type: ignore[no-untyped-call]
        self._weight, self._mixed, self._bias = weight.detach(), mixed.detach(), bias.detach()
        return self

    def logits(self, texts: Sequence[str], dense: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """Rows x labels; with `dense` where it was fitted with it."""
        with torch.no_grad():
            sparse = _linear(self._features([_counts(text) for text in texts]), self._weight)
            return np.asarray((sparse + self._scaled(dense, len(texts)) @ self._mixed + self._bias).numpy())

    def _scaled(self, dense: npt.NDArray[np.float32] | None, rows: int) -> torch.Tensor:
        if dense is None:
            return torch.zeros((rows, 0))
        return torch.from_numpy(((dense - self._centre) / self._spread * DENSE_SCALE).astype(np.float32))

    def _features(self, keys: Sequence[Mapping[int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        places: list[npt.NDArray[np.int64]] = []
        values: list[npt.NDArray[np.float32]] = []
        starts: list[int] = []
        at = 0
        for row in keys:
            starts.append(at)
            found = np.fromiter(row, np.int64, len(row))
            tf = 1.0 + np.log(np.fromiter(row.values(), np.float32, len(row)))
            v = tf * self._idf[found]
            there = v > 0
            norm = float(np.sqrt(np.square(v[there]).sum())) or 1.0
            places.append(self._place[found[there]])
            at += len(places[-1])
            values.append((v[there] / norm).astype(np.float32))
        flat = np.concatenate(places) if places else np.zeros(0, np.int64)
        return (
            torch.from_numpy(flat),
            torch.tensor(starts, dtype=torch.int64),
            torch.from_numpy(np.concatenate(values) if values else np.zeros(0, np.float32)),
        )


class LexiconClassifier:
    """Counts words of each emotion; a negation shortly before one turns its polarity and drops its emotion."""

    def __init__(self, head: str, labels: Sequence[str]) -> None:
        self.head, self.labels = head, tuple(labels)

    def logits(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Counts, rows x labels; half a point for neutral, which wins where nothing is found."""
        out = np.zeros((len(texts), len(self.labels)), np.float32)
        out[:, self.labels.index("neutral")] = 0.5
        for row, text in enumerate(texts):
            for emotion, negated in _found(prepare(text).text.lower()):
                label = emotion
                if self.head == "polarity":
                    label = POLARITY_OF.get(emotion, "neutral")
                    if negated:
                        label = {"negative": "neutral", "positive": "negative"}.get(label, label)
                elif negated:
                    label = "disappointment" if emotion == "joy" else "neutral"
                out[row, self.labels.index(label)] += 1
        return out


def _linear(x: tuple[torch.Tensor, torch.Tensor, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    places, starts, values = x
    return F.embedding_bag(places, weight, starts, mode="sum", per_sample_weights=values)


def _counts(text: str) -> Counter[int]:
    return Counter(zlib.crc32(gram.encode()) & (BUCKETS - 1) for gram in ngrams(prepare(text).text))


def _found(text: str) -> list[tuple[str, bool]]:
    language = "zh" if _HAN.search(text) else "en"
    words, negation = _patterns()[language]
    found = []
    for match in words.finditer(text):
        before = text[max(0, match.start() - (5 if language == "zh" else 22)) : match.start()]
        emotion = next(name for name, word in match.groupdict().items() if word is not None)
        found.append((emotion, negation.search(before) is not None))
    return found


@cache
def _patterns() -> dict[str, tuple[re.Pattern[str], re.Pattern[str]]]:
    text = resources.files(__package__).joinpath("baseline_words.yaml").read_text("utf-8")
    out = {}
    for language, entry in yaml.safe_load(text).items():
        edge = r"\b" if language == "en" else ""
        emotions: dict[str, list[Any]] = {k: v for k, v in entry.items() if k not in ("negations", "reach")}
        groups = [
            f"(?P<{name}>{edge}(?:{'|'.join(re.escape(str(w)) for w in sorted(words, key=len, reverse=True))}){edge})"
            for name, words in emotions.items()
        ]
        # The negation must stand within `reach` characters (Chinese) or words of the word it turns.
        negations = "|".join(re.escape(str(w)) for w in sorted(entry["negations"], key=len, reverse=True))
        gap = (
            rf"[^\s，。！？]{{0,{entry['reach']}}}" if language == "zh" else rf"(?:\s+\w+){{0,{entry['reach'] - 1}}}\s*"
        )
        # "n't" stands inside a word, the others are words.
        begin = r"(?:(?<=[a-z])(?=n't)|\b)" if language == "en" else ""
        out[language] = re.compile("|".join(groups)), re.compile(f"{begin}(?:{negations}){gap}$")
    return out
