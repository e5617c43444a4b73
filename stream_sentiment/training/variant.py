"""The fp16 graph of a bundle, for CUDA, built from the weights beside it: what `model variant` does.

In: a bundle with weights. Out: a copy of it with one more precision, `fp16`: the encoder in half precision, pooling, heads and shortcut
in fp32. Blocks for some seconds. Raises `ConfigurationError`. A bundle ships without it: 60 MB that a CPU never reads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.bundle import GOLDEN, load_bundle, read_manifest
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.training import graph
from stream_sentiment.training.export import GOLDEN_TOLERANCE, MODEL_FILE, WEIGHTS, write_manifest
from stream_sentiment.training.train import load_network

PRECISION = "fp16"


def add_half_precision(bundle: Path, out: Path) -> int:
    """Write the bundle with its fp16 variant to `out`; returns the size of the new graph in bytes."""
    manifest = read_manifest(bundle)
    if not (bundle / WEIGHTS).is_file():
        raise ConfigurationError(
            f"{bundle} has no {WEIGHTS}; the fp16 graph is built from it: take a bundle with weights"
        )
    if out.exists():
        raise ConfigurationError(f"{out} exists; choose another --out or remove it")
    network = load_network(bundle).eval()
    model = graph.build(network, None, manifest.get("wide_share", {}), half=True).SerializeToString()
    draft = out.with_name(out.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(bundle, draft)
    file = MODEL_FILE.format(precision=PRECISION)
    (draft / file).write_bytes(model)
    manifest["precisions"][PRECISION] = {"file": file, "golden_tolerance": 2 * GOLDEN_TOLERANCE}
    write_manifest(draft, manifest)
    # The CPU computes the graph with its fp16 weights in fp32: what a GPU must come close to.
    scorer = OnnxScorer(load_bundle(draft, PRECISION))
    golden = json.loads((draft / GOLDEN).read_text("utf-8"))
    for item in golden["items"]:
        item["logits"][PRECISION] = [round(float(v), 6) for v in scorer.logits([item["ids"]])[0]]
    (draft / GOLDEN).write_text(json.dumps(golden, ensure_ascii=False, indent=0) + "\n", "utf-8")
    write_manifest(draft, manifest)
    draft.rename(out)
    return len(model)
