"""The long run on a tiny task: corpus, plan of a round, fold teachers, stages, shortcut with its gate, smoothed int8."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'stream-sentiment[train]'")

from tokenizers import Tokenizer  # noqa: E402

from stream_sentiment.errors import ConfigurationError  # noqa: E402
from stream_sentiment.scoring.runtime import onnxruntime  # noqa: E402
from stream_sentiment.scoring.scorer import pad  # noqa: E402
from stream_sentiment.training import graph  # noqa: E402
from stream_sentiment.training.corpus import FOLDS, Corpus, CorpusSource, build_corpus  # noqa: E402
from stream_sentiment.training.data import Encoder  # noqa: E402
from stream_sentiment.training.joint import DeviceCorpus, Stage, plan_round  # noqa: E402
from stream_sentiment.training.network import InputRange, Linear  # noqa: E402
from stream_sentiment.training.pretrain import pretrain, read_recipe  # noqa: E402
from stream_sentiment.training.quantize import activation_ranges  # noqa: E402
from stream_sentiment.training.shortcut import fit_shortcut  # noqa: E402
from stream_sentiment.training.teachers import bags_of, cross_fit  # noqa: E402
from stream_sentiment.training.train import TrainSettings, load_network, save_network, start_network  # noqa: E402

CPU = torch.device("cpu")
RECIPE = {
    "sources": [
        {
            "name": "service_tiny",
            "files": "rows.jsonl",
            "domain": "service",
            "variants": 3,
            "passes": {"language": 2, "teach": 12, "student": 12, "tune": 1},
        },
        {"name": "text_tiny", "files": "plain.txt", "domain": "service", "passes": {"language": 2, "student": 1}},
    ],
    "dev": [{"name": "dev", "files": "dev.jsonl"}],
    "stages": {
        "language": {"rounds": 1, "tokens_per_step": 512, "masked_words": [1.0, 1.0], "hard": 0.0},
        "teach": {
            "rounds": 2,
            "tokens_per_step": 512,
            "body_rate": 2e-3,
            "word_rate": 5e-3,
            "head_rate": 5e-3,
            "average": 0.9,
        },
        "student": {
            "rounds": 2,
            "tokens_per_step": 512,
            "soft": 1.0,
            "body_rate": 1e-3,
            "word_rate": 2e-3,
            "head_rate": 5e-3,
        },
        "tune": {"rounds": 1, "tokens_per_step": 512, "soft": 1.0, "bf16": False, "dropout": 0.0},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, rows_of) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name, count, seed in (("rows.jsonl", 600, 0), ("dev.jsonl", 200, 1)):
        lines = [
            json.dumps(
                {
                    "text": r.text,
                    "polarity": r.polarity,
                    "emotion": r.emotion,
                    "intensity": r.intensity,
                    "signals": r.signals,
                }
            )
            for r in rows_of(count, seed)
        ]
        (root / name).write_text("\n".join(lines) + "\n")
    (root / "plain.txt").write_text("\n".join(r.text for r in rows_of(150, 5)) + "\n")
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return root


@pytest.fixture(scope="module")
def corpora(folder: Path, checkpoint: Path) -> tuple[Corpus, Corpus]:
    recipe = read_recipe(folder / "recipe.yaml")
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    return build_corpus(folder, recipe.sources, tokenizer, 96), build_corpus(folder, recipe.dev, tokenizer, 96)


@pytest.fixture(scope="module")
def made(
    folder: Path, checkpoint: Path, corpora: tuple[Corpus, Corpus], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("pretrained") / "run"
    return pretrain(checkpoint, out, read_recipe(folder / "recipe.yaml"), *corpora, CPU)


def test_a_corpus_keeps_labels_folds_and_variants_and_survives_the_disk(
    corpora: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    corpus = corpora[0]
    assert len(corpus) == 750
    assert corpus.labelled.sum() == 600
    assert set(corpus.polarity[:600]) == {0, 1, 2}
    assert set(corpus.polarity[600:]) == {-1}
    assert (corpus.signals[600:] == 255).all()
    assert corpus.variants[:600].max() > 1
    assert corpus.variants[600:].max() == 1
    assert set(corpus.fold[:25]) == {0}, "neighbours stay in one fold"
    assert set(corpus.fold[25:50]) == {1}
    corpus.save(tmp_path / "c.npz")
    again = Corpus.load(tmp_path / "c.npz")
    assert all(
        np.array_equal(getattr(corpus, k), getattr(again, k), equal_nan=k == "intensity") for k in Corpus.__slots__
    )


def test_what_is_no_corpus_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "c.npz").write_bytes(b"nothing")
    with pytest.raises(ConfigurationError, match="model corpus"):
        Corpus.load(tmp_path / "c.npz")


def test_a_pattern_without_files_is_refused(folder: Path, checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    with pytest.raises(ConfigurationError, match=r"absent\.jsonl"):
        build_corpus(folder, [CorpusSource("x", "absent.jsonl")], tokenizer, 96)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 5.0), st.integers(1, 6), st.integers(64, 2048), st.integers(0, 9))
def test_every_round_shows_its_share_and_no_row_twice_before_all_once(
    corpora: tuple[Corpus, Corpus], passes: float, rounds: int, budget: int, seed: int
) -> None:
    data = DeviceCorpus.of(corpora[0], CPU)
    stage = Stage("x", rounds=rounds, tokens_per_step=budget, seed=seed)
    shown = np.zeros(len(data.corpus), np.int64)
    for number in range(rounds):
        plan = plan_round(data, np.array([passes, 0.0]), stage, number, None)
        shown += np.bincount(plan.rows.numpy(), minlength=len(shown))
        covered = sorted((begin, end) for begin, end, _, _ in plan.batches)
        assert covered[0][0] == 0
        assert covered[-1][1] == len(plan.rows)
        assert all(a[1] == b[0] for a, b in itertools.pairwise(covered)), "every row is in exactly one batch"
        for begin, end, length, real in plan.batches:
            own = data.lengths[plan.sequences[begin:end].numpy()]
            assert length == own.max()
            assert real == own.sum()
            assert end - begin == 1 or length * (end - begin) <= budget
    assert abs(int(shown[:600].sum()) - 600 * passes) <= 1
    assert shown[:600].max() - shown[:600].min() <= 1
    assert shown[600:].sum() == 0


def test_no_teacher_judges_a_row_it_was_trained_on(corpora: tuple[Corpus, Corpus], checkpoint: Path) -> None:
    data = DeviceCorpus.of(corpora[0], CPU)
    network, _ = start_network(checkpoint, TrainSettings(wide_buckets=64))
    judged = np.zeros(len(data.corpus), np.int64)
    wanted = np.arange(600, 750)

    def judge(_fold: int, train: np.ndarray, rows: np.ndarray) -> np.ndarray:
        assert not set(train) & set(rows)
        assert data.corpus.labelled[train].all()
        np.add.at(judged, rows, 1)
        return np.zeros((len(rows), 23), np.float32)

    soft, report = cross_fit(data, network.head_specs, bags_of(network, data), judge, ["service", "service"], wanted)
    assert (judged[:600] == 1).all()
    assert (judged[600:] == FOLDS).all()
    assert np.allclose(soft[:, :3].sum(1), 1.0, atol=1e-3)
    assert np.allclose(soft[:, 3:9].sum(1), 1.0, atol=1e-3)
    # The network above knows nothing, so what is right comes from n-grams of the other folds: the task is one word.
    of = {r["head"]: r for r in report if r["rows"]}
    assert of["polarity"]["f1_ngrams"] > 0.9 > 0.5 > of["polarity"]["f1_network"]
    assert of["polarity"]["ngrams"] > 0


def test_the_stages_learn_the_task_and_leave_their_traces(made: Path) -> None:
    log = [json.loads(line) for line in (made / "log.jsonl").read_text().splitlines()]
    assert [e["stage"] for e in log] == ["language", *["teach"] * 2 * FOLDS, "student", "student", "tune"]
    assert log[0]["dev"]["dev polarity"] < 0.6 < 0.9 < log[-1]["dev"]["dev polarity"]
    assert "masked_words" in log[0]["loss"]
    assert "soft polarity" in log[-1]["loss"]
    assert {p.name for p in made.iterdir()} >= {
        "model.safetensors",
        "network.json",
        "tokenizer.json",
        "teachers.json",
        "curves.png",
    }


def test_a_stage_that_is_done_is_not_run_again(
    made: Path, folder: Path, checkpoint: Path, corpora: tuple[Corpus, Corpus]
) -> None:
    before = load_network(made).state_dict()
    lines = (made / "log.jsonl").read_text()
    pretrain(checkpoint, made, read_recipe(folder / "recipe.yaml"), *corpora, CPU)
    assert (made / "log.jsonl").read_text() == lines
    assert all(torch.equal(v, before[k]) for k, v in load_network(made).state_dict().items())


def test_a_corpus_of_another_recipe_is_refused(
    folder: Path, checkpoint: Path, corpora: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    recipe = read_recipe(folder / "recipe.yaml")
    with pytest.raises(ConfigurationError, match="another recipe"):
        pretrain(checkpoint, tmp_path / "r", replace(recipe, sources=recipe.sources[:1]), *corpora, CPU)


def test_the_default_recipe_reads_and_scales() -> None:
    from stream_sentiment.cli.model_long import _default_recipe

    recipe, half = read_recipe(_default_recipe()), read_recipe(_default_recipe(), scale=0.5)
    assert recipe.passes("tune").sum() > 0
    assert half.stages["language"].scale == recipe.stages["language"].scale / 2
    assert recipe.stages["language"].hard == 0.0, "teachers must not have met the labels they are to judge"


def test_smoothing_changes_nothing_but_the_rounding() -> None:
    torch.manual_seed(0)
    layer, x = Linear(16, 8), torch.randn(40, 16)
    x[:, 3] *= 40.0  # one channel as BERT bodies have it
    exact = layer(x)
    factor = (x.abs().amax(0) ** 0.85 / layer.weight.detach().abs().amax(0) ** 0.15).numpy()
    scaled = x / torch.from_numpy(factor)
    errors = {}
    for name, found in (
        ("plain", InputRange(float(x.min()), float(x.max()))),
        ("smooth", InputRange(float(scaled.min()), float(scaled.max()), factor)),
    ):
        layer.input_range = found
        errors[name] = float((layer(x) - exact).detach().abs().mean())
    assert errors["smooth"] < errors["plain"] / 2


def test_the_tuning_stage_computes_what_the_int8_graph_computes(finished_run: Path, rows_of) -> None:
    network = load_network(finished_run).eval()
    encoder = Encoder(Tokenizer.from_file(str(finished_run / "tokenizer.json")), 96)
    ranges = activation_ranges(network, encoder.encode([r.text for r in rows_of(300, 8)]))
    x = pad(encoder.encode([r.text for r in rows_of(60, 9)]))
    served = _run(graph.build(network, ranges, {}), x)
    exact = _run(graph.build(network, None, {}), x)
    network.set_quantisation(ranges)
    with torch.no_grad():
        from stream_sentiment.training.joint import fake_quantise_rows, pool

        lengths = torch.from_numpy((x != 0).sum(1))
        hidden, keep = network.hidden(fake_quantise_rows(network.words(torch.from_numpy(x))), lengths)
        pooled = pool(hidden, keep, lengths)
        trained = torch.cat([network.head(h.name)(pooled) for h in network.head_specs], dim=1).numpy()
    assert np.abs(trained - served).mean() < 0.5 * np.abs(exact - served).mean()
    network.set_quantisation(None)
    assert not network.quantised


def test_the_gate_opens_for_its_own_texts_only_and_survives_the_graph(
    finished_run: Path, rows_of, tmp_path: Path
) -> None:
    own = rows_of(300, 11)
    other = [
        replace(r, text=f"size where {i % 10} number {'xyz'[i % 3]} @ order") for i, r in enumerate(rows_of(200, 12))
    ]
    out = tmp_path / "gated"
    assert fit_shortcut(finished_run, out, own, other) > 0.9
    network = load_network(out).eval()
    encoder = Encoder(Tokenizer.from_file(str(out / "tokenizer.json")), 96)
    mine, theirs = (pad(encoder.encode([r.text for r in rows])) for rows in (own[:60], other[:60]))
    with torch.no_grad():
        opened = [
            float(network.gate_of(network.pooled(torch.from_numpy(x), torch.from_numpy((x != 0).sum(1)))).mean())
            for x in (mine, theirs)
        ]
    assert opened[0] > 0.8 > 0.2 > opened[1]
    share = {h.name: 1.0 for h in network.head_specs}
    moved = [
        np.abs(_run(graph.build(network, None, share), x) - _run(graph.build(network, None, {}), x)).mean()
        for x in (mine, theirs)
    ]
    assert moved[0] > 3 * moved[1]
    # Bit for bit the same alone and among longer texts.
    model = graph.build(network, activation_ranges(network, encoder.encode([r.text for r in own])), share)
    together = _run(model, mine)
    alone = np.concatenate([_run(model, row[row != 0][None]) for row in mine])
    assert np.array_equal(together, alone)


def test_a_gate_and_its_shortcut_are_saved_with_the_network(finished_run: Path, rows_of, tmp_path: Path) -> None:
    fit_shortcut(finished_run, tmp_path / "a", rows_of(200, 11), rows_of(100, 13))
    network = load_network(tmp_path / "a")
    (tmp_path / "b").mkdir()
    save_network(network, tmp_path / "b")
    again = load_network(tmp_path / "b").state_dict()
    assert {k for k in again if k.startswith("gate.")} == {"gate.weight", "gate.bias"}
    assert all(torch.allclose(v.float(), again[k].float(), atol=1e-2) for k, v in network.state_dict().items())


def _run(model: object, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime().InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
    )
    return session.run(None, {"input_ids": ids})[0]
