"""`stream-sentiment demo`: the whole road on this machine, with nothing installed but the package."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

if TYPE_CHECKING:
    from rich.console import Console

    from stream_sentiment.demo.chatlog import ChatLog
    from stream_sentiment.demo.floor import Floor
    from stream_sentiment.demo.runner import Demo
    from stream_sentiment.demo.view import Frame

#: Seconds between two lines of counts where there is no terminal.
_PLAIN_EVERY_S = 10.0


def demo(
    fast: Annotated[bool, typer.Option("--fast", help="As fast as it goes, instead of the pace of people.")] = False,
    source: Annotated[
        str | None,
        typer.Option("--input", "-i", metavar="FILE.jsonl", help="Play this chat log instead of ours; `-` is stdin."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one summary object, and nothing else.")] = False,
    speed: Annotated[
        float, typer.Option(min=0.1, max=10_000, help="How many times faster than people; ignored with --fast.")
    ] = 8.0,
    language: Annotated[
        str | None, typer.Option(metavar="zh|en", help="Only conversations and reviews in this language.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Stop sending after so many seconds; what was sent is finished.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, max=1000, help="Play the log so many times, under new ids.")] = 1,
    show_text: Annotated[
        bool | None,
        typer.Option(
            "--show-text/--hide-text", help="Show customers' words on the screen; default: only those of our own log."
        ),
    ] = None,
) -> None:
    """See it work: a live chat floor, scored and escalated, with embedded Kafka and Redis. Nothing is durable.

    The model, the rules and the worker are the real ones; the conversations are synthetic. Settings in the environment (model,
    rules, ...) apply, except those of Kafka and Redis. A chat log of your own holds one JSON object a line: a chat event, or a whole
    conversation with `messages`, each with `role` and `text`; the command says what is missing. Exit status: 0 done, 1 the chat log
    cannot be played.

    Example: `stream-sentiment demo --fast` or `stream-sentiment demo --input chats.jsonl --speed 20`
    """
    began = time.monotonic()
    if language not in (None, "zh", "en"):
        raise typer.BadParameter(f"{language!r} is not zh or en", param_hint="--language")

    from stream_sentiment.demo.floor import Floor
    from stream_sentiment.demo.player import schedule
    from stream_sentiment.demo.runner import Demo, Pace
    from stream_sentiment.demo.summary import summary, summary_table
    from stream_sentiment.observability.logs import configure_logging

    log = _chat_log(source, language)
    for note in log.notes:
        typer.echo(note, err=True)
    records = schedule(log, int(time.time() * 1000), repeat=repeat)
    floor = Floor(log.conversations)
    console = _console()
    # The worker's own lines would tear the screen; what goes wrong is still told.
    configure_logging("error", "console")
    drawer = None if as_json else _drawer(console)
    run = Demo(
        records,
        floor,
        Pace(None if fast else speed, seconds),
        draw=drawer,
        show_text=source is None if show_text is None else show_text,
        began=began,
    )
    with drawer or nullcontext():
        interrupted = _run_until_interrupted(run)
    figures = summary(floor, redis=run.redis, seconds=run.now(), speed=None if fast else speed)
    if as_json:
        typer.echo(orjson.dumps(figures).decode())
    else:
        console.print()
        console.print(summary_table(figures))
    if interrupted:
        raise typer.Exit(130)


def _chat_log(source: str | None, language: str | None) -> ChatLog:
    from stream_sentiment.demo.chatlog import ChatLogError, bundled, read_chat_log

    if source is None:
        return bundled(language)
    if source == "-":
        return read_chat_log(sys.stdin.buffer, "standard input", language)
    try:
        with Path(source).open("rb") as file:
            return read_chat_log(file, source, language)
    except OSError as error:
        raise ChatLogError(f"{source} cannot be read: {error.strerror}") from error


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


class _Live:
    """Draws on a terminal: one screen that is painted over and over."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        from stream_sentiment.demo.view import Screen

        self._screen = Screen()
        self._live = Live(console=console, screen=True, auto_refresh=False, redirect_stderr=True)
        self._last: tuple[Floor, Frame] | None = None

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._last is not None:
            # The alternate screen is gone with all it showed: leave the last picture in the scroll-back.
            self._live.console.print(self._screen(*self._last), height=min(self._live.console.height - 1, 40))

    def __call__(self, floor: Floor, frame: Frame) -> None:
        self._last = (floor, frame)
        self._live.update(self._screen(floor, frame), refresh=True)


class _Plain:
    """Writes lines: each escalation as it comes, and the counts now and then. Never text of messages."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = 0
        self._next_s = 0.0
        self._stage = ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, floor: Floor, frame: Frame) -> None:
        from stream_sentiment.demo.view import alarm_line, status_line

        for alarm in floor.alarms_since(self._told):
            self._line(alarm_line(alarm))
        self._told = floor.alarm_count
        if frame.stage != self._stage or frame.at_s >= self._next_s:
            if not self._stage:
                self._line(frame.services)
            self._stage = frame.stage
            self._next_s = frame.at_s + _PLAIN_EVERY_S
            self._line(status_line(floor, frame))

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def _drawer(console: Console) -> _Live | _Plain:
    return _Live(console) if console.is_terminal and not console.is_dumb_terminal else _Plain(console)


def _run_until_interrupted(run: Demo) -> bool:
    """Run; True when Ctrl-C ended it. The first one ends the sending and what was sent is finished, the second ends at once."""
    interrupts = 0

    def on_interrupt(_number: int, _frame: object) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            raise KeyboardInterrupt
        run.stop()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        run.run()
    finally:
        signal.signal(signal.SIGINT, before)
    return interrupts > 0
