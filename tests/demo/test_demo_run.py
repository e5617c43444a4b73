"""The whole demo: embedded Kafka and Redis, the real worker, the player; and the command as a person calls it."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stream_sentiment.demo import runner
from stream_sentiment.demo.chatlog import bundled, read_chat_log
from stream_sentiment.demo.floor import Floor
from stream_sentiment.demo.player import schedule
from stream_sentiment.demo.runner import Demo, Pace
from stream_sentiment.demo.summary import summary
from stream_sentiment.demo.view import Frame
from stream_sentiment.settings import Settings
from stream_sentiment.store import embedded
from stream_sentiment.testing.worker import environment
from tests.demo.words import WordScorer

END_MS = 1_767_600_000_000


def conversation(name: str, *texts: str) -> bytes:
    messages = [{"role": "customer", "text": text, "offset_s": 20 * i} for i, text in enumerate(texts)]
    return json.dumps({"id": name, "tenant_id": "t", "language": "en", "messages": messages}).encode()


LOG = [
    conversation("turns-bad", "hello", "this is bad", "still bad", "very bad", "so bad"),
    conversation("stays-calm", "hello", "good", "thanks, good"),
    conversation("recovers", "bad", "bad", "bad", "good", "good", "good", "good", "good"),
    b'{"conversation_id": "x", "text": "no role"}',
]


def run(
    pace: Pace, log: list[bytes] = LOG, frames: list[Frame] | None = None, stop_after_s: float | None = None
) -> tuple[Floor, Demo]:
    floor = Floor()
    demo = Demo(
        schedule(read_chat_log(log, "log"), END_MS),
        floor,
        pace,
        scorer=WordScorer(),
        draw=None if frames is None else lambda _floor, frame: frames.append(frame),
    )
    if stop_after_s is not None:
        threading.Timer(stop_after_s, demo.stop).start()
    demo.run()
    return floor, demo


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - environment({}).keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("STREAM_SENTIMENT_RULES__PATH", str(Path(__file__).with_name("rules.yaml")))


def test_what_is_sent_comes_back_scored_escalated_recovered_and_as_a_dead_letter() -> None:
    floor, demo = run(Pace(None))

    assert {key[1]: len(row.points) for key, row in floor.rows.items()} == {
        "turns-bad": 5,
        "stays-calm": 3,
        "recovers": 8,
    }
    opened = {alarm.conversation_id for alarm in floor.alarms if alarm.action == "opened"}
    assert opened == {"turns-bad", "recovers"}
    assert floor.rows["t", "turns-bad"].severity in {"warning", "error", "critical"}
    assert floor.rows["t", "recovers"].resolution == "recovered"
    assert floor.rows["t", "stays-calm"].rolling > 0  # type: ignore[operator]
    assert floor.dead_letters == {"schema": 1}
    figures = summary(floor, redis=demo.redis, seconds=demo.now(), speed=None)
    assert (figures["events"], figures["scored"], figures["dead_letters"]) == (17, 16, 1)
    assert figures["model"]["name"] == "words"


def test_where_there_is_no_redis_server_the_imitation_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_redis", lambda: embedded.RedisSource("fakeredis", None))

    floor, demo = run(Pace(None))

    assert demo.redis == "fakeredis"
    assert floor.scored == 16
    assert floor.rows["t", "recovers"].resolution == "recovered"


def test_the_screen_is_drawn_through_all_stages_and_the_end_shows_everything() -> None:
    frames: list[Frame] = []

    floor, _ = run(Pace(200.0), frames=frames)

    stages = list(dict.fromkeys(frame.stage for frame in frames))
    assert stages[0] == "starting"
    assert stages[-1] == "done"
    assert "playing" in stages
    assert frames[-1].progress == 1.0
    assert floor.scored == 16


WAITING = """
version: 1
rules:
  - id: unanswered
    when: {rolling_score: {open: -0.1}, agent_response_gap: 5m}
    severity: warning
"""


def chat(name: str, *messages: tuple[str, str, int]) -> bytes:
    told = [{"role": role, "text": text, "offset_s": at_s} for role, text, at_s in messages]
    return json.dumps({"id": name, "tenant_id": "t", "language": "en", "messages": told}).encode()


@pytest.mark.parametrize("timers", [False, True])
def test_a_silence_that_the_floor_shortens_makes_nobody_else_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, timers: bool
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(WAITING)
    monkeypatch.setenv("STREAM_SENTIMENT_RULES__PATH", str(rules))
    if timers:  # the control: what it guards against
        given = runner.demo_settings

        def with_timers(kafka: str, redis: str) -> Settings:
            settings = given(kafka, redis)
            return settings.model_copy(update={"worker": settings.worker.model_copy(update={"timers": True})})

        monkeypatch.setattr(runner, "demo_settings", with_timers)
    silent = chat("silent", ("customer", "so bad", 0), ("customer", "so bad", 3600))
    answered = [
        chat(f"answered-{i}", ("customer", "so bad", 0), ("customer", "so bad", 30), ("agent", "done", 100))
        for i in range(9)
    ]

    floor, _ = run(Pace(16.0), [silent, *answered])

    opened = {alarm.conversation_id for alarm in floor.alarms if alarm.action == "opened"}
    assert "silent" in opened
    assert (opened == {"silent"}) is not timers


def test_a_stop_sends_no_more_but_finishes_what_was_sent() -> None:
    slow = [conversation(f"c{i}", *["hello"] * 50) for i in range(4)]

    floor, _ = run(Pace(20.0), log=slow, stop_after_s=8.0)

    assert 0 < floor.sent < 200
    assert floor.scored == floor.sent


def test_only_the_seconds_asked_for_are_played() -> None:
    slow = [conversation(f"c{i}", *["hello"] * 50) for i in range(4)]

    floor, _ = run(Pace(10.0, seconds=1.0), log=slow)

    assert 0 < floor.sent < 200
    assert floor.scored == floor.sent


# The command


def command(*arguments: str, stub: bool = True, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    settings = {"model.stub": "true"} if stub else {}
    return subprocess.run(
        [sys.executable, "-m", "stream_sentiment", "demo", *arguments],
        env=environment(settings),
        input=stdin,
        capture_output=True,
        timeout=180,
        check=False,
    )


def test_json_prints_one_object_with_the_promised_fields_and_nothing_else() -> None:
    done = command("--fast", "--json")

    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    log = bundled()
    lines = [line.event for c in log.conversations for line in c.lines]
    words = [
        e
        for e in lines
        if (e.get("sender") or {}).get("role") == "customer" and e["type"] in {"chat.message.created", "chat.message.edited"}
    ]  # fmt: skip
    assert figures["events"] == len(lines) + 20 + 6
    assert figures["scored"] + figures["skipped"] == len(words) + 20
    assert figures["dead_letters"] == 6
    assert figures["dead_letters_by_class"] == {"decode": 2, "schema": 4}
    assert figures["model"]["name"] == "stub"
    assert figures["durable"] is False
    assert {"escalations", "events_per_second", "seconds_to_first_escalation"} <= figures.keys()


def test_in_a_pipe_the_demo_writes_plain_lines_and_no_customers_words() -> None:
    done = command("--fast", "--language", "en")

    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in text
    assert "nothing is durable" in text
    assert "events sent" in text
    assert "What happened" in text
    for conversation_ in bundled("en").conversations:
        for line in conversation_.lines:
            words = str(line.event.get("text", ""))
            assert len(words) < 20 or words not in text


def test_a_chat_log_from_standard_input_is_played() -> None:
    done = command("--fast", "--json", "--input", "-", stdin=b"\n".join(LOG))

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["conversations"] == 3
    assert b"line 4: sender.role is missing" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--input", "no-such-file.jsonl"), 1, b"no-such-file.jsonl cannot be read: No such file or directory"),
        (("--language", "fr"), 2, b"'fr' is not zh or en"),
        (("--speed", "0"), 2, b"--speed"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(arguments: tuple[str, ...], status: int, said: bytes) -> None:
    done = command(*arguments)

    assert (done.returncode, done.stdout) == (status, b"")
    assert said in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_file_that_is_no_chat_log_says_which_fields_it_lacks(tmp_path: Path) -> None:
    file = tmp_path / "tickets.jsonl"
    file.write_text('{"id": 1, "subject": "Broken lamp"}\n{"id": 2, "subject": "Refund"}\n')

    done = command("--input", str(file))

    assert done.returncode == 1
    assert b"line 1: conversation_id, sender.role, text are missing" in done.stderr
    assert b'{"conversation_id": "c-1"' in done.stderr
