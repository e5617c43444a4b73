"""The scorer: what the worker and `score` call.

In: texts, or token ids of one micro-batch. Out: `Score` values in the same order. `tokenize` belongs to one
thread; `infer` may be called from any. Blocks on inference. Raises `InferenceError` for messages that cannot
be scored, `ConfigurationError` at load.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from stream_sentiment.batching import plan_micro_batches
from stream_sentiment.scoring.bundle import Bundle, ModelInfo, default_bundle_path, load_bundle, read_manifest
from stream_sentiment.scoring.calibration import Calibrator, Score
from stream_sentiment.scoring.errors import InferenceError
from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES, SIGNALS
from stream_sentiment.scoring.reference import HeadReference, LanguageReference
from stream_sentiment.scoring.session import PRECISION_OF, Device, Session, choose_device
from stream_sentiment.scoring.tokenizer import TextTokenizer, TokenizedText, Unit

# Padded tokens of one run. Throughput is flat from 64 to 1,024; above that the activations leave the L2 cache.
TOKEN_BUDGET = 256

__all__ = ["InferenceError", "ModelInfo", "OnnxScorer", "Score", "Scorer", "StubScorer", "TokenizedText", "pad"]

_OUT_OF_MEMORY = ("failed to allocate memory", "bfcarena", "out of memory", "cuda error 2:", "bad_alloc")


class Scorer(Protocol):
    """Text in, calibrated probabilities out."""

    @property
    def info(self) -> ModelInfo:
        """Which model this is."""

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Ids of each text; one thread calls it."""

    def infer(self, batch: Sequence[Sequence[int]]) -> list[Score]:
        """Scores of one micro-batch; any thread calls it. Raises `InferenceError`."""

    def score(self, texts: Sequence[str]) -> list[Score]:
        """The whole path with micro-batches, for offline work."""


class OnnxScorer:
    """A bundle on onnxruntime. A message's score does not depend on the messages beside it (static int8
    scales, masked sums).
    """

    def __init__(self, bundle: Bundle, *, device: Device = "cpu", token_budget: int = TOKEN_BUDGET) -> None:
        self.info = bundle.info
        self.bundle = bundle
        self.token_budget = token_budget
        self._calibrator = Calibrator(bundle.heads)
        self._session = Session(bundle, device)
        self._tokenizer = TextTokenizer(bundle.tokenizer, bundle.info.max_length)
        self.provider = self._session.provider

    @classmethod
    def load(
        cls, path: Path | None = None, *, device: Device | Literal["auto"] = "auto", token_budget: int = TOKEN_BUDGET
    ) -> OnnxScorer:
        """Read, verify and open a bundle; without a path the one that comes with the package.

        `auto` takes CUDA where it is there and the bundle has a variant for it, else the CPU; `cuda` refuses
        anything else.
        """
        path = path or default_bundle_path()
        wanted = choose_device(device, read_manifest(path))
        return cls(load_bundle(path, PRECISION_OF[wanted]), device=wanted, token_budget=token_budget)

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        return self._tokenizer.tokenize(texts)

    @property
    def mask_id(self) -> int | None:
        """See `TextTokenizer.mask_id`."""
        return self._tokenizer.mask_id

    def units(self, text: str) -> tuple[list[int], list[Unit]]:
        """See `TextTokenizer.units`."""
        return self._tokenizer.units(text)

    def logits(self, batch: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """Raw logits of one micro-batch, batch x sum of head widths; halves the batch when memory runs out."""
        ids = pad(batch)
        try:
            return self._session.run(ids)
        except Exception as error:
            if not any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
                raise
            if len(batch) == 1:
                raise InferenceError("out of memory for a single message", (0,)) from error
        half = len(batch) // 2
        rows = np.concatenate([self.logits(batch[:half]), self.logits(batch[half:])])
        self._session.run(ids[:1, :1], shrink=True)
        return rows

    def infer(self, batch: Sequence[Sequence[int]]) -> list[Score]:
        if not batch:
            return []
        logits = self.logits(batch)
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            raise InferenceError("the model gave logits that are not numbers", np.flatnonzero(~finite).tolist())
        return self._calibrator.scores(logits)

    def score(self, texts: Sequence[str]) -> list[Score]:
        ids = [t.ids for t in self.tokenize(texts)]
        out: dict[int, Score] = {}
        for group in plan_micro_batches([len(x) for x in ids], self.token_budget):
            out.update(zip(group, self.infer([ids[i] for i in group]), strict=True))
        return [out[i] for i in range(len(texts))]


class StubScorer:
    """A scorer without a model: the score is a function of the ids alone. For benchmarks of everything around
    the model, and for tests.
    """

    def __init__(self, max_length: int = 96) -> None:
        labels = {"polarity": POLARITIES, "emotion": EMOTIONS, "signals": SIGNALS}
        reference = dict.fromkeys(("zh", "en"), _STUB_REFERENCE)
        self.info = ModelInfo("stub", "1", "0" * 64, "none", max_length, labels, reference=reference)

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        limit = self.info.max_length
        return [TokenizedText([2, *map(ord, text[: limit - 2]), 3], len(text) > limit - 2) for text in texts]

    def infer(self, batch: Sequence[Sequence[int]]) -> list[Score]:
        return [_STUB_SCORES[zlib.crc32(np.asarray(ids, np.int64).tobytes()) % len(_STUB_SCORES)] for ids in batch]

    def score(self, texts: Sequence[str]) -> list[Score]:
        return self.infer([t.ids for t in self.tokenize(texts)])


def pad(batch: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Ids to a rectangle, 0 behind the end."""
    out = np.zeros((len(batch), max(map(len, batch))), np.int64)
    for row, ids in enumerate(batch):
        out[row, : len(ids)] = ids
    return out


def _stub_score(label: str, emotion: str) -> Score:
    polarity = tuple(0.8 if p == label else 0.1 for p in POLARITIES)
    feelings = tuple(0.75 if e == emotion else 0.05 for e in EMOTIONS)
    value = polarity[2] - polarity[0]
    return Score(
        (polarity[0], polarity[1], polarity[2]), feelings, value, 0.8, label, emotion, False, 3.0, (0.0,) * len(SIGNALS)
    )


_STUB_SCORES = (
    _stub_score("negative", "anger"),
    _stub_score("negative", "disappointment"),
    _stub_score("neutral", "neutral"),
    _stub_score("positive", "joy"),
)

#: Of many different texts each of the four scores gets a quarter, and the confidence is always the same.
_STUB_REFERENCE = LanguageReference(
    10_000,
    {
        "polarity": HeadReference({"negative": 0.5, "neutral": 0.25, "positive": 0.25}, (), (1.0,)),
        "emotion": HeadReference(
            {e: 0.25 if e in {"anger", "disappointment", "neutral", "joy"} else 0.0 for e in EMOTIONS}, (), (1.0,)
        ),
    },
)
