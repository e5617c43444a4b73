"""Two models on the same texts: int8 against fp32, and bundle against bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stream_sentiment.scoring.bundle import TOKENIZER
from stream_sentiment.scoring.scorer import OnnxScorer, pad
from stream_sentiment.scoring.tokenizer import TextTokenizer
from stream_sentiment.training import evaluate, graph
from stream_sentiment.training.data import Row
from stream_sentiment.training.quantize import activation_ranges
from stream_sentiment.training.train import load_network


def compare_precisions(run: Path, rows: Sequence[Row], calibration: Sequence[Row]) -> dict[str, Any]:
    """Label agreement and logit error of the static int8 graph against the fp32 graph of the same weights, by
    softmax head.
    """
    network = load_network(run)
    network.eval()
    tokenizer = TextTokenizer((run / TOKENIZER).read_bytes(), network.config.max_positions)
    share = {h.name: 1.0 for h in network.head_specs}
    manifest = run / "share.json"
    if manifest.is_file():
        share = json.loads(manifest.read_text("utf-8"))
    ranges = activation_ranges(network, [t.ids for t in tokenizer.tokenize(evaluate.texts_of(calibration))])
    ids = [t.ids for t in tokenizer.tokenize(evaluate.texts_of(rows))]
    exact = _run(graph.build(network, None, share).SerializeToString(), ids)
    quantised = _run(graph.build(network, ranges, share).SerializeToString(), ids)
    heads, at = {}, 0
    for head in network.head_specs:
        a, b = exact[:, at : at + head.width], quantised[:, at : at + head.width]
        at += head.width
        same = a.argmax(axis=1) == b.argmax(axis=1) if head.width > 1 and head.name != "signals" else (a > 0) == (b > 0)
        error = np.abs(a - b)
        heads[head.name] = {
            "agreement": float(same.mean()),
            "max_error": float(error.max()),
            "mean_error": float(error.mean()),
        }
    return {"rows": len(ids), "heads": {k: v for k, v in heads.items() if k != "intensity"}}


def compare_bundles(first: Path, second: Path, sets: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Macro-F1 of both on every set and head, their mean difference, and the share of polarity labels that agree."""
    scorers = [OnnxScorer.load(path, device="cpu") for path in (first, second)]
    rows_out, agreement, total = [], 0.0, 0
    for name, rows in sets.items():
        logits = [evaluate.logits_of(s, evaluate.texts_of(rows)) for s in scorers]
        reports = [evaluate.report_from_logits(s, rows, z) for s, z in zip(scorers, logits, strict=True)]
        agreement += float((logits[0][:, :3].argmax(axis=1) == logits[1][:, :3].argmax(axis=1)).sum())
        total += len(rows)
        for head in ("polarity", "emotion"):
            if all(head in r for r in reports):
                a, b = (r[head]["macro_f1"] for r in reports)
                rows_out.append({"set": name, "head": head, "first": a, "second": b})
    differences = [r["second"] - r["first"] for r in rows_out]
    return {
        "rows": rows_out,
        "mean_difference": float(np.mean(differences)) if differences else 0.0,
        "agreement": agreement / max(1, total),
    }


def _run(model: bytes, ids: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
    from stream_sentiment.batching import plan_micro_batches
    from stream_sentiment.scoring.runtime import onnxruntime

    ort = onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
    )
    out: dict[int, npt.NDArray[np.float32]] = {}
    for group in plan_micro_batches([len(x) for x in ids], 512):
        logits = session.run(None, {"input_ids": pad([ids[i] for i in group])})[0]
        out.update(zip(group, logits, strict=True))
    return np.stack([out[i] for i in range(len(ids))])
