"""What the demo shows: a live screen on a terminal, plain lines elsewhere.

In: a `Floor`. Out: rich renderables, or strings. Nothing here blocks, reads a clock or changes the floor. Colour only repeats what
words, bars and signs say, so that the screen reads the same without it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.align import Align
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.layout import Layout
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from stream_sentiment.demo.floor import Alarm, Floor, Row

#: Heights of one point of the emotion line, from score -1 to +1.
_BLOCKS: Final = "▁▂▃▄▅▆▇█"

#: Score at and beyond which a point counts as coloured; the neutral band between is grey.
_NEUTRAL_BAND: Final = 0.2

#: What a line of Chinese is broken into: a word or number in Latin letters stays whole, and so does a mark after a character.
_UNBROKEN: Final = re.compile(r"[!-'*-~]+|.[，。、；：！？）)]*")

#: A row that changed within this many seconds carries a mark.
_FRESH_S: Final = 0.8

#: From this width on the floor shows the customers' last words.
_WIDE: Final = 140

_SEVERITY_STYLE: Final = {
    "info": "cyan",
    "warning": "yellow",
    "error": "bold red",
    "critical": "bold white on red",
}
_ACTION_SIGN: Final = {"opened": "▲", "updated": "◆", "resolved": "✔"}
#: What the emotion labels are called where there is no room for the label itself.
_SHORT: Final = {
    "anger": "angry",
    "disappointment": "let down",
    "anxiety": "anxious",
    "joy": "happy",
    "surprise": "surprised",
}
_EMOTION_STYLE: Final = {
    "anger": "red",
    "disappointment": "magenta",
    "anxiety": "yellow",
    "joy": "green",
    "surprise": "cyan",
    "neutral": "bright_black",
}


@dataclass(frozen=True, slots=True)
class Frame:
    """What a screen needs besides the floor."""

    at_s: float  # seconds since the demo began
    progress: float  # 0 to 1: share of the records sent
    pace: str  # "8 times the pace of people", "as fast as possible"
    services: str  # one sentence on broker and Redis
    show_text: bool  # the customers' words may be shown
    model: str = ""  # name, version and precision
    stage: str = ""  # "starting", "playing", "draining", "done"


def score_style(score: float) -> str:
    """The colour of a score in [-1, 1]."""
    if score <= -0.6:
        return "bold red"
    if score < -_NEUTRAL_BAND:
        return "red"
    if score > 0.6:
        return "bold green"
    if score > _NEUTRAL_BAND:
        return "green"
    return "bright_black"


def emotion_line(points: Sequence[float], width: int) -> Text:
    """The last `width` scores as bars, newest at the right; higher is happier."""
    line = Text()
    for score in list(points)[-width:]:
        height = min(int((score + 1) / 2 * len(_BLOCKS)), len(_BLOCKS) - 1)
        line.append(_BLOCKS[max(height, 0)], style=score_style(score))
    return line


def gauge(score: float, half: int) -> Text:
    """A score as a bar to the left (bad) or to the right (good) of a centre line, each side `half` cells wide."""
    filled = min(round(abs(score) * half), half)
    bar = Text()
    if score < 0:
        bar.append("·" * (half - filled), style="bright_black")
        bar.append("█" * filled, style=score_style(score))
        bar.append("│", style="bright_black")
        bar.append("·" * half, style="bright_black")
    else:
        bar.append("·" * half, style="bright_black")
        bar.append("│", style="bright_black")
        bar.append("█" * filled, style=score_style(score))
        bar.append("·" * (half - filled), style="bright_black")
    return bar


class Seats:
    """Which conversation is shown in which line: each keeps its line while it goes on, so that the screen does not jump.

    A newcomer takes an empty line, else that of the conversation which ended longest ago, else of the quietest without an escalation.
    """

    def __init__(self) -> None:
        self._seated: list[Row] = []

    def arrange(self, rows: Sequence[Row], count: int) -> list[Row]:
        """At most `count` rows, each where it was in the last arrangement if it is still shown."""
        if len(self._seated) > count:
            keep = sorted(self._seated, key=_worth, reverse=True)[:count]
            self._seated = [row for row in self._seated if any(row is kept for kept in keep)]
        seated = {id(row) for row in self._seated}
        for row in rows:
            if id(row) in seated:
                continue
            if len(self._seated) < count:
                self._seated.append(row)
                continue
            least = min(self._seated, key=_worth, default=None)
            if least is not None and _worth(row) > _worth(least):
                self._seated[next(i for i, other in enumerate(self._seated) if other is least)] = row
        return list(self._seated)


def _worth(row: Row) -> tuple[bool, bool, float]:
    """Sort key: what goes on before what ended, alarms before the rest, what moved last before what is quiet."""
    return (not row.ended, bool(row.severity), row.touched_s)


def status_of(row: Row) -> Text:
    """One word on the state of a conversation."""
    if row.severity:
        return Text(f"▲ {row.severity}", style=_SEVERITY_STYLE.get(row.severity, ""))
    if row.resolution == "recovered":
        return Text("✔ recovered", style="green")
    if row.ended:
        # The sign stays: it went wrong once, and nobody mended it before the end.
        return Text("ended ▲" if row.escalated else "ended", style="bright_black")
    if row.escalated:
        return Text("resolved", style="green")
    return Text("with bot" if row.phase == "with_bot" else "calm", style="bright_black")


class Screen:
    """The live screen; call it for each frame. Keeps the arrangement of rows between frames."""

    def __init__(self) -> None:
        self._seats = Seats()

    def __call__(self, floor: Floor, frame: Frame) -> RenderableType:
        """The whole screen as one renderable that fits whatever terminal it is drawn on."""
        return _Sized(self, floor, frame)

    def layout(self, floor: Floor, frame: Frame, width: int, height: int) -> Layout:
        """The screen for a terminal of this size, in character cells."""
        wide = width >= _WIDE
        root = Layout()
        root.split_column(
            Layout(self._title(frame), name="title", size=1),
            Layout(name="body"),
            Layout(self._footer(floor, frame, width), name="footer", size=6),
        )
        root["body"].split_row(
            Layout(name="floor", ratio=29 if wide else 16),
            Layout(name="alarms", ratio=11 if wide else 9),
        )
        # borders and heading of the left panel: four lines
        body_lines = height - 7
        root["floor"].update(self._floor(floor, frame, body_lines - 4, wide))
        root["alarms"].update(self._alarms(floor, body_lines - 2, wide))
        return root

    def _title(self, frame: Frame) -> RenderableType:
        grid = Table.grid(expand=True)
        grid.add_column(ratio=1, no_wrap=True)
        grid.add_column(justify="right", no_wrap=True)
        left = Text(" stream_sentiment", style="bold")
        left.append("  a chat floor, live", style="bright_black")
        minutes, seconds = divmod(int(frame.at_s), 60)
        grid.add_row(left, Text(f"{frame.pace}  {minutes:02d}:{seconds:02d} ", style="bright_black"))
        return grid

    def _floor(self, floor: Floor, frame: Frame, lines: int, wide: bool) -> RenderableType:
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="bright_black")
        table.add_column("", width=1)
        table.add_column("", width=2)
        table.add_column("conversation", ratio=3 if wide else 1, no_wrap=True, overflow="ellipsis")
        table.add_column("emotion", width=12 if wide else 8, no_wrap=True)
        table.add_column("now", width=14 if wide else 9, no_wrap=True, overflow="ellipsis")
        table.add_column("rolling" if wide else "score", width=15 if wide else 5, no_wrap=True, justify="right")
        table.add_column("status", width=11, no_wrap=True)
        if wide and frame.show_text:
            table.add_column("last words", ratio=3, no_wrap=True, overflow="ellipsis")
        for row in self._seats.arrange(list(floor.rows.values()), max(lines, 1)):
            table.add_row(*self._cells(row, frame, wide))
        shown = sum(not row.ended for row in floor.rows.values())
        return Panel(
            table,
            title=f"conversations: {shown} open, {len(floor.rows) - shown} ended",
            title_align="left",
            border_style="bright_black",
            padding=(0, 0, 0, 1),
        )

    def _cells(self, row: Row, frame: Frame, wide: bool) -> list[RenderableType]:
        fresh = frame.at_s - row.touched_s <= _FRESH_S
        quiet = row.ended and not row.severity
        name = Text(row.title, style="bright_black" if quiet else "bold" if row.severity else "")
        emotion = row.emotion or "..."
        rolling = Text("", style="bright_black")
        if row.rolling is not None:
            rolling = Text(f"{row.rolling:+.2f}", style=score_style(row.rolling))
            if wide:
                rolling = Text.assemble(gauge(row.rolling, 4), " ", rolling)
        cells: list[RenderableType] = [
            Text("›" if fresh else " ", style="bold"),
            Text(row.language[:2], style="bright_black"),
            name,
            emotion_line(row.points, 12 if wide else 8),
            Text(
                emotion if wide else _SHORT.get(emotion, emotion),
                style="bright_black" if quiet else _EMOTION_STYLE.get(emotion, ""),
            ),
            rolling,
            status_of(row),
        ]
        if wide and frame.show_text:
            cells.append(Text(row.last_text, style="bright_black" if quiet else ""))
        return cells

    def _alarms(self, floor: Floor, lines: int, wide: bool) -> RenderableType:
        entries: list[RenderableType] = []
        reason_lines = 3
        for alarm in list(reversed(floor.alarms))[: max(lines // 3 + 1, 1)]:
            entries.append(alarm_heading(alarm, with_rule=wide))
            entries.append(Text("  " + alarm.title, no_wrap=True, overflow="ellipsis"))
            if alarm.action != "resolved" and alarm.reason:
                entries.append(_Clipped(Text(alarm.reason, style="bright_black"), reason_lines))
        body: RenderableType = Group(*entries)
        if not entries:
            waiting = "nobody needs help yet" if floor.scored else "waiting for the first messages"
            body = Align.center(Text(waiting, style="bright_black"), vertical="middle")
        return Panel(
            body,
            title=f"escalations: {floor.open_escalations} open",
            title_align="left",
            border_style="red" if floor.open_escalations else "bright_black",
        )

    def _footer(self, floor: Floor, frame: Frame, width: int) -> RenderableType:
        grid = Table.grid(expand=True, padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True, overflow="ellipsis")
        first = Text()
        first.append(f"{floor.sent}", style="bold").append(" events  ")
        first.append(f"{floor.scored}", style="bold").append(" scored  ")
        if floor.skipped:
            first.append(f"{floor.skipped}", style="bold").append(" skipped  ")
        first.append(f"{floor.rate(frame.at_s):.1f}", style="bold").append(" events/s  ")
        median, tail = floor.latency_ms(0.5), floor.latency_ms(0.95)
        if median is not None and tail is not None:
            first.append("sent to scored ").append(f"{median:.0f} ms", style="bold")
            first.append(f" (95 % below {tail:.0f} ms)")
        second = Text()
        second.append(f"{floor.actions['opened']}", style="bold").append(" escalations opened  ")
        second.append(f"{floor.actions['resolved']}", style="bold").append(" resolved  ")
        dead = sum(floor.dead_letters.values())
        second.append(f"{dead}", style="bold").append(" dead letters")
        if dead:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(floor.dead_letters.items()))
            second.append(f" ({reasons})", style="bright_black")
        third = Text(frame.model or "loading the model", style="bright_black")
        third.append(f"  {frame.services}")
        grid.add_row(first)
        grid.add_row(second)
        grid.add_row(third)
        grid.add_row(progress_bar(frame.progress, max(width - 6, 10), frame.stage))
        return Panel(grid, border_style="bright_black", padding=(0, 1))


def progress_bar(share: float, width: int, stage: str) -> Text:
    """How much of the log was sent, with the stage as a word."""
    label = f" {round(share * 100):3d} %  {stage}"
    cells = max(width - len(label), 1)
    filled = min(round(share * cells), cells)
    return Text.assemble(("━" * filled, "cyan"), ("─" * (cells - filled), "bright_black"), label)


def alarm_heading(alarm: Alarm, with_rule: bool = True) -> Text:
    """`00:27 ▲ opened error  sustained-negative`, `00:31 ✔ recovered  sustained-negative`."""
    minutes, seconds = divmod(int(alarm.at_s), 60)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{minutes:02d}:{seconds:02d} ", style="bright_black")
    style = "green" if alarm.action == "resolved" else _SEVERITY_STYLE.get(alarm.severity, "")
    what = f"{alarm.action} {alarm.severity}"
    if alarm.action == "resolved":
        what = alarm.resolution.replace("_", " ")
    text.append(f"{_ACTION_SIGN.get(alarm.action, '?')} {what}", style=style)
    if with_rule:
        text.append(f"  {alarm.rule_id}", style="bright_black")
    return text


def alarm_line(alarm: Alarm) -> str:
    """One escalation event as a plain line, for a log or a pipe."""
    what = alarm.resolution if alarm.action == "resolved" else alarm.severity
    reason = f": {alarm.reason}" if alarm.reason and alarm.action != "resolved" else ""
    return f"[{alarm.at_s:6.1f} s] escalation {alarm.action} ({what}) {alarm.rule_id} in {alarm.title!r}{reason}"


def status_line(floor: Floor, frame: Frame) -> str:
    """The counts as a plain line."""
    return (
        f"[{frame.at_s:6.1f} s] {frame.stage}: {floor.sent} events sent, {floor.scored} scored, "
        f"{floor.actions['opened']} escalations opened, {floor.actions['resolved']} resolved, "
        f"{sum(floor.dead_letters.values())} dead letters"
    )


class _Sized:
    """Asks the console for its size at the moment of drawing, so that a resized terminal is filled."""

    def __init__(self, screen: Screen, floor: Floor, frame: Frame) -> None:
        self._parts = (screen, floor, frame)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        screen, floor, frame = self._parts
        height = options.height or console.height
        yield screen.layout(floor, frame, options.max_width, height)


def _wrapped(text: Text, console: Console, width: int) -> list[Text]:
    """Lines of at most `width` cells. Between Chinese characters there are no spaces to break at: any place will do there."""
    wide = sum(cell_len(character) == 2 for character in text.plain)
    if 4 * wide < len(text.plain):
        return list(text.wrap(console, width))
    lines = [""]
    for piece in _UNBROKEN.findall(text.plain):
        if cell_len(lines[-1]) + cell_len(piece) > width and lines[-1]:
            lines.append("")
        lines[-1] += piece
    return [Text(line, style=text.style) for line in lines]


class _Clipped:
    """A text that is wrapped, indented by two cells and cut after some lines."""

    def __init__(self, text: Text, lines: int) -> None:
        self._text = text
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wrapped = _wrapped(self._text, console, max(options.max_width - 2, 8))
        cut = len(wrapped) > self._lines
        for index, line in enumerate(wrapped[: self._lines]):
            if cut and index == self._lines - 1:
                line.truncate(max(options.max_width - 3, 4))
                line.append("…")
            yield Text("  ", no_wrap=True) + line
