"""Input ranges of every linear layer, for static int8 activations.

In: a network and token ids of real messages of every language. Out: smallest and largest input value by layer
name. Blocks on a few hundred forward passes. Plain minimum and maximum: clipping outliers at the 99.9th
percentile cost accuracy when it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stream_sentiment.scoring.scorer import pad
from stream_sentiment.training.network import Linear, SentimentNetwork

MINIMUM_MESSAGES = 300


def activation_ranges(
    network: SentimentNetwork, ids: Sequence[Sequence[int]], batch: int = 16
) -> dict[str, tuple[float, float]]:
    """Ranges by the names that `graph.build` expects (`layers.0.qkv`, ...). Padding is left out by batching
    equal lengths.
    """
    ranges: dict[str, tuple[float, float]] = {}

    def observe(name: str) -> Any:
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            low, high = ranges.get(name, (0.0, 0.0))
            ranges[name] = (min(low, float(inputs[0].min())), max(high, float(inputs[0].max())))

        return hook

    handles = [
        module.register_forward_pre_hook(observe(name))
        for name, module in network.named_modules()
        if isinstance(module, Linear)
    ]
    before, network.compute_dtype = network.compute_dtype, torch.float32
    device = network.words.weight.device
    try:
        with torch.no_grad():
            for group in _equal_lengths(ids, batch):
                padded = torch.from_numpy(pad(group)).to(device)
                network.pooled(padded, torch.tensor([len(x) for x in group], device=device))
    finally:
        network.compute_dtype = before
        for handle in handles:
            handle.remove()
    return ranges


def _equal_lengths(ids: Sequence[Sequence[int]], batch: int) -> list[list[Sequence[int]]]:
    by_length: dict[int, list[Sequence[int]]] = {}
    for x in ids:
        by_length.setdefault(len(x), []).append(x)
    return [group[i : i + batch] for group in by_length.values() for i in range(0, len(group), batch)]
