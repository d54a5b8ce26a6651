"""`wsiseg doctor` and `wsiseg evaluate`: what holds of an installation, a slide, a model, a run, and of maps."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams, fitted
from wsiseg.config.doctor import DoctorConfig
from wsiseg.config.evaluate import EvaluateConfig

if TYPE_CHECKING:
    from wsiseg.evaluation.metrics_file import Report
    from wsiseg.run.proof import Findings


@command(app, DoctorConfig)
def doctor(streams: Streams, config: DoctorConfig) -> int:
    """Examine the installation, a slide or a model file, or verify a finished run.

    A run is verified against its run.json: its files, the record itself, the model file and the slides. Exits with
    code 1 if anything differs, or if a slide has tiles that cannot be read.

    Examples:
        wsiseg doctor
        wsiseg doctor slide.svs --deep
        wsiseg doctor --model mine.onnx --json
        wsiseg doctor wsiseg-out --sample 50
    """
    from wsiseg.doctor import doctor as examine  # noqa: PLC0415  loads numerical libraries
    from wsiseg.prediction.verify import is_of_run, verify  # noqa: PLC0415  the same

    findings = (verify if is_of_run(config.slide) else examine)(config, streams)
    streams.result(findings.as_json(), _findings_lines(findings))
    return findings.exit_code


@command(app, EvaluateConfig)
def evaluate(streams: Streams, config: EvaluateConfig) -> int:
    """Measure tumour maps against ground truth, pixel by pixel, or against percentages of tumour.

    Ground truth can be outlines from QuPath, ASAP, ImageScope or CAMELYON tools, masks, NGFF labels or other heatmaps.
    Exits with code 3 if a gate (--fail-under, --fail-over) is not met, and with code 1 if a slide failed or has no map.

    Examples:
        wsiseg evaluate maps --truth outlines
        wsiseg evaluate maps --truth outlines --cohort cohort.csv --out evaluation
        wsiseg evaluate maps --truth outlines --fail-under auc=0.8 --junit ci.xml
        wsiseg evaluate maps --cohort cohort.csv --out evaluation
        wsiseg evaluate --pcam pcam --model mine.onnx --out evaluation
    """
    from wsiseg.evaluation.evaluate import evaluate as measure  # noqa: PLC0415  loads numerical libraries
    from wsiseg.evaluation.plots import write_paper_tables  # noqa: PLC0415  the same

    if config.grid is not None and config.out is not None:
        paths = [str(path) for path in write_paper_tables(config.grid, config.out)]
        streams.result({"outputs": paths}, paths)
        return 0
    report = measure(config, streams)
    _tell(streams, report, config.out)
    return report.exit_code


def _findings_lines(findings: "Findings") -> Iterator[str]:
    facts = [f"{name}: {_text(value)}" for facts in findings.facts.values() for name, value in facts.items()]
    page = [f"\n{findings.page}"] if findings.page else []
    for text in (*facts, *page, *(f"problem: {one}" for one in findings.problems)):
        yield fitted(text, sys.stdout)


def _text(value: Any) -> str:  # noqa: ANN401  any JSON value
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items()) or "nothing"
    if isinstance(value, list | tuple):
        return ", ".join(_text(one) for one in value) or "none"
    return "none" if value is None else str(value)


def _tell(streams: Streams, report: "Report", out: Path | None) -> None:
    from wsiseg.evaluation.gate import gate_lines  # noqa: PLC0415  loads numerical libraries

    for note in report.notes:
        streams.note(f"note: {note}")
    for line in gate_lines(report):
        typer.echo(line, err=True)
    page = [] if out is None else [str(out / "report.html")]
    streams.result(report.model_dump(mode="json", by_alias=True), [*page, *_report_lines(report)])


def _report_lines(report: "Report") -> Iterator[str]:
    from wsiseg.evaluation.metrics_file import measured, of_expected, signed, with_interval  # noqa: PLC0415  only here

    if report.others:
        for each in (report.model_copy(update={"others": ()}), *report.others):
            yield f"class {each.positive_class}"
            yield from _report_lines(each)
        return
    yield f"{report.scope}:"
    yield f"{'':20}{''.join(f'{head:>28}' for head in report.columns)}"
    for name, texts in report.rows.items():
        yield f"{name:20}{''.join(f'{text:>28}' for text in texts)}"
    if report.slide_auc:
        yield f"{'slide_auc':20}{with_interval(report.slide_auc):>28}"
    percentages = report.percentages or {}
    for name, one in measured(percentages).items():
        yield f"{name:20}{with_interval(one):>28}  percentages of {percentages['slides']} slides"
    yield f"{'threshold':20}{report.threshold.value:>28.4f}  ({report.threshold.origin})"
    for run in report.runs:
        yield f"{run.run} on {of_expected(run.without_background)}, without background:"
        yield f"{'':20}{'':28}{'difference from the first':>28}"
        for name, one in measured(run.without_background).items():
            if name != "dice":  # it is F1
                yield f"{name:20}{with_interval(one):>28}{signed(run.difference['without_background'][name]):>28}"
