"""Gates for continuous integration: conditions on measures, and a report that CI services show.

A condition is read before anything else: its measure must exist, and the limit must be on the side where it is worse.

JUnit XML as Jenkins and GitLab read it.
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation.froc import FALSE_ALARMS
from wsiseg.evaluation.measures import MODES
from wsiseg.evaluation.metrics_file import Gate, Report, figure
from wsiseg.run.errors import UsageError, shortened
from wsiseg.run.record import SlideRecord

_MOST_NAMED = 10
_OVER_ALL = ("auc", "average_precision")
_AT = ("precision", "recall", "specificity", "f1", "dice", "iou", "wrong_share")
_UNKNOWN = ("unknown_share", "unknown_tumor_share", "unknown_other_share")
_COUNTS = ("slides", "cases", "tumor_px", "other_px")
_BLOCK = (*_OVER_ALL, *_AT, "brier", *_COUNTS)
_OF_SLIDES = (
    *_UNKNOWN,
    *(f"mean_per_slide.{name}" for name in (*_OVER_ALL, *_AT, *_UNKNOWN)),
    *(f"at.{name}.{measure}" for name in ("option", "validation", "model", "best") for measure in _AT),
)
_AREAS = ("truth_mm2", "called_mm2", "mean_error_mm2", "mean_absolute_error_mm2")
_PERCENTAGES = ("correlation", "mean_error", "mean_absolute_error")
_WHOLE = ("slide_auc", *(f"tumor_area.{name}" for name in _AREAS), *(f"percentages.{name}" for name in _PERCENTAGES))
_LESIONS = ("froc.score", *(f"froc.sensitivity_at.{alarms:g}" for alarms in FALSE_ALARMS))
_LOWER_IS_BETTER = {"brier", "wrong_share", "mean_absolute_error_mm2", "mean_absolute_error", *_UNKNOWN}
_NEITHER_IS_BETTER = {"tumor_px", "other_px", "mean_error", *_AREAS[:3]}
Paths = dict[str, tuple[str, ...]]
"""By the name of a measure the keys that lead to it in `metrics.json`."""


def measures_of_slides(groups: Mapping[str, Iterable[str]], *, with_lesions: bool) -> Paths:
    """List the measures of slides that a condition can name, as `auc`, `site.breast.with_background.f1`, `slide_auc`.

    `groups` has the names of sites, splits and locations, by `site`, `split` and `location`.
    """
    places = [("", ()), *((f"{kind}.{name}.", (f"per_{kind}", name)) for kind in groups for name in groups[kind])]
    found = {name: keys for place in places for name, keys in _block(*place, (*_BLOCK, *_OF_SLIDES))}
    # The last key of a sensitivity holds a dot itself, as in 0.25.
    return found | {name: tuple(name.split(".", 2)) for name in (*_WHOLE, *(_LESIONS if with_lesions else ()))}


def measures_of_patches() -> Paths:
    """List the measures of PatchCamelyon that a condition can name."""
    return dict(_block("", (), (*_BLOCK, "unknown_share"))) | {f"judged.{name}": ("judged", name) for name in _BLOCK}


def _block(prefix: str, path: tuple[str, ...], names: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for written, mode in (("", MODES[0]), *((f"{mode}.", mode) for mode in MODES)):
        for name in names:
            yield f"{prefix}{written}{name}", (*path, mode, *name.split("."))


def conditions(config: EvaluateConfig, measures: Paths) -> list[Gate]:
    """Read the conditions of the settings: gates without values yet.

    Raises:
        UsageError: One cannot be read, names no measure or limits one where it is better.
    """
    found = []
    for option, bound, texts, wrong, other in (
        ("--fail-under", "least", config.fail_under, "lower", "--fail-over"),
        ("--fail-over", "most", config.fail_over, "higher", "--fail-under"),
    ):
        for text in texts:
            name, limit = _read(f"{option} {text}", text, measures)
            last = name.rpartition(".")[2]
            if last not in _NEITHER_IS_BETTER and wrong == ("lower" if last in _LOWER_IS_BETTER else "higher"):
                raise UsageError(f"{option} {text}: {wrong} values of {name} are better", f"give {other} {text}")
            if last not in _COUNTS and not name.startswith(("tumor_area.", "percentages.")) and not 0 <= limit <= 1:
                raise UsageError(f"{option} {text}: {name} lies between 0 and 1", f"80 % of it are {name}=0.8")
            found.append(Gate.model_validate({"measure": name, "path": measures[name], bound: limit}))
    return found


def _read(given: str, text: str, measures: Paths) -> tuple[str, float]:
    name, number = (part.strip() for part in text.partition("=")[::2])
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not name or not math.isfinite(limit):
        raise UsageError(f"{given}: not of the form MEASURE=NUMBER", "as in auc=0.8 or site.breast.f1=0.6")
    if name not in measures:
        raise UsageError(f"{given}: there is no measure {name} in what is evaluated", _advice(name, measures))
    return name, limit


def _advice(name: str, measures: Paths) -> str:
    """Say what could be meant by a name: of a site that is not there, the sites, else the name that is most like it."""
    kind, group, *_ = (*name.split("."), "")
    groups = dict.fromkeys(path[1] for path in measures.values() if path[0] == f"per_{kind}")
    if groups and not difflib.get_close_matches(group, groups):
        return f"there are {', '.join(shortened([f'{kind}.{one}' for one in groups], _MOST_NAMED))}"
    alike = difflib.get_close_matches(name, measures, n=1)
    return f"did you mean {alike[0]}?" if alike else f"there are {', '.join((*_BLOCK, *_WHOLE))} and more"


def with_values(gate: Gate, content: Any) -> Gate:  # noqa: ANN401  the content of a JSON file
    """Return a gate with the value that its measure has in the content of a `metrics.json`."""
    for key in gate.path:
        content = content.get(key) if isinstance(content, Mapping) else None
    measure = content if isinstance(content, Mapping) else {"value": content}
    return Gate.model_validate({**dict(gate), "value": measure.get("value"), "ci95": measure.get("ci95")})


def gate_lines(report: Report) -> Iterator[str]:
    """Yield a table of the gates that are not met, with the number of slides that they are over."""
    if report.unmet:
        yield f"{'gate not met':32}{'value':>10}{'limit':>12}"
    for gate in report.unmet:
        yield f"{gate.measure:32}{figure(gate.value):>10}{gate.limit:>12}  {report.counted}"


def junit(report: Report) -> str:
    """Return the report as JUnit XML: one test a gate and one a slide."""
    about = f"{report.counted}, threshold {report.threshold.value:.4f} ({report.threshold.origin})"
    slides = [*report.slides, *(record for run in report.runs for record in run.failed)]
    cases = [*(_gate_case(gate, about) for gate in report.gates), *map(_slide_case, slides)]
    seconds = sum(slide.seconds for slide in slides)
    counts = (
        f'tests="{len(cases)}" failures="{len(report.unmet)}" errors="{len(report.failed)}" '
        f'skipped="{sum(slide.status == "skipped" for slide in slides)}" time="{seconds:.3f}"'
    )
    body = "\n".join(cases)
    head = '<?xml version="1.0" encoding="UTF-8"?>'
    return f'{head}\n<testsuites><testsuite name="wsiseg.evaluate" {counts}>\n{body}\n</testsuite></testsuites>\n'


def _sentence(gate: Gate) -> str:
    return f"{gate.measure} is {'undefined' if gate.value is None else f'{gate.value:.4f}'}, not {gate.limit}"


def _quoted(text: str) -> str:
    """Quote text as an XML attribute, without the control characters that XML forbids."""
    return quoteattr("".join(sign for sign in text if sign.isprintable()))


def _gate_case(gate: Gate, about: str) -> str:
    limit = f">={gate.least:g}" if gate.most is None else f"<={gate.most:g}"
    interval = f", 95% interval {gate.ci95[0]:.4f} to {gate.ci95[1]:.4f}" if gate.ci95 else ""
    text = escape(f"{figure(gate.value)}{interval}, over {about}")
    told = f'<failure type="gate" message={_quoted(_sentence(gate))}>{text}</failure>'
    told = f"<system-out>{text}</system-out>" if gate.is_met else told
    return f'<testcase classname="gate" name={_quoted(gate.measure + limit)}>{told}</testcase>'


def _slide_case(slide: SlideRecord) -> str:
    head = f'<testcase classname="slides" name={_quoted(slide.slide)} time="{slide.seconds:.3f}"'
    if slide.error is None:
        return f"{head}/>"
    tag = "error" if slide.status == "failed" else "skipped"
    return f"{head}><{tag} message={_quoted(slide.error.message)}/></testcase>"
