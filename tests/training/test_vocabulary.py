"""A bilingual start from an English checkpoint and a dictionary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'stream-sentiment[train]'")

from safetensors.torch import load_file, save_file  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402

from stream_sentiment.errors import ConfigurationError  # noqa: E402
from stream_sentiment.training.network import NetworkConfig, SentimentNetwork, to_bert  # noqa: E402
from stream_sentiment.training.train import TrainSettings, start_network  # noqa: E402
from stream_sentiment.training.vocabulary import VocabularySettings, count_words, extend_vocabulary, read_glosses  # noqa: E402

ENGLISH = ["happy", "angry", "refund", "parcel", "slow", "water", "happ", "##ily", "!"]
DICTIONARY = """# made up for the tests, in the format of CC-CEDICT
開心 开心 [kai1 xin1] /happy/(coll.) happily/
生氣 生气 [sheng1 qi4] /angry/
退款 退款 [tui4 kuan3] /to refund/
快遞 快递 [kuai4 di4] /parcel/
水 水 [shui3] /water/
慢 慢 [man4] /slow/
王 王 [Wang2] /surname Wang/
件 件 [jian4] /CL:個|个[ge4]/
"""
TEXTS = ["快递太慢了，我很生气！", "退款退款，生气", "今天很开心😊 水", "快递慢慢慢😊"] * 3


@pytest.fixture
def english(tmp_path: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", *ENGLISH, "水"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    config = {
        "model_type": "bert",
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    torch.manual_seed(0)
    folder = tmp_path / "english"
    folder.mkdir()
    save_file(
        to_bert(SentimentNetwork(NetworkConfig.from_bert(config, max_positions=96), ())), folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def glosses(tmp_path: Path) -> dict[str, list[str]]:
    (tmp_path / "dictionary.u8").write_text(DICTIONARY, "utf-8")
    return read_glosses(tmp_path / "dictionary.u8")


def test_names_and_references_are_no_glosses(glosses: dict[str, list[str]]) -> None:
    assert glosses["开心"] == ["happy", "(coll.) happily"]
    assert "王" not in glosses
    assert glosses["件"] == []


def test_words_are_counted_longest_first(glosses: dict[str, list[str]]) -> None:
    words, characters = count_words(["退款退款，生气退"], [*glosses, "款生"])
    assert words == {"退款": 2, "生气": 1}
    assert characters["退"] == 3


def test_a_chinese_word_starts_where_its_gloss_is(english: Path, glosses: dict[str, list[str]], tmp_path: Path) -> None:
    out = tmp_path / "bilingual"
    counts = extend_vocabulary(english, TEXTS, glosses, out, VocabularySettings(fewest_words=3, fewest_characters=3))
    assert counts["words"] == 4
    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    vectors = load_file(out / "model.safetensors")["embeddings.word_embeddings.weight"]
    centre = vectors[[vocabulary[w] for w in ENGLISH]].mean(0)

    def nearest(token: str) -> str:
        away = vectors - centre
        scores = {
            w: float(torch.cosine_similarity(away[vocabulary[token]], away[vocabulary[w]], dim=0)) for w in ENGLISH
        }
        return max(scores, key=scores.__getitem__)

    assert [nearest(w) for w in ("开心", "生气", "退款", "快递", "慢", "水")] == [
        "happy",
        "angry",
        "refund",
        "parcel",
        "slow",
        "water",
    ]
    assert tokenizer.encode("快递慢，angry!😊").tokens == [
        "[CLS]",
        "快递",
        "慢",
        "，" if "，" in vocabulary else "[UNK]",
        "angry",
        "!",
        "😊",
        "[SEP]",
    ]
    assert not [t for t in vocabulary if t.startswith("[unused")]


def test_english_texts_keep_their_vectors_and_a_run_starts_from_it(
    english: Path, glosses: dict[str, list[str]], tmp_path: Path
) -> None:
    out = tmp_path / "bilingual"
    extend_vocabulary(english, TEXTS, glosses, out, VocabularySettings(fewest_words=3, fewest_characters=3))
    network, _ = start_network(out, TrainSettings(wide_buckets=64))
    old, _ = start_network(english, TrainSettings(wide_buckets=64))
    new_ids = Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab()
    old_ids = Tokenizer.from_file(str(english / "tokenizer.json")).get_vocab()
    for word in ENGLISH:
        assert torch.equal(network.words.weight[new_ids[word]], old.words.weight[old_ids[word]])
    assert network.config.vocab_size == len(new_ids)
    # The same vectors are written again: nothing of it hangs on chance.
    extend_vocabulary(
        english, TEXTS, glosses, tmp_path / "again", VocabularySettings(fewest_words=3, fewest_characters=3)
    )
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "again" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("content", ["", "no dictionary at all\n"])
def test_what_is_no_dictionary_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text(content)
    with pytest.raises(ConfigurationError, match="CC-CEDICT"):
        read_glosses(tmp_path / "d.txt")
