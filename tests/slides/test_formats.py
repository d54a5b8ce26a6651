"""What a file is: formats that cannot be read are named, and a preview is never taken for its slide."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from making.slides import stained_picture
from wsiseg.run.errors import NotASlideError, SlideError
from wsiseg.slides.slide import Slide

MakeSlide = Callable[..., Path]
PICTURE = stained_picture(400, 300)
CONTAINERS = ["mrxs", "svs", "ndpi", "vms", "vmu", "scn", "svslide", "bif", "czi", "dcm"]
FOREIGN = ["vsi", "isyntax", "kfb", "sdpc", "lif", "mds", "tmap", "tron", "zvi", "ets"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("suffix", [*CONTAINERS, *FOREIGN])
def test_a_preview_is_never_taken_for_its_slide(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"case.{suffix.upper() if kind == 'PNG' else suffix}"
    Image.fromarray(PICTURE).save(path, format=kind)
    with pytest.raises(SlideError, match=r"case\.") as caught:
        Slide(path, mpp=0.25)
    assert caught.value.hint
    assert isinstance(caught.value, NotASlideError) == (suffix in FOREIGN)


@pytest.mark.parametrize("suffix", ["mrxs", "ndpi", "czi", "dcm", "vms", "vsi", "lsm", "stk"])
def test_a_tiled_preview_is_not_taken_for_its_slide_either(make_slide: MakeSlide, suffix: str) -> None:
    """OpenSlide opens any tiled TIFF."""
    with pytest.raises(SlideError, match=rf"case\.{suffix}"):
        Slide(make_slide(f"case.{suffix}"), mpp=0.25)


def test_a_mirax_slide_without_its_folder_says_what_is_missing(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "case7.mrxs", format="JPEG")
    with pytest.raises(SlideError, match=r"case7/Slidedat\.ini is missing.*copy the folder case7"):
        Slide(tmp_path / "case7.mrxs", mpp=0.25)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_no_slide_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "case.tiff")
    with pytest.raises(NotASlideError, match=r"case\.tiff: a pipe"):
        Slide(tmp_path / "case.tiff", mpp=0.25, longest_read_s=0.5)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_an_image_that_is_cut_off_is_to_be_had_again(tmp_path: Path, suffix: str) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    Image.fromarray(PICTURE).save(whole)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 3 // 4])
    with pytest.raises(SlideError, match=r"cut\..*; get the file again"):
        Slide(cut, mpp=0.25)


@pytest.mark.parametrize("suffix", ["svs", "scn", "bif", "ptif", "tif", "png", ""])
def test_a_whole_pyramid_is_read_whatever_tiff_it_is_called(make_slide: MakeSlide, suffix: str) -> None:
    with Slide(make_slide(f"case.{suffix}" if suffix else "case")) as slide:
        assert slide.size_px == (1024, 768)


def test_an_image_is_read_whatever_image_it_is_called(tmp_path: Path) -> None:
    for name, kind in (("a.png", "JPEG"), ("b.jpg", "PNG"), ("c.tif", "PNG"), ("scan", "JPEG")):
        Image.fromarray(PICTURE).save(tmp_path / name, format=kind)
        with Slide(tmp_path / name, mpp=0.5) as slide:
            assert slide.size_px == (400, 300)


NAMED = {
    "a.isyntax": (b"<?xml version='1.0'?><DataObject ObjectType='DPUfsImport'/>", "Philips iSyntax"),
    "a.xml": (b"<?xml version='1.0'?><DataObject ObjectType='DPUfsImport'/>", "Philips iSyntax"),
    "a.vsi": (b"II*\0" + bytes(100), "Olympus VSI"),
    "a.kfb": (b"KFB\0" + bytes(100), "KFBio KFB"),
    "a.sdpc": (b"SQ" + bytes(100), "Sqray SDPC"),
    "a.lif": (bytes(range(100)), "Leica LIF"),
    "a.ndpis": (b"[NanoZoomer Digital Pathology Image Set]\nNoImages=1\n", "Hamamatsu NDPIS"),
    "a.afi": (b"<ImageList><Image/></ImageList>", "Aperio AFI"),
    "a.J2K": (b"\xff\x4f\xff\x51" + bytes(100), "JPEG 2000"),
    "scan": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "JPEG 2000"),
    "a.heif": (b"\0\0\0\x18ftypheic" + bytes(100), "HEIF"),
    "cohort.xlsx": (b"PK\3\4" + bytes(100), "Excel"),
    "a.zip": (b"PK\3\4" + bytes(100), "ZIP"),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_format_that_cannot_be_read_is_named_with_the_way_to_convert_it(tmp_path: Path, name: str) -> None:
    content, format_name = NAMED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(NotASlideError, match=f"{name}: {format_name} files cannot be read; .+"):
        Slide(tmp_path / name, mpp=0.5)


@pytest.mark.parametrize(
    ("kind", "name"), [("BMP", "BMP"), ("WEBP", "WebP"), ("GIF", "GIF"), ("JPEG2000", "JPEG 2000")]
)
def test_an_image_of_another_format_is_named_whatever_it_is_called(tmp_path: Path, kind: str, name: str) -> None:
    for called in ("a.png", "a.svs", "a.tif"):
        Image.fromarray(PICTURE).save(tmp_path / called, format=kind)
        with pytest.raises(SlideError, match=f"{called}: {name} files cannot be read, whatever.*convert") as caught:
            Slide(tmp_path / called, mpp=0.5)
        assert not isinstance(caught.value, NotASlideError)


def test_a_page_saved_in_place_of_a_slide_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_text("<!DOCTYPE html><html>Please sign in</html>")
    with pytest.raises(SlideError, match=r"HTML.*signed in"):
        Slide(tmp_path / "a.svs")


def write(path: Path, image: NDArray[Any], **settings: Any) -> Path:
    tifffile.imwrite(path, image, **{"tile": (256, 256), "metadata": None, **settings})
    return path


GREY = PICTURE[..., 0]
NOT_IN_COLOUR: dict[str, tuple[NDArray[Any], dict[str, Any], str]] = {
    "one grey sample": (GREY, {"photometric": "minisblack"}, "1 grey sample"),
    "white is zero": (GREY, {"photometric": "miniswhite"}, "1 grey sample"),
    "three grey images": (PICTURE.transpose(2, 0, 1), {"photometric": "minisblack"}, "in 3 images .*its channels"),
    "three grey samples": (PICTURE, {"photometric": "minisblack", "planarconfig": "contig"}, "3 grey samples"),
    "grey and alpha": (PICTURE[..., :2], {"photometric": "minisblack", "planarconfig": "contig"}, "2 grey samples"),
    "five samples": (np.dstack([PICTURE, PICTURE[..., :2]]), {"photometric": "rgb"}, "5 samples"),
    "16 bits": (PICTURE.astype(np.uint16) * 16, {"photometric": "rgb"}, "16/16/16 bits"),
    "a fourth stain": (
        np.dstack([PICTURE, GREY * 0]),
        {"photometric": "rgb", "extrasamples": ["unspecified"]},
        "fourth sample",
    ),
    "a palette of greys": (
        GREY,
        {"photometric": "palette", "colormap": np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))},
        "palette of greys",
    ),
}


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("name", NOT_IN_COLOUR)
def test_what_is_not_stored_in_colour_is_refused(tmp_path: Path, name: str, tiled: bool) -> None:  # noqa: FBT001  a parameter
    image, settings, said = NOT_IN_COLOUR[name]
    path = write(tmp_path / "a.tif", image, **settings, **({} if tiled else {"tile": None}))
    with pytest.raises(SlideError, match=rf"a\.tif: .*{said}.*convert") as caught:
        Slide(path, mpp=0.5)
    assert not isinstance(caught.value, NotASlideError)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_a_plain_image_in_grey_is_refused(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(GREY)
    (image if mode == "L" else image.convert(mode)).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match=r"a\.png: a plain image in mode .*not in colour"):
        Slide(tmp_path / "a.png", mpp=0.5)


IN_COLOUR: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
    "planes of one image": (PICTURE.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}),
    "opaque": (np.dstack([PICTURE, GREY * 0 + 255]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "inks": (np.dstack([255 - PICTURE, GREY * 0]), {"photometric": "separated"}),
}


@pytest.mark.parametrize("name", IN_COLOUR)
def test_colours_stored_in_another_order_are_read(tmp_path: Path, name: str) -> None:
    image, settings = IN_COLOUR[name]
    with Slide(write(tmp_path / "a.tif", image, **settings), mpp=0.5) as slide:
        read = slide.read(0, 0, (400, 300), 0.5)
    assert np.abs(read.astype(int) - PICTURE).max() <= 1


@pytest.mark.parametrize("tile", [(64, 64), None])
def test_a_preview_before_the_slide_in_one_file_is_not_taken_for_it(
    tmp_path: Path, tile: tuple[int, int] | None
) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for image in (PICTURE[::4, ::4], PICTURE):
            tiff.write(image, tile=tile, photometric="rgb", metadata=None)
    with pytest.raises(SlideError, match="only a preview of 100x75 pixels, a later one 400x300"):
        Slide(tmp_path / "a.tif", mpp=0.5)
