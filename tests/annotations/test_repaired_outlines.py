"""An outline encloses what it winds around, for whatever it is used."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import example, given
from hypothesis import strategies as st

from making.maps import box, polygon, slide_facts, write_outlines
from wsiseg.annotations.outlines import valid_polygon
from wsiseg.annotations.truth import Reading, open_region, open_truth
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue_choice import TissueChoice, filled

Points = list[tuple[float, float]]
SIDE = 12
SLIDE = slide_facts(SIDE, SIDE)
corner = st.tuples(st.integers(0, SIDE), st.integers(0, SIDE))
STAR: Points = [(600, 100), (894, 1005), (124, 445), (1076, 445), (306, 1005)]
LOOP: Points = [(0, 0), (20, 0), (20, 20), (0, 20), (0, 1), (5, 5), (15, 5), (15, 15), (5, 15), (5, 5.5)]


def winds_around(ring: Points, x: float, y: float) -> bool:
    """Add up the angles under which a point sees the sides of a ring."""
    angles = [math.atan2(b - y, a - x) for a, b in [*ring, ring[0]]]
    turns = [(end - begin + math.pi) % (2 * math.pi) - math.pi for begin, end in pairwise(angles)]
    return abs(sum(turns)) > math.pi


@given(st.lists(corner, min_size=3, max_size=10))
@example([(3, 8), (8, 2), (4, 9), (5, 1)])
def test_every_use_of_an_outline_takes_what_it_winds_around(
    tmp_path_factory: pytest.TempPathFactory, ring: Points
) -> None:
    path = write_outlines(tmp_path_factory.mktemp("a") / "a.geojson", box(0, 0, 0.001, 0.001, "Stroma"), polygon(ring))
    truth, region = open_truth(path, SLIDE, Reading()), open_region(path, SLIDE, cuts=False)
    whole = open_truth(write_outlines(path.with_name("b.geojson"), box(0, 0, SIDE, SIDE)), SLIDE, Reading())
    roi = whole.inside(open_region(path, SLIDE).area, SLIDE.size_px)
    assert truth.tumor.geometry.is_valid
    assert truth.tumor.total == pytest.approx(region.area.total, abs=1e-4)
    assert truth.tumor.total == pytest.approx(roi.tumor.total, abs=1e-4)
    sides = [shapely.LineString(side) for side in pairwise([*ring, ring[0]])]
    shape = (SIDE * 7, SIDE * 7)
    centres = (np.arange(SIDE * 7) + 0.5) / 7 + 1e-7  # on no line between whole numbers
    pixels = filled(region.area, SLIDE.size_px, shape)
    for row, column in np.random.default_rng(0).integers(0, SIDE * 7, (40, 2)):
        inside = winds_around(ring, centres[column], centres[row])
        near = sorted(shapely.distance(sides, shapely.Point(centres[column], centres[row])))
        # A pixel is set where half of it is covered: that is its centre where one side alone crosses it.
        if near[0] > 1e-3 and near[1] > 1 / 7:
            assert pixels[row, column] == inside
            assert truth.tumor.geometry.contains(shapely.Point(centres[column], centres[row])) == inside


@pytest.mark.parametrize(
    ("ring", "area"), [(STAR, 281119), (LOOP, 400 - 5 / 3), ([(0, 0), (9, 9), (9, 0), (0, 9)], 40.5)]
)
def test_stars_loops_and_bow_ties_have_the_area_of_their_fill(ring: Points, area: float) -> None:
    found, is_repaired = valid_polygon([ring])
    assert is_repaired
    assert found.area == pytest.approx(area, rel=1e-3)


@pytest.mark.parametrize(
    "rings",
    [
        [[(0, 0), (10, 0), (10, 10), (0, 10)]],
        [[(0, 0), (10, 0), (10, 10), (0, 10), (0, 0)]],
        [[(0, 0), (0, 0), (10, 0), (10, 0), (10, 10), (0, 10), (0, 0)]],
        [[(0, 0, 5), (10, 0, 5), (10, 10, 5), (0, 10, 5)]],
        [[(0, 0), (10, 0), (10, 10), (5, 10), (5, 30), (5, 10), (0, 10)]],  # a spike
        [[(0, 0), (10, 0), (10, 10), (0, 10)], []],
        [[(0, 0), (10, 0), (10, 10), (0, 10)], [(20, 20), (30, 20), (30, 30)]],  # a hole beside
        [[(0, 0), (20, 0), (20, 10), (0, 10)], [(10, 0), (20, 0), (20, 10), (10, 10)]],  # a hole along the ring
        [[(0, 0), (20, 0), (20, 10), (0, 10)], [(10, -5), (30, -5), (30, 15), (10, 15)]],  # a hole across the ring
        [[(0, 0), (0, 10), (10, 10), (10, 0), (0, 0), (0, 10), (10, 10), (10, 0)]],  # twice around
    ],
)
def test_odd_rings_of_a_square_are_that_square(rings: list[list[tuple[float, ...]]]) -> None:
    found, _ = valid_polygon(rings)
    assert found.equals(shapely.box(0, 0, 10, 10))


@pytest.mark.parametrize("name", ["Tumor", "Tissue"])
def test_a_loop_within_a_loop_is_tissue_as_it_is_truth(
    make_slide: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    ring = [(x * 32, y * 32) for x, y in LOOP]
    path = write_outlines(tmp_path / "a.geojson", polygon(ring, name))
    with Slide(make_slide("a.tiff")) as slide:
        tissue, _ = TissueChoice.of(str(path), ["a"]).find("a", slide)
        region = open_region(path, slide.facts)
    assert tissue.area_mm2 == pytest.approx(region.area.total * 0.25e-6, rel=0.02)
    assert region.area.total == pytest.approx((400 - 5 / 3) * 32**2, rel=1e-3)
    assert "a.geojson: repaired 1 self-crossing outline" in tissue.warnings


def test_large_tangles_are_repaired_quickly() -> None:
    turns: Any = np.linspace(0, 40 * math.pi, 4000)
    points = np.stack([(50 + turns) * np.cos(turns * 1.01), (50 + turns) * np.sin(turns)], 1) + 500
    found, _ = valid_polygon(json.loads(json.dumps([points.tolist()])))
    assert found.is_valid
    assert found.area > math.pi * 100**2
