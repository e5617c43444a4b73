"""A scorer of which a test knows what must come out."""

from collections.abc import Sequence

from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES, SIGNALS
from stream_sentiment.scoring.scorer import ModelInfo, Score, TokenizedText


class WordScorer:
    """Negative where the text says `bad`, positive where it says `good`, else neutral; each with probability 0.9."""

    info = ModelInfo(
        "words", "1", "0" * 64, "none", 96, {"polarity": POLARITIES, "emotion": EMOTIONS, "signals": SIGNALS}
    )

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        return [TokenizedText([ord(character) for character in text[:96]], False) for text in texts]

    def infer(self, batch: Sequence[Sequence[int]]) -> list[Score]:
        return [self._score("".join(map(chr, ids))) for ids in batch]

    def score(self, texts: Sequence[str]) -> list[Score]:
        return [self._score(text) for text in texts]

    def _score(self, text: str) -> Score:
        label = "negative" if "bad" in text else "positive" if "good" in text else "neutral"
        polarity = tuple(0.9 if name == label else 0.05 for name in POLARITIES)
        wanted = {"negative": "anger", "positive": "joy", "neutral": "neutral"}[label]
        emotion = tuple(0.9 if name == wanted else 0.02 for name in EMOTIONS)
        return Score(polarity, emotion, polarity[2] - polarity[0], 0.9, label, wanted, False)  # type: ignore[arg-type]
