"""`stream-sentiment`: all commands, and the one place where an error becomes a message and an exit status."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core

from stream_sentiment import __version__
from stream_sentiment.errors import ExitStatus, StreamSentimentError

#: Base of usage errors. Typer either uses the package click or carries a copy of it, by its version: found through what both export.
_UsageProblem: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a command is: a function, or (with a help text) a Typer application with commands of its own."""

    module: str
    attribute: str
    help: str | None = None

    def load(self) -> Any:
        """The command; imports its module."""
        found = getattr(import_module(f"stream_sentiment.cli.{self.module}"), self.attribute)
        if self.help is None:
            group = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
            group.command()(found)
            return typer.main.get_command(group)
        command = typer.main.get_command(found)
        command.help = self.help
        return command


#: In the order of the help page.
_COMMANDS = {
    "run": _Source("run", "run"),
    "demo": _Source("demo", "demo"),
    "score": _Source("score", "score"),
    "explain": _Source("explain", "explain"),
    "check": _Source("check", "check"),
    "bench": _Source("bench", "bench"),
    "canary": _Source("canary", "canary"),
    "backtest": _Source("backtest", "backtest"),
    "replay": _Source("replay", "replay"),
    "config": _Source("config", "app", "Show the settings in force."),
    "schemas": _Source("schemas", "app", "The wire contract as JSON Schema."),
    "topics": _Source("topics", "app", "The Kafka topics that the worker needs."),
    "conversation": _Source("conversation", "app", "Look at one conversation, or forget it."),
    "rules": _Source("rules", "app", "Check and read rule files."),
    "dead-letters": _Source("dead_letters", "app", "Records that could not be worked on."),
    "dev": _Source("dev", "app", "The whole system on this machine, without Docker."),
    "model": _Source("model", "app", "Train, export, evaluate and verify model bundles."),
}


class _LazyGroup(typer.core.TyperGroup):
    """Imports the module of the command that is asked for: those of all commands take 0.4 s (measured), `--version` needs none."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands and cmd_name in _COMMANDS:
            command = _COMMANDS[cmd_name].load()
            command.name = cmd_name
            self.commands[cmd_name] = command
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in _COMMANDS:
            for name in _COMMANDS:  # the error says what may have been meant
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="stream-sentiment",
    cls=_LazyGroup,
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
