"""TIFF files as their directories describe them (TIFF 6.0, section 15; BigTIFF).

OpenSlide believes what a directory says about its tiles and ends the whole process where it cannot get the memory for
one. So the directories are looked at first.
"""

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from wsiseg.run.errors import SlideError
from wsiseg.slides.formats import CONVERT, GET_AGAIN

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 259, 262, 277
_COLOR_MAP, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_BYTE_COUNTS = 320, 322, 323, 324, 325
_EXTRA_SAMPLES, _PLANAR, _JPEG_TABLES = 338, 284, 347
# What is looked at of a directory, and what holds where it is not stated.
_STATED: dict[int, tuple[int, ...]] = {
    **dict.fromkeys([_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH, _TILE_BYTE_COUNTS, _EXTRA_SAMPLES], (0,)),
    **dict.fromkeys([_BITS, _SAMPLES], (1,)),
    **dict.fromkeys([_PHOTOMETRIC, _COLOR_MAP], ()),
}
_Page = dict[int, tuple[int, ...]]
T = TypeVar("T")
_UNIT, _INCH, _UNITS = 296, 2, {2: "inch", 3: "centimeter"}
_PROPERTIES = {270: "tiff.ImageDescription", 282: "tiff.XResolution", 283: "tiff.YResolution"}
_GREY = frozenset([0, 1])  # white or black is zero
_COLOURS, _TRANSPARENCY = 3, frozenset([1, 2])
_RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 2, 3, 5, 6, 8
_IN_COLOUR = frozenset([(_RGB, 3), (_RGB, 4), (_PALETTE, 1), (_CMYK, 4), (_YCBCR, 3), (_LAB, 3)])
_MOST_PIXELS = 2**27
_MOST_DIRECTORIES = 1000
_BIG = 43
_JPEG = 7
_START, _ADOBE = b"\xff\xd8", b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"


def _described(path: Path, describe: Callable[[ImageFileDirectory_v2], T]) -> list[T]:
    """Describe the directories of a TIFF file, the first 1000 of them, up to a broken one; none of other files.

    The warnings of the process are changed meanwhile, so only one thread at a time may use this.
    """
    found: dict[int, T] = {}
    # Pillow raises almost anything at a broken file, and which it is, OpenSlide says better.
    with suppress(Exception), path.open("rb") as file, warnings.catch_warnings(action="ignore"):
        header = file.read(8)
        if _BIG in header[2:4]:
            header += file.read(8)
        place = ImageFileDirectory_v2(header).next
        while place and place not in found and len(found) < _MOST_DIRECTORIES:
            file.seek(place)
            directory = ImageFileDirectory_v2(header)
            directory.load(file)
            found[place] = describe(directory)
            place = directory.next
    return list(found.values())


def refuse_unfit(path: Path, *, is_generic: bool) -> None:
    """Refuse a TIFF that would be read wrongly; files that are not TIFFs, or are broken, pass.

    Only one thread at a time may use this.

    Args:
        path: Any file.
        is_generic: True if the first image is what a reader shows, as where no maker's description says more.

    Raises:
        SlideError: Tiles are larger than can be, pixels are not colours of 8 bits, or the first image is a preview.
    """
    pages, length = _described(path, _page), path.stat().st_size
    for number, page in enumerate(pages):
        pixels, longest = _most(page, _TILE_WIDTH) * _most(page, _TILE_LENGTH), _most(page, _TILE_BYTE_COUNTS)
        if pixels > _MOST_PIXELS:
            what = f"tiles of {pixels} pixels in directory {number}"
        elif longest > length:
            what = f"a tile of {longest} bytes in directory {number}, more than the file has"
        else:
            continue
        raise SlideError(f"{path.name}: cannot be opened: {what}", GET_AGAIN)
    pages = [page for page in pages if all(_size(page))]
    if not pages:
        return
    largest = max(pages, key=lambda page: math.prod(_size(page)))
    (width, height), (most_x, most_y) = _size(pages[0]), _size(largest)
    if is_generic and width < most_x and height < most_y:
        sizes = f"{width}x{height} pixels, a later one {most_x}x{most_y}"
        raise SlideError(f"{path.name}: its first image is only a preview of {sizes}", CONVERT)
    _refuse_other_than_colour(path.name, largest, sum(_size(page) == _size(largest) for page in pages))


def _refuse_other_than_colour(name: str, page: _Page, count: int) -> None:
    samples, photometric, palette = _most(page, _SAMPLES), page[_PHOTOMETRIC], page[_COLOR_MAP]
    if photometric and (photometric[0], samples) not in _IN_COLOUR:
        what = "grey sample" if photometric[0] in _GREY else "sample"
        text = f"{name}: {samples} {what}{'s' * (samples > 1)} per pixel, not the three or four of a colour"
        if samples == 1 and count > 1:
            text += f", in {count} images that may be its channels"
        raise SlideError(text, f"merge its channels into one RGB image and {CONVERT}")
    if samples > _COLOURS and photometric == (_RGB,) and _most(page, _EXTRA_SAMPLES) not in _TRANSPARENCY:
        raise SlideError(f"{name}: its fourth sample per pixel may mean anything, not only transparency", CONVERT)
    third = len(palette) // 3
    if third and palette[:third] == palette[third : 2 * third] == palette[2 * third :]:
        raise SlideError(f"{name}: a palette of greys, not of colours", CONVERT)
    if set(page[_BITS]) != {8}:
        raise SlideError(f"{name}: {'/'.join(map(str, page[_BITS]))} bits per sample, not 8", CONVERT)


def _page(directory: ImageFileDirectory_v2) -> _Page:
    values = {tag: directory.get(tag, usual) for tag, usual in _STATED.items()}
    return {tag: tuple(map(int, value if isinstance(value, tuple) else (value,))) for tag, value in values.items()}


def _most(page: _Page, tag: int) -> int:
    return max(page[tag], default=0)


def _size(page: _Page) -> tuple[int, int]:
    return _most(page, _WIDTH), _most(page, _LENGTH)


class JpegPage(NamedTuple):
    """An image whose tiles are JPEG images."""

    size_px: tuple[int, int]  # width and height
    tile_px: tuple[int, int]  # width and height of every tile, those at the edges included
    begins: NDArray[np.int64]  # int64[n], where each tile begins in the file, row by row
    lengths: NDArray[np.int64]  # int64[n], bytes of each; 0 where one is missing
    head: bytes  # what makes a JPEG file of a tile in place of its first two bytes: tables, and how colours are coded

    @classmethod
    def of(cls, directory: ImageFileDirectory_v2) -> Self | None:
        """Describe a directory; None where it is anything else."""
        is_plain = directory.get(_PLANAR, 1) == 1 and directory.get(_SAMPLES) == _COLOURS
        photometric, tables = directory.get(_PHOTOMETRIC), directory.get(_JPEG_TABLES, b"")
        if not is_plain or directory.get(_COMPRESSION) != _JPEG or photometric not in {_RGB, _YCBCR}:
            return None
        size, tile = (
            (int(directory.get(across, 0)), int(directory.get(down, 0)))
            for across, down in ((_WIDTH, _LENGTH), (_TILE_WIDTH, _TILE_LENGTH))
        )
        begins, lengths = (
            np.atleast_1d(np.asarray(directory.get(tag, ()), np.int64)) for tag in (_TILE_OFFSETS, _TILE_BYTE_COUNTS)
        )
        if 0 in tile or not len(begins) == len(lengths) == -(-size[0] // tile[0]) * -(-size[1] // tile[1]):
            return None
        head = _START + _ADOBE + bytes([photometric == _YCBCR]) + tables[2:-2]
        return cls(size, tile, begins, lengths, head)


def jpeg_pages(path: Path) -> list[JpegPage]:
    """Describe the images of a TIFF whose tiles are JPEG images; only one thread at a time may use this."""
    return [page for page in _described(path, JpegPage.of) if page is not None]


def properties(path: Path) -> dict[str, str]:
    """Return the description and the resolution tags of the first image, named as OpenSlide names them.

    Only one thread at a time may use this.
    """
    return next(iter(_described(path, _properties)), {})


def _properties(directory: ImageFileDirectory_v2) -> dict[str, str]:
    found = {name: str(directory[tag]) for tag, name in _PROPERTIES.items() if tag in directory}
    return {**found, "tiff.ResolutionUnit": _UNITS.get(int(directory.get(_UNIT, _INCH)), "none")}
