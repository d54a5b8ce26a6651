import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from wsiseg.mathematics.grid import (
    Grid,
    _summed_around,
    block_means,
    connected_parts,
    mean_of_tiles,
    share_of_cells,
    sizes_of_parts,
    tile_window,
)
from wsiseg.run.errors import UsageError


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    size = draw(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
    mpp = draw(st.floats(0.1, 2.0))
    tile = draw(st.integers(16, 512))
    stride = draw(st.integers(8, tile))
    return Grid(size, (mpp, mpp * draw(st.floats(0.96, 1.04))), tile, stride, draw(st.floats(0.1, 4.0)))


@given(grids())
def test_cells_cover_every_pixel_once(grid: Grid) -> None:
    rows, columns = grid.shape
    step_x, step_y = grid.stride_level0
    for count, step, size in ((columns, step_x, grid.size_px[0]), (rows, step_y, grid.size_px[1])):
        assert count * step >= size - 1e-3
        assert (count - 1) * step < size + 1e-3


@given(grids(), st.floats(0, 1), st.floats(0, 1))
def test_the_cell_at_a_point_holds_it(grid: Grid, across: float, down: float) -> None:
    x, y = across * grid.size_px[0], down * grid.size_px[1]
    row, column = grid.cell_at(x, y)
    for place, step, at in ((column, grid.stride_level0[0], x), (row, grid.stride_level0[1], y)):
        assert place * step <= at * (1 + 1e-12)
        assert at < (place + 1) * step


def test_parts_are_counted_cell_by_cell() -> None:
    parts = np.random.default_rng(0).integers(0, 5, (700, 30)).astype(np.int32)
    parts[parts == 3] = 0
    assert sizes_of_parts(parts, 5).tolist() == [int((parts == part).sum()) for part in range(6)]


@given(grids(), st.data())
def test_corners_round_trip(grid: Grid, data: st.DataObject) -> None:
    rows, columns = grid.shape
    if min(grid.stride_level0) < 1:
        return
    cells = data.draw(st.lists(st.tuples(st.integers(0, rows - 1), st.integers(0, columns - 1)), min_size=1))
    array = np.array(cells)
    assert (grid.cells(grid.corners(array)) == array).all()


def test_float_noise_makes_no_further_cell() -> None:
    assert 3 * 0.1 / 0.1 > 3
    assert Grid((3, 3), (0.1, 0.1), 1, 1, 0.1).shape == (3, 3)


@given(st.integers(1, 10**6), st.floats(0.1, 3.0))
def test_tile_k_begins_at_k_strides_however_far(number: int, mpp: float) -> None:
    """Rounded steps that add up would be off by up to half a pixel for every tile."""
    grid = Grid((10, 10), (mpp, mpp), 224, 224, 0.5)
    corner = int(grid.corners(np.array([[0, min(number, int(2e9 * mpp / 112))]]))[0, 0])
    assert abs(corner - min(number, int(2e9 * mpp / 112)) * 112 / mpp) <= 0.51


@given(grids(), st.integers(0, 2**32 - 1))
def test_shares_equal_those_of_every_pixel(grid: Grid, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 40), rng.integers(1, 40))) < 0.5
    pixel = (grid.size_px[0] / mask.shape[1], grid.size_px[1] / mask.shape[0])
    share = share_of_cells(mask, pixel, grid)
    assert share.shape == grid.shape
    row, column = rng.integers(0, grid.shape[0]), rng.integers(0, grid.shape[1])
    x, y = column * grid.stride_level0[0], row * grid.stride_level0[1]
    width, height = grid.tile_level0

    def covered(begin: float, length: float, step: float, count: int) -> NDArray[np.float64]:
        edges = np.arange(count + 1) * step
        lengths: NDArray[np.float64] = np.minimum(begin + length, edges[1:]) - np.maximum(begin, edges[:-1])
        return np.maximum(lengths, 0)

    area = covered(y, height, pixel[1], mask.shape[0]) @ mask @ covered(x, width, pixel[0], mask.shape[1])
    on_slide = min(width, grid.size_px[0] - x) * min(height, grid.size_px[1] - y)
    assert share[row, column] == pytest.approx(area / on_slide, abs=1e-3)


def test_nonsense_is_refused() -> None:
    for values in (((0, 5), (1, 1), 16, 16, 0.5), ((5, 5), (1, float("nan")), 16, 16, 0.5)):
        with pytest.raises(UsageError, match="positive"):
            Grid(*values)
    with pytest.raises(UsageError, match="gaps"):
        Grid((5, 5), (1, 1), 16, 17, 0.5)


def test_windows_of_even_and_odd_tiles_cover_the_tile() -> None:
    assert tile_window(7).tolist() == [1] * 7
    assert tile_window(14).tolist() == [0.5, *[1] * 13, 0.5]


@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32))
def test_a_cell_is_the_mean_of_the_known_tiles_over_it(cells: int, rows: int, columns: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values, known = random.random((rows, columns), np.float32), random.random((rows, columns)) < 0.6
    found = mean_of_tiles(np.where(known, values, np.float32(np.nan)), known, cells)
    window = tile_window(cells)
    reach = len(window) // 2
    for row, column in np.ndindex(rows, columns):
        weights = np.zeros((rows, columns))
        for i, j in np.ndindex(len(window), len(window)):
            place = row + i - reach, column + j - reach
            if 0 <= place[0] < rows and 0 <= place[1] < columns and known[place]:
                weights[place] = window[i] * window[j]
        expected = np.sum(weights * np.where(known, values, 0)) / weights.sum() if weights.any() else np.nan
        np.testing.assert_allclose(found[row, column], expected, rtol=1e-5)


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)), st.floats(0, 1), st.integers(1, 12), st.integers(0, 2**32 - 1)
)
def test_parts_and_sums_over_windows_are_those_of_scipy(
    shape: tuple[int, int], share: float, cells: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    mask = random.random(shape) < share
    labels, count = ndimage.label(mask)
    parts, found = connected_parts(mask)
    assert found == count
    np.testing.assert_array_equal(parts, labels)
    values, window = random.random(shape, np.float32), tile_window(cells)
    summed = ndimage.correlate1d(ndimage.correlate1d(values, window, 0, mode="constant"), window, 1, mode="constant")
    np.testing.assert_array_equal(_summed_around(values, window), summed)


@given(st.tuples(st.integers(1, 9), st.integers(1, 9)), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_blocks_are_averaged_as_plain_python_would(shape: tuple[int, int], side: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values, counted = random.random(shape).astype(np.float32), random.random(shape) < 0.6
    found = block_means(np.where(counted, values, np.nan), counted, side)
    assert found.shape == tuple(-(-size // side) for size in shape)
    for row, column in np.ndindex(*found.shape):
        block = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
        expected = values[block][counted[block]].mean() if counted[block].any() else np.nan
        np.testing.assert_allclose(found[row, column], expected, rtol=1e-6)
