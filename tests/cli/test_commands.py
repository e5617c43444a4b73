"""The commands as a person and a script meet them: output, exit status, help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from stream_sentiment.cli.main import app
from stream_sentiment.testing.events import chat_message
from tests.cli.conftest import Command
from tests.integration.road import Road


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(command: Any, path: tuple[str, ...]) -> None:
        if not hasattr(command, "commands"):
            found.append(path)
            return
        for name in command.list_commands(None):
            walk(command.get_command(None, name), (*path, name))

    walk(typer.main.get_command(app), ())
    return sorted(found)


def test_a_command_imports_what_it_needs_and_no_more() -> None:
    """All modules of all commands take half a second."""
    program = (
        "import sys; from stream_sentiment.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([name for name in ('confluent_kafka', 'redis', 'pydantic', 'yaml', 'numpy') if name in sys.modules])"
    )

    def imported(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()[-1]

    assert imported("--version") == "[]"
    assert imported("schemas", "list") != "[]"


NAMED_BY_CONTRACT = [
    "run", "demo", "score", "check", "config show", "schemas export", "topics create", "conversation show",
    "conversation erase", "dead-letters list", "dead-letters replay", "bench",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMED_BY_CONTRACT)
def test_the_command_exists(name: str) -> None:
    assert tuple(name.split()) in every_command()


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...], command: Command) -> None:
    result = command(*path, "--help")
    assert result.status == 0
    assert "Example" in result.out
    assert "stream-sentiment" in result.out.partition("Example")[2]


def test_a_wrong_option_is_a_usage_error(command: Command) -> None:
    assert command("run", "--no-such-option").status == 2
    assert command("nonsense").status == 2
    assert command("run", "--exit-when-idle", "soon").status == 2


def test_wrong_settings_end_every_command_with_78_and_the_whole_list(command: Command) -> None:
    result = command("config", "show", http__port="x", kafka__grop_id="y")
    assert result.status == 78
    assert "HTTP__PORT" in result.err
    assert "KAFKA__GROP_ID" in result.err
    assert "Traceback" not in result.err


def test_the_shown_settings_are_a_valid_settings_file(command: Command, tmp_path: Path) -> None:
    shown = command("config", "show", kafka__group_id="blue", intake__window_wait="15ms")
    assert shown.status == 0
    file = tmp_path / "settings.yaml"
    file.write_text(shown.out)
    again = command("config", "show", "--json", config=str(file))
    assert json.loads(again.out)["kafka"]["group_id"] == "blue"
    assert json.loads(again.out) == json.loads(json.dumps(yaml.safe_load(shown.out)))


def test_schemas_are_written_and_checked(command: Command, tmp_path: Path) -> None:
    assert command("schemas", "export", str(tmp_path)).status == 0
    assert command("schemas", "export", str(tmp_path), "--check").status == 0
    (tmp_path / "escalation.events.v1.schema.json").write_text("{}")
    stale = command("schemas", "export", str(tmp_path), "--check")
    assert stale.status == 1
    assert "escalation.events" in stale.out


def test_nobody_there_is_69_with_the_remedy(command: Command) -> None:
    nobody = {"kafka__bootstrap_servers": "127.0.0.1:9", "redis__url": "redis://127.0.0.1:9", "model__stub": "true"}
    result = command("check", "--json", "--timeout", "1", **nobody)
    assert result.status == 69
    failed = {finding["subject"] for finding in json.loads(result.out)["findings"] if finding["level"] == "fail"}
    assert failed == {"kafka", "redis"}
    shown = command("check", "--timeout", "1", **nobody).out
    assert "STREAM_SENTIMENT_KAFKA__BOOTSTRAP_SERVERS" in shown
    assert "STREAM_SENTIMENT_REDIS__URL" in shown


@pytest.mark.kafka
def test_topics_are_created_once_and_check_is_content(
    kafka: object, redis_url: str, unique: object, command: Command
) -> None:
    names = ("chat_messages", "product_reviews", "scored", "conversation_state", "escalations", "dead_letters")
    settings = {f"topics__{name}": unique(name) for name in names}  # type: ignore[operator]
    settings |= {
        "kafka__bootstrap_servers": kafka.bootstrap_servers,  # type: ignore[attr-defined]
        "redis__url": redis_url,
        "model__stub": "true",
    }
    before = command("check", "--json", **settings)
    assert before.status == 78
    missing = [f for f in json.loads(before.out)["findings"] if f["level"] == "fail"]
    assert len(missing) == 6
    assert all("topics create" in finding["remedy"] for finding in missing)

    created = command("topics", "create", "--partitions", "3", "--json", **settings)
    assert created.status == 0
    assert set(json.loads(created.out).values()) == {"created"}
    again = command("topics", "create", "--partitions", "3", "--json", **settings)
    assert set(json.loads(again.out).values()) == {"exists"}

    after = command("check", **settings)
    assert after.status == 0, after.out
    refused = command("topics", "create", "--replication", "3", topics__scored="other", **{
        name: value for name, value in settings.items() if name != "topics__scored"
    })  # fmt: skip
    assert refused.status == 78
    assert "--replication 1" in refused.err


def test_dead_letters_are_listed_and_replayed(mock_road: Road, command: Command) -> None:
    mock_road.publish_raw(b"no JSON", b"k1")
    mock_road.publish_raw(b'{"tenant_id": "shop"}', b"k2")
    mock_road.publish(chat_message("fine"))
    mock_road.work()
    settings = {f"topics__{name}": topic for name, topic in mock_road.topics.items()}
    settings |= {"kafka__bootstrap_servers": mock_road.broker.bootstrap_servers, "kafka__group_id": mock_road.group}

    listed = command("dead-letters", "list", "--json", **settings)
    letters = [json.loads(line) for line in listed.out.splitlines()]
    assert {letter["error_class"] for letter in letters} == {"decode", "schema"}
    assert "no JSON" not in "".join(json.dumps({**letter, "error_message": ""}) for letter in letters)
    only = command("dead-letters", "list", "--class", "schema", **settings)
    assert len(only.out.splitlines()) == 1

    dry = command("dead-letters", "replay", "--dry-run", "--json", **settings)
    assert json.loads(dry.out) == {"found": 2, "replayable": 2, "sent": 0, "unknown": []}
    sent = command("dead-letters", "replay", "--id", letters[0]["id"], "--json", **settings)
    assert json.loads(sent.out) == {"found": 1, "replayable": 1, "sent": 1, "unknown": []}
    replayed = [r for r in mock_road.read("chat_messages") if r.headers.get("__dlq.replay_of") == letters[0]["id"]]
    assert len(replayed) == 1
    nobody = command("dead-letters", "replay", "--id", "no-such-id", **settings)
    assert nobody.status == 1


def test_a_replayed_record_that_is_right_now_is_worked_on(mock_road: Road, command: Command) -> None:
    """The model was at fault: after the repair the letter goes through."""
    mock_road.publish(chat_message("POISON"))
    mock_road.work()
    settings = {f"topics__{name}": topic for name, topic in mock_road.topics.items()}
    settings |= {"kafka__bootstrap_servers": mock_road.broker.bootstrap_servers, "kafka__group_id": mock_road.group}
    assert command("dead-letters", "replay", "--class", "poison_model", **settings).status == 0

    from stream_sentiment.scoring.scorer import StubScorer

    mock_road.work(StubScorer())
    [scored] = mock_road.read("scored")
    assert scored.json()["message_id"] == "m1"
