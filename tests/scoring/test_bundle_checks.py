"""A bundle that is not what its manifest says is refused, with the name of the file that is wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring import session
from stream_sentiment.scoring.bundle import load_bundle
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.scoring.verify import verify_bundle


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text("utf-8"))
    edit(manifest)
    file.write_text(json.dumps(manifest), "utf-8")


def restamp(folder: Path, name: str) -> None:
    """Write the right size and hash of a changed file into the manifest: what an attacker or a careless script does."""
    content = (folder / name).read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change(folder, lambda m: m["files"].update({name: entry}))


def test_the_default_bundle_is_sound(bundle_path: Path) -> None:
    result = verify_bundle(bundle_path)
    assert result["golden_error"]["int8"] < 0.05


def test_an_undamaged_copy_is_sound(copied: Path) -> None:
    """The control of the tests below."""
    assert verify_bundle(copied)["golden_error"]["int8"] < 0.05


@pytest.mark.parametrize("name", ["model.int8.onnx", "tokenizer.json", "golden.json"])
def test_one_flipped_byte_is_found(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match=rf"{name}.*sha256"):
        verify_bundle(copied)
    with pytest.raises(ConfigurationError, match=name):
        load_bundle(copied)


def test_a_truncated_file_is_found(copied: Path) -> None:
    content = (copied / "model.int8.onnx").read_bytes()
    (copied / "model.int8.onnx").write_bytes(content[:-1])
    with pytest.raises(ConfigurationError, match=r"model\.int8\.onnx has"):
        load_bundle(copied)


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json cannot be read"):
        load_bundle(copied)


@pytest.mark.parametrize("head", [0, 1])
def test_another_label_order_is_found(copied: Path, head: int) -> None:
    change(copied, lambda m: m["heads"][head]["labels"].reverse())
    with pytest.raises(ConfigurationError, match="label"):
        OnnxScorer.load(copied, device="cpu")


def test_another_tokenizer_is_found_even_with_the_right_hash(copied: Path) -> None:
    document = json.loads((copied / "tokenizer.json").read_text("utf-8"))
    vocabulary = document["model"]["vocab"]
    a, b = vocabulary["the"], vocabulary["is"]
    vocabulary["the"], vocabulary["is"] = b, a
    (copied / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    restamp(copied, "tokenizer.json")
    load_bundle(copied)  # the hash alone does not tell
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json.*other tokens"):
        verify_bundle(copied)


def test_changed_temperatures_that_change_no_label_are_left_to_the_owner(copied: Path) -> None:
    change(copied, lambda m: m["heads"][0].update(temperature=3.0))
    verify_bundle(copied)


def test_another_text_preparation_is_refused(copied: Path) -> None:
    change(copied, lambda m: m.update(text_preparation="0"))
    with pytest.raises(ConfigurationError, match="text preparation '0'"):
        load_bundle(copied)


def test_an_unknown_format_is_refused(copied: Path) -> None:
    change(copied, lambda m: m.update(format=99))
    with pytest.raises(ConfigurationError, match="format 99"):
        load_bundle(copied)


def test_a_manifest_may_not_name_files_outside_the_bundle(copied: Path) -> None:
    change(copied, lambda m: m["files"].update({"../../etc/hostname": {"bytes": 1, "sha256": "0"}}))
    with pytest.raises(ConfigurationError, match="not a file of the bundle"):
        verify_bundle(copied)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 1}', '{"format": 1, "text_preparation": "1"}'])
def test_a_damaged_manifest_is_a_configuration_error(copied: Path, content: str) -> None:
    (copied / "manifest.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"manifest\.json"):
        load_bundle(copied)


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model bundle"):
        load_bundle(tmp_path)


def test_an_unknown_precision_names_those_that_are_there(bundle_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="only int8"):
        load_bundle(bundle_path, "int4")


def test_cuda_is_refused_where_there_is_none(copied: Path) -> None:
    change(copied, lambda m: m["precisions"].update(fp16=m["precisions"]["int8"]))
    with pytest.raises(ConfigurationError, match=r"(?i)cuda"):
        OnnxScorer.load(copied, device="cuda")


def test_two_onnxruntime_distributions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime", "onnxruntime-gpu"]})
    with pytest.raises(ConfigurationError, match="pip uninstall -y onnxruntime onnxruntime-gpu"):
        session.check_installation()


def test_no_onnxruntime_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "packages_distributions", dict)
    with pytest.raises(ConfigurationError, match="pip install"):
        session.check_installation()
