"""The ONNX graph of a trained network, built node by node from its weights.

In: a `SentimentNetwork`, the calibrated input ranges of its linear layers (static int8) or none (fp32). Out:
an onnx `ModelProto` with one input `input_ids` (batch x length, int64, 0 = padding) and one output `logits`
(batch x sum of head widths, fp32). Pure.

Built by hand because pattern fusion in exporters fails silently, and because the exact operators matter on
CPU: quantised products with static scales, no fused SkipLayerNormalization, one QuantizeLinear for Q, K and
V.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from stream_sentiment.training.network import (
    GATE_SLOPE,
    HASH_FIRST,
    HASH_SECOND,
    HASH_SKIP,
    HASH_TOKEN,
    InputRange,
    Layer,
    SentimentNetwork,
)

MICROSOFT = "com.microsoft"
OPSET = 18

# A sum of fp32 values depends on its order, and padding and batch size change the order. So the two sums
# after the last layer run over values that fp32 adds exactly: a last-layer output is a multiple of 2**-10
# below 2**4, and 96 of them stay below 2**11 (21 of 24 bits); a pooled value is a multiple of 2**-8, a head
# weight of 2**-11, and their sums stay below 2**5 (24 bits). The rounding costs a logit at most a few
# thousandths, less than int8 does, and a score becomes the same number in any batch.
TOKEN_STEP = 2.0**10
POOLED_STEP = 2.0**8
WEIGHT_STEP = 2.0**11

Ranges = Mapping[str, InputRange]


class GraphBuilder:
    """Nodes and initialisers; constants of equal value are kept once."""

    def __init__(self, *, half: bool = False) -> None:
        self.nodes: list[Any] = []
        self.initialisers: list[Any] = []
        self.half = half  # the encoder's arithmetic in fp16
        self._known: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def const(self, value: npt.NDArray[Any] | np.generic) -> str:
        array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = f"c{len(self._known)}"
            self._known[key] = name
            self.initialisers.append(numpy_helper.from_array(array, name))
        return self._known[key]

    def weight(self, value: npt.NDArray[np.float32]) -> str:
        """A weight of the encoder, in the type of its arithmetic."""
        return self.const(value.astype(np.float16) if self.half else value)

    def op(self, kind: str, inputs: Sequence[str], outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [f"n{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names


def build(
    network: SentimentNetwork, ranges: Ranges | None, wide_share: Mapping[str, float], *, half: bool = False
) -> onnx.ModelProto:
    """The whole graph. `wide_share`: weight of the shortcut in each head's sum; 0 for all leaves it out. `half`: the encoder in
    fp16, for CUDA; what comes after its last layer stays fp32.
    """
    g = GraphBuilder(half=half)
    config = network.config
    ids = "input_ids"
    keep = g.op("Cast", [g.op("Not", [g.op("Equal", [ids, g.const(np.int64(0))])])], to=TensorProto.INT32)
    keep_float = g.op("Cast", [keep], to=TensorProto.FLOAT)
    count = g.op("ReduceSum", [keep_float, g.const(np.array([1], np.int64))], keepdims=1)

    x = g.op("Add", [_words(g, network, ids, quantised=ranges is not None), _positions(g, network, ids)])
    x = _norm(g, x, network.embedding_norm)
    for index, layer in enumerate(network.layers):
        assert isinstance(layer, Layer)
        x = _layer(g, layer, x, keep, ranges, f"layers.{index}.", config.num_heads)

    if half:
        x = str(g.op("Cast", [x], to=TensorProto.FLOAT))
    axis = g.const(np.array([2], np.int64))
    whole = g.op("Round", [g.op("Mul", [x, g.const(np.float32(TOKEN_STEP))])])
    masked = g.op("Mul", [whole, g.op("Unsqueeze", [keep_float, axis])])
    total = g.op("ReduceSum", [masked, g.const(np.array([1], np.int64))], keepdims=0)
    mean = g.op("Div", [total, g.op("Mul", [count, g.const(np.float32(TOKEN_STEP / POOLED_STEP))])])
    pooled = g.op("Mul", [g.op("Round", [mean]), g.const(np.float32(1.0 / POOLED_STEP))])
    heads = [network.head(h.name) for h in network.head_specs]
    weight = np.concatenate([_array(h.weight) for h in heads])
    bias = np.concatenate([_array(h.bias) for h in heads])
    weight = np.round(weight * WEIGHT_STEP) / np.float32(WEIGHT_STEP)
    # The bias is added afterwards: it is no multiple of the step.
    logits = g.op("Add", [g.op("MatMul", [pooled, g.const(weight.T)]), g.const(bias)])
    shares = np.concatenate([np.full(h.width, wide_share.get(h.name, 0.0), np.float32) for h in network.head_specs])
    if network.wide is not None and shares.any():
        wide = _wide(g, network, ids, keep, count, shares)
        logits = g.op(
            "Add", [logits, wide if network.gate is None else g.op("Mul", [wide, _gate(g, network.gate, pooled)])]
        )
    g.nodes[-1].output[0] = "logits"

    graph = helper.make_graph(
        g.nodes,
        "stream_sentiment",
        [helper.make_tensor_value_info(ids, TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(bias)])],
        g.initialisers,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, producer_name="stream-sentiment", ir_version=10)
    described = [[h.name, h.kind.value, list(h.labels)] for h in network.head_specs]
    helper.set_model_props(model, {"heads": json.dumps(described)})
    return model


def _gate(g: GraphBuilder, gate: torch.nn.Linear, pooled: str) -> str:
    """`SentimentNetwork.gate_of`; its weights are on the step of the heads, so that the sum is exact."""
    weight = np.round(_array(gate.weight) * WEIGHT_STEP) / np.float32(WEIGHT_STEP)
    z = g.op("Add", [g.op("MatMul", [pooled, g.const(weight.T)]), g.const(_array(gate.bias))])
    straight = g.op("Add", [g.op("Mul", [z, g.const(np.float32(GATE_SLOPE))]), g.const(np.float32(0.5))])
    return str(g.op("Clip", [straight, g.const(np.float32(0.0)), g.const(np.float32(1.0))]))


def quantise_columns(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """inputs x outputs fp32 to symmetric int8 with one scale per output channel."""
    scale = np.maximum(np.abs(weight).max(axis=0), 1e-8) / 127.0
    return np.clip(np.round(weight / scale), -127, 127).astype(np.int8), scale.astype(np.float32)


def _layer(g: GraphBuilder, layer: Layer, x: str, keep: str, ranges: Ranges | None, prefix: str, num_heads: int) -> str:
    qkv = _linear(g, layer.qkv, x, ranges, prefix + "qkv")
    query, key, value = g.op("Split", [qkv], outputs=3, axis=-1, num_outputs=3)
    context = g.op("MultiHeadAttention", [query, key, value, "", keep], domain=MICROSOFT, num_heads=num_heads)
    attended = _linear(g, layer.attention_out, context, ranges, prefix + "attention_out")
    x = _norm(g, g.op("Add", [attended, x]), layer.attention_norm)
    inner = _linear(g, layer.up, x, ranges, prefix + "up")
    # The tanh form is 5 % faster than erf and moves a logit by at most 3e-4.
    inner = g.op("FastGelu", [inner], domain=MICROSOFT)
    return _norm(g, g.op("Add", [_linear(g, layer.down, inner, ranges, prefix + "down"), x]), layer.output_norm)


def _linear(g: GraphBuilder, module: torch.nn.Linear, x: str, ranges: Ranges | None, name: str) -> str:
    weight, bias = _array(module.weight), _array(module.bias)
    if ranges is None or name not in ranges:
        return str(g.op("Add", [g.op("MatMul", [x, g.weight(weight.T)]), g.weight(bias)]))
    found = ranges[name]
    if found.smooth is not None:
        x = g.op("Mul", [x, g.const((1.0 / found.smooth).astype(np.float32))])
        weight = weight * found.smooth
    low, high = min(found.low, 0.0), max(found.high, 0.0)  # zero must be a representable value
    scale = np.float32((high - low) / 255.0)
    scale_name, zero_name = g.const(scale), g.const(np.uint8(np.clip(round(-low / float(scale)), 0, 255)))
    quantised = g.op("QuantizeLinear", [x, scale_name, zero_name])
    columns, column_scale = quantise_columns(weight.T)
    inputs = [quantised, g.const(columns), scale_name, g.const(column_scale), zero_name]
    return str(
        g.op(
            "MatMulIntegerToFloat",
            [*inputs, g.const(np.zeros(columns.shape[1], np.int8)), g.const(bias)],
            domain=MICROSOFT,
        )
    )


def _norm(g: GraphBuilder, x: str, module: torch.nn.LayerNorm) -> str:
    return str(
        g.op(
            "LayerNormalization",
            [x, g.weight(_array(module.weight)), g.weight(_array(module.bias))],
            axis=-1,
            epsilon=module.eps,
        )
    )


def _words(g: GraphBuilder, network: SentimentNetwork, ids: str, *, quantised: bool) -> str:
    table = _array(network.words.weight)
    if not quantised:
        return str(g.op("Gather", [g.weight(table), ids]))
    # One scale per row: 46 k x 384 fp32 would be 71 MB, int8 is 18 MB.
    scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), 1e-8) / 127.0
    rows = np.clip(np.round(table / scale), -127, 127).astype(np.int8)
    values = g.op("Cast", [g.op("Gather", [g.const(rows), ids])], to=TensorProto.FLOAT)
    return str(g.op("Mul", [values, g.op("Gather", [g.const(scale.astype(np.float32)), ids])]))


def _positions(g: GraphBuilder, network: SentimentNetwork, ids: str) -> str:
    length = g.op("Slice", [g.op("Shape", [ids]), *(g.const(np.array([v], np.int64)) for v in (1, 2, 0))])
    begin, axis = g.const(np.array([0], np.int64)), g.const(np.array([0], np.int64))
    return str(g.op("Slice", [g.weight(_array(network.positions)), begin, length, axis]))


def _wide(
    g: GraphBuilder, network: SentimentNetwork, ids: str, keep: str, count: str, shares: npt.NDArray[np.float32]
) -> str:
    """`SentimentNetwork.wide_sum` in integers: int8 rows, int32 sums (exact in any order), one scale per column."""
    assert network.wide is not None
    columns, scale = quantise_columns(_array(network.wide.weight))
    keys, live = _ngrams(g, network, ids, keep)
    size = g.const(np.int64(network.config.wide_buckets))
    buckets = g.op("Mod", [keys, size])
    one = g.const(np.int64(1))
    expected = g.op("Add", [g.op("Mod", [g.op("Div", [keys, size]), g.const(np.int64(255))]), one])
    prints = g.op("Cast", [g.op("Gather", [g.const(network.prints.numpy()), buckets])], to=TensorProto.INT64)
    owned = g.op("Cast", [g.op("Equal", [prints, expected])], to=TensorProto.INT32)
    rows = g.op("Cast", [g.op("Gather", [g.const(columns), buckets])], to=TensorProto.INT32)
    counted = g.op("Unsqueeze", [g.op("Mul", [live, owned]), g.const(np.array([2], np.int64))])
    total = g.op("ReduceSum", [g.op("Mul", [rows, counted]), g.const(np.array([1], np.int64))], keepdims=0)
    scaled = g.op("Mul", [g.op("Cast", [total], to=TensorProto.FLOAT), g.const(scale * shares)])
    return str(g.op("Div", [scaled, g.op("Sqrt", [count])]))


def _ngrams(g: GraphBuilder, network: SentimentNetwork, ids: str, keep: str) -> tuple[str, str]:
    """`network.ngrams` as nodes: keys (int64) and 1 where they are real (int32), batch x n each."""

    def cut(name: str, begin: int, end: int, axis: int = 1) -> str:
        return str(g.op("Slice", [name, *(g.const(np.array([v], np.int64)) for v in (begin, end, axis))]))

    def times(name: str, factor: int) -> str:
        return str(g.op("Mul", [name, g.const(np.int64(factor))]))

    def flat(name: str) -> str:
        return str(g.op("Reshape", [name, g.const(np.array([0, -1], np.int64))]))

    far = np.iinfo(np.int64).max
    zero = g.const(np.int64(0))
    table = network.parts.numpy()
    first = np.where(table[:, 0] != 0, table[:, 0], np.arange(len(table)))
    count = (table != 0).sum(axis=1)
    last = np.where(count != 0, table[np.arange(len(table)), np.maximum(count - 1, 0)], np.arange(len(table)))
    # int32 tables: 46 k x 6 ids as int64 would be 2 MB.
    pieces = g.op("Cast", [g.op("Gather", [g.const(table.astype(np.int32)), ids])], to=TensorProto.INT64)
    ends = np.stack([first, last], axis=1).astype(np.int32)
    both = g.op("Cast", [g.op("Gather", [g.const(ends), ids])], to=TensorProto.INT64)
    axis2 = g.const(np.array([2], np.int64))
    first_ids = g.op("Squeeze", [cut(both, 0, 1, 2), axis2])
    last_ids = g.op("Squeeze", [cut(both, 1, 2, 2), axis2])
    inside = g.op("Cast", [g.op("Not", [g.op("Equal", [pieces, zero])])], to=TensorProto.INT32)
    tokens = times(ids, HASH_FIRST)
    characters = times(pieces, HASH_FIRST)
    within = g.op("Add", [cut(characters, 0, -1, 2), times(cut(pieces, 1, far, 2), HASH_SECOND)])
    across = g.op("Add", [times(cut(last_ids, 0, -1), HASH_FIRST), times(cut(first_ids, 1, far), HASH_SECOND)])
    pair = g.op("Add", [cut(tokens, 0, -1), times(cut(ids, 1, far), HASH_TOKEN)])
    skip = g.op("Add", [cut(tokens, 0, -2), times(cut(ids, 2, far), HASH_SKIP)])
    later = cut(keep, 1, far)
    keys = g.op("Concat", [tokens, flat(characters), flat(within), across, pair, skip], axis=1)
    live = g.op("Concat", [keep, flat(inside), flat(cut(inside, 1, far, 2)), later, later, cut(keep, 2, far)], axis=1)
    return str(keys), str(live)


def _array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(tensor.detach().float().numpy())
