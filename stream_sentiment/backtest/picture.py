"""A sweep as a picture: precision against recall, one numbered point a value, with the figures beside it; SVG without any library.

In: rows of a sweep. Out: SVG. Pure; raises nothing. The axes show the part of the square in which the points lie, and say so by their
numbers: the points of a good rule file lie close together in a corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import ceil, floor
from typing import Any, NamedTuple

WIDTH, LEFT, TOP, SIDE = 900, 64, 56, 400
TABLE_LEFT, LINE = LEFT + SIDE + 44, 20
INK, GRID, BLUE = "#222", "#ddd", "#3366aa"
COLUMNS = (("", 0), ("value", 70), ("recall", 140), ("precision", 220), ("false alarms", 320))


class _Axis(NamedTuple):
    low: float
    high: float

    def place(self, share: float) -> float:
        """From 0 to 1 along the axis."""
        return (share - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        step = 0.1 if self.high - self.low > 0.55 else 0.05
        return [round(self.low + step * i, 2) for i in range(round((self.high - self.low) / step) + 1)]


def precision_recall_svg(rows: Sequence[dict[str, Any]], title: str) -> str:
    """Rows of a sweep; those without labels or alerts are left out."""
    points = [row for row in rows if row.get("precision") is not None]
    across = _axis([row["recall"] for row in points])
    up = _axis([row["precision"] for row in points])
    height = max(TOP + SIDE + 56, TOP + LINE * (len(points) + 2))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="26" font-size="15">{escape(title)}</text>',
    ]
    for tick in across.ticks():
        x = LEFT + SIDE * across.place(tick)
        out.append(f'<path d="M{x:.1f} {TOP}V{TOP + SIDE}" stroke="{GRID}" fill="none"/>')
        out.append(f'<text x="{x:.1f}" y="{TOP + SIDE + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in up.ticks():
        y = TOP + SIDE * (1 - up.place(tick))
        out.append(f'<path d="M{LEFT} {y:.1f}H{LEFT + SIDE}" stroke="{GRID}" fill="none"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    out.append(f'<text x="{LEFT + SIDE / 2}" y="{TOP + SIDE + 42}" text-anchor="middle">recall: alerted in time</text>')
    middle = TOP + SIDE / 2
    out.append(f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">precision</text>')
    placed = [
        (LEFT + SIDE * across.place(row["recall"]), TOP + SIDE * (1 - up.place(row["precision"]))) for row in points
    ]
    if len(placed) > 1:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        out.append(f'<polyline points="{line}" fill="none" stroke="{BLUE}" stroke-width="1.5"/>')
    for (x, y), numbers in _together(placed).items():
        out.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{BLUE}"/>')
        # Below the point in the upper half, so that no number stands over the title.
        below = 18 if y < middle else -8
        out.append(f'<text x="{x}" y="{y + below:.1f}" text-anchor="middle" font-size="11">{_span(numbers)}</text>')
    out += _table(points)
    out.append("</svg>")
    return "\n".join(out) + "\n"


def _table(points: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f'<text x="{TABLE_LEFT + x}" y="{TOP + 4}" text-anchor="end" font-weight="bold">{name}</text>'
        for name, x in COLUMNS
    ]
    for number, row in enumerate(points, 1):
        cells = (
            str(number),
            f"{row['value']:g}",
            f"{row['recall']:.2f}",
            f"{row['precision']:.2f}",
            "" if row.get("false_alarm_rate") is None else f"{row['false_alarm_rate']:.2f}",
        )
        y = TOP + 4 + LINE * number
        lines += [
            f'<text x="{TABLE_LEFT + x}" y="{y}" text-anchor="end">{cell}</text>'
            for cell, (_, x) in zip(cells, COLUMNS, strict=True)
        ]
    return lines


def _axis(shares: Sequence[float]) -> _Axis:
    """The tenths around the points, at least three of them."""
    low = max(0.0, floor(min(shares, default=0) * 10 - 0.5) / 10)
    high = min(1.0, ceil(max(shares, default=1) * 10 + 0.5) / 10)
    if high - low < 0.3:
        low, high = (max(0.0, high - 0.3), high) if high > 0.9 else (low, min(1.0, low + 0.3))
    return _Axis(round(low, 1), round(high, 1))


def _together(placed: Sequence[tuple[float, float]]) -> dict[tuple[float, float], list[int]]:
    """Points that would cover each other, as one with all their numbers."""
    groups: dict[tuple[float, float], list[int]] = {}
    for number, (x, y) in enumerate(placed, 1):
        near = next((place for place in groups if abs(place[0] - x) < 9 and abs(place[1] - y) < 9), None)
        groups.setdefault(near or (round(x, 1), round(y, 1)), []).append(number)
    return groups


def _span(numbers: Sequence[int]) -> str:
    """`3`, `3, 5` or `3-5`."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))
