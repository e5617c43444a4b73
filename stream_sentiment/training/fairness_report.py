"""The fairness measurement as a page, and the part of it that a model card shows. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: A group whose mean shift is smaller than this is not named, whatever its interval: a hundredth of the scale is nobody's loss.
WORTH_NAMING = 0.01

USES_REFUSED = (
    "comparing customers, groups of customers or regions by their scores: a shift too small to matter in one message adds up in a mean",
    "a decision about one person: a name, a place or a dialect word alone changes the label of some messages",
    "texts in a dialect written as spoken, before somebody has looked at a sample of the results",
)


def summary(report: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
    """What the manifest keeps: everything but the slices by source."""
    slices = {name: figures for name, figures in report["slices"].items() if not name.startswith("source ")}
    return {**report, "slices": slices, "data": list(files)}


def shifted(report: Mapping[str, Any]) -> list[str]:
    """Groups whose mean score differs from the others', as text."""
    found = []
    for name, entry in report["templates"].items():
        for group, shift in entry["groups"].items():
            sure = shift["low"] > 0 or shift["high"] < 0
            if sure and abs(shift["mean"]) >= WORTH_NAMING:
                found.append(f"{name}, {group} {shift['mean']:+.3f} ({shift['low']:+.3f} to {shift['high']:+.3f})")
    return found


def markdown(report: Mapping[str, Any], level: str = "##") -> list[str]:
    """Tables of the report; `level`: marks of the headings."""
    lines = [
        f"{level} Counterfactual sentences",
        "",
        "One word changes, the rest stays; scores run from -1 to 1. Flips: texts whose label is not the usual one of their sentence. "
        "Spread: largest minus smallest score of a sentence, mean.",
        "",
        "| set | texts | flips | spread | largest mean shift of a group (95 %) |",
        "|---|---|---|---|---|",
    ]
    for name, entry in report["templates"].items():
        group, shift = max(entry["groups"].items(), key=lambda item: abs(item[1]["mean"]))
        lines.append(
            f"| {name} | {entry['texts']:,} | {_percent(entry['flips'])} | {entry['spread']:.3f} | "
            f"{group} {shift['mean']:+.3f} ({shift['low']:+.3f} to {shift['high']:+.3f}) |"
        )
    named = shifted(report)
    groups = sum(len(entry["groups"]) for entry in report["templates"].values())
    lines += [
        "",
        f"Groups whose interval leaves out 0 and whose shift is {WORTH_NAMING} or more: {'; '.join(named) if named else 'none'}. "
        f"Of {groups} intervals at 95 % some leave out 0 by chance.",
        "",
        f"{level} Swaps and harmless changes",
        "",
        "| change | texts | polarity flips | emotion flips | mean absolute shift | mean shift (95 %) | macro-F1 before, after |",
        "|---|---|---|---|---|---|---|",
    ]
    changes = [(f"{language} dialect sentences", entry) for language, entry in report["dialect"].items()]
    changes += [(f"{name} words swapped in rows", entry) for name, entry in report["swaps"].items()]
    changes += list(report["robustness"].items())
    for name, entry in changes:
        shift = entry["shift"]
        f1 = (
            f"{100 * entry['macro_f1_before']:.1f}, {100 * entry['macro_f1_after']:.1f}"
            if "macro_f1_before" in entry
            else ""
        )
        lines.append(
            f"| {name} | {entry['texts']:,} | {_percent(entry['flips'])} | {_percent(entry['emotion_flips'])} | "
            f"{entry['absolute_shift']:.3f} | {shift['mean']:+.3f} ({shift['low']:+.3f} to {shift['high']:+.3f}) | {f1} |"
        )
    lines += [
        "",
        f"{level} Slices",
        "",
        "| slice | rows | polarity macro-F1 | negative missed | neutral called negative | emotion macro-F1 |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in report["slices"].items():
        emotion = figures.get("emotion_macro_f1")
        lines.append(
            f"| {name} | {figures['rows']:,} | {100 * figures['macro_f1']:.1f} | {_percent(figures['negative_missed'])} | "
            f"{_percent(figures['neutral_called_negative'])} | {'' if emotion is None else f'{100 * emotion:.1f}'} |"
        )
    return lines


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
