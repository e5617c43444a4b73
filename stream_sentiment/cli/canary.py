"""`stream-sentiment canary`."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from stream_sentiment.settings import load_settings


def canary(
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two canaries of a partition.")] = 5.0,
) -> None:
    """Publish a canary event to every input partition every few seconds, until SIGTERM.

    Workers skip it, and report when the newest one was read and applied (`heartbeat_timestamp_seconds`,
    `canary_roundtrip_seconds`); the alert CanaryMissing watches that. Needs WRITE on the input topics; run one.

    Example: `stream-sentiment canary --interval 5`
    """
    from stream_sentiment.canary import publish
    from stream_sentiment.observability.logs import configure_logging

    settings = load_settings()
    configure_logging(settings.log.level, settings.log.format)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    publish(settings, interval, stop)
