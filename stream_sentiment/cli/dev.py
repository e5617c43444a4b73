"""`stream-sentiment dev up|status|down`: the local stack without Docker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from stream_sentiment.errors import ExitStatus, ServiceUnavailable, TryAgain

app = typer.Typer(no_args_is_help=True)

START_SECONDS, STOP_SECONDS = 300.0, 60.0


def default_directory() -> Path:
    """Where the stack keeps logs and data."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "stream-sentiment" / "dev"


Directory = Annotated[Path | None, typer.Option(help="Where logs and data lie.", show_default="in the cache directory")]


def _state(directory: Path) -> dict[str, Any] | None:
    """The running stack's state, None when none runs (a state file left by a killed one does not count)."""
    try:
        state: dict[str, Any] = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        return state if _runs(int(state["pid"])) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _runs(pid: int) -> bool:
    """Whether this is a stack of ours, and not another process that has got its number (nor one that has ended: no command)."""
    try:
        return b"stream_sentiment.dev.stack" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _print(state: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(state))
        return
    typer.echo(f"kafka       {state['kafka']}  {state['kafka_is']}")
    typer.echo(f"redis       {state['redis']}  pid {state['redis_pid']}")
    for worker in state["workers"]:
        typer.echo(f"worker      {worker['http']}/metrics  pid {worker['pid']}  {worker['log']}")
    typer.echo(f"prometheus  {state['prometheus'] or 'not installed (Debian package prometheus)'}")
    typer.echo(f"load        {state['events_per_second']:g} events a second")
    typer.echo("for other commands in this shell:")
    typer.echo(
        f"  export STREAM_SENTIMENT_KAFKA__BOOTSTRAP_SERVERS={state['kafka']} STREAM_SENTIMENT_REDIS__URL={state['redis']} "
        f"STREAM_SENTIMENT_KAFKA__GROUP_ID={state['group_id']}"
    )


def _down(directory: Path | None) -> str:
    """The command that ends the stack of this directory."""
    return "stream-sentiment dev down" + ("" if directory is None else f" --directory {directory}")


@app.command()
def up(
    workers: Annotated[int, typer.Option(min=1, max=32, help="Worker processes.")] = 2,
    rate: Annotated[float, typer.Option(min=0, help="Events a second of load; 0 for none.")] = 20.0,
    mock: Annotated[bool, typer.Option("--mock", help="The in-process mock Kafka instead of a real one.")] = False,
    directory: Directory = None,
    as_json: Annotated[bool, typer.Option("--json", help="Addresses and process ids as one JSON object.")] = False,
) -> None:
    """Start Kafka, Redis, workers, Prometheus and load in the background; nothing of it outlives `dev down`.

    Kafka is a real one where Java 17 and Maven are installed, else the mock; Prometheus runs where it is installed.

    Example: `stream-sentiment dev up --workers 2 --rate 50`
    """
    place = directory or default_directory()
    if _state(place) is not None:
        raise TryAgain(f"a stack runs already in {place}; end it with `{_down(directory)}`")
    place.mkdir(parents=True, exist_ok=True)
    for old in place.glob("*.log"):
        old.unlink()
    command = [sys.executable, "-m", "stream_sentiment.dev.stack", str(place)]
    command += ["--workers", str(workers), "--rate", str(rate), *(["--mock"] if mock else [])]
    with (place / "stack.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + START_SECONDS
    while (state := _state(place)) is None:
        if process.poll() is not None:
            log_text = (place / "stack.log").read_text(encoding="utf-8", errors="replace")
            raise ServiceUnavailable(f"the stack did not start:\n{log_text[-2000:]}")
        if time.monotonic() > deadline:
            process.terminate()
            raise TryAgain(f"the stack was not ready within {START_SECONDS:g} s; logs are in {place}")
        time.sleep(0.2)
    _print(state, as_json)
    if not as_json:
        typer.echo(f"end it with  {_down(directory)}")


@app.command()
def status(
    directory: Directory = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Addresses and process ids of the running stack. Exit status 1: none runs.

    Example: `stream-sentiment dev status --json`
    """
    state = _state(directory or default_directory())
    if state is None:
        typer.echo(f"no stack runs in {directory or default_directory()}", err=True)
        raise typer.Exit(int(ExitStatus.NO))
    _print(state, as_json)


@app.command()
def down(directory: Directory = None) -> None:
    """End the stack: load, Prometheus, workers (with a drain), Redis, Kafka. Nothing to do is fine.

    Example: `stream-sentiment dev down`
    """
    place = directory or default_directory()
    state = _state(place)
    if state is None:
        typer.echo(f"no stack runs in {place}")
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(state["pid"], signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while _runs(int(state["pid"])):
        if time.monotonic() > deadline:
            raise TryAgain(f"process {state['pid']} has not ended within {STOP_SECONDS:g} s")
        time.sleep(0.1)
    typer.echo("ended")
