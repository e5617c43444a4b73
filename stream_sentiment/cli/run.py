"""`stream-sentiment run`: one worker, or a supervisor of several."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stream_sentiment.settings import load_settings, parse_duration

if TYPE_CHECKING:
    from stream_sentiment.worker import Worker


def _seconds(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return float(parse_duration(value).total_seconds())  # type: ignore[attr-defined]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def run(
    workers: Annotated[
        int, typer.Option("--workers", "-n", min=1, max=256, help="Worker processes on this machine.")
    ] = 1,
    exit_when_idle: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Stop when every assigned partition has been at its end for so long."),
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="HTTP port; 0 for any free one.")] = None,
    shadow: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE", help="Score a share with this model, too, silently, and report where it differs."
        ),
    ] = None,
    shadow_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the messages for --shadow; unset: 0.1.")
    ] = None,
) -> None:
    """Consume messages, score them, keep the conversations, raise escalations.

    All settings come from the environment (`STREAM_SENTIMENT_...`) or a file; see `stream-sentiment config show`.
    SIGTERM drains and leaves the group; a second SIGTERM ends at once. SIGHUP has the rule file and the model bundle
    looked at now. Exit status: 0 done, 69 Kafka or Redis cannot be reached at start-up, 75 the drain was cut short
    (nothing is lost), 78 a setting is wrong.

    Example: `STREAM_SENTIMENT_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 STREAM_SENTIMENT_REDIS__URL=redis://redis:6379/0
    stream-sentiment run --workers 2`
    """
    overrides: dict[str, Any] = {} if port is None else {"http": {"port": port}}
    model = {name: value for name, value in (("shadow", shadow), ("shadow_share", shadow_share)) if value is not None}
    if model:
        overrides["model"] = model
    settings = load_settings(**overrides)
    idle = _seconds(exit_when_idle)
    from stream_sentiment.observability.logs import configure_logging

    configure_logging(settings.log.level, settings.log.format)
    if workers > 1:
        from stream_sentiment.supervisor import Supervisor

        arguments = [] if exit_when_idle is None else ["--exit-when-idle", exit_when_idle]
        arguments += [] if shadow is None else ["--shadow", str(shadow)]
        arguments += [] if shadow_share is None else ["--shadow-share", str(shadow_share)]
        status = Supervisor(workers, settings.http.port, settings.worker.drain_timeout.total_seconds(), arguments).run()
        raise typer.Exit(status)

    worker: Worker | None = None
    signals = 0

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal signals
        signals += 1
        if worker is None:
            sys.exit(0)  # still loading: nothing has been read
        if signals > 1:
            sys.exit(130)  # asked twice: leave at once; the next owner goes on from the watermark
        worker.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)

    def on_hangup(_number: int, _frame: object) -> None:
        if worker is not None:  # else it is about to read the files anyway
            worker.reload()

    signal.signal(signal.SIGHUP, on_hangup)
    from stream_sentiment.worker import Worker  # after the handlers: it brings the slow imports

    worker = Worker(settings, exit_when_idle=idle, on_listening=_print_address)
    worker.run()


def _print_address(address: str) -> None:
    typer.echo(f"metrics and health on {address}", err=True)
