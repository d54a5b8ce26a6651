from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from wsiseg.run.errors import SlideError
from wsiseg.slides.slide import Slide
from wsiseg.tiles.stain import is_stained
from wsiseg.tiles.tissue import detect, find_tissue

MakeSlide = Callable[..., Path]
Pixels = NDArray[np.uint8]

GLASS = (229, 222, 230)


@pytest.fixture(scope="session")
def lymph_node(data: Path) -> Pixels:
    """Give a real H&E section on real glass, 600x600 at some 8 um per pixel."""
    path = data / "slides" / "dicom_camelyon" / "multiframe_camelyon_challenge_image.dcm"
    with Slide(path, mpp=8.0) as slide:
        return slide.overview(8.0).image[60:660, 20:620]


def with_ink(picture: Pixels, color: tuple[int, int, int]) -> tuple[Pixels, NDArray[np.bool_]]:
    """Draw a frame around the tissue with a soft marker, as people do; also give where the ink lies."""
    frame = [(30, 40), (60, 560), (300, 580), (570, 540), (560, 60), (420, 30)]
    stroke = Image.new("L", (picture.shape[1], picture.shape[0]))
    ImageDraw.Draw(stroke).line(frame, fill=255, width=22, joint="curve")
    opacity = np.asarray(stroke.filter(ImageFilter.GaussianBlur(2)), float)[..., None] / 255 * 0.92
    inked = picture * (1 - opacity + opacity * np.array(color) / 240)
    return inked.astype(np.uint8), opacity[..., 0] > 0.02


@pytest.mark.parametrize(
    "color",
    [
        (28, 28, 32),
        (110, 108, 112),
        (40, 70, 150),
        (120, 170, 220),
        (30, 110, 70),
        (90, 180, 60),
        (205, 40, 50),
        (230, 120, 50),
    ],
    ids=["black", "grey", "blue", "light blue", "green", "light green", "red", "orange"],
)
def test_ink_is_no_tissue_and_the_tissue_stays(lymph_node: Pixels, color: tuple[int, int, int]) -> None:
    tissue = detect(lymph_node)
    inked, ink = with_ink(lymph_node, color)
    found = detect(inked)
    assert found[tissue & ~ink].mean() > 0.99
    assert found[ink & ~tissue].mean() < 0.02
    assert found[~ink & ~tissue].mean() < 0.005


@pytest.mark.parametrize("color", [(35, 40, 90), (150, 20, 35)], ids=["navy", "dark red"])
def test_of_dark_ink_no_more_than_the_rim_is_taken(lymph_node: Pixels, color: tuple[int, int, int]) -> None:
    inked, ink = with_ink(lymph_node, color)
    assert detect(inked)[ink & ~detect(lymph_node)].mean() < 0.4


@pytest.mark.parametrize("strength", [0.5, 0.3, 0.2])
def test_pale_sections_are_found(lymph_node: Pixels, strength: float) -> None:
    """Stain of a fifth of the strength takes the square root of a square root of the light."""
    glass = np.array(GLASS, float)
    pale = (glass * (np.maximum(lymph_node, 1) / glass) ** strength).clip(0, 255).astype(np.uint8)
    tissue = detect(lymph_node)
    assert detect(pale)[tissue].mean() > 0.85
    assert detect(pale)[~tissue].mean() < 0.005


def test_black_borders_bubbles_and_uneven_light_are_no_tissue(lymph_node: Pixels) -> None:
    tissue = detect(lymph_node)
    bordered = lymph_node.copy()
    bordered[:40] = bordered[-25:] = 6
    bordered[:, :30] = 8
    assert detect(bordered)[50:-35, 40:].sum() > 0.97 * tissue[50:-35, 40:].sum()
    assert not detect(bordered)[:38].any()
    y, x = np.mgrid[:600, :600]
    ring = np.exp(-(((np.hypot(x - 480, y - 420) - 90) / 4) ** 2))[..., None]
    bubble = (lymph_node * (1 - ring * np.array([0.75, 0.76, 0.78]))).astype(np.uint8)
    assert (detect(bubble) & ~tissue).mean() < 0.002
    light = 1 - 0.12 * ((x - 300.0) ** 2 + (y - 300.0) ** 2) / 180_000
    uneven = (lymph_node * light[..., None]).astype(np.uint8)
    assert (detect(uneven) & ~tissue).mean() < 0.002
    assert detect(uneven)[tissue].mean() > 0.95


def test_the_frozen_section_and_its_white_surround(data: Path) -> None:
    with Slide(data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs", mpp=0.5) as slide:
        tissue, thumbnail = find_tissue(slide)
    is_dark = thumbnail.min(2) < 190
    assert tissue.mask[is_dark].mean() > 0.98
    assert tissue.mask[thumbnail.min(2) > 225].mean() < 0.03  # small lumens are filled
    assert tissue.area_mm2 == pytest.approx(2.53, abs=0.1)


def test_fluorescence_has_no_tissue_and_is_no_error(data: Path) -> None:
    with Slide(data / "slides" / "hamamatsu_test3-DAPI-2-387.ndpi") as slide:
        tissue, _ = find_tissue(slide)
    assert not tissue.mask.any()
    assert tissue.warnings == ()


@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))))
def test_any_pixels_give_a_mask(image: Pixels) -> None:
    assert is_stained(image).shape == image.shape[:2]
    assert detect(image).shape == image.shape[:2]


@pytest.mark.parametrize("value", [0, 128, 255])
def test_one_colour_is_no_tissue(value: int) -> None:
    assert not detect(np.full((40, 50, 3), value, np.uint8)).any()


def test_specks_go_and_enclosed_holes_are_filled() -> None:
    image = np.full((100, 100, 3), 240, np.uint8)
    image[20:80, 20:80] = (200, 100, 160)
    image[40:46, 40:46] = 240  # a lumen of 48 um
    image[5:8, 5:8] = (200, 100, 160)  # a speck of 24 um
    found = detect(image)
    assert found[20:80, 20:80].all()
    assert found.sum() == 60 * 60


def test_a_small_slide_without_tissue_has_none(make_slide: MakeSlide) -> None:
    """The whole of it is smaller than a hole that would be filled."""
    with Slide(make_slide("a.tiff", np.full((16, 16, 3), 240, np.uint8))) as slide:
        assert find_tissue(slide)[0].area_mm2 == 0


def test_tissue_is_sought_within_the_bounds_of_the_scan(make_slide: MakeSlide) -> None:
    with Slide(make_slide("a.scn", frame=(1200, 900, 4000, 3000))) as slide:
        tissue, _ = find_tissue(slide)
    rows, columns = np.nonzero(tissue.mask)
    assert (columns.min() * 16, columns.max() * 16) == pytest.approx((1200 + 174, 1200 + 850), abs=32)
    assert (rows.min() * 16, rows.max() * 16) == pytest.approx((900 + 130, 900 + 638), abs=32)
    assert tissue.area_mm2 == pytest.approx(np.pi * 0.33 * 0.33 * 1024 * 768 * 0.25e-6, rel=0.06)


def test_stain_beyond_the_bounds_of_the_scan_is_not_tissue(make_slide: MakeSlide) -> None:
    pink = np.full((768, 1024, 3), (200, 120, 170), np.uint8)
    with Slide(make_slide("a.tiff", pink)) as slide:
        bounds = {"x": 256, "y": 128, "width": 512, "height": 384}
        slide.properties = {**slide.properties, **{f"openslide.bounds-{key}": str(n) for key, n in bounds.items()}}
        tissue, _ = find_tissue(slide)
    rows, columns = np.nonzero(tissue.mask)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (16, 47, 8, 31)
    assert tissue.mask.sum() == 32 * 24


def test_little_tissue_and_tissue_all_over_warn_but_none_does_not(make_slide: MakeSlide) -> None:
    with Slide(make_slide("a.tiff")) as slide:
        (warning,) = find_tissue(slide)[0].warnings
    assert warning == "less than 0.5 mm2 of tissue", (
        "and no area, as that of the cells that are looked at differs a little"
    )
    pink = np.full((2000, 2000, 3), (200, 120, 170), np.uint8)
    with Slide(make_slide("b.tiff", pink)) as slide:
        assert find_tissue(slide)[0].warnings == ("100% of the frame is taken for tissue",)


def test_what_cannot_be_read_is_no_tissue_and_is_told(make_slide: MakeSlide) -> None:
    import tifffile  # noqa: PLC0415  only here

    pink = np.full((2048, 2048, 3), (200, 120, 170), np.uint8)
    path = make_slide("a.tiff", pink, compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        begin, length = page.dataoffsets[9], page.databytecounts[9]
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(b"\xff" * length)
    with Slide(path) as slide:
        with pytest.raises(SlideError, match="cannot be read"):
            find_tissue(slide)
        tissue, thumbnail = find_tissue(slide, most_unreadable=0.05)
    assert not tissue.mask[18:30, 18:30].any()
    assert (thumbnail[18:30, 18:30] == 0).all()
    assert tissue.mask.mean() == pytest.approx(1 - tissue.unreadable_share)
    assert 1 / 64 <= tissue.unreadable_share < 1.8 / 64
    assert any("cannot be read and is left out" in warning for warning in tissue.warnings)
