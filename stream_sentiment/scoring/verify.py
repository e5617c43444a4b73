"""Is this bundle sound? Every file, the label order, the tokenizer, and what the model says on the golden set.

In: a bundle directory. Out: what was checked. Blocks on a few dozen inferences a variant. Raises
`ConfigurationError` naming what is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.bundle import GOLDEN, MANIFEST, Bundle, load_bundle, read_checked, read_manifest
from stream_sentiment.scoring.scorer import OnnxScorer


def verify_bundle(path: Path) -> dict[str, Any]:
    """Check all of a bundle; returns name, version, files and the largest golden error of each CPU variant."""
    manifest = read_manifest(path)
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise ConfigurationError(f"{path / MANIFEST} lists no files; export the model again")
    for name in files:
        if name in manifest.get("optional", ()) and not (path / name).exists():
            continue
        read_checked(path, manifest, name)
    errors = {}
    for precision in manifest.get("precisions", {}):
        if precision == "fp16":
            continue  # needs a CUDA device; its weights were checked by sha256 above
        bundle = load_bundle(path, precision)
        errors[precision] = check_golden(OnnxScorer(bundle), bundle)
    return {
        "name": manifest["name"],
        "version": manifest["version"],
        "files": {name: entry["bytes"] for name, entry in files.items()},
        "golden_error": errors,
    }


def check_golden(scorer: OnnxScorer, bundle: Bundle) -> float:
    """Run the golden texts alone and together; returns the largest difference of a logit from the stored one.

    Token ids must be equal, labels must be equal, logits within the variant's tolerance, and alone must equal together.
    """
    file = bundle.path / GOLDEN
    try:
        items: list[Mapping[str, Any]] = json.loads(bundle.golden)["items"]
        texts = [str(item["text"]) for item in items]
        stored = np.array([item["logits"][bundle.info.precision] for item in items], np.float32)
        ids = [list(item["ids"]) for item in items]
        labels = [(item["polarity"], item["emotion"]) for item in items]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{file} is damaged: {type(error).__name__} {error}; export the model again"
        ) from error
    tolerance = float(bundle.manifest["precisions"][bundle.info.precision].get("golden_tolerance", 0.05))
    tokens = [t.ids for t in scorer.tokenize(texts)]
    for text, expected, found in zip(texts, ids, tokens, strict=True):
        if expected != found:
            raise ConfigurationError(
                f"{bundle.path / 'tokenizer.json'}: {text!r} becomes other tokens than at export; it is not this model's tokenizer"
            )
    alone = np.concatenate([scorer.logits([x]) for x in tokens])
    worst = float(np.abs(alone - stored).max())
    model = bundle.path / bundle.manifest["precisions"][bundle.info.precision]["file"]
    if not worst <= tolerance:  # also when it is not a number
        raise ConfigurationError(
            f"{model}: a golden logit is off by {worst:.4f}, more than {tolerance}; wrong model file or unsupported CPU"
        )
    together = scorer.logits(tokens)
    if bundle.info.precision == "int8" and not np.array_equal(alone, together):
        raise ConfigurationError(f"{model}: scores depend on the batch; the graph has dynamic scales, export it again")
    for text, (polarity, emotion), score in zip(texts, labels, scorer.infer(tokens), strict=True):
        if (score.label, score.emotion_label) != (polarity, emotion):
            raise ConfigurationError(
                f"{bundle.path / MANIFEST}: {text!r} is {score.label}/{score.emotion_label}, at export it was {polarity}/{emotion}; "
                "label order or temperatures were changed"
            )
    return worst
