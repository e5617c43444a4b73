"""Train, export and evaluate, end to end on a task small enough for a test."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'stream-sentiment[train]'")

from stream_sentiment.errors import ConfigurationError  # noqa: E402
from stream_sentiment.scoring.bundle import load_bundle  # noqa: E402
from stream_sentiment.scoring.runtime import onnxruntime  # noqa: E402
from stream_sentiment.scoring.scorer import OnnxScorer, pad  # noqa: E402
from stream_sentiment.scoring.verify import check_golden, verify_bundle  # noqa: E402
from stream_sentiment.training import data, evaluate, graph  # noqa: E402
from stream_sentiment.training.average import average_runs  # noqa: E402
from stream_sentiment.training.finetune import Job, finetune  # noqa: E402
from stream_sentiment.training.parity import compare_bundles, compare_precisions  # noqa: E402
from stream_sentiment.training.quantize import activation_ranges  # noqa: E402
from stream_sentiment.training.train import TrainSettings, load_network, save_network, start_network  # noqa: E402
from stream_sentiment.training.variant import add_half_precision  # noqa: E402


def test_a_trained_bundle_beats_the_majority_vote_on_rows_it_has_not_seen(tiny_bundle: Path, rows_of) -> None:
    result = evaluate.report(OnnxScorer.load(tiny_bundle, device="cpu"), rows_of(300, 99))
    assert result["polarity"]["macro_f1"] > 0.9 > 0.5 > result["polarity"]["majority_macro_f1"]
    assert result["emotion"]["macro_f1"] > 0.9
    assert result["signals"]["recall"] > 0.8
    assert result["intensity"]["mae"] < 0.5


def test_an_untrained_network_does_not_beat_it(checkpoint: Path, rows_of) -> None:
    """The control of the test above: the task is not solved by accident."""
    from stream_sentiment.training.predict import dev_scores

    network, _ = start_network(checkpoint, TrainSettings(wide_buckets=0))
    encoder = data.Encoder(_tokenizer(checkpoint), 96)
    assert dev_scores(network, encoder, {"dev": rows_of(300, 99)})["dev polarity"] < 0.6


def test_the_exported_bundle_is_sound(tiny_bundle: Path) -> None:
    # The golden logits are stored with six decimals.
    assert verify_bundle(tiny_bundle)["golden_error"]["int8"] <= 1e-6


def test_the_fp32_graph_equals_the_network(finished_run: Path, rows_of) -> None:
    network = load_network(finished_run).eval()
    ids = data.Encoder(_tokenizer(finished_run), 96).encode([r.text for r in rows_of(40, 5)])
    share = {h.name: 1.0 for h in network.head_specs}
    logits = _run_graph(graph.build(network, None, share), pad(ids))
    with torch.no_grad():
        expected = network(torch.from_numpy(pad(ids)), torch.tensor([len(x) for x in ids]))
    together = np.concatenate([expected[h.name].numpy() for h in network.head_specs], axis=1)
    # FastGelu, the rounding of the pooled vector and the int8 table of the shortcut; without the shortcut it is far smaller.
    assert np.abs(logits - together).max() < 0.05 * max(1.0, np.abs(together).max())


def test_the_shortcut_in_the_graph_sums_the_same_ngrams(finished_run: Path, rows_of) -> None:
    network = load_network(finished_run).eval()
    assert network.wide is not None
    ids = data.Encoder(_tokenizer(finished_run), 96).encode([r.text for r in rows_of(40, 6)])
    x, lengths = pad(ids), torch.tensor([len(x) for x in ids])
    with torch.no_grad():
        wide = network.wide_sum(torch.from_numpy(x), lengths).numpy()
    with_it = _run_graph(graph.build(network, None, {h.name: 1.0 for h in network.head_specs}), x)
    without = _run_graph(graph.build(network, None, {}), x)
    step = np.abs(network.wide.weight.detach().numpy()).max(axis=0) / 127
    # Each of at most 8 n-grams a token is off by half a step.
    bound = 0.5 * step * np.sqrt(x.shape[1]) * 8 + 1e-4
    assert (np.abs((with_it - without) - wide) <= bound).all()
    assert np.abs(wide).max() > 0.5


def test_int8_labels_agree_with_fp32(finished_run: Path, rows_of) -> None:
    result = compare_precisions(finished_run, rows_of(300, 7), rows_of(400, 8))
    assert result["heads"]["polarity"]["agreement"] >= 0.98


def test_the_fp16_variant_agrees_with_fp32_and_its_bundle_stays_sound(
    tiny_bundle: Path, finished_run: Path, rows_of, tmp_path: Path
) -> None:
    """On a CPU, which computes the fp16 graph in fp32 with its fp16 weights; no GPU took part."""
    out = tmp_path / "gpu"
    assert add_half_precision(tiny_bundle, out) > 0
    assert verify_bundle(out)["files"].keys() >= {"model.int8.onnx", "model.fp16.onnx"}
    bundle = load_bundle(out, "fp16")
    scorer = OnnxScorer(bundle)
    assert check_golden(scorer, bundle) <= 1e-3
    ids = [t.ids for t in scorer.tokenize([r.text for r in rows_of(120, 21)])]
    exact = _run_graph(graph.build(load_network(finished_run), None, bundle.manifest["wide_share"]), pad(ids))
    half = np.concatenate([scorer.logits([x]) for x in ids])
    assert (exact[:, :3].argmax(1) == half[:, :3].argmax(1)).mean() > 0.99
    assert np.abs(exact - half).max() < 0.1


def test_a_bundle_without_weights_has_no_fp16_variant_to_build(tiny_bundle: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_bundle, bare)
    (bare / "model.safetensors").unlink()
    with pytest.raises(ConfigurationError, match="weights"):
        add_half_precision(bare, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_activation_ranges_name_every_linear_layer_of_the_encoder(finished_run: Path, rows_of) -> None:
    network = load_network(finished_run)
    ids = data.Encoder(_tokenizer(finished_run), 96).encode([r.text for r in rows_of(20, 5)])
    ranges = activation_ranges(network, ids)
    assert set(ranges) == {f"layers.{i}.{n}" for i in (0, 1) for n in ("qkv", "attention_out", "up", "down")}
    assert all(r.low <= 0.0 <= r.high for r in ranges.values())


def test_a_run_that_was_cut_ends_with_the_same_weights(checkpoint: Path, tmp_path: Path, rows_of) -> None:
    settings = TrainSettings(rounds=2, tokens_per_step=96, wide_buckets=0, bf16=False, threads=1, average_last=1)

    def job(name: str) -> Job:
        return Job(checkpoint, tmp_path / name, settings, [("tiny", rows_of(200, 0), 2.0)], {})

    finetune(job("whole"))

    class Cut(Exception):
        pass

    def cut(done: int, _total: int, note: str) -> None:
        if note.startswith("round 2"):
            raise Cut

    with pytest.raises(Cut):
        finetune(job("cut"), cut)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    finetune(job("cut"))
    whole, resumed = (load_network(tmp_path / n).state_dict() for n in ("whole", "cut"))
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_a_run_directory_of_other_settings_is_refused(finished_run: Path, checkpoint: Path, rows_of) -> None:
    job = Job(checkpoint, finished_run, TrainSettings(rounds=2), [("tiny", rows_of(10, 0), 1.0)], {})
    with pytest.raises(ConfigurationError, match="another --out"):
        finetune(job)


def test_fine_tuning_goes_on_from_a_bundle_with_weights(tiny_bundle: Path, tmp_path: Path, rows_of) -> None:
    settings = TrainSettings(rounds=1, tokens_per_step=512, body_rate=1e-5, bf16=False, threads=1)
    log = finetune(
        Job(tiny_bundle, tmp_path / "on", settings, [("mine", rows_of(100, 3), 1.0)], {"dev": rows_of(200, 4)})
    )
    assert log[0]["dev"]["dev polarity"] > 0.9
    before, after = load_network(tiny_bundle), load_network(tmp_path / "on")
    assert torch.equal(before.prints, after.prints)
    assert torch.allclose(before.wide.weight, after.wide.weight)


def test_a_bundle_compared_with_itself_is_neither_better_nor_worse(tiny_bundle: Path, rows_of) -> None:
    result = compare_bundles(tiny_bundle, tiny_bundle, {"dev": rows_of(50, 4)})
    assert result["mean_difference"] == 0.0
    assert result["agreement"] == 1.0


def test_saved_weights_carry_the_usual_bert_names(finished_run: Path) -> None:
    from safetensors.torch import load_file

    names = set(load_file(finished_run / "model.safetensors"))
    assert "encoder.layer.1.attention.self.key.weight" in names
    assert {"heads.polarity.weight", "wide.weight", "wide.prints"} <= names


def test_saving_and_loading_keeps_the_shortcut(finished_run: Path, tmp_path: Path) -> None:
    network = load_network(finished_run)
    save_network(network, tmp_path)
    again = load_network(tmp_path)
    assert torch.equal(network.prints, again.prints)
    assert torch.equal(network.parts, again.parts)
    assert int((network.prints != 0).sum()) > 50


def test_the_mean_of_two_runs_lies_between_them_in_every_weight(finished_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    network = load_network(finished_run)
    with torch.no_grad():
        for parameter in network.heads.parameters():
            parameter.add_(1.0)
    save_network(network, other)
    (other / "tokenizer.json").write_bytes((finished_run / "tokenizer.json").read_bytes())
    average_runs([(finished_run, 3.0), (other, 1.0)], tmp_path / "mean")
    before, mean = load_network(finished_run).state_dict(), load_network(tmp_path / "mean").state_dict()
    for name, value in before.items():
        shift = 0.25 if name.startswith("heads.") else 0.0
        assert torch.allclose(mean[name].float(), value.float() + shift, atol=2e-3), name


def test_runs_with_other_tokenizers_are_not_mixed(finished_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_network(load_network(finished_run), other)
    (other / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(ConfigurationError, match="tokenizer"):
        average_runs([(finished_run, 1.0), (other, 1.0)], tmp_path / "mean")


def test_a_binary_source_never_teaches_neutral(checkpoint: Path, tmp_path: Path) -> None:
    """Its loss is over two classes: the neutral logit gets no gradient."""
    from tokenizers import Tokenizer

    from stream_sentiment.training.train import Trainer

    settings = TrainSettings(wide_buckets=0, bf16=False, threads=1, token_mask=0.0, pooled_dropout=0.0)
    network, tokenizer = start_network(checkpoint, settings)
    trainer = Trainer(tmp_path, settings, Tokenizer.from_buffer(tokenizer), network)
    rows = [data.Row("great order", "positive", binary=True), data.Row("awful order", "negative", binary=True)]
    ids = trainer.encoder.encode([r.text for r in rows])
    (_, batch), *_ = data.batches(rows, ids, network.head_specs, 512, None)
    logits = {h.name: torch.zeros(2, h.width, requires_grad=True) for h in network.head_specs}
    targets = {k: torch.from_numpy(v) for k, v in batch.targets.items()}
    losses = trainer._losses(logits, targets, torch.from_numpy(batch.weight), torch.from_numpy(batch.binary))
    losses["polarity"].backward()
    assert torch.equal(logits["polarity"].grad[:, 1], torch.zeros(2))
    assert losses["polarity"].item() == pytest.approx(0.6931, abs=1e-4)


def _tokenizer(folder: Path):
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _run_graph(model, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime().InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": ids})[0]


def test_the_log_of_a_run_is_one_json_object_a_round(finished_run: Path) -> None:
    lines = (finished_run / "log.jsonl").read_text().splitlines()
    assert [json.loads(x)["round"] for x in lines] == [1, 2, 3]
    assert (finished_run / "curves.png").stat().st_size > 1000
