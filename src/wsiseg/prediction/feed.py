"""Windows of slides on their way to a model: read ahead by as many threads as there are cores, in batches.

One pool of readers serves all slides of a run, so that no valley lies between two slides, and on an accelerator a batch
runs on from one slide into the next. Answers are added in the order of the plans, whatever came first.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsiseg.model_file.answer import Answer
from wsiseg.prediction.inference import Asking, Room
from wsiseg.run.errors import SlideError, WsisegError
from wsiseg.run.machine import cores, within_memory
from wsiseg.run.reader_processes import ReaderProcesses
from wsiseg.slides.slide import fill_from

_READ_AT_ONCE, _READ_BY_PROCESS = 16, 32  # windows; threads share what they decode for them, processes do not
_LOOK_AGAIN_S = 0.005


class Work(Protocol):
    """A slide that models are asked about."""

    @property
    def askings(self) -> Sequence[Asking]:
        """What to ask."""
        ...


W = TypeVar("W", bound=Work)
_Outcome = tuple[Answer, NDArray[np.bool_]] | Exception
"""What a model said of windows and bool[n, rows, columns], False near what could not be read; or why it cannot."""


class _Part(NamedTuple):
    """Windows of a slide within a batch, and the coming bool[n, rows, columns] of what could be read."""

    asking: Asking
    windows: slice
    reading: "Future[NDArray[np.bool_]]"


@dataclass
class _Batch:
    """Images that a model is asked about at once; those behind the last part are none."""

    images: NDArray[np.uint8]
    parts: list[_Part] = field(default_factory=list)
    count: int = 0

    def fits(self, asking: Asking, first: int) -> bool:
        """Tell whether a window of a plan can go into it."""
        mine, plan = self.parts[0].asking, asking.plan
        is_alike = asking is mine or (
            plan.runs_on and plan.is_dense == mine.plan.is_dense and asking.model == mine.model
        )
        return is_alike and self.count < len(self.images) and plan.shape_px(first) == self.images.shape[1:3]

    def outcomes(self, room: Room) -> tuple[list[_Outcome], float]:
        """Wait for what is read and ask the model: what came of each part, and the seconds spent waiting."""
        began = time.monotonic()
        failures = [part.reading.exception() for part in self.parts]  # once all is read
        waited, asking = time.monotonic() - began, self.parts[0].asking
        # A batch that is not full goes as it is to an accelerator, which would tune itself anew for another size.
        images = self.images if asking.plan.runs_on else self.images[: self.count]
        try:
            answer = room.ask(asking.model, images, asking.plan)
        except (WsisegError, MemoryError) as error:
            return [error] * len(self.parts), waited
        found: list[_Outcome] = []
        begin = 0
        for part, failure in zip(self.parts, failures, strict=True):
            mine = slice(begin, begin + part.windows.stop - part.windows.start)
            if isinstance(failure, WsisegError | OSError | MemoryError):
                found.append(failure)
            else:
                found.append((answer.part(mine), part.reading.result()))
            begin = mine.stop
        return found, waited


_Asked = tuple[_Batch, "Future[tuple[list[_Outcome], float]]"]


class Feed:
    """Reads windows ahead and asks models about them.

    Args:
        lanes: Batches that the device computes at the same time.
        idle: Called with the seconds in which there was nothing to do, as no slide was open.
        meanwhile: Called once, when the first tiles are told of, and before the first slide is yielded.
    """

    def __init__(
        self,
        lanes: int = 1,
        idle: Callable[[float], None] = lambda _seconds: None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self._lanes, self._idle, self._meanwhile = lanes, idle, meanwhile
        self._batch: _Batch | None = None
        self._spare: list[NDArray[np.uint8]] = []
        self._ahead: list[NDArray[np.uint8]] = []  # images of the batches that are on their way
        self._processes = ReaderProcesses.for_accelerator() if lanes > 1 else None
        self._readers = len(self._processes) if self._processes else cores()
        self._room = Room()
        self._most_bytes = within_memory(sys.maxsize)
        self._at_once = _READ_BY_PROCESS if self._processes else _READ_AT_ONCE

    def run(self, works: Iterator[W | None]) -> Iterator[W]:
        """Ask about all windows of slides.

        Args:
            works: The slides; None where the next is not open yet, and something else may be done first.

        Yields:
            Each slide once all is known of it, in order.
        """
        coming: deque[_Asked | W] = deque()
        readers, lanes = ThreadPoolExecutor(self._readers, "reader"), ThreadPoolExecutor(self._lanes, "model")
        try:
            for item in self._portions(works, readers):
                if item is not None:
                    coming.append((item, lanes.submit(item.outcomes, self._room)) if isinstance(item, _Batch) else item)
                elif not coming:
                    time.sleep(_LOOK_AGAIN_S)
                    self._idle(_LOOK_AGAIN_S)
                is_due = item is None
                while coming and (is_due or not self._has_room() or _is_done(coming[0])):
                    yield from self._finished(coming.popleft())
                    is_due = False
            while coming:
                yield from self._finished(coming.popleft())
        finally:
            for pool in (readers, lanes):
                pool.shutdown(cancel_futures=True)
            if self._processes:
                self._processes.close()

    def _portions(self, works: Iterator[W | None], readers: ThreadPoolExecutor) -> Iterator[_Batch | W | None]:
        """Begin to read batches; yield each, and each slide behind the last batch with windows of it."""
        behind: list[W] = []
        for work in works:
            for asking in () if work is None else work.askings:
                first = asking.sums.done
                while first < len(asking.plan.windows) and asking.failure is None:
                    if self._batch is not None and not self._batch.fits(asking, first):
                        yield from self._closed(behind)
                    first = self._begin(asking, first, readers)
            if work is not None:
                behind.append(work)
            if work is None or self._batch is None:
                yield from self._closed(behind)
            if work is None:
                yield None
        yield from self._closed(behind)

    def _closed(self, behind: list[W]) -> Iterator[_Batch | W]:
        """Yield the batch, and the slides that end with it."""
        if self._batch is not None:
            batch, self._batch = self._batch, None
            yield batch
        yield from behind
        behind.clear()

    def _begin(self, asking: Asking, first: int, readers: ThreadPoolExecutor) -> int:
        """Begin to read some windows into the batch; return the number of the one behind them."""
        plan = asking.plan
        if self._batch is None:
            self._batch = _Batch(self._buffer((plan.batch, *plan.shape_px(first), 3)))
        batch, stop = self._batch, first + 1
        most = first + min(self._at_once, len(batch.images) - batch.count)
        while stop < min(most, len(plan.windows)) and plan.windows[stop][2:] == plan.windows[first][2:]:
            stop += 1
        windows = slice(first, stop)
        reading = readers.submit(self._read, asking, windows, batch.images, batch.count)
        batch.parts.append(_Part(asking, windows, reading))
        batch.count += stop - first
        return stop

    def _read(self, asking: Asking, windows: slice, images: NDArray[np.uint8], begin: int) -> NDArray[np.bool_]:
        """Read windows in a process where there is one, else here; see `read`."""
        corners, plan, slide = corners_of(asking, windows), asking.plan, asking.slide
        out = images[begin : begin + len(corners)]
        if self._processes:
            scale = [plan.grid.tile_mpp / mpp for mpp in slide.mpp]
            if self._processes.fill(out, fill_from, str(slide.path), slide.longest_read_s, corners, scale):
                return np.ones((len(corners), *plan.windows[windows.start][2:]), np.bool_)
        return read(asking, windows, out)

    def _buffer(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an array to read into, a used one if possible: fresh memory costs a third of the decoding."""
        fitting = [array for array in self._spare if array.shape == shape]
        self._spare = fitting[1:]
        if self._processes:
            array = self._processes.array(shape)
        else:
            array = fitting[0] if fitting else np.empty(shape, np.uint8)
        self._ahead.append(array)
        return array

    def _has_room(self) -> bool:
        """Tell whether more may be read: as much as keeps all readers at work and two batches at hand, if that fits."""
        largest = max(self._ahead, key=lambda images: images.nbytes, default=None)
        if largest is None:
            return True
        most = 2 * largest.nbytes + (self._readers + 1) * largest[: self._at_once].nbytes
        return sum(images.nbytes for images in self._ahead) < min(most, self._most_bytes)

    def _finished(self, item: _Asked | W) -> Iterator[W]:
        """Add what became of a batch to its slides, or yield the slide that is done."""
        if isinstance(item, tuple):
            self._learn(item[0], *item[1].result())
        meanwhile, self._meanwhile = self._meanwhile, lambda: None
        meanwhile()
        if not isinstance(item, tuple):
            yield item

    def _learn(self, batch: _Batch, outcomes: Sequence[_Outcome], waited: float) -> None:
        for part, outcome in zip(batch.parts, outcomes, strict=True):
            part.asking.learn(part.windows, outcome, waited / len(batch.parts))
        self._ahead = [images for images in self._ahead if images is not batch.images]
        if any(part.reading.exception() for part in batch.parts):
            return  # a thread may still read into it
        if self._processes:
            self._processes.give_back(batch.images)
        else:
            self._spare.append(batch.images)


def _is_done(item: object) -> bool:
    return not isinstance(item, tuple) or item[1].done()


def corners_of(asking: Asking, windows: slice) -> list[tuple[float, float]]:
    """Return the level-0 x, y of the upper left corners of windows."""
    corners: list[tuple[float, float]] = asking.plan.grid.corners(asking.plan.cells[windows, :2]).tolist()
    return corners


def read(asking: Asking, windows: slice, out: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Read windows of one size into uint8[n, height, width, 3]; where that fails tile by tile.

    Returns:
        bool[n, rows, columns], False for cells near what cannot be read.
    """
    plan, corners = asking.plan, corners_of(asking, windows)
    readable = np.ones((len(corners), *plan.windows[windows.start][2:]), np.bool_)
    try:
        asking.slide.fill(corners, plan.grid.tile_mpp, out)
    except SlideError:
        for corner, image, cells in zip(corners, out, readable, strict=True):
            _read_by_parts(asking, corner, image, cells)
    return readable


def _read_by_parts(
    asking: Asking, corner: tuple[float, float], image: NDArray[np.uint8], readable: NDArray[np.bool_]
) -> None:
    """Read a window tile by tile and mark the cells near a tile that cannot be read."""
    slide, grid = asking.slide, asking.plan.grid
    part, stride, mpp = grid.tile_px, grid.stride_px, grid.tile_mpp
    reach = part // stride // 2
    image[:] = 255
    for top in range(0, image.shape[0], part):
        for left in range(0, image.shape[1], part):
            piece = image[top : top + part, left : left + part]
            x, y = corner[0] + left * mpp / slide.mpp[0], corner[1] + top * mpp / slide.mpp[1]
            try:
                slide.fill([(x, y)], mpp, piece[None])
            except SlideError:
                piece[:] = 255
                # Every cell whose tile-sized surroundings touch this part would see what is not there.
                rows = slice(max(top // stride - reach, 0), (top + piece.shape[0]) // stride + reach)
                readable[rows, max(left // stride - reach, 0) : (left + piece.shape[1]) // stride + reach] = False
