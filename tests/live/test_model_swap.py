"""Another model on a running worker: proved before it is taken up, at a window boundary; any other changes nothing."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install 'stream-sentiment[train]'")

from stream_sentiment.live import model_bundle
from stream_sentiment.live.model_bundle import ModelBundle
from stream_sentiment.observability.health import HealthState
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.scoring.scorer import OnnxScorer, Scorer
from stream_sentiment.testing.clock import FakeClock
from stream_sentiment.testing.events import chat_message
from stream_sentiment.worker import Worker
from tests.integration.road import Road, RunningWorker, outcomes, sample
from tests.scoring.test_bundle_checks import change, restamp
from tests.training.conftest import checkpoint, finished_run, tiny_bundle  # noqa: F401

START = 1_790_000_000_000


class Bundles:
    """Versions of one bundle, and a symlink that says which is the current one."""

    def __init__(self, directory: Path, source: Path) -> None:
        self.directory = directory
        self.source = source
        self.current = directory / "current"

    def make(self, version: str) -> Path:
        target = self.directory / f"v{version}"
        shutil.copytree(self.source, target, ignore=shutil.ignore_patterns("*.safetensors"))
        change(target, lambda m: m.update(version=version))
        change(target, lambda m: [m["files"].pop(name) for name in list(m["files"]) if name.endswith(".safetensors")])
        return target

    def switch(self, version: str) -> None:
        scratch = self.directory / "scratch"
        scratch.symlink_to(f"v{version}")
        scratch.rename(self.current)


@pytest.fixture
def bundles(tmp_path: Path, tiny_bundle: Path) -> Bundles:  # noqa: F811
    made = Bundles(tmp_path, tiny_bundle)
    made.make("1")
    made.switch("1")
    return made


class Watched:
    """The source alone, with what came of each look."""

    def __init__(self, bundles: Bundles) -> None:
        self.used: list[Scorer] = []
        self.clock = FakeClock()
        self.metrics = Metrics(clock=self.clock)
        self.health = HealthState()
        self.scorer = OnnxScorer.load(bundles.current)
        self.source = ModelBundle(
            bundles.current,
            self.scorer,
            device="auto",
            token_budget=256,
            interval=1.0,
            use=self.used.append,
            metrics=self.metrics,
            health=self.health,
        )
        self.settle()

    def settle(self) -> None:
        self.source.look()
        self.source.look()

    @property
    def results(self) -> dict[str, float]:
        counters = self.metrics.model_swap_total
        found = {
            name: counters.labels(name)._value.get() for name in ("applied", "unchanged", "refused", "rolled_back")
        }
        return {name: value for name, value in found.items() if value}

    @property
    def detail(self) -> str:
        condition = self.health.conditions()["model_bundle"]
        assert condition.ok, "a bad bundle must not take the worker out of service"
        return condition.detail


@pytest.fixture
def watched(bundles: Bundles) -> Watched:
    return Watched(bundles)


def test_a_swapped_symlink_is_taken_up_once_and_so_is_the_way_back(watched: Watched, bundles: Bundles) -> None:
    assert watched.results == {}
    bundles.make("2")
    watched.settle()
    assert watched.results == {}
    bundles.switch("2")
    watched.settle()
    watched.settle()
    assert watched.results == {"applied": 1}
    assert watched.detail == "tiny 2"
    bundles.switch("1")
    watched.settle()
    assert [scorer.info.version for scorer in watched.used] == ["2", "1"]


def _flip(bundle: Path) -> None:
    content = bytearray((bundle / "model.int8.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.int8.onnx").write_bytes(content)


def _labels(bundle: Path) -> None:
    change(bundle, lambda m: m["heads"][1]["labels"].reverse())


def _tokenizer(bundle: Path) -> None:
    document = json.loads((bundle / "tokenizer.json").read_text("utf-8"))
    words = document["model"]["vocab"]
    words["great"], words["awful"] = words["awful"], words["great"]
    (bundle / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    restamp(bundle, "tokenizer.json")


def _golden(bundle: Path) -> None:
    document = json.loads((bundle / "golden.json").read_text("utf-8"))
    for item in document["items"]:
        item["polarity"] = {"negative": "positive", "positive": "negative"}.get(item["polarity"], "negative")
    (bundle / "golden.json").write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    restamp(bundle, "golden.json")


DAMAGES: list[tuple[Callable[[Path], None], str]] = [
    (_flip, "sha256"),
    (_labels, "label order"),
    (_tokenizer, "other tokens"),
    (_golden, "at export it was"),
    (lambda bundle: (bundle / "manifest.json").unlink(), "no model bundle"),
    (lambda bundle: change(bundle, lambda m: m.update(text_preparation="0")), "text preparation"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES, ids=[reason for _, reason in DAMAGES])
def test_a_bundle_that_is_not_sound_keeps_the_model_in_force_and_says_why(
    watched: Watched, bundles: Bundles, damage: Callable[[Path], None], reason: str
) -> None:
    damage(bundles.make("2"))
    bundles.switch("2")
    watched.settle()
    watched.settle()
    assert watched.used == []
    assert watched.results == {"refused": 1}
    assert watched.detail.startswith("tiny 1 stays in force; the bundle is refused: ")
    assert reason in watched.detail
    watched.clock.advance(70)
    assert watched.metrics.model_bundle_refused_seconds.seconds() == 70
    # A sound one under another version mends it; so does the way back.
    bundles.make("3")
    bundles.switch("3")
    watched.settle()
    assert [scorer.info.version for scorer in watched.used] == ["3"]
    assert watched.metrics.model_bundle_refused_seconds.seconds() == 0
    assert watched.detail == "tiny 3"


def test_a_bundle_that_is_copied_over_file_by_file_is_taken_up_when_it_is_whole(
    watched: Watched, bundles: Bundles
) -> None:
    new = bundles.make("2")
    change(new, lambda m: m["heads"][0].update(temperature=2.0))
    golden = new / "golden.json"
    golden.write_text(golden.read_text("utf-8") + " ", "utf-8")
    restamp(new, "golden.json")
    old = bundles.directory / "v1"
    (old / "manifest.json").write_bytes((new / "manifest.json").read_bytes())
    watched.settle()
    assert watched.results == {"refused": 1}, "the golden set is not the one that the manifest names"
    (old / "golden.json").write_bytes(golden.read_bytes())
    watched.source.look()
    assert watched.used == []
    watched.source.look()
    assert [scorer.info.version for scorer in watched.used] == ["2"]


def test_what_is_in_force_is_not_loaded_again_because_somebody_touched_it(watched: Watched, bundles: Bundles) -> None:
    file = bundles.directory / "v1" / "manifest.json"
    file.write_bytes(file.read_bytes())
    watched.settle()
    assert watched.results == {}
    watched.source.look(at_once=True)
    assert watched.results == {"unchanged": 1}
    assert watched.used == []


# -- a real worker -----------------------------------------------------------------------------------------------------


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.02)


def start(road: Road, bundles: Bundles, **sections: dict[str, Any]) -> RunningWorker:
    model = {"path": bundles.current, "watch": "100ms", **sections.pop("model", {})}
    return RunningWorker(Worker(road.settings(model=model, **sections)))


def say(road: Road, running: RunningWorker, first: int, count: int) -> None:
    """Publish messages and wait until they are applied."""
    road.publish(
        *[
            chat_message("awful late order", message=f"m{n}", at_ms=START + n * 1000)
            for n in range(first, first + count)
        ]
    )
    until(lambda: sample(running.worker, "events_total", outcome="scored") == first + count)


def models(road: Road) -> list[str]:
    """Model version of each scored message, in the order of the messages."""
    found = {int(r.json()["message_id"][1:]): r.json()["model"]["version"] for r in road.read("scored")}
    return [found[number] for number in sorted(found)]


def test_a_running_worker_swaps_the_model_and_back_and_names_it_on_every_output(
    mock_road: Road, bundles: Bundles
) -> None:
    bundles.make("2")
    running = start(mock_road, bundles)
    worker = running.worker
    say(mock_road, running, 0, 3)
    bundles.switch("2")
    until(lambda: worker.live.current.scorer.info.version == "2")
    say(mock_road, running, 3, 3)
    [info] = [
        found.labels["model"]
        for metric in worker.metrics.registry.collect()
        for found in metric.samples
        if found.name == "stream_sentiment_build_info"
    ]
    assert info == "tiny@2"
    bundles.switch("1")
    worker.reload()
    until(lambda: worker.live.current.scorer.info.version == "1")
    say(mock_road, running, 6, 3)
    running.stop()
    assert models(mock_road) == ["1"] * 3 + ["2"] * 3 + ["1"] * 3
    assert sample(worker, "model_swap_total", result="applied") == 2
    assert mock_road.final_states()[("shop", "c1")]["model_version"] == "tiny@1"


def test_a_running_worker_stays_ready_with_its_old_model_when_the_new_one_is_damaged(
    mock_road: Road, bundles: Bundles
) -> None:
    _flip(bundles.make("2"))
    address: list[str] = []
    model = {"path": bundles.current, "watch": "100ms"}
    running = RunningWorker(Worker(mock_road.settings(model=model), on_listening=address.append))
    say(mock_road, running, 0, 2)
    bundles.switch("2")
    until(lambda: sample(running.worker, "model_swap_total", result="refused") == 1)
    with urllib.request.urlopen(f"{address[0]}/readyz", timeout=5) as answer:
        assert answer.status == 200
        assert "stays in force" in json.load(answer)["conditions"]["model_bundle"]["detail"]
    say(mock_road, running, 2, 2)
    running.stop()
    assert models(mock_road) == ["1"] * 4


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Set to [True], version 2 fails on everything, as a device that was lost would."""
    broken = [False]
    real = OnnxScorer.infer

    def infer(self: OnnxScorer, batch: Any) -> Any:
        if self.info.version == "2" and broken[0]:
            raise RuntimeError("device lost")
        return real(self, batch)

    monkeypatch.setattr(OnnxScorer, "infer", infer)
    return broken


def test_a_model_that_fails_after_its_switch_is_rolled_back_and_nothing_is_lost(
    mock_road: Road, bundles: Bundles, failing: list[bool]
) -> None:
    bundles.make("2")
    running = start(mock_road, bundles)
    say(mock_road, running, 0, 2)
    bundles.switch("2")
    until(lambda: running.worker.live.current.scorer.info.version == "2")
    failing[0] = True
    say(mock_road, running, 2, 4)
    running.stop()
    assert models(mock_road) == ["1"] * 6
    assert outcomes(running.worker) == {"scored": 6}
    assert sample(running.worker, "model_swap_total", result="rolled_back") == 1
    assert sample(running.worker, "model_bundle_refused_seconds") > 0
    assert mock_road.read("dead_letters") == []


def test_without_the_model_before_the_same_failure_ends_the_worker(
    mock_road: Road, bundles: Bundles, failing: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_bundle, "PROBATION_SECONDS", -1.0)
    bundles.make("2")
    running = start(mock_road, bundles)
    say(mock_road, running, 0, 2)
    bundles.switch("2")
    until(lambda: running.worker.live.current.scorer.info.version == "2")
    time.sleep(0.3)
    failing[0] = True
    mock_road.publish(chat_message("awful", message="m2", at_ms=START + 2000))
    with pytest.raises(RuntimeError, match="device lost"):
        running.join()
