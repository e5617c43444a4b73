"""A second model beside the first: it sees a share, reports where it differs, and touches nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from stream_sentiment.cli.main import app
from stream_sentiment.errors import ConfigurationError
from stream_sentiment.events.incoming import decode
from stream_sentiment.live.shadow import Shadow, disagreements, in_share
from stream_sentiment.observability.metrics import Metrics
from stream_sentiment.scoring.scorer import ModelInfo, Score
from stream_sentiment.stages import Epoch, Record
from stream_sentiment.store.keys import TopicPartition
from stream_sentiment.testing.events import chat_message, encode, review
from stream_sentiment.testing.worker import environment
from stream_sentiment.worker import Worker
from tests.integration.road import Road, WordScorer, sample, score_of

START = 1_790_000_000_000
EPOCH = Epoch(TopicPartition("chat.messages", 0), "chat", "token", 0)


def record(number: int, text: str = "hello", kind: str = "chat") -> Record:
    event = chat_message(text, message=f"m{number}") if kind == "chat" else review(text, review_id=f"r{number}")
    made = Record(EPOCH, number, START, START, None, None, None, decode(kind, encode(event), {}, 1 << 20))
    made.text, made.score = text, score_of("neutral", "neutral")
    return made


class Other(WordScorer):
    """Calls everything negative."""

    def __init__(self, gate: threading.Event | None = None, fails: bool = False) -> None:
        super().__init__()
        self.gate = gate
        self.fails = fails

    def infer(self, batch: Sequence[Sequence[int]]) -> list[Score]:
        if self.gate is not None:
            self.gate.wait(20)
        if self.fails:
            raise RuntimeError("no")
        return [score_of("negative", "anger") for _ in batch]


def counted(metrics: Metrics) -> dict[str, float]:
    found = {
        name: metrics.shadow_messages_total.labels(name)._value.get() for name in ("compared", "dropped", "failed")
    }
    return {name: value for name, value in found.items() if value}


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["chat", "review"])
def test_the_share_is_chosen_by_the_message_so_that_every_worker_chooses_the_same(kind: str) -> None:
    records = [record(number, kind=kind) for number in range(2000)]
    chosen = [number for number, made in enumerate(records) if in_share(made, 0.2)]
    assert 340 <= len(chosen) <= 460
    assert chosen == [number for number, made in enumerate(records) if in_share(made, 0.2)]
    assert set(chosen) <= {number for number, made in enumerate(records) if in_share(made, 0.5)}
    assert all(in_share(made, 1.0) for made in records)
    assert not any(in_share(made, 0.0) for made in records)


def info(thresholds: dict[str, float]) -> ModelInfo:
    return ModelInfo("m", "1", "0" * 64, "int8", 96, {"signals": ("complaint", "thanks")}, thresholds)


def test_disagreements_are_told_by_head_and_label_and_signals_by_each_models_own_threshold() -> None:
    base = score_of("negative", "anger")
    one = Score(base.polarity, base.emotion, -0.85, 0.9, "negative", "anger", False, None, (0.6, 0.4))
    two = Score(base.polarity, base.emotion, -0.85, 0.9, "neutral", "disappointment", False, None, (0.6, 0.4))
    assert list(disagreements(one, info({"complaint": 0.5, "thanks": 0.5}), one, info({}))) == []
    assert list(disagreements(one, info({"complaint": 0.5}), two, info({"complaint": 0.7, "thanks": 0.3}))) == [
        ("polarity", "negative", "neutral"),
        ("emotion", "anger", "disappointment"),
        ("signals", "complaint", "none"),
        ("signals", "none", "thanks"),
    ]


def test_a_full_queue_drops_and_never_makes_the_caller_wait() -> None:
    metrics, gate = Metrics(), threading.Event()
    shadow = Shadow(Other(gate), 1.0, metrics, capacity=10)
    shadow.start()
    shadow.offer([record(0)], WordScorer().info)
    until(lambda: shadow._queue.empty())  # the first one is in the model's hands, which hold it
    shadow.offer([record(number) for number in range(1, 101)], WordScorer().info)
    assert counted(metrics) == {"dropped": 90}
    gate.set()
    until(lambda: counted(metrics).get("compared") == 11)
    shadow.stop()


def test_a_shadow_that_fails_is_counted_and_goes_on() -> None:
    metrics = Metrics()
    other = Other(fails=True)
    shadow = Shadow(other, 1.0, metrics)
    shadow.start()
    shadow.offer([record(0), record(1)], WordScorer().info)
    until(lambda: counted(metrics) == {"failed": 2})
    other.fails = False
    shadow.offer([record(2)], WordScorer().info)
    until(lambda: counted(metrics) == {"failed": 2, "compared": 1})
    assert metrics.shadow_disagreements_total.labels("polarity", "neutral", "negative")._value.get() == 1
    shadow.stop()


def test_messages_without_a_score_are_not_compared() -> None:
    metrics = Metrics()
    shadow = Shadow(Other(), 1.0, metrics)
    unscored = record(0)
    unscored.score = None
    shadow.offer([unscored], WordScorer().info)
    assert shadow._queue.empty()


def outputs(road: Road) -> list[Any]:
    """Everything that a consumer sees, without the times at which it was made; of the states the last, since windows vary."""
    seen: list[Any] = [sorted((str(place), repr(state)) for place, state in road.final_states().items())]
    for topic in ("scored", "escalations", "dead_letters"):
        for found in road.read(topic):
            value = None if found.value is None else found.json()
            if isinstance(value, dict):
                value.pop("timing", None)
            seen.append((topic, found.key, orjson.dumps(value, option=orjson.OPT_SORT_KEYS)))
    return sorted(seen, key=repr)


@pytest.mark.parametrize("kind", ["agrees not", "fails"])
def test_a_worker_says_the_same_with_and_without_a_shadow(
    mock_kafka: Any, redis_url: str, unique: Callable[[str], str], kind: str
) -> None:
    told = []
    for shadowed in (False, True):
        road = Road(mock_kafka, redis_url, lambda name, shadowed=shadowed: f"{unique(name)}-{shadowed}")
        lines = ["hello", "BAD", "BAD", "BAD", "GOOD", "POISON", "GOOD", "thanks"]
        road.publish(*[chat_message(text, message=f"m{n}", at_ms=START + n * 60_000) for n, text in enumerate(lines)])
        worker = Worker(road.settings(), scorer=WordScorer(), exit_when_idle=1.0)
        if shadowed:
            worker.changes.shadow = Shadow(Other(fails=kind == "fails"), 1.0, worker.metrics)
        worker.run()
        told.append(outputs(road))
        if shadowed:
            assert sample(worker, "shadow_messages_total") == 7
            assert bool(sample(worker, "shadow_disagreements_total", head="polarity")) == (kind != "fails")
    assert told[0] == told[1]


def test_a_shadow_that_is_no_bundle_is_refused_at_the_start(mock_road: Road, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model bundle"):
        Worker(mock_road.settings(model={"shadow": tmp_path, "stub": True}))


def test_the_command_takes_the_shadow_and_its_share(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", "--shadow", str(tmp_path), "--shadow-share", "1.5"])
    assert done.exit_code == 2
    # A process of its own: the command sets up logging for good.
    told = subprocess.run(
        [sys.executable, "-m", "stream_sentiment", "run", "--shadow", str(tmp_path), "--shadow-share", "0.5"],
        env=environment({"model.stub": "true"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 78
    assert f"{tmp_path} is no model bundle" in told.stderr
