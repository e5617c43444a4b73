"""`stream-sentiment score`: texts in, one JSON line each out, with the worker's own scoring code.

A window of rows is read, routed, scored and written before the next one is read, so that a file of any size
takes little memory. A bad row is reported on stderr with its number; the others are still scored, and the
command ends with status 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TextIO

import orjson
import typer

from stream_sentiment.errors import ConfigurationError, ExitStatus

# Large enough to sort by length well (within 3 % of a full sort), small enough to answer quickly.
WINDOW = 256


def score(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to score; none: read --input or stdin.")] = None,
    source: Annotated[
        Path | None,
        typer.Option("--input", "-i", metavar="FILE", help="JSONL rows with a `text`, or plain lines; `-` is stdin."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here instead of stdout.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Model bundle; unset: the configured one.")
    ] = None,
    text_field: Annotated[str, typer.Option(help="Field of a JSON row that holds the text.")] = "text",
    tenant: Annotated[str, typer.Option(metavar="ID", help="Whose phrases count (`corrections.phrases`).")] = "",
) -> None:
    """Score texts offline: the same model and code as the worker, one JSON line per input row, in the order
    of the input.

    A line that starts with `{` is a JSON row; its `id` is kept. Any other line is a text. Each result holds
    `sentiment`, `emotion` and `corrections` as in a scored event, or `skipped_reason`. A `rating` (1 to 5) in a row counts as
    that of a review.

    Example: `stream-sentiment score "The parcel never came." "好的谢谢"`
    or `stream-sentiment score --input messages.jsonl > scores.jsonl`
    """
    from stream_sentiment.settings import load_settings

    settings = load_settings()
    from stream_sentiment.events.routing import RoutingOptions
    from stream_sentiment.scoring.corrections import Corrector
    from stream_sentiment.scoring.scorer import OnnxScorer

    scorer = OnnxScorer.load(
        model or settings.model.path, device=settings.model.device, token_budget=settings.model.token_budget
    )
    corrector = Corrector.of(settings.corrections, scorer.info)
    languages = RoutingOptions().languages
    bad = 0
    with _open_output(output) as sink, _progress(source) as advance:
        for window in _windows(_rows(texts, source, text_field), WINDOW):
            lines, errors = score_window(scorer, window, languages, corrector, tenant)
            for number, problem in errors:
                typer.echo(f"row {number}: {problem}", err=True)
            bad += len(errors)
            sink.write(b"".join(line + b"\n" for line in lines).decode())
            sink.flush()
            advance(len(window))
    if bad:
        typer.echo(f"{bad} row(s) could not be scored", err=True)
        raise typer.Exit(int(ExitStatus.NO))


Row = tuple[int, dict[str, Any] | None, str]
"""Row number from 1; the record (`id`, `text`, `language`), or None with what is wrong with it."""


def score_window(
    scorer: Any, window: list[Row], languages: Iterable[str], corrector: Any = None, tenant_id: str = ""
) -> tuple[list[bytes], list[tuple[int, str]]]:
    """JSON lines of the good rows in their order, and the bad ones."""
    from stream_sentiment.events.routing import guess_language
    from stream_sentiment.scoring.blocks import emotion_block, sentiment_block
    from stream_sentiment.scoring.corrections import Corrector, corrections_block
    from stream_sentiment.scoring.errors import InferenceError

    corrector = corrector or Corrector()
    supported = frozenset(languages)
    results: dict[int, dict[str, Any]] = {}
    errors: list[tuple[int, str]] = []
    live: list[tuple[int, str]] = []
    for position, (number, record, problem) in enumerate(window):
        if record is None:
            errors.append((number, problem))
            continue
        text = record["text"]
        language = str(record.get("language") or "").split("-")[0].lower() or guess_language(text)
        head = {"id": record["id"]} if "id" in record else {}
        if not text.strip():
            results[position] = {**head, "skipped_reason": "empty_text"}
        elif language not in supported:
            results[position] = {**head, "skipped_reason": "language_unsupported"}
        else:
            results[position] = head
            live.append((position, text))
    for start in range(0, len(live), WINDOW):
        part = live[start : start + WINDOW]
        tokens = scorer.tokenize([text for _, text in part])
        try:
            scores = scorer.score([text for _, text in part])
        except InferenceError as error:
            for position, _ in part:
                results.pop(position, None)
                errors.append((window[position][0], str(error)))
            continue
        for (position, _), token, said in zip(part, tokens, scores, strict=True):
            rating = (window[position][1] or {}).get("rating")
            result, corrections = corrector.correct(token.text, said, tenant_id=tenant_id, rating=rating)
            results[position] |= {
                "sentiment": sentiment_block(result, scorer.info),
                "emotion": emotion_block(result, scorer.info),
                "uncertain": result.uncertain,
                "corrections": corrections_block(corrections),
                "truncated": token.truncated,
            }
            if result.intensity is not None:
                results[position]["intensity"] = round(result.intensity, 4)
    return [orjson.dumps(results[position]) for position in sorted(results)], sorted(errors)


def _rows(texts: list[str] | None, source: Path | None, text_field: str) -> Iterator[Row]:
    if texts:
        if source is not None:
            raise typer.BadParameter("give texts or --input, not both")
        for number, text in enumerate(texts, 1):
            if "." in text and os.path.isfile(text):  # no Path: it raises for a name too long for a file
                typer.echo(f"{text!r} is scored as a text; for the rows of that file: --input {text}", err=True)
            yield number, {"id": number, "text": text}, ""
        return
    if source is None and sys.stdin.isatty():
        raise typer.BadParameter("give texts, --input FILE, or rows on stdin")
    with _open_input(source) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _row(number, line, text_field)


def _row(number: int, line: bytes, text_field: str) -> Row:
    try:
        if not line.lstrip().startswith(b"{"):
            return number, {"text": line.decode("utf-8").rstrip("\r\n")}, ""
        record = orjson.loads(line)
    except UnicodeDecodeError as error:
        return number, None, f"not UTF-8 ({error.reason} at byte {error.start})"
    except orjson.JSONDecodeError as error:
        return number, None, f"not JSON ({error})"
    text = record.get(text_field)
    if not isinstance(text, str):
        found = "is missing" if text is None else f"is {type(text).__name__}, not a string"
        return number, None, f"field {text_field!r} {found}; name the right one with --text-field"
    kept = {"text": text, "language": record.get("language") or record.get("lang")}
    if isinstance(record.get("rating"), int | float):
        kept["rating"] = record["rating"]
    return number, kept | ({"id": record["id"]} if "id" in record else {}), ""


def _windows(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    while window := list(islice(rows, size)):
        yield window


class _open_input:
    def __init__(self, source: Path | None) -> None:
        self._source = source

    def __enter__(self) -> Iterable[bytes]:
        if self._source is None or str(self._source) == "-":
            self._file: Any = None
            return sys.stdin.buffer
        try:
            self._file = self._source.open("rb")
        except OSError as error:
            raise ConfigurationError(f"{self._source} cannot be read: {error.strerror}") from error
        opened: Iterable[bytes] = self._file
        return opened

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


class _open_output:
    def __init__(self, target: Path | None) -> None:
        self._target = target
        self._file: TextIO | None = None

    def __enter__(self) -> TextIO:
        if self._target is None:
            return sys.stdout
        try:
            self._file = self._target.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"{self._target} cannot be written: {error.strerror}") from error
        return self._file

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


class _progress:
    """A bar on stderr when it is a terminal and stdout is not (results on the same screen would tear it)."""

    def __init__(self, source: Path | None) -> None:
        self._shown = sys.stderr.isatty() and not sys.stdout.isatty()
        self._source = source
        self._bar: Any = None

    def __enter__(self) -> Any:
        if not self._shown:
            return lambda _count: None
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

        self._bar = Progress(
            SpinnerColumn(), "scored", MofNCompleteColumn(), TimeElapsedColumn(), console=Console(stderr=True)
        )
        self._bar.start()
        task = self._bar.add_task("scored", total=None)
        return lambda count: self._bar.advance(task, count)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
