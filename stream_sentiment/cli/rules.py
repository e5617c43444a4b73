"""`stream-sentiment rules`: check a rule file, print its JSON Schema, say in plain words what it does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import orjson
import typer

from stream_sentiment.errors import ConfigurationError, ExitStatus

app = typer.Typer(no_args_is_help=True)


@app.command("lint")
def lint_command(
    file: Annotated[Path, typer.Argument(help="Rule file to check.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of lines.")] = False,
) -> None:
    """Find every mistake of a rule file at once, with line, column and remedy. Exit status 1 when there is one.

    Example: `stream-sentiment rules lint rules.yaml`
    """
    from stream_sentiment.escalation.lint import lint

    findings = lint(_read(file))
    if as_json:
        mistakes = [finding._asdict() for finding in findings]
        typer.echo(orjson.dumps({"file": str(file), "ok": not findings, "mistakes": mistakes}).decode())
    else:
        for finding in findings:
            where = f" {finding.path}:" if finding.path else ""
            typer.echo(f"{file}:{finding.line}:{finding.column}:{where} {finding.message}")
        typer.echo(f"{len(findings)} mistake(s)" if findings else f"{file} is good", err=bool(findings))
    if findings:
        raise typer.Exit(int(ExitStatus.NO))


@app.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of rule files; editors check and complete with it.

    Example: `stream-sentiment rules schema > rules.schema.json`, then
    `# yaml-language-server: $schema=rules.schema.json` as the first line of a rule file.
    """
    from stream_sentiment.escalation.ruleformat import RuleFile

    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **RuleFile.model_json_schema(by_alias=True)}
    typer.echo(orjson.dumps(schema, option=orjson.OPT_INDENT_2).decode())


@app.command("explain")
def explain_command(
    file: Annotated[Path | None, typer.Argument(help="Rule file; none: the rules of the package.")] = None,
    language: Annotated[Literal["en", "zh"] | None, typer.Option(help="Unset: the file's own language.")] = None,
) -> None:
    """Say each rule as one sentence, in English or Chinese.

    Example: `stream-sentiment rules explain rules.yaml --language zh`
    """
    from stream_sentiment.escalation.explain import explain
    from stream_sentiment.escalation.rules import load_rules

    rules = load_rules(file)
    for rule in rules.file.rules:
        typer.echo(explain(rule, rules.file.defaults, language or rules.file.defaults.language))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"rule file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"rule file {file} is no UTF-8 text: {error}") from error
