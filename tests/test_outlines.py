"""Outlines follow the set cells exactly."""

import numpy as np
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsiseg.outlines.dissolved import outlines

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


def test_a_hole_stays_a_hole_and_the_offset_moves_everything() -> None:
    mask = np.ones((3, 3), np.bool_)
    mask[1, 1] = False
    (ring,) = outlines(mask, (10, 10), (-5, 100))
    assert len(ring.interiors) == 1
    assert ring.bounds == (-5, 100, 25, 130)


def test_nothing_set_gives_no_outline() -> None:
    assert outlines(np.zeros((2, 2), np.bool_), (1, 1)) == []
