"""What scoring may raise besides `ConfigurationError`."""

from __future__ import annotations

from collections.abc import Sequence

from stream_sentiment.errors import StreamSentimentError


class InferenceError(StreamSentimentError):
    """Some messages of a micro-batch cannot be scored, now or later; `items` are their positions in it.

    The others can: leave these out and run the rest again.
    """

    def __init__(self, detail: str, items: Sequence[int]) -> None:
        super().__init__(detail)
        self.items = tuple(items)
