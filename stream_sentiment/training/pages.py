"""Tables that a command measured, inside a page that a person wrote.

In: a Markdown file with `<!-- generated: NAME -->` and `<!-- end of NAME -->`. Out: the same file with the lines between the
marks replaced. Blocks on the file. Raises `ConfigurationError` where the marks are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stream_sentiment.errors import ConfigurationError


def write_block(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replace the block `name` of a page."""
    begin, end = f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
    try:
        text = page.read_text("utf-8")
    except OSError as error:
        raise ConfigurationError(f"{page} cannot be read: {error.strerror}") from error
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ConfigurationError(f"{page} has no block {name}: put the lines {begin} and {end} where it belongs")
    page.write_text("\n".join([before + begin, "", *lines, "", end + after]), "utf-8")
