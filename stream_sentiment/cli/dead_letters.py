"""`stream-sentiment dead-letters list|replay`: look at what could not be worked on, and send it in again."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import orjson
import typer

from stream_sentiment.settings import load_settings

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command("list")
def list_(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a dead letter, one a line.")] = False,
    error_class: Annotated[
        str | None, typer.Option("--class", help="Only decode, schema, too_large, poison_model or state_conflict.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 100,
    timeout: Annotated[float, typer.Option(min=1, max=600, help="Seconds to read the topic.")] = 30.0,
) -> None:
    """Show the dead letters: where each came from and what was wrong with it. Values are not shown: they hold customers' words.

    Example: `stream-sentiment dead-letters list --class schema`
    """
    from stream_sentiment.kafka.dead_letter_topic import read_dead_letters

    settings = load_settings()
    letters = [
        letter
        for letter in read_dead_letters(settings, timeout)
        if error_class is None or letter.error_class == error_class
    ]
    for letter in letters[-limit:]:
        if as_json:
            typer.echo(orjson.dumps(letter.summary()).decode())
        else:
            typer.echo(
                f"{letter.first_failed_at}  {letter.error_class:<12} {letter.topic}[{letter.partition}]@{letter.offset}  "
                f"{letter.error_message}"
            )
    if not as_json:
        counts = Counter(letter.error_class for letter in letters)
        total = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"
        typer.echo(f"{len(letters)} dead letters: {total}", err=True)


@app.command()
def replay(
    identity: Annotated[
        list[str] | None, typer.Option("--id", help="Only these (repeat the option); default: all.")
    ] = None,
    error_class: Annotated[str | None, typer.Option("--class", help="Only this error class.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, send nothing.")] = False,
    timeout: Annotated[float, typer.Option(min=1, max=600, help="Seconds to read the topic.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with the counts.")] = False,
) -> None:
    """Send dead letters to the topics they came from, after what rejected them has been mended.

    The dead letter stays where it is; the record that is sent carries its id in the header `__dlq.replay_of`. A letter of which only
    the hash was kept cannot be sent. Sending one twice is harmless: messages are known by their message_id.

    Example: `stream-sentiment dead-letters replay --class poison_model`
    """
    from stream_sentiment.kafka.dead_letter_topic import read_dead_letters, replay_dead_letters

    settings = load_settings()
    wanted = set(identity or [])
    letters = [
        letter
        for letter in read_dead_letters(settings, timeout)
        if (not wanted or letter.identity in wanted) and (error_class is None or letter.error_class == error_class)
    ]
    unknown = wanted - {letter.identity for letter in letters}
    sendable = [letter for letter in letters if letter.replayable]
    sent = 0 if dry_run else replay_dead_letters(settings, sendable)
    result = {"found": len(letters), "replayable": len(sendable), "sent": sent, "unknown": sorted(unknown)}
    if as_json:
        typer.echo(orjson.dumps(result).decode())
    else:
        typer.echo(f"{len(letters)} found, {len(sendable)} can be sent, {sent} sent")
        for name in sorted(unknown):
            typer.echo(f"no dead letter has the id {name}", err=True)
    if unknown:
        raise typer.Exit(1)
