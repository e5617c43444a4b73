"""The ONNX session: settings, provider check, one array in, one array out.

In: model bytes and a device. Out: `Session.run`, which any thread may call (one session is shared; `run`
releases the GIL). Blocks on inference. Raises `ConfigurationError` when the installation or the device is
wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import packages_distributions, version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.runtime import onnxruntime

if TYPE_CHECKING:
    from stream_sentiment.scoring.bundle import Bundle

Device = Literal["cpu", "cuda"]

PRECISION_OF: dict[Device, str] = {"cpu": "int8", "cuda": "fp16"}
"""The variant of a bundle that a device runs: static int8 on CPU, fp16 on CUDA."""

_SHRINK = "memory.enable_memory_arena_shrinkage"


def check_installation() -> str:
    """Exactly one onnxruntime distribution: the cpu and gpu wheels own the same import package and silently
    break each other.

    Returns its name and version.
    """
    found = sorted(set(packages_distributions().get("onnxruntime", [])))
    if not found:
        raise ConfigurationError('onnxruntime is not installed; run: pip install "stream-sentiment[cpu]" (or [gpu])')
    if len(found) > 1:
        raise ConfigurationError(
            f"{' and '.join(found)} are both installed and overwrite each other's files; run: "
            f"pip uninstall -y {' '.join(found)}, then: pip install 'stream-sentiment[cpu]' (or [gpu])"
        )
    return f"{found[0]} {version(found[0])}"


def choose_device(wanted: Device | Literal["auto"], manifest: Mapping[str, Any]) -> Device:
    """`auto` resolved: CUDA where onnxruntime offers it and the bundle has its variant, else the CPU."""
    if wanted != "auto":
        return wanted
    check_installation()
    ort = onnxruntime()
    offered = "CUDAExecutionProvider" in ort.get_available_providers()
    return "cuda" if offered and PRECISION_OF["cuda"] in manifest.get("precisions", {}) and _cuda_starts() else "cpu"


def _cuda_starts() -> bool:
    """The gpu wheel offers CUDA on hosts without a GPU too; only the driver knows."""
    import ctypes

    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except OSError:
        return False


class Session:
    """One loaded graph."""

    def __init__(self, bundle: Bundle, device: Device = "cpu") -> None:
        check_installation()
        ort = onnxruntime()
        options = ort.SessionOptions()
        # Parallelism comes from several threads that share this session: on two quiet cores 20 % faster than
        # ORT's own pool, and it does not collapse when the cores are contended.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        disabled: list[str] = []
        if device == "cuda":
            ort.preload_dlls()
            if "CUDAExecutionProvider" not in ort.get_available_providers():
                raise ConfigurationError(
                    "device cuda was asked for, but this onnxruntime has no CUDA provider; "
                    'install "stream-sentiment[gpu]" without the cpu extra, or set STREAM_SENTIMENT_MODEL__DEVICE=cpu'
                )
            providers = ["CUDAExecutionProvider"]
            # Without this ORT falls back to the CPU with a log line and the GPU idles.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        else:
            providers = ["CPUExecutionProvider"]
            # The fused kernel is a scalar loop on CPU, 7.5 times slower than Add and LayerNormalization.
            disabled = ["SkipLayerNormFusion"]
        try:
            self._session = ort.InferenceSession(
                bundle.model, options, providers=providers, disabled_optimizers=disabled
            )
        except Exception as error:  # onnxruntime raises its own classes, all direct children of Exception
            file = bundle.path / bundle.manifest["precisions"][bundle.info.precision]["file"]
            raise ConfigurationError(f"{file}: onnxruntime cannot load it on {device}: {error}") from error
        active = self._session.get_providers()[0]
        if active != providers[0]:
            raise ConfigurationError(
                f"device {device} was asked for, but onnxruntime runs on {active}; see the GPU section of docs/model.md"
            )
        self.provider: str = active
        self._check_labels(bundle)
        self._shrink = ort.RunOptions()
        self._shrink.add_run_config_entry(_SHRINK, "gpu:0" if device == "cuda" else "cpu:0")
        self._input: str = self._session.get_inputs()[0].name

    def run(self, ids: npt.NDArray[np.int64], *, shrink: bool = False) -> npt.NDArray[np.float32]:
        """ids: batch x length, 0 = padding. Returns the logits of all heads side by side: batch x sum of widths.

        `shrink` gives the arena back afterwards: one oversize batch would otherwise keep its memory for good.
        """
        outputs: list[Any] = self._session.run(None, {self._input: ids}, self._shrink if shrink else None)
        return np.asarray(outputs[0])

    def _check_labels(self, bundle: Bundle) -> None:
        """The graph carries its own label order; a manifest with another one would swap anger and joy without
        a trace.
        """
        stored = self._session.get_modelmeta().custom_metadata_map.get("heads")
        declared = [[h.head.name, h.head.kind.value, list(h.head.labels)] for h in bundle.heads]
        if stored is None or json.loads(stored) != declared:
            raise ConfigurationError(
                f"{bundle.path / 'manifest.json'}: heads or label order differ from those inside the model file; copy the bundle again"
            )
