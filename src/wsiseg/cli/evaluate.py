"""`wsiseg evaluate`."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.config.evaluate import EvaluateConfig

if TYPE_CHECKING:
    from wsiseg.evaluation.metrics_file import Report


@command(app, EvaluateConfig)
def evaluate(streams: Streams, config: EvaluateConfig) -> int:
    """Measure tumour maps against truth, pixel by pixel.

    Truth may be outlines of QuPath, ASAP, ImageScope or CAMELYON, masks, NGFF labels or other heatmaps. Leaves with 3
    where a gate (--fail-under, --fail-over) is not met, with 1 where a slide failed or has no map.

    Examples:
        wsiseg evaluate wsiseg-out --truth outlines
        wsiseg evaluate wsiseg-out --truth outlines --cohort cohort.csv --out evaluation
        wsiseg evaluate wsiseg-out --truth outlines --fail-under auc=0.80 --junit junit.xml
        wsiseg evaluate --pcam pcam --model mine.onnx --out evaluation
    """
    from wsiseg.evaluation.evaluate import evaluate as measure  # noqa: PLC0415  loads numerical libraries

    if config.grid is not None and config.out is not None:
        return _draw(streams, config.grid, config.out)
    report = measure(config, streams)
    _tell(streams, report)
    return report.exit_code


def _draw(streams: Streams, grid: Path, out: Path) -> int:
    """Draw the paper's table and figure and print where they are."""
    from wsiseg.evaluation.plots import write_paper_tables  # noqa: PLC0415  loads numerical libraries

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
    from wsiseg.evaluation.metrics_file import with_interval  # noqa: PLC0415  only here

    yield f"{'':20}{''.join(f'{head:>28}' for head in report.columns)}  over"
    for name, texts in report.rows.items():
        yield f"{name:20}{''.join(f'{text:>28}' for text in texts)}  {report.counted}"
    if report.slide_auc:
        yield f"{'slide_auc':20}{with_interval(report.slide_auc):>28}{'':28}  {report.counted}"
    yield f"{'threshold':20}{report.threshold.value:>28.4f}  ({report.threshold.origin})"
