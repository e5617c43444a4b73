"""The program of a worker whose stub model can be told to misbehave: `python -c "import ...; main(DIR)" run`.

A file in DIR named `sleep` makes each model run wait until the file is gone; `fail` and `break` make it raise for more than one
message, for want of memory or otherwise. The rest is the real worker.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stream_sentiment import worker
from stream_sentiment.scoring.scorer import Score, Scorer, StubScorer
from stream_sentiment.settings import Settings


def main(directory: str) -> None:
    place = Path(directory)

    class Faulty(StubScorer):
        def infer(self, batch: Sequence[Sequence[int]]) -> list[Score]:
            while (place / "sleep").exists():
                time.sleep(0.1)
            if (place / "fail").exists() and len(batch) > 1:
                raise RuntimeError("Failed to allocate memory for requested buffer of size 1")
            if (place / "break").exists() and len(batch) > 1:
                raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
            return super().infer(batch)

    def load(_settings: Settings) -> Scorer:
        return Faulty()

    worker.load_scorer = load
    from stream_sentiment.cli.main import main as cli

    sys.argv = ["stream-sentiment", *sys.argv[1:]]
    cli()
