"""What a model says of the windows of a slide becomes the probabilities of its cells.

By tiles a window is one tile and one cell. Densely windows are far larger than a tile and overlap, and weights fall off
towards a window's border, where the network lacks context, so that no seam shows. A cell of most models' maps is the
probability of the tile around it; in the end each becomes the mean of the tiles over it, so that one pass gives what
overlapping tiles would.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsiseg.mathematics.grid import mean_of_tiles
from wsiseg.model_file.answer import Answer, of_views
from wsiseg.prediction.windows import OVERLAP_PX, Cells, Plan
from wsiseg.run.errors import WsisegError
from wsiseg.slides.slide import Slide

_LEAST_WEIGHT = 0.05


class Asked(Protocol):
    """What answers for images, uint8[n, height, width, 3], as a model file does."""

    def answer(self, tiles: NDArray[np.uint8]) -> Answer:
        """Return one answer per tile, [n]."""
        ...

    def answer_map(self, images: NDArray[np.uint8]) -> Answer:
        """Return one answer per cell, [n, rows, columns]."""
        ...


@dataclass
class Sums:
    """What was said of the cells so far; saved and loaded to go on where an interrupted run stopped."""

    # float32[layers, rows, columns], weighted sums of the probabilities of each class, and of distances if the model
    # can tell.
    total: NDArray[np.float32]
    weight: NDArray[np.float32]  # float32[rows, columns], sum of weights
    done: int = 0  # windows that are in it, from the first
    classes: int = 1

    @classmethod
    def empty(cls, shape: tuple[int, int], *, with_distances: bool = False, classes: int = 1) -> "Sums":
        """Begin with nothing."""
        layers = np.zeros((classes + with_distances, *shape), np.float32)
        return cls(layers, np.zeros(shape, np.float32), classes=classes)

    def add(self, place: Any, answer: Answer, weight: NDArray[np.float32]) -> None:  # noqa: ANN401  any index of NumPy
        """Add the answer for the cells at an index [rows, columns] with their weights; some may lie beyond the map."""
        known = self.weight[place]
        within = tuple(map(slice, known.shape))
        told = (one.reshape(*weight.shape, -1) for one in answer if one is not None)
        layers = (one[..., layer] for one in told for layer in range(one.shape[-1]))
        for total, values in zip(self.total, layers, strict=True):
            total[place] += (values * weight)[within]
        self.weight[place] = known + weight[within]

    def answer(self, plan: Plan) -> Answer:
        """Return what was said of every cell, [rows, columns], NaN where nobody looked or nothing could be read.

        Probabilities of several classes are [rows, columns, classes].
        """
        seen = plan.wanted & (self.weight > 0)
        means = self.total / np.where(seen, self.weight, 1)
        if plan.tile_cells > 1:
            means = np.stack([mean_of_tiles(values, seen, plan.tile_cells) for values in means])
        layers: NDArray[np.float32] = np.where(seen, means, np.nan).astype(np.float32, copy=False)
        probabilities = layers[0] if self.classes == 1 else np.moveaxis(layers[: self.classes], 0, -1)
        return Answer(probabilities, *layers[self.classes :])


@dataclass
class Asking:
    """A model that is asked about the windows of a slide."""

    slide: Slide
    plan: Plan  # what to read and ask
    model: Asked  # what to ask
    sums: Sums  # what is known already; it is added to
    # Called after every batch with this, the number of further tiles, and the seconds that were spent waiting for them
    # to be read.
    after: Callable[["Asking", int, float], None] = lambda _asking, _tiles, _waited: None
    failure: Exception | None = None  # why it cannot go on, once it cannot
    # Of the tiles so far, where a model is asked for them: their cells, and float32[channels].
    features: list[tuple[Cells, NDArray[np.float32]]] = field(default_factory=list)

    def learn(self, windows: slice, outcome: tuple[Answer, NDArray[np.bool_]] | Exception, waited: float) -> None:
        """Add what came of asking about the next windows; once anything fails nothing more is added.

        The outcome is one value or one map for each, and bool[n, rows, columns], False for cells near what could not
        be read; or why there is nothing. For these `waited` seconds were spent waiting.
        """
        if isinstance(outcome, Exception):
            self.failure = self.failure or outcome
        if self.failure is not None or isinstance(outcome, Exception):
            return
        answer, readable = outcome
        if answer.features is not None:
            seen = zip(self.plan.windows[windows], answer.features, readable[:, 0, 0], strict=False)
            self.features += [(cells, values) for cells, values, is_readable in seen if is_readable]
            answer = answer._replace(features=None)
        asked = self.plan.windows[windows]
        if self.plan.is_dense:
            for number, cells in enumerate(asked):
                weight = _weight(self.plan, cells) * readable[number]
                place = np.s_[cells[0] : cells[0] + cells[2], cells[1] : cells[1] + cells[3]]
                self.sums.add(place, answer.changed(itemgetter(number)), weight)
        else:  # all at once: one by one they would take a tenth of the time of decoding
            rows, columns = self.plan.cells[windows, :2].T
            self.sums.add((rows, columns), answer, readable[:, 0, 0].astype(np.float32))
        self.sums.done = windows.stop
        try:
            self.after(self, self.plan.tiles(windows), waited)
        except (WsisegError, OSError, MemoryError) as error:
            self.failure = error


def ask(model: Asked, images: NDArray[np.uint8], plan: Plan) -> Answer:
    """Ask about images (uint8[n, height, width, 3]) as a plan has it: the mean over as many views of each."""
    return of_views(model.answer_map if plan.is_dense else model.answer, images, plan.views)


class Room:
    """What an accelerator has memory for, as far as that showed."""

    def __init__(self) -> None:
        self._too_much: dict[tuple[int, ...], MemoryError] = {}  # by the shape of images

    def ask(self, model: Asked, images: NDArray[np.uint8], plan: Plan) -> Answer:
        """Ask as `ask` does, about halves of the images where an accelerator has no memory for all.

        What was too much once is not asked again, and an answer to as much that came meanwhile does not count: where
        memory ends, a convolution on CUDA has noted a size that it has not prepared for yet.

        Raises:
            MemoryError: There is no memory for one image.
        """
        if images.shape not in self._too_much:
            try:
                answer = ask(model, images, plan)
            except MemoryError as error:
                if not plan.runs_on:
                    raise
                self._too_much[images.shape] = error
            else:
                if images.shape not in self._too_much:
                    return answer
        if len(images) == 1:
            raise self._too_much[images.shape]
        middle = len(images) // 2
        return Answer.of_parts([self.ask(model, half, plan) for half in (images[:middle], images[middle:])])


def complete(plan: Plan, part: Plan) -> NDArray[np.bool_]:
    """Return bool[rows, columns], True for the cells that a part of the windows tells as much of as all of them."""
    weights = []
    for windows in (plan.windows, part.windows):
        weights.append(np.zeros(plan.grid.shape, np.float32))
        for cells in windows:
            place = weights[-1][cells[0] : cells[0] + cells[2], cells[1] : cells[1] + cells[3]]
            place += _weight(plan, cells)[: place.shape[0], : place.shape[1]]
    lacks = np.asarray(plan.wanted & (weights[0] != weights[1]), np.float32)
    return np.asarray(plan.wanted & (np.nan_to_num(mean_of_tiles(lacks, plan.wanted, plan.tile_cells), nan=1) <= 0))


def _weight(plan: Plan, cells: Cells) -> NDArray[np.float32]:
    """Return the weights of a window's cells: a ramp over what windows share, 1 in the middle and for a tile."""
    if not plan.is_dense:
        return np.ones(cells[2:], np.float32)
    ramps = [np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) for n in cells[2:]]
    fall = OVERLAP_PX / plan.grid.stride_px
    weight: NDArray[np.float32] = np.outer(*[np.clip(ramp / fall, _LEAST_WEIGHT, 1) for ramp in ramps])
    return weight.astype(np.float32)
