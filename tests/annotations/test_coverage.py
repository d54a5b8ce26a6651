from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsiseg.annotations.coverage import Mask, Polygons, polygon_area

X_EDGES = np.minimum(np.arange(8) * 15.7, 103.0)
Y_EDGES = np.minimum(np.arange(6) * 19.3, 93.0)
# GEOS makes invalid polygons of corners that lie 1e-200 apart.
fine = st.floats(-30, 130).map(lambda value: round(value, 6))
number = st.one_of(st.integers(-30, 130).map(float), fine, st.sampled_from(list(X_EDGES)))


@st.composite
def shapes(draw: st.DrawFn) -> BaseGeometry:
    """Polygons of any shape, with holes, parts, and corners and sides on the lines of the grid."""
    rings = draw(st.lists(st.lists(st.tuples(number, number), min_size=3, max_size=9), min_size=1, max_size=3))
    polygons = [areas(shapely.make_valid(shapely.Polygon(ring))) for ring in rings]
    whole = polygons[0]
    for count, polygon in enumerate(polygons[1:]):
        whole = whole.difference(polygon) if count % 2 else whole.symmetric_difference(polygon)
    found = areas(whole)
    assume(found.is_valid)
    return found


def areas(shape: BaseGeometry) -> BaseGeometry:
    """Leave out points and lines, over which GEOS stumbles."""
    parts = [part for part in shapely.get_parts(shape) if part.geom_type in {"Polygon", "MultiPolygon"}]
    return shapely.union_all(parts) if parts else shapely.MultiPolygon()


def by_intersection(shape: BaseGeometry) -> NDArray[np.float64]:
    """Measure by GEOS, on a fine grid: without one it gives a whole cell for some needles that are 1e-14 wide."""
    cells = [
        [shapely.box(left, top, right, below) for left, right in pairwise(X_EDGES)] for top, below in pairwise(Y_EDGES)
    ]
    return np.asarray(shapely.area(shapely.intersection(np.array(cells), shape, grid_size=1e-9)))


@given(shapes())
def test_area_in_each_cell_equals_the_intersection_with_it(shape: BaseGeometry) -> None:
    np.testing.assert_allclose(polygon_area(shape, X_EDGES, Y_EDGES), by_intersection(shape), atol=1e-6)


@given(st.integers(1, 12), st.integers(1, 12), st.floats(3, 40), st.floats(3, 40), st.integers(0, 2**32 - 1))
def test_a_mask_covers_as_much_as_the_boxes_of_its_pixels(
    rows: int,
    columns: int,
    width: float,
    height: float,
    seed: int,
) -> None:
    pixels = np.random.default_rng(seed).random((rows, columns)) < 0.4
    mask = Mask(pixels, (width, height), (-7.3, 4.1))
    y, x = np.nonzero(pixels)
    left, top = x * width - 7.3, y * height + 4.1
    boxes = shapely.union_all(shapely.box(left, top, left + width, top + height))
    found = mask.covered(X_EDGES, Y_EDGES)
    np.testing.assert_allclose(found, Polygons(boxes).covered(X_EDGES, Y_EDGES), atol=1e-6)
    assert mask.geometry.area == pytest.approx(boxes.area)


def test_nothing_covers_nothing() -> None:
    assert polygon_area(shapely.MultiPolygon(), X_EDGES, Y_EDGES).sum() == 0
    assert Mask(np.zeros((3, 4), bool), (10, 10)).covered(X_EDGES, Y_EDGES).sum() == 0
    assert Mask(np.zeros((3, 4), bool), (10, 10)).geometry.is_empty


def test_a_polygon_larger_than_the_grid_covers_all_of_it() -> None:
    around = shapely.box(-1000, -1000, 1000, 1000).difference(shapely.box(200, 200, 300, 300))
    cells = np.diff(Y_EDGES)[:, None] * np.diff(X_EDGES)[None, :]
    np.testing.assert_allclose(polygon_area(around, X_EDGES, Y_EDGES), cells)
