"""The long run that makes a base model, from a recipe: language, fold teachers, student, tuning for int8.

In: a BERT-family start with its tokenizer, a `Corpus` of the recipe's sources, a dev corpus. Out: a run directory that `model export`
and `model train --from` read, with one checkpoint a stage, `log.jsonl`, `teachers.json` and `curves.png`. A stage that has its
checkpoint is not run again, so a cut run goes on with the next one. Blocks for minutes on a GPU, for days on a CPU. Raises
`ConfigurationError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from stream_sentiment.errors import ConfigurationError
from stream_sentiment.scoring.heads import HeadKind
from stream_sentiment.training.corpus import FOLDS, Corpus, CorpusSource
from stream_sentiment.training.data import NO_NEUTRAL
from stream_sentiment.training.joint import DeviceCorpus, MaskedWords, Progress, Stage, StageRun, predict
from stream_sentiment.training.metrics import macro_f1
from stream_sentiment.training.network import InputRange, SentimentNetwork
from stream_sentiment.training.quantize import activation_ranges
from stream_sentiment.training.teachers import bags_of, cross_fit
from stream_sentiment.training.train import TrainSettings, save_network, start_network

STAGES = ("language", "teach", "student", "tune")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Sources, dev sets and the settings of every stage."""

    sources: tuple[CorpusSource, ...]
    dev: tuple[CorpusSource, ...]
    stages: Mapping[str, Stage]

    def passes(self, stage: str) -> npt.NDArray[np.float64]:
        return np.array([s.passes.get(stage, 0.0) for s in self.sources])


def read_recipe(path: Path, overrides: Mapping[str, Mapping[str, Any]] | None = None, scale: float = 1.0) -> Recipe:
    """A YAML file with `sources`, `dev` and `stages`; `overrides`: settings by stage that win over the file's; `scale` multiplies
    what every stage shows.
    """
    try:
        document = yaml.safe_load(path.read_text("utf-8"))
        stages = {}
        for name in STAGES:
            settings = dict(document["stages"].get(name, {})) | dict((overrides or {}).get(name, {}))
            for pair in ("masked_words", "mask_rate"):
                if pair in settings:
                    settings[pair] = tuple(settings[pair])
            settings["scale"] = settings.get("scale", 1.0) * scale
            stages[name] = Stage(name=name, **settings)
        return Recipe(
            tuple(CorpusSource(**s) for s in document["sources"]),
            tuple(CorpusSource(**s) for s in document["dev"]),
            stages,
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: not a recipe ({error}); see docs/model.md for its fields") from error


@dataclass(slots=True)
class Pretraining:
    """One run; the stages are methods, in order."""

    run: Path
    recipe: Recipe
    network: SentimentNetwork
    masked: MaskedWords
    data: DeviceCorpus
    dev: DeviceCorpus | None
    progress: Progress | None = None

    def language(self) -> None:
        """Masked words over everything, labels at low weight."""
        if not self._load("language"):
            self._train("language", None)
            self._save("language")

    def teach(self) -> None:
        """One network a fold, from the language stage; soft labels for every row; the mean of the fold networks as the next start."""
        if (self.run / "teachers.npy").is_file() and self._load("teach"):
            self.data.soft = torch.from_numpy(np.load(self.run / "teachers.npy")).to(self.data.device)
            return
        start = _state(self.network, self.masked)
        sums: dict[str, torch.Tensor] = {}
        heads = self.network.head_specs

        def judge(fold: int, train: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            _restore(self.network, self.masked, start)
            allowed = np.zeros(len(self.data.corpus), np.bool_)
            allowed[train] = True
            self._train("teach", allowed, seed=fold + 1)
            for name, value in _state(self.network, self.masked).items():
                sums[name] = sums[name] + value / FOLDS if name in sums else value / FOLDS
            return predict(self.network, self.data, rows)

        shown = self.recipe.passes("student") > 0
        wanted = np.flatnonzero(~self.data.corpus.labelled & shown[self.data.corpus.source])
        domains = [s.domain for s in self.recipe.sources]
        bags = bags_of(self.network, self.data)
        soft, report = cross_fit(self.data, heads, bags, judge, domains, wanted, self.progress)
        _restore(self.network, self.masked, sums)
        np.save(self.run / "teachers.npy", soft.astype(np.float16))
        (self.run / "teachers.json").write_text(
            json.dumps({"out_of_fold": report, "mean_dev": self.measure()}, indent=1) + "\n", "utf-8"
        )
        self.data.soft = torch.from_numpy(soft.astype(np.float16)).to(self.data.device)
        self._save("teach")

    def student(self) -> None:
        """Soft and hard labels on everything that has one, from the mean of the fold networks."""
        if not self._load("student"):
            self._train("student", None)
            self._save("student")

    def tune(self) -> None:
        """A short run on what the product reads, computing as the int8 graph will."""
        if self._load("tune"):
            return
        self.network.set_quantisation(self.ranges())
        self._train("tune", None)
        self.network.set_quantisation(None)
        self._save("tune")

    def ranges(self, messages: int = 600) -> dict[str, InputRange]:
        """Input ranges of the linear layers over messages of every source that the tune stage shows."""
        corpus = self.data.corpus
        shown = np.flatnonzero(self.recipe.passes("tune") > 0)
        rng = np.random.default_rng(0)
        rows = np.concatenate(
            [rng.permutation(np.flatnonzero(corpus.source == s))[: messages // len(shown) + 10] for s in shown]
        )
        cut = [
            corpus.ids[corpus.starts[s] : corpus.starts[s + 1]].astype(np.int64).tolist() for s in corpus.first[rows]
        ]
        return activation_ranges(self.network, cut)

    def measure(self) -> dict[str, float]:
        """Macro-F1 of every softmax head on every dev set, and micro-F1 of the signals at 0.5."""
        if self.dev is None:
            return {}
        corpus = self.dev.corpus
        logits = predict(self.network, self.dev, np.arange(len(corpus)))
        out = {}
        for source, name in enumerate(corpus.names):
            own, at = corpus.source == source, 0
            for head in self.network.head_specs:
                z, gold = logits[own][:, at : at + head.width].copy(), self.dev.targets[head.name].cpu().numpy()[own]
                at += head.width
                if head.kind is HeadKind.SOFTMAX:
                    live = gold >= 0
                    if live.mean() < 0.3:
                        continue
                    if head.name == "polarity":
                        z[corpus.binary[own], head.labels.index("neutral")] += NO_NEUTRAL
                    out[f"{name} {head.name}"] = macro_f1(gold[live], z[live].argmax(1), head.labels)
                elif head.kind is HeadKind.SIGMOID and not np.isnan(gold[:, 0]).all():
                    said, true = z > 0, gold > 0.5
                    out[f"{name} {head.name}"] = 2.0 * float((said & true).sum()) / float(said.sum() + true.sum())
        return out

    def _train(self, name: str, allowed: npt.NDArray[np.bool_] | None, seed: int | None = None) -> None:
        stage = self.recipe.stages[name]
        if seed is not None:
            stage = replace(stage, seed=seed)
        passes = self.recipe.passes(name)
        log = StageRun(self.network, self.masked, self.data, stage).train(passes, allowed, self.measure, self.progress)
        with (self.run / "log.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in log)

    def _save(self, name: str) -> None:
        save_file(
            {k: v.contiguous().cpu() for k, v in _state(self.network, self.masked).items()},
            self.run / f"stage-{name}.safetensors",
        )

    def _load(self, name: str) -> bool:
        file = self.run / f"stage-{name}.safetensors"
        if not file.is_file():
            return False
        _restore(self.network, self.masked, load_file(file))
        return True


def pretrain(
    start: Path,
    out: Path,
    recipe: Recipe,
    corpus: Corpus,
    dev: Corpus | None,
    device: torch.device,
    until: str = "tune",
    progress: Progress | None = None,
) -> Path:
    """Run the stages up to `until` and write the run directory."""
    if list(corpus.names) != [s.name for s in recipe.sources]:
        raise ConfigurationError("the corpus was made from another recipe; make it again with `model corpus`")
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True  # ten bits: finer than the int8 grid of the tune stage
    out.mkdir(parents=True, exist_ok=True)
    network, tokenizer = start_network(start, TrainSettings())
    masked = start_masked_words(start, network)
    (out / "tokenizer.json").write_bytes(tokenizer)
    network.to(device)
    masked.to(device)
    run = Pretraining(
        out,
        recipe,
        network,
        masked,
        DeviceCorpus.of(corpus, device),
        None if dev is None else DeviceCorpus.of(dev, device),
        progress,
    )
    for name in STAGES[: STAGES.index(until) + 1]:
        stage: Callable[[], None] = getattr(run, name)
        stage()
    network.to("cpu")
    save_network(network, out)
    log = out / "log.jsonl"
    if log.is_file():
        draw_curves([json.loads(line) for line in log.read_text("utf-8").splitlines()], out / "curves.png")
    return out


def start_masked_words(start: Path, network: SentimentNetwork) -> MaskedWords:
    """The masked-word head, from `heads.safetensors` of the start where it has one."""
    config = network.config
    masked = MaskedWords(config.hidden_size, config.vocab_size, config.layer_norm_eps)
    file = start / "heads.safetensors"
    if file.is_file():
        found = {k.removeprefix("mlm."): v.float() for k, v in load_file(file).items() if k.startswith("mlm.")}
        if found:
            masked.load_state_dict(found)
    return masked


def draw_curves(log: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Dev macro-F1 by round, stages side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 5))
    for name in sorted({k for entry in log for k in entry.get("dev", {})}):
        axes.plot(range(1, len(log) + 1), [entry.get("dev", {}).get(name) for entry in log], marker="o", label=name)
    axes.set_xticks(
        range(1, len(log) + 1), [f"{entry['stage']} {entry['round']}" for entry in log], rotation=90, fontsize=6
    )
    axes.set_title("dev macro-F1 by round")
    axes.legend(fontsize=6, ncols=2)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _state(network: SentimentNetwork, masked: MaskedWords) -> dict[str, torch.Tensor]:
    state = {
        k: v.detach().clone()
        for k, v in network.state_dict().items()
        if v.is_floating_point() and not k.startswith("wide.")
    }
    return state | {f"masked.{k}": v.detach().clone() for k, v in masked.state_dict().items()}


def _restore(network: SentimentNetwork, masked: MaskedWords, state: Mapping[str, torch.Tensor]) -> None:
    own = network.state_dict() | {k: v for k, v in state.items() if not k.startswith("masked.")}
    network.load_state_dict(own)
    masked.load_state_dict({k.removeprefix("masked."): v for k, v in state.items() if k.startswith("masked.")})


def load_tokenizer(start: Path) -> Tokenizer:
    """The tokenizer of a start, for `build_corpus`."""
    return Tokenizer.from_file(str(start / "tokenizer.json"))
