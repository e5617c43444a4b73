"""The leaderboard: a bundle beside baselines that are computed here, floors, bars, and figures that others published.

In: a scorer and the data folder. Out: a dictionary, and its tables. Blocks on inference and on fitting the baselines (minutes). What is
measured stands in `leaderboard.yaml`; sets whose file is missing are left out and named.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES
from stream_sentiment.scoring.scorer import OnnxScorer
from stream_sentiment.training import evaluate, metrics
from stream_sentiment.training.baselines import LexiconClassifier, NgramClassifier
from stream_sentiment.training.data import NO_NEUTRAL, Row, read_rows

LABELS = {"polarity": POLARITIES, "emotion": EMOTIONS}
#: Rows of the public sets of a language that the n-gram baseline learns from: more change little and cost minutes.
PUBLIC_ROWS = 40_000
TRAIN = {"service": ("service/train.{0}.jsonl",), "public": ("train/{0}/*.jsonl.gz", "weak_neutral/{0}/*.jsonl.gz")}

Progress = Callable[[str], None]


def leaderboard(
    scorer: OnnxScorer,
    root: Path,
    *,
    baselines: bool = True,
    earlier: Mapping[str, Any] | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """`{sets, alarms, signals, calibration, missing}`; see `markdown`.

    `earlier`: a board of the same data, whose n-gram figures are taken over: they do not depend on the bundle, and cost most of
    the time. A set of another size is fitted anew.
    """
    known = {
        (entry["title"], entry["head"], entry["rows"]): entry["figures"]["n-grams"]
        for entry in (earlier or {}).get("sets", ())
        if "n-grams" in entry["figures"]
    }
    plan = definition()
    present = {entry["file"] for entry in (*plan["sets"], *plan["alarms"]) if (root / entry["file"]).is_file()}
    wanted = {entry["file"] for entry in (*plan["sets"], *plan["alarms"])}
    results = _Results(scorer, root)
    out: dict[str, Any] = {"missing": sorted(wanted - present), "sets": [], "alarms": []}
    models: dict[tuple[str, str, str], Any] = {}
    for entry in plan["sets"]:
        if entry["file"] not in present:
            continue
        progress(entry["title"])
        rows, logits = results.of(entry["file"], entry)
        head, labels = entry["head"], LABELS[entry["head"]]
        gold = _gold(rows, head)
        live = gold >= 0
        figures = {"this model": _measure(entry, logits[head][live], gold[live], labels)}
        figures["majority"] = _measure(entry, _majority(gold[live], labels), gold[live], labels)
        if baselines:
            texts = [row.text for row, there in zip(rows, live, strict=True) if there]
            figures["lexicon"] = _measure(entry, LexiconClassifier(head, labels).logits(texts), gold[live], labels)
            key = (entry["train"], entry["language"], head)
            place = (entry["title"], head, int(live.sum()))
            if place in known:
                figures["n-grams"] = known[place]
            elif key not in models:
                progress(f"n-grams: {' '.join(key)}")
                models[key] = _fitted(root, *key)
            if place not in known and models[key] is not None:
                figures["n-grams"] = _measure(entry, models[key].logits(texts), gold[live], labels)
        out["sets"].append({**entry, "rows": int(live.sum()), "figures": figures})
    for entry in plan["alarms"]:
        if entry["file"] in present:
            out["alarms"].append({**entry, **_alarm(results, entry)})
    if all((root / file).is_file() for file in plan["signals"]["files"]):
        service = [row for file in plan["signals"]["files"] for row in read_rows(root / file)]
        report = evaluate.report(scorer, service)
        by_language = [evaluate.report(scorer, read_rows(root / file)) for file in plan["calibration"]["files"]]
        out["signals"] = {
            name: {k: round(100 * report[name][k], 1) for k in ("precision", "recall")}
            for name in ("signals", "signals_with_lexicon")
            if name in report
        }
        out["calibration"] = {
            head: [round(100 * r[head]["ece"], 1) for r in by_language]
            for head in plan["calibration"]["heads"]
            if head in report
        }
    return out


def markdown(board: Mapping[str, Any], folds: Mapping[str, Any] | None = None) -> list[str]:
    """All tables. `folds`: the result of `crossval.crossval` for the plan's split by dialogue."""
    plan = definition()
    lines = [
        'In %. The n-gram and lexicon baselines are fitted and measured by this command; "floor" is the TF-IDF figure that the notes '
        "on the data give.",
        "",
        "| set | head, measure | rows | majority | lexicon | n-grams | floor | **this model** | bar | aim | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in board["sets"]:
        f = entry["figures"]
        measure = "accuracy" if entry["measure"] == "accuracy" else "macro-F1"
        lines.append(
            f"| {entry['title']} | {entry['head']}, {measure} | {entry['rows']:,} | {_number(f['majority'])} | "
            f"{_number(f.get('lexicon'))} | {_number(f.get('n-grams'))} | {_number(entry.get('floor'))} | "
            f"**{f['this model']:.2f}** | {_number(entry.get('bar'))} | {_number(entry.get('aim'))} | "
            f"{_verdict(f['this model'], entry.get('bar'), entry.get('aim'))} |"
        )
    if folds is not None:
        p = plan["folds"]
        lines.append(
            f"| {p['title']}, {folds['folds']} folds, {folds['method']} | {p['head']}, macro-F1 | {folds['rows']:,} | | | "
            f"{_number(folds['n-grams'])} | {_number(p['floor'])} | **{folds['this model']:.2f}** | {_number(p['bar'])} | "
            f"{_number(p['aim'])} | {_verdict(folds['this model'], p['bar'], p['aim'])} |"
        )
    lines += ["", "| calm texts, share in % | rows | **this model** | bar | aim | |", "|---|---|---|---|---|---|"]
    for entry in board["alarms"]:
        verdict = _verdict(-entry["share"], -entry["bar"], -entry["aim"])
        lines.append(
            f"| {entry['title']} | {entry['rows']:,} | **{entry['share']:.2f}** | {entry['bar']} | {entry['aim']} | {verdict} |"
        )
    if "signals" in board:
        lines += ["", "| service dev, both languages | precision | recall | bar |", "|---|---|---|---|"]
        for name, title in (
            ("signals", "signals, model alone"),
            ("signals_with_lexicon", "signals, model and lexicon"),
        ):
            if name in board["signals"]:
                s, p = board["signals"][name], plan["signals"]
                lines.append(
                    f"| {title} | {s['precision']:.1f} | {s['recall']:.1f} | {p['precision']['bar']} at {p['recall']['bar']} |"
                )
        cells = "; ".join(
            f"{head} {' / '.join(f'{x:.1f}' for x in values)}" for head, values in board["calibration"].items()
        )
        lines += ["", f"ECE after calibration, service dev zh / en: {cells}. Bar {plan['calibration']['bar']}."]
    lines += ["", "| set | published by others |", "|---|---|"]
    for entry in board["sets"]:
        if entry.get("published"):
            others = "; ".join(f"{name} {value:.1f}" for name, value in entry["published"].items())
            lines.append(f"| {entry['title']} (here {_number(entry['figures']['this model'])}) | {others} |")
    if board["missing"]:
        lines += ["", f"Not measured, no such file: {', '.join(board['missing'])}."]
    return lines


@cache
def definition() -> dict[str, Any]:
    """`leaderboard.yaml`."""
    text = resources.files(__package__).joinpath("leaderboard.yaml").read_text("utf-8")
    plan: dict[str, Any] = yaml.safe_load(text)
    return plan


class _Results:
    """Rows and logits of each file, once."""

    def __init__(self, scorer: OnnxScorer, root: Path) -> None:
        self._scorer, self._root = scorer, root
        self._known: dict[str, tuple[list[Row], dict[str, npt.NDArray[np.float32]]]] = {}

    def of(self, file: str, entry: Mapping[str, Any]) -> tuple[list[Row], dict[str, npt.NDArray[np.float32]]]:
        if file not in self._known:
            rows = _rows(self._root / file, entry)
            logits = evaluate.logits_of(self._scorer, evaluate.texts_of(rows))
            parts, at = {}, 0
            for spec in self._scorer.bundle.heads:
                # In the order of LABELS, whatever order the bundle has.
                names = LABELS.get(spec.head.name, spec.head.labels)
                order = [at + spec.head.labels.index(label) for label in names]
                parts[spec.head.name] = logits[:, order]
                at += spec.head.width
            self._known[file] = rows, parts
        return self._known[file]


def _rows(path: Path, entry: Mapping[str, Any]) -> list[Row]:
    if "role" not in entry:
        language = entry.get("language")
        rows = read_rows(path, binary=bool(entry.get("binary")))
        return [row for row in rows if language is None or row.lang in ("", language)]
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [Row(turn["text"]) for turn in map(json.loads, lines) if turn["role"] == entry["role"]]


def _gold(rows: Sequence[Row], head: str) -> npt.NDArray[np.int64]:
    index = {label: at for at, label in enumerate(LABELS[head])}
    return np.array([index.get(getattr(row, head) or "", -1) for row in rows])


def _measure(
    entry: Mapping[str, Any], logits: npt.NDArray[np.float32], gold: npt.NDArray[np.int64], labels: Sequence[str]
) -> float:
    z = logits.copy()
    if entry.get("binary"):
        z[:, labels.index("neutral")] = NO_NEUTRAL
    said = z.argmax(axis=1)
    value = (said == gold).mean() if entry["measure"] == "accuracy" else metrics.macro_f1(gold, said, labels)
    # Two decimals: a bar that is met only by rounding is not met.
    return round(100 * float(value), 2)


def _majority(gold: npt.NDArray[np.int64], labels: Sequence[str]) -> npt.NDArray[np.float32]:
    out = np.zeros((len(gold), len(labels)), np.float32)
    out[:, np.bincount(gold, minlength=len(labels)).argmax()] = 1
    return out


def _fitted(root: Path, kind: str, language: str, head: str) -> NgramClassifier | None:
    paths = [path for pattern in TRAIN[kind] for path in sorted(root.glob(pattern.format(language)))]
    rows = [row for path in paths for row in read_rows(path) if getattr(row, head) is not None]
    if not rows:
        return None
    chosen = np.random.default_rng(0).permutation(len(rows))[:PUBLIC_ROWS]
    rows = [rows[at] for at in chosen.tolist()]
    return NgramClassifier(LABELS[head]).fit(evaluate.texts_of(rows), _gold(rows, head))


def _alarm(results: _Results, entry: Mapping[str, Any]) -> dict[str, Any]:
    rows, logits = results.of(entry["file"], entry)
    head, label = entry["said"].split("/")
    asked = np.array([entry.get("gold") in (None, row.polarity) for row in rows])
    said = logits[head].argmax(axis=1) == LABELS[head].index(label)
    return {"rows": int(asked.sum()), "share": round(100 * float(said[asked].mean()), 2)}


def _verdict(value: float, bar: float | None, aim: float | None) -> str:
    if bar is None:
        return ""
    return "aim met" if aim is not None and value >= aim else "met" if value >= bar else f"missed by {bar - value:.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
