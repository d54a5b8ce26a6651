"""`wsiseg evaluate`: heatmaps + truth -> measures."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.config import EvaluateConfig

if TYPE_CHECKING:
    from wsiseg.evaluate import Report


@command(app)
def evaluate(
    streams: Streams,
    predictions: Annotated[Path, typer.Argument(help="Folder that wsiseg predict wrote.", show_default=False)],
    truth: Annotated[
        Path, typer.Option(help="Folder of outlines or masks named after the slides.", show_default=False)
    ],
    cohort: Annotated[Path | None, typer.Option(help="Cohort CSV with split and site.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to evaluate; test where the cohort has one.")] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Probability from which a cell is tumour.", min=0, max=1)
    ] = None,
) -> int:
    """Measure heatmaps against truth, pixel by pixel.

    Examples:
        wsiseg evaluate wsiseg-out --truth truth
        wsiseg evaluate wsiseg-out --truth truth --cohort cohort.csv --out evaluation --json
    """
    from wsiseg.evaluate import evaluate as run  # noqa: PLC0415  heavy: only when the command runs

    values = {"predictions": (predictions,), "truth": truth, "cohort": cohort, "out": out, "split": split}
    report = run(EvaluateConfig.checked(**values, threshold=threshold), streams)
    for note in report.notes:
        streams.note(f"note: {note}")
    streams.result(report.model_dump(mode="json", by_alias=True), _table(report))
    return report.exit_code


def _table(report: "Report") -> Iterator[str]:
    yield f"{'':22}without background  with background"
    for name, value in report.without_background.items():
        if not isinstance(value, dict) or "value" not in value:
            continue
        figures = (value["value"], report.with_background[name]["value"])
        yield f"{name:22}" + "".join("{:>18}".format("-" if number is None else f"{number:.4f}") for number in figures)
