"""The model card, made from the manifest alone, so that no figure in it can differ from what was measured. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INTENDED = (
    "Scores single customer messages of a service chat or a product review in Chinese or English, so that a person can be "
    "called in time. Its outputs feed a rolling conversation state and escalation rules."
)
NOT_FOR = (
    "judging, rating or paying employees",
    "prices, offers, credit or any other decision about a single customer",
    "other languages (they are skipped, not guessed), speech, or texts written by machines",
    "health or crisis support: anxiety here means worry about an order",
)
LIMITS = (
    "One message is read alone: irony that only the turn before reveals is missed, and so is calm dissatisfaction.",
    "The service rows are synthetic, more uniform and partly wittier than real traffic; figures on them are optimistic.",
    "Emotion labels of public sets come from microblogs, television and forums; their annotators disagree often.",
    "Texts of more than the token limit lose their middle.",
    "int8 was checked on x86 with VNNI; on CPUs without it products can saturate: run `stream-sentiment model verify` there.",
)


def render(manifest: Mapping[str, Any], folder: str) -> str:
    """Markdown."""
    heads = "; ".join(f"{h['name']} ({', '.join(h['labels'])})" for h in manifest["heads"])
    temperatures = ", ".join(f"{h['name']} {h['temperature']}" for h in manifest["heads"] if h["kind"] != "regression")
    network = manifest["network"]
    lines = [
        f"# {manifest['name']} {manifest['version']}",
        "",
        INTENDED,
        "",
        f"* Encoder: BERT, {network['num_layers']} layers x {network['hidden_size']}, {network['num_heads']} heads, vocabulary "
        f"{network['vocab_size']:,}; {manifest['pooling']} pooling; texts up to {manifest['max_tokens']} tokens.",
        f"* Heads: {heads}.",
        f"* Shortcut of hashed token n-grams: {network['wide_buckets']:,} buckets; share in each head's logits: "
        f"{', '.join(f'{k} {v:g}' for k, v in manifest['wide_share'].items()) or 'none'}.",
        f"* Calibration: temperatures fitted on dev: {temperatures}. Polarity below a probability of "
        f"{_abstain(manifest):g} is marked `uncertain`.",
        f"* int8 weights, one scale per output channel; static activation ranges from {manifest['calibration_messages']} messages.",
        f"* Text preparation version {manifest['text_preparation']}; made with code version {manifest['code_version']}.",
        "",
        "## Not for",
        *(f"* {item}" for item in NOT_FOR),
        "",
        "## Limits",
        *(f"* {item}" for item in LIMITS),
        "",
        *_figures(manifest, folder),
        *_notes(manifest),
        *_corrections(manifest),
        *_fairness(manifest, folder),
        *_data(manifest),
    ]
    return "\n".join(lines) + "\n"


def _abstain(manifest: Mapping[str, Any]) -> float:
    return float(next(h.get("abstain_below", 0.0) for h in manifest["heads"] if h["name"] == "polarity"))


def _figures(manifest: Mapping[str, Any], folder: str) -> list[str]:
    sets = manifest["metrics"].get("sets", {})
    if not sets:
        return ["## Figures", "None measured yet.", ""]
    lines = [
        "## Figures",
        "Accuracy / macro-F1 in %, ECE in % (15 bins); in brackets the majority vote. Measured on the int8 file by "
        f"`stream-sentiment model evaluate models/{folder} --data FILE` (`--binary` where the set knows no neutral).",
        "",
        "| set | rows | polarity | ECE | emotion | ECE | signals P / R; with the lexicon | intensity MAE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, r in sets.items():
        signals = "; ".join(
            f"{100 * r[head]['precision']:.1f} / {100 * r[head]['recall']:.1f}"
            for head in ("signals", "signals_with_lexicon")
            if head in r
        )
        intensity = f"{r['intensity']['mae']:.2f}" if "intensity" in r else ""
        lines.append(
            f"| {name} | {r['rows']} | {_pair(r, 'polarity')} | {_pair(r, 'emotion')} | {signals} | {intensity} |"
        )
    return [*lines, ""]


def _pair(r: Mapping[str, Any], head: str) -> str:
    if head not in r:
        return " | "
    h = r[head]
    return (
        f"{100 * h['accuracy']:.1f} / {100 * h['macro_f1']:.1f} "
        f"({100 * h['majority_accuracy']:.1f} / {100 * h['majority_macro_f1']:.1f}) | {100 * h['ece']:.1f}"
    )


def _notes(manifest: Mapping[str, Any]) -> list[str]:
    notes = manifest["metrics"].get("notes", [])
    return [*(f"* {note}" for note in notes), ""] if notes else []


def _corrections(manifest: Mapping[str, Any]) -> list[str]:
    if "corrections" not in manifest:
        return []
    from stream_sentiment.training.correct import markdown

    return [
        "## Corrections after the model",
        "Rules that put more labels right than they spoiled are on (docs/corrections.md). Figures above are without them.",
        "",
        *markdown(manifest["corrections"]),
        "",
    ]


def _fairness(manifest: Mapping[str, Any], folder: str) -> list[str]:
    report = manifest["metrics"].get("fairness")
    if not report:
        return []
    from stream_sentiment.training.fairness_report import USES_REFUSED, markdown

    return [
        "## Fairness and robustness",
        f"Measured by `stream-sentiment model fairness models/{folder} --data FILE --record` on {report['rows']:,} rows of "
        f"{', '.join(report['data'])} and on sentences written for it. How: docs/fairness.md. Therefore not for:",
        "",
        *(f"* {use}" for use in USES_REFUSED),
        "",
        *markdown(report, "###"),
        "",
    ]


def _data(manifest: Mapping[str, Any]) -> list[str]:
    if not manifest["data"]:
        return []
    return [
        "## Training data",
        "No text of these sets is part of this project but 64 synthetic service rows in the golden set.",
        "",
        "| source | language | rows | licence as its owner states it |",
        "|---|---|---|---|",
        *(f"| {d['source']} | {d['language']} | {d['rows']:,} | {d['licence']} |" for d in manifest["data"]),
        "",
    ]
