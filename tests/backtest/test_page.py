"""The page on the rules is written by measuring, not by hand."""

from __future__ import annotations

import gzip
from pathlib import Path
from shutil import copytree
from typing import Any

import orjson
import pytest

from stream_sentiment.backtest import page as subject

ROOT = Path(__file__).parents[2]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def talk(name: str, escalate: bool) -> dict[str, Any]:
    text = "terrible, awful, the worst" if escalate else "fine"
    messages = [{"role": "customer", "text": f"{text} {number}"} for number in range(5)]
    label = {"earliest_message": 0, "by_message": 4} if escalate else {}
    return {"id": name, "lang": "en", "messages": messages, "escalate": escalate, **label}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in subject.SERVICE:
        write(tmp_path / name, [talk(f"{name}-{number}", number % 2 == 0) for number in range(8)])
    for name in subject.DEV:
        write(tmp_path / name, [{"text": "the battery is smoking", "signals": ["safety_risk"], "polarity": "negative"}])
    ending = [
        {"conversation_id": f"c{number}", "role": role, "text": text, "lang": "en", "satisfaction": mood}
        for number, mood in enumerate(("dissatisfied", "satisfied", "satisfied"))
        for role, text in (("user", "terrible, awful"), ("user", "the worst"), ("overall", ""))
    ]
    write(tmp_path / subject.JDDC, ending)
    for _, name in subject.CALM:
        write(tmp_path / name, [{"conversation_id": "a", "role": "user", "text": "fine", "lang": "en"}])
    return tmp_path


def test_both_blocks_are_written_anew_and_nothing_else(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAM_SENTIMENT_MODEL__STUB", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Two values in place of 216 combinations.
    monkeypatch.setattr(subject, "VARIED", ("rules.sustained-negative.when.rolling_score.open=-0.45..-0.25/2",))
    docs = tmp_path / "docs"
    copytree(ROOT / "docs" / "examples", docs / "examples")
    (docs / "images").mkdir()
    page = docs / "rules.md"
    rules, signals = (
        (f"<!-- generated: {name} -->", f"<!-- end of {name} -->")
        for name in ("figures of the default rules", "figures of the signals")
    )
    page.write_text("\n".join(["before", rules[0], "YESTERDAY", rules[1], "between", *signals, "after", ""]))

    subject.main(data, page)

    text = page.read_text()
    assert "YESTERDAY" not in text
    assert all(part in text for part in ("before\n", "\nbetween\n", "\nafter\n"))
    assert "| service, 16, synthetic; rules and numbers were chosen on these | " in text
    assert "| scripted scenarios, 64" in text
    assert "3 endings, 1 dissatisfied" in text
    assert "| CrossWOZ test, calm, 1 | – | – | – | – | 0.0 |" in text
    assert "| safety_risk | 1.0 / 1.0, 2 |" in text
    assert (docs / "images" / "sweep.svg").read_text().startswith("<svg")
    once = text
    subject.main(data, page)
    assert page.read_text() == once


def test_the_page_has_the_blocks() -> None:
    text = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    for name in ("figures of the default rules", "figures of the signals"):
        assert text.count(f"<!-- generated: {name} -->") == text.count(f"<!-- end of {name} -->") == 1
