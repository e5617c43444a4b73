"""What runs: versions for `build_info`. Pure look-ups, none fails."""

from __future__ import annotations

import os
from importlib import metadata

import confluent_kafka

from stream_sentiment import __version__

COMMIT_VARIABLE = "STREAM_SENTIMENT_BUILD_COMMIT"
"""Set by the image build."""


def onnxruntime_version() -> str:
    """Of whichever of the two wheels is installed; "" without either."""
    for package in ("onnxruntime", "onnxruntime-gpu"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return ""


def build_labels(model: str, model_sha256: str, provider: str) -> tuple[str, ...]:
    """Label values of `build_info`, in its order."""
    return (
        __version__,
        os.environ.get(COMMIT_VARIABLE, ""),
        model,
        model_sha256[:12],
        provider,
        confluent_kafka.libversion()[0],
        onnxruntime_version(),
    )
