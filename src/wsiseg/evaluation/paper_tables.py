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

from wsiseg.pages.configurations import ALL, MEASURES, Configured, picture
from wsiseg.pages.drawing import INK, Drawing, Text
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import write_text

_GAP, _ROW = 20, 20  # of the drawn table


@dataclass(frozen=True)
class GridRow:
    """One row of `grid.csv`; alpha and beta are empty for the supervised configuration."""

    alpha: str
    beta: str
    split: str
    site: str
    values: dict[str, float]


def write_paper_tables(grid: Path, out: Path) -> tuple[Path, ...]:
    """Write table 1 and figure 2 as CSV, SVG and PNG; give their paths.

    Raises:
        UsageError: There is no `grid.csv`, or it has no row of the test split.
    """
    rows = read_grid(grid)
    table = table1(rows)
    write_text(out / "table1.csv", table)
    write_text(out / "figure2.csv", figure2_csv(rows))
    table1_drawing(table).save(out / "table1")
    figure2(rows).save(out / "figure2")
    return tuple(out / f"{name}.{suffix}" for name in ("table1", "figure2") for suffix in ("csv", "svg", "png"))


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
    sites = sorted({row.site for row in test if row.site != ALL}, key=lambda site: (site not in trained, site))
    groups = {
        "in_distribution": [site for site in sites if site in trained],
        "out_of_location": [site for site in sites if site not in trained],
    }
    names = [*sites, *(name for name, group in groups.items() if group), ALL]
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
    configured = [
        Configured(
            alpha=float(row.alpha) if row.alpha else None,
            beta=float(row.beta) if row.beta else None,
            out=Path(),
            threshold=row.values.get("threshold", 0.5),
            figures={"test": {ALL: row.values}},
        )
        for row in _overall(rows)
    ]
    return picture(configured, "test")


def table1_drawing(text: str) -> Drawing:
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


def _row(row: dict[str, str]) -> GridRow:
    values = {name: float(row[name]) for name in (*MEASURES, "threshold") if row.get(name)}
    return GridRow(row["alpha"], row["beta"], row["split"], row["site"] or ALL, values)


def _overall(rows: Sequence[GridRow]) -> list[GridRow]:
    return [row for row in rows if row.split == "test" and row.site == ALL]


def _configurations(rows: Sequence[GridRow]) -> list[tuple[str, str]]:
    """List the configurations in the order of the file, each once."""
    return list(dict.fromkeys((row.alpha, row.beta) for row in rows))


def _mean(values: Sequence[float]) -> float | str:
    return round(sum(values) / len(values), 6) if values else ""
