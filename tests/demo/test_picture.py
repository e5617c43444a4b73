"""The picture in the documentation."""

import io
import re
from pathlib import Path

from rich.console import Console

from stream_sentiment.demo.picture import portable

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "demo.svg"


def svg_of(text: str) -> str:
    console = Console(record=True, width=40, file=io.StringIO())
    console.print(text)
    return console.export_svg(title="t")


def lengths(svg: str) -> dict[str, float]:
    return {text: float(length) for length, text in re.findall(r'textLength="([0-9.]+)"[^>]*>([^<]+)</text>', svg)}


def test_chinese_text_gets_the_room_of_two_cells_a_character() -> None:
    plain = svg_of("退款退款\nabcdefgh")

    assert lengths(plain)["退款退款"] == lengths(plain)["abcdefgh"] / 2  # what rich writes, and viewers squeeze
    assert lengths(portable(plain))["退款退款"] == lengths(plain)["abcdefgh"]
    assert lengths(portable(plain))["abcdefgh"] == lengths(plain)["abcdefgh"]


def test_the_picture_loads_nothing_from_elsewhere() -> None:
    assert "url(http" in svg_of("a").replace('url("http', "url(http")

    for svg in (portable(svg_of("a")), PICTURE.read_text(encoding="utf-8")):
        assert re.search(r"url\(\W?http|@font-face|<image", svg) is None
