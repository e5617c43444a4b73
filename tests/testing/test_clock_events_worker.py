import sys

import pytest

from stream_sentiment.errors import ServiceUnavailable
from stream_sentiment.events.incoming import ChatEvent, InvalidEvent, ReviewEvent, decode
from stream_sentiment.local_process import PORT_RANGE, LocalProcess, free_port
from stream_sentiment.testing import (
    FakeClock,
    WorkerProcess,
    chat_message,
    conversation_event,
    encode,
    record_key,
    review,
)
from stream_sentiment.testing.events import SCRIPTS, timestamp
from stream_sentiment.testing.worker import environment


def accepted(kind: str, value: bytes):
    return decode(kind, value, {}, max_bytes=1 << 20).event


def test_time_passes_only_when_the_clock_is_told_to():
    clock = FakeClock(start_ms=1_000)
    assert (clock.now_ms(), clock.monotonic()) == (1_000, 0.0)
    clock.advance(1.5)
    assert (clock.now_ms(), clock.monotonic()) == (2_500, 1.5)


def test_setting_the_wall_clock_back_does_not_move_monotonic_time():
    clock = FakeClock(start_ms=10_000)
    clock.advance(1)
    clock.set_wall(5_000)
    assert (clock.now_ms(), clock.monotonic()) == (5_000, 1.0)


def test_time_cannot_be_advanced_backwards():
    with pytest.raises(ValueError, match="does not go back"):
        FakeClock().advance(-1)


def test_the_builders_build_what_the_contract_accepts():
    assert isinstance(accepted("chat", encode(chat_message())), ChatEvent)
    assert isinstance(accepted("chat", encode(conversation_event("ended"))), ChatEvent)
    assert isinstance(accepted("review", encode(review())), ReviewEvent)


def test_a_builder_without_a_field_breaks_the_contract():
    """The control: the decoder that accepts the builders' events is one that refuses."""
    with pytest.raises(InvalidEvent, match="conversation_id"):
        accepted("chat", encode(chat_message(conversation_id=None)))


def test_keys_are_tenant_and_conversation_or_tenant_and_product():
    assert record_key(chat_message(tenant="t", conversation="c")) == b"t|c"
    assert record_key(review(tenant="t", product="p")) == b"t|p"


def test_times_are_rfc_3339_with_milliseconds():
    assert timestamp(1_767_603_600_007) == "2026-01-05T09:00:00.007Z"


def test_every_script_is_valid_and_both_languages_have_calm_and_bad_ones():
    for script in SCRIPTS:
        events = list(script.events())
        assert [event["message_id"] for event in events] == [f"m{n}" for n in range(1, len(events) + 1)]
        for event in events:
            assert isinstance(accepted("chat", encode(event)), ChatEvent)
    assert {(script.language, script.turns_bad) for script in SCRIPTS} == {
        ("en", True),
        ("en", False),
        ("zh", True),
        ("zh", False),
    }


def test_ports_come_from_below_the_range_of_outgoing_connections():
    assert {free_port() in PORT_RANGE for _ in range(50)} == {True}


def test_a_workers_environment_holds_its_settings_and_none_of_the_machines(monkeypatch):
    monkeypatch.setenv("STREAM_SENTIMENT_KAFKA__GROUP_ID", "of the machine")
    monkeypatch.setenv("STREAM_SENTIMENT_CONFIG", "machine.yaml")
    found = environment({"redis.url": "redis://127.0.0.1:1/0", "kafka.bootstrap_servers": "a:1"})
    ours = {name: value for name, value in found.items() if name.startswith("STREAM_SENTIMENT_")}
    assert ours == {
        "STREAM_SENTIMENT_REDIS__URL": "redis://127.0.0.1:1/0",
        "STREAM_SENTIMENT_KAFKA__BOOTSTRAP_SERVERS": "a:1",
    }


def test_a_worker_that_ends_before_it_is_ready_says_why():
    with WorkerProcess({"kafka.grup_id": "misspelt"}) as worker:
        with pytest.raises(ServiceUnavailable, match="before it was ready"):
            worker.wait_ready(timeout_s=30)
        assert worker.wait_exit(5) != 0


@pytest.fixture
def sleeper(tmp_path):
    process = LocalProcess(
        "sleeper", [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"], tmp_path / "log"
    )
    process.start()
    process.wait_until(lambda: "up" in process.log_text(), 10)
    yield process
    process.kill()


def test_a_terminated_process_reports_the_signal(sleeper):
    sleeper.terminate()
    assert (sleeper.running, sleeper.returncode) == (False, -15)


def test_a_stopped_process_can_still_be_terminated(sleeper):
    sleeper.send(19)
    sleeper.terminate(timeout_s=5)
    assert sleeper.returncode == -15


def test_a_running_process_cannot_be_started_twice(sleeper):
    with pytest.raises(ServiceUnavailable, match="runs already"):
        sleeper.start()


def test_waiting_for_what_never_happens_ends_with_the_log(sleeper):
    with pytest.raises(ServiceUnavailable, match=r"was not ready within 0\.2 s:\nup"):
        sleeper.wait_until(lambda: False, 0.2)
