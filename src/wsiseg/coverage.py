"""The exact area of grid cells that polygons or the pixels of a mask cover.

Nothing is rasterised. For a polygon, Green's theorem gives the area of its part in a cell as a sum over the pieces of
its boundary: the boundary is cut at the lines of the grid, so that each piece lies in one cell; there it bounds an area
of its own, and all of the cells to its left in the same row.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def polygon_area(geometry: Any, x_edges: Floats, y_edges: Floats) -> Floats:  # noqa: ANN401  a shapely geometry
    """Measure how much of every cell a polygon covers.

    Args:
        geometry: A valid shapely Polygon or MultiPolygon; it may reach beyond the grid.
        x_edges: float64[columns + 1], ascending.
        y_edges: float64[rows + 1], ascending.

    Returns:
        float64[rows, columns], the covered area in squared units of the edges, exact but for rounding.
    """
    import shapely  # noqa: PLC0415  heavy: only where outlines are measured

    rows, columns = len(y_edges) - 1, len(x_edges) - 1
    rings = shapely.get_rings(shapely.get_parts(shapely.orient_polygons(geometry)))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    joined = ring[1:] == ring[:-1]
    middle, height = _pieces(points[:-1][joined], points[1:][joined], x_edges, y_edges)
    row = np.searchsorted(y_edges, middle[:, 1], side="right") - 1
    column = np.searchsorted(x_edges, middle[:, 0], side="right") - 1
    felt = (row >= 0) & (row < rows) & (column >= 0)  # what lies left of the grid bounds nothing in it
    middle, height, row, column = middle[felt], height[felt], row[felt], column[felt]
    left = np.append(x_edges[:-1], 0.0)[column]
    cell = row * (columns + 1) + column
    size, shape = rows * (columns + 1), (rows, columns + 1)
    own = np.bincount(cell, (middle[:, 0] - left) * height, size).reshape(shape)[:, :-1]
    crossed = np.bincount(cell, height, size).reshape(shape)
    right_of = crossed[:, ::-1].cumsum(1)[:, ::-1][:, 1:]
    cells = np.diff(y_edges)[:, None] * np.diff(x_edges)[None, :]
    area: Floats = np.clip(own + right_of * np.diff(x_edges), 0, cells)
    return area


def _pieces(begin: Floats, end: Floats, x_edges: Floats, y_edges: Floats) -> tuple[Floats, Floats]:
    """Cut segments at all grid lines; give the middles (float64[n, 2]) and signed heights (float64[n]) of pieces."""
    count = len(begin)
    cuts = [_crossings(begin[:, axis], end[:, axis], edges) for axis, edges in enumerate((x_edges, y_edges))]
    segment = np.concatenate([np.arange(count), np.arange(count), *(of for of, _ in cuts)])
    at = np.concatenate([np.zeros(count), np.ones(count), *(share for _, share in cuts)])
    order = np.lexsort((at, segment))
    segment, at = segment[order], np.clip(at[order], 0, 1)
    same = segment[1:] == segment[:-1]
    segment, first, last = segment[:-1][same], at[:-1][same], at[1:][same]
    step = (end - begin)[segment]
    middle = begin[segment] + step * ((first + last) / 2)[:, None]
    return middle, step[:, 1] * (last - first)


def _crossings(begin: Floats, end: Floats, lines: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Give for every crossing of a segment with a line: which segment, and at which share of its length."""
    low, high = np.minimum(begin, end), np.maximum(begin, end)
    first, after = np.searchsorted(lines, low, side="right"), np.searchsorted(lines, high, side="left")
    counts = np.maximum(after - first, 0)
    segment = np.repeat(np.arange(len(begin)), counts)
    within = np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)
    line = lines[first[segment] + within]
    return segment, (line - begin[segment]) / (end - begin)[segment]
