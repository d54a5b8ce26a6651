"""What to read of a slide and ask of a model: tiles, or for dense maps windows that cover tissue and little else."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wsiseg.mathematics.grid import Grid
from wsiseg.model_file.model_file import ModelFile
from wsiseg.model_file.onnx_session import CPU, TILES_AT_ONCE, WINDOW_PX, WINDOWS_AT_ONCE
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue import TissueMask

Cells = tuple[int, int, int, int]
"""First row, first column, rows and columns of a window."""

BATCH = 16
"""Tiles that a CPU computes at once; windows go one by one."""

_STRIP_PX = 8192  # width of what is gone through from the top: decoded tiles of two rows of it can be kept

OVERLAP_PX = 256
"""What neighbouring windows share: with 192 seams show in maps of `default`, whose heads saw tiles amid tissue."""

_SURROUND_PX = 32


@dataclass(frozen=True)
class Plan:
    """What to read of a slide and to ask of a model."""

    grid: Grid  # the cells of the map
    wanted: NDArray[np.bool_]  # bool[rows, columns], the cells that are to be looked at
    windows: tuple[Cells, ...]  # the cells under each window
    is_dense: bool  # the model answers for every cell of a window; otherwise each is one tile and one cell
    tile_cells: int = 1  # side in cells of the tiles that dense values stand for; 1 for the cells alone
    batch: int = 1  # windows that are computed at once
    runs_on: bool = False  # a batch may hold windows of several slides and is padded to its full size
    views: int = 1  # views of each window that are asked about

    def shape_px(self, number: int) -> tuple[int, int]:
        """Return height and width of a window."""
        if not self.is_dense:
            return self.grid.tile_px, self.grid.tile_px
        _, _, rows, columns = self.windows[number]
        return rows * self.grid.stride_px, columns * self.grid.stride_px

    @cached_property
    def cells(self) -> NDArray[np.int64]:
        """The windows as int64[n, 4]."""
        return np.array(self.windows, np.int64).reshape(-1, 4)

    @property
    def mark(self) -> str:
        """A short text that changes whenever the windows or their order do."""
        return hashlib.sha256(self.cells.tobytes()).hexdigest()

    def tiles(self, windows: slice = slice(None)) -> int:
        """Count the tiles that windows amount to; a window of a dense map is as many as its area holds."""
        if not self.is_dense:
            return len(self.windows[windows])
        per_cell = (self.grid.stride_px / self.grid.tile_px) ** 2
        return sum(max(1, round(rows * columns * per_cell)) for _, _, rows, columns in self.windows[windows])


def plan_tiles(slide: Slide, tissue: TissueMask, model: ModelFile, min_tissue: float) -> Plan:
    """Plan one probability for every tile that holds at least the share `min_tissue` of tissue."""
    side, runs_on = model.card.tile_px, model.provider != CPU
    grid = Grid(slide.size_px, slide.mpp, side, side, model.card.mpp)
    wanted = _wanted(tissue, grid, min_tissue)
    cells = np.argwhere(wanted)
    strips = cells[:, 1] * side // _STRIP_PX
    windows = tuple((row, column, 1, 1) for row, column in cells[np.argsort(strips, kind="stable")].tolist())
    return Plan(grid, wanted, windows, is_dense=False, batch=_tiles_at_once(runs_on), runs_on=runs_on)


def _tiles_at_once(runs_on: bool) -> int:  # noqa: FBT001  it is the whole question
    return TILES_AT_ONCE if runs_on else BATCH


def plan_windows(slide: Slide, tissue: TissueMask, model: ModelFile, min_tissue: float) -> Plan:
    """Plan one probability for every output cell of a dense model that holds at least the share `min_tissue`."""
    card, runs_on = model.card, model.provider != CPU
    stride = card.output_stride or card.tile_px
    wanted = _wanted(tissue, Grid(slide.size_px, slide.mpp, stride, stride, card.mpp), min_tissue)
    sizes = WINDOW_PX // stride, OVERLAP_PX // stride, -(-_SURROUND_PX // stride)
    multiple, batch = -(-32 // stride), WINDOWS_AT_ONCE if runs_on else 1
    if card.window_px is not None:
        sizes, multiple, batch = (card.window_px // stride, 0, 0), card.window_px // stride, _tiles_at_once(runs_on)
    # The same on every device: what a window shows around a cell is part of the answer.
    windows = tuple(windows_over(wanted, *sizes, multiple=multiple))
    if runs_on:  # by size: for every change of it CUDA chooses its algorithms anew, for a tenth of a second and more
        windows = tuple(sorted(windows, key=lambda cells: (-cells[2] * cells[3], cells[2])))
    tile_cells = card.tile_px // stride if card.map_cells == "tiles" else 1
    grid = Grid(slide.size_px, slide.mpp, card.tile_px, stride, card.mpp)
    return Plan(grid, wanted, windows, is_dense=True, tile_cells=tile_cells, batch=batch, runs_on=runs_on)


def _wanted(tissue: TissueMask, cells: Grid, min_tissue: float) -> NDArray[np.bool_]:
    return tissue.share(cells) >= max(min_tissue, 1e-6)


def windows_over(wanted: NDArray[np.bool_], side: int, overlap: int, surround: int, multiple: int) -> Iterator[Cells]:
    """Cover the wanted cells (bool[rows, columns]) with windows no larger than needed, in bands from the top.

    Sides are multiples of `multiple`, `side` cells at most. Neighbours share `overlap` cells, and around what is wanted
    there are `surround` cells.
    """
    for top, rows in spans_over(np.asarray(wanted.any(1)), side, overlap, surround, multiple):
        part = np.asarray(wanted[top : top + rows].any(0))
        for left, columns in spans_over(part, side, overlap, surround, multiple):
            yield top, left, rows, columns


def spans_over(
    wanted: NDArray[np.bool_], side: int, overlap: int, surround: int, multiple: int
) -> Iterator[tuple[int, int]]:
    """Cover the wanted places of a line: first place and length of each span.

    Spans end in gaps where they can: what nobody wants is not computed.
    """
    places = np.nonzero(wanted)[0]
    margin, gap = overlap // 2, 2 * surround
    seam: int | None = None  # where the next span begins if it goes on from the last one
    while places.size:
        begin = max(0, int(places[0]) - surround) if seam is None else seam
        inside = places[places < begin + side - margin]
        if _goes_on(places, inside.size, gap):
            breaks = 1 + np.nonzero(np.diff(inside) > gap)[0]
            inside = inside[: breaks[-1]] if breaks.size and inside[breaks[-1] - 1] > begin + side // 2 else inside
        is_cut = _goes_on(places, inside.size, gap)
        needed = side if is_cut else int(inside[-1]) + 1 + surround - begin
        yield begin, min(side, -(-needed // multiple) * multiple)
        places = places[inside.size :]
        seam = begin + side - overlap if is_cut else None


def _goes_on(places: NDArray[np.integer], count: int, gap: int) -> bool:
    """Tell whether the places go on behind the first `count` of them without a gap."""
    return count < len(places) and int(places[count]) - int(places[count - 1]) <= gap
