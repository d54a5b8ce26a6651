"""From a slide and its tissue to tumour probabilities: by tiles, or densely by windows far larger than a tile.

Both are one loop: read a window, ask the model, add what it says to the cells under the window, weighted. In the end a
cell is the weighted mean of all that was said of it.

Dense: a cell of most models' maps is the probability of the tile around it; each becomes the mean of the tiles over
it, so that one pass gives what overlapping tiles would. Windows overlap, and weights fall off towards a window's
border, where the network lacks context; so no seam shows.
"""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wsiseg.mathematics.grid import Grid, mean_of_tiles
from wsiseg.model_file.model_file import ModelFile
from wsiseg.prediction.views import Asked
from wsiseg.prediction.windows import Cells, windows_over
from wsiseg.run.errors import SlideError
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue import TissueMask

BATCH = 16
"""Tiles that are computed at once; windows go one by one."""

_READERS = 2
_AHEAD = 4  # batches that are read before they are needed
_WINDOW_PX, _OVERLAP_PX, _SURROUND_PX = 1152, 128, 32
_LEAST_WEIGHT = 0.05


@dataclass(frozen=True)
class Plan:
    """What to read of a slide and to ask of a model.

    Attributes:
        grid: The cells of the map.
        wanted: bool[rows, columns], the cells that are to be looked at.
        windows: The cells under each window.
        is_dense: True if the model gives a value for every cell of a window, False if one for all of them.
        tile_cells: Side in cells of the tiles that these values stand for; 1 where they stand for the cells alone.
    """

    grid: Grid
    wanted: NDArray[np.bool_]
    windows: tuple[Cells, ...]
    is_dense: bool
    tile_cells: int = 1

    @property
    def batch(self) -> int:
        """Windows that are computed at once."""
        return 1 if self.is_dense else BATCH

    @property
    def side_px(self) -> int:
        """Side of a tile in the model's pixels."""
        return self.grid.tile_px

    @property
    def mark(self) -> str:
        """A short text that changes whenever the windows or their order do."""
        return hashlib.sha256(np.array(self.windows, np.int64).tobytes()).hexdigest()

    def tiles(self, windows: slice = slice(None)) -> int:
        """Count the tiles that windows amount to; a window of a dense map is as many as its area holds."""
        if not self.is_dense:
            return len(self.windows[windows])
        per_cell = (self.grid.stride_px / self.side_px) ** 2
        return sum(max(1, round(rows * columns * per_cell)) for _, _, rows, columns in self.windows[windows])


@dataclass
class Sums:
    """What was said of the cells so far; saved and loaded to go on where an interrupted run stopped.

    Attributes:
        total: float32[rows, columns], weighted sum of probabilities.
        weight: float32[rows, columns], sum of weights.
        done: Windows that are in it, from the first.
    """

    total: NDArray[np.float32]
    weight: NDArray[np.float32]
    done: int = 0

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> "Sums":
        """Begin with nothing."""
        return cls(np.zeros(shape, np.float32), np.zeros(shape, np.float32))

    def add(self, cells: Cells, values: NDArray[np.float32], weight: NDArray[np.float32]) -> None:
        """Add values (float32[rows, columns]) with their weights to the cells of a window."""
        row, column, rows, columns = cells
        place = np.s_[row : row + rows, column : column + columns]
        seen = self.total[place].shape
        self.total[place] += (values * weight)[: seen[0], : seen[1]]
        self.weight[place] += weight[: seen[0], : seen[1]]


@dataclass(frozen=True)
class Window:
    """A window that was read.

    Attributes:
        image: uint8[height, width, 3].
        readable: bool[rows, columns], False for cells near something that could not be read.
    """

    image: NDArray[np.uint8]
    readable: NDArray[np.bool_] = field(repr=False)


def plan_tiles(
    slide: Slide, tissue: TissueMask, model: ModelFile, min_tissue: float, stride: int | None = None
) -> Plan:
    """Plan one probability per tile; with a stride below the tile's side each cell averages the tiles over it.

    Args:
        slide: The slide.
        tissue: Where it holds tissue.
        model: What will be asked.
        min_tissue: Least share of tissue in a tile that is looked at.
        stride: Distance of tiles and side of a cell, in the model's pixels.
    """
    side = model.card.tile_px
    grid = Grid(slide.size_px, slide.mpp, side, stride or side, model.card.mpp)
    looked_at = tissue.share(grid) >= max(min_tissue, 1e-6)
    span = -(-side // grid.stride_px)
    windows = tuple((int(row), int(column), span, span) for row, column in np.argwhere(looked_at))
    return Plan(grid, _wanted(slide, tissue, grid, min_tissue) if span > 1 else looked_at, windows, is_dense=False)


def plan_windows(slide: Slide, tissue: TissueMask, model: ModelFile, min_tissue: float) -> Plan:
    """Plan one probability per output cell of the model.

    Args:
        slide: The slide.
        tissue: Where it holds tissue.
        model: What will be asked; it must have a map.
        min_tissue: Least share of tissue in a cell that is looked at.
    """
    stride = model.card.output_stride or model.card.tile_px
    grid = Grid(slide.size_px, slide.mpp, model.card.tile_px, stride, model.card.mpp)
    wanted = _wanted(slide, tissue, grid, min_tissue)
    per_32px = -(-32 // stride)
    sizes = _WINDOW_PX // stride, _OVERLAP_PX // stride, -(-_SURROUND_PX // stride)
    tile_cells = model.card.tile_px // stride if model.card.map_cells == "tiles" else 1
    return Plan(grid, wanted, tuple(windows_over(wanted, *sizes, per_32px)), is_dense=True, tile_cells=tile_cells)


def run(
    slide: Slide,
    plan: Plan,
    model: Asked,
    sums: Sums,
    after: Callable[[Sums, int, float], None],
) -> NDArray[np.float32]:
    """Carry out a plan.

    Args:
        slide: The slide.
        plan: What to read and ask.
        model: What to ask.
        sums: What is known already; it is added to.
        after: Called after every batch with the sums, the number of further tiles, and the seconds that were spent
            waiting for them to be read.

    Returns:
        float32[rows, columns], NaN where nobody looked or nothing could be read.
    """
    for number, windows, waited in _read_ahead(slide, plan, sums.done):
        images = np.stack([window.image for window in windows])
        values = model.probability_map(images) if plan.is_dense else model.probabilities(images)[:, None, None]
        for cells, window, value in zip(plan.windows[number : number + len(windows)], windows, values, strict=True):
            sums.add(cells, np.broadcast_to(value, cells[2:]), _weight(plan, cells) * window.readable)
        sums.done = number + len(windows)
        after(sums, plan.tiles(slice(number, sums.done)), waited)
    known = plan.wanted & (sums.weight > 0)
    values = np.where(known, sums.total / np.where(known, sums.weight, 1), np.nan).astype(np.float32)
    if plan.tile_cells == 1:
        return values
    return np.where(known, mean_of_tiles(values, known, plan.tile_cells), np.nan).astype(np.float32)


def _wanted(slide: Slide, tissue: TissueMask, grid: Grid, min_tissue: float) -> NDArray[np.bool_]:
    cell = Grid(slide.size_px, slide.mpp, grid.stride_px, grid.stride_px, grid.tile_mpp)
    return tissue.share(cell) >= max(min_tissue, 1e-6)


def _weight(plan: Plan, cells: Cells) -> NDArray[np.float32]:
    """Give the weights of a window's cells."""
    rows, columns = cells[2:]
    if plan.is_dense:
        ramp = [np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) for n in (rows, columns)]
        fall = _OVERLAP_PX / plan.grid.stride_px
        parts = [np.clip(distance / fall, _LEAST_WEIGHT, 1) for distance in ramp]
    else:
        # The share of a cell that lies under the tile.
        parts = [np.clip(plan.side_px / plan.grid.stride_px - np.arange(n), 0, 1) for n in (rows, columns)]
    weight: NDArray[np.float32] = np.outer(*parts).astype(np.float32)
    return weight


def _read_ahead(slide: Slide, plan: Plan, begin: int) -> Iterator[tuple[int, list[Window], float]]:
    """Read windows before they are needed, in order.

    Yields:
        The number of the first window of a batch, the batch, and the seconds that were spent waiting for it.
    """
    size = plan.batch
    corners = plan.grid.corners(np.array([cells[:2] for cells in plan.windows]).reshape(-1, 2))

    def read(first: int) -> list[Window]:
        return [_read(slide, plan, k, corners[k]) for k in range(first, min(first + size, len(plan.windows)))]

    waiting: deque[tuple[int, Future[list[Window]]]] = deque()
    with ThreadPoolExecutor(_READERS, "reader") as pool:
        for first in range(begin, len(plan.windows), size):
            waiting.append((first, pool.submit(read, first)))
            if len(waiting) >= _AHEAD:
                number, reading = waiting.popleft()
                yield number, *_finished(reading)
        for number, reading in waiting:
            yield number, *_finished(reading)


def _finished(reading: "Future[list[Window]]") -> tuple[list[Window], float]:
    """Wait for a batch: what was read, and the seconds that it took to come."""
    began = time.monotonic()
    return reading.result(), time.monotonic() - began


def _read(slide: Slide, plan: Plan, number: int, corner: NDArray[np.int32]) -> Window:
    """Read a window; where that fails, read it tile by tile and mark the cells near a tile that cannot be read."""
    rows, columns = plan.windows[number][2:]
    x, y = int(corner[0]), int(corner[1])
    stride = plan.grid.stride_px
    size = (columns * stride, rows * stride) if plan.is_dense else (plan.side_px, plan.side_px)
    readable = np.ones((rows, columns), np.bool_)
    try:
        return Window(slide.read(x, y, size, plan.grid.tile_mpp), readable)
    except SlideError:
        if not plan.is_dense:
            return Window(np.full((*size, 3), 255, np.uint8), ~readable)
        return _read_by_parts(slide, plan, (x, y), size)


def _read_by_parts(slide: Slide, plan: Plan, corner: tuple[int, int], size: tuple[int, int]) -> Window:
    width, height = size
    part, stride = plan.side_px, plan.grid.stride_px
    image = np.full((height, width, 3), 255, np.uint8)
    readable = np.ones((height // stride, width // stride), np.bool_)
    reach = part // stride // 2
    per_px = (plan.grid.tile_mpp / slide.mpp[0], plan.grid.tile_mpp / slide.mpp[1])
    for top in range(0, height, part):
        for left in range(0, width, part):
            shape = (min(part, width - left), min(part, height - top))
            try:
                pixels = slide.read(
                    corner[0] + left * per_px[0], corner[1] + top * per_px[1], shape, plan.grid.tile_mpp
                )
                image[top : top + shape[1], left : left + shape[0]] = pixels
            except SlideError:
                # Every cell whose tile-sized surroundings touch this part would see what is not there.
                rows = slice(max(top // stride - reach, 0), (top + shape[1]) // stride + reach)
                readable[rows, max(left // stride - reach, 0) : (left + shape[0]) // stride + reach] = False
    return Window(image, readable)
