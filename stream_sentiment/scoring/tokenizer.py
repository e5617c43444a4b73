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
