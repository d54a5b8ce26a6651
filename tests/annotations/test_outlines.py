"""Outlines follow the set cells exactly."""

import numpy as np
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsiseg.annotations.coverage import labelled_outlines, outlines

MASKS = arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(mask=MASKS, step=st.integers(1, 900))
def test_outlines_cover_the_set_cells_and_nothing_else(mask: np.ndarray, step: int) -> None:
    polygons = outlines(mask, (step, step))
    assert sum(polygon.area for polygon in polygons) == mask.sum() * step**2
    rows, columns = np.indices(mask.shape)
    centers = shapely.points((columns + 0.5) * step, (rows + 0.5) * step)
    inside = shapely.contains(shapely.MultiPolygon(polygons), centers)
    assert (inside == mask).all()


@given(mask=MASKS)
def test_outlines_are_valid_and_largest_first(mask: np.ndarray) -> None:
    polygons = outlines(mask, (7.3, 7.3))
    assert all(polygon.is_valid for polygon in polygons)
    areas = [polygon.area for polygon in polygons]
    assert areas == sorted(areas, reverse=True)


@given(mask=MASKS, step=st.floats(0.2, 0.99))
def test_cells_finer_than_a_pixel_still_give_valid_polygons(mask: np.ndarray, step: float) -> None:
    polygons = outlines(mask, (step, step))
    assert all(polygon.is_valid and polygon.geom_type == "Polygon" and polygon.area > 0 for polygon in polygons)


@given(mask=MASKS)
def test_every_focus_is_one_polygon_and_knows_its_cells(mask: np.ndarray) -> None:
    polygons, labels = labelled_outlines(mask, (3, 5))
    assert len(polygons) == labels.max()
    assert ((labels > 0) == mask).all()
    for number, polygon in enumerate(polygons, 1):
        rows, columns = np.nonzero(labels == number)
        cells = shapely.union_all(shapely.box(columns * 3, rows * 5, columns * 3 + 3, rows * 5 + 5))
        assert polygon.is_valid
        assert polygon.equals(cells)


@given(rows=st.integers(2, 40), columns=st.integers(2, 40), share=st.floats(0.3, 0.7), seed=st.integers(0, 99))
def test_larger_patterns_are_traced_as_shapely_would(rows: int, columns: int, share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < share
    row, column = np.nonzero(mask)
    expected = shapely.union_all(shapely.box(column, row, column + 1, row + 1))
    found = outlines(mask, (1, 1))
    assert all(polygon.is_valid for polygon in found)
    assert len(found) == shapely.get_num_geometries(expected) or not mask.any()
    assert shapely.MultiPolygon(found).equals(expected)


def test_a_hole_stays_a_hole_and_the_offset_moves_everything() -> None:
    mask = np.ones((3, 3), np.bool_)
    mask[1, 1] = False
    (ring,) = outlines(mask, (10, 10), (-5, 100))
    assert len(ring.interiors) == 1
    assert ring.bounds == (-5, 100, 25, 130)


def test_nothing_set_gives_no_outline() -> None:
    assert outlines(np.zeros((2, 2), np.bool_), (1, 1)) == []
