"""The default bundle, opened once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stream_sentiment.scoring.bundle import default_bundle_path
from stream_sentiment.scoring.scorer import OnnxScorer


@pytest.fixture(scope="session")
def bundle_path() -> Path:
    return default_bundle_path()


@pytest.fixture(scope="session")
def scorer(bundle_path: Path) -> OnnxScorer:
    return OnnxScorer.load(bundle_path, device="cpu")


@pytest.fixture
def copied(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    target = tmp_path / "bundle"
    shutil.copytree(bundle_path, target, ignore=shutil.ignore_patterns("*.safetensors"))
    manifest = target / "manifest.json"
    import json

    document = json.loads(manifest.read_text("utf-8"))
    document["files"] = {k: v for k, v in document["files"].items() if not k.endswith(".safetensors")}
    manifest.write_text(json.dumps(document), "utf-8")
    return target
