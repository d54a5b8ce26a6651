"""What an evaluation leaves in its folder: `metrics.json`, `slides.csv`, `report.html` and the plots."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from wsiseg.evaluation.comparison import Compared, MissingMapError
from wsiseg.evaluation.measures import MODES
from wsiseg.evaluation.metrics_file import Report, figure, measured, of_expected, signed, with_interval
from wsiseg.evaluation.pictures import STYLE, anchor, pictures
from wsiseg.evaluation.plots import NAMES, evaluation_plots, slider_counts
from wsiseg.pages.page import TEXT, cell, embedded, page, sortable_table, table
from wsiseg.run.errors import counted, shortened
from wsiseg.run.outputs import csv_text, write_json, write_text
from wsiseg.run.record import SlideRecord

_MOST_NAMED = 5
_GROUPS = {"per_location": "By location", "per_site": "By site", "per_split": "By split"}
_UNKNOWN = ("unknown_share", "unknown_tumor_share", "unknown_other_share")
_SHOWN = ("auc", "average_precision", "precision", "recall", "specificity", "f1", "iou", "wrong_share", *_UNKNOWN)
_SLIDER = """
const counts = JSON.parse(document.getElementById("counts").textContent);
const slider = document.getElementById("threshold");
const share = (part, whole) => whole > 0 ? (part / whole).toFixed(4) : "-";
const show = () => {
  const at = Number(slider.value);
  document.getElementById("threshold-value").textContent = counts.thresholds[at].toFixed(3);
  for (const mode of ["without_background", "with_background"]) {
    const {hits, false_alarms, positive} = counts[mode];
    document.getElementById(mode + "-precision").textContent = share(hits[at], hits[at] + false_alarms[at]);
    document.getElementById(mode + "-recall").textContent = share(hits[at], positive);
    document.getElementById(mode + "-f1").textContent = share(2 * hits[at], hits[at] + false_alarms[at] + positive);
  }
};
slider.addEventListener("input", show);
show();
"""


def class_folder(report: Report) -> str:
    """Return the folder within that of the first class that the files on a further one are written to."""
    return "class-" + re.sub(r"[^A-Za-z0-9_-]", "_", report.positive_class)


def write_evaluation(out: Path, report: Report, slides: Sequence[Compared]) -> None:
    """Write all files of an evaluation, whose headline is over these slides; each appears whole or not at all."""
    plots = evaluation_plots(report, slides)
    for name, drawing in plots.items():
        drawing.save(out / name)
    write_text(out / "slides.csv", slides_csv(report.slides))
    figures = "".join(f"<figure>{drawing.svg()}</figure>" for drawing in plots.values())
    write_text(out / "report.html", _page(report, slides, figures))
    write_json(out / "metrics.json", report.model_dump(mode="json", by_alias=True))


def slides_csv(records: Iterable[SlideRecord]) -> str:
    """Return one row a slide: what is known of it, its areas, its measures in both modes, and what went wrong."""
    known = ("slide", "case", "label", "split", "site", "status", "truth_mm2", "tumor_mm2", "unknown_mm2",
             "stated_percent", "predicted_percent")  # fmt: skip
    names = [f"{name}{ending}" for ending in ("", "_background") for name in _SHOWN]
    rows: list[list[Any]] = [[*known, *names, "message"]]
    for record in records:
        measures = [_own(record, mode).get(name) for mode in MODES for name in _SHOWN]
        rows.append([*(getattr(record, name, None) for name in known), *measures, _said(record)])
    return csv_text(rows)


def _own(record: SlideRecord, mode: str) -> Mapping[str, float | None]:
    """Return the measures of a slide; none where it could not be compared."""
    return getattr(record, mode, None) or {}


def _said(record: SlideRecord) -> str:
    return record.error.message if record.error else "; ".join(record.warnings)


def _page(report: Report, slides: Sequence[Compared], figures: str) -> str:
    ranked = _ranked(report)
    notes = "".join(f"<li>{escape(note)}</li>" for note in (*report.notes, *_grouped(ranked)))
    parts = [
        f"<h1>Evaluation of {escape(report.run)}</h1>",
        f"<p>{escape(_about(report))}</p>",
        _gates(report),
        _classes(report),
        _measures(report),
        _slider(report, slides) if report.has_truth else "",
        f'<h2>Curves, {escape(report.scope)}</h2><div class="row">{figures}</div>',
        *(_group(title, getattr(report, name), report.word) for name, title in _GROUPS.items()),
        _runs(report),
        f"<h2>Slides, worst first: {escape(report.scope)}</h2>",
        _slides(ranked),
        f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "",
        *pictures(report, ranked, slides),
    ]
    return page(f"Evaluation of {report.run}", "\n".join(parts), _SLIDER, STYLE)


def _grouped(records: Sequence[SlideRecord]) -> Iterator[str]:
    """Say once what is to be known of several slides, whatever the numbers in it: of how many, and of which."""
    kinds: dict[str, dict[str, str]] = {}
    for record in records:
        for said in [record.error.message] if record.error else record.warnings:
            kind = re.sub(r"\d[\d.]*", "...", said.replace(record.slide, "..."))
            kinds.setdefault(kind, {})[record.slide] = said
    for kind, found in kinds.items():
        names = ", ".join(shortened(list(found), _MOST_NAMED))
        said = kind if len(set(found.values())) > 1 else next(iter(found.values()))
        yield f"{said} ({counted(len(found), 'slide')}: {names})"


def _missing(report: Report) -> str:
    """Say how many slides of the headline have no map, and how many others could not be compared."""
    block = report.without_background
    errors = [one.error for one in report.slides if one.error and report.split in {None, getattr(one, "split", None)}]
    failed = sum(one.type != MissingMapError.__name__ for one in errors)
    absent = block["expected_slides"] - block["slides"] - failed
    told = {"without a map": absent, "that could not be compared": failed}
    return "".join(f", {count} {what}" for what, count in told.items() if count > 0)


def _about(report: Report) -> str:
    over = (
        "without background: the cells that the heatmap calls tissue; with background: every pixel of the slide; "
        "both without unknown tissue, which was not judged."
    )
    return (
        f"{report.scope.capitalize()}{_missing(report)}; "
        f"{'patches have no background.' if report.unit == 'patch' else over} {_from(report)} "
        f"{report.threshold.value:.3f} ({report.threshold.origin}). "
        f"{_intervals(report)} For research, not for diagnosis."
    )


def _from(report: Report) -> str:
    return f"{report.word[:1].upper()}{report.word[1:]} from"


def _intervals(report: Report) -> str:
    """Say what was drawn for the intervals: cases, or slides where nobody says which are of one case."""
    count, unit, drawn = report.without_background["cases"], report.settings["resampled"], report.settings["resamples"]
    if not drawn or (count < 2 and unit != "patch"):  # noqa: PLR2004  one case
        return "No intervals, as there is one case only." if drawn else "No intervals were asked for."
    told = {"case": f"whole cases, of which there are {count}", "patch": "single patches"}
    alone = f"slides, of which there are {count}: no case is known, so slides of one patient count as independent"
    return f"95 % intervals from {drawn} resamples, each of {told.get(unit, alone)}."


def _titled(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"<h2>{escape(title)}</h2>{table(heads, rows)}" if rows else ""


def _gates(report: Report) -> str:
    verdicts = {True: '<span class="good">yes</span>', False: '<span class="bad">no</span>'}
    rows = [
        [*map(escape, (gate.measure, figure(gate.value), gate.limit, report.counted)), verdicts[gate.is_met]]
        for gate in report.gates
    ]
    return _titled(f"Gates, {report.scope}", ["measure", "value", "limit", "slides", "met"], rows)


def _classes(report: Report) -> str:
    rows = []
    for one in (report, *report.others) if report.others else ():
        name, block = escape(one.positive_class), one.without_background
        link = name if one is report else f'<a href="{class_folder(one)}/report.html">{name}</a>'
        rows.append([link, *(with_interval(block[kind]) if kind in block else "" for kind in ("auc", "f1"))])
    return _titled("Classes, of which this page is about the first", ["class", "AUC", "F1"], rows)


def _measures(report: Report) -> str:
    rows = [[escape(name.replace("_", " ")), *map(_kept, texts)] for name, texts in report.rows.items()]
    if report.slide_auc:
        rows.append(["AUC of whole slides", _kept(with_interval(report.slide_auc)), ""])
    for name, one in measured(report.percentages or {}).items():
        rows.append([f"percentages: {name.replace('_', ' ')}", _kept(with_interval(one)), ""])
    if report.froc:
        unjudged = f"{report.froc['unjudged']} lesions unjudged"
        rows.append(["free-response ROC score", figure(report.froc["score"]), unjudged])
    return _titled(f"Measures, {report.scope}", ["measure", *report.columns], rows)


def _kept(text: str) -> str:
    """Return a measure as HTML whose interval stays on one line."""
    return re.sub(r" (\(.+\))$", r' <span class="interval">\1</span>', text)


def _slider(report: Report, slides: Sequence[Compared]) -> str:
    counts, names = slider_counts(slides, report.threshold.value), ("precision", "recall", "f1")
    rows = [[NAMES[mode], *(f'<span id="{mode}-{name}"></span>' for name in names)] for mode in MODES]
    return (
        f"<h2>Threshold, {escape(report.scope)}</h2>\n<p><label>{escape(_from(report))} "
        '<output id="threshold-value"></output> <input type="range" '
        f'id="threshold" min="0" max="{len(counts["thresholds"]) - 1}" value="{counts["begin"]}"></label></p>'
        + table(["", "precision", "recall", "F1"], rows)
        + embedded("counts", counts)
    )


def _group(title: str, groups: Mapping[str, Any], word: str) -> str:
    shown = [*((mode, name) for mode in MODES for name in ("auc", "f1")), *((MODES[0], name) for name in _UNKNOWN)]
    rows = [
        [
            escape(name.replace("_", " ")),
            *(_kept(with_interval(group[mode][one])) for mode, one in shown),
            of_expected(group[MODES[0]]),
        ]
        for name, group in groups.items()
    ]
    heads = [f"{measure}, {NAMES[mode]}" for mode in MODES for measure in ("AUC", "F1")]
    return _titled(
        title,
        [title.removeprefix("By "), *heads, "unknown", f"unknown of {escape(word)}", "unknown of the rest", "over"],
        rows,
    )


def _runs(report: Report) -> str:
    shown = {f"AUC {NAMES[mode]}": (mode, "auc") for mode in MODES} | {"unknown": (MODES[0], _UNKNOWN[0])}
    rows = [
        [
            escape(run.run),
            *(
                f"{figure(getattr(run, mode)[name]['value'])} ({signed(run.difference[mode][name])})"
                for mode, name in shown.values()
            ),
            of_expected(run.without_background),
        ]
        for run in report.runs
    ]
    return _titled("Further runs", ["run", *(f"{name} (difference from the first)" for name in shown), "over"], rows)


def _ranked(report: Report) -> list[SlideRecord]:
    """Return the slides of the headline, worst first: by F1 where there is tumour, else by specificity.

    What could not be compared comes before them.
    """

    def goodness(record: SlideRecord) -> float:
        without, whole = (_own(record, mode) for mode in MODES)
        values = (without.get("f1") if whole.get("recall") is not None else None, without.get("specificity"))
        return next((value for value in values if value is not None), -1.0)

    is_headline = [
        one.error or report.split is None or getattr(one, "split", None) == report.split for one in report.slides
    ]
    return sorted(itertools.compress(report.slides, is_headline), key=goodness)


def _slides(records: Sequence[SlideRecord]) -> str:
    names = ("auc", "f1", "precision", "recall", "specificity", "wrong_share", "unknown_share")
    heads = ["slide", "site", "AUC", "F1", "precision", "recall", "specificity", "wrong", "unknown"]
    rows = []
    for record in records:
        measures, name = _own(record, MODES[0]), escape(record.slide)
        areas = [getattr(record, kind, None) for kind in ("truth_mm2", "tumor_mm2")]
        status = ": ".join(text for text in (record.status, _said(record)) if text)
        link = f'<a href="#{anchor(record.slide)}">{name}</a>' if measures else name
        cells = [
            cell(link, TEXT),
            cell(escape(getattr(record, "site", None) or ""), TEXT),
            *(cell(figure(measures.get(one))) for one in names),
            *(cell("" if one is None else f"{one:.2f}") for one in areas),
            cell(escape(status), TEXT),
        ]
        rows.append("".join(cells))
    return sortable_table([*heads, "truth mm2", "called mm2", "status"], rows, "slides.csv")
