"""A picture of the running demo, for the documentation: `python -m stream_sentiment.demo.picture docs/images/demo.svg`.

Plays the demo without a terminal until the given share of it was sent, and writes the screen of that moment as SVG. Blocks for about
a minute. Nothing in the picture is drawn by hand.
"""

from __future__ import annotations

import argparse
import io
import re
import time
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console

from stream_sentiment.demo.chatlog import bundled
from stream_sentiment.demo.floor import Floor
from stream_sentiment.demo.player import schedule
from stream_sentiment.demo.runner import Demo, Pace
from stream_sentiment.demo.view import Frame, Screen
from stream_sentiment.observability.logs import configure_logging

_TEXT = re.compile(r'(<text [^>]*textLength=")([0-9.]+)("[^>]*>)([^<]*)(</text>)')
_FONT_FACE = re.compile(r"@font-face \{[^}]*\}\s*")


def portable(svg: str) -> str:
    """Rich's SVG without the fonts that it would load from elsewhere, and with the width of Chinese text put right.

    Rich states the length of a text in characters; a Chinese character takes two cells, and viewers would squeeze the line.
    """

    def widen(match: re.Match[str]) -> str:
        plain = re.sub(r"&#?\w+;", "x", match[4])
        if not plain or cell_len(plain) == len(plain):
            return match[0]
        length = float(match[2]) / len(plain) * cell_len(plain)
        return f"{match[1]}{length:g}{match[3]}{match[4]}{match[5]}"

    return _TEXT.sub(widen, _FONT_FACE.sub("", svg).replace("Fira Code, monospace", "monospace"))


def take(path: Path, width: int, height: int, share: float, speed: float) -> None:
    """Run the demo and write the screen at the moment when `share` of the records was sent."""
    log = bundled()
    floor = Floor(log.conversations)
    screen = Screen()
    console = Console(
        width=width, height=height, record=True, force_terminal=True, color_system="truecolor", file=io.StringIO()
    )
    unseen = Console(width=width, height=height, file=io.StringIO())
    taken = False

    def draw(current: Floor, frame: Frame) -> None:
        nonlocal taken
        unseen.print(screen(current, frame), height=height)  # the arrangement of rows has a memory
        if not taken and frame.progress >= share:
            taken = True
            console.print(screen(current, frame), height=height)
            path.write_text(portable(console.export_svg(title="stream-sentiment demo")), encoding="utf-8")
            demo.stop()

    configure_logging("error", "console")
    demo = Demo(schedule(log, int(time.time() * 1000)), floor, Pace(speed), draw=draw, show_text=True)
    demo.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("path", type=Path)
    parser.add_argument("--width", type=int, default=150)
    parser.add_argument("--height", type=int, default=36)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--speed", type=float, default=8.0)
    options = parser.parse_args()
    take(options.path, options.width, options.height, options.share, options.speed)
