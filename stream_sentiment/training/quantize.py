"""Input ranges of every linear layer, for static int8 activations.

In: a network and token ids of real messages of every language. Out: an `InputRange` by layer name. Blocks on a few hundred forward
passes. Plain minimum and maximum: clipping outliers at the 99.9th percentile cost accuracy when it was measured.

A few channels of a BERT body are ten times as large as the rest, and one step of 256 has to span them. So the input of a layer that
follows a LayerNorm or a GELU is divided by a factor per channel and its weights are multiplied by it, which changes nothing but the
rounding (SmoothQuant, Xiao et al. 2022: factor = largest input ^ a / largest weight ^ (1 - a)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stream_sentiment.scoring.scorer import pad
from stream_sentiment.training.network import InputRange, Linear, SentimentNetwork

MINIMUM_MESSAGES = 300


SMOOTHING = 0.85
"""How much of the unevenness moves from the input into the weights; 0 none, 1 all of it."""

UNSMOOTHED = "attention_out"
"""Attention's output has no outlier channels; dividing it would cost a step of its own for nothing."""


def activation_ranges(
    network: SentimentNetwork, ids: Sequence[Sequence[int]], batch: int = 16, smoothing: float = SMOOTHING
) -> dict[str, InputRange]:
    """Ranges by the names that `graph.build` expects (`layers.0.qkv`, ...). Padding is left out by batching
    equal lengths.
    """
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    modules = {name: module for name, module in network.named_modules() if isinstance(module, Linear)}

    def observe(name: str) -> Any:
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            flat = inputs[0].reshape(-1, inputs[0].shape[-1])
            low, high = flat.min(0).values, flat.max(0).values
            if name in seen:
                low, high = torch.minimum(low, seen[name][0]), torch.maximum(high, seen[name][1])
            seen[name] = (low, high)

        return hook

    handles = [module.register_forward_pre_hook(observe(name)) for name, module in modules.items()]
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
    out = {}
    for name, (low, high) in seen.items():
        factor = None
        if smoothing and not name.endswith(UNSMOOTHED):
            largest = torch.maximum(low.abs(), high.abs()).clamp_min(1e-3)
            weights = modules[name].weight.detach().abs().amax(dim=0).clamp_min(1e-3)
            raw = largest**smoothing / weights ** (1.0 - smoothing)
            factor = raw / raw.log().mean().exp()
            low, high = low / factor, high / factor
        smooth = None if factor is None else factor.cpu().numpy().astype(np.float32)
        out[name] = InputRange(float(low.min()), float(high.max()), smooth)
    return out


def _equal_lengths(ids: Sequence[Sequence[int]], batch: int) -> list[list[Sequence[int]]]:
    by_length: dict[int, list[Sequence[int]]] = {}
    for x in ids:
        by_length.setdefault(len(x), []).append(x)
    return [group[i : i + batch] for group in by_length.values() for i in range(0, len(group), batch)]
