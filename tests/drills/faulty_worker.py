"""The program of a worker whose stub model can be told to misbehave: `python -c "import ...; main(DIR)" run`.

By files in DIR, until they are gone:
    sleep          each model run waits
    delay SECONDS  each model run takes so much longer
    slow SECONDS   each message takes so much longer
    stuck          the tokenizer waits, and with it the loop that calls it
    fail, break    more than one message at once makes it raise, for want of memory or otherwise
    angry          every message is an angry one
A message that holds POISON makes it raise whatever else happens. The rest is the real worker.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stream_sentiment import worker
from stream_sentiment.scoring.errors import InferenceError
from stream_sentiment.scoring.reference import HEADS, MINIMUM, Prediction, Reference, measure
from stream_sentiment.scoring.scorer import _STUB_SCORES, Score, Scorer, StubScorer, TokenizedText
from stream_sentiment.settings import Settings
from stream_sentiment.testing.events import SCRIPTS

POISON = "\N{SKULL AND CROSSBONES}"
ANGRY = next(score for score in _STUB_SCORES if score.emotion_label == "anger")


def reference_of_the_load(scorer: StubScorer) -> Reference:
    """What a stub gives on the load of the drills, which repeats the same scripts."""
    said = [
        (event["language"], event["text"])
        for script in SCRIPTS
        for event in script.events()
        if event["sender"]["role"] == "customer" and event.get("text")
    ]
    scores = scorer.score([text for _, text in said])
    once = [Prediction.of(score, language) for (language, _), score in zip(said, scores, strict=True)]
    labels = {head: scorer.info.labels[head] for head in HEADS}
    return measure(once * MINIMUM, labels)


def main(directory: str) -> None:
    place = Path(directory)

    def seconds(name: str) -> float:
        try:
            return float((place / name).read_text() or 0)
        except OSError:
            return 0.0

    class Faulty(StubScorer):
        def __init__(self) -> None:
            super().__init__()
            self.info = replace(self.info, reference=reference_of_the_load(StubScorer()))

        def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
            while (place / "stuck").exists():
                time.sleep(0.1)
            return super().tokenize(texts)

        def infer(self, batch: Sequence[Sequence[int]]) -> list[Score]:
            while (place / "sleep").exists():
                time.sleep(0.1)
            time.sleep(seconds("delay") + seconds("slow") * len(batch))
            poison = [index for index, ids in enumerate(batch) if ord(POISON) in ids]
            if poison:
                raise InferenceError("a text that this model cannot take", poison)
            if (place / "fail").exists() and len(batch) > 1:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
            if (place / "break").exists() and len(batch) > 1:
                raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
            scores = super().infer(batch)
            if (place / "angry").exists():
                scores = [replace(ANGRY, confidence=score.confidence) for score in scores]
            return scores

    def load(_settings: Settings) -> Scorer:
        return Faulty()

    worker.load_scorer = load
    from stream_sentiment.cli.main import main as cli

    sys.argv = ["stream-sentiment", *sys.argv[1:]]
    cli()
