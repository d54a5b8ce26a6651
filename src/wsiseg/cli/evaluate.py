"""`wsiseg evaluate`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsiseg.cli.options import Device
from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.config.settings import EvaluateConfig

if TYPE_CHECKING:
    from wsiseg.evaluation.metrics_file import Report


@command(app)
def evaluate(
    streams: Streams,
    predictions: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PREDICTIONS...",
            help="Folder of heatmaps; further ones are compared with the first.",
            show_default=False,
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="Folder of outlines, masks or heatmaps named after the slides."),
    ] = None,
    cohort: Annotated[Path | None, typer.Option(help="Cohort CSV with case, label, split and site.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics.json, slides.csv, report.html and plots.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split to evaluate; test where the cohort has one.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Probability from which a cell is tumour; by default the best on the validation split.",
            min=0,
            max=1,
        ),
    ] = None,
    tumor_class: Annotated[list[str] | None, typer.Option(help="Class of outlines that means tumour.")] = None,
    negative_class: Annotated[list[str] | None, typer.Option(help="Class that cuts holes into tumour.")] = None,
    truth_origin: Annotated[str, typer.Option(help="Where coordinates begin: auto, slide or bounds.")] = "auto",
    truth_mpp: Annotated[float | None, typer.Option(help="Micrometers per pixel of masks.", min=0)] = None,
    froc: Annotated[bool, typer.Option("--froc", help="Measure the detection of single lesions too.")] = False,
    fail_under: Annotated[list[str] | None, typer.Option(help="Least value, as auc=0.8 or site.breast.f1=0.6.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="metrics.json of an earlier evaluation.")] = None,
    max_drop: Annotated[list[str] | None, typer.Option(help="Largest fall below the baseline, as auc=0.01.")] = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML file to write.")] = None,
    resamples: Annotated[int, typer.Option(help="Resamples of the cases for the 95 % intervals.", min=0)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.", min=0)] = 0,
    pcam: Annotated[
        Path | None, typer.Option(help="Folder of the PatchCamelyon files, in place of predictions.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Model file, for --pcam.")] = None,
    device: Device = "auto",
    grid: Annotated[Path | None, typer.Option(help="Folder of train --grid, for the paper's table and figure.")] = None,
) -> int:
    """Measure tumour maps against truth, pixel by pixel.

    Truth may be outlines of QuPath, ASAP, ImageScope or CAMELYON, masks, NGFF labels or other heatmaps. Leaves with 3
    where a gate (--fail-under, --max-drop) is not met.

    Examples:
        wsiseg evaluate wsiseg-out --truth outlines
        wsiseg evaluate wsiseg-out --truth outlines --cohort cohort.csv --out evaluation
        wsiseg evaluate wsiseg-out --truth outlines --fail-under auc=0.80 --junit junit.xml
        wsiseg evaluate --pcam pcam --model mine.onnx --out evaluation
    """
    from wsiseg.evaluation.evaluate import evaluate as measure  # noqa: PLC0415  loads numerical libraries

    config = EvaluateConfig.checked(
        predictions=predictions or (), truth=truth, cohort=cohort, out=out, split=split, threshold=threshold,
        tumor_class=tumor_class or (), negative_class=negative_class or (), truth_origin=truth_origin,
        truth_mpp=truth_mpp, froc=froc, fail_under=fail_under or (), baseline=baseline, max_drop=max_drop or (),
        junit=junit, resamples=resamples, seed=seed, pcam=pcam, model=model, device=device, grid=grid,
    )  # fmt: skip
    if config.grid is not None and config.out is not None:
        return _draw(streams, config.grid, config.out)
    report = measure(config, streams)
    _tell(streams, report)
    return report.exit_code


def _draw(streams: Streams, grid: Path, out: Path) -> int:
    """Draw the paper's table and figure and print where they are."""
    from wsiseg.evaluation.paper_tables import write_paper_tables  # noqa: PLC0415  loads numerical libraries

    paths = [str(path) for path in write_paper_tables(grid, out)]
    streams.result({"outputs": paths}, paths)
    return 0


def _tell(streams: Streams, report: "Report") -> None:
    """Print the report, and tell GitHub where it runs this."""
    from wsiseg.evaluation.gate import annotations, gate_lines, outputs, summary  # noqa: PLC0415  loads numerical libraries

    for note in report.notes:
        streams.note(f"note: {note}")
    for line in gate_lines(report):
        typer.echo(line, err=True)
    for variable, text in (("GITHUB_STEP_SUMMARY", summary(report)), ("GITHUB_OUTPUT", outputs(report))):
        if os.environ.get(variable):
            with Path(os.environ[variable]).open("a", encoding="utf-8") as file:
                file.write(text)
    if os.environ.get("GITHUB_ACTIONS") or os.environ.get("GITHUB_STEP_SUMMARY"):
        for line in annotations(report):
            typer.echo(line, err=True)
    streams.result(report.model_dump(mode="json", by_alias=True), _lines(report))


def _lines(report: "Report") -> Iterator[str]:
    from wsiseg.evaluation.metrics_file import measured, with_interval  # noqa: PLC0415  only here

    yield f"{'':20}{'without background':>28}{'with background':>28}"
    for name, value in measured(report.without_background).items():
        figures: list[Any] = [value, report.with_background[name]]
        yield f"{name:20}" + "".join(f"{with_interval(one):>28}" for one in figures)
    if report.slide_auc:
        yield f"{'slide_auc':20}{with_interval(report.slide_auc):>28}"
    yield f"{'threshold':20}{report.threshold.value:>28.4f}  ({report.threshold.source})"
