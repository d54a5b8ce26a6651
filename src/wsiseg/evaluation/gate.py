"""Gates for continuous integration: conditions on measures, and reports that CI services show.

JUnit XML as Jenkins and GitLab read it; job summaries and annotations as in GitHub's documentation of workflow
commands: a summary holds at most 1 MiB, and of the annotations of a step ten are shown.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from wsiseg.evaluation.metrics_file import Gate, Report, figure, measured, with_interval
from wsiseg.run.errors import UsageError

_MOST_ROWS = 200
_MOST_SUMMARY_BYTES = 1_000_000  # under GitHub's 1 MiB
_MOST_ANNOTATIONS = 10
_GROUPS = {"site": "per_site", "split": "per_split", "location": "per_location"}
_MODES = ("without_background", "with_background")


def parsed(conditions: Sequence[str], option: str) -> dict[str, float]:
    """Read conditions such as `auc=0.8`.

    Raises:
        UsageError: One has no name, no number, or a number that is none.
    """
    found = {}
    for text in conditions:
        name, _, figure = text.partition("=")
        try:
            value = float(figure)
        except ValueError:
            value = math.nan
        if not name.strip() or not math.isfinite(value):
            raise UsageError(f"{option} {text}: not of the form MEASURE=NUMBER", "as in auc=0.8 or site.breast.f1=0.6")
        found[name.strip()] = value
    return found


def read_baseline(path: Path) -> dict[str, Any]:
    """Read the `metrics.json` of an earlier evaluation.

    Raises:
        UsageError: It is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: cannot be read as metrics.json: {error}") from error
    if schema != "wsiseg.metrics/1":
        raise UsageError(f"{path}: is of schema {schema}, not wsiseg.metrics/1", "evaluate the baseline again")
    return dict(content)


def gates(
    measures: Mapping[str, Any],
    least: Mapping[str, float],
    baseline: Mapping[str, Any] | None,
    drops: Mapping[str, float],
) -> tuple[Gate, ...]:
    """Check conditions.

    Args:
        measures: The content of `metrics.json`.
        least: Least values by measure.
        baseline: The content of an earlier `metrics.json`.
        drops: How far a measure may lie below the baseline's.

    Raises:
        UsageError: There is no such measure, here or in the baseline.
    """
    found = [_gate(measures, name, value, None) for name, value in least.items()]
    for name, drop in drops.items():
        before = _value(_looked_up(baseline or {}, name))
        if before is None:
            raise UsageError(
                f"the baseline has no value of {name}", "drop the condition or evaluate the baseline again"
            )
        found.append(_gate(measures, name, before - drop, before))
    return tuple(found)


def gate_lines(report: Report) -> Iterator[str]:
    """Give a table of the gates that are not met."""
    if report.unmet:
        yield f"{'below the gate':32}{'value':>10}{'least':>10}{'baseline':>10}"
    for gate in report.unmet:
        figures = (gate.value, gate.least, gate.baseline)
        yield f"{gate.measure:32}" + "".join(f"{'-' if one is None else f'{one:.4f}':>10}" for one in figures)


def junit(report: Report) -> str:
    """Give the report as JUnit XML: one test a gate and one a slide."""
    cases = [*map(_gate_case, report.gates), *map(_slide_case, report.slides)]
    seconds = sum(slide.seconds for slide in report.slides)
    counts = (
        f'tests="{len(cases)}" failures="{len(report.unmet)}" errors="{len(report.failed)}" '
        f'skipped="{sum(slide.status == "skipped" for slide in report.slides)}" time="{seconds:.3f}"'
    )
    body = "\n".join(cases)
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    return f'{head}\n<testsuites><testsuite name="wsiseg.evaluate" {counts}>\n{body}\n</testsuite></testsuites>\n'


def summary(report: Report) -> str:
    """Give the report as Markdown for `$GITHUB_STEP_SUMMARY`, within its limits."""
    lines = ["## wsiseg evaluate", "", f"`{_cell(report.run)}`, split: {report.split or 'all'}", ""]
    if report.gates:
        lines += ["| gate | value | least | met |", "|---|---|---|---|"]
        lines += [*map(_gate_row, report.gates), ""]
    lines += ["| measure | without background | with background |", "|---|---|---|"]
    for name, value in measured(report.without_background).items():
        lines.append(f"| {name} | {with_interval(value)} | {with_interval(report.with_background[name])} |")
    lines += ["", "| slide | status | AUC | F1 | |", "|---|---|---|---|---|"]
    lines += [_slide_row(slide.model_dump()) for slide in report.slides[:_MOST_ROWS]]
    more = len(report.slides) - _MOST_ROWS
    text = "\n".join([*lines, *([f"\nand {more} more slides, see slides.csv"] if more > 0 else [])]) + "\n"
    return text.encode()[:_MOST_SUMMARY_BYTES].decode(errors="ignore")


def annotations(report: Report) -> list[str]:
    """Give GitHub's workflow commands for what is wrong: gates first, ten at most."""
    lines = [f"::error title={_property('gate ' + gate.measure)}::{_message(_sentence(gate))}" for gate in report.unmet]
    for slide in report.failed:
        text = slide.error.message if slide.error else "failed"
        lines.append(f"::error file={_property(slide.path)}::{_message(text)}")
    return lines[:_MOST_ANNOTATIONS]


def outputs(report: Report) -> str:
    """Give `key=value` lines for `$GITHUB_OUTPUT`."""
    status = {0: "ok", 1: "failed", 3: "gate"}[report.exit_code]
    values = {name: _value(report.without_background.get(name)) for name in ("auc", "f1")}
    return "".join(f"{key}={value}\n" for key, value in ({"status": status} | values).items())


def _gate(measures: Mapping[str, Any], name: str, least: float, baseline: float | None) -> Gate:
    found = _looked_up(measures, name)
    interval = found.get("ci95") if isinstance(found, Mapping) else None
    return Gate(measure=name, least=least, value=_value(found), ci95=interval, baseline=baseline)


def _looked_up(measures: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401  any part of a JSON file
    """Find a measure: `auc`, `with_background.auc`, `site.breast.auc`, `slide_auc`, `mean_per_slide.f1`, ...

    Raises:
        UsageError: There is no such measure.
    """
    parts = name.split(".")
    part: Any = measures
    if parts[0] in _GROUPS:
        part, parts = measures.get(_GROUPS[parts[0]]), parts[1:]
        # The name of a site may hold dots itself.
        ends = [end for end in range(len(parts), 0, -1) if isinstance(part, Mapping) and ".".join(parts[:end]) in part]
        if not ends:
            raise _no_measure(name, part)
        part, parts = part[".".join(parts[: ends[0]])], parts[ends[0] :]
    if parts and parts[0] not in part:
        part = part.get("without_background", {})
    for key in parts:
        if not isinstance(part, Mapping) or key not in part:
            raise _no_measure(name, part)
        part = part[key]
    if part is not None and not isinstance(part, int | float) and "value" not in part:
        raise _no_measure(name, part)
    return part


def _no_measure(name: str, part: Any) -> UsageError:  # noqa: ANN401  any part of a JSON file
    known = ", ".join(part) if isinstance(part, Mapping) else "none"
    return UsageError(f"there is no measure {name}", f"there are: {known}")


def _value(found: Any) -> float | None:  # noqa: ANN401  any part of a JSON file
    value: float | None = found["value"] if isinstance(found, Mapping) else found
    return value


def _sentence(gate: Gate) -> str:
    value = "is undefined" if gate.value is None else f"is {gate.value:.4f}"
    return f"{gate.measure} {value}, below {gate.least:.4f}"


def _quoted(text: str) -> str:
    """Quote text as an XML attribute, without the control characters that XML forbids."""
    return quoteattr("".join(sign for sign in text if sign.isprintable()))


def _gate_case(gate: Gate) -> str:
    name = _quoted(f"{gate.measure}>={gate.least:g}")
    if gate.is_met:
        return f'<testcase classname="gate" name={name}/>'
    interval = f"95% interval {gate.ci95[0]:.4f} to {gate.ci95[1]:.4f}" if gate.ci95 else ""
    failure = f'<failure type="gate" message={_quoted(_sentence(gate))}>{escape(interval)}</failure>'
    return f'<testcase classname="gate" name={name}>{failure}</testcase>'


def _slide_case(slide: Any) -> str:  # noqa: ANN401  a record of a slide
    head = f'<testcase classname="slides" name={_quoted(slide.slide)} time="{slide.seconds:.3f}"'
    if slide.error is None:
        return f"{head}/>"
    tag = "error" if slide.status == "failed" else "skipped"
    return f"{head}><{tag} message={_quoted(slide.error.message)}/></testcase>"


def _gate_row(gate: Gate) -> str:
    verdict = "yes" if gate.is_met else "**no**"
    return f"| {_cell(gate.measure)} | {figure(gate.value)} | {gate.least:.4f} | {verdict} |"


def _slide_row(slide: Mapping[str, Any]) -> str:
    measures = slide.get("without_background") or {}
    said = (slide.get("error") or {}).get("message", "")
    figures = f"{figure(measures.get('auc'))} | {figure(measures.get('f1'))}"
    return f"| {_cell(slide['slide'])} | {slide['status']} | {figures} | {_cell(said)} |"


def _cell(text: str) -> str:
    """Make text safe inside a Markdown table."""
    cleaned = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("`", "'")
    return escape(cleaned)[:500]


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
