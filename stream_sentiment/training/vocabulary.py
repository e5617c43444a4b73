"""A bilingual start from an English one: Chinese words and characters added to a WordPiece vocabulary, their vectors from a dictionary.

In: a BERT checkpoint directory with a WordPiece `tokenizer.json`, plain texts, a dictionary in CC-CEDICT's format. Out: a checkpoint
directory that `model corpus` and `model pretrain` start from. Blocks for a minute per 10 million characters. Raises
`ConfigurationError`.

A Chinese word is an *added token*: matched leftmost-longest by the tokenizer's trie before WordPiece, so it has one form wherever it
stands. Its first vector is the mean of the English vectors of its glosses. At a small budget of training that start was worth eleven
points of macro-F1 against random vectors.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.training.data import prepared
from stream_sentiment.training.network import read_bert_directory

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORD_VECTORS = "embeddings.word_embeddings.weight"
HAN = re.compile(r"[\u4e00-\u9fff]+")
LONGEST_WORD = 6
SENSES = 6
SENSE_DECAY = 0.8  # the k-th sense of a dictionary entry counts 0.8^k: the first ones are the common ones
STRETCH = 0.9  # means of vectors shrink towards the centre; they are stretched back to this share of the mean English distance

_ENTRY = re.compile(r"^\S+ (?P<word>\S+) \[(?P<sound>[^\]]*)\] /(?P<glosses>.+)/\s*$")
_REFERENCE = re.compile(r"^(?:surname|CL:|variant of|old variant|see |abbr\. for|Japanese variant)")
_FORMAL = re.compile(r"\(.*?\)|\[.*?\]|[\u4e00-\u9fff|·]+")
_STOP = frozenset(
    [
        "a",
        "an",
        "the",
        "to",
        "of",
        "in",
        "on",
        "at",
        "for",
        "and",
        "or",
        "be",
        "is",
        "are",
        "was",
        "sb",
        "sth",
        "one's",
        "oneself",
        "etc",
        "with",
        "from",
        "by",
        "as",
    ]
)
_CJK = r"[\x{2E80}-\x{2FFF}\x{3001}-\x{30FF}\x{3400}-\x{9FFF}\x{F900}-\x{FAFF}\x{1F000}-\x{1FAFF}\x{2190}-\x{2BFF}]"


@dataclass(frozen=True, slots=True)
class VocabularySettings:
    """What is added: words and characters by how often the texts have them."""

    fewest_words: int = 20
    fewest_characters: int = 5
    most_words: int = 15_000


def read_glosses(path: Path) -> dict[str, list[str]]:
    """Simplified word -> English glosses, from a file in CC-CEDICT's format; names and mere references are left out."""
    out: dict[str, list[str]] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}; give a dictionary in the format of CC-CEDICT, UTF-8") from error
    for line in lines:
        found = _ENTRY.match(line)
        if found and not found["sound"][:1].isupper():
            kept = [g for g in found["glosses"].split("/") if not _REFERENCE.match(g)]
            out.setdefault(found["word"], []).extend(kept)
    if not out:
        raise ConfigurationError(
            f"{path}: no line like `詞 词 [ci2] /word/`; give a dictionary in the format of CC-CEDICT"
        )
    return out


def count_words(texts: Iterable[str], words: Iterable[str]) -> tuple[Counter[str], Counter[str]]:
    """How often each dictionary word (2 to 6 characters, longest match first) and each character or emoji stands in the texts."""
    known = {w for w in words if 2 <= len(w) <= LONGEST_WORD and HAN.fullmatch(w)}
    found: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    for text in texts:
        ready = prepared(text)
        characters.update(c for c in ready if ord(c) > 0x2000)
        for run in HAN.findall(ready):
            at = 0
            while at < len(run):
                length = next(
                    (n for n in range(min(LONGEST_WORD, len(run) - at), 1, -1) if run[at : at + n] in known), 1
                )
                if length > 1:
                    found[run[at : at + length]] += 1
                at += length
    return found, characters


def extend_vocabulary(
    start: Path,
    texts: Iterable[str],
    glosses: Mapping[str, Sequence[str]],
    out: Path,
    settings: VocabularySettings | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Write the bilingual checkpoint directory; returns how many entries there are of each kind."""
    settings = settings or VocabularySettings()
    config, weights = read_bert_directory(start)
    name = next((k for k in weights if k.endswith(WORD_VECTORS)), None)
    document = json.loads((start / "tokenizer.json").read_text("utf-8"))
    if name is None or document.get("model", {}).get("type") != "WordPiece":
        raise ConfigurationError(f"{start} is no BERT checkpoint with a WordPiece tokenizer.json")
    old = Tokenizer.from_file(str(start / "tokenizer.json"))
    old.no_padding()
    old.no_truncation()
    words, characters = count_words(texts, glosses)
    english: dict[str, int] = document["model"]["vocab"]
    kept = [
        t for t, _ in sorted(english.items(), key=lambda x: x[1]) if t not in SPECIAL_TOKENS and not _not_english(t)
    ]
    latin = set(kept)
    single = [
        c for c, n in characters.most_common() if n >= settings.fewest_characters and _survives(c) and c not in latin
    ]
    several = [w for w, n in words.most_common(settings.most_words) if n >= settings.fewest_words]
    tokens = list(dict.fromkeys([*SPECIAL_TOKENS, *kept, *single, *several]))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    vectors = _vectors(
        vocabulary, weights[name].float(), {t: english[t] for t in (*SPECIAL_TOKENS, *kept)}, old, glosses, seed
    )

    out.mkdir(parents=True, exist_ok=True)
    changed = {k: (vectors if k == name else v).contiguous() for k, v in weights.items()}
    save_file(changed, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokens)}, indent=1) + "\n", "utf-8")
    (out / "tokenizer.json").write_text(
        json.dumps(_tokenizer(document, vocabulary, several), ensure_ascii=False), "utf-8"
    )
    return {"english": len(kept), "characters": len(single), "words": len(several), "entries": len(tokens)}


def _not_english(token: str) -> bool:
    return token.startswith("[unused") or HAN.search(token) is not None


def _survives(character: str) -> bool:
    """Whether the normaliser leaves the character as it is and a vocabulary may hold it."""
    return unicodedata.normalize("NFKC", character) == character and unicodedata.category(character) not in (
        "Mn",
        "Cf",
        "Zs",
        "Cs",
    )


def _vectors(
    vocabulary: Mapping[str, int],
    english: Tensor,
    old_ids: Mapping[str, int],
    old: Tokenizer,
    glosses: Mapping[str, Sequence[str]],
    seed: int,
) -> Tensor:
    """English entries keep theirs; a Chinese one takes its glosses', else the mean of its characters', else one near the centre."""
    generator = torch.Generator().manual_seed(seed)
    known = [old_ids[t] for t in vocabulary if t in old_ids and t not in SPECIAL_TOKENS]
    centre = english[known].mean(0)
    distance = (english[known] - centre).norm(dim=1).mean()
    out = centre + torch.randn(len(vocabulary), english.shape[1], generator=generator) * english[known].std() * 0.5
    placed = set()
    for token, index in vocabulary.items():
        if token in old_ids:
            out[index] = english[old_ids[token]]
        elif (vector := _of_glosses(glosses.get(token, ()), english, old)) is not None:
            out[index] = vector
            placed.add(token)
    for token, index in vocabulary.items():
        if token not in old_ids and token not in placed:
            parts = [vocabulary[c] for c in token if c in placed]
            if parts:
                out[index] = out[parts].mean(0)
                placed.add(token)
    rows = [vocabulary[t] for t in placed]
    away = out[rows] - centre
    out[rows] = centre + away * (STRETCH * distance / away.norm(dim=1, keepdim=True).clamp_min(1e-6))
    return out


def _of_glosses(glosses: Sequence[str], english: Tensor, old: Tokenizer) -> Tensor | None:
    vectors, weights = [], []
    for number, gloss in enumerate(glosses[:SENSES]):
        words = [w for w in re.findall(r"[a-z']+", _FORMAL.sub(" ", gloss).lower()) if w not in _STOP][:6]
        ids = old.encode(" ".join(words), add_special_tokens=False).ids
        if ids:
            vectors.append(english[ids].mean(0))
            weights.append(
                SENSE_DECAY**number / (1.0 + 0.15 * len(words))
            )  # a long gloss is a description, not a translation
    if not vectors:
        return None
    weight = torch.tensor(weights)[:, None]
    return (torch.stack(vectors) * weight).sum(0) / weight.sum()


def _tokenizer(document: dict[str, Any], vocabulary: Mapping[str, int], words: Sequence[str]) -> dict[str, Any]:
    def added(token: str, *, special: bool) -> dict[str, Any]:
        plain = {"single_word": False, "lstrip": False, "rstrip": False}
        return {"id": vocabulary[token], "content": token, "normalized": not special, "special": special} | plain

    control = {t: {"id": t, "ids": [vocabulary[t]], "tokens": [t]} for t in ("[CLS]", "[SEP]")}
    pieces = [{"SpecialToken": {"id": t, "type_id": 0}} for t in ("[CLS]", "[SEP]")]
    single = [pieces[0], {"Sequence": {"id": "A", "type_id": 0}}, pieces[1]]
    bert = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": False,
        "strip_accents": True,
        "lowercase": True,
    }
    split = {"type": "Split", "pattern": {"Regex": _CJK}, "behavior": "Isolated", "invert": False}
    return document | {
        "model": document["model"] | {"vocab": dict(vocabulary), "unk_token": "[UNK]"},
        "added_tokens": sorted(
            [added(t, special=True) for t in SPECIAL_TOKENS] + [added(w, special=False) for w in words],
            key=lambda t: t["id"],
        ),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, bert]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, {"type": "BertPreTokenizer"}]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": control,
        },
        "truncation": None,
        "padding": None,
    }
