"""A weighted mean of trained networks: the cheapest way to keep what two runs from one start have each learnt.

In: run or bundle directories with weights, and a share for each. Out: a run directory that `model export` and `model train --from`
read. Raises `ConfigurationError` when the networks differ in shape, heads or tokenizer. The n-gram shortcut is not averaged: its
buckets belong to n-grams of one fit, so the table of the first network is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.training.train import load_network, save_network

_SHORTCUT = ("wide.", "parts", "prints")


def average_runs(runs: Sequence[tuple[Path, float]], out: Path) -> None:
    """Write the mean of `runs`, each a directory with its share; shares are scaled to sum to 1."""
    total = sum(share for _, share in runs)
    if len(runs) < 2 or total <= 0 or any(share < 0 for _, share in runs):
        raise ConfigurationError("give at least two runs, with shares of 0 or more that are not all 0")
    networks = [load_network(folder) for folder, _ in runs]
    tokenizers = [(folder / "tokenizer.json").read_bytes() for folder, _ in runs]
    first = networks[0]
    for (folder, _), network, tokenizer in zip(runs, networks, tokenizers, strict=True):
        if network.config != first.config or network.head_specs != first.head_specs:
            raise ConfigurationError(f"{folder} has another shape or other heads than {runs[0][0]}")
        if tokenizer != tokenizers[0]:
            raise ConfigurationError(f"{folder} has another tokenizer than {runs[0][0]}")
    states = [network.state_dict() for network in networks]
    mean = {
        name: value
        if name.startswith(_SHORTCUT) or not value.is_floating_point()
        else sum(
            (state[name] * (share / total) for state, (_, share) in zip(states, runs, strict=True)), torch.tensor(0.0)
        )
        for name, value in states[0].items()
    }
    first.load_state_dict(mean)
    out.mkdir(parents=True, exist_ok=True)
    save_network(first, out)
    (out / "tokenizer.json").write_bytes(tokenizers[0])
