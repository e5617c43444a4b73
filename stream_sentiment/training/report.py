"""One report for each evaluated set, and an index: what `model evaluate --out DIR` leaves behind.

In: the dictionaries of `evaluate.report`. Out: `SET.json` with every figure, `SET.md` to read, `SET.png` with confusion and
reliability, `index.md`. Blocks on files and drawing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stream_sentiment.scoring.bundle import ModelInfo
from stream_sentiment.training.pictures import draw_set


def write_reports(folder: Path, info: ModelInfo, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write all files; those of another run under the same names are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {head: names for head, names in info.labels.items() if head in ("polarity", "emotion")}
    index = [f"# {info.name} {info.version}, {info.precision}", "", *overview(results, links=True)]
    for name, result in results.items():
        stem = stem_of(name)
        (folder / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        picture = any(head in result for head in labels)
        if picture:
            draw_set(stem, result, labels, folder / f"{stem}.png")
        lines = [f"# {name}", "", f"{info.name} {info.version}, {info.precision}, sha256 {info.sha256}.", ""]
        lines += page(result, labels) + ([f"![Confusion and reliability]({stem}.png)"] if picture else [])
        (folder / f"{stem}.md").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "index.md").write_text("\n".join(index) + "\n", "utf-8")


def stem_of(name: str) -> str:
    """A set's file name without what says only that it is a file of rows."""
    return re.sub(r"(\.jsonl)?(\.gz)?$", "", name)


def overview(results: Mapping[str, Mapping[str, Any]], *, links: bool = False) -> list[str]:
    """One table of all sets."""
    lines = [
        "In %; AUC is the mean of one class against the rest.",
        "",
        "| set | rows | head | accuracy | macro-F1 | UAR | AUC | ECE | majority vote: accuracy, macro-F1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        shown = f"[{stem_of(name)}]({stem_of(name)}.md)" if links else stem_of(name)
        for head in ("polarity", "emotion"):
            if head in result:
                r = result[head]
                auc = "" if r["auc"] is None else f"{100 * r['auc']:.1f}"
                lines.append(
                    f"| {shown} | {r['rows']:,} | {head} | {100 * r['accuracy']:.1f} | {100 * r['macro_f1']:.1f} | "
                    f"{100 * r['uar']:.1f} | {auc} | {100 * r['ece']:.1f} | "
                    f"{100 * r['majority_accuracy']:.1f}, {100 * r['majority_macro_f1']:.1f} |"
                )
    return [*lines, ""]


def page(result: Mapping[str, Any], labels: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The figures of one set."""
    lines: list[str] = []
    for head, names in labels.items():
        if head not in result:
            continue
        r = result[head]
        lines += [
            f"## {head.capitalize()}",
            "",
            f"{r['rows']:,} rows: accuracy {100 * r['accuracy']:.1f} %, macro-F1 {100 * r['macro_f1']:.1f} %, "
            f"UAR {100 * r['uar']:.1f} %, "
            + ("" if r["auc"] is None else f"AUC {100 * r['auc']:.1f} %, ")
            + f"ECE {100 * r['ece']:.1f} %. Majority vote: {100 * r['majority_accuracy']:.1f} %, "
            f"{100 * r['majority_macro_f1']:.1f} %.",
            "",
            "| label | precision | recall | F1 | rows |",
            "|---|---|---|---|---|",
            *(
                f"| {label} | {100 * c['precision']:.1f} | {100 * c['recall']:.1f} | {100 * c['f1']:.1f} | {c['support']:,} |"
                for label, c in r["classes"].items()
            ),
            "",
            f"| gold, said: | {' | '.join(names)} |",
            f"|---|{'---|' * len(names)}",
            *(
                f"| {name} | {' | '.join(map(str, row))} |"
                for name, row in zip(names, r["confusion"], strict=True)
                if sum(row)
            ),
            "",
        ]
    if "intensity" in result:
        lines += [f"## Intensity\n\nMean absolute error {result['intensity']['mae']:.3f} on the scale of 0 to 3.", ""]
    if "signals" in result:
        lines += _signals(result)
    return lines


def _signals(result: Mapping[str, Any]) -> list[str]:
    alone, both = result["signals"], result["signals_with_lexicon"]
    lines = [
        "## Signals",
        "",
        f"Model alone: precision {100 * alone['precision']:.1f} %, recall {100 * alone['recall']:.1f} %, "
        f"ECE {100 * alone['ece']:.1f} %. With the lexicon, as the worker hears: precision {100 * both['precision']:.1f} %, "
        f"recall {100 * both['recall']:.1f} %.",
        "",
        "| signal | rows | model: precision | recall | with the lexicon: precision | recall |",
        "|---|---|---|---|---|---|",
    ]
    for name, a in alone["classes"].items():
        b = both["classes"][name]
        cells = " | ".join("" if v is None else f"{100 * v:.1f}" for c in (a, b) for v in (c["precision"], c["recall"]))
        lines.append(f"| {name} | {a['support']} | {cells} |")
    return [*lines, ""]
