"""`stream-sentiment schemas export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def export(
    directory: Annotated[Path, typer.Argument(help="Where to write; made if it is missing.")] = Path("schemas"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 when a file there is not current.")
    ] = False,
) -> None:
    """Write the JSON Schema of every topic: what is accepted, what is published.

    Example: `stream-sentiment schemas export docs/schemas`
    """
    from stream_sentiment.events import schemas

    if check:
        stale = [
            name
            for name, content in schemas.render().items()
            if not (directory / name).is_file() or (directory / name).read_bytes() != content
        ]
        for name in stale:
            typer.echo(f"not current: {directory / name}")
        raise typer.Exit(1 if stale else 0)
    for path in schemas.export(directory):
        typer.echo(path)
