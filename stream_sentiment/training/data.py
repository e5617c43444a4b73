"""Labelled rows: reading, mixing, augmenting, tokenising and batching.

In: JSONL files (plain or gzip) of rows `{text, polarity?, emotion?, intensity?, signals?, weight?, lang?}`; a
label that is absent or null gives no loss to that head. Out: batches of near-equal length. Blocks on files.
Raises `ConfigurationError` naming file and line.
"""

from __future__ import annotations

import glob
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from tokenizers import Tokenizer

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.heads import Head, HeadKind
from stream_sentiment.scoring.text import prepare

MASKED = -100
"""The target of a softmax head that a row has no label for."""

NO_NEUTRAL = -1e4
"""The neutral logit of rows whose source knows no neutral: softmax over negative and positive alone."""


@dataclass(frozen=True, slots=True)
class Row:
    """One text with whatever labels it has. `binary`: the source knows no neutral, so its polarity loss is
    over two classes.
    """

    text: str
    polarity: str | None = None
    emotion: str | None = None
    intensity: float | None = None
    signals: tuple[str, ...] | None = None
    weight: float = 1.0
    binary: bool = False
    lang: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Files of one kind and how often the run shows them."""

    files: str
    passes: float  # how often each row is seen over the whole run
    weight: float = 1.0  # multiplies the loss of its rows
    binary: bool = False
    cap: dict[str, int] = field(default_factory=dict)  # at most so many rows of a polarity
    source: str | None = None  # only rows of this source


def read_mix(path: Path) -> list[Source]:
    """Sources from a YAML file: a list under `sources`, each with `files` (a pattern below the data folder)
    and `passes`.
    """
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
        return [Source(**entry) for entry in document["sources"]]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: not a mix file ({error}); see docs/model.md for its fields") from error


def read_rows(path: Path, *, binary: bool = False, weight: float = 1.0) -> list[Row]:
    """All rows of one file."""
    rows: list[Row] = []
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                rows.append(_row(json.loads(line), binary, weight))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ConfigurationError(
                    f"{path}, line {number}: {error}; a row is a JSON object with a text"
                ) from error
    return rows


def read_source(root: Path, source: Source) -> list[Row]:
    """The rows of a source, capped by polarity in file order of a fixed shuffle."""
    paths = sorted(glob.glob(str(root / source.files)))
    if not paths:
        raise ConfigurationError(f"no file matches {source.files} below the data folder {root}")
    rows = [r for p in paths for r in read_rows(Path(p), binary=source.binary, weight=source.weight)]
    if source.source is not None:
        rows = [r for r in rows if r.source == source.source]
    if source.cap:
        order = np.random.default_rng(7).permutation(len(rows))
        taken: dict[str, int] = {}
        kept = []
        for index in order:
            polarity = rows[index].polarity or ""
            taken[polarity] = taken.get(polarity, 0) + 1
            if taken[polarity] <= source.cap.get(polarity, len(rows)):
                kept.append(rows[index])
        rows = kept
    return rows


# Placeholders of corpora whose owners masked the texts. Random digits stand in for them, or "placeholder"
# would come to mean "calm".
_PLACEHOLDER = re.compile(
    r"\[(?:ORDERID_\d+|[A-Z_]+_\d+|(?:数字|订单|电话|日期|时间|金额|地址|姓名|站点|邮箱|组织机构|商品快照|链接)[xX]?)\]"
)
_EMOTICON = re.compile(r"#E-s(?:\[[^\]]{1,8}\]|\d+)")


def fill_placeholders(text: str, rng: np.random.Generator) -> str:
    """Random numbers of 1 to 11 digits in place of a corpus's own placeholders."""
    if "[" in text or "#E-s" in text:
        text = _EMOTICON.sub(" ", text)
        text = _PLACEHOLDER.sub(lambda _: str(rng.integers(10 ** int(rng.choice((1, 2, 4, 8, 11))))), text)
    return text


def roughen(text: str, rng: np.random.Generator) -> str:
    """One small change that a person in a hurry makes: a typo, more or less punctuation, capitals, a
    lengthened word.
    """
    kind = int(rng.integers(6))
    if len(text) < 4:
        return text
    at = int(rng.integers(1, len(text) - 1))
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[: at - 1] + text[at] + text[at - 1] + text[at + 1 :]
    if kind == 2:
        return text.rstrip(".。!！?？~～")
    if kind == 3 and text[-1] in "!！?？。.~":
        return text + text[-1] * int(rng.integers(1, 4))
    if kind == 4 and text.isascii():
        return text.upper() if rng.random() < 0.3 else text.lower()
    return text.replace("，", " ").replace(",", " ")


class Encoder:
    """Tokenises prepared text as the product does, with head and tail of long texts kept."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        from stream_sentiment.scoring.tokenizer import keep_head_and_tail

        self._tokenizer = tokenizer
        self._keep = keep_head_and_tail
        self.max_tokens = max_tokens
        vocabulary = tokenizer.get_vocab()
        self._parts = {
            index: [vocabulary[c] for c in token]
            for token, index in vocabulary.items()
            if 2 <= len(token) <= 6 and "\u4e00" <= token[0] <= "\u9fff" and all(c in vocabulary for c in token)
        }
        mask = vocabulary.get("[MASK]")
        self.mask_id = 4 if mask is None else mask

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return [self._keep(e.ids, self.max_tokens) for e in encodings]

    def split_words(self, ids: list[int], rng: np.random.Generator) -> list[int]:
        """A third of the Chinese words fall into their characters, so that a segmentation error is nothing
        new to the model.
        """
        out: list[int] = []
        for token in ids:
            parts = self._parts.get(token)
            out.extend(parts if parts and rng.random() < 0.35 else [token])
        return [*out[: self.max_tokens - 1], ids[-1]] if len(out) > self.max_tokens else out


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded arrays for one step. Targets by head name: int64 (softmax) or float32 with NaN where masked."""

    ids: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    targets: dict[str, npt.NDArray[Any]]
    weight: npt.NDArray[np.float32]
    binary: npt.NDArray[np.bool_]


def targets_of(rows: Sequence[Row], heads: Sequence[Head]) -> dict[str, npt.NDArray[Any]]:
    """Target array of every head for these rows."""
    out: dict[str, npt.NDArray[Any]] = {}
    for head in heads:
        values = [getattr(r, head.name, None) for r in rows]
        if head.kind is HeadKind.SOFTMAX:
            index = {label: i for i, label in enumerate(head.labels)}
            out[head.name] = np.array([MASKED if v is None else index[v] for v in values], np.int64)
        elif head.kind is HeadKind.REGRESSION:
            out[head.name] = np.array([[np.nan if v is None else float(v)] for v in values], np.float32)
        else:
            table = [[np.nan if v is None else float(label in v) for label in head.labels] for v in values]
            out[head.name] = np.array(table, np.float32)
    return out


def batches(
    rows: Sequence[Row], ids: Sequence[list[int]], heads: Sequence[Head], budget: int, rng: np.random.Generator | None
) -> Iterator[tuple[list[int], Batch]]:
    """Length-sorted batches of at most `budget` padded tokens with the rows' indices; shuffled when a
    generator is given.
    """
    lengths = np.array([len(x) for x in ids])
    jitter = rng.random(len(ids)) * 0.9 if rng is not None else 0.0
    order = np.argsort(lengths + jitter, kind="stable")
    groups: list[list[int]] = []
    for index in order.tolist():
        if groups and max(lengths[index], lengths[groups[-1]].max()) * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    sequence = range(len(groups)) if rng is None else rng.permutation(len(groups)).tolist()
    for number in sequence:
        group = groups[number]
        yield group, _batch([rows[i] for i in group], [ids[i] for i in group], heads)


def _batch(rows: list[Row], ids: list[list[int]], heads: Sequence[Head]) -> Batch:
    lengths = np.array([len(x) for x in ids], np.int64)
    padded = np.zeros((len(ids), int(lengths.max())), np.int64)
    for i, x in enumerate(ids):
        padded[i, : len(x)] = x
    return Batch(
        ids=padded,
        lengths=lengths,
        targets=targets_of(rows, heads),
        weight=np.array([r.weight for r in rows], np.float32),
        binary=np.array([r.binary for r in rows]),
    )


def prepared(text: str) -> str:
    """The text as the tokenizer sees it."""
    return prepare(text).text


def _row(record: dict[str, Any], binary: bool, weight: float) -> Row:
    signals = record.get("signals")
    intensity = record.get("intensity")
    return Row(
        text=str(record["text"]),
        polarity=record.get("polarity"),
        emotion=record.get("emotion"),
        intensity=None if intensity is None else float(intensity),
        signals=None if signals is None else tuple(signals),
        weight=float(record.get("weight") or 1.0) * weight,
        binary=binary or bool(record.get("binary")),
        lang=str(record.get("lang") or record.get("language") or ""),
        source=str(record.get("source") or ""),
    )
