"""`stream-sentiment check`: would a worker with these settings run, and keep its guarantee?"""

from __future__ import annotations

from typing import Annotated

import orjson
import typer

from stream_sentiment.errors import ExitStatus
from stream_sentiment.settings import load_settings


def check(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with every finding.")] = False,
    timeout: Annotated[float, typer.Option(min=1, max=120, help="Seconds for each service to answer.")] = 10.0,
) -> None:
    """Check broker, topics, permissions, Redis, model and rules; each line that is not right says what to do.

    Changes nothing but one key in Redis that lives for a second. Exit status: 0 all is well (warnings allowed), 69 a service
    does not answer, 78 something must be mended.

    Example: `stream-sentiment check`
    """
    from stream_sentiment.preflight import Level, inspect

    findings = inspect(load_settings(), timeout)
    if as_json:
        typer.echo(
            orjson.dumps(
                {
                    "ok": all(finding.level is not Level.FAIL for finding in findings),
                    "findings": [
                        {
                            "level": finding.level.value,
                            "subject": finding.subject,
                            "message": finding.message,
                            "remedy": finding.remedy,
                        }
                        for finding in findings
                    ],
                }
            ).decode()
        )
    else:
        for finding in findings:
            mark = {Level.OK: "ok  ", Level.WARN: "WARN", Level.FAIL: "FAIL"}[finding.level]
            typer.echo(f"{mark}  {finding.subject:<11} {finding.message}")
            if finding.remedy:
                typer.echo(f"      {'':<11} -> {finding.remedy}")
    failed = [finding for finding in findings if finding.level is Level.FAIL]
    if any(finding.unavailable for finding in failed):
        raise typer.Exit(int(ExitStatus.UNAVAILABLE))
    if failed:
        raise typer.Exit(int(ExitStatus.CONFIGURATION))
