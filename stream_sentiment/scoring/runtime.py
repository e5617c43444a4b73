"""The one place that imports ONNX Runtime.

Its official builds (from 1.31 on Linux) keep a device id below the home directory and send events to their maker over HTTPS unless told
otherwise before the import. A worker that reads customers' messages talks to Kafka and Redis and to nobody else.
"""

from __future__ import annotations

import os
from typing import Any

__all__ = ["onnxruntime"]

TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"


def onnxruntime() -> Any:
    """The module, its telemetry off. Who wants it on says ORT_DISABLE_TELEMETRY=0. Raises ImportError when it is not installed."""
    os.environ.setdefault(TELEMETRY_SWITCH, "1")
    import onnxruntime as ort

    return ort
