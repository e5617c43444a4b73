"""What the `model` commands share: options, progress, and the word about a missing extra."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream_sentiment.errors import ConfigurationError

if TYPE_CHECKING:
    from stream_sentiment.training.data import Row

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
PageOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Put the tables into this page, between its generated-block marks.")
]


def needs_train_extra() -> None:
    """Raise ConfigurationError where torch and onnx are not installed."""
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(f'{error}; run: pip install "stream-sentiment[cpu,train]"') from error


def spread(rows: list[Row], count: int) -> list[Row]:
    """`count` rows evenly over the file: neighbours are often alike."""
    return rows[:: max(1, len(rows) // count)]


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr, drawn on a terminal only; called with done, total, text."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    if not sys.stderr.isatty():
        yield lambda _done, _total, _text: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None, note="")
        yield lambda done, total, text: progress.update(task, completed=done, total=total, note=text)
