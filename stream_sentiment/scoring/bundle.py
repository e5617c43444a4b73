"""The model bundle: a directory with a manifest, one or more ONNX files, a tokenizer and a golden set.

In: a path. Out: a `Bundle`, every file read once and checked. Blocks on the disk. Raises `ConfigurationError`
that names the file that is wrong and says what to do. Nothing is run here: `verify.py` does that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.heads import Head, HeadKind
from stream_sentiment.scoring.reference import KEY, Reference, parse
from stream_sentiment.scoring.text import TEXT_PREPARATION

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
GOLDEN = "golden.json"
DEFAULT_BUNDLE = "service-zh-en-6x384"

REPAIR = "copy the bundle again, or give another one with STREAM_SENTIMENT_MODEL__PATH"


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """One head as the manifest declares it."""

    head: Head
    temperature: float  # logits are divided by it before softmax or sigmoid
    abstain_below: float  # a largest probability below it is called uncertain; 0 = never
    thresholds: tuple[float, ...]  # sigmoid heads: a label is given from this probability on


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What every output says about the model that made it."""

    name: str
    version: str
    sha256: str  # of the ONNX file in use
    precision: str
    max_length: int  # tokens, [CLS] and [SEP] included
    labels: Mapping[str, tuple[str, ...]]  # by head
    signal_thresholds: Mapping[str, float] = field(default_factory=dict)  # a signal is given from this probability on
    corrections: tuple[str, ...] = ()  # rules after the model that were measured to help it
    reference: Reference | None = None  # what its predictions looked like when it was measured; None: it was not

    @property
    def emotion_labels(self) -> tuple[str, ...]:
        """Labels of `Score.emotion`, in its order."""
        return self.labels.get("emotion", ())


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle in memory; its bytes are those that were checked."""

    path: Path
    manifest: Mapping[str, Any]
    heads: tuple[HeadSpec, ...]
    info: ModelInfo
    model: bytes
    tokenizer: bytes
    golden: bytes


def default_bundle_path() -> Path:
    """The packaged model (`stream_sentiment/_models`), else the checkout's `models/`."""
    packaged = Path(str(resources.files("stream_sentiment"))) / "_models" / DEFAULT_BUNDLE
    if (packaged / MANIFEST).is_file():
        return packaged
    checkout = Path(__file__).resolve().parents[2] / "models" / DEFAULT_BUNDLE
    if (checkout / MANIFEST).is_file():
        return checkout
    raise ConfigurationError(
        f"this installation holds no default model ({packaged} and {checkout} have no {MANIFEST}); "
        "install the released wheel, or set STREAM_SENTIMENT_MODEL__PATH to a bundle directory"
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a bundle directory, its format and text preparation checked."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ConfigurationError(f"{path} is no model bundle: it has no {MANIFEST}; {REPAIR}") from None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}; {REPAIR}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise ConfigurationError(
            f"{file}: format {found!r} is not {FORMAT}, the one this version reads; export the model again"
        )
    if manifest.get("text_preparation") != TEXT_PREPARATION:
        raise ConfigurationError(
            f"{file}: the model was trained with text preparation {manifest.get('text_preparation')!r}, this version prepares with "
            f"{TEXT_PREPARATION!r}; its scores would be wrong. Train or export it with this version"
        )
    return manifest


def load_bundle(path: Path, precision: str = "int8") -> Bundle:
    """Read a bundle and check the size and sha256 of every file that this precision uses."""
    manifest = read_manifest(path)
    file = path / MANIFEST
    try:
        variants = manifest["precisions"]
        if precision not in variants:
            raise ConfigurationError(
                f"{file}: there is no {precision} variant, only {', '.join(sorted(variants))}; "
                "make one with `stream-sentiment model variant`, or set STREAM_SENTIMENT_MODEL__DEVICE=cpu"
            )
        model_name = variants[precision]["file"]
        heads = tuple(_head(entry) for entry in manifest["heads"])
        model = read_checked(path, manifest, model_name)
        info = ModelInfo(
            name=str(manifest["name"]),
            version=str(manifest["version"]),
            sha256=str(manifest["files"][model_name]["sha256"]),
            precision=precision,
            max_length=int(manifest["max_tokens"]),
            labels={h.head.name: h.head.labels for h in heads},
            signal_thresholds={
                label: threshold
                for h in heads
                if h.head.name == "signals"
                for label, threshold in zip(h.head.labels, h.thresholds, strict=True)
            },
            corrections=_corrections(manifest.get("corrections", {})),
            reference=parse(manifest.get(KEY)),
        )
        return Bundle(
            path=path,
            manifest=manifest,
            heads=heads,
            info=info,
            model=model,
            tokenizer=read_checked(path, manifest, TOKENIZER),
            golden=read_checked(path, manifest, GOLDEN),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{file} is damaged: {type(error).__name__} {error}; {REPAIR}") from error


def read_checked(path: Path, manifest: Mapping[str, Any], name: str) -> bytes:
    """The bytes of one file of the bundle, if they are those that the manifest names."""
    entry = manifest["files"].get(name)
    if entry is None:
        raise ConfigurationError(f"{path / MANIFEST} lists no {name}; {REPAIR}")
    if Path(name).name != name:
        raise ConfigurationError(f"{path / MANIFEST} names {name!r}, which is not a file of the bundle; {REPAIR}")
    try:
        content = (path / name).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path / name} cannot be read: {error}; {REPAIR}") from error
    if len(content) != entry["bytes"]:
        raise ConfigurationError(
            f"{path / name} has {len(content)} bytes, the manifest says {entry['bytes']}; {REPAIR}"
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry["sha256"]:
        raise ConfigurationError(
            f"{path / name} has sha256 {digest[:12]}…, the manifest says {entry['sha256'][:12]}…; {REPAIR}"
        )
    return content


def _corrections(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Rules that the manifest switches on; none where they were measured with other rules than these."""
    from stream_sentiment.scoring.corrections import rules_version

    return tuple(map(str, entry["on"])) if entry.get("version") == rules_version() else ()


def _head(entry: Mapping[str, Any]) -> HeadSpec:
    head = Head(str(entry["name"]), HeadKind(entry["kind"]), tuple(str(x) for x in entry["labels"]))
    thresholds = tuple(float(x) for x in entry.get("thresholds", ()))
    if head.kind is HeadKind.SIGMOID and len(thresholds) != head.width:
        raise ValueError(f"head {head.name} has {len(thresholds)} thresholds for {head.width} labels")
    temperature = float(entry.get("temperature", 1.0))
    if not temperature > 0:
        raise ValueError(f"head {head.name} has temperature {temperature}")
    return HeadSpec(head, temperature, float(entry.get("abstain_below", 0.0)), thresholds)
