"""`stream-sentiment model evaluate|corrections|fairness|leaderboard|crossval`: what a bundle is worth, in figures and pictures.

All need the extra `train`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from stream_sentiment.cli.model_common import JsonOption, PageOption, bar, needs_train_extra, spread


def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    data: Annotated[
        list[Path], typer.Option("--data", "-d", metavar="FILE", help="Rows {text, polarity?, emotion?, language?}.")
    ],
    binary: Annotated[bool, typer.Option(help="The polarity of these rows knows no neutral.")] = False,
    record: Annotated[bool, typer.Option(help="Keep the figures in the bundle's manifest, for its card.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="One report a set (JSON, page, picture) and an index here."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle on labelled rows: accuracy, macro-F1, per-class figures, UAR, AUC, ECE, confusion.

    Example: `stream-sentiment model evaluate models/service-zh-en-6x384 --data dev.jsonl`
    """
    needs_train_extra()
    from stream_sentiment.scoring.scorer import OnnxScorer
    from stream_sentiment.training import data as rows_of
    from stream_sentiment.training.evaluate import report, without_curves

    scorer = OnnxScorer.load(bundle, device="cpu")
    results = {}
    with bar("scoring") as update:
        for path in data:
            rows = rows_of.read_rows(path, binary=binary)
            done = 0

            def advance(count: int, total: int = len(rows), name: str = path.name) -> None:
                nonlocal done
                done += count
                update(done, total, name)

            results[path.name] = report(scorer, rows, advance)
    if record:
        from stream_sentiment.training.export import record_metrics

        record_metrics(bundle, {name: without_curves(result) for name, result in results.items()})
    if out is not None:
        from stream_sentiment.training.report import write_reports

        write_reports(out, scorer.info, results)
    if as_json:
        typer.echo(json.dumps({"model": scorer.info.name, "version": scorer.info.version, "sets": results}))
        return
    for name, result in results.items():
        _print_report(name, result)


def corrections(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    data: Annotated[
        list[Path],
        typer.Option("--data", "-d", metavar="FILE", help="Rows with a polarity, or conversations with labels."),
    ],
    also: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Rows to show beside them; they decide nothing.")
    ] = None,
    record: Annotated[
        bool, typer.Option(help="Write it into the manifest: rules that help are on for this model from then on.")
    ] = False,
    page: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure every correction rule on labelled rows: labels put right, labels spoiled. See docs/corrections.md.

    Example: `stream-sentiment model corrections models/service-zh-en-6x384 --data dev.jsonl --record`
    """
    needs_train_extra()
    from stream_sentiment.scoring.scorer import OnnxScorer
    from stream_sentiment.training import correct, pages

    sets, others = ({path.name: correct.read_judged(path) for path in paths} for paths in (data, also or []))
    report = correct.measure(OnnxScorer.load(bundle, device="cpu"), sets, others)
    if record:
        correct.record(bundle, report)
    if page is not None:
        pages.write_block(page, "corrections", correct.markdown(report))
    typer.echo(json.dumps(report, ensure_ascii=False) if as_json else "\n".join(correct.markdown(report)))


def fairness(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    data: Annotated[
        list[Path],
        typer.Option("--data", "-d", metavar="FILE", help="Rows with a polarity, or conversations with labels."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Write fairness.json, fairness.md and fairness.png here."),
    ] = None,
    sample: Annotated[int, typer.Option(min=100, help="Rows of each file at most, evenly spread.")] = 2000,
    record: Annotated[bool, typer.Option(help="Keep the figures in the bundle's manifest, for its card.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Does the score depend on who speaks, and how? Names, regions, gender, dialect, typos, emoji, numbers, capitals, slices.

    Example: `stream-sentiment model fairness models/service-zh-en-6x384 --data dev.jsonl --out reports`
    """
    needs_train_extra()
    from stream_sentiment.scoring.scorer import OnnxScorer
    from stream_sentiment.training import fairness_report
    from stream_sentiment.training.bundle_notes import note
    from stream_sentiment.training.correct import read_judged
    from stream_sentiment.training.fairness import fairness as measure

    rows = [row for path in data for row in spread(read_judged(path), sample)[:sample]]
    with bar("measuring") as update:
        report = measure(OnnxScorer.load(bundle, device="cpu"), rows, lambda what: update(0, 0, what))
    if record:
        note(bundle, "fairness", fairness_report.summary(report, [path.name for path in data]))
    lines = fairness_report.markdown(report)
    if out is not None:
        from stream_sentiment.training.pictures import draw_fairness

        out.mkdir(parents=True, exist_ok=True)
        (out / "fairness.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
        (out / "fairness.md").write_text("\n".join(["# Fairness and robustness", "", *lines]) + "\n", "utf-8")
        draw_fairness(report, out / "fairness.png")
    typer.echo(json.dumps(report, ensure_ascii=False) if as_json else "\n".join(lines))


def leaderboard(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    data_root: Annotated[Path, typer.Option(metavar="DIR", help="Folder with service, dev, test_public, train.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write leaderboard.json and leaderboard.md here.")
    ] = None,
    baselines: Annotated[bool, typer.Option(help="Fit and measure the lexicon and n-gram baselines.")] = True,
    earlier: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="leaderboard.json of the same data: its n-gram figures are taken over."),
    ] = None,
    folds: Annotated[
        bool, typer.Option("--folds", help="Also train on the split by dialogue; see `model crossval`.")
    ] = False,
    page: PageOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a bundle beside baselines computed here, floors, bars and published figures, on dev and public tests.

    Example: `stream-sentiment model leaderboard models/service-zh-en-6x384 --data-root data --page docs/leaderboard.md`
    """
    needs_train_extra()
    from stream_sentiment.scoring.scorer import OnnxScorer
    from stream_sentiment.training import leaderboard as board
    from stream_sentiment.training.crossval import crossval as in_folds
    from stream_sentiment.training.pages import write_block

    scorer = OnnxScorer.load(bundle, device="cpu")
    with bar("measuring") as update:
        before = json.loads(earlier.read_text("utf-8")) if earlier is not None else None
        result = board.leaderboard(
            scorer, data_root, baselines=baselines, earlier=before, progress=lambda what: update(0, 0, what)
        )
        plan = board.definition()["folds"]
        split = None
        if folds and (data_root / plan["file"]).is_file():
            split = in_folds(bundle, data_root / plan["file"], group=plan["group"], head=plan["head"], progress=update)
            result["folds"] = split
    about = f"{scorer.info.name} {scorer.info.version}, {scorer.info.precision}, sha256 {scorer.info.sha256[:12]}."
    lines = [about, "", *board.markdown(result, split)]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "leaderboard.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
        (out / "leaderboard.md").write_text("\n".join(["# Leaderboard", "", *lines]) + "\n", "utf-8")
    if page is not None:
        write_block(page, "leaderboard", lines)
    typer.echo(json.dumps(result, ensure_ascii=False) if as_json else "\n".join(lines))


def crossval(
    start: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle with weights, or run directory.")],
    data: Annotated[Path, typer.Option("--data", "-d", metavar="FILE", help="Labelled rows that name their group.")],
    group: Annotated[str, typer.Option(help="Field of what must not be split.")] = "conversation_id",
    head: Annotated[str, typer.Option(help="polarity or emotion.")] = "polarity",
    folds: Annotated[int, typer.Option(min=2, max=50, help="Parts; each is predicted by a model of the others.")] = 5,
    method: Annotated[
        Literal["linear", "finetune"],
        typer.Option(
            help="linear: logistic regression on the frozen encoder and n-grams, seconds; finetune: minutes a fold."
        ),
    ] = "linear",
    passes: Annotated[float, typer.Option(min=0.1, help="How often finetune shows each row.")] = 3.0,
    threads: Annotated[int, typer.Option(min=1, max=256, help="CPU threads.")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Say what training on these rows would reach: trained and tested in folds that never split a conversation.

    Example: `stream-sentiment model crossval models/service-zh-en-6x384 --data turns.jsonl --group conversation_id`
    """
    needs_train_extra()
    from stream_sentiment.training.crossval import crossval as in_folds

    with bar("folds") as update:
        result = in_folds(
            start,
            data,
            group=group,
            head=head,
            folds=folds,
            method=method,
            passes=passes,
            threads=threads,
            progress=update,
        )
    if as_json:
        typer.echo(json.dumps(result))
        return
    typer.echo(f"{data.name}: {result['rows']} rows, {result['groups']} groups, {folds} folds, {head} macro-F1 in %")
    for name in ("before", "n-grams", "this model"):
        typer.echo(f"  {f'trained ({method})' if name == 'this model' else name:20s} {result[name]:5.1f}")


def _print_report(name: str, result: dict[str, Any]) -> None:
    typer.echo(f"{name}: {result['rows']} rows")
    for head in ("polarity", "emotion"):
        if head in result:
            r = result[head]
            typer.echo(
                f"  {head:9s} accuracy {r['accuracy']:.3f}  macro-F1 {r['macro_f1']:.3f}  UAR {r['uar']:.3f}  AUC {r['auc'] or 0:.3f}  "
                f"ECE {r['ece']:.3f}  (majority vote {r['majority_accuracy']:.3f} / {r['majority_macro_f1']:.3f})"
            )
            for label, c in r["classes"].items():
                typer.echo(
                    f"    {label:15s} precision {c['precision']:.3f}  recall {c['recall']:.3f}  F1 {c['f1']:.3f}  n {c['support']:.0f}"
                )
    if "intensity" in result:
        typer.echo(f"  intensity mean absolute error {result['intensity']['mae']:.3f}")
    if "signals" in result:
        s, both = result["signals"], result["signals_with_lexicon"]
        typer.echo(f"  signals   precision {s['precision']:.3f}  recall {s['recall']:.3f}  ECE {s['ece']:.3f}")
        typer.echo(f"            with the lexicon: precision {both['precision']:.3f}  recall {both['recall']:.3f}")
