"""What an evaluation draws: its curves, the counts behind the threshold slider, and the paper's table and figure.

Table 1 of Lerousseau et al. 2020 has a row for every (alpha, beta) and the pixelwise AUC by organ, without and with
background, for the organs that the models were trained on (in-distribution) and for others (out-of-location). Figure 2
shows every measure as a matrix, alpha down and beta across. Neither pools the two kinds of organs: what is said of a
kind is the mean over its organs.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.evaluation.comparison import Compared
from wsiseg.evaluation.froc import FALSE_ALARMS, froc
from wsiseg.evaluation.measures import MODES, pooled_curves, stated_and_predicted
from wsiseg.evaluation.metrics_file import Report, figure
from wsiseg.pages.configurations import ALL, MEASURES, Configured, picture
from wsiseg.pages.drawing import INK, Drawing, Text
from wsiseg.pages.plots import Line, plot, thinned
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import csv_text, write_text

NAMES = {"without_background": "without background", "with_background": "with background"}
_STEPS = 200  # of the slider
_GAP, _ROW = 20, 20  # of the drawn table
_KINDS = ("in_distribution", "out_of_location")
_Groups = dict[str, tuple[str, ...]]


def evaluation_plots(report: Report, slides: Sequence[Compared]) -> dict[str, Drawing]:
    """Draw the curves of an evaluation, by the name of their file; the stated percentages, where there are any."""
    scattered = {"percentages": _scattered(report.percentages, slides, report)} if report.percentages else {}
    return scattered | (_curves(report, slides) if report.has_truth else {})


def _scattered(measured: Mapping[str, Any], slides: Sequence[Compared], report: Report) -> Drawing:
    x, y = np.array(stated_and_predicted(slides, report.threshold.value)).T
    line = Line(f"slides, correlation {figure(measured['correlation']['value'])}", x, y, is_scattered=True)
    axes = (f"percent of {report.word}, as stated", f"percent called {report.word}")
    return plot("Percentages", axes, [line], diagonal=True, widest=100, highest=100)


def _curves(report: Report, slides: Sequence[Compared]) -> dict[str, Drawing]:
    roc, precision_recall = [], []
    for mode, counts in pooled_curves(slides).items():
        if counts.positive * counts.negative > 0:
            block, called = getattr(report, mode), counts.hits + counts.false_alarms
            recall, kept = counts.hits / counts.positive, called > 0
            points = thinned(np.append(0.0, counts.false_alarms / counts.negative), np.append(0.0, recall))
            roc.append(Line(f"{NAMES[mode]}, {block['auc']['value']:.3f}", *points))
            points = thinned(recall[kept], counts.hits[kept] / called[kept])
            name = f"{NAMES[mode]}, AP {block['average_precision']['value']:.3f}"
            precision_recall.append(Line(name, *points))
    known = report.reliability or {"mean_score": (), "tumor_share": ()}
    pairs = [pair for pair in zip(known["mean_score"], known["tumor_share"], strict=True) if None not in pair]
    reliability = [Line("cells of the tissue", *np.array(pairs).T)] if pairs else []
    axes = ("mean probability of the cells", f"share of {report.word}")
    found = {
        "roc": plot("ROC curve", ("false alarms / normal pixels", "recall"), roc, diagonal=True),
        "precision_recall": plot("Precision and recall", ("recall", "precision"), precision_recall),
        "reliability": plot("Reliability", axes, reliability, diagonal=True),
    }
    lesions = froc([one.lesions for one in slides if one.lesions is not None])
    if lesions is not None and report.froc:
        line = Line(f"score {report.froc['score']:.3f}", *lesions)
        axes = ("false alarms a slide", "lesions found")
        found["froc"] = plot("Free-response ROC", axes, [line], widest=FALSE_ALARMS[-1])
    return found


def slider_counts(slides: Sequence[Compared], threshold: float) -> dict[str, Any]:
    """Count by mode hits and false alarms at evenly spaced thresholds and at the one of the report, where to begin."""
    thresholds = np.unique(np.append(np.arange(_STEPS + 1, dtype=np.float32) / _STEPS, np.float32(threshold)))
    counts = [one.tissue.at_or_above(thresholds) for one in slides]
    hits, alarms = (np.sum([count[side] for count in counts], axis=0) for side in (0, 1))
    curves = pooled_curves(slides)
    by_mode = {}
    for mode in MODES:
        totals = {"positive": float(curves[mode].positive), "negative": float(curves[mode].negative)}
        # At a threshold of 0 all is called, also where nobody looked.
        called = {"hits": [totals["positive"], *hits[1:]], "false_alarms": [totals["negative"], *alarms[1:]]}
        by_mode[mode] = totals | {name: [round(float(one), 3) for one in values] for name, values in called.items()}
    begin = int(np.searchsorted(thresholds, np.float32(threshold)))
    return {"thresholds": [round(float(one), 6) for one in thresholds], "begin": begin, **by_mode}


def write_paper_tables(folder: Path, out: Path) -> tuple[Path, ...]:
    """Write table 1 and figure 2 as CSV, SVG and PNG, and return their paths.

    Figure 2 is of the organs that the models were trained on; others have a figure of their own.

    Raises:
        UsageError: There is no `grid.csv`, or it has no row of the test split.
    """
    grid, kinds = _read_grid(folder)
    groups: _Groups = {site: (site,) for sites in kinds.values() for site in sites} | kinds | {ALL: (ALL,)}
    columns = {f"{name}{end}": (sites, f"auc{end}") for name, sites in groups.items() for end in ("", "_background")}
    rows = [[*pair, *(_mean(one, *column) for column in columns.values())] for pair, one in grid.items()]
    tables = {"table1": csv_text([["alpha", "beta", *columns], *rows])}
    drawings = {"table1": _drawn_table(tables["table1"])}
    rows = [["alpha", "beta", "location", *MEASURES]]
    for kind, sites in (kinds or {ALL: (ALL,)}).items():
        over = "test" if kind == ALL else f"{kind.replace('_', '-')} test"
        means = {pair: {name: _mean(one, sites, name) for name in MEASURES} for pair, one in grid.items()}
        rows += [[*pair, kind, *values.values()] for pair, values in means.items()]
        drawn = [replace(one, figures={over: {ALL: means[pair]}}) for pair, one in grid.items()]
        drawings[f"figure2_{kind}" if kind == _KINDS[1] else "figure2"] = picture(drawn, over)
    tables["figure2"] = csv_text(rows)
    for name, text in tables.items():
        write_text(out / f"{name}.csv", text)
    for name, drawing in drawings.items():
        drawing.save(out / name)
    names = [*(f"{name}.csv" for name in tables), *(f"{name}.{end}" for name in drawings for end in ("svg", "png"))]
    return tuple(out / name for name in names)


def _read_grid(folder: Path) -> tuple[dict[tuple[str, str], Configured], _Groups]:
    """Read the test split: configurations by alpha and beta as written, and the sites trained on and others."""
    path = folder / "grid.csv" if folder.is_dir() else folder
    figures: dict[tuple[str, str], dict[str, Mapping[str, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in (row for row in rows if row["split"] == "test"):
            known = {name: float(row[name]) for name in MEASURES if row.get(name)}
            figures.setdefault((row["alpha"], row["beta"]), {})[row["site"] or ALL] = known
        trained = {row["site"] for row in rows if row["split"] != "test"}
        grid = {
            (alpha, beta): Configured(_number(alpha), _number(beta), Path(), 0.0, {"test": found})
            for (alpha, beta), found in figures.items()
        }
    except (OSError, KeyError, ValueError, TypeError) as error:
        advice = "give the folder of wsiseg train --grid"
        raise UsageError(f"{path}: cannot be read as a grid: {error}", advice) from error
    if not grid:
        raise UsageError(f"{path}: has no row of the test split", "train on a cohort with a test split")
    sites = {site for found in figures.values() for site in found} - {ALL}
    kinds = zip(_KINDS, (sites & trained, sites - trained), strict=True)
    return grid, {kind: tuple(sorted(found)) for kind, found in kinds if found}


def _number(text: str) -> float | None:
    return float(text) if text else None


def _mean(one: Configured, sites: Sequence[str], measure: str) -> float | None:
    mean = one.measure(measure, "test", sites)
    return None if mean is None else round(mean, 6)


def _drawn_table(text: str) -> Drawing:
    """Draw the CSV of the table, what is over background in grey as in the paper."""
    rows = list(csv.reader(io.StringIO(text)))
    widths = [16 + 7 * max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    drawing = Drawing(sum(widths) + 2 * _GAP, _ROW * (len(rows) + 2), "Pixelwise AUC by configuration and organ")
    for number, row in enumerate(rows):
        right, y = float(_GAP), _ROW * (number + 1.5)
        for cell, head, width in zip(row, rows[0], widths, strict=True):
            right += width
            color = "#888888" if head.endswith("_background") else INK
            shown = f"{float(cell):.3f}" if number and cell and head not in {"alpha", "beta"} else cell
            drawing.shapes.append(Text(right, y, shown, 11, "end", color=color))
    return drawing
