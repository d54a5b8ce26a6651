"""From a plan to tumour probabilities: read a window, ask the model, add its answer to the cells under the window.

By tiles a window is one tile and one cell. Densely windows are far larger than a tile and overlap, and weights fall off
towards a window's border, where the network lacks context, so that no seam shows. A cell of most models' maps is the
probability of the tile around it; in the end each becomes the mean of the tiles over it, so that one pass gives what
overlapping tiles would.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wsiseg.mathematics.grid import mean_of_tiles
from wsiseg.model_file.model_file import MAP_MULTIPLE_PX
from wsiseg.prediction.combining import Asked
from wsiseg.prediction.windows import BATCH, OVERLAP_PX, Cells, Plan
from wsiseg.run.errors import SlideError
from wsiseg.slides.slide import Slide

_READERS = 2
_AHEAD = 4  # batches that are read before they are needed
_LEAST_WEIGHT = 0.05
_LONGEST_TRIAL_S = 0.1


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
class ReadWindow:
    """An image (uint8[height, width, 3]), and bool[rows, columns]: False for cells near what could not be read."""

    image: NDArray[np.uint8]
    readable: NDArray[np.bool_] = field(repr=False)


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
        answer = model.answer_map(images) if plan.is_dense else model.answer(images)
        values = answer.probabilities.reshape(len(images), *plan.windows[number][2:])
        for cells, window, value in zip(plan.windows[number : number + len(windows)], windows, values, strict=True):
            sums.add(cells, value, _weight(plan, cells) * window.readable)
        sums.done = number + len(windows)
        after(sums, plan.tiles(slice(number, sums.done)), waited)
    known = plan.wanted & (sums.weight > 0)
    values = np.where(known, sums.total / np.where(known, sums.weight, 1), np.nan).astype(np.float32)
    if plan.tile_cells == 1:
        return values
    return np.where(known, mean_of_tiles(values, known, plan.tile_cells), np.nan).astype(np.float32)


def speed(plan: Plan, model: Asked) -> float:
    """Measure how many made tiles a model computes in a second, in some 0.15 s unless one tile takes longer."""
    side = plan.grid.tile_px
    if plan.is_dense:
        side = -(-side // MAP_MULTIPLE_PX) * MAP_MULTIPLE_PX
    tiles = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), np.uint8)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        _ = model.answer_map(tiles[:count]) if plan.is_dense else model.answer(tiles[:count])
        return max(time.perf_counter() - began, 1e-9)

    count = max(1, min(BATCH, int(_LONGEST_TRIAL_S / seconds(1))))
    return count / seconds(count)


def _weight(plan: Plan, cells: Cells) -> NDArray[np.float32]:
    """Return the weights of a window's cells: a ramp over what windows share, 1 in the middle and for a tile."""
    if not plan.is_dense:
        return np.ones(cells[2:], np.float32)
    ramps = [np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) for n in cells[2:]]
    fall = OVERLAP_PX / plan.grid.stride_px
    weight: NDArray[np.float32] = np.outer(*[np.clip(ramp / fall, _LEAST_WEIGHT, 1) for ramp in ramps])
    return weight.astype(np.float32)


def _read_ahead(slide: Slide, plan: Plan, begin: int) -> Iterator[tuple[int, list[ReadWindow], float]]:
    """Read windows before they are needed, in order.

    Yields:
        The number of the first window of a batch, the batch, and the seconds that were spent waiting for it.
    """
    size = plan.batch
    corners = plan.grid.corners(np.array([cells[:2] for cells in plan.windows]).reshape(-1, 2))

    def read(first: int) -> list[ReadWindow]:
        return [_read(slide, plan, k, corners[k]) for k in range(first, min(first + size, len(plan.windows)))]

    waiting: deque[tuple[int, Future[list[ReadWindow]]]] = deque()
    with ThreadPoolExecutor(_READERS, "reader") as pool:
        for first in range(begin, len(plan.windows), size):
            waiting.append((first, pool.submit(read, first)))
            if len(waiting) >= _AHEAD:
                number, reading = waiting.popleft()
                yield number, *_finished(reading)
        for number, reading in waiting:
            yield number, *_finished(reading)


def _finished(reading: "Future[list[ReadWindow]]") -> tuple[list[ReadWindow], float]:
    """Wait for a batch: what was read, and the seconds that it took to come."""
    began = time.monotonic()
    return reading.result(), time.monotonic() - began


def _read(slide: Slide, plan: Plan, number: int, corner: NDArray[np.int32]) -> ReadWindow:
    """Read a window; where that fails, read it tile by tile and mark the cells near a tile that cannot be read."""
    rows, columns = plan.windows[number][2:]
    x, y = int(corner[0]), int(corner[1])
    stride, side = plan.grid.stride_px, plan.grid.tile_px
    size = (columns * stride, rows * stride) if plan.is_dense else (side, side)
    readable = np.ones((rows, columns), np.bool_)
    try:
        return ReadWindow(slide.read(x, y, size, plan.grid.tile_mpp), readable)
    except SlideError:
        if not plan.is_dense:
            return ReadWindow(np.full((*size, 3), 255, np.uint8), ~readable)
        return _read_by_parts(slide, plan, (x, y), size)


def _read_by_parts(slide: Slide, plan: Plan, corner: tuple[int, int], size: tuple[int, int]) -> ReadWindow:
    width, height = size
    part, stride, mpp = plan.grid.tile_px, plan.grid.stride_px, plan.grid.tile_mpp
    image = np.full((height, width, 3), 255, np.uint8)
    readable = np.ones((height // stride, width // stride), np.bool_)
    reach = part // stride // 2
    for top in range(0, height, part):
        for left in range(0, width, part):
            shape = (min(part, width - left), min(part, height - top))
            x, y = corner[0] + left * mpp / slide.mpp[0], corner[1] + top * mpp / slide.mpp[1]
            try:
                image[top : top + shape[1], left : left + shape[0]] = slide.read(x, y, shape, mpp)
            except SlideError:
                # Every cell whose tile-sized surroundings touch this part would see what is not there.
                rows = slice(max(top // stride - reach, 0), (top + shape[1]) // stride + reach)
                readable[rows, max(left // stride - reach, 0) : (left + shape[0]) // stride + reach] = False
    return ReadWindow(image, readable)
