"""Outlines of sets of heatmap cells, as polygons in level-0 pixels."""

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray


def outlines(
    mask: NDArray[np.bool_], step_px: tuple[float, float], offset_px: tuple[float, float] = (0.0, 0.0)
) -> list[Any]:
    """Trace the set cells of a mask into polygons with holes.

    Neighbouring cells are dissolved, so a polygon is one connected focus; cells that touch only at a corner are apart.

    Args:
        mask: bool[rows, columns].
        step_px: Width and height of a cell.
        offset_px: Where the first cell's corner lies.

    Returns:
        Valid shapely polygons, largest first, corners rounded to whole pixels.
    """
    parts = shapely.get_parts(labelled_outlines(mask, step_px, offset_px)[0])
    areas = shapely.area(parts)
    return [parts[number] for number in np.argsort(-areas, kind="stable") if areas[number] > 0]


def labelled_outlines(
    mask: NDArray[np.bool_], step_px: tuple[float, float], offset_px: tuple[float, float] = (0.0, 0.0)
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Trace the set cells of a mask as `outlines` does, and say which cells lie in which polygon.

    Returns:
        One geometry for each focus, in the order of its first cell, and the number of each cell's focus: int32[rows,
        columns], counted from 1, 0 outside. A focus of cells finer than a pixel may be a MultiPolygon, or empty.
    """
    from scipy import ndimage  # noqa: PLC0415  the same

    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=labels)
    faces = shapely.get_parts(shapely.polygonize(shapely.linestrings(_boundary(mask))))
    column, row = shapely.get_coordinates(shapely.point_on_surface(faces)).astype(int).T
    label = labels[row, column]  # 0 of a hole
    order = np.argsort(label)[np.count_nonzero(label == 0) :]
    foci = shapely.transform(faces[order], lambda corners: np.round(corners * step_px + offset_px))
    if min(step_px) < 1:  # then rounded corners may fall together
        foci = shapely.make_valid(foci, method="structure", keep_collapsed=False)
    return foci, labels


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the boundary of the set cells as straight pieces from corner to corner: float64[n, 2, 2], ends as x, y."""
    padded = np.pad(mask, 1)
    across, down = padded[1:, 1:] != padded[:-1, 1:], padded[1:, 1:] != padded[1:, :-1]  # from a lattice point on
    is_corner = (across | np.pad(across, ((0, 0), (1, 0)))[:, :-1]) & (down | np.pad(down, ((1, 0), (0, 0)))[:-1])
    return np.concatenate([_pieces(across, is_corner)[..., ::-1], _pieces(down.T, is_corner.T)])


def _pieces(edges: NDArray[np.bool_], corners: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the pieces along lines of lattice points, each from a corner that an edge leaves to the next corner."""
    line, place = np.nonzero(corners)
    begin = np.flatnonzero(edges[line, place])
    return np.stack([np.stack([line[at], place[at]], 1) for at in (begin, begin + 1)], 1).astype(np.float64)
