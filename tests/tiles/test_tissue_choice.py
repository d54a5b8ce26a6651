import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsiseg.annotations.coverage import Mask, Polygons
from wsiseg.annotations.outlines import AnnotationError
from wsiseg.run.errors import SlideError, UsageError, WsisegError
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue import TissueMask
from wsiseg.tiles.tissue_choice import TissueChoice, filled, missing

MakeSlide = Callable[..., Path]


def polygon(ring: list[tuple[int, int]], *holes: list[tuple[int, int]], name: str = "Tissue") -> dict[str, object]:
    geometry = {"type": "Polygon", "coordinates": [[*one, one[0]] for one in (ring, *holes)]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}


def box(left: int, top: int, right: int, below: int) -> list[tuple[int, int]]:
    return [(left, top), (right, top), (right, below), (left, below)]


def write_outlines(path: Path, *features: dict[str, object]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def found(setting: Path | str, slide: Path) -> TissueMask:
    with Slide(slide) as opened:
        return TissueChoice.of(str(setting), [slide.stem]).find(slide.stem, opened)[0]


def test_none_takes_everything(make_slide: MakeSlide) -> None:
    tissue = found("none", make_slide("a.tiff"))
    assert tissue.mask.all()
    assert tissue.source == "none"
    assert tissue.warnings == ()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("value", [1, 255])
def test_a_mask_image_covers_the_slide_at_any_size(
    make_slide: MakeSlide, tmp_path: Path, suffix: str, value: int
) -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[24:48, 32:96] = value
    path = tmp_path / f"mask{suffix}"
    Image.fromarray(mask).save(path)
    tissue = found(path, make_slide("a.tiff"))
    assert tissue.area_mm2 == pytest.approx(24 * 64 * 16e-6)
    assert tissue.pixel_level0 == (8, 8)
    assert (tissue.mask == (mask > 0)).all()
    assert tissue.source == path.name


def test_outlines_are_filled_with_their_holes(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = write_outlines(
        tmp_path / "mine.geojson",
        polygon(box(160, 160, 640, 640), box(320, 320, 480, 480)),
        polygon(box(352, 352, 448, 448)),  # an island in the hole
        polygon(box(160, 160, 240, 240), name="Ignore*"),
    )
    tissue = found(path, make_slide("a.tiff", size=(1600, 1280), mpp=1.0))
    assert tissue.area_mm2 == pytest.approx((480**2 - 160**2 + 96**2 - 80**2) * 1e-6, rel=1e-9)
    assert not tissue.mask[20 + 4, 20 + 4]
    assert tissue.mask[50, 50]


def test_outlines_count_from_the_bounds_as_in_qupath(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = write_outlines(tmp_path / "mine.geojson", polygon(box(0, 0, 512, 384)))
    tissue = found(path, make_slide("a.scn", frame=(1600, 3200, 4800, 6400)))
    rows, columns = np.nonzero(tissue.mask)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (100, 131, 200, 223)


def test_masks_of_a_folder_belong_to_the_slides_of_their_names(make_slide: MakeSlide, tmp_path: Path) -> None:
    slides = [make_slide(f"{name}.tiff") for name in ("a", "b.c", "d")]
    folder = tmp_path / "masks"
    folder.mkdir()
    Image.fromarray(np.full((96, 128), 1, np.uint8)).save(folder / "a.png")
    write_outlines(folder / "b.c.geojson")
    choice = TissueChoice.of(str(folder), ["a", "b.c", "d"])
    with Slide(slides[0]) as slide:
        assert choice.find("a", slide)[0].mask.all()
    with Slide(slides[1]) as slide:
        assert not choice.find("b.c", slide)[0].mask.any()
    with Slide(slides[2]) as slide, pytest.raises(SlideError, match=r"d\.tiff: no tissue mask.*add d\.png"):
        choice.find("d", slide)


def test_a_mask_that_would_not_be_used_stops_the_run(tmp_path: Path) -> None:
    mask = tmp_path / "other.png"
    Image.fromarray(np.full((96, 128), 1, np.uint8)).save(mask)
    with pytest.raises(UsageError, match=r"other\.png would not be used.*named?.*|other would not be used"):
        TissueChoice.of(str(tmp_path), ["a"])
    with pytest.raises(UsageError, match="would not be used"):
        TissueChoice.of(str(mask), ["a", "b"])
    with pytest.raises(UsageError, match="no such file"):
        TissueChoice.of(str(tmp_path / "missing.png"), ["a"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no masks and no GeoJSON"):
        TissueChoice.of(str(tmp_path / "empty"), ["a"])


def test_a_mask_of_another_slide_is_refused(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff")
    Image.fromarray(np.full((128, 96), 1, np.uint8)).save(tmp_path / "turned.png")
    with pytest.raises(AnnotationError, match=r"turned\.png: its 96x128 pixels do not cover the slide's 1024x768"):
        found(tmp_path / "turned.png", path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(AnnotationError, match="more colours than a mask"):
        found(tmp_path / "photo.png", path)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(WsisegError, match=r"broken\.png"):
        found(tmp_path / "broken.png", path)
    (tmp_path / "broken.geojson").write_text("{")
    with pytest.raises(WsisegError, match=r"broken\.geojson"):
        found(tmp_path / "broken.geojson", path)


def test_a_mask_that_changes_changes_the_settings(tmp_path: Path) -> None:
    mask = tmp_path / "a.png"
    Image.fromarray(np.full((96, 128), 1, np.uint8)).save(mask)
    before = TissueChoice.of(str(mask), ["a"]).settings("a")
    Image.fromarray(np.full((96, 128), 0, np.uint8)).save(mask)
    assert TissueChoice.of(str(mask), ["a"]).settings("a") != before
    assert TissueChoice.of("auto", ["a"]).settings("a") == "auto"


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(16.3, 11.1), (4.0, 5.0)]),
    st.sampled_from([(0.0, 0.0), (-13.1, 7.3)]),
)
def test_a_mask_fills_what_its_outlines_fill(seed: int, step: tuple[float, float], offset: tuple[float, float]) -> None:
    mask = Mask(np.random.default_rng(seed).random((9, 7)) < 0.5, step, offset)
    found = filled(mask, (100, 80), (31, 43))
    np.testing.assert_array_equal(found, filled(Polygons(mask.geometry), (100, 80), (31, 43)))


def test_pieces_that_touch_no_tissue_are_counted() -> None:
    tissue = np.zeros((8, 10), np.bool_)
    tissue[2:4, 3:5] = True  # x 30 to 50, y 20 to 40
    inside, across, far = (
        Polygons(shapely.box(*corners)) for corners in ((31, 21, 32, 22), (45, 35, 90, 70), (60, 50, 90, 70))
    )
    assert missing([inside, across, far, far, far], (100, 80), tissue) == 3
    assert missing([Mask(tissue, (10.0, 10.0)), Mask(~tissue[::-1], (1.0, 1.0))], (100, 80), tissue) == 1
