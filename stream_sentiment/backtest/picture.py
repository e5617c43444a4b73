"""A sweep as a picture: precision against recall, one point a value, as SVG without any library. Pure; raises nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, SIDE = 640, 520, 70, 40, 420


def precision_recall_svg(rows: Sequence[dict[str, Any]], title: str) -> str:
    """Rows of a sweep; those without labels or alerts are left out."""
    points = [(row["value"], row["recall"], row["precision"]) for row in rows if row.get("precision") is not None]
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="15">{escape(title)}</text>',
    ]
    for i in range(11):
        share, x, y = i / 10, LEFT + SIDE * i / 10, TOP + SIDE * (1 - i / 10)
        out.append(f'<path d="M{x:.1f} {TOP}V{TOP + SIDE}M{LEFT} {y:.1f}H{LEFT + SIDE}" stroke="#ddd" fill="none"/>')
        out.append(f'<text x="{x:.1f}" y="{TOP + SIDE + 16}" text-anchor="middle">{share:.1f}</text>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share:.1f}</text>')
    out.append(f'<text x="{LEFT + SIDE / 2}" y="{TOP + SIDE + 38}" text-anchor="middle">recall: alerted in time</text>')
    out.append(
        f'<text x="20" y="{TOP + SIDE / 2}" text-anchor="middle" transform="rotate(-90 20 {TOP + SIDE / 2})">precision</text>'
    )
    placed = [(LEFT + SIDE * recall, TOP + SIDE * (1 - precision), value) for value, recall, precision in points]
    if len(placed) > 1:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in placed)
        out.append(f'<polyline points="{line}" fill="none" stroke="#3366aa" stroke-width="1.5"/>')
    for x, y, value in placed:
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#3366aa"/>')
        out.append(f'<text x="{x + 7:.1f}" y="{y - 6:.1f}">{value:g}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
