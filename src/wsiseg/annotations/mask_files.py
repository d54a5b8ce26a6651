"""The files of masks: PNG and TIFF, of any depth, size and way of storing, decoded within bounded memory."""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.outlines import AnnotationError
from wsiseg.run.errors import SlideError
from wsiseg.slides.formats import plain_image
from wsiseg.slides.slide_file import SlideFile

MOST_VALUES = 2**16
"""Different values of an image from which on they are not counted."""
_MOST_BYTES = 2**30  # of a decoded image; of larger ones a smaller level or every nth pixel is read
_BLOCK_PX = 4096
_BAND_ROWS = 256
_FEW_COLORS = 256
_OPAQUE = 128  # from here on a person sees the pixel
_SAME_COLOR = 8  # channels that differ by no more are grey
_SUBFILE, _BITS, _PHOTOMETRIC, _DESCRIPTION, _SOFTWARE = 254, 258, 262, 270, 305  # TIFF tags
_WHITE_IS_ZERO = 0
_SAVE = "save it as PNG: what is marked white, all else black"
_GREYS = {"1": np.uint8, "L": np.uint8, "F": np.float32, "I": np.int64, "I;16": np.uint16, "I;16B": np.uint16}
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}  # of a decoded pixel; 4 of all other modes


@dataclass(frozen=True)
class Stored:
    """A mask image as a person would see it.

    Attributes:
        pixels: Grey values [rows, columns] of any number type, the numbers of colours [rows, columns], or where there
            are very many, uint8[rows, columns, 3].
        colors: uint8[n, 3], the colour of each number, if pixels are numbers of colours.
        has_palette: True if the file has its colours in that order.
        opaque: bool[rows, columns], False where it is transparent; None if it is so nowhere, or alike everywhere.
        reduced: How many times smaller than in the file its sides are.
        notes: What a person should know, without the name of the file.
    """

    pixels: NDArray[Any]
    colors: NDArray[np.uint8] | None = None
    has_palette: bool = False
    opaque: NDArray[np.bool_] | None = None
    reduced: float = 1.0
    notes: tuple[str, ...] = ()


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
        AnnotationError: It cannot be read, is too large, or holds several images.
    """
    try:
        with plain_image(path) as image:
            whole = _whole(path.name, image)
        found = whole or _by_blocks(path)
    except (OSError, SyntaxError, ValueError, TypeError, SlideError) as error:
        text = error.message if isinstance(error, SlideError) else error
        raise AnnotationError(f"{path.name}: cannot be read as a mask: {text}", "save it as PNG or TIFF") from error
    rows, columns = found.pixels.shape[:2]
    notes = (f"was read at {columns}x{rows} pixels",) if found.reduced > 1 else ()
    return replace(found, notes=notes + found.notes)


def _whole(name: str, image: Any) -> Stored | None:  # noqa: ANN401  an image of Pillow
    """Decode an image as a whole; None where OpenSlide is to read it block by block."""
    is_tiff, full = image.format == "TIFF", image.size
    if is_tiff:
        _choose_page(name, image)
    if _bytes(image) <= _MOST_BYTES:
        try:
            return replace(_decoded(name, image), reduced=full[0] / image.width)
        except (OSError, SyntaxError, ValueError):
            if not is_tiff:
                raise
    elif not is_tiff:
        what = f"{image.width}x{image.height} pixels are too many for a mask in this format"
        raise AnnotationError(f"{name}: {what}", "store it as a tiled TIFF or with a half of the sides")
    # OpenSlide, which reads 8 bits of red, green and blue, would show these otherwise than they are stored.
    if any(bits > 8 for bits in image.tag_v2.get(_BITS, (1,))):  # noqa: PLR2004  bits
        what = "is too large for a mask of more than 8 bits"
        raise AnnotationError(f"{name}: {what}", "store it with 8 bits")
    if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise AnnotationError(f"{name}: is too large for a mask that is stored white-is-zero", _SAVE)
    return None


def _bytes(image: Any) -> int:  # noqa: ANN401  an image of Pillow
    """Return what an image takes up when decoded."""
    return int(math.prod(image.size)) * _BYTES.get(image.mode, 4)


def _choose_page(name: str, image: Any) -> None:  # noqa: ANN401  an image of Pillow
    """Go to the finest page of a TIFF that fits in memory; smaller ones of the same proportions are levels of it."""
    width, height = image.size
    chosen = 0 if _bytes(image) <= _MOST_BYTES else None
    for number in range(1, getattr(image, "n_frames", 1)):
        image.seek(number)
        if image.size == (width, height) and not image.tag_v2.get(_SUBFILE, 0) & 1:  # 1: reduced
            what = f"holds several images of {width}x{height} pixels"
            raise AnnotationError(f"{name}: {what}; which of them is the mask?", "keep one of them")
        is_level = abs(image.width * height - image.height * width) <= max(width, height)
        if chosen is None and is_level and _bytes(image) <= _MOST_BYTES:
            chosen = number
    image.seek(chosen or 0)


def _decoded(name: str, image: Any) -> Stored:  # noqa: ANN401  an image of Pillow
    key, mode, notes = image.info.get("transparency"), image.mode, tuple[str, ...]()
    is_inverted = mode in _GREYS and _is_white_zero(name, image)
    if is_inverted:
        notes = ("is stored white-is-zero, as arrays are; what is not 0 in the array is marked",)
    if mode in {"P", "PA"}:
        pixels, opaque = _channels(image, mode if key is None else "PA")
        colors = np.zeros((256, 3), np.uint8)
        palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        colors[: len(palette)] = palette
        return Stored(pixels, colors, has_palette=True, opaque=opaque)
    if mode in _GREYS:
        pixels, _ = _channels(image, mode)
        if mode == "F":
            np.nan_to_num(pixels, copy=False)
        if is_inverted and mode in {"1", "L"}:  # Pillow inverts what array libraries mean
            np.subtract(1 if mode == "1" else 255, pixels, out=pixels)
        return Stored(pixels, opaque=None if key is None else pixels != key, notes=notes)
    pixels, opaque = _channels(image, "RGB" if key is None and mode.upper() not in {"LA", "RGBA"} else "RGBA")
    if opaque is not None:
        for band in bands(pixels):
            pixels[band] *= opaque[band][..., None]
    return replace(_few_colors(pixels), opaque=opaque)


def _channels(image: Any, mode: str) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:  # noqa: ANN401  of Pillow
    """Return an image in a mode, some rows at a time: values or colours, and where it is opaque if that differs."""
    image.load()
    shape = (image.height, image.width, *((3,) if mode in {"RGB", "RGBA"} else ()))
    pixels, opaque = np.empty(shape, _GREYS.get(mode, np.uint8)), np.ones(shape[:2], np.bool_)
    alphas: set[int] = set()
    for band in bands(pixels):
        rows = image.crop((0, band.start, image.width, min(band.stop, image.height)))
        part = np.asarray(rows if rows.mode == mode else rows.convert(mode))
        if mode in {"PA", "RGBA"}:
            alphas.update(np.unique(part[..., -1]).tolist())
            opaque[band] = part[..., -1] >= _OPAQUE
            part = part[..., 0] if mode == "PA" else part[..., :3]
        pixels[band] = part
    return pixels, None if opaque.all() or (len(alphas) == 1 and 0 not in alphas) else opaque


def _is_white_zero(name: str, image: Any) -> bool:  # noqa: ANN401  an image of Pillow
    """Tell whether an array library or ImageJ wrote an array as white-is-zero."""
    if image.format != "TIFF" or image.tag_v2.get(_PHOTOMETRIC) != _WHITE_IS_ZERO:
        return False
    about = f"{image.tag_v2.get(_SOFTWARE, '')} {image.tag_v2.get(_DESCRIPTION, '')}"
    if "tifffile" in about or "ImageJ=" in about:
        return True
    what = "is stored white-is-zero, and programs do not agree which part of such a mask is marked"
    raise AnnotationError(f"{name}: {what}", _SAVE)


def _few_colors(pixels: NDArray[np.uint8]) -> Stored:
    """Describe uint8[rows, columns, 3] by grey values, or by the numbers of its colours where these are few."""
    if all(np.ptp(pixels[band], axis=2).max(initial=0) <= _SAME_COLOR for band in bands(pixels)):
        return Stored(np.ascontiguousarray(pixels[..., 1]))
    codes = np.empty(0, np.uint32)
    for band in bands(pixels):
        found = _codes(pixels[band]).ravel()
        if len(codes):  # what is known already need not be sorted
            found = found[codes[np.searchsorted(codes, found).clip(max=len(codes) - 1)] != found]
        codes = np.union1d(codes, found)
        if len(codes) > _FEW_COLORS:
            return Stored(pixels)
    numbers = np.empty(pixels.shape[:2], np.uint8)
    for band in bands(pixels):
        numbers[band] = np.searchsorted(codes, _codes(pixels[band]))
    return Stored(numbers, np.stack([codes >> 16 & 255, codes >> 8 & 255, codes & 255], 1).astype(np.uint8))


def _codes(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), 2, 0)
    codes: NDArray[np.uint32] = red << 16 | green << 8 | blue
    return codes


def _by_blocks(path: Path) -> Stored:
    """Read a tiled TIFF of any size block by block, where needed only every nth pixel."""
    with closing(SlideFile(path, is_mask=True)) as mask:
        sizes = mask.level_sizes_px
        fitting = [number for number, size in enumerate(sizes) if math.prod(size) * 3 <= _MOST_BYTES]
        level = fitting[0] if fitting else len(sizes) - 1
        (width, height), down = sizes[level], mask.level_downsamples[level]
        every = math.ceil(math.sqrt(width * height * 3 / _MOST_BYTES))
        side = _BLOCK_PX // every * every
        pixels = np.empty((-(-height // every), -(-width // every), 3), np.uint8)
        for y in range(0, height, side):
            for x in range(0, width, side):
                size = (min(side, width - x), min(side, height - y))
                block = mask.read((round(x * down), round(y * down)), level, size)
                part = pixels[y // every : (y + side) // every, x // every : (x + side) // every]
                part[:] = block[::every, ::every]
        reduced = sizes[0][0] / width * every
    return replace(_few_colors(pixels), reduced=reduced)
