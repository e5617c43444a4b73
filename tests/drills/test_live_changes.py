"""Drills of what changes while a worker runs: a bad rule file, a limit that is too low, a bad model; and the remedies."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_sentiment.scoring.bundle import default_bundle_path
from stream_sentiment.scoring.scorer import StubScorer
from stream_sentiment.testing.consume import read_topic
from stream_sentiment.testing.events import chat_message
from stream_sentiment.testing.worker import WorkerProcess
from tests.drills.stack import PARTITIONS, Stack, running

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
    until_in_force(stack, 2)
    assert condition(worker, "rules")[1].startswith("version 2-")


def until_in_force(stack: Stack, version: int) -> None:
    """Until the workers say that they decide by this version of the rules."""
    stack.until(
        lambda: all(
            labels["version"].startswith(f"{version}-")
            for labels, _ in stack.prometheus.query("stream_sentiment_rules_info")
        ),
        30,
        f"version {version} in force",
    )


TENANT = "outage"
#: For the tenant: partitions share it in equal parts.
LIMIT = "overrides: [{match: {tenant_id: outage}, set: {suppress.max_open_per_tenant_per_minute: 20}}]"


def complaints(stack: Stack, name: str, at_ms: int) -> None:
    """Eighty new conversations of the tenant, each with two negative messages, all at the same moment of event time."""
    texts = [f"complaint {number}" for number in range(100)]
    scores = StubScorer().score(texts)
    negative = next(text for text, score in zip(texts, scores, strict=True) if score.emotion_label == "anger")
    for number in range(80):
        for message in ("1", "2"):
            stack.load.send(
                chat_message(negative, tenant=TENANT, conversation=f"{name}-{number}", message=message, at_ms=at_ms)
            )


def told(stack: Stack, opened: int) -> tuple[list[dict], list[dict]]:
    """The tenant's openings, and its storms' notices, once there are so many openings."""

    def of(kind: str) -> list[dict]:
        values = [record.json() for record in read_topic(stack.kafka.bootstrap_servers, "escalation.events")]
        return [value for value in values if value["tenant_id"] == TENANT and kind in value]

    def openings() -> list[dict]:
        return [value for value in of("escalation_id") if value["action"] == "opened"]

    stack.until(lambda: len(openings()) >= opened, 60, f"{opened} openings on the topic")
    return openings(), of("held_back")


def test_more_escalations_than_a_tenants_limit(stack: Stack, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES.read_text() + LIMIT)
    worker = stack.add_worker(rules__path=str(rules), rules__watch="200ms")
    worker.wait_ready(90)
    stack.load.start()
    stack.until_caught_up()
    stack.begin("more escalations than a tenant's limit")
    stack.until_false("EscalationStorm")
    now_ms = int(time.time() * 1000)
    complaints(stack, "first", now_ms)
    stack.note("80 conversations turn bad in one minute, 20 may be announced")
    stack.until_true("EscalationStorm")
    openings, notices = told(stack, 80)
    assert sum(opening["suppressed"] for opening in openings) == 60
    assert {opening["storm_id"] for opening in openings if opening["suppressed"]} == {n["storm_id"] for n in notices}
    assert [notice["action"] for notice in notices] == ["opened"] * PARTITIONS
    stack.note("on the topic: 20 announced, 60 marked, a notice from each partition")
    rules.write_text(rules.read_text().replace("version: 1", "version: 2", 1).replace("minute: 20", "minute: 400"))
    until_in_force(stack, 2)
    stack.note("the limit is 400, on the running worker")
    complaints(stack, "second", now_ms + 120_000)
    openings, notices = told(stack, 160)
    assert sum(opening["suppressed"] for opening in openings) == 60
    ended = [notice for notice in notices if notice["action"] == "resolved"]
    assert len(ended) == PARTITIONS
    assert sum(notice["held_back"] for notice in ended) == 60
    stack.note("80 more two minutes later: all announced, the storms' ends are told")
    stack.until_false("EscalationStorm")
    stack.until_caught_up()


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
