"""`command`: one command line in this process, with its output and exit status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from stream_sentiment.cli.main import main


class Result(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call it with the arguments; keyword arguments are settings: `command("check", kafka__group_id="g")`."""
    for name in list(os.environ):
        if name.startswith("STREAM_SENTIMENT_") and not name.startswith("STREAM_SENTIMENT_TEST"):
            monkeypatch.delenv(name)

    def call(*arguments: str, **settings: Any) -> Result:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["stream-sentiment", *arguments])
            for name, value in settings.items():
                patch.setenv(f"STREAM_SENTIMENT_{name.upper()}", str(value))
            capsys.readouterr()
            with pytest.raises(SystemExit) as caught:
                main()
        out, err = capsys.readouterr()
        return Result(int(caught.value.code or 0), out, err)

    return call
