"""An explanation for the terminal: the message in colours, a bar of the words that weigh most, and what was corrected.

In: an `Explanation`. Out: a rich renderable. Pure. Blue raises the value, red lowers it: a pair that colour-blind people can tell
apart; the signed numbers beside the words say the same without colours.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from stream_sentiment.scoring.explain import SCORE, Explanation

TOP = 5
BAR = 12

#: Backgrounds from weak to strong, all dark enough for white letters or light enough for black ones.
RAISES = ("#d6e6f4", "#9cc4e4", "#4f94cd", "#1f5f9f")
LOWERS = ("#fbdcd3", "#f4a58a", "#d9603b", "#a32a16")
#: Where all weights are smaller than this, none is worth a strong colour.
FAINT = 0.1
#: Share of the largest weight from which each step begins.
STEPS = (0.15, 0.35, 0.6, 0.85)


def render(explanation: Explanation, outputs: Sequence[str]) -> RenderableType:
    """One block for each output, the result above, the corrections below."""
    parts: list[RenderableType] = [_head(explanation)]
    for name in outputs:
        parts += [
            Text(""),
            _title(explanation, name),
            Padding(coloured(explanation, name), (0, 2)),
            _top(explanation, name),
        ]
    for correction in explanation.corrections:
        before, after = (f"{end['label']} ({end['score']:+.2f})" for end in (correction.before, correction.after))
        line = Text("corrected ", style="bold")
        line.append(f"by {correction.rule_id}: {before} to {after}, {correction.reason}. ", "not bold")
        line.append("The weights are the model's own, before the correction.", "not bold")
        parts += [Text(""), line]
    parts += [Text(""), _legend(explanation)]
    return Group(*parts)


def coloured(explanation: Explanation, output: str) -> Text:
    """The message as it was written, each word on the colour of its weight."""
    weights = explanation.weights[output]
    largest = max((abs(weight) for weight in weights), default=0.0)
    text = Text()
    at = 0
    for word, weight in zip(explanation.words, weights, strict=True):
        text.append(explanation.text[at : word.begin])
        style = "dim strike" if not word.read else _style(weight, largest)
        text.append(explanation.text[word.begin : word.end], style)
        at = word.end
    text.append(explanation.text[at:])
    return text


def _style(weight: float, largest: float) -> str:
    share = abs(weight) / max(largest, FAINT)
    step = sum(share >= limit for limit in STEPS) - 1
    if step < 0:
        return ""
    letters = "#101010" if step < 2 else "bold white"
    return f"{letters} on {(RAISES if weight > 0 else LOWERS)[step]}"


def _head(explanation: Explanation) -> Text:
    score = explanation.score
    line = Text()
    line.append(score.label, "bold")
    line.append(f" {score.score:+.2f}   {score.emotion_label}")
    if score.intensity is not None:
        line.append(f"   intensity {score.intensity:.1f} of 3")
    if explanation.signals:
        line.append(f"   signals: {', '.join(explanation.signals)}")
    if score.uncertain:
        line.append("   uncertain", "bold")
    return line


def _title(explanation: Explanation, name: str) -> Text:
    value = explanation.values[name]
    what = "positive minus negative" if name == SCORE else name.replace("/", " = ")
    return Text(f"{what}: {value:+.3f}" if name == SCORE else f"{what}: {value:.3f}", "bold underline")


def _top(explanation: Explanation, name: str) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", width=8)
    table.add_column(width=BAR)
    table.add_column()
    ranked = explanation.top(name, TOP)
    largest = max((abs(weight) for _, weight in ranked), default=0.0)
    for word, weight in ranked:
        length = round(BAR * abs(weight) / largest) if largest else 0
        bar = Text("█" * max(1, length), (RAISES if weight > 0 else LOWERS)[2])
        table.add_row(f"{weight:+.3f}", bar, Text(" ".join(word.split())))
    return Padding(table, (0, 2))


def _legend(explanation: Explanation) -> Text:
    line = Text(style="dim")
    line.append(" raises ", f"bold white on {RAISES[2]}")
    line.append(" ")
    line.append(" lowers ", f"bold white on {LOWERS[2]}")
    line.append(
        " the value. A number says how much of it would be gone without that word, the word hidden behind [MASK]."
    )
    if any(not word.read for word in explanation.words):
        line.append(" Struck through: the model did not read it, the message is too long.")
    return line
