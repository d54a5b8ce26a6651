"""The files of masks: PNG and TIFF, of any depth, size and way of storing, decoded within bounded memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops

from wsiseg.annotations.outlines import AnnotationError
from wsiseg.slides.formats import plain_image

MOST_VALUES = 2**16
"""Different values of an image from which on they are not counted."""
COLORED = 12
"""Channels that differ by more show a colour."""
PAINT = "paint what is marked white on black and save it as PNG"
_MOST_BYTES = 2**30  # of a decoded image; of larger TIFFs a smaller level is read
_BAND_ROWS = 256
_FEW_COLORS = 512
_OPAQUE = 128  # from here on a person sees the pixel
_SUBFILE, _PHOTOMETRIC, _DESCRIPTION, _SOFTWARE = 254, 262, 270, 305  # TIFF tags
_WHITE_IS_ZERO = 0
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}  # of a decoded pixel; 4 of all other modes
_GREYS = ("1", "L", "F", "I", "I;16", "I;16B")


@dataclass(frozen=True)
class Stored:
    """A mask image as its file has it."""

    values: NDArray[Any]  # grey values [rows, columns] of any number type, or the numbers of colours
    colors: NDArray[np.uint8] | None  # uint8[n, 4] of each number, in RGBA, alpha 0 or 255; None where values are grey
    has_palette: bool  # True if the file has its colours in that order
    reduced: float  # how many times smaller than in the file its sides are
    notes: tuple[str, ...]  # what a person should know, without the name of the file


def bands(pixels: NDArray[Any]) -> Iterator[slice]:
    """Yield slices of some rows at a time, so that what is computed of an image does not need its room again."""
    for row in range(0, len(pixels), _BAND_ROWS):
        yield slice(row, row + _BAND_ROWS)


def counted(pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the first 65536 different values of an image, ascending, and how often each occurs."""
    if pixels.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        counts = np.zeros(MOST_VALUES, np.int64)
        for band in bands(pixels):
            counts += np.bincount(pixels[band].ravel(), minlength=MOST_VALUES)
        return np.flatnonzero(counts), counts[counts > 0]
    found: dict[Any, int] = {}
    for band in bands(pixels):
        for value, count in zip(*np.unique(pixels[band], return_counts=True), strict=True):
            found[value] = found.get(value, 0) + int(count)
        if len(found) > MOST_VALUES:
            break
    ordered = sorted(found)[:MOST_VALUES]
    return np.array(ordered), np.array([found[value] for value in ordered])


def stored(path: Path) -> Stored:
    """Read a mask image.

    Raises:
        AnnotationError: It cannot be read, is too large, holds several images, or has more colours than a mask.
    """
    name = path.name
    try:
        with plain_image(path) as image:
            reduced = _chosen_page(name, image)
            image.load()
            notes = [f"was read at {image.width}x{image.height} pixels"] if reduced > 1 else []
            decoded = _greys(name, image, notes) if _is_grey(image) else _in_colors(name, image)
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        raise AnnotationError(f"{name}: cannot be read as a mask: {error}", "save it as PNG or TIFF") from error
    return Stored(*decoded, has_palette=image.mode == "P", reduced=reduced, notes=tuple(notes))


def _chosen_page(name: str, image: Any) -> float:  # noqa: ANN401  an image of Pillow
    """Go to the finest page that fits in memory, and say how many times smaller than the first its sides are.

    Smaller pages of the same proportions are levels of the first.
    """
    width, height = image.size
    chosen = [0] if _bytes(image) <= _MOST_BYTES else []
    for number in range(1, image.n_frames if image.format == "TIFF" else 1):
        image.seek(number)
        if image.size == (width, height) and not image.tag_v2.get(_SUBFILE, 0) & 1:  # 1: reduced
            what = f"holds several images of {width}x{height} pixels"
            raise AnnotationError(f"{name}: {what}; which of them is the mask?", "keep one of them")
        is_level = abs(image.width * height - image.height * width) <= max(width, height)
        chosen += [number] if is_level and _bytes(image) <= _MOST_BYTES else []
    if not chosen:
        what = f"{width}x{height} pixels are too many for a mask"
        raise AnnotationError(f"{name}: {what}", "store it as a TIFF with smaller levels, or with a half of the sides")
    image.seek(chosen[0])
    return float(width / image.width)


def _bytes(image: Any) -> int:  # noqa: ANN401  an image of Pillow
    is_small = image.mode == "P" or _is_grey(image)  # of others, channels are made for what is transparent
    return int(math.prod(image.size)) * (_BYTES.get(image.mode, 4) if is_small else 4)


def _is_grey(image: Any) -> bool:  # noqa: ANN401  an image of Pillow
    """Tell whether an image is of grey values alone; one of 8 bits with a transparent one among them is not."""
    return image.mode in _GREYS and ("transparency" not in image.info or image.mode not in {"1", "L"})


def _greys(name: str, image: Any, notes: list[str]) -> tuple[NDArray[Any], None]:  # noqa: ANN401  an image of Pillow
    values = np.asarray(image)
    values = values.astype(np.uint8) if image.mode == "1" else values
    if image.mode == "F":
        values = np.nan_to_num(values)
    if "transparency" in image.info:
        values = np.where(values == image.info["transparency"], 0, values)
    if _is_white_zero(name, image):
        notes.append("is stored white-is-zero, as arrays are; what is not 0 in the array is marked")
        if image.mode in {"1", "L"}:  # Pillow inverts what array libraries mean
            values = np.subtract(1 if image.mode == "1" else 255, values, dtype=np.uint8)
    return values, None


def _is_white_zero(name: str, image: Any) -> bool:  # noqa: ANN401  an image of Pillow
    """Tell whether an array library or ImageJ wrote an array as white-is-zero."""
    if image.format != "TIFF" or image.tag_v2.get(_PHOTOMETRIC) != _WHITE_IS_ZERO:
        return False
    about = f"{image.tag_v2.get(_SOFTWARE, '')} {image.tag_v2.get(_DESCRIPTION, '')}"
    if "tifffile" in about or "ImageJ=" in about:
        return True
    what = "is stored white-is-zero, and programs do not agree which part of such a mask is marked"
    raise AnnotationError(f"{name}: {what}", "save it as PNG: what is marked white, all else black")


def _in_colors(name: str, image: Any) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:  # noqa: ANN401  of Pillow
    """Return the numbers of colours and the colours; of very many that are all but grey their green, and None."""
    if image.mode == "P":
        image.apply_transparency()
        colors = np.asarray(image.getpalette("RGBA"), np.uint8).reshape(-1, 4)
        used = np.flatnonzero(image.histogram())
        colors = np.vstack([colors, np.zeros((256 - len(colors), 4), np.uint8)])
        alpha = colors[used, 3]
        colors[:, 3] = 255 if alpha.min() == alpha.max() > 0 else 255 * (colors[:, 3] >= _OPAQUE)
        return np.asarray(image), colors
    flat = _flat(image)
    found = flat.getcolors(_FEW_COLORS)
    if found is not None:
        colors = np.array([color for _, color in found], np.uint8)
        codes = colors.view(np.uint32)[:, 0]
        colors, codes = colors[codes.argsort()], np.sort(codes)
        numbers = np.empty((flat.height, flat.width), np.uint16)
        for band in bands(numbers):
            rows = flat.crop((0, band.start, flat.width, min(band.stop, flat.height)))
            numbers[band] = np.searchsorted(codes, np.asarray(rows).view(np.uint32)[..., 0])
        return numbers, colors
    channels = flat.split()[:3]
    if any(np.max(ImageChops.difference(*pair).getextrema()) > COLORED for pair in combinations(channels, 2)):
        raise AnnotationError(f"{name}: has more colours than a mask", PAINT)
    return np.asarray(channels[1]), None


def _flat(image: Any) -> Any:  # noqa: ANN401  images of Pillow
    """Return an image in RGBA whose pixels are opaque, or black and transparent; alike transparent ones are opaque."""
    shown = image.convert("RGBA")
    least, most = shown.getchannel("A").getextrema()
    if least == most > 0:
        shown.putalpha(255)
        return shown
    mask = shown.getchannel("A").point([255 * (alpha >= _OPAQUE) for alpha in range(256)])
    flat = Image.new("RGBA", image.size)
    flat.paste(shown, mask=mask)
    flat.putalpha(mask)
    return flat
