import math
from pathlib import Path
from typing import Any

import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from making.slides import stained_picture
from wsiseg.run.errors import PixelSizeError
from wsiseg.slides.pixel_size import pixel_size
from wsiseg.slides.slide import Slide

SIZE = (40_000, 30_000)
READER = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.251"}
VENDOR = {"aperio.MPP": "0.26"}
TAGS = {"tiff.ResolutionUnit": "centimeter", "tiff.XResolution": "37037.037", "tiff.YResolution": "37037.037"}
OBJECTIVE = {"openslide.objective-power": "40"}


@pytest.mark.parametrize(
    ("properties", "mpp", "source"),
    [
        (READER | VENDOR | TAGS | OBJECTIVE, (0.25, 0.251), "openslide.mpp-x"),
        (VENDOR | TAGS | OBJECTIVE, (0.26, 0.26), "aperio.MPP"),
        (TAGS | OBJECTIVE, (0.27, 0.27), "tiff.XResolution"),
        (OBJECTIVE, (0.25, 0.25), "openslide.objective-power"),
        ({"openslide.mpp-x": "0.3"}, (0.3, 0.3), "openslide.mpp-x"),
        ({"openslide.mpp-y": "0,3"}, (0.3, 0.3), "openslide.mpp-x"),
        ({"openslide.mpp-x": "nonsense", **VENDOR}, (0.26, 0.26), "aperio.MPP"),
        ({"openslide.mpp-x": "0", **VENDOR}, (0.26, 0.26), "aperio.MPP"),
        ({"tiff.ResolutionUnit": "inch", "tiff.XResolution": "50800"}, (0.5, 0.5), "tiff.XResolution"),
    ],
)
def test_the_first_statement_of_the_chain_counts(
    properties: dict[str, str], mpp: tuple[float, float], source: str
) -> None:
    found = pixel_size("a.svs", properties, SIZE)
    assert found.mpp == pytest.approx(mpp)
    assert found.source == source
    assert found.raw == properties


@pytest.mark.parametrize(
    ("properties", "sentence"),
    [
        ({}, r"a\.svs: no pixel size in the file; give --slide-mpp or the mpp column"),
        ({"tiff.ResolutionUnit": "none", "tiff.XResolution": "1"}, "no pixel size"),
        ({"openslide.mpp-x": "352.8"}, r"a\.svs: its pixels are said to be 352\.8 x 352\.8 um.*outside 0\.05-10"),
        ({"openslide.mpp-x": "0.01", **VENDOR}, "outside 0.05-10 um"),
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.27"}, "not square"),
    ],
)
def test_no_pixel_size_and_nonsense_are_errors_unless_the_user_knows_better(
    properties: dict[str, str], sentence: str
) -> None:
    with pytest.raises(PixelSizeError, match=sentence) as caught:
        pixel_size("a.svs", properties, SIZE)
    assert "--slide-mpp" in caught.value.hint
    assert pixel_size("a.svs", properties, SIZE, user=0.25).mpp == (0.25, 0.25)
    assert pixel_size("a.svs", properties, SIZE, user=0.25).source == "user"


def test_the_objective_is_a_guess_and_a_contradiction_is_told() -> None:
    assert "guessed from the 40x objective" in pixel_size("a.svs", OBJECTIVE, SIZE).warnings[0]
    assert pixel_size("a.svs", READER | OBJECTIVE, SIZE).warnings == ()
    (warning,) = pixel_size("a.svs", {"openslide.mpp-x": "0.5"} | OBJECTIVE, SIZE).warnings
    assert "40x objective does not fit 0.5 um/px" in warning
    assert "does not fit" in pixel_size("a.svs", READER | OBJECTIVE, SIZE, user=0.5).warnings[0]
    assert "outside 0.05-10" in pixel_size("a.svs", {}, (2000, 1000), user=28.9).warnings[0]


def test_a_slide_wider_than_any_glass_is_refused() -> None:
    """The user may have typed nanometers."""
    with pytest.raises(PixelSizeError, match="would measure 10000 x 7500 mm"):
        pixel_size("a.svs", READER, SIZE, user=250)


@given(st.dictionaries(st.sampled_from(sorted(READER | VENDOR | TAGS | OBJECTIVE)), st.text(max_size=12)))
def test_whatever_a_file_says_the_size_can_be_true_or_is_refused(properties: dict[str, str]) -> None:
    try:
        found = pixel_size("a.svs", properties, SIZE)
    except PixelSizeError:
        return
    assert all(math.isfinite(value) and 0.05 <= value <= 10 for value in found.mpp)
    assert max(found.mpp) <= 1.05 * min(found.mpp) + 1e-9


def ome(x: str, unit: str | None = None, size: tuple[int, int] = SIZE, before: str = "") -> dict[str, str]:
    units = "" if unit is None else f' PhysicalSizeXUnit="{unit}" PhysicalSizeYUnit="{unit}"'
    pixels = f'<Pixels SizeX="{size[0]}" SizeY="{size[1]}" PhysicalSizeX="{x}" PhysicalSizeY="{x}"{units}/>'
    xml = f'{before}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image>{pixels}</Image></OME>'
    return {"tiff.ImageDescription": xml, "openslide.vendor": "generic-tiff"}


@pytest.mark.parametrize(
    ("x", "unit"),
    [
        ("0.25", None),
        ("0.25", "µm"),
        ("0.25", "\u03bcm"),
        ("250", "nm"),
        ("2.5e-4", "mm"),
        ("2.5e-5", "cm"),
        ("2.5e-7", "m"),
        ("2500", "Å"),
    ],
)
def test_the_physical_size_of_ome_counts_in_its_unit(x: str, unit: str | None) -> None:
    screen = {"tiff.ResolutionUnit": "inch", "tiff.XResolution": "72", "openslide.mpp-x": "352.8"}
    found = pixel_size("a.ome.tif", ome(x, unit) | screen, SIZE)
    assert found.mpp == pytest.approx((0.25, 0.25))
    assert found.source == "ome.PhysicalSizeX"
    assert found.raw["ome.PhysicalSizeX"] == "0.25"
    assert found.warnings == ()


@pytest.mark.parametrize("unit", ["pixel", "reference frame", "px"])
def test_a_physical_size_in_pixels_says_nothing(unit: str) -> None:
    with pytest.raises(PixelSizeError, match="no pixel size in the file"):
        pixel_size("a.ome.tif", ome("1", unit), SIZE)


def test_of_several_images_the_one_of_the_slide_counts() -> None:
    label, slide = ome("9", size=(100, 100)), ome("0.25")
    text = slide["tiff.ImageDescription"]
    inner = text[text.index("<Image>") : text.index("</OME>")]
    both = label["tiff.ImageDescription"].replace("</OME>", f"{inner}</OME>")
    assert pixel_size("a.ome.tif", {"tiff.ImageDescription": both}, SIZE).mpp == (0.25, 0.25)
    with pytest.raises(PixelSizeError, match="no pixel size"):
        pixel_size("a.ome.tif", {"tiff.ImageDescription": both}, (777, 777))


def test_entities_are_never_followed_and_broken_xml_says_nothing() -> None:
    entity = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>'
    for properties in (ome("0.25", before=entity), {"tiff.ImageDescription": "<OME><Image></OME>"}):
        assert pixel_size("a.tif", properties | TAGS, SIZE).source == "tiff.XResolution"


def test_tags_that_contradict_ome_are_told() -> None:
    (warning,) = pixel_size("a.tif", ome("0.25") | TAGS, SIZE).warnings
    assert warning == "0.27 um/px (tiff.XResolution) contradicts 0.25 um/px (ome.PhysicalSizeX), which is used"


@pytest.mark.parametrize(
    ("unit", "pixels"), [("micron", "4"), ("um", "4"), ("\\u00B5m", "4"), ("nm", "0.004"), ("mm", "4000")]
)
def test_the_unit_of_imagej_counts_for_the_tags(unit: str, pixels: str) -> None:
    tags = {"tiff.ResolutionUnit": "none", "tiff.XResolution": pixels, "tiff.YResolution": pixels}
    found = pixel_size("a.tif", tags | {"tiff.ImageDescription": f"ImageJ=1.54\nunit={unit}\nmin=0"}, SIZE)
    assert found.mpp == pytest.approx((0.25, 0.25))
    assert found.source == "tiff.XResolution"


def test_the_resolution_of_a_screen_is_no_pixel_size() -> None:
    screen = {"tiff.ResolutionUnit": "inch", "tiff.XResolution": "72", "tiff.YResolution": "72"}
    with pytest.raises(
        PixelSizeError, match=r"352\.778 um \(tiff\.XResolution\), outside .*: 72 dots per inch are those"
    ):
        pixel_size("a.tif", screen, SIZE)
    assert pixel_size("a.tif", screen | OBJECTIVE, SIZE).source == "openslide.objective-power"


@pytest.mark.parametrize("tile", [(128, 128), None])
def test_a_tiff_says_its_pixel_size_whoever_reads_it(tmp_path: Path, tile: tuple[int, int] | None) -> None:
    """OpenSlide reads those with tiles, Pillow the others."""
    picture, pixels = stained_picture(400, 300), 1e4 / 0.5
    kinds: dict[str, dict[str, Any]] = {
        "cm": {"resolution": (pixels, pixels), "resolutionunit": "CENTIMETER", "metadata": None},
        "inch": {"resolution": (pixels * 2.54, pixels * 2.54), "resolutionunit": "INCH", "metadata": None},
        "ome": {"ome": True, "metadata": {"axes": "YXS", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm"}},
        "imagej": {"imagej": True, "resolution": (2, 2), "metadata": {"unit": "um"}},
    }
    for name, settings in kinds.items():
        options: dict[str, Any] = {"tile": None if name == "imagej" else tile, **settings}
        tifffile.imwrite(tmp_path / f"{name}.tif", picture, photometric="rgb", **options)
        with Slide(tmp_path / f"{name}.tif") as slide:
            assert slide.mpp == pytest.approx((0.5, 0.5)), name
            assert slide.pixel_size.source != "user"
