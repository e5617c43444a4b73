"""`stream-sentiment`: all commands, and the one place where an error becomes a message and an exit status."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from stream_sentiment import __version__
from stream_sentiment.cli import config, dead_letters, dev, rules, schemas, topics
from stream_sentiment.cli.backtest import backtest
from stream_sentiment.cli.bench import bench
from stream_sentiment.cli.canary import canary
from stream_sentiment.cli.check import check
from stream_sentiment.cli.conversation import app as conversation_app
from stream_sentiment.cli.demo import demo
from stream_sentiment.cli.explain import explain
from stream_sentiment.cli.model import app as model_app
from stream_sentiment.cli.replay import replay
from stream_sentiment.cli.run import run
from stream_sentiment.cli.score import score
from stream_sentiment.errors import ExitStatus, StreamSentimentError

#: Base of usage errors. Typer either uses the package click or carries a copy of it, by its version: found through what both export.
_UsageProblem: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

app = typer.Typer(
    name="stream-sentiment",
    help="Score customer messages as they arrive, and say when a conversation needs a person.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command()(run)
app.command()(demo)
app.command()(score)
app.command()(explain)
app.command()(check)
app.command()(bench)
app.command()(canary)
app.command()(backtest)
app.command()(replay)
app.add_typer(config.app, name="config", help="Show the settings in force.")
app.add_typer(schemas.app, name="schemas", help="The wire contract as JSON Schema.")
app.add_typer(topics.app, name="topics", help="The Kafka topics that the worker needs.")
app.add_typer(conversation_app, name="conversation", help="Look at one conversation, or forget it.")
app.add_typer(rules.app, name="rules", help="Check and read rule files.")
app.add_typer(dead_letters.app, name="dead-letters", help="Records that could not be worked on.")
app.add_typer(dev.app, name="dev", help="The whole system on this machine, without Docker.")
app.add_typer(model_app, name="model", help="Train, export, evaluate and verify model bundles.")


def main() -> None:
    """Entry point of the console script."""
    from stream_sentiment.observability.logs import configure_logging

    # stdout is for results, and a command's errors are its messages; what runs for long configures logs of its own.
    configure_logging("critical", "console")
    command = typer.main.get_command(app)
    try:
        status = command.main(standalone_mode=False)
        sys.exit(int(status or 0))
    except StreamSentimentError as error:
        typer.echo(f"stream-sentiment: {error}", err=True)
        sys.exit(int(error.exit_status))
    except typer.Abort:
        sys.exit(130)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except _UsageProblem as error:
        error.show()
        sys.exit(int(ExitStatus.USAGE) if error.exit_code == ExitStatus.USAGE else error.exit_code)
    except BrokenPipeError:
        # `... | head` has seen enough.
        sys.stderr.close()
        sys.exit(0)
