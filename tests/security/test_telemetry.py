"""ONNX Runtime tells nobody what it runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import stream_sentiment
from stream_sentiment.scoring.heads import POLARITIES
from stream_sentiment.scoring.runtime import TELEMETRY_SWITCH

PACKAGE = Path(stream_sentiment.__file__).parent

SCORE = """
import os, sys
from stream_sentiment.scoring.scorer import OnnxScorer
print(OnnxScorer.load(None, device="cpu").score(["where is my order"])[0].label)
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


def importers(root: Path) -> set[str]:
    """Files that import ONNX Runtime or a part of it."""
    pattern = re.compile(r"^\s*(import|from) onnxruntime\b", re.MULTILINE)
    return {str(file.relative_to(root)) for file in root.rglob("*.py") if pattern.search(file.read_text("utf-8"))}


def test_one_place_imports_it_so_that_the_switch_comes_first():
    assert importers(PACKAGE) == {"scoring/runtime.py"}


def test_another_import_would_be_found(tmp_path: Path):
    (tmp_path / "a.py").write_text("def f():\n    from onnxruntime.quantization import quantize_static\n")
    assert importers(tmp_path) == {"a.py"}


def test_a_run_of_the_model_leaves_no_device_id_and_no_event_store_behind(tmp_path: Path):
    """With its telemetry on, the same run writes a device id and an event store below ~/.cache (seen with 1.31.1)."""
    clean = {name: value for name, value in os.environ.items() if name != TELEMETRY_SWITCH}
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCORE], env={**clean, **home}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    label, switch = done.stdout.split()
    assert label in POLARITIES
    assert switch == "1"
    assert [str(path) for path in tmp_path.rglob("*")] == []
    assert "telemetry" not in done.stderr.lower()
