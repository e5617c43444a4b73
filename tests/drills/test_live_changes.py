"""Drills of what changes while a worker runs: a bad rule file, a bad model, and the remedies of their runbooks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_sentiment.scoring.bundle import default_bundle_path
from stream_sentiment.testing.worker import WorkerProcess
from tests.drills.stack import Stack, running

pytestmark = [pytest.mark.slow, pytest.mark.redis]

RULES = Path(__file__).with_name("rules.yaml")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    with running(tmp_path) as made:
        yield made
        kept = os.environ.get("STREAM_SENTIMENT_TEST_DRILL_LOG")
        if kept:
            with Path(kept).open("a", encoding="utf-8") as log:
                log.write("\n".join(made.timeline).strip() + "\n\n")


def condition(worker: WorkerProcess, name: str) -> tuple[int, str]:
    """Status of `/readyz`, and the detail of one of its conditions."""
    status, body = worker.get("/readyz")
    return status, json.loads(body)["conditions"][name]["detail"]


def test_a_rule_file_with_a_mistake(stack: Stack, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    good = RULES.read_text()
    rules.write_text(good)
    worker = stack.add_worker(rules__path=str(rules), rules__watch="200ms")
    worker.wait_ready(90)
    stack.load.start()
    stack.until_caught_up()
    stack.begin("a rule file with a mistake")
    stack.until_false("RulesFileInvalid")
    rules.write_text(good.replace("when:", "wehn:", 1))
    stack.note("saved with an unknown key")
    stack.until_true("RulesFileInvalid")
    status, detail = condition(worker, "rules")
    assert status == 200
    assert "stays in force; the file is refused: line" in detail
    stack.until_caught_up()
    rules.write_text(good.replace("version: 1", "version: 2", 1))
    assert rules.read_text() != good
    stack.note("mended, under a new version")
    stack.until_false("RulesFileInvalid")
    stack.until(
        lambda: all(
            labels["version"].startswith("2-") for labels, _ in stack.prometheus.query("stream_sentiment_rules_info")
        ),
        30,
        "the new version in force",
    )
    assert condition(worker, "rules")[1].startswith("version 2-")


def switch(directory: Path, name: str) -> None:
    """The symlink `current`, replaced in one rename."""
    scratch = directory / "new"
    scratch.symlink_to(name)
    scratch.rename(directory / "current")


def test_a_model_bundle_that_is_damaged(stack: Stack, tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        shutil.copytree(default_bundle_path(), tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
    model = bytearray((tmp_path / "v2" / "model.int8.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (tmp_path / "v2" / "model.int8.onnx").write_bytes(model)
    switch(tmp_path, "v1")
    worker = stack.add_worker(
        model__path=str(tmp_path / "current"), model__watch="200ms", model__stub="false", model__threads="1"
    )
    worker.wait_ready(90)
    stack.load.start()
    stack.until_caught_up()
    stack.begin("a model bundle that is damaged")
    stack.until_false("ModelSwapFailed")
    switch(tmp_path, "v2")
    stack.note("the symlink leads to a bundle with one flipped byte")
    stack.until_true("ModelSwapFailed")
    status, detail = condition(worker, "model_bundle")
    assert status == 200
    assert "stays in force; the bundle is refused: " in detail
    assert "sha256" in detail
    stack.until_caught_up()
    switch(tmp_path, "v1")
    stack.note("the symlink leads back")
    stack.until_false("ModelSwapFailed")
    assert "refused" not in condition(worker, "model_bundle")[1]
    stack.until_caught_up()
    scores = stack.prometheus.query("sum(increase(stream_sentiment_predictions_total[20s]))")
    assert scores[0][1] > 0
