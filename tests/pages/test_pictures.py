"""The picture of a slide beside its tumour map."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from wsiseg.pages.pictures import DARK, INK, LIGHT, colored, heatmap_picture, scale_bar

SIDE, LEFT, TOP, GAP, OPACITY = 800, 12, 38, 12, 0.55


def halves(
    path: Path,
    cells: NDArray[np.float32],
    extent: tuple[float, float] = (4, 4),
    unknown: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.uint8], ...]:
    """Draw the map of a slide of even grey; give what is left and what is right of the gap."""
    thumbnail = np.full((SIDE, SIDE, 3), 200, np.uint8)
    unknown = np.zeros(cells.shape, np.bool_) if unknown is None else unknown
    heatmap_picture(path, thumbnail, {"tumour": (cells, 0.5)}, unknown, extent, title="slide", notes=["a note"])
    with Image.open(path) as image:
        pixels = np.asarray(image)
    begin = LEFT + SIDE + GAP
    return pixels[TOP : TOP + SIDE, LEFT : LEFT + SIDE], pixels[TOP : TOP + SIDE, begin : begin + SIDE]


def test_cells_are_coloured_where_somebody_looked_and_tumour_is_outlined(tmp_path: Path) -> None:
    cells = np.full((4, 4), 0.1, np.float32)
    cells[0] = np.nan
    cells[2:, 2:] = 0.9
    slide, mapped = halves(tmp_path / "map.png", cells)
    assert (slide == 200).all()
    assert (mapped[:200] == 200).all(), "nobody looked there"
    for value, pixel in ((0.1, mapped[300, 300]), (0.9, mapped[600, 600])):
        color = colored(np.array([value], np.float32), 0.5)[0].astype(float)
        np.testing.assert_allclose(pixel, 200 * (1 - OPACITY) + color * OPACITY, atol=1)
    is_ink = (mapped == INK).all(-1)
    assert is_ink[400, 400:].all()
    assert is_ink[400:, 400].all()
    assert is_ink[799, 400:].all()
    assert is_ink[400:, 799].all()
    assert not is_ink[:399].any()
    assert not is_ink[410:790, 410:790].any()


@pytest.mark.parametrize(("value", "is_tumor"), [(0.5, True), (np.nextafter(np.float32(0.5), np.float32(0)), False)])
def test_a_cell_at_the_threshold_is_outlined(tmp_path: Path, value: float, *, is_tumor: bool) -> None:
    _, mapped = halves(tmp_path / "map.png", np.full((4, 4), value, np.float32))
    assert (mapped == INK).all(-1).any() == is_tumor


def test_what_is_unknown_is_hatched_whatever_its_probability(tmp_path: Path) -> None:
    cells = np.full((4, 4), 0.9, np.float32)
    cells[0] = np.nan
    unknown = np.tile([False, True, True, False], (4, 1)) & ~np.isnan(cells)
    _, mapped = halves(tmp_path / "map.png", cells, unknown=unknown)
    hatched = (mapped == DARK).all(-1) | (mapped == LIGHT).all(-1)
    np.testing.assert_array_equal(hatched, unknown.repeat(200, 0).repeat(200, 1))
    assert 0.3 < (mapped[hatched] == DARK).all(-1).mean() < 0.5
    assert (mapped == INK).all(-1)[500, [0, 199, 600, 799]].all(), "the outline goes round it"


def test_cells_that_reach_beyond_the_slide_are_cut(tmp_path: Path) -> None:
    cells = np.tile(np.array([0.1, 0.9], np.float32), (2, 1))
    _, mapped = halves(tmp_path / "map.png", cells, extent=(1.25, 2))
    is_ink = (mapped == INK).all(-1)
    assert int(np.flatnonzero(is_ink[400])[0]) == pytest.approx(SIDE / 1.25, abs=1)


@given(
    values=arrays(np.float32, 20, elements=st.floats(0, 1, width=32)),
    threshold=st.one_of(st.floats(0, 1), st.just(0.0), st.just(1.0)),
)
def test_colours_are_blue_below_the_threshold_and_orange_from_it_on(
    values: NDArray[np.float32], threshold: float
) -> None:
    values[0] = threshold
    values[1] = max(0, np.nextafter(values[0], np.float32(0)))
    pixels = colored(values, threshold).astype(int)
    np.testing.assert_array_equal(pixels[:, 0] > pixels[:, 2], values >= threshold)
    light = pixels.sum(1)
    for side in (values >= threshold, values < threshold):
        order = np.argsort(np.abs(values[side] - threshold))
        assert (np.diff(light[side][order]) <= 0).all(), "the further from the threshold, the darker"


@given(width=st.floats(1, 1e6))
def test_a_scale_bar_is_of_a_round_length_that_fits(width: float) -> None:
    length = scale_bar(width)
    assert width / 10 <= length <= width / 4
    assert f"{length:e}"[0] in "125"
    assert set(f"{length:e}"[1:].partition("e")[0]) <= set(".0")


def test_warnings_and_the_scale_stand_on_the_picture(tmp_path: Path) -> None:
    def written(**more: Any) -> NDArray[np.uint8]:
        cells = np.full((4, 4), 0.1, np.float32)
        thumbnail, none = np.full((SIDE, SIDE, 3), 200, np.uint8), np.zeros((4, 4), np.bool_)
        heatmap_picture(tmp_path / "a.png", thumbnail, {"tumour": (cells, 0.5)}, none, (4, 4), title="slide", **more)
        with Image.open(tmp_path / "a.png") as image:
            return np.asarray(image)

    plain, warned, measured = written(), written(warnings=["no more"]), written(cell_um=100.0)
    assert warned.shape[0] == plain.shape[0] + 22
    assert (warned[:60] == (179, 38, 30)).all(-1).any(), "in red below the title"
    is_bar = (measured == INK).all(-1)[-40:, -250:]
    assert is_bar.sum(1).max() == SIDE / 4, "100 um of 400"
    assert not (plain == INK).all(-1)[-40:, -250:].any()
