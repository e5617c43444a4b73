"""Texts of many sources as one flat array of token ids: what a long run reads instead of files.

In: a recipe's sources (labelled JSONL rows, or plain text, one text a line) and a tokenizer. Out: a `Corpus`, saved as one
compressed `.npz`. Blocks on the tokenizer (some 20,000 texts a second). Raises `ConfigurationError`.

A row has one or more *variants*: the text as it stands, then copies with a typo or a re-segmented word. They are made once, here, so
that a run on an accelerator does nothing but arithmetic.
"""

from __future__ import annotations

import glob
import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES, SIGNALS
from stream_sentiment.training import data

FOLD_BLOCK = 25
"""Neighbouring rows of a file are often alike (a contrast pair, one review site): whole blocks go into one fold."""

FOLDS = 5


@dataclass(frozen=True, slots=True)
class CorpusSource:
    """Files of one kind. `domain`: which n-gram teacher judges them; `passes`: how often a stage shows each row, by stage."""

    name: str
    files: str
    domain: str = "general"
    lang: str = ""
    passes: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0
    binary: bool = False
    cap: dict[str, int] = field(default_factory=dict)
    keep: float = 1.0  # share of the rows that is kept
    variants: int = 1


@dataclass(frozen=True, slots=True)
class Corpus:
    """N rows, S >= N sequences, T tokens. Missing labels: -1 (polarity, emotion), NaN (intensity), 255 (signals)."""

    ids: npt.NDArray[np.uint16]  # T
    starts: npt.NDArray[np.int64]  # S + 1
    first: npt.NDArray[np.int64]  # N: index of the row's first sequence
    variants: npt.NDArray[np.uint8]  # N
    source: npt.NDArray[np.int16]  # N: index into `names`
    polarity: npt.NDArray[np.int8]
    emotion: npt.NDArray[np.int8]
    intensity: npt.NDArray[np.float32]
    signals: npt.NDArray[np.uint8]  # N x 13
    weight: npt.NDArray[np.float32]
    binary: npt.NDArray[np.bool_]
    fold: npt.NDArray[np.uint8]  # 0 .. FOLDS - 1
    names: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.first)

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """Rows with a label for any head."""
        return np.asarray((self.polarity >= 0) | (self.emotion >= 0) | (self.signals[:, 0] != 255))

    def save(self, path: Path) -> None:
        # savez_compressed would pack the ids no better than half; the file is read once per run.
        np.savez_compressed(path, **{name: getattr(self, name) for name in Corpus.__slots__})

    @classmethod
    def load(cls, path: Path) -> Corpus:
        try:
            with np.load(path) as stored:
                return cls(**{name: stored[name] for name in cls.__slots__})
        except (OSError, KeyError, ValueError) as error:
            raise ConfigurationError(f"{path} is no corpus ({error}); make it with `model corpus`") from error


def build_corpus(
    root: Path,
    sources: Sequence[CorpusSource],
    tokenizer: Tokenizer,
    max_tokens: int,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Corpus:
    """Read, prepare and tokenise every source; the order of the rows is that of the recipe and its files."""
    tokenizer.encode_special_tokens = True
    encoder = data.Encoder(tokenizer, max_tokens)
    if tokenizer.get_vocab_size() > np.iinfo(np.uint16).max:
        raise ConfigurationError(f"a corpus holds ids below 65,536; this tokenizer has {tokenizer.get_vocab_size()}")
    rows: list[data.Row] = []
    source_of: list[int] = []
    fold_of: list[int] = []
    sequences: list[list[int]] = []
    first: list[int] = []
    count: list[int] = []
    for index, source in enumerate(sources):
        if progress is not None:
            progress(index, len(sources), source.name)
        found = read_rows(root, source, seed)
        rng = np.random.default_rng([seed, index])
        copies = []
        for number in range(source.variants):
            copies.append(_encode(found, encoder, rng, rough=number > 0))
        for position, row in enumerate(found):
            distinct = [copies[0][position]]
            distinct += [c[position] for c in copies[1:] if c[position] != distinct[0]]
            first.append(len(sequences))
            count.append(len(distinct))
            sequences.extend(distinct)
            rows.append(row)
            source_of.append(index)
            fold_of.append(position // FOLD_BLOCK % FOLDS)
    starts = np.zeros(len(sequences) + 1, np.int64)
    np.cumsum([len(x) for x in sequences], out=starts[1:])
    polarity = {label: i for i, label in enumerate(POLARITIES)}
    emotion = {label: i for i, label in enumerate(EMOTIONS)}
    return Corpus(
        ids=np.fromiter((i for x in sequences for i in x), np.uint16, int(starts[-1])),
        starts=starts,
        first=np.array(first, np.int64),
        variants=np.array(count, np.uint8),
        source=np.array(source_of, np.int16),
        polarity=np.array([-1 if r.polarity is None else polarity[r.polarity] for r in rows], np.int8),
        emotion=np.array([-1 if r.emotion is None else emotion[r.emotion] for r in rows], np.int8),
        intensity=np.array([np.nan if r.intensity is None else r.intensity for r in rows], np.float32),
        signals=np.array(
            [[255] * len(SIGNALS) if r.signals is None else [s in r.signals for s in SIGNALS] for r in rows], np.uint8
        ).reshape(len(rows), len(SIGNALS)),
        weight=np.array([r.weight for r in rows], np.float32),
        binary=np.array([r.binary for r in rows], np.bool_),
        fold=np.array(fold_of, np.uint8),
        names=np.array([s.name for s in sources]),
    )


def read_rows(root: Path, source: CorpusSource, seed: int = 0) -> list[data.Row]:
    """Labelled rows, or rows without labels from `.txt` files; capped and thinned as the source says."""
    paths = sorted(glob.glob(str(root / source.files)))
    if not paths:
        raise ConfigurationError(f"no file matches {source.files} below the data folder {root}")
    if any(".txt" in Path(p).suffixes for p in paths):
        found = [data.Row(text=line, lang=source.lang) for p in paths for line in _lines(Path(p))]
    else:
        found = data.read_source(
            root,
            data.Source(
                files=source.files, passes=1.0, weight=source.weight, binary=source.binary, cap=dict(source.cap)
            ),
        )
    if source.keep < 1.0:
        chosen = np.random.default_rng([seed, len(found)]).random(len(found)) < source.keep
        found = [row for row, kept in zip(found, chosen, strict=True) if kept]
    return found


def _lines(path: Path) -> list[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [line.strip() for line in file if len(line.strip()) > 1]


def _encode(
    rows: Sequence[data.Row], encoder: data.Encoder, rng: np.random.Generator, *, rough: bool
) -> list[list[int]]:
    texts = []
    for row in rows:
        text = data.fill_placeholders(row.text, rng)
        if rough and rng.random() < 0.6:
            text = data.roughen(text, rng)
        texts.append(data.prepared(text))
    ids = encoder.encode(texts)
    return [encoder.split_words(x, rng) if rough and rng.random() < 0.5 else x for x in ids]
