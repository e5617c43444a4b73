"""`stream-sentiment model vocabulary|corpus|pretrain|shortcut|variant`: the long run that makes a base model, from a recipe.

All need the extra `train`; `pretrain` wants a GPU (the default recipe: ten minutes on one H100, days on two cores).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stream_sentiment.cli.model_common import bar, needs_train_extra, spread
from stream_sentiment.errors import ConfigurationError

RecipeOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Recipe: sources, dev sets, stages; unset: that of the default model."),
]
RootOption = Annotated[Path, typer.Option(metavar="DIR", help="Folder that the recipe's patterns start from.")]


def vocabulary(
    start: Annotated[
        Path,
        typer.Option(
            "--from", metavar="DIR", help="English BERT checkpoint directory with a WordPiece tokenizer.json."
        ),
    ],
    dictionary: Annotated[
        Path, typer.Option(metavar="FILE", help="Chinese-English dictionary in the format of CC-CEDICT.")
    ],
    data: Annotated[
        list[Path],
        typer.Option("--data", "-d", metavar="FILE", help="Chinese texts: JSONL rows, or one text a line (.txt)."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Checkpoint directory to write.")],
    fewest_words: Annotated[int, typer.Option(min=1, help="A word is added from this count on.")] = 20,
    fewest_characters: Annotated[
        int, typer.Option(min=1, help="A character or emoji is added from this count on.")
    ] = 5,
) -> None:
    """Make a bilingual start of an English encoder: Chinese words and characters, their first vectors from the dictionary's glosses.

    Example: `stream-sentiment model vocabulary --from english --dictionary cedict_ts.u8 --data reviews.jsonl --out start`
    """
    needs_train_extra()
    from stream_sentiment.training.corpus import CorpusSource, read_rows
    from stream_sentiment.training.vocabulary import VocabularySettings, extend_vocabulary, read_glosses

    texts = (row.text for p in data for row in read_rows(p.parent, CorpusSource(p.name, p.name)))
    settings = VocabularySettings(fewest_words=fewest_words, fewest_characters=fewest_characters)
    counts = extend_vocabulary(start, texts, read_glosses(dictionary), out, settings)
    typer.echo(f"{out}: " + ", ".join(f"{n:,} {kind}" for kind, n in counts.items()))


def corpus(
    start: Annotated[
        Path, typer.Option("--from", metavar="DIR", help="BERT checkpoint directory, run or bundle with the tokenizer.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for sources.npz and dev.npz.")],
    data_root: RootOption = Path(),
    recipe: RecipeOption = None,
    max_tokens: Annotated[int, typer.Option(min=8, max=512, help="Longer texts keep head and tail.")] = 96,
) -> None:
    """Tokenise the sources of a recipe once, so that a long run reads nothing but numbers.

    Example: `stream-sentiment model corpus --from base --data-root data --out runs/corpus`
    """
    needs_train_extra()
    from stream_sentiment.training.corpus import build_corpus
    from stream_sentiment.training.pretrain import load_tokenizer, read_recipe

    described = read_recipe(recipe or _default_recipe())
    out.mkdir(parents=True, exist_ok=True)
    with bar("corpus") as update:
        for name, sources in (("dev", described.dev), ("sources", described.sources)):
            made = build_corpus(data_root, sources, load_tokenizer(start), max_tokens, progress=update)
            made.save(out / f"{name}.npz")
            typer.echo(f"{out / name}.npz: {len(made):,} rows, {len(made.ids):,} tokens with all variants")


def pretrain(
    start: Annotated[
        Path, typer.Option("--from", metavar="DIR", help="BERT checkpoint directory, run or bundle with weights.")
    ],
    corpus: Annotated[Path, typer.Option(metavar="DIR", help="What `model corpus` wrote.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="RUN", help="Run directory; a stage that is in it is not run again.")
    ],
    recipe: RecipeOption = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; unset: cuda where there is one.")] = "",
    scale: Annotated[
        float, typer.Option(min=1e-6, max=100.0, help="Multiplies what every stage shows; below 1 for a trial.")
    ] = 1.0,
    until: Annotated[str, typer.Option(help="Last stage: language, teach, student or tune.")] = "tune",
) -> None:
    """Make a base model: masked words, one teacher a fold, a student on their judgements, tuning for int8.

    Example: `stream-sentiment model pretrain --from base --corpus runs/corpus --out runs/base --device cuda`
    """
    needs_train_extra()
    import torch

    from stream_sentiment.training.corpus import Corpus
    from stream_sentiment.training.pretrain import STAGES, read_recipe
    from stream_sentiment.training.pretrain import pretrain as run_stages

    if until not in STAGES:
        raise typer.BadParameter(f"--until is one of {', '.join(STAGES)}")
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("torch sees no CUDA device; leave --device out to train on the CPU")
    described = read_recipe(recipe or _default_recipe(), scale=scale)
    dev = corpus / "dev.npz"
    with bar("pre-training") as update:
        run_stages(
            start,
            out,
            described,
            Corpus.load(corpus / "sources.npz"),
            Corpus.load(dev) if dev.is_file() else None,
            torch.device(chosen),
            until,
            update,
        )
    typer.echo(
        f"{out}: model.safetensors, network.json, log.jsonl, curves.png. Next: stream-sentiment model shortcut {out} ..."
    )


def shortcut(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run directory.")],
    data: Annotated[
        list[Path], typer.Option("--data", "-d", metavar="FILE", help="Labelled rows of the texts the shortcut serves.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Run directory with the new shortcut.")],
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Rows of other kinds of text, on which its gate is to close; unset: no gate."
        ),
    ] = None,
    against_rows: Annotated[int, typer.Option(min=1, help="At most so many rows of each --against file.")] = 1_000,
) -> None:
    """Fit the n-gram shortcut of a run anew: what a TF-IDF model knows of these texts, and a gate that leaves others alone.

    Example: `stream-sentiment model shortcut runs/base --data service.jsonl --against posts.jsonl --out runs/final`
    """
    needs_train_extra()
    from stream_sentiment.training.data import read_rows
    from stream_sentiment.training.shortcut import fit_shortcut

    own = [r for p in data for r in read_rows(p)]
    other = [r for p in against or [] for r in spread(read_rows(p), against_rows)]
    with bar("shortcut") as update:
        right = fit_shortcut(run, out, own, other, lambda done, _loss: update(done, 0, "n-grams"))
    typer.echo(
        f"{out}: shortcut of {len(own):,} rows" + (f"; the gate tells {right:.1%} of the texts apart" if other else "")
    )


def variant(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle with weights.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="BUNDLE", help="Where the bundle with its fp16 graph is written.")
    ],
) -> None:
    """Add the fp16 graph that a CUDA device runs; built from the weights, since a CPU never reads it.

    Example: `stream-sentiment model variant models/service-zh-en-6x384 --out models/service-gpu`
    """
    needs_train_extra()
    from stream_sentiment.training.variant import add_half_precision

    size = add_half_precision(bundle, out)
    typer.echo(
        f"{out}: fp16 graph of {size:,} bytes; run it with STREAM_SENTIMENT_MODEL__PATH={out} STREAM_SENTIMENT_MODEL__DEVICE=cuda"
    )


def _default_recipe() -> Path:
    from importlib.resources import files

    return Path(str(files("stream_sentiment.training") / "service_recipe.yaml"))
