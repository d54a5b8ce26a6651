"""Pure geometry: tile positions, and the ways between level-0 pixels, tiles, heatmap cells and micrometers.

Frames of reference: `x, y` are level-0 pixels of the slide; `row, column` count cells; lengths ending in `_um` are
micrometers. No position is a sum of rounded steps: cell k begins at `k * stride_um`, rounded only at the end.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.run.errors import UsageError

Table = NDArray[np.int64] | NDArray[np.float64]
_LEAST_AREA = 1e-12  # of the last tile where float noise puts it beyond the slide
_MASK_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Grid:
    """Cells of one stride that cover a slide from its level-0 corner; a tile starts at the corner of each cell.

    Raises:
        UsageError: A size or pixel size is not positive, or the stride exceeds the tile.
    """

    size_px: tuple[int, int]  #: width and height of the slide in level-0 pixels
    mpp: tuple[float, float]  #: micrometers per level-0 pixel along x and y
    tile_px: int  #: side of a tile in pixels of `tile_mpp`
    stride_px: int  #: distance between neighbouring tiles, and side of a cell, in pixels of `tile_mpp`
    tile_mpp: float  #: micrometers per tile pixel

    def __post_init__(self) -> None:
        numbers = (*self.size_px, *self.mpp, self.tile_px, self.stride_px, self.tile_mpp)
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise UsageError(f"a grid needs positive sizes, not {numbers}")
        if self.stride_px > self.tile_px:
            raise UsageError(f"stride {self.stride_px} leaves gaps between tiles of {self.tile_px} pixels")

    @property
    def stride_um(self) -> float:
        """Side of a cell in micrometers."""
        return self.stride_px * self.tile_mpp

    @property
    def tile_um(self) -> float:
        """Side of a tile in micrometers."""
        return self.tile_px * self.tile_mpp

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; together the cells cover every level-0 pixel, the last ones may reach beyond the slide."""
        width, height = (size * mpp / self.stride_um for size, mpp in zip(self.size_px, self.mpp, strict=True))
        return _cells(height), _cells(width)

    @property
    def stride_level0(self) -> tuple[float, float]:
        """Side of a cell along x and y in level-0 pixels, not rounded."""
        return self.stride_um / self.mpp[0], self.stride_um / self.mpp[1]

    @property
    def tile_level0(self) -> tuple[float, float]:
        """Side of a tile along x and y in level-0 pixels, not rounded."""
        return self.tile_um / self.mpp[0], self.tile_um / self.mpp[1]

    def corners(self, cells: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return the level-0 corners x, y (int32[n, 2]) of the tiles at `cells` (row, column; int[n, 2])."""
        corners: NDArray[np.int32] = np.round(cells[:, ::-1] * np.array(self.stride_level0)).astype(np.int32)
        return corners

    def cells(self, corners: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return row, column (int32[n, 2]) of the tiles with these level-0 corners (int[n, 2])."""
        cells: NDArray[np.int32] = np.round(corners / np.array(self.stride_level0)).astype(np.int32)[:, ::-1]
        return cells

    def cell_at(self, x: float, y: float) -> tuple[int, int]:
        """Return row and column of the cell that holds the level-0 point x, y."""
        step_x, step_y = self.stride_level0
        return int(y // step_y), int(x // step_x)


def _cells(count: float) -> int:
    """Round up, forgiving float noise: 2.0000000001 cells are 2."""
    return max(1, math.ceil(count - 1e-6))


def share_of_cells(
    mask: NDArray[np.bool_] | NDArray[np.float32], mask_px: tuple[float, float], grid: Grid
) -> NDArray[np.float32]:
    """Return the share of every tile of a grid that is set in a mask: float32[rows, columns] in 0..1.

    It is exact, by the summed-area table of the mask, which covers the slide from its level-0 corner; `mask_px` is
    width and height of its pixels in level-0 pixels. Of a tile that reaches beyond the slide, only the part on the
    slide counts: tissue at the border is not lost. Pixels may be set in part, 0..1.
    """
    rows, columns = grid.shape
    (step_x, step_y), (tile_x, tile_y) = grid.stride_level0, grid.tile_level0
    top = np.arange(rows, dtype=np.float64) * (step_y / mask_px[1])
    left = np.arange(columns, dtype=np.float64) * (step_x / mask_px[0])
    below, right = top + tile_y / mask_px[1], left + tile_x / mask_px[0]
    widths = np.minimum(right, mask.shape[1]) - left
    share = np.empty((rows, columns), np.float32)
    at_once = max(1, int(_MASK_ROWS_AT_ONCE * mask_px[1] / step_y))
    for row in range(0, rows, at_once):  # a table of the whole mask would take many times its memory
        band = np.s_[row : row + at_once]
        first = min(int(top[row]), mask.shape[0] - 1)
        table = _summed(mask[first : math.ceil(below[band][-1]) + 1])
        upper, lower = top[band] - first, below[band] - first
        total = _sums(table, lower, right) - _sums(table, upper, right)
        total = total - _sums(table, lower, left) + _sums(table, upper, left)
        heights = np.minimum(below[band], mask.shape[0]) - top[band]
        share[band] = np.clip(total / np.maximum(heights[:, None] * widths[None, :], _LEAST_AREA), 0, 1)
    return share


def _summed(mask: NDArray[np.bool_] | NDArray[np.float32]) -> Table:
    """Return the summed-area table of a mask, [rows + 1, columns + 1]."""
    kind = np.int64 if mask.dtype == np.bool_ else np.float64
    table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), kind)
    table[1:, 1:] = mask.cumsum(0, dtype=kind).cumsum(1)
    return table


def _sums(table: Table, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Read a summed-area table at fractional rows and columns (bilinear, which is exact for constant pixels)."""
    r, c = np.clip(rows, 0, table.shape[0] - 1), np.clip(columns, 0, table.shape[1] - 1)
    r0, c0 = np.minimum(r.astype(int), table.shape[0] - 2), np.minimum(c.astype(int), table.shape[1] - 2)
    fr, fc = (r - r0)[:, None], (c - c0)[None, :]
    above = table[np.ix_(r0, c0)] * (1 - fc) + table[np.ix_(r0, c0 + 1)] * fc
    beneath = table[np.ix_(r0 + 1, c0)] * (1 - fc) + table[np.ix_(r0 + 1, c0 + 1)] * fc
    sums: NDArray[np.float64] = above * (1 - fr) + beneath * fr
    return sums


def tile_window(cells: int) -> NDArray[np.float32]:
    """Return the weights, along one axis, of the cells around a cell that make up a tile: float32[odd number].

    An even number of cells is centred by giving the outermost cell on either side half its weight.
    """
    window = np.ones(cells + 1 - cells % 2, np.float32)
    if cells % 2 == 0:
        window[[0, -1]] = 0.5
    return window


def mean_of_tiles(values: NDArray[np.float32], known: NDArray[np.bool_], cells: int) -> NDArray[np.float32]:
    """Return for each cell the mean of the tiles over it: float32[rows, columns], NaN where none of them is known.

    `values` are those of the tile around each cell, a tile so many `cells` wide; what is not `known` may be anything.
    """
    window = tile_window(cells)
    counted = known.astype(np.float32)
    total, weight = (_summed_around(part, window) for part in (np.where(known, values, 0).astype(np.float32), counted))
    mean: NDArray[np.float32] = np.where(weight > 0, total / np.where(weight > 0, weight, 1), np.nan).astype(np.float32)
    return mean


def _summed_around(values: NDArray[np.float32], window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum up values over a symmetric window along both axes; beyond the edge there is nothing."""
    return _summed_along(_summed_along(values.T, window).T, window)


def _summed_along(values: NDArray[np.float32], window: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sum up every row over a window; SciPy would do it at once, but loading it takes longer."""
    reach, (rows, columns) = len(window) // 2, values.shape
    summed = np.empty((rows, columns), np.float32)
    for row in range(0, rows, _MASK_ROWS_AT_ONCE):  # the sums are numbers of 8 bytes
        band = np.s_[row : row + _MASK_ROWS_AT_ONCE]
        wide = np.pad(values[band].astype(np.float64), ((0, 0), (reach, reach)))
        total = wide[:, reach : reach + columns] * window[reach]
        for step in range(reach):
            total += (wide[:, step : step + columns] + wide[:, 2 * reach - step :][:, :columns]) * window[step]
        summed[band] = total
    return summed


def block_means(values: NDArray[Any], counted: NDArray[np.bool_], side: int) -> NDArray[np.float32]:
    """Average what counts in blocks of `side` x `side` values, the last ones cut; NaN where nothing does."""
    starts = [np.arange(0, size, side) for size in values.shape]
    count, total = (
        np.add.reduceat(np.add.reduceat(one.astype(np.float64), starts[0], axis=0), starts[1], axis=1)
        for one in (counted, np.where(counted, values, 0))
    )
    means: NDArray[np.float32] = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0).astype(
        np.float32
    )
    return means


def connected_parts(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the connected parts of a mask, bool[rows, columns]; cells that touch only at a corner are apart.

    Returns:
        int32[rows, columns], the parts numbered from 1 in the order of their first cells, 0 outside; and how many.
    """
    flat = np.pad(mask, ((0, 0), (0, 1))).ravel()  # so that no run of set cells goes on from one row into the next
    width, changes = mask.shape[1] + 1, np.flatnonzero(np.diff(flat, prepend=False))
    begins, ends = changes[::2], changes[1::2]
    # The runs of the row above that each run touches lie side by side.
    first = np.searchsorted(ends + width, begins, side="right")
    touched = np.searchsorted(begins + width, ends, side="left") - first
    run = np.repeat(np.arange(len(begins)), touched)
    above = np.arange(len(run)) - np.repeat(np.cumsum(touched) - touched - first, touched)
    part = np.arange(len(begins))  # of each run, the first run that it is known to be connected with
    while (part[run] != part[above]).any():
        np.minimum.at(part, np.maximum(part[run], part[above]), np.minimum(part[run], part[above]))
        while (part[part] != part).any():
            part = part[part]
    numbers = np.cumsum(part == np.arange(len(part)), dtype=np.int32)
    parts = np.zeros(mask.shape, np.int32)
    parts[mask] = np.repeat(numbers[part], ends - begins)
    return parts, int(numbers[-1]) if len(numbers) else 0


def sizes_of_parts(parts: NDArray[np.signedinteger], count: int) -> NDArray[np.int64]:
    """Count the cells of each of so many parts, int[rows, columns]: int64[count + 1], first those of none (0)."""
    sizes = np.zeros(count + 1, np.int64)
    for row in range(0, len(parts), _MASK_ROWS_AT_ONCE):  # NumPy makes numbers of 8 bytes of what it counts
        sizes += np.bincount(parts[row : row + _MASK_ROWS_AT_ONCE].ravel(), minlength=count + 1)
    return sizes
