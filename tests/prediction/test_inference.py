"""What is said of windows becomes cells: seams are ramps, tiles count alike, and half a cell of tissue is enough."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from making.maps import slide_facts
from wsiseg.mathematics.grid import Grid
from wsiseg.model_file.answer import Answer
from wsiseg.prediction.feed import Feed
from wsiseg.prediction.inference import Asking, Sums
from wsiseg.prediction.windows import Plan, _wanted
from wsiseg.run.errors import SlideError
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue import TissueMask

CELL, SIDE, STEP = 32, 36, 32  # pixels a cell, cells a window, cells from window to window


class Blank:
    """A slide without anything on it."""

    mpp = (0.5, 0.5)

    def fill(self, _corners: list[tuple[float, float]], _mpp: float, out: NDArray[np.uint8]) -> None:
        out[:] = 0


class Counting:
    """Says 0 everywhere of the first window, 1 of the second, and so on; distances are three times that."""

    def __init__(self) -> None:
        self.asked = -1

    def answer(self, tiles: NDArray[np.uint8]) -> Answer:
        values = (np.arange(len(tiles)) / 10).astype(np.float32)
        return Answer(values, 3 * values)

    def answer_map(self, images: NDArray[np.uint8]) -> Answer:
        self.asked += 1
        values = np.full((1, images.shape[1] // CELL, images.shape[2] // CELL), self.asked, np.float32)
        return Answer(values, 3 * values)


class Torn(Blank):
    """A slide of which pixel 500, 500 cannot be read."""

    def fill(self, corners: list[tuple[float, float]], mpp: float, out: NDArray[np.uint8]) -> None:
        for x, y in corners:
            if x <= 500 < x + out.shape[2] and y <= 500 < y + out.shape[1]:
                raise SlideError("torn")
        super().fill(corners, mpp, out)


@dataclass
class Alone:
    askings: list[Asking]


def mapped(plan: Plan, slide: Blank | None = None) -> NDArray[np.float32]:
    """Return the probabilities; distances are made of what was said of the same cells in the same way."""
    sums = Sums.empty(plan.grid.shape, with_distances=True)
    (work,) = Feed().run(iter([Alone([Asking(cast("Slide", slide or Blank()), plan, Counting(), sums)])]))
    found = work.askings[0].sums.answer(plan)
    assert found.distances is not None
    np.testing.assert_allclose(found.distances, 3 * found.probabilities, rtol=1e-6)
    return found.probabilities


@pytest.mark.parametrize("axis", [0, 1])
def test_from_one_window_to_the_next_is_a_ramp(axis: int) -> None:
    """Cell by cell the weight of a window is its distance from the window's border by 128 px, at least 0.05."""
    length = STEP + SIDE
    shape = (SIDE, length) if axis else (length, SIDE)
    grid = Grid((shape[1] * CELL, shape[0] * CELL), (0.5, 0.5), 224, CELL, 0.5)
    windows = ((0, 0, SIDE, SIDE), (0, STEP, SIDE, SIDE) if axis else (STEP, 0, SIDE, SIDE))
    values = mapped(Plan(grid, np.ones(shape, np.bool_), windows, is_dense=True))
    expected = np.zeros(length)
    for cell in range(length):
        weights = []
        for first in (0, STEP):
            inside = min(cell + 0.5 - first, first + SIDE - cell - 0.5)  # cells from the border
            weights.append(min(1, max(0.05, inside * CELL / 128)) if inside > 0 else 0)
        expected[cell] = weights[1] / sum(weights)
    assert sorted(set(expected.tolist()))[1:-1], "there is an overlap"
    np.testing.assert_allclose(values, np.broadcast_to(expected if axis else expected[:, None], shape), atol=1e-6)


def test_cells_that_would_see_what_cannot_be_read_are_not_known() -> None:
    """Pixel 500 lies in the third tile of 224: from 448 to 672, cells 14 to 21, and half a tile around it, 3 cells."""
    grid = Grid((SIDE * CELL, SIDE * CELL), (0.5, 0.5), 224, CELL, 0.5)
    plan = Plan(grid, np.ones((SIDE, SIDE), np.bool_), ((0, 0, SIDE, SIDE),), is_dense=True)
    expected = np.zeros((SIDE, SIDE))
    expected[11:24, 11:24] = np.nan
    np.testing.assert_array_equal(mapped(plan, Torn()), expected)


def test_tiles_are_cells_as_they_were_answered() -> None:
    grid = Grid((5 * 224, 224), (0.5, 0.5), 224, 224, 0.5)
    wanted = np.array([[True, False, True, True, False]])
    windows = ((0, 0, 1, 1), (0, 2, 1, 1), (0, 3, 1, 1))
    values = mapped(Plan(grid, wanted, windows, is_dense=False, batch=16))
    np.testing.assert_allclose(values, [[0, np.nan, 0.1, 0.2, np.nan]])


def test_a_cell_with_just_the_least_share_of_tissue_is_looked_at() -> None:
    facts = slide_facts(4 * 64, 64)
    mask = np.zeros((4, 16), np.bool_)
    mask[:2, :4] = mask[:, 4:8] = mask[0, 8:12] = True  # half, whole, a quarter, none
    tissue = TissueMask(mask, (8.0, 8.0), (16.0, 16.0), "auto")
    cells = Grid(facts.size_px, facts.mpp, 64, 64, 0.5)
    assert _wanted(tissue, cells, 0.5).tolist() == [[True, True, False, False]]
    assert _wanted(tissue, cells, 0.0).tolist() == [[True, True, True, False]]
