"""What an evaluation draws: its curves, the counts behind the threshold slider, and the paper's table and figure.

Table 1 of Lerousseau et al. 2020 has a row for every (alpha, beta) and the pixelwise AUC by organ, without and with
background, for the organs that the models were trained on (in-distribution) and for others (out-of-location). Figure 2
shows every measure as a matrix, alpha down and beta across. Neither pools the two kinds of organs: what is said of a
kind is the mean over its organs.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.evaluation.comparison import Compared
from wsiseg.evaluation.froc import froc
from wsiseg.evaluation.measures import MODES, pooled_curves
from wsiseg.evaluation.metrics_file import Report
from wsiseg.mathematics.metrics import Curve
from wsiseg.pages.configurations import ALL, MEASURES, Configured, picture
from wsiseg.pages.drawing import INK, Drawing, Text
from wsiseg.pages.plots import Line, plot, thinned
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import write_text

NAMES = {"without_background": "without background", "with_background": "with background"}
_STEPS = 200  # of the slider
_FROC_WIDEST = 8.0
_GAP, _ROW = 20, 20  # of the drawn table
_KINDS = ("in_distribution", "out_of_location")


def evaluation_plots(report: Report, slides: Sequence[Compared]) -> dict[str, Drawing]:
    """Draw the curves of an evaluation, by the name of their file."""
    curves = {mode: counts for mode, counts in pooled_curves(slides).items() if counts.positive * counts.negative > 0}
    found = {
        "roc": plot(
            "ROC curve",
            ("false alarms / normal pixels", "recall"),
            [_roc(report, mode, counts) for mode, counts in curves.items()],
            reference=((0, 0), (1, 1)),
        ),
        "precision_recall": plot(
            "Precision and recall",
            ("recall", "precision"),
            [_precision_recall(report, mode, counts) for mode, counts in curves.items()],
        ),
    }
    found["reliability"] = plot(
        "Reliability",
        ("mean probability of the cells", "share of tumour"),
        list(_reliability(report.reliability or {})),
        reference=((0, 0), (1, 1)),
    )
    lesions = froc([one.lesions for one in slides if one.lesions is not None])
    if lesions is not None:
        line = Line(f"score {lesions.score:.3f}", lesions.alarms_per_slide, lesions.sensitivity)
        axes = ("false alarms a slide", "lesions found")
        found["froc"] = plot("Free-response ROC", axes, [line], widest=_FROC_WIDEST)
    return found


def slider_counts(slides: Sequence[Compared], threshold: float) -> dict[str, Any]:
    """Count hits and false alarms at evenly spaced thresholds and at the one of the report, for the slider.

    Returns:
        `thresholds`, where among them to `begin`, and by mode `hits`, `false_alarms`, `positive` and `negative`.
    """
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


def _roc(report: Report, mode: str, counts: Curve) -> Line:
    x, y = np.append(0.0, counts.false_alarms / counts.negative), np.append(0.0, counts.hits / counts.positive)
    return Line(f"{NAMES[mode]}, {_value(report, mode, 'auc')}", *thinned(x, y))


def _precision_recall(report: Report, mode: str, counts: Curve) -> Line:
    called = counts.hits + counts.false_alarms
    kept = called > 0
    x, y = counts.hits[kept] / counts.positive, counts.hits[kept] / called[kept]
    return Line(f"{NAMES[mode]}, AP {_value(report, mode, 'average_precision')}", *thinned(x, y))


def _value(report: Report, mode: str, name: str) -> str:
    value = getattr(report, mode)[name]["value"]
    return "-" if value is None else f"{value:.3f}"


def _reliability(found: Mapping[str, Sequence[float | None]]) -> Iterator[Line]:
    pairs = zip(found.get("mean_score", ()), found.get("tumor_share", ()), strict=True)
    points = np.array([pair for pair in pairs if None not in pair], np.float64).reshape(-1, 2)
    if len(points):
        yield Line("cells of the tissue", points[:, 0], points[:, 1])


@dataclass(frozen=True)
class PaperGrid:
    """The test split of a `grid.csv`.

    Attributes:
        figures: Measures by site, by alpha and beta as written; those of the supervised configuration are empty.
        kinds: The sites that the models were trained on, and others.
    """

    figures: Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]]
    kinds: Mapping[str, Sequence[str]]

    def mean(self, pair: tuple[str, str], sites: Sequence[str], measure: str) -> float | None:
        """Return the mean of a measure over some sites; None where none of them has it."""
        values = [self.figures[pair].get(site, {}).get(measure) for site in sites]
        known = [value for value in values if value is not None]
        return round(sum(known) / len(known), 6) if known else None


def write_paper_tables(folder: Path, out: Path) -> tuple[Path, ...]:
    """Write table 1 and figure 2 as CSV, SVG and PNG, and return their paths.

    Figure 2 is of the organs that the models were trained on; others have a figure of their own.

    Raises:
        UsageError: There is no `grid.csv`, or it has no row of the test split.
    """
    grid = _read_grid(folder)
    kinds = grid.kinds or {ALL: (ALL,)}
    table = _table1(grid)
    drawings = {"table1": _drawn_table(table)}
    for kind, sites in kinds.items():
        drawings[f"figure2_{kind}" if kind == _KINDS[1] else "figure2"] = _figure2(grid, kind, sites)
    write_text(out / "table1.csv", table)
    write_text(out / "figure2.csv", _figure2_csv(grid, kinds))
    for name, drawing in drawings.items():
        drawing.save(out / name)
    drawn = [out / f"{name}.{suffix}" for name in drawings for suffix in ("svg", "png")]
    return (out / "table1.csv", out / "figure2.csv", *drawn)


def _read_grid(folder: Path) -> PaperGrid:
    path = folder / "grid.csv" if folder.is_dir() else folder
    figures: dict[tuple[str, str], dict[str, Mapping[str, float]]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in (row for row in rows if row["split"] == "test"):
            known = {name: float(row[name]) for name in (*MEASURES, "threshold") if row.get(name)}
            figures.setdefault((row["alpha"], row["beta"]), {})[row["site"] or ALL] = known
        trained = {row["site"] for row in rows if row["split"] != "test"}
    except (OSError, KeyError, ValueError, TypeError) as error:
        advice = "give the folder of wsiseg train --grid"
        raise UsageError(f"{path}: cannot be read as a grid: {error}", advice) from error
    if not figures:
        raise UsageError(f"{path}: has no row of the test split", "train on a cohort with a test split")
    sites = sorted({site for found in figures.values() for site in found} - {ALL})
    kinds = zip(
        _KINDS, ([site for site in sites if (site in trained) == is_it] for is_it in (True, False)), strict=True
    )
    return PaperGrid(figures, {kind: found for kind, found in kinds if found})


def _table1(grid: PaperGrid) -> str:
    """Return the table as CSV: the AUC by organ, then the means over both kinds of organs, then over all pixels."""
    groups: dict[str, Sequence[str]] = {site: (site,) for sites in grid.kinds.values() for site in sites}
    groups |= {**grid.kinds, ALL: (ALL,)}
    columns = [(sites, measure) for sites in groups.values() for measure in ("auc", "auc_background")]
    heads = [f"{name}{ending}" for name in groups for ending in ("", "_background")]
    rows = ([*pair, *(grid.mean(pair, *column) for column in columns)] for pair in grid.figures)
    return _as_csv(["alpha", "beta", *heads], rows)


def _figure2_csv(grid: PaperGrid, kinds: Mapping[str, Sequence[str]]) -> str:
    """Return the figures behind the matrices: one row a configuration and kind of organs."""
    rows = (
        [*pair, kind, *(grid.mean(pair, sites, name) for name in MEASURES)]
        for kind, sites in kinds.items()
        for pair in grid.figures
    )
    return _as_csv(["alpha", "beta", "location", *MEASURES], rows)


def _as_csv(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([heads, *rows])
    return buffer.getvalue()


def _figure2(grid: PaperGrid, kind: str, sites: Sequence[str]) -> Drawing:
    """Draw a matrix for every measure, alpha down and beta across."""
    over = "test" if kind == ALL else f"{kind.replace('_', '-')} test"
    configured = [
        Configured(
            alpha=float(pair[0]) if pair[0] else None,
            beta=float(pair[1]) if pair[1] else None,
            out=Path(),
            threshold=grid.mean(pair, sites, "threshold") or 0.0,
            figures={over: {ALL: {name: grid.mean(pair, sites, name) for name in MEASURES}}},
        )
        for pair in grid.figures
    ]
    return picture(configured, over)


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
