"""What each correction rule does to labelled rows: how many labels it puts right and how many it spoils.

In: a scorer and rows with a polarity. Out: a dictionary for the manifest and the docs. Blocks on inference. A rule is worth
switching on where it puts more labels right than it spoils; rules that never fire are left off, for nothing speaks for them.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.bundle import MANIFEST, read_manifest
from stream_sentiment.scoring.calibration import Calibrator, Score
from stream_sentiment.scoring.corrections import Corrector, load_rules, rules_version
from stream_sentiment.scoring.heads import POLARITIES
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.scoring.text import prepare
from stream_sentiment.training.data import Row, read_rows
from stream_sentiment.training.evaluate import logits_of, texts_of
from stream_sentiment.training.metrics import macro_f1

#: Begins the source of rows that come from conversations; the rest is their channel.
CHANNEL = "channel "


def read_judged(path: Path) -> list[Row]:
    """Rows with a polarity over three classes: single messages, or the labelled customer messages of whole conversations."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        first = json.loads(file.readline() or "{}")
        if "messages" not in first:
            return [row for row in read_rows(path) if row.polarity is not None and not row.binary]
        file.seek(0)
        rows = [
            Row(
                message["text"],
                message["polarity"],
                message.get("emotion"),
                lang=str(conversation.get("lang", "")),
                source=f"{CHANNEL}{conversation.get('channel', 'unknown')}",
            )
            for conversation in map(json.loads, file)
            for message in conversation["messages"]
            if message.get("polarity") is not None
        ]
    if not rows:
        raise ConfigurationError(f"{path}: no message has a polarity")
    return rows


def measure(
    scorer: OnnxScorer, sets: Mapping[str, Sequence[Row]], also: Mapping[str, Sequence[Row]] | None = None
) -> dict[str, Any]:
    """`{version, on, rules: {id: {fixed, broken, neither, p, sets, elsewhere}}, together: {set: {rows, before, after}}}`.

    `sets` decide; `also` are measured and shown (`elsewhere`), and decide nothing. `p`: two-sided sign test of fixed against
    broken. `before` and `after`: polarity macro-F1 without and with the rules that are on, all at once.
    """
    emotions = scorer.info.emotion_labels
    calibrator = Calibrator(scorer.bundle.heads)
    also = also or {}
    every = {**sets, **also}
    judged = {}
    for name, rows in every.items():
        texts = texts_of(rows)
        judged[name] = ([prepare(t).text for t in texts], calibrator.scores(logits_of(scorer, texts)))
    report: dict[str, Any] = {}
    for rule in load_rules():
        alone = Corrector([rule], emotions=emotions)
        effects = {name: _effect(alone, rows, *judged[name]) for name, rows in every.items()}
        by_set = {name: counts for name, counts in effects.items() if any(counts.values())}
        total = _total(by_set, sets)
        report[rule.id] = {
            **total,
            "p": _sign_test(total["fixed"], total["broken"]),
            "sets": by_set,
            "elsewhere": _total(by_set, also),
        }
    on = [rule for rule in load_rules() if report[rule.id]["fixed"] > report[rule.id]["broken"]]
    together = Corrector(on, emotions=emotions)
    after = {}
    for name, rows in every.items():
        texts, scores = judged[name]
        gold = np.array([POLARITIES.index(row.polarity or "") for row in rows])
        corrected = [together.correct(text, score)[0] for text, score in zip(texts, scores, strict=True)]
        after[name] = {"rows": len(rows), "before": _macro_f1(gold, scores), "after": _macro_f1(gold, corrected)}
    return {"version": rules_version(), "on": [rule.id for rule in on], "rules": report, "together": after}


def record(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the report into the bundle's manifest; from then on the rules it names are on for this model."""
    manifest = read_manifest(folder)
    manifest["corrections"] = dict(report)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")


def markdown(report: Mapping[str, Any]) -> list[str]:
    """The report as lines of a page."""
    lines = [
        "| rule | put right | spoiled | wrong either way | p | | elsewhere: put right | spoiled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in report["rules"].items():
        state = "on" if name in report["on"] else "off"
        lines.append(
            f"| `{name}` | {entry['fixed']} | {entry['broken']} | {entry['neither']} | {entry['p']:.2f} | {state} | "
            f"{entry['elsewhere']['fixed']} | {entry['elsewhere']['broken']} |"
        )
    lines += ["", "| set | rows | macro-F1 without | with the rules that are on |", "|---|---|---|---|"]
    for name, entry in report["together"].items():
        lines.append(f"| {name} | {entry['rows']:,} | {100 * entry['before']:.2f} | {100 * entry['after']:.2f} |")
    return lines


def _total(by_set: Mapping[str, Mapping[str, int]], names: Mapping[str, Any]) -> dict[str, int]:
    return {
        key: sum(counts[key] for name, counts in by_set.items() if name in names)
        for key in ("fixed", "broken", "neither")
    }


def _effect(corrector: Corrector, rows: Sequence[Row], texts: Sequence[str], scores: Sequence[Score]) -> dict[str, int]:
    counts = {"fixed": 0, "broken": 0, "neither": 0}
    for row, text, score in zip(rows, texts, scores, strict=True):
        corrected, corrections = corrector.correct(text, score)
        if corrections:
            right, was = corrected.label == row.polarity, score.label == row.polarity
            counts["fixed" if right else "broken" if was else "neither"] += 1
    return counts


def _macro_f1(gold: Any, scores: Sequence[Score]) -> float:
    return round(macro_f1(gold, np.array([POLARITIES.index(score.label) for score in scores]), POLARITIES), 5)


def _sign_test(wins: int, losses: int) -> float:
    """Two-sided exact binomial test of wins against losses at one half."""
    n = wins + losses
    tail = sum(comb(n, k) for k in range(max(wins, losses), n + 1))
    return round(min(1.0, tail / 2.0 ** (n - 1)), 4) if n else 1.0
