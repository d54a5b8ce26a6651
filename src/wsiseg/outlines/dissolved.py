"""Outlines of sets of heatmap cells, as polygons in level-0 pixels."""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray


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
    if not mask.any():
        return []
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    change = np.diff(padded, axis=1)
    rows, begin = np.nonzero(change == 1)
    _, end = np.nonzero(change == -1)
    x0, x1 = (np.round(c * step_px[0] + offset_px[0]) for c in (begin, end))
    y0, y1 = (np.round(r * step_px[1] + offset_px[1]) for r in (rows, rows + 1))
    merged = shapely.union_all(shapely.box(x0, y0, x1, y1))
    parts = shapely.get_parts(shapely.simplify(merged, 0))
    return sorted((part for part in parts if part.area > 0), key=lambda part: -float(part.area))
