"""The n-gram shortcut of a finished run: its table and its gate, what `model shortcut` does.

In: a run directory, rows of the texts it is to serve, rows of other texts. Out: a run directory with the same encoder and a new
shortcut. Blocks for a minute or two. Raises `ConfigurationError`.

The table knows which n-grams of service chats mean what; on microblogs or reviews the same n-grams mislead. The gate weights it, text
by text, by how much the text reads like a service chat.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from stream_sentiment.training.data import Encoder, Row, fill_placeholders, prepared
from stream_sentiment.training.network import SentimentNetwork, word_parts
from stream_sentiment.training.train import load_network, save_network
from stream_sentiment.training.wide import WideSettings, fit_gate, fit_wide

BUCKETS = 131_072


def fit_shortcut(
    run: Path,
    out: Path,
    own: Sequence[Row],
    other: Sequence[Row],
    progress: Callable[[int, float], None] | None = None,
    settings: WideSettings | None = None,
) -> float:
    """Fit and write; returns how many texts the gate puts on the right side, 1.0 when `other` is empty and there is no gate."""
    import numpy as np

    old = load_network(run)
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    config = replace(old.config, wide_buckets=BUCKETS, wide_gate=bool(other))
    network = SentimentNetwork(config, old.head_specs)
    kept = {k: v for k, v in old.state_dict().items() if not k.startswith(("wide.", "parts", "prints", "gate."))}
    network.load_state_dict(network.state_dict() | kept)
    network.parts.copy_(word_parts(tokenizer.get_vocab(), config.vocab_size))
    network.compute_dtype = torch.bfloat16
    network.eval()
    encoder = Encoder(tokenizer, config.max_positions)
    rng = np.random.default_rng(0)

    def ids_of(rows: Sequence[Row]) -> list[list[int]]:
        return encoder.encode([prepared(fill_placeholders(row.text, rng)) for row in rows])

    own_ids = ids_of(own)
    fit_wide(network, own, own_ids, settings or WideSettings(), progress=progress)
    right = fit_gate(network, own_ids, ids_of(other)) if other else 1.0
    out.mkdir(parents=True, exist_ok=True)
    network.compute_dtype = torch.float32
    save_network(network, out)
    if run != out:
        shutil.copyfile(run / "tokenizer.json", out / "tokenizer.json")
    return right
