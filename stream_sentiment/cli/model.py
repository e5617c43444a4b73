"""`stream-sentiment model ...`: train, export, quantize, evaluate, compare, verify and describe model bundles.

Only `verify` and `reference` need no more than the runtime; the others need the extra `train`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stream_sentiment.cli import model_long, model_measure
from stream_sentiment.cli.model_common import JsonOption, bar, needs_train_extra, spread
from stream_sentiment.errors import ConfigurationError, ExitStatus

if TYPE_CHECKING:
    pass

app = typer.Typer(no_args_is_help=True)

# From each calibration file; 300 messages in all are enough for the ranges.
CALIBRATION_ROWS = 150


@app.command()
def train(
    start: Annotated[
        Path,
        typer.Option("--from", metavar="DIR", help="Bundle with weights, run directory, or BERT checkpoint directory."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Run directory; an unfinished one goes on.")],
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", "-d", metavar="FILE", help="JSONL rows: text, polarity?, emotion?, ..."),
    ] = None,
    mix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML list of sources with passes and weights.")
    ] = None,
    data_root: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder that the patterns of --mix start from.")
    ] = Path(),
    dev: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Rows to measure after each round.")] = None,
    passes: Annotated[float, typer.Option(min=0.01, help="How often --data is shown.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Parts of the run; each ends with a checkpoint.")] = 4,
    body_rate: Annotated[float, typer.Option(min=1e-7, max=1e-2, help="Peak learning rate of the encoder.")] = 1.0e-4,
    patience: Annotated[int, typer.Option(min=1, help="Stop after so many rounds without a better dev macro-F1.")] = 3,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune on labelled rows; a label that a row lacks costs it nothing.

    A run that was cut goes on from its last finished round when the same command is given again.

    Example: `stream-sentiment model train --from models/service-zh-en-6x384 --data mine.jsonl --dev
    mine-dev.jsonl --out runs/mine`
    """
    needs_train_extra()
    from stream_sentiment.training import data as rows_of
    from stream_sentiment.training.finetune import Job, finetune
    from stream_sentiment.training.train import TrainSettings

    if bool(data) == bool(mix):
        raise typer.BadParameter("give either --data or --mix")
    if mix is not None:
        sources = [(s.files, rows_of.read_source(data_root, s), s.passes) for s in rows_of.read_mix(mix)]
    else:
        sources = [(p.name, rows_of.read_rows(p), passes) for p in data or []]
    settings = TrainSettings(rounds=rounds, body_rate=body_rate, threads=threads, seed=seed, patience=patience)
    job = Job(start, out, settings, sources, {p.name: rows_of.read_rows(p) for p in dev or []})
    with bar("training") as update:
        log = finetune(job, update)
    if as_json:
        typer.echo(json.dumps({"run": str(out), "rounds": log}, ensure_ascii=False))
        return
    for entry in log:
        measured = "  ".join(f"{k} {v:.3f}" for k, v in entry.get("dev", {}).items())
        typer.echo(f"round {entry['round']}: {entry['tokens']:,} tokens in {entry['seconds']:.0f} s  {measured}")
    typer.echo(
        f"{out}: model.safetensors, network.json, log.jsonl. Next: stream-sentiment model export {out} --out BUNDLE ..."
    )


@app.command()
def average(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN=SHARE...", help="Run or bundle directories with weights, and the share of each."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="RUN", help="Where the mean is written.")],
) -> None:
    """Mix trained networks: a weighted mean of their weights, for runs that began at the same start.

    Example: `stream-sentiment model average runs/first=0.6 runs/second=0.4 --out runs/mixed`
    """
    needs_train_extra()
    from stream_sentiment.training.average import average_runs

    average_runs([(Path(run), share) for run, share in _shares(runs).items()], out)
    typer.echo(out)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run directory.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="BUNDLE", help="Bundle directory to write.")],
    dev: Annotated[
        list[Path], typer.Option(metavar="FILE", help="Rows for temperatures, thresholds and the shortcut's share.")
    ],
    calibration: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Rows whose texts give the int8 ranges; every language, 300 or more."),
    ],
    golden: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Rows whose first 32 texts each are kept for `verify`; unset: --dev."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; unset: that of the directory.")] = None,
    version: Annotated[str, typer.Option(help="Version of the model.")] = "1.0.0",
    sources: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON list of training data: source, licence, rows, language.")
    ] = None,
    share: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HEAD=NUMBER", help="The shortcut's share of a head instead of the one of least log loss."
        ),
    ] = None,
    weights: Annotated[bool, typer.Option(help="Put the fp16 weights beside it, for fine-tuning.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Build the static int8 ONNX graph, calibrate it on dev, and write a bundle with its manifest.

    Example: `stream-sentiment model export runs/mine --out models/mine --dev dev.jsonl --calibration train.jsonl`
    """
    needs_train_extra()
    from stream_sentiment.training import data as rows_of
    from stream_sentiment.training.export import ExportRequest
    from stream_sentiment.training.export import export as write_bundle

    sample = [r for p in calibration for r in spread(rows_of.read_rows(p), CALIBRATION_ROWS)]
    texts = [r.text for p in golden or dev for r in rows_of.read_rows(p)[:32]]
    request = ExportRequest(
        name=name or out.name,
        version=version,
        dev=[rows_of.read_rows(p) for p in dev],
        calibration=sample,
        golden=texts,
        data=json.loads(sources.read_text("utf-8")) if sources else [],
        share=_shares(share or []),
        weights=weights,
    )
    manifest = write_bundle(run, out, request)
    if as_json:
        typer.echo(json.dumps(manifest, ensure_ascii=False))
        return
    for file, entry in manifest["files"].items():
        typer.echo(f"{entry['bytes']:>12,}  {file}")
    typer.echo(f"{out} written: {manifest['name']} {manifest['version']}")


@app.command()
def quantize(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Finished run directory.")],
    data: Annotated[list[Path], typer.Option("--data", "-d", metavar="FILE", help="Rows to compare on.")],
    calibration: Annotated[list[Path], typer.Option(metavar="FILE", help="Rows whose texts give the int8 ranges.")],
    as_json: JsonOption = False,
) -> None:
    """Say what int8 costs: label agreement and logit error of the int8 graph against the fp32 graph, per head.

    Exit status 1 when fewer than 99 % of the labels agree.

    Example: `stream-sentiment model quantize runs/mine --data dev.jsonl --calibration train.jsonl`
    """
    needs_train_extra()
    from stream_sentiment.training import data as rows_of
    from stream_sentiment.training.parity import compare_precisions

    sample = [r for p in calibration for r in spread(rows_of.read_rows(p), CALIBRATION_ROWS)]
    result = compare_precisions(run, [r for p in data for r in rows_of.read_rows(p)], sample)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        for head, figures in result["heads"].items():
            typer.echo(
                f"{head:10s} agreement {figures['agreement']:.4f}  logit error max {figures['max_error']:.4f} "
                f"mean {figures['mean_error']:.5f}"
            )
    if min(f["agreement"] for f in result["heads"].values()) < 0.99:
        raise typer.Exit(int(ExitStatus.NO))


for _command in (
    model_long.vocabulary,
    model_long.corpus,
    model_long.pretrain,
    model_long.shortcut,
    model_long.variant,
    model_measure.evaluate,
    model_measure.corrections,
    model_measure.fairness,
    model_measure.leaderboard,
    model_measure.crossval,
):
    app.command()(_command)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    second: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    data: Annotated[list[Path], typer.Option("--data", "-d", metavar="FILE", help="Labelled rows.")],
    as_json: JsonOption = False,
) -> None:
    """Put two bundles side by side on the same rows; exit status 1 when the second is worse in mean macro-F1.

    Example: `stream-sentiment model compare models/service-zh-en-6x384 models/mine --data dev.jsonl`
    """
    needs_train_extra()
    from stream_sentiment.training import data as rows_of
    from stream_sentiment.training.parity import compare_bundles

    result = compare_bundles(first, second, {p.name: rows_of.read_rows(p) for p in data})
    if as_json:
        typer.echo(json.dumps(result))
    else:
        for row in result["rows"]:
            typer.echo(
                f"{row['set']:32s} {row['head']:10s} {row['first']:.3f} -> {row['second']:.3f}  ({row['second'] - row['first']:+.3f})"
            )
        typer.echo(f"labels that agree: {result['agreement']:.3f}; mean macro-F1 {result['mean_difference']:+.4f}")
    if result["mean_difference"] < 0:
        raise typer.Exit(int(ExitStatus.NO))


@app.command()
def verify(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="Unset: the bundle that comes with the package.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every file, the label order, the tokenizer and the golden set of a bundle; exit status 1 and the
    reason when unsound.

    Example: `stream-sentiment model verify models/service-zh-en-6x384`
    """
    from stream_sentiment.scoring.bundle import default_bundle_path
    from stream_sentiment.scoring.verify import verify_bundle

    try:
        result = verify_bundle(bundle or default_bundle_path())
    except ConfigurationError as error:
        if as_json:
            typer.echo(json.dumps({"sound": False, "problem": str(error)}, ensure_ascii=False))
        else:
            typer.echo(f"not sound: {error}", err=True)
        raise typer.Exit(int(ExitStatus.NO)) from error
    if as_json:
        typer.echo(json.dumps({"sound": True, **result}))
        return
    typer.echo(f"sound: {result['name']} {result['version']}, {len(result['files'])} files")
    for precision, error_size in result["golden_error"].items():
        typer.echo(f"{precision}: golden set within {error_size:.6f} of the stored logits")


@app.command()
def reference(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    data: Annotated[
        list[Path],
        typer.Option("--data", "-d", metavar="FILE", help="JSONL rows with a text, and a language if it is known."),
    ],
    write: Annotated[bool, typer.Option("--write", help="Put it into the bundle's manifest.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what the predictions look like on a sample of the traffic: label mix and confidence, by language and head.

    Workers compare what they see with it (`prediction_psi`, alert PredictionDrift), so take texts as they come in, with the mix that
    they come in; labels are not needed.

    Example: `stream-sentiment model reference models/service-zh-en-6x384 --data a-week.jsonl --write`
    """
    from stream_sentiment.events.routing import guess_language
    from stream_sentiment.scoring.bundle import MANIFEST
    from stream_sentiment.scoring.corrections import Corrector
    from stream_sentiment.scoring.reference import MINIMUM, Prediction, as_document, measure, write_reference
    from stream_sentiment.scoring.scorer import OnnxScorer
    from stream_sentiment.settings import CorrectionSettings
    from stream_sentiment.training.data import read_rows

    scorer = OnnxScorer.load(bundle, device="cpu")
    corrector = Corrector.of(CorrectionSettings(), scorer.info)
    predictions: list[Prediction] = []
    sources = {}
    with bar("scoring") as update:
        for path in data:
            rows = read_rows(path)
            sources[path.name] = len(rows)
            for start in range(0, len(rows), 512):
                part = rows[start : start + 512]
                texts = [row.text for row in part]
                prepared = [token.text or text for token, text in zip(scorer.tokenize(texts), texts, strict=True)]
                # As the worker counts them: after the rules that this model's manifest switches on.
                predictions += [
                    Prediction.of(corrector.correct(text, score)[0], row.lang or guess_language(row.text))
                    for row, text, score in zip(part, prepared, scorer.score(texts), strict=True)
                ]
                update(start + len(part), len(rows), path.name)
    measured = measure(predictions, scorer.info.labels)
    counts = Counter(prediction.language for prediction in predictions)
    for language, count in sorted(counts.items()):
        if language not in measured:
            typer.echo(f"{language}: {count} messages, left out: a reference needs {MINIMUM}", err=True)
    if not measured:
        raise ConfigurationError(f"no language has {MINIMUM} messages in {', '.join(sources)}; give more rows")
    document = as_document(measured, sources)
    if write:
        write_reference(bundle / MANIFEST, document)
    if as_json:
        typer.echo(json.dumps(document, ensure_ascii=False))
        return
    for language, entry in measured.items():
        for head, found in entry.heads.items():
            mix = "  ".join(f"{label} {share:.3f}" for label, share in found.labels.items())
            typer.echo(f"{language}  {entry.messages} messages  {head:8s}  {mix}")
    if write:
        typer.echo(f"written to {bundle / MANIFEST}")


@app.command()
def card(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    write: Annotated[bool, typer.Option(help="Write MODEL_CARD.md into the bundle instead of printing it.")] = False,
) -> None:
    """Make the model card from the manifest: what it is, data with licences, figures, limits.

    Example: `stream-sentiment model card models/service-zh-en-6x384 --write`
    """
    from stream_sentiment.scoring.bundle import read_manifest
    from stream_sentiment.training.card import render

    text = render(read_manifest(bundle), bundle.name)
    if write:
        (bundle / "MODEL_CARD.md").write_text(text, "utf-8")
    else:
        typer.echo(text, nl=False)


def _shares(given: list[str]) -> dict[str, float]:
    out = {}
    for item in given:
        name, _, number = item.rpartition("=")
        try:
            out[name] = float(number)
        except ValueError:
            raise typer.BadParameter(f"{item!r} is not NAME=NUMBER") from None
    return out
