"""`stream-sentiment topics create`."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer

from stream_sentiment.settings import load_settings

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def create(
    partitions: Annotated[
        int, typer.Option(min=1, max=10_000, help="Partitions of each topic; they bound the number of workers.")
    ] = 12,
    replication: Annotated[int, typer.Option(min=1, max=32_767, help="Replicas of each partition.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: topic to created or exists.")] = False,
) -> None:
    """Create the topics that are missing; those that exist stay as they are.

    Choose the number of partitions for years: conversations are spread by it, and the worker refuses to go on when it changes.

    Example: `stream-sentiment topics create --partitions 24 --replication 3`
    """
    from stream_sentiment.kafka.topics import create_topics, plan_topics

    settings = load_settings()
    outcome = create_topics(settings, plan_topics(settings, partitions), replication)
    if as_json:
        typer.echo(orjson.dumps(outcome).decode())
    else:
        for name, what in outcome.items():
            typer.echo(f"{what:8} {name}")
