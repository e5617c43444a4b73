"""Pictures of what was measured: fairness, and one set's confusion and reliability.

In: the dictionaries of `fairness` and `evaluate`. Out: PNG files. Blocks on drawing. Needs the extra `train` (matplotlib).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

INK, FAINT, BLUE, RED = "#222222", "#bbbbbb", "#1f5f9f", "#b4432a"
#: Pixels an inch.
SHARPNESS = 110


def draw_fairness(report: Mapping[str, Any], path: Path) -> None:
    """Left: each group's mean shift with its 95 % interval. Right: how often the label changes."""
    plt = _pyplot()
    lines: list[tuple[str, Mapping[str, float] | None]] = []
    for name, entry in report["templates"].items():
        lines.append((name, None))
        lines += [(f"  {group}", shift) for group, shift in entry["groups"].items()]
    flips = [(name, entry["flips"]) for name, entry in report["templates"].items()]
    flips += [(f"{language} dialect sentences", entry["flips"]) for language, entry in report["dialect"].items()]
    flips += [(f"{name} swapped in rows", entry["flips"]) for name, entry in report["swaps"].items()]
    flips += [(name, entry["flips"]) for name, entry in report["robustness"].items()]
    height = max(4.0, 0.2 * max(len(lines), len(flips)) + 1.2)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, height), width_ratios=(3, 2))
    for row, (_, shift) in enumerate(lines):
        if shift is not None:
            colour = RED if shift["low"] > 0 or shift["high"] < 0 else BLUE
            left.plot([shift["low"], shift["high"]], [row, row], color=colour, linewidth=1.6)
            left.plot(shift["mean"], row, "o", color=colour, markersize=4)
    left.axvline(0, color=FAINT, linewidth=1)
    left.set_yticks(range(len(lines)), [name for name, _ in lines], fontsize=8)
    for label, (_, shift) in zip(left.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if shift is None else "normal")
    reach = max([0.06, *(max(abs(s["low"]), abs(s["high"])) * 1.1 for _, s in lines if s is not None)])
    left.set_xlim(-reach, reach)
    left.set_title(
        "mean shift of the score (-1 to 1) by what the name says; red: 0 is not in the 95 % interval", fontsize=9
    )
    right.barh(range(len(flips)), [100 * share for _, share in flips], color=BLUE)
    right.set_yticks(range(len(flips)), [name for name, _ in flips], fontsize=8)
    right.set_title("polarity label changes, % of texts", fontsize=9)
    for row, (_, share) in enumerate(flips):
        right.text(100 * share, row, f" {100 * share:.1f}", va="center", fontsize=7, color=INK)
    for axes in (left, right):
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=SHARPNESS)
    plt.close(figure)


def draw_set(name: str, report: Mapping[str, Any], labels: Mapping[str, Sequence[str]], path: Path) -> None:
    """For each classifying head of one set: confusion (share of the gold label) and reliability."""
    plt = _pyplot()
    heads = [head for head in labels if head in report and "confusion" in report[head]]
    figure, grid = plt.subplots(len(heads), 2, figsize=(9, 3.9 * len(heads)), squeeze=False)
    for (left, right), head in zip(grid, heads, strict=True):
        _confusion(left, report[head]["confusion"], labels[head])
        left.set_title(f"{name}: {head}, macro-F1 {100 * report[head]['macro_f1']:.1f}", fontsize=9)
        _reliability(right, report[head]["reliability"])
        right.set_title(f"reliability, ECE {100 * report[head]['ece']:.1f} %", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=SHARPNESS)
    plt.close(figure)


def _confusion(axes: Any, counts: Sequence[Sequence[int]], labels: Sequence[str]) -> None:
    shares = [[cell / sum(row) if sum(row) else 0.0 for cell in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for y, row in enumerate(counts):
        for x, cell in enumerate(row):
            colour = "white" if shares[y][x] > 0.55 else INK
            text = f"{100 * shares[y][x]:.0f} %\n{cell}" if sum(row) else "-"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(labels)), labels, fontsize=7, rotation=30 if len(labels) > 3 else 0)
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_xlabel("said", fontsize=8)
    axes.set_ylabel("gold", fontsize=8)


def _reliability(axes: Any, bins: Sequence[Mapping[str, float]]) -> None:
    total = sum(b["rows"] for b in bins)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    axes.bar(
        [b["confidence"] for b in bins],
        [b["rows"] / total for b in bins],
        width=0.03,
        color=FAINT,
        label="share of rows",
    )
    axes.plot(
        [b["confidence"] for b in bins], [b["accuracy"] for b in bins], "o-", color=BLUE, markersize=4, label="accuracy"
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence (mean of the bin)", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, loc="upper left")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
