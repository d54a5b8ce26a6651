"""Areas of a slide, as polygons or as the pixels of a mask, and truth made of them: what they cover of grid cells.

Nothing is rasterised. For a polygon, Green's theorem gives the area of its part in a cell as a sum over the pieces of
its boundary: the boundary is cut at the lines of the grid, so that each piece lies in one cell; there it bounds an area
of its own, and all of the cells to its left in the same row.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import shapely
from numpy.typing import NDArray

from wsiseg.mathematics.grid import connected_parts

Floats = NDArray[np.float64]
_SURFACE = 2
_ROWS_AT_A_TIME = 1024  # of a mask, held as numbers


def polygon_area(geometry: Any, x_edges: Floats, y_edges: Floats) -> Floats:  # noqa: ANN401  a shapely geometry
    """Measure how much of every cell a polygon covers.

    Args:
        geometry: A valid shapely Polygon or MultiPolygon; it may reach beyond the grid.
        x_edges: float64[columns + 1], ascending.
        y_edges: float64[rows + 1], ascending.

    Returns:
        float64[rows, columns], the covered area in squared units of the edges, exact but for rounding.
    """
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
    """Cut segments at all grid lines; return the middles (float64[n, 2]) and signed heights (float64[n]) of pieces."""
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
    """Return for every crossing of a segment with a line which segment it is, and at which share of its length."""
    low, high = np.minimum(begin, end), np.maximum(begin, end)
    first, after = np.searchsorted(lines, low, side="right"), np.searchsorted(lines, high, side="left")
    counts = np.maximum(after - first, 0)
    segment = np.repeat(np.arange(len(begin)), counts)
    within = np.arange(len(segment)) - np.repeat(np.cumsum(counts) - counts, counts)
    line = lines[first[segment] + within]
    return segment, (line - begin[segment]) / (end - begin)[segment]


@dataclass(frozen=True)
class Polygons:
    """An area bounded by polygons."""

    geometry: Any  # a valid shapely Polygon or MultiPolygon in level-0 pixels

    @property
    def total(self) -> float:
        """The whole area in level-0 pixels."""
        return float(self.geometry.area)

    def covered(self, x_edges: Floats, y_edges: Floats) -> Floats:
        """Measure how much of every cell lies in the area: float64[rows, columns], level-0 pixels."""
        return polygon_area(self.geometry, x_edges, y_edges)


@dataclass(frozen=True)
class Mask:
    """An area given by the pixels of an image."""

    pixels: NDArray[np.bool_]  # bool[rows, columns]
    step_px: tuple[float, float]  # width and height of a mask pixel in level-0 pixels
    offset_px: tuple[float, float] = (0.0, 0.0)  # level-0 x and y of the mask's corner

    @property
    def total(self) -> float:
        """The whole area in level-0 pixels."""
        return float(np.count_nonzero(self.pixels)) * self.step_px[0] * self.step_px[1]

    def covered(self, x_edges: Floats, y_edges: Floats) -> Floats:
        """Measure how much of every cell lies in the area: float64[rows, columns], level-0 pixels."""
        rows, columns = self.pixels.shape
        across = _overlaps(x_edges, columns, self.step_px[0], self.offset_px[0])
        down = _overlaps(y_edges, rows, self.step_px[1], self.offset_px[1])
        area = np.zeros((len(y_edges) - 1, len(x_edges) - 1))
        for row in range(0, rows, _ROWS_AT_A_TIME):
            part = slice(row, row + _ROWS_AT_A_TIME)
            area += down[:, part] @ (across @ self.pixels[part].T.astype(np.float64)).T
        return area

    @cached_property
    def geometry(self) -> Any:  # noqa: ANN401  a shapely geometry
        """The area as a valid shapely MultiPolygon in level-0 pixels."""
        area = shapely.MultiPolygon(outlines(self.pixels, (1.0, 1.0)))
        return shapely.transform(area, lambda points: points * self.step_px + self.offset_px)


Area = Polygons | Mask
"""A part of a slide."""
NOTHING = Mask(np.zeros((1, 1), np.bool_), (1.0, 1.0))


@dataclass(frozen=True)
class Truth:
    """What is known of one slide; what is neither tumour nor ignored is neither by this truth."""

    tumor: Area  # the tumour, without what is ignored, in level-0 pixels of OpenSlide's frame
    ignored: Area = NOTHING  # what is left out of all measures; it shares nothing with `tumor`
    notes: tuple[str, ...] = ()  # what a person should know of it
    classes: frozenset[str] = frozenset()  # the classes of its outlines, or the names of its labels, whatever they mean

    def covered(self, x_edges: Floats, y_edges: Floats) -> tuple[Floats, Floats]:
        """Measure how much of every cell is tumour and how much is ignored: float64[rows, columns], level-0 pixels."""
        return self.tumor.covered(x_edges, y_edges), self.ignored.covered(x_edges, y_edges)

    def inside(self, region: Area, size_px: tuple[int, int]) -> Self:
        """Ignore everything outside a region of a slide of this width and height."""
        outside = shapely.difference(shapely.box(0, 0, *size_px), region.geometry)
        tumor = _surface(shapely.intersection(self.tumor.geometry, region.geometry))
        return replace(self, tumor=tumor, ignored=_surface(shapely.union(self.ignored.geometry, outside)))


def _surface(geometry: Any) -> Polygons:  # noqa: ANN401  a shapely geometry
    """Leave out points and lines, along which areas only touch."""
    parts = shapely.get_parts(geometry)
    return Polygons(shapely.union_all(parts[shapely.get_dimensions(parts) == _SURFACE]))


def _overlaps(edges: Floats, count: int, step: float, offset: float) -> Any:  # noqa: ANN401  a sparse array
    """Return the length of every cell that lies in every mask pixel: float64[cells, count], sparse."""
    from scipy.sparse import csr_array  # noqa: PLC0415  heavy: only where masks are measured

    lines = offset + step * np.arange(count + 1)
    cuts = np.unique(np.concatenate([edges, lines]))
    middle, length = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)
    cell = np.searchsorted(edges, middle, side="right") - 1
    pixel = np.searchsorted(lines, middle, side="right") - 1
    inside = (cell >= 0) & (cell < len(edges) - 1) & (pixel >= 0) & (pixel < count)
    return csr_array((length[inside], (cell[inside], pixel[inside])), shape=(len(edges) - 1, count))


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
    labels, _ = connected_parts(mask)
    faces = shapely.get_parts(shapely.polygonize(shapely.linestrings(_boundary(mask))))
    column, row = shapely.get_coordinates(shapely.point_on_surface(faces)).astype(int).T
    label = labels[row, column]  # 0 of a hole
    order = np.argsort(label)[np.count_nonzero(label == 0) :]
    foci = shapely.transform(faces[order], lambda corners: np.round(corners * step_px + offset_px))
    if min(step_px) < 1:  # then rounded corners may fall together
        foci = shapely.make_valid(foci, method="structure", keep_collapsed=False)
    return foci, labels


def _boundary(mask: NDArray[np.bool_]) -> Floats:
    """Return the boundary of the set cells as straight pieces from corner to corner: float64[n, 2, 2], ends as x, y."""
    padded = np.pad(mask, 1)
    across, down = padded[1:, 1:] != padded[:-1, 1:], padded[1:, 1:] != padded[1:, :-1]  # from a lattice point on
    is_corner = (across | np.pad(across, ((0, 0), (1, 0)))[:, :-1]) & (down | np.pad(down, ((1, 0), (0, 0)))[:-1])
    return np.concatenate([_lines(across, is_corner)[..., ::-1], _lines(down.T, is_corner.T)])


def _lines(edges: NDArray[np.bool_], corners: NDArray[np.bool_]) -> Floats:
    """Return the pieces along lines of lattice points, each from a corner that an edge leaves to the next corner."""
    line, place = np.nonzero(corners)
    begin = np.flatnonzero(edges[line, place])
    return np.stack([np.stack([line[at], place[at]], 1) for at in (begin, begin + 1)], 1).astype(np.float64)
