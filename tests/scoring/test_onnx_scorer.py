"""The default model through the scorer: the same number in any batch, sound probabilities, clear failures."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_sentiment.scoring.calibration import Calibrator
from stream_sentiment.scoring.errors import InferenceError
from stream_sentiment.scoring.scorer import OnnxScorer, StubScorer, pad

TEXTS = [
    "你们就是骗子！我要去12315投诉",
    "好的谢谢",
    "请问什么时候发货",
    "I'm absolutely furious, this is the third time it arrived broken!",
    "wow that was fast, thank you so much 😊",
    "where is my order?",
    "ok",
    "等了两个星期还没收到，太失望了，再也不来了",
]


def golden_ids(scorer: OnnxScorer) -> list[list[int]]:
    return [item["ids"] for item in json.loads(scorer.bundle.golden)["items"]]


def test_a_golden_message_scores_the_same_alone_in_a_batch_and_with_more_padding(scorer: OnnxScorer) -> None:
    ids = golden_ids(scorer)
    assert len(ids) >= 64
    alone = np.concatenate([scorer.logits([x]) for x in ids])
    longest = list(range(5, 5 + scorer.info.max_length))
    assert np.array_equal(alone, scorer.logits(ids))
    assert np.array_equal(alone, scorer.logits([*ids[::-1]])[::-1])
    assert np.array_equal(alone, scorer.logits([*ids, longest])[:-1])
    pairs = np.concatenate([scorer.logits([x, longest])[:1] for x in ids])
    assert np.array_equal(alone, pairs)


def test_the_check_above_can_fail(scorer: OnnxScorer) -> None:
    """Control: one changed token changes the logits."""
    ids = golden_ids(scorer)[0]
    assert not np.array_equal(scorer.logits([ids]), scorer.logits([[*ids[:-1], 7]]))


def test_score_keeps_the_order_of_the_texts(scorer: OnnxScorer) -> None:
    assert scorer.score(TEXTS) == [scorer.score([t])[0] for t in TEXTS]


def test_plain_cases_get_the_plain_labels(scorer: OnnxScorer) -> None:
    labels = [s.label for s in scorer.score(TEXTS)]
    assert labels[0] == labels[3] == labels[7] == "negative"
    assert labels[4] == "positive"
    assert labels[2] == labels[5] == "neutral"


def test_probabilities_are_consistent(scorer: OnnxScorer) -> None:
    for score in scorer.score(TEXTS):
        # Four decimals each: the sum is off by at most half a digit a class.
        assert sum(score.polarity) == pytest.approx(1.0, abs=1.6e-4)
        assert sum(score.emotion) == pytest.approx(1.0, abs=3.1e-4)
        assert score.score == pytest.approx(score.polarity[2] - score.polarity[0], abs=1e-4)
        assert score.confidence == max(score.polarity)
        assert score.intensity is not None
        assert 0.0 <= score.intensity <= 3.0
        assert len(score.signals) == 13
        assert all(0.0 <= p <= 1.0 for p in score.signals)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300))
def test_any_text_gets_a_score(text: str) -> None:
    score = _scorer().score([text])[0]
    assert -1.0 <= score.score <= 1.0


def test_no_texts_give_no_scores(scorer: OnnxScorer) -> None:
    assert scorer.score([]) == []
    assert scorer.infer([]) == []


def test_special_tokens_typed_by_a_customer_stay_text(scorer: OnnxScorer) -> None:
    ids = scorer.tokenize(["[SEP][MASK] hi"])[0].ids
    assert ids.count(3) == 1
    assert 4 not in ids


def test_a_long_text_keeps_sixty_tokens_of_its_head_and_thirty_six_of_its_tail(scorer: OnnxScorer) -> None:
    token = scorer.tokenize(["good " * 90 + "bad " * 90])[0]
    good, bad = (scorer.tokenize([w])[0].ids[1] for w in ("good", "bad"))
    assert token.truncated
    assert token.ids == [2, *[good] * 59, *[bad] * 35, 3]
    assert not scorer.tokenize(["good " * 90])[0].truncated


def test_logits_that_are_not_numbers_name_their_messages(scorer: OnnxScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = golden_ids(scorer)[:4]
    logits = scorer.logits(ids)
    logits[2, 0] = np.nan
    monkeypatch.setattr(scorer, "logits", lambda _batch: logits)
    with pytest.raises(InferenceError) as caught:
        scorer.infer(ids)
    assert caught.value.items == (2,)


def test_a_batch_that_does_not_fit_is_halved_until_it_fits(scorer: OnnxScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = golden_ids(scorer)[:7]
    expected = scorer.logits(ids)
    real = scorer._session.run
    shrunk = []

    def run(x: np.ndarray, *, shrink: bool = False) -> np.ndarray:
        shrunk.append(shrink)
        if len(x) > 2:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 1024")
        return real(x, shrink=shrink)

    monkeypatch.setattr(scorer._session, "run", run)
    assert np.array_equal(scorer.logits(ids), expected)
    assert any(shrunk)


def test_one_message_that_does_not_fit_is_an_inference_error(
    scorer: OnnxScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_x: np.ndarray, *, shrink: bool = False) -> np.ndarray:
        raise RuntimeError("bfcarena: out of memory")

    monkeypatch.setattr(scorer._session, "run", run)
    with pytest.raises(InferenceError):
        scorer.infer([[2, 7, 3]])


def test_other_failures_are_not_swallowed(scorer: OnnxScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_x: np.ndarray, *, shrink: bool = False) -> np.ndarray:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(scorer._session, "run", run)
    with pytest.raises(RuntimeError, match="illegal"):
        scorer.infer([[2, 7, 3]])


def test_calibration_by_hand() -> None:
    """Two heads with known logits: p = softmax(z / T)."""
    calibrator = Calibrator(_heads())
    logits = np.zeros((1, 9), np.float32)
    logits[0, :3] = [2.0, 0.0, 0.0]
    logits[0, 3:] = [0, 0, 0, 5.0, 0, 0]
    score = calibrator.scores(logits)[0]
    # e / (e + 2) and 1 / (e + 2), in four decimals
    assert score.polarity == (0.5761, 0.2119, 0.2119)
    assert score.score == pytest.approx(-0.3642)
    assert (score.label, score.emotion_label, score.uncertain) == ("negative", "joy", True)


def test_the_stub_scores_by_ids_alone() -> None:
    stub = StubScorer()
    scores = stub.score(["a", "b", "a", "c", "d", "e"])
    assert scores[0] == scores[2]
    assert len({s.label for s in stub.score([str(i) for i in range(50)])}) == 3


def test_padding_is_zero_behind_the_end() -> None:
    assert pad([[2, 5, 3], [2, 3]]).tolist() == [[2, 5, 3], [2, 3, 0]]


def test_the_runtime_imports_neither_torch_nor_onnx_nor_transformers() -> None:
    code = (
        "import sys; from stream_sentiment.scoring.scorer import OnnxScorer; "
        "s = OnnxScorer.load(device='cpu'); s.score(['hi']); "
        "print([m for m in ('torch', 'onnx', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _heads():
    from stream_sentiment.scoring.bundle import HeadSpec
    from stream_sentiment.scoring.heads import EMOTIONS, POLARITIES, Head, HeadKind

    return [
        HeadSpec(Head("polarity", HeadKind.SOFTMAX, POLARITIES), 2.0, 0.7, ()),
        HeadSpec(Head("emotion", HeadKind.SOFTMAX, EMOTIONS), 1.0, 0.0, ()),
    ]


_CACHE: list[OnnxScorer] = []


def _scorer() -> OnnxScorer:
    """For the property test, which may not take a fixture of smaller scope."""
    if not _CACHE:
        _CACHE.append(OnnxScorer.load(device="cpu"))
    return _CACHE[0]
