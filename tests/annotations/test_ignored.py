"""What is ignored is neither tumour nor anything else, exactly; so is what lies outside a region of interest."""

from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from making.maps import box, slide_facts, write_outlines
from wsiseg.annotations.classes import Classes
from wsiseg.annotations.coverage import Area, Mask, Polygons, Truth
from wsiseg.annotations.truth import Reading, open_region, open_truth
from wsiseg.slides.slide import SlideFacts

SLIDE = slide_facts(100, 80)
EDGES = np.linspace(0, 100, 11), np.linspace(0, 80, 9)


def truth(folder: Path, *features: dict[str, object], slide: SlideFacts = SLIDE, **classes: tuple[str, ...]) -> Truth:
    return open_truth(write_outlines(folder / "a.geojson", *features), slide, Reading(Classes(**classes)))


def inside(path: Path, roi: Path, slide: SlideFacts = SLIDE) -> Truth:
    return open_truth(path, slide, Reading()).inside(open_region(roi, slide).area, slide.size_px)


Sides = tuple[int, int, int, int]


def sides(values: list[int]) -> Sides:
    (left, right), (top, below) = sorted(values[:2]), sorted(values[2:])
    return left, top, right + 1, below + 1


rectangle = st.lists(st.integers(0, 70), min_size=4, max_size=4).map(sides)


@given(rectangle, rectangle)
def test_ignore_takes_its_part_from_tumour_whichever_is_larger(
    tmp_path_factory: pytest.TempPathFactory, tumor: Sides, ignored: Sides
) -> None:
    folder = tmp_path_factory.mktemp("a")
    found = truth(folder, box(*tumor), box(*ignored, "Ignore*"))
    both = shapely.box(*tumor).intersection(shapely.box(*ignored)).area
    assert found.tumor.total == pytest.approx(shapely.box(*tumor).area - both)
    assert found.ignored.total == pytest.approx(shapely.box(*ignored).area)
    tumor_px, out = found.covered(*EDGES)
    assert tumor_px.sum() == pytest.approx(found.tumor.total)
    assert out.sum() == pytest.approx(found.ignored.total)
    assert (tumor_px + out <= 100 + 1e-9).all()


def test_further_classes_can_be_ignored_and_do_not_cut_like_holes(tmp_path: Path) -> None:
    features = box(0, 0, 40, 40), box(10, 0, 20, 40, "Folded  tissue"), box(20, 0, 30, 40, "Normal")
    found = truth(tmp_path, *features, ignored=("folded tissue",))
    assert (found.tumor.total, found.ignored.total) == (20 * 40, 10 * 40)
    assert truth(tmp_path, *features, ignored=("normal",)).ignored.geometry.bounds == (20, 0, 30, 40)
    assert truth(tmp_path, *features, ignored=("Tumor",), tumor=("normal",)).tumor.total == 0


def test_what_is_ignored_moves_with_the_bounds_of_the_scan(tmp_path: Path) -> None:
    slide = slide_facts(1000, 800, bounds=(300, 200, 400, 400))
    found = truth(tmp_path, box(0, 0, 40, 40), box(0, 0, 10, 10, "Ignore*"), slide=slide)
    assert found.ignored.geometry.bounds == (300, 200, 310, 210)
    roi = write_outlines(tmp_path / "b.geojson", box(0, 0, 20, 40))
    assert inside(tmp_path / "a.geojson", roi, slide).tumor.geometry.bounds == (300, 200, 320, 240)


def test_everything_outside_a_region_is_ignored(tmp_path: Path) -> None:
    path = write_outlines(tmp_path / "a.geojson", box(10, 10, 50, 50), box(10, 10, 20, 20, "Ignore*"))
    roi = write_outlines(tmp_path / "b.geojson", box(0, 0, 30, 80, "Region*"), box(25, 0, 30, 80, "Exclude"))
    found = inside(path, roi)
    assert found.tumor.total == 15 * 40 - 100
    assert found.ignored.total == 100 * 80 - 25 * 80 + 100
    tumor, ignored = found.covered(*EDGES)
    assert (ignored[:, 3:] == 100).all()
    assert tumor[1, 1] == 0 and ignored[1, 1] == 100  # noqa: PT018  one cell
    assert (tumor[2, 2], ignored[2, 2]) == (50, 50)


@pytest.mark.parametrize("kind", ["mask", "outlines"])
def test_a_region_may_be_a_mask_and_so_may_truth(tmp_path: Path, kind: str) -> None:
    pixels = np.zeros((8, 10), np.uint8)
    pixels[:4, :3] = 7
    Image.fromarray(pixels).save(tmp_path / "b.png")
    if kind == "mask":
        path = tmp_path / "a.png"
        Image.fromarray(np.pad(np.ones((4, 4), np.uint8), ((2, 2), (0, 6)))).save(path)
    else:
        path = write_outlines(tmp_path / "a.geojson", box(0, 20, 40, 60))
    found = inside(path, tmp_path / "b.png")
    assert found.tumor.total == 30 * 20
    assert found.ignored.total == 8000 - 30 * 40
    np.testing.assert_allclose(found.covered(*EDGES)[1], 100 - (pixels > 0) * 100.0)


areas = st.one_of(
    rectangle.map(lambda one: Polygons(shapely.box(*one))),
    st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([(9.5, 7.0), (3.3, 8.1)])).map(
        lambda one: Mask(np.random.default_rng(one[0]).random((8, 9)) < 0.4, one[1], (2.5, 0.0))
    ),
)


@given(areas, areas)
def test_what_is_outside_a_region_is_ignored_of_all_areas(tumor: Area, region: Area) -> None:
    found = Truth(tumor).inside(region, (100, 80))
    inside, ignored = found.covered(*EDGES)
    np.testing.assert_allclose(ignored, 100 - region.covered(*EDGES), atol=1e-6)
    whole = Truth(tumor).inside(Polygons(shapely.box(0, 0, 100, 80)), (100, 80)).tumor
    both = shapely.intersection(tumor.geometry, region.geometry).area
    assert found.tumor.total == pytest.approx(both, abs=1e-6)
    assert found.tumor.total == pytest.approx(inside.sum(), abs=1e-6)
    np.testing.assert_allclose(whole.covered(*EDGES), tumor.covered(*EDGES), atol=1e-6)


def test_regions_leave_out_what_is_not_meant_unless_all_counts(tmp_path: Path) -> None:
    path = write_outlines(tmp_path / "a.geojson", box(0, 0, 40, 40, "Tissue"), box(0, 0, 10, 10, "Pen"))
    assert open_region(path, SLIDE).area.total == 1500
    assert open_region(path, SLIDE, cuts=False).area.total == 1600
    assert len(open_region(path, SLIDE).pieces) == 2
