"""A tiny vocabulary, network and task that train in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'stream-sentiment[train]'")
pytest.importorskip("onnx", reason="onnx is not installed: pip install 'stream-sentiment[train]'")

from stream_sentiment.training.data import Row  # noqa: E402

GOOD = ["great", "love", "thanks", "happy", "谢谢", "喜欢", "开心"]
BAD = ["awful", "angry", "broken", "late", "差", "投诉", "生气"]
PLAIN = ["order", "number", "where", "size", "订单", "尺寸", "请问", "the", "my", "is", "it", "我", "的", "了"]


def tiny_tokenizer() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN]
    characters = sorted({c for w in words for c in w if not c.isascii()})
    vocabulary = {
        w: i for i, w in enumerate(dict.fromkeys([*words, *characters, *"abcdefghijklmnopqrstuvwxyz0123456789@!"]))
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def tiny_rows(count: int, seed: int) -> list[Row]:
    """Texts whose label follows from one word in them."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        kind = int(rng.integers(3))
        words = [str(rng.choice(PLAIN)) for _ in range(int(rng.integers(3, 9)))]
        if kind != 1:
            words[int(rng.integers(len(words)))] = str(rng.choice(BAD if kind == 0 else GOOD))
        polarity = ("negative", "neutral", "positive")[kind]
        emotion = ("anger", "neutral", "joy")[kind]
        signals = ("complaint",) if kind == 0 else ()
        rows.append(Row(" ".join(words), polarity, emotion, float(kind == 0) * 2, signals, lang="en"))
    return rows


@pytest.fixture(scope="session")
def rows_of() -> object:
    """`tiny_rows` for tests."""
    return tiny_rows


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT checkpoint directory of 2 layers x 32 with random weights."""
    from safetensors.torch import save_file

    from stream_sentiment.training.network import NetworkConfig, SentimentNetwork, to_bert

    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = tiny_tokenizer()
    size = tokenizer.get_vocab_size()
    config = {
        "model_type": "bert",
        "vocab_size": size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    torch.manual_seed(1)
    network = SentimentNetwork(NetworkConfig.from_bert(config, max_positions=96), ())
    save_file(to_bert(network), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def finished_run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned the tiny task."""
    from stream_sentiment.training.finetune import Job, finetune
    from stream_sentiment.training.train import TrainSettings

    out = tmp_path_factory.mktemp("run") / "tiny"
    settings = TrainSettings(
        rounds=3,
        tokens_per_step=512,
        body_rate=2e-3,
        word_rate=5e-3,
        head_rate=5e-3,
        wide_buckets=4096,
        bf16=False,
        threads=1,
    )
    finetune(Job(checkpoint, out, settings, [("tiny", tiny_rows(1200, 0), 6.0)], {"dev": tiny_rows(200, 1)}))
    return out


@pytest.fixture(scope="session")
def tiny_bundle(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from stream_sentiment.training.export import ExportRequest, export

    out = tmp_path_factory.mktemp("bundles") / "tiny"
    rows = tiny_rows(400, 2)
    export(finished_run, out, ExportRequest("tiny", "1", [rows], rows, [r.text for r in rows[:16]], weights=True))
    return out
