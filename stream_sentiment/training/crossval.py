"""What a bundle reaches on your own labels: trained and tested in folds that never split a conversation.

In: a bundle with weights (or a run), and a file whose rows name their group. Out: out-of-fold macro-F1 of the bundle trained on the
other folds, of the n-gram baseline trained on the same, and of the bundle as it is. `linear` trains a logistic regression on the frozen
encoder's mean vector, its logits and n-grams: seconds. `finetune` trains the whole network: minutes a fold. Raises
`ConfigurationError`. Turns of one conversation repeat each other's words: a split by message would test on what it has seen.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.bundle import MANIFEST, TOKENIZER, read_manifest
from stream_sentiment.training.baselines import NgramClassifier
from stream_sentiment.training.data import Encoder, Row, batches, prepared, read_rows
from stream_sentiment.training.evaluate import texts_of
from stream_sentiment.training.finetune import Job, finetune
from stream_sentiment.training.metrics import macro_f1
from stream_sentiment.training.predict import TOKENS, split_logits
from stream_sentiment.training.train import TrainSettings, load_network

Method = Literal["linear", "finetune"]

SEED = 3
BODY_RATE = 5e-5
ROUNDS = 2


def crossval(
    start: Path,
    path: Path,
    *,
    group: str,
    head: str = "polarity",
    folds: int = 5,
    method: Method = "linear",
    passes: float = 3.0,
    threads: int = 2,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> dict[str, Any]:
    """`{rows, groups, folds, head, method, this model, n-grams, before}`, figures in %. `passes`: of `finetune`."""
    rows, names = read_grouped(path, group, head)
    fold_of = split(names, folds)
    share = _share(start, head)
    network = load_network(start)
    labels = next(spec.labels for spec in network.head_specs if spec.name == head)
    gold = np.array([labels.index(getattr(row, head)) for row in rows])
    texts = texts_of(rows)
    said = {name: np.zeros(len(rows), np.int64) for name in ("this model", "n-grams", "before")}
    said["before"][:] = _logits(network, start, rows, head, share).argmax(axis=1)
    features = _features(network, start, rows) if method == "linear" else None
    for fold in range(folds):
        progress(fold, folds, f"fold {fold + 1} of {folds}")
        kept, held = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        known, unknown = [texts[at] for at in kept], [texts[at] for at in held]
        if features is not None:
            probe = NgramClassifier(labels).fit(known, gold[kept], features[kept])
            said["this model"][held] = probe.logits(unknown, features[held]).argmax(axis=1)
        else:
            settings = TrainSettings(
                rounds=ROUNDS, body_rate=BODY_RATE, average_last=1, threads=threads, seed=SEED + fold
            )
            test = [rows[at] for at in held]
            with tempfile.TemporaryDirectory(prefix="crossval-") as folder:
                run = Path(folder)
                finetune(Job(start, run, settings, [(path.name, [rows[at] for at in kept], passes)], {}))
                said["this model"][held] = _logits(load_network(run), run, test, head, share).argmax(axis=1)
        baseline = NgramClassifier(labels).fit(known, gold[kept])
        said["n-grams"][held] = baseline.logits(unknown).argmax(axis=1)
    progress(folds, folds, "done")
    figures = {name: round(100 * macro_f1(gold, guess, labels), 2) for name, guess in said.items()}
    return {"rows": len(rows), "groups": len(set(names)), "folds": folds, "head": head, "method": method, **figures}


def read_grouped(path: Path, group: str, head: str) -> tuple[list[Row], list[str]]:
    """Rows that have a label of the head, and each one's group."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        names = [json.loads(line).get(group) for line in file if line.strip()]
    rows = read_rows(path)
    if any(name is None for name in names):
        raise ConfigurationError(
            f"{path}: a row has no {group!r}; --group names the field that says what belongs together"
        )
    pairs = [(row, str(name)) for row, name in zip(rows, names, strict=True) if getattr(row, head, None) is not None]
    if not pairs:
        raise ConfigurationError(f"{path}: no row has a label of the head {head}")
    return [row for row, _ in pairs], [name for _, name in pairs]


def split(names: Sequence[str], folds: int) -> npt.NDArray[np.int64]:
    """The fold of each row; rows of one name are in one fold. Raises ConfigurationError for fewer names than folds."""
    groups = sorted(set(names))
    if len(groups) < folds:
        raise ConfigurationError(f"{len(groups)} groups cannot make {folds} folds")
    order = np.random.default_rng(SEED).permutation(len(groups))
    fold_of = {groups[at]: place % folds for place, at in enumerate(order.tolist())}
    return np.array([fold_of[name] for name in names])


def _logits(network: Any, folder: Path, rows: Sequence[Row], head: str, share: float) -> npt.NDArray[np.floating]:
    encoder = Encoder(Tokenizer.from_file(str(folder / TOKENIZER)), network.config.max_positions)
    network.eval()
    ids = encoder.encode([prepared(text) for text in texts_of(rows)])
    deep, wide = split_logits(network, ids, rows)
    return deep[head] + share * wide[head]


def _features(network: Any, folder: Path, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
    """The encoder's mean vector and every head's logits, rows x features."""
    encoder = Encoder(Tokenizer.from_file(str(folder / TOKENIZER)), network.config.max_positions)
    network.eval()
    ids = encoder.encode([prepared(text) for text in texts_of(rows)])
    out: npt.NDArray[np.float32] | None = None
    with torch.no_grad():
        for places, batch in batches(rows, ids, network.head_specs, TOKENS, None):
            pooled = network.pooled(torch.from_numpy(batch.ids), torch.from_numpy(batch.lengths))
            parts = [pooled, *(layer(pooled) for layer in network.heads.values())]
            found = torch.cat([part.float() for part in parts], dim=1).numpy()
            out = np.zeros((len(rows), found.shape[1]), np.float32) if out is None else out
            out[places] = found
    assert out is not None
    return out


def _share(start: Path, head: str) -> float:
    """The shortcut's share that the bundle was exported with; none for a run, whose share is not fitted yet."""
    if not (start / MANIFEST).is_file():
        return 0.0
    shares: Mapping[str, float] = read_manifest(start).get("wide_share", {})
    return float(shares.get(head, 0.0))
