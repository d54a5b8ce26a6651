"""Table 1 and Figure 2 of Lerousseau et al. 2020, from the `grid.csv` of `wsiseg train --grid`.

The table has a row for every (alpha, beta) and the pixelwise AUC by organ, without and with background, for the organs
that the models were trained on (in-distribution) and for others (out-of-location). The figure shows every measure as a
matrix, alpha down and beta across.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsiseg.drawing import INK, Drawing, Rectangle, Text
from wsiseg.errors import UsageError
from wsiseg.outputs import write_text
from wsiseg.report import colored

MEASURES = ("auc", "auc_background", "precision", "recall", "f1")
_ALL = "all"
_CELL, _GAP, _MARGIN = 58, 46, 40
_TITLES = {
    "auc": "AUC without background",
    "auc_background": "AUC with background",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
}


@dataclass(frozen=True)
class GridRow:
    """One row of `grid.csv`; alpha and beta are empty for the supervised configuration."""

    alpha: str
    beta: str
    split: str
    site: str
    values: dict[str, float]


def write_paper_tables(grid: Path, out: Path) -> tuple[Path, ...]:
    """Write `table1.csv`, `figure2.csv`, `figure2.svg` and `figure2.png`; give their paths.

    Raises:
        UsageError: There is no `grid.csv`, or it has no row of the test split.
    """
    rows = read_grid(grid)
    write_text(out / "table1.csv", table1(rows))
    write_text(out / "figure2.csv", figure2_csv(rows))
    figure2(rows).save(out / "figure2")
    return tuple(out / name for name in ("table1.csv", "figure2.csv", "figure2.svg", "figure2.png"))


def read_grid(folder: Path) -> list[GridRow]:
    """Read the `grid.csv` of a folder.

    Raises:
        UsageError: It is missing or not as `wsiseg train --grid` writes it.
    """
    path = folder / "grid.csv" if folder.is_dir() else folder
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [_row(row) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path}: cannot be read as a grid: {error}", "give the folder of wsiseg train --grid"
        ) from error
    if not any(row.split == "test" for row in rows):
        raise UsageError(f"{path}: has no row of the test split", "train on a cohort with a test split")
    return rows


def table1(rows: Sequence[GridRow]) -> str:
    """Give the table as CSV: AUC without and with background by organ, then the means over both kinds of organs."""
    trained = {row.site for row in rows if row.split != "test"}
    test = [row for row in rows if row.split == "test"]
    sites = sorted({row.site for row in test if row.site != _ALL}, key=lambda site: (site not in trained, site))
    groups = {
        "in_distribution": [site for site in sites if site in trained],
        "out_of_location": [site for site in sites if site not in trained],
    }
    names = [*sites, *(name for name, group in groups.items() if group), _ALL]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["alpha", "beta", *(f"{name}{ending}" for name in names for ending in ("", "_background"))])
    for alpha, beta in _configurations(test):
        found = {row.site: row.values for row in test if (row.alpha, row.beta) == (alpha, beta)}
        cells = [
            _mean([found[site][measure] for site in groups.get(name, [name]) if measure in found.get(site, {})])
            for name in names
            for measure in ("auc", "auc_background")
        ]
        writer.writerow([alpha, beta, *cells])
    return buffer.getvalue()


def figure2_csv(rows: Sequence[GridRow]) -> str:
    """Give the figures behind the matrices: one row a configuration, over all of the test split."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["alpha", "beta", *MEASURES])
    for row in _overall(rows):
        writer.writerow([row.alpha, row.beta, *(row.values.get(name, "") for name in MEASURES)])
    return buffer.getvalue()


def figure2(rows: Sequence[GridRow]) -> Drawing:
    """Draw a matrix for every measure, alpha down and beta across, over all of the test split."""
    overall = [row for row in _overall(rows) if row.alpha]
    alphas, betas = (sorted({getattr(row, name) for row in overall}, key=float) for name in ("alpha", "beta"))
    side = len(betas) * _CELL
    width = _MARGIN + len(MEASURES) * (side + _GAP)
    drawing = Drawing(width, _MARGIN + 24 + len(alphas) * _CELL + _MARGIN, "Measures by alpha and beta, test split")
    for number, measure in enumerate(MEASURES):
        left, top = _MARGIN + number * (side + _GAP), _MARGIN + 24
        drawing.shapes.append(Text(left, 18, _TITLES[measure], 14))
        drawing.shapes.append(Text(left + side / 2, 40, "beta", 11, "middle"))
        drawing.shapes.append(Text(left - 34, top + len(alphas) * _CELL / 2, "alpha", 11, "middle", is_upright=True))
        drawing.shapes += [Text(left + (k + 0.5) * _CELL, 56, beta, 11, "middle") for k, beta in enumerate(betas)]
        drawing.shapes += [Text(left - 8, top + (k + 0.5) * _CELL, one, 11, "end") for k, one in enumerate(alphas)]
        for row in overall:
            x, y = left + betas.index(row.beta) * _CELL, top + alphas.index(row.alpha) * _CELL
            drawing.shapes += _matrix_cell(x, y, row.values.get(measure))
    return drawing


def _matrix_cell(x: float, y: float, value: float | None) -> list[Rectangle | Text]:
    if value is None:
        return []
    red, green, blue = (int(part) for part in colored(np.float32(value)))
    light = 0.3 * red + 0.59 * green + 0.11 * blue > 140  # noqa: PLR2004  the middle of what the eye sees as bright
    fill = f"#{red:02x}{green:02x}{blue:02x}"
    text = Text(x + _CELL / 2, y + _CELL / 2, f"{value:.3f}", 13, "middle", color=INK if light else "#ffffff")
    return [Rectangle(x + 1, y + 1, _CELL - 2, _CELL - 2, fill), text]


def _row(row: dict[str, str]) -> GridRow:
    values = {name: float(row[name]) for name in (*MEASURES, "slide_auc", "threshold") if row.get(name)}
    return GridRow(row["alpha"], row["beta"], row["split"], row["site"] or _ALL, values)


def _overall(rows: Sequence[GridRow]) -> list[GridRow]:
    return [row for row in rows if row.split == "test" and row.site == _ALL]


def _configurations(rows: Sequence[GridRow]) -> list[tuple[str, str]]:
    """List the configurations in the order of the file, each once."""
    return list(dict.fromkeys((row.alpha, row.beta) for row in rows))


def _mean(values: Sequence[float]) -> float | str:
    return round(sum(values) / len(values), 6) if values else ""
