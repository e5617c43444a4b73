"""Measurements kept in a bundle's manifest under `metrics`, for its card. Blocks on the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stream_sentiment.scoring.bundle import MANIFEST, read_manifest


def note(folder: Path, name: str, value: Mapping[str, Any]) -> None:
    """Write one measurement; what stood under the name before is replaced."""
    manifest = read_manifest(folder)
    manifest["metrics"][name] = dict(value)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
