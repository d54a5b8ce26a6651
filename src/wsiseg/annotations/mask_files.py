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
from wsiseg.slides.slide_file import SlideFile

_MOST_BYTES = 2**30  # of a decoded image; of larger ones a smaller level or every nth pixel is read
_BLOCK_PX = 4096
_BAND_ROWS = 256
_FEW_COLORS = 256
_OPAQUE = 128  # from here on a person sees the pixel
_SAME_COLOR = 8  # channels that differ by no more are grey
_SUBFILE, _BITS, _PHOTOMETRIC, _DESCRIPTION, _SOFTWARE = 254, 258, 262, 270, 305  # TIFF tags
_WHITE_IS_ZERO = 0
_SAVE = "save it as PNG: what is marked white, all else black"


@dataclass(frozen=True)
class Stored:
    """A mask image as a person would see it.

    Attributes:
        pixels: Grey values [rows, columns] of any number type, the numbers of colours [rows, columns], or where there
            are very many, uint8[rows, columns, 3].
        colors: uint8[n, 3], the colour of each number, if pixels are numbers of colours.
        has_palette: True if the file has its colours in that order.
        opaque: bool[rows, columns], False where it is transparent; None if it is so nowhere.
        reduced: How many times smaller than in the file its sides are.
        notes: What a person should know.
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


def counted(pixels: NDArray[Any], most: int = 2**16) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the different values of an image, ascending, at most so many, and how often each occurs."""
    if pixels.dtype in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        size = 2 ** (8 * pixels.dtype.itemsize)
        counts = sum((np.bincount(pixels[band].ravel(), minlength=size) for band in bands(pixels)), np.zeros(size, int))
        return np.flatnonzero(counts), counts[counts > 0]
    found: dict[Any, int] = {}
    for band in bands(pixels):
        for value, count in zip(*np.unique(pixels[band], return_counts=True), strict=True):
            found[value] = found.get(value, 0) + int(count)
        if len(found) > most:
            break
    ordered = sorted(found)[:most]
    return np.array(ordered), np.array([found[value] for value in ordered])


def stored(path: Path) -> Stored:
    """Read a mask image.

    Raises:
        AnnotationError: It cannot be read, is too large, or holds several images.
    """
    from PIL import UnidentifiedImageError  # noqa: PLC0415  heavy: only where pixels are touched

    try:
        with path.open("rb") as file, _opened(file) as image:
            is_tiff = image.format == "TIFF"
            full = image.size
            if is_tiff:
                _choose_page(path.name, image)
            if _bytes(image) <= _MOST_BYTES:
                try:
                    return _decoded(path.name, image, full)
                except (OSError, SyntaxError, ValueError):
                    if not is_tiff:
                        raise
            elif not is_tiff:
                what = f"{image.width}x{image.height} pixels are too many for a mask in this format"
                raise AnnotationError(f"{path.name}: {what}", "store it as a tiled TIFF or with a half of the sides")
            _check_blocks(path.name, image)
        return _by_blocks(path)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, TypeError, SlideError) as error:
        text = error.message if isinstance(error, SlideError) else error
        raise AnnotationError(f"{path.name}: cannot be read as a mask: {text}", "save it as PNG or TIFF") from error


def _opened(file: Any) -> Any:  # noqa: ANN401  an image of Pillow
    """Open an image by what it begins with, without Pillow's limit for pixels: the size is looked at afterwards."""
    from PIL import JpegImagePlugin, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError  # noqa: PLC0415  heavy

    begin = file.read(4)
    file.seek(0)
    if begin == b"\x89PNG":
        return PngImagePlugin.PngImageFile(file)
    if begin[:2] in {b"II", b"MM"}:
        return TiffImagePlugin.TiffImageFile(file)
    if begin[:2] == b"\xff\xd8":
        return JpegImagePlugin.JpegImageFile(file)
    raise UnidentifiedImageError("neither PNG nor TIFF")


def _bytes(image: Any) -> int:  # noqa: ANN401  an image of Pillow
    """Return what an image takes up when decoded."""
    pixels: int = math.prod(image.size)
    return pixels * {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}.get(image.mode, 4)


def _choose_page(name: str, image: Any) -> None:  # noqa: ANN401  an image of Pillow
    """Go to the finest page of a TIFF that fits in memory; smaller ones of the same proportions are levels of it.

    Raises:
        AnnotationError: There are several images of the same size, and any may be the mask.
    """
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


def _decoded(name: str, image: Any, full: tuple[int, int]) -> Stored:  # noqa: ANN401  an image of Pillow
    mode, palette = image.mode, image.getpalette("RGB") if image.mode in {"P", "PA"} else None
    transparency = image.info.get("transparency")
    reduced = full[0] / image.width
    notes: tuple[str, ...] = (
        (f"{name}: was read from its level of {image.width}x{image.height} pixels",) if reduced > 1 else ()
    )
    image.load()
    if palette is not None:
        found = _with_palette(image, palette, transparency)
    elif mode in {"1", "L", "F", "I", "I;16", "I;16B"}:
        is_inverted = _is_white_zero(name, image)
        if is_inverted:
            notes += (f"{name}: is stored white-is-zero, as arrays are; what is not 0 in the array is marked",)
        found = Stored(_grey(image, is_inverted=is_inverted and mode in {"1", "L"}))
        if transparency is not None and mode in {"1", "L", "I", "I;16"}:
            found = replace(found, opaque=found.pixels != transparency)
    else:
        is_keyed = mode == "RGB" and transparency is not None
        found = _colored(image.convert("RGBA") if is_keyed or mode.upper() in {"LA", "RGBA"} else image)
    return replace(found, reduced=reduced, notes=notes)


def _rows(image: Any) -> Iterator[tuple[slice, NDArray[Any]]]:  # noqa: ANN401  an image of Pillow
    """Yield the pixels of a decoded image, some rows at a time."""
    for row in range(0, image.height, _BAND_ROWS):
        below = min(row + _BAND_ROWS, image.height)
        yield slice(row, below), np.asarray(image.crop((0, row, image.width, below)))


def _grey(image: Any, *, is_inverted: bool) -> NDArray[Any]:  # noqa: ANN401  an image of Pillow
    """Return grey values as an array library wrote them; NaN is 0."""
    kind = {"1": np.uint8, "L": np.uint8, "F": np.float32, "I": np.int64}.get(image.mode, np.uint16)
    pixels = np.empty((image.height, image.width), kind)
    for band, values in _rows(image):
        pixels[band] = np.nan_to_num(values) if kind is np.float32 else values
        if is_inverted:
            pixels[band] = (1 if image.mode == "1" else 255) - pixels[band]
    return pixels


def _is_white_zero(name: str, image: Any) -> bool:  # noqa: ANN401  an image of Pillow
    """Tell whether an array library or ImageJ wrote an array as white-is-zero: Pillow inverts what they mean.

    Raises:
        AnnotationError: It is stored white-is-zero by another program, which may mean either.
    """
    if image.format != "TIFF" or image.tag_v2.get(_PHOTOMETRIC) != _WHITE_IS_ZERO:
        return False
    about = f"{image.tag_v2.get(_SOFTWARE, '')} {image.tag_v2.get(_DESCRIPTION, '')}"
    if "tifffile" in about or "ImageJ=" in about:
        return True
    what = "is stored white-is-zero, and programs do not agree which part of such a mask is marked"
    raise AnnotationError(f"{name}: {what}", _SAVE)


def _with_palette(image: Any, palette: list[int], transparency: Any) -> Stored:  # noqa: ANN401  of Pillow
    colors = np.asarray(palette, np.uint8).reshape(-1, 3)
    alphas = np.full(256, 255)
    if isinstance(transparency, bytes):
        alphas[: len(transparency)] = list(transparency)
    elif transparency is not None:
        alphas[transparency] = 0
    pixels = np.empty((image.height, image.width), np.uint8)
    opaque = np.ones(pixels.shape, np.bool_)
    has_alpha = image.mode == "PA"
    for band, values in _rows(image):
        pixels[band] = values[..., 0] if has_alpha else values
        opaque[band] = (values[..., 1] if has_alpha else alphas[pixels[band]]) >= _OPAQUE
    colors = np.vstack([colors, np.zeros((256 - len(colors), 3), np.uint8)])
    return Stored(pixels, colors, has_palette=True, opaque=None if opaque.all() else opaque)


def _colored(image: Any) -> Stored:  # noqa: ANN401  an image of Pillow
    """Return an image with channels as grey values, or as numbers of colours where these are few."""
    if image.mode not in {"RGB", "RGBA"}:
        image = image.convert("RGB")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    opaque = np.ones(pixels.shape[:2], np.bool_)
    least, most = 255, 0
    for band, values in _rows(image):
        pixels[band] = values[..., :3]
        if image.mode == "RGBA":
            alpha = values[..., 3]
            least, most = min(least, int(alpha.min())), max(most, int(alpha.max()))
            opaque[band] = alpha >= _OPAQUE
    if image.mode == "RGB" or least == most > 0:
        return few_colors(pixels)
    for band in bands(pixels):
        pixels[band] *= opaque[band][..., None]
    return replace(few_colors(pixels), opaque=opaque)


def few_colors(pixels: NDArray[np.uint8]) -> Stored:
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


def _check_blocks(name: str, image: Any) -> None:  # noqa: ANN401  an image of Pillow
    """Refuse what OpenSlide, which reads 8 bits of red, green and blue, would show otherwise than it is stored.

    Raises:
        AnnotationError: It has other depths, or is stored white-is-zero.
    """
    if any(bits > 8 for bits in image.tag_v2.get(_BITS, (1,))):  # noqa: PLR2004  bits
        raise AnnotationError(f"{name}: is too large for a mask of more than 8 bits", "store it with 8 bits")
    if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise AnnotationError(f"{name}: is too large for a mask that is stored white-is-zero", _SAVE)


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
                block = mask.read(
                    (round(x * down), round(y * down)), level, (min(side, width - x), min(side, height - y))
                )
                part = pixels[y // every : (y + side) // every, x // every : (x + side) // every]
                part[:] = block[::every, ::every]
        reduced = sizes[0][0] / width * every
    note = (f"{path.name}: was read at {pixels.shape[1]}x{pixels.shape[0]} pixels",) if reduced > 1 else ()
    return replace(few_colors(pixels), reduced=reduced, notes=note)
