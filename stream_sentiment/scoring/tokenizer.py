"""Prepared text to token ids.

In: messages. Out: `TokenizedText` per message. Blocks on arithmetic (the native tokenizer releases the GIL).
One thread calls it: the truncation and padding of a `tokenizers.Tokenizer` are state that a running encode
borrows, so neither is ever set here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from stream_sentiment.scoring.align import prepare_aligned
from stream_sentiment.scoring.text import prepare

# One tokenising thread is the design (the worker's score thread); the library's own pool would oversubscribe the cores.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """Ids with [CLS] and [SEP]; `truncated` when characters or tokens were left out."""

    ids: list[int]
    truncated: bool
    text: str | None = None  # the prepared text, in which signals are looked for; None: the text was not prepared


def keep_head_and_tail(ids: list[int], max_tokens: int) -> list[int]:
    """At most `max_tokens` ids: the first five eighths and the last three (60 and 36 of 96). A complaint says
    what it wants at its end.
    """
    if len(ids) <= max_tokens:
        return ids
    head = max_tokens * 5 // 8
    return ids[:head] + ids[len(ids) - (max_tokens - head) :]


@dataclass(frozen=True, slots=True)
class Unit:
    """A word as the model reads it: its place in the message as it was written, and its places in the ids (none where the
    middle of a long text was left out).
    """

    begin: int
    end: int
    places: tuple[int, ...]


class TextTokenizer:
    """Text preparation, tokenizer and truncation in one step."""

    def __init__(self, serialized: bytes, max_tokens: int) -> None:
        """`serialized`: the bytes of a `tokenizer.json`."""
        self._tokenizer = Tokenizer.from_buffer(serialized)
        # A customer who types "[SEP]" has typed five characters, not a control token.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.max_tokens = max_tokens

    @property
    def mask_id(self) -> int | None:
        """The id that stands for a hidden token; None: the vocabulary has none."""
        found: int | None = self._tokenizer.token_to_id("[MASK]")
        return found

    def units(self, text: str) -> tuple[list[int], list[Unit]]:
        """The ids that `tokenize` gives, and the words of the original text that they come from, in the text's order.

        Word pieces are joined to words, and so are tokens of one mask; characters that no token speaks for belong to the word
        before them.
        """
        prepared, spans = prepare_aligned(text)
        encoding = self._tokenizer.encode(prepared)
        kept = keep_head_and_tail(list(range(len(encoding.ids))), self.max_tokens)
        place_of = {index: place for place, index in enumerate(kept)}
        found: list[tuple[int, int, list[int]]] = []
        for index, (token, (first, last), special) in enumerate(
            zip(encoding.tokens, encoding.offsets, encoding.special_tokens_mask, strict=True)
        ):
            if special or first == last:
                continue
            begin, end = spans[first][0], spans[last - 1][1]
            places = [place_of[index]] if index in place_of else []
            least = found[-1][1] if found else 0
            # The tokenizer shortens "!!!!!" to "!!" and points at the last one.
            while least < begin and text[begin - 1] == text[begin]:
                begin -= 1
            if found and (token.startswith("##") or begin < least):
                before = found[-1]
                found[-1] = before[0], max(before[1], end), before[2] + places
            else:
                found.append((begin, end, places))
        units = []
        for number, (begin, end, places) in enumerate(found):
            limit = found[number + 1][0] if number + 1 < len(found) else len(text)
            units.append(Unit(begin, end + len(text[end:limit].rstrip()), tuple(places)))
        return [encoding.ids[index] for index in kept], units

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        prepared = [prepare(text) for text in texts]
        limit = self.max_tokens
        out = []
        for piece, encoding in zip(
            prepared, self._tokenizer.encode_batch_fast([p.text for p in prepared]), strict=True
        ):
            ids = encoding.ids
            out.append(TokenizedText(keep_head_and_tail(ids, limit), piece.cut or len(ids) > limit, piece.text))
        return out
