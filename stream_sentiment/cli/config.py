"""`stream-sentiment config show`: the settings in force, secrets starred out."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer
import yaml

from stream_sentiment.settings import load_settings, redacted

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def show(as_json: Annotated[bool, typer.Option("--json", help="JSON instead of YAML.")] = False) -> None:
    """Print every setting with its value; what is wrong is listed all at once, with exit status 78.

    The output without the stars is a valid file for `STREAM_SENTIMENT_CONFIG`.

    Example: `STREAM_SENTIMENT_KAFKA__GROUP_ID=blue stream-sentiment config show`
    """
    data = redacted(load_settings())
    if as_json:
        typer.echo(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode())
    else:
        typer.echo(yaml.safe_dump(data, allow_unicode=True, sort_keys=False), nl=False)
