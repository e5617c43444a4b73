"""One fine-tuning run from start to finished run directory: what `model train` does.

In: a `Job`. Out: the log of its rounds; the run directory also holds `curves.png`. Blocks for the whole run.
Raises `ConfigurationError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from stream_sentiment.training.data import Row, prepared
from stream_sentiment.training.evaluate import texts_of
from stream_sentiment.training.predict import dev_scores
from stream_sentiment.training.train import (
    Progress,
    Trainer,
    TrainSettings,
    save_network,
    start_network,
    write_config,
)
from stream_sentiment.training.wide import WideSettings, fit_wide, sample_rows

Sources = Sequence[tuple[str, list[Row], float]]
"""Name, rows, passes."""


@dataclass(frozen=True, slots=True)
class Job:
    """What to train from, on, and where to."""

    start: Path
    out: Path
    settings: TrainSettings
    sources: Sources
    dev: Mapping[str, Sequence[Row]]


def finetune(job: Job, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train, or go on with an unfinished run."""
    torch.set_num_threads(job.settings.threads)
    network, tokenizer = start_network(job.start, job.settings)
    described = [{"files": name, "rows": len(rows), "passes": passes} for name, rows, passes in job.sources]
    write_config(job.out, job.settings, job.start, described)
    (job.out / "tokenizer.json").write_bytes(tokenizer)
    trainer = Trainer(job.out, job.settings, Tokenizer.from_buffer(tokenizer), network)

    def evaluate() -> dict[str, float]:
        return dev_scores(network, trainer.encoder, job.dev)

    sources = [(rows, passes) for _, rows, passes in job.sources]
    log = trainer.train(sources, evaluate if job.dev else None, progress)
    # A bundle brings its table along: a few hundred rows of one's own could not replace what it was fitted on.
    if network.wide is not None and not bool(network.prints.any()):
        rows = sample_rows(sources, job.settings.seed)
        ids = trainer.encoder.encode([prepared(text) for text in texts_of(rows)])
        fit_wide(network, rows, ids, WideSettings(), progress=lambda done, _loss: _tell(progress, done))
    save_network(network, job.out)
    draw_curves(log, job.out / "curves.png")
    return log


def _tell(progress: Progress | None, done: int) -> None:
    if progress is not None:
        progress(min(done, WideSettings().iterations), WideSettings().iterations, "shortcut of n-grams")


def draw_curves(log: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Training losses and dev macro-F1 by round."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rounds = [entry["round"] for entry in log]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for name in log[0]["loss"] if log else ():
        left.plot(rounds, [entry["loss"][name] for entry in log], marker="o", label=name)
    for name in log[0].get("dev", {}) if log else ():
        right.plot(rounds, [entry["dev"][name] for entry in log], marker="o", label=name)
    for axes, title in ((left, "training loss"), (right, "dev macro-F1")):
        axes.set_title(title)
        axes.set_xlabel("round")
        if axes.lines:
            axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
