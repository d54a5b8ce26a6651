"""What an evaluation leaves in its folder: `metrics.json`, `slides.csv`, `report.html` and the plots."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from wsiseg.evaluation.comparison import Compared
from wsiseg.evaluation.measures import MODES
from wsiseg.evaluation.metrics_file import Report, counted, figure, with_interval
from wsiseg.evaluation.pictures import KEYS, data_address, error_pixels, map_pixels, truth_pixels
from wsiseg.evaluation.plots import NAMES, evaluation_plots, slider_counts
from wsiseg.pages.page import cell, embedded, page, sortable_table, table
from wsiseg.run.outputs import csv_text, write_json, write_text
from wsiseg.run.record import SlideRecord

_MOST_PICTURES = 200
_GROUPS = {"per_location": "By location", "per_site": "By site", "per_split": "By split"}
_UNKNOWN = ("unknown_share", "unknown_tumor_share", "unknown_other_share")
_SHOWN = ("auc", "average_precision", "precision", "recall", "specificity", "f1", "iou", "wrong_share", *_UNKNOWN)
_HEADS_OF_UNKNOWN = ("unknown", "unknown of tumour", "unknown of the rest")
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
    known = ("slide", "case", "label", "split", "site", "status", "truth_mm2", "tumor_mm2", "unknown_mm2")
    names = [f"{name}{ending}" for ending in ("", "_background") for name in _SHOWN]
    rows: list[list[Any]] = [[*known, *names, "message"]]
    for record in records:
        fields = record.model_dump()
        measures = [(fields.get(mode) or {}).get(name) for mode in MODES for name in _SHOWN]
        rows.append([*(fields.get(name) for name in known), *measures, _said(record)])
    return csv_text(rows)


def _said(record: SlideRecord) -> str:
    return record.error.message if record.error else "; ".join(record.warnings)


def _page(report: Report, slides: Sequence[Compared], figures: str) -> str:
    ranked = sorted(_headline(report), key=_goodness)
    parts = [
        f"<h1>Evaluation of {escape(report.run)}</h1>",
        f"<p>{escape(_about(report))}</p>",
        _gates(report),
        "<h2>Measures</h2>",
        _measures(report),
        "<h2>Threshold</h2>",
        _slider(slides, report.threshold.value),
        f'<h2>Curves</h2><div class="row">{figures}</div>',
        *(_group(title, getattr(report, name)) for name, title in _GROUPS.items()),
        _runs(report),
        "<h2>Slides, worst first</h2>",
        _slides(ranked),
        *_notes(report),
        *_pictures(ranked, slides, report.threshold.value),
    ]
    return page(f"Evaluation of {report.run}", "\n".join(parts), _SLIDER)


def _about(report: Report) -> str:
    if report.unit == "patch":
        counted = "which have no background."
    else:
        counted = (
            "without background: the cells that the heatmap calls tissue; with background: every pixel of the slide; "
            "both without unknown tissue, which was not judged."
        )
    return (
        f"Split: {report.split or 'all'}. {report.counted}, {counted} Tumour from {report.threshold.value:.3f} "
        f"({report.threshold.origin}). {_intervals(report)} For research, not for diagnosis."
    )


def _intervals(report: Report) -> str:
    """Say what was drawn for the intervals: cases, or slides where nobody says which are of one case."""
    count, unit, drawn = report.without_background["cases"], report.settings["resampled"], report.settings["resamples"]
    if not drawn or (count < 2 and unit != "patch"):  # noqa: PLR2004  one case
        return "No intervals, as there is one case only." if drawn else "No intervals were asked for."
    told = {"case": f"whole cases, of which there are {count}", "patch": "single patches"}
    alone = f"slides, of which there are {count}: no case is known, so slides of one patient count as independent"
    return f"95 % intervals from {drawn} resamples, each of {told.get(unit, alone)}."


def _gates(report: Report) -> str:
    if not report.gates:
        return ""
    verdicts = {True: '<span class="good">yes</span>', False: '<span class="bad">no</span>'}
    rows = [
        [
            *map(escape, (gate.measure, figure(gate.value), gate.limit, report.counted)),
            verdicts[gate.is_met],
        ]
        for gate in report.gates
    ]
    return "<h2>Gates</h2>" + table(["measure", "value", "limit", "slides", "met"], rows)


def _measures(report: Report) -> str:
    rows = [[escape(name), *texts] for name, texts in report.rows.items()]
    if report.slide_auc:
        rows.append(["AUC of whole slides", with_interval(report.slide_auc), ""])
    if report.froc:
        unjudged = f"{report.froc['unjudged']} lesions unjudged"
        rows.append(["free-response ROC score", figure(report.froc["score"]), unjudged])
    return table(["measure", *report.columns, "over"], [[*row, report.counted] for row in rows])


def _slider(slides: Sequence[Compared], threshold: float) -> str:
    counts = slider_counts(slides, threshold)
    rows = [
        [NAMES[mode], *(f'<span id="{mode}-{name}"></span>' for name in ("precision", "recall", "f1"))]
        for mode in MODES
    ]
    return (
        f'<p><label>Tumour from <output id="threshold-value"></output> <input type="range" id="threshold" min="0" '
        f'max="{len(counts["thresholds"]) - 1}" value="{counts["begin"]}"></label></p>'
        + table(["", "precision", "recall", "F1"], rows)
        + embedded("counts", counts)
    )


def _group(title: str, groups: Mapping[str, Any]) -> str:
    if not groups:
        return ""
    rows = [
        [
            escape(name),
            *(with_interval(group[mode][measure]) for mode in MODES for measure in ("auc", "f1")),
            *(with_interval(group[MODES[0]][measure]) for measure in _UNKNOWN),
            counted(group[MODES[0]]),
        ]
        for name, group in groups.items()
    ]
    heads = [f"{measure}, {NAMES[mode]}" for mode in MODES for measure in ("AUC", "F1")]
    return f"<h2>{title}</h2>" + table([title.removeprefix("By "), *heads, *_HEADS_OF_UNKNOWN, "over"], rows)


def _runs(report: Report) -> str:
    if not report.runs:
        return ""
    shown = [*((mode, "auc") for mode in MODES), (MODES[0], _UNKNOWN[0])]
    rows = [
        [
            escape(run.run),
            *(
                f"{figure(getattr(run, mode)[name]['value'])} ({_signed(run.difference[mode][name])})"
                for mode, name in shown
            ),
            counted(run.without_background),
        ]
        for run in report.runs
    ]
    names = (*(f"AUC {NAMES[mode]}" for mode in MODES), "unknown")
    heads = ["run", *(f"{name} (difference from the first)" for name in names), "over"]
    return "<h2>Further runs</h2>" + table(heads, rows)


def _slides(records: Sequence[SlideRecord]) -> str:
    names = ("auc", "f1", "precision", "recall", "specificity", "wrong_share", "unknown_share")
    heads = ["slide", "site", "AUC", "F1", "precision", "recall", "specificity", "wrong", "unknown"]
    heads += ["truth mm2", "called mm2", "status"]
    rows = []
    for number, record in enumerate(records):
        fields = record.model_dump()
        measures = fields.get("without_background") or {}
        figures = [measures.get(name) for name in names]
        areas = [fields.get("truth_mm2"), fields.get("tumor_mm2")]
        status = ": ".join(text for text in (record.status, _said(record)) if text)
        name = escape(record.slide)
        link = f'<a href="#slide-{number}">{name}</a>' if measures else name
        cells = [cell(link, record.slide, is_text=True), cell(escape(fields.get("site") or ""), is_text=True)]
        cells += [cell(figure(one), one) for one in figures]
        cells += [cell("" if one is None else f"{one:.2f}", one) for one in areas]
        rows.append("".join([*cells, cell(escape(status), is_text=True)]))
    return sortable_table(heads, rows)


def _pictures(records: Sequence[SlideRecord], slides: Sequence[Compared], threshold: float) -> Iterator[str]:
    """Show truth, map and error of the worst slides."""
    by_slide = {one.row.slide: one.picture for one in slides}
    keys = "".join(f'<span class="key" style="background: {key}"></span>{name}' for name, key in KEYS.items())
    yield f'<h2>Pictures</h2><p class="small">Errors:{keys}</p>'
    for number, record in enumerate(records[:_MOST_PICTURES]):
        picture = by_slide.get(record.slide)
        if picture is None:
            continue
        shown = (
            ("truth", truth_pixels(picture)),
            ("map", map_pixels(picture, threshold)),
            ("error", error_pixels(picture, threshold)),
        )
        figures = "".join(
            f'<figure><img class="cells" src="{data_address(pixels)}" alt="{name} of {escape(record.slide)}">'
            f"<figcaption>{name}</figcaption></figure>"
            for name, pixels in shown
        )
        yield f'<h3 id="slide-{number}">{escape(record.slide)}</h3><div class="row">{figures}</div>'


def _notes(report: Report) -> Iterator[str]:
    if report.notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
        yield f"<h2>Notes</h2><ul>{items}</ul>"


def _headline(report: Report) -> list[SlideRecord]:
    """Return the slides of the headline, and those that could not be compared."""
    return [
        record
        for record in report.slides
        if record.error is not None or report.split is None or record.model_dump().get("split") == report.split
    ]


def _goodness(record: SlideRecord) -> float:
    """Rank a slide: by its F1 where there is tumour, else by its specificity; what failed comes first."""
    measures = record.model_dump().get("without_background") or {}
    has_tumor = (record.model_dump().get("with_background") or {}).get("recall") is not None
    values = (measures.get("f1") if has_tumor else None, measures.get("specificity"))
    return next((value for value in values if value is not None), -1.0)


def _signed(measure: Mapping[str, Any]) -> str:
    value, low_high = measure["value"], measure["ci95"]
    text = "-" if value is None else f"{value:+.4f}"
    return text + (f", {low_high[0]:+.3f} to {low_high[1]:+.3f}" if low_high else "")
