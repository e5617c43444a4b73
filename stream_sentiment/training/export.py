"""A trained run to a bundle: ONNX graph, calibration, golden set, manifest.

In: a run directory, dev rows (for share, temperatures, thresholds), calibration rows (for int8 ranges),
golden texts. Out: a bundle directory, written beside its final place and moved there at the end. Blocks on a
few thousand forward passes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stream_sentiment import __version__
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.bundle import FORMAT, GOLDEN, MANIFEST, TOKENIZER, read_manifest
from stream_sentiment.scoring.heads import HeadKind
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.scoring.text import TEXT_PREPARATION
from stream_sentiment.scoring.tokenizer import TextTokenizer
from stream_sentiment.training import calibrate, evaluate, graph, metrics
from stream_sentiment.training.data import NO_NEUTRAL, Row, targets_of
from stream_sentiment.training.network import SentimentNetwork
from stream_sentiment.training.predict import MINIMUM_LABELLED, split_logits
from stream_sentiment.training.quantize import MINIMUM_MESSAGES, activation_ranges
from stream_sentiment.training.train import load_network

MODEL_FILE = "model.{precision}.onnx"
WEIGHTS = "model.safetensors"
NETWORK = "network.json"
GOLDEN_TOLERANCE = 0.05
"""Logits of the golden set may differ by this on another CPU: int8 products are exact, LayerNorm and softmax
are not.
"""


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What goes into a bundle besides the weights."""

    name: str
    version: str
    dev: Sequence[Sequence[Row]]  # sets of equal weight
    calibration: Sequence[Row]
    golden: Sequence[str]
    data: Sequence[Mapping[str, Any]] = field(default_factory=list)
    share: Mapping[str, float] = field(default_factory=dict)  # by head, instead of the fitted ones
    weights: bool = False  # the fp16 weights beside the graph, so that others can fine-tune


def export(run: Path, out: Path, request: ExportRequest) -> dict[str, Any]:
    """Write the bundle and return its manifest."""
    network = load_network(run)
    network.eval()
    tokenizer = TextTokenizer((run / TOKENIZER).read_bytes(), network.config.max_positions)
    share = fit_shares(network, tokenizer, request.dev) | dict(request.share)
    ids = [t.ids for t in tokenizer.tokenize(evaluate.texts_of(request.calibration))]
    if len(ids) < MINIMUM_MESSAGES:
        raise ConfigurationError(
            f"{len(ids)} calibration messages; give at least {MINIMUM_MESSAGES}, of every language"
        )
    model = graph.build(network, activation_ranges(network, ids), share).SerializeToString()

    draft = out.with_name(out.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    precision = "int8"
    file = MODEL_FILE.format(precision=precision)
    (draft / file).write_bytes(model)
    shutil.copyfile(run / TOKENIZER, draft / TOKENIZER)
    (draft / GOLDEN).write_text("{}\n", "utf-8")
    if request.weights:
        for name in (WEIGHTS, NETWORK):
            shutil.copyfile(run / name, draft / name)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "name": request.name,
        "version": request.version,
        "code_version": __version__,
        "languages": sorted({r.lang for rows in request.dev for r in rows if r.lang}),
        "text_preparation": TEXT_PREPARATION,
        "max_tokens": network.config.max_positions,
        "tokenizer": TOKENIZER,
        "pooling": "mean",
        "network": network.config.to_json(),
        "wide_share": share,
        "heads": [_head(h.name, h.kind, h.labels) for h in network.head_specs],
        "precisions": {precision: {"file": file, "golden_tolerance": GOLDEN_TOLERANCE}},
        "calibration_messages": len(ids),
        "files": {},
        # Needed for fine-tuning only; a wheel or an image may leave them out.
        "optional": [WEIGHTS, NETWORK] if request.weights else [],
        "data": list(request.data),
        "metrics": {},
    }
    write_manifest(draft, manifest)
    _calibrate(draft, manifest, request.dev)
    _write_golden(draft, manifest, request.golden)
    shutil.rmtree(out, ignore_errors=True)
    draft.rename(out)
    return manifest


def fit_shares(network: SentimentNetwork, tokenizer: TextTokenizer, dev: Sequence[Sequence[Row]]) -> dict[str, float]:
    """The shortcut's share of each softmax head, and of the signals that of the polarity; none for intensity."""
    if network.wide is None:
        return {}
    network.compute_dtype = torch.bfloat16  # eight candidates far apart: the last digits of the logits do not choose
    sets: dict[str, list[tuple[Any, Any, Any]]] = {}
    for rows in dev:
        deep, wide = split_logits(network, [t.ids for t in tokenizer.tokenize(evaluate.texts_of(rows))], rows)
        targets = targets_of(rows, network.head_specs)
        for head in network.head_specs:
            if head.kind is not HeadKind.SOFTMAX:
                continue
            live = targets[head.name] >= 0
            if live.mean() >= MINIMUM_LABELLED:
                z = deep[head.name].copy()
                if head.name == "polarity":
                    z[[r.binary for r in rows], head.labels.index("neutral")] = NO_NEUTRAL
                sets.setdefault(head.name, []).append((z[live], wide[head.name][live], targets[head.name][live]))
    out = {name: calibrate.fit_share(found) for name, found in sets.items()}
    if "signals" in network.heads:
        out["signals"] = out.get("polarity", 0.0)
    return out


def _calibrate(folder: Path, manifest: dict[str, Any], dev: Sequence[Sequence[Row]]) -> None:
    """Fit temperatures, thresholds and the abstain band on the logits of the file that is served."""
    scorer = OnnxScorer.load(folder, device="cpu")
    logits = [evaluate.logits_of(scorer, evaluate.texts_of(rows)) for rows in dev]
    at = 0
    for entry, spec in zip(manifest["heads"], scorer.bundle.heads, strict=True):
        head, columns = spec.head, slice(at, at + spec.head.width)
        at += head.width
        targets = [targets_of(rows, [head])[head.name] for rows in dev]
        if head.kind is HeadKind.SOFTMAX:
            sets = []
            for rows, z, y in zip(dev, logits, targets, strict=True):
                live = y >= 0
                if live.mean() >= MINIMUM_LABELLED:
                    part = z[:, columns].copy()
                    if head.name == "polarity":
                        part[[r.binary for r in rows], head.labels.index("neutral")] = NO_NEUTRAL
                    sets.append((part[live], y[live]))
            entry["temperature"] = calibrate.fit_temperature(sets)
            if head.name == "polarity":
                p = np.concatenate([calibrate.head_probability(z, entry["temperature"]) for z, _ in sets])
                entry["abstain_below"] = calibrate.fit_abstain(p, np.concatenate([y for _, y in sets]))
        elif head.kind is HeadKind.SIGMOID:
            z = np.concatenate([x[:, columns] for x in logits])
            y = np.concatenate(targets)
            live = ~np.isnan(y[:, 0])
            if live.any():
                gold = y[live] > 0.5
                entry["temperature"] = calibrate.fit_binary_temperature(z[live], gold)
                probability = metrics.sigmoid(z[live] / entry["temperature"])
                kept = [row for row, alive in zip((r for rows in dev for r in rows), live, strict=True) if alive]
                lexicon = evaluate.heard(scorer, kept, probability, head.labels, "lexicon")
                entry["thresholds"] = calibrate.fit_thresholds(probability, gold, lexicon)
    write_manifest(folder, manifest)


def _write_golden(folder: Path, manifest: dict[str, Any], texts: Sequence[str]) -> None:
    """Texts with the logits of each variant, one at a time: what `verify` and a hot swap compare with."""
    scorer = OnnxScorer.load(folder, device="cpu")
    tokens = scorer.tokenize(texts)
    items = []
    for text, token in zip(texts, tokens, strict=True):
        score = scorer.infer([token.ids])[0]
        items.append(
            {
                "text": text,
                "ids": token.ids,
                "polarity": score.label,
                "emotion": score.emotion_label,
                "logits": {scorer.info.precision: [round(float(v), 6) for v in scorer.logits([token.ids])[0]]},
            }
        )
    (folder / GOLDEN).write_text(json.dumps({"items": items}, ensure_ascii=False, indent=0) + "\n", "utf-8")
    write_manifest(folder, manifest)


def record_metrics(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the reports of `evaluate.report` into the manifest, by file name; confusion tables are left out."""
    manifest = read_manifest(folder)
    sets = manifest["metrics"].setdefault("sets", {})
    for name, result in results.items():
        sets[name] = {head: _rounded(value) for head, value in result.items()}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items() if k != "confusion"}
    return round(value, 4) if isinstance(value, float) else value


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """`manifest.json` with size and sha256 of every file of the folder."""
    files = {}
    for file in sorted(folder.iterdir()):
        if file.name not in (MANIFEST, "MODEL_CARD.md") and file.is_file():
            content = file.read_bytes()
            files[file.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"] = files
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _head(name: str, kind: HeadKind, labels: tuple[str, ...]) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "kind": kind.value, "labels": list(labels), "temperature": 1.0}
    if kind is HeadKind.SIGMOID:
        entry["thresholds"] = [0.5] * len(labels)
    if name == "polarity":
        entry["abstain_below"] = 0.0
    return entry
