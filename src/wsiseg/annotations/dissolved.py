"""Outlines of sets of heatmap cells, as polygons in level-0 pixels.

The boundary is walked from corner to corner. At a corner it turns, so pieces along rows and along columns alternate,
and within a row every second gap between corners is a piece. Where two set cells touch only diagonally the boundary
has two corners at one place: they are drawn so that foci stay apart, and holes of one focus too.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Labels = NDArray[np.int32]
_SIDES = ((-1, -1), (-1, 1), (1, -1), (1, 1))  # of a corner: up or down, left or right


def outlines(
    mask: NDArray[np.bool_],
    step_px: tuple[float, float],
    offset_px: tuple[float, float] = (0.0, 0.0),
) -> list[Any]:
    """Trace the set cells of a mask into polygons with holes.

    Neighbouring cells are dissolved, so a polygon is one connected focus; cells that touch only at a corner are apart.

    Args:
        mask: bool[rows, columns].
        step_px: Width and height of a cell.
        offset_px: Where the first cell's corner lies; runs of the result are shifted by it.

    Returns:
        Valid shapely polygons, largest first, corners rounded to whole pixels.
    """
    import shapely  # noqa: PLC0415  heavy: only where outlines are traced

    polygons, _ = labelled_outlines(mask, step_px, offset_px)
    parts = [part for part in shapely.get_parts(polygons) if part.area > 0]
    return sorted(parts, key=lambda part: -float(part.area))


def labelled_outlines(
    mask: NDArray[np.bool_],
    step_px: tuple[float, float],
    offset_px: tuple[float, float] = (0.0, 0.0),
) -> tuple[list[Any], Labels]:
    """Trace the set cells of a mask as `outlines` does, and say which cells lie in which polygon.

    Returns:
        One geometry for each focus, in the order of its first cell, and the number of each cell's focus: int32[rows,
        columns], counted from 1, 0 outside. A focus of cells finer than a pixel may be a MultiPolygon, or empty.
    """
    import shapely  # noqa: PLC0415  heavy: only where outlines are traced
    from scipy import ndimage  # noqa: PLC0415  the same

    labels: Labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=labels)
    if not mask.any():
        return [], labels
    points, ring, label = _rings(labels)
    corners = np.round(points[:, ::-1] * np.asarray(step_px) + np.asarray(offset_px))
    order = np.argsort(label, kind="stable")  # the ring that was found first in a focus is its shell
    rings = shapely.linearrings(corners, indices=ring)[order]
    polygons = shapely.polygons(rings, indices=label[order] - 1)
    if min(step_px) < 1:  # then rounded corners may fall together
        polygons = shapely.make_valid(polygons, method="structure", keep_collapsed=False)
    return list(polygons), labels


def _rings(labels: Labels) -> tuple[NDArray[np.float64], Ints, Ints]:
    """Walk the boundaries of labelled cells.

    Returns:
        The corners of all rings as row, column (float64[n, 2]), the ring of each corner (int64[n]), and the label of
        each ring; the first ring of a label is its shell, the others are its holes.
    """
    row, column, down, right, label = _corners(np.pad(labels, 1))
    along_row = _partners(row, column, right)
    along_column = _partners(column, row, down)
    order, ring = _walked(along_row.tolist(), along_column.tolist())
    starts = np.flatnonzero(np.diff(ring, prepend=-1))
    return np.stack([row[order], column[order]], 1).astype(np.float64), ring, label[order][starts]


def _corners(padded: Labels) -> tuple[Ints, Ints, Ints, Ints, Ints]:
    """Find the corners, row by row: row, column, whether they lead down (1) or up (-1), right or left, and the label.

    A corner leads along the sides of the one cell of four that differs; of two that touch diagonally there are two
    corners, along the set cells where these are different foci, along the others where they are one.
    """
    rows, columns = padded.shape
    around = {
        (v, h): padded[below : rows - 1 + below, beside : columns - 1 + beside]
        for (v, h), (below, beside) in zip(_SIDES, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)
    }
    count = sum((cells > 0).astype(np.int8) for cells in around.values())
    is_diagonal = (count == 2) & ((around[-1, -1] > 0) == (around[1, 1] > 0))  # noqa: PLR2004  of four cells
    at = np.nonzero(is_diagonal)  # labels are compared and looked up where they matter alone, as maps may be large
    is_one_focus = np.zeros(around[1, 1].shape, np.bool_)
    is_one_focus[at] = _either(around[-1, -1], around[-1, 1], at) == _either(around[1, 1], around[1, -1], at)
    parts = []
    for (v, h), cells in around.items():
        is_odd = ((cells > 0) & (count == 1)) | ((cells == 0) & (count == 3))  # noqa: PLR2004  of four cells
        is_odd |= is_diagonal & ((cells > 0) != is_one_focus)
        row, column = np.nonzero(is_odd)
        label = np.where(cells[row, column] > 0, cells[row, column], around[v, -h][row, column])
        parts.append(np.stack([row, column, np.full_like(row, v), np.full_like(row, h), label]))
    found = np.concatenate(parts, 1)
    row, column, down, right, label = found[:, np.lexsort((found[3], found[1], found[0]))]
    return row, column, down, right, label


def _either(one: Labels, other: Labels, at: tuple[Ints, ...]) -> Labels:
    """Return the label of the set cell of two at some places."""
    found: Labels = np.maximum(one[at], other[at])
    return found


def _partners(line: Ints, place: Ints, direction: Ints) -> Ints:
    """Return for every corner the one at the other end of its piece of boundary along a row or a column."""
    order = np.lexsort((direction, place, line)).reshape(-1, 2)
    partners = np.empty(len(line), np.int64)
    partners[order[:, 0]], partners[order[:, 1]] = order[:, 1], order[:, 0]
    return partners


def _walked(along_row: list[int], along_column: list[int]) -> tuple[Ints, Ints]:
    """Walk along rows and columns in turns until every corner was passed: the order, and the ring of each in it."""
    order: list[int] = []
    ring: list[int] = []
    count = 0
    passed = bytearray(len(along_row))
    for start in range(len(along_row)):
        at = start
        while not passed[at]:
            across = along_row[at]
            passed[at] = passed[across] = 1
            order += (at, across)
            ring += (count, count)
            at = along_column[across]
        count = ring[-1] + 1
    return np.asarray(order), np.asarray(ring)
