"""What a person sees as marked is marked however it was stored, or the mask is refused, or a note says how."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from making.maps import slide_facts
from wsiseg.annotations.classes import Classes
from wsiseg.annotations.coverage import Mask
from wsiseg.annotations.outlines import AnnotationError
from wsiseg.annotations.truth import Reading, open_region, open_truth
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue_choice import TissueChoice

ROWS, COLUMNS = 96, 128
MARKED = np.zeros((ROWS, COLUMNS), np.bool_)
MARKED[10:50, 20:37] = True  # neither a half nor symmetric: no inversion gives the same
UPPER = np.arange(ROWS)[:, None] < 60
SHADES = MARKED * np.uint8(255)
SLIDE = slide_facts(COLUMNS * 8, ROWS * 8)


def with_palette(index: NDArray[Any], *colors: int) -> Image.Image:
    image = Image.fromarray(index.astype(np.uint8), "P")
    image.putpalette(list(colors))
    return image


def with_alpha(color: int | NDArray[np.uint8], alpha: int | NDArray[np.uint8]) -> Image.Image:
    bands = [np.broadcast_to(np.asarray(band, np.uint8), MARKED.shape) for band in (color, alpha)]
    return Image.merge("LA", [Image.fromarray(np.ascontiguousarray(band)) for band in bands])


def painted(mark: tuple[int, ...], ground: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.where(MARKED[..., None], mark, ground).astype(np.uint8))


def transparent_palette() -> Image.Image:
    image = with_palette(MARKED, 9, 9, 9, 200, 0, 0)
    image.info["transparency"] = 0
    return image


def soft() -> Image.Image:
    return Image.fromarray(SHADES).filter(ImageFilter.GaussianBlur(0.7))


PNG: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "grey": (lambda: Image.fromarray(SHADES), ""),
    "grey of 0 and 1": (lambda: Image.fromarray(MARKED.astype(np.uint8)), ""),
    "one bit": (lambda: Image.fromarray(SHADES).convert("1"), ""),
    "16 bit": (lambda: Image.fromarray(MARKED * np.uint16(40000)), ""),
    "palette with white first": (lambda: with_palette(~MARKED, 255, 255, 255, 0, 0, 0), "colours of its palette"),
    "palette with black first": (lambda: with_palette(MARKED, 0, 0, 0, 255, 255, 255), "colours of its palette"),
    "palette with red first": (lambda: with_palette(~MARKED, 200, 0, 0, 0, 0, 0), "colour #c80000 is marked"),
    "palette with red second": (lambda: with_palette(MARKED, 0, 0, 0, 200, 0, 0), "colour #c80000 is marked"),
    "palette with white, then red": (lambda: with_palette(MARKED, 255, 255, 255, 200, 0, 0), "#c80000 is marked"),
    "palette with transparency": (transparent_palette, "opaque in it is marked"),
    "quantised": (lambda: Image.fromarray(SHADES).convert("RGB").quantize(2), "colours of its palette"),
    "three equal channels": (lambda: Image.fromarray(SHADES).convert("RGB"), ""),
    "red on black": (lambda: painted((200, 0, 0), (0, 0, 0)), "colour #c80000 is marked"),
    "blue on black": (lambda: painted((0, 0, 255), (0, 0, 0)), "colour #0000ff is marked"),
    "green on white": (lambda: painted((0, 160, 0), (255, 255, 255)), "colour #00a000 is marked"),
    "all opaque": (lambda: with_alpha(SHADES, 255), ""),
    "alike transparent": (lambda: with_alpha(SHADES, 90), ""),
    "white, opaque where marked": (lambda: with_alpha(255, SHADES), "opaque in it is marked"),
    "black, opaque where marked": (lambda: with_alpha(0, SHADES), "opaque in it is marked"),
    "red, opaque where marked": (lambda: painted((200, 0, 0, 255), (0, 90, 0, 0)), "opaque in it is marked"),
    "grey, transparent around": (
        lambda: with_alpha(np.where(UPPER, SHADES, 255), UPPER * np.uint8(255)),
        "transparent in it is background",
    ),
    "soft edges": (soft, "soft edges"),
}  # fmt: skip


def marks(path: Path) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """Read a mask as truth and as region, which must agree."""
    truth = open_truth(path, SLIDE, Reading())
    region = open_region(path, SLIDE)
    assert isinstance(truth.tumor, Mask)
    assert isinstance(region.area, Mask)
    np.testing.assert_array_equal(truth.tumor.pixels, region.area.pixels)
    assert truth.notes == region.notes
    assert truth.tumor.step_px == region.area.step_px == (8, 8)
    return truth.tumor.pixels, truth.notes


@pytest.mark.parametrize("kind", PNG)
def test_png_masks_mark_what_a_person_sees(tmp_path: Path, kind: str) -> None:
    make, note = PNG[kind]
    make().save(tmp_path / "a.png")
    found, notes = marks(tmp_path / "a.png")
    assert (found != MARKED).sum() <= (4 if note == "soft edges" else 0)  # corners are rounded
    assert [note in one and one.startswith("a.png: ") for one in notes] == [True] * bool(note)


def test_a_palette_marks_the_same_as_tissue(tmp_path: Path, make_slide: Callable[..., Path]) -> None:
    PNG["palette with white first"][0]().save(tmp_path / "a.png")
    with Slide(make_slide("a.tiff")) as slide:
        tissue, _ = TissueChoice.of(str(tmp_path / "a.png"), ["a"]).find("a", slide)
    np.testing.assert_array_equal(tissue.mask, MARKED)
    assert "a.png: was read by the colours of its palette, not by their order" in tissue.warnings


TIFF: dict[str, tuple[NDArray[Any], dict[str, Any], str]] = {
    "booleans": (MARKED, {}, "stored white-is-zero"),
    "white is zero": (SHADES, {"photometric": "miniswhite"}, "stored white-is-zero"),
    "16 bit, white is zero": (MARKED * np.uint16(9), {"photometric": "miniswhite"}, "stored white-is-zero"),
    "ImageJ": (SHADES, {"imagej": True, "photometric": "minisblack"}, ""),
    "16 bit, high byte first": (MARKED * np.uint16(255), {"byteorder": ">"}, ""),
    "32 bit": (MARKED.astype(np.uint32), {}, ""),
    "numbers of 4 bytes": (MARKED.astype(np.float32), {}, ""),
    "not numbers": (np.where(MARKED, np.float32(1), np.nan), {}, ""),
    "tiles": (SHADES, {"tile": (32, 32), "compression": "zlib"}, ""),
    "colour planes": (np.stack([SHADES, 0 * SHADES, 0 * SHADES]), {"planarconfig": "separate", "photometric": "rgb"},
                          "#ff0000 is marked"),
    "JPEG": (SHADES, {"compression": "jpeg", "compressionargs": {"level": 60}}, "soft edges"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TIFF)
def test_tiff_masks_mark_what_the_array_marked(tmp_path: Path, kind: str) -> None:
    pixels, how, note = TIFF[kind]
    tifffile.imwrite(tmp_path / "a.tif", pixels, **how)
    found, notes = marks(tmp_path / "a.tif")
    np.testing.assert_array_equal(found, MARKED)
    assert [note in one for one in notes] == [True] * bool(note)


def test_levels_of_a_pyramid_are_one_mask_and_a_stack_is_several(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for level in range(3):
            file.write(SHADES[:: 2**level, :: 2**level], tile=(32, 32), subfiletype=int(level > 0))
    np.testing.assert_array_equal(marks(tmp_path / "a.tif")[0], MARKED)
    tifffile.imwrite(tmp_path / "b.tif", np.stack([SHADES, SHADES]), photometric="minisblack")
    with pytest.raises(AnnotationError, match=r"b\.tif: holds several images of 128x96 pixels"):
        marks(tmp_path / "b.tif")


LABELS = np.zeros((ROWS, COLUMNS), np.uint8)
LABELS[:20], LABELS[20:30], LABELS[30:35] = 1, 2, 255
THREE = np.array([[0, 0, 0], [200, 0, 0], [0, 160, 0]], np.uint8)
UNCLEAR: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "labels": (lambda: Image.fromarray(LABELS), "nothing is of a class known as tumour, but of 1, 2, 255"),
    "labels in a palette": (lambda: with_palette(LABELS % 3, *THREE.ravel()), "but of 1, 2"),
    "two colours": (lambda: painted((200, 0, 0), (0, 160, 0)), "colours do not say what is marked: #00a000, #c80000"),
    "three colours": (lambda: Image.fromarray(THREE[LABELS % 3]), "colours do not say what is marked"),
    "palette of two colours": (lambda: with_palette(MARKED, 200, 0, 0, 0, 160, 0), "colours do not say"),
    "photograph": (lambda: Image.effect_noise((COLUMNS, ROWS), 90).convert("RGB"), "unclear"),
    "transparent everywhere": (lambda: with_alpha(SHADES, 0), "is transparent everywhere"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNCLEAR)
def test_what_can_be_meant_in_two_ways_is_refused(tmp_path: Path, kind: str) -> None:
    make, reason = UNCLEAR[kind]
    make().save(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match=r"^a\.png: ") as refused:
        open_truth(tmp_path / "a.png", SLIDE, Reading())
    assert reason == "unclear" or reason in refused.value.message
    assert refused.value.hint


def test_white_is_zero_by_a_program_that_may_mean_either_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", SHADES, photometric="miniswhite", software="Scan", metadata=None)
    with pytest.raises(AnnotationError, match=r"^a\.tif: is stored white-is-zero.*; save it as PNG"):
        marks(tmp_path / "a.tif")


def test_named_labels_are_chosen_and_ignored(tmp_path: Path) -> None:
    colors = np.random.default_rng(0).integers(0, 255, 256 * 3)
    colors[:3] = 0
    for image in (Image.fromarray(LABELS), with_palette(LABELS, *colors)):
        image.save(tmp_path / "a.png")
        truth = open_truth(tmp_path / "a.png", SLIDE, Reading(Classes(("2",), ignored=("255",))))
        assert truth.tumor.total == 10 * COLUMNS * 64
        assert truth.ignored.total == 5 * COLUMNS * 64
    Image.fromarray(np.where(LABELS == 1, 0, LABELS)).save(tmp_path / "a.png")
    truth = open_truth(tmp_path / "a.png", SLIDE, Reading(Classes(ignored=("255",))))
    assert truth.tumor.total == 10 * COLUMNS * 64  # the only label that is left
    soft().save(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match="soft edges, so its values are not classes"):
        open_truth(tmp_path / "a.png", SLIDE, Reading(Classes(("255",))))


def test_a_region_takes_every_label(tmp_path: Path) -> None:
    Image.fromarray(LABELS).save(tmp_path / "a.png")
    assert open_region(tmp_path / "a.png", SLIDE).area.total == 35 * COLUMNS * 64


def test_the_size_that_pillow_takes_for_an_attack_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(SHADES).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2 * COLUMNS)
    monkeypatch.setattr("wsiseg.annotations.mask_files._BAND_ROWS", 2)
    np.testing.assert_array_equal(marks(tmp_path / "a.png")[0], MARKED)
    monkeypatch.setattr("wsiseg.annotations.mask_files._MOST_BYTES", ROWS * COLUMNS - 1)
    with pytest.raises(
        AnnotationError, match=r"a\.png: 128x96 pixels are too many .*; store it as a TIFF with smaller levels"
    ):
        marks(tmp_path / "a.png")
