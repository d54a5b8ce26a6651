"""From a slide and its tissue to tumour probabilities: by tiles, or densely by windows far larger than a tile.

Dense: the model's map already averages its logits over a tile-sized neighbourhood of each cell, so one pass gives what
overlapping tiles would. Windows overlap, and their cells are averaged with weights that fall off towards a window's
border, where the network lacks context; so no seam shows.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsiseg.errors import SlideError
from wsiseg.grid import Grid
from wsiseg.model_file import ModelFile
from wsiseg.slide import Slide
from wsiseg.tissue import TissueMask

BATCH = 16
"""Tiles that are computed at once."""

_READERS = 2
_AHEAD = 4  # batches that are read before they are needed
_WINDOW_PX, _OVERLAP_PX = 896, 128
_LEAST_WEIGHT = 0.05

Region = tuple[int, int, int]
"""Level-0 x, y of a corner, and the side in the model's pixels."""


@dataclass(frozen=True)
class SlideMap:
    """Probabilities of one slide.

    Attributes:
        probabilities: float32[rows, columns], NaN where nobody looked or nothing could be read.
        grid: The cells.
        tiles: Cells that were asked for.
        bad_tiles: Cells among them that could not be read.
    """

    probabilities: NDArray[np.float32]
    grid: Grid
    tiles: int
    bad_tiles: int


def map_tiles(
    slide: Slide,
    tissue: TissueMask,
    model: ModelFile,
    min_tissue: float,
    advance: Callable[[int], None],
) -> SlideMap:
    """Give one probability per tile.

    Args:
        slide: The slide.
        tissue: Where it holds tissue.
        model: What to ask.
        min_tissue: Least share of tissue in a tile that is looked at.
        advance: Called with the number of tiles that are done.

    Returns:
        The map; its cells are the tiles.
    """
    side = model.card.tile_px
    grid = Grid(slide.size_px, slide.mpp, side, side, model.card.mpp)
    cells = _wanted_cells(tissue, grid, min_tissue)
    probabilities = np.full(grid.shape, np.nan, np.float32)
    regions = [(int(x), int(y), side) for x, y in grid.corners(cells)]
    bad = 0
    for numbers, images in _read_batches(slide, regions, model.card.mpp, BATCH):
        if len(images):
            places = cells[numbers]
            probabilities[places[:, 0], places[:, 1]] = model.probabilities(images)
        advance(len(numbers))
    bad = int(np.isnan(probabilities[cells[:, 0], cells[:, 1]]).sum())
    return SlideMap(probabilities, grid, len(cells), bad)


def map_densely(
    slide: Slide,
    tissue: TissueMask,
    model: ModelFile,
    min_tissue: float,
    advance: Callable[[int], None],
) -> SlideMap:
    """Give one probability per output cell of the model.

    Args:
        slide: The slide.
        tissue: Where it holds tissue.
        model: What to ask; it must have a map.
        min_tissue: Least share of tissue in a cell that is looked at.
        advance: Called with the number of cells that are done.

    Returns:
        The map; its cells are `card.output_stride` pixels of `card.mpp` wide.
    """
    stride = model.card.output_stride or model.card.tile_px
    grid = Grid(slide.size_px, slide.mpp, stride, stride, model.card.mpp)
    wanted = tissue.share(grid) >= max(min_tissue, 1e-6)
    side, step = _WINDOW_PX // stride, (_WINDOW_PX - _OVERLAP_PX) // stride
    windows = _windows(wanted, side, step)
    weight = _window_weight(side)
    total, weights = np.zeros(grid.shape, np.float32), np.zeros(grid.shape, np.float32)
    regions = [(int(x), int(y), _WINDOW_PX) for x, y in grid.corners(windows)]
    for numbers, images in _read_batches(slide, regions, model.card.mpp, 1):
        if len(images):
            values = model.probability_map(images)[0]
            _add(total, values * weight, windows[numbers[0]])
            _add(weights, weight, windows[numbers[0]])
        advance(_newly_done(wanted, windows, numbers, step))
    looked_at = wanted & (weights > 0)
    probabilities = np.where(looked_at, total / np.where(looked_at, weights, 1), np.nan).astype(np.float32)
    return SlideMap(probabilities, grid, int(wanted.sum()), int(wanted.sum() - looked_at.sum()))


def _wanted_cells(tissue: TissueMask, grid: Grid, min_tissue: float) -> NDArray[np.int64]:
    return np.argwhere(tissue.share(grid) >= max(min_tissue, 1e-6))


def _windows(wanted: NDArray[np.bool_], side: int, step: int) -> NDArray[np.int64]:
    """Give row, column (int64[n, 2]) of the first cells of the windows that hold a wanted cell."""
    firsts = [(row, column) for row in range(0, wanted.shape[0], step) for column in range(0, wanted.shape[1], step)]
    return np.array(
        [(r, c) for r, c in firsts if wanted[r : r + side, c : c + side].any()],
        dtype=np.int64,
    ).reshape(-1, 2)


def _window_weight(side: int) -> NDArray[np.float32]:
    """Give the weight of every cell of a window: 1 inside, falling off linearly over the overlap."""
    distance = np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5)
    ramp = np.clip(distance * _WINDOW_PX / side / _OVERLAP_PX, _LEAST_WEIGHT, 1)
    return np.outer(ramp, ramp).astype(np.float32)


def _add(total: NDArray[np.float32], values: NDArray[np.float32], first: NDArray[np.int64]) -> None:
    """Add a window to the part of the map that lies under it."""
    row, column = first
    part = total[row : row + values.shape[0], column : column + values.shape[1]]
    part += values[: part.shape[0], : part.shape[1]]


def _newly_done(wanted: NDArray[np.bool_], windows: NDArray[np.int64], numbers: Sequence[int], step: int) -> int:
    """Count the wanted cells that belong to these windows alone, so that all windows together count each cell once."""
    row, column = windows[numbers[0]]
    return int(wanted[row : row + step, column : column + step].sum())


def _read_batches(
    slide: Slide,
    regions: Sequence[Region],
    mpp: float,
    size: int,
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """Read regions ahead of their use, in order and in batches; those that cannot be read are left out.

    Yields:
        The numbers of the regions in a batch that could be read, or all of them with no images where none could, and
        the images uint8[n, side, side, 3].
    """

    def read(begin: int) -> tuple[list[int], NDArray[np.uint8]]:
        numbers = list(range(begin, min(begin + size, len(regions))))
        images = {number: _read(slide, regions[number], mpp) for number in numbers}
        good = [number for number in numbers if images[number] is not None]
        stacked = [image for image in images.values() if image is not None]
        return (good, np.stack(stacked)) if good else (numbers, np.empty((0, 0, 0, 3), np.uint8))

    waiting: deque[Future[tuple[list[int], NDArray[np.uint8]]]] = deque()
    with ThreadPoolExecutor(_READERS, "reader") as pool:
        for begin in range(0, len(regions), size):
            waiting.append(pool.submit(read, begin))
            if len(waiting) >= _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(slide: Slide, region: Region, mpp: float) -> NDArray[np.uint8] | None:
    x, y, side = region
    try:
        return slide.read(x, y, (side, side), mpp)
    except SlideError:
        return None
