"""Pictures of what was found on a slide, for people."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsiseg.run.outputs import written_whole

_LEAST_PX, _MOST_PX = 700, 2000  # the longer side of a picture
_OUTLINE = (0, 158, 115)
INK, _PAPER = (34, 34, 34), (255, 255, 255)
_PLACES = (0.0, 0.35, 0.5, 0.7, 1.0)
_STOPS = np.array([(49, 54, 149), (116, 173, 209), (255, 245, 190), (244, 125, 60), (165, 0, 38)], np.float64)
_OPACITY = 0.55
_GAP, _MARGIN, _LINE = 12, 12, 22  # between two pictures, around them, and from line to line
DARK, LIGHT = (64, 64, 64), (214, 214, 214)
"""The lines of what is unknown, and what lies between them."""
KEY_OF_UNKNOWN = f"repeating-linear-gradient(45deg, rgb{LIGHT} 0 3px, rgb{DARK} 3px 5px)"
"""A CSS background that looks like what is unknown."""


def colored(probabilities: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return probabilities (any shape, no NaN) as colours from blue (0) over pale yellow (the threshold) to red (1)."""
    return _palette(threshold)[_shades(probabilities)]


def _palette(threshold: float) -> NDArray[np.uint8]:
    """Return uint8[256, 3], the colours of probabilities in steps of 1/255; those of tumour are warm."""
    steps = np.interp(np.linspace(0, 1, 256), (0, np.clip(threshold, 0.01, 0.99), 1), (0, 0.5, 1))
    return np.stack([np.interp(steps, _PLACES, channel) for channel in _STOPS.T], -1).round().astype(np.uint8)


def _shades(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the place of each probability in the palette; NaN is 0."""
    values = np.nan_to_num(probabilities, nan=0.0)  # the only copy of what may be large
    values *= np.float32(255)
    return np.rint(values, out=values).astype(np.uint8)


def tissue_picture(path: Path, thumbnail: NDArray[np.uint8], mask: NDArray[np.bool_], title: str) -> None:
    """Write a PNG of a slide (uint8[rows, columns, 3]) with its tissue outlined and everything else dimmed.

    The mask, bool[rows, columns], is of any size and over the whole slide; the title is a line above the picture.
    """
    canvas = scaled(thumbnail)
    kept = np.asarray(Image.fromarray(mask).resize(canvas.size, Image.Resampling.NEAREST))
    pixels = np.array(canvas)
    pixels[~kept] = pixels[~kept] // 2 + 90
    pixels[rim(kept, _line(canvas))] = _OUTLINE
    _save(path, _framed(Image.fromarray(pixels), title, []))


def heatmap_picture(  # noqa: PLR0913  one argument for each thing that is drawn
    path: Path,
    thumbnail: NDArray[np.uint8],  # [rows, columns, 3], the whole slide
    probabilities: NDArray[np.float32],  # [rows, columns], NaN where nobody looked
    unknown: NDArray[np.bool_],  # [rows, columns], the cells that were not judged; they are hatched
    extent: tuple[float, float],  # how many heatmap columns and rows span the slide; the last may reach beyond it
    *,
    threshold: float,  # the tumour's outline is drawn here
    title: str,  # a line above the picture
    notes: list[str],  # lines below it
) -> None:
    """Write a PNG of a slide beside the same slide with its tumour map over it."""
    plain = scaled(thumbnail)
    pair = Image.new("RGB", (plain.width * 2 + _GAP, plain.height), _PAPER)
    pair.paste(plain, (0, 0))
    judged = np.where(unknown, np.float32(np.nan), probabilities)
    pair.paste(_mapped(plain, judged, unknown, extent, threshold), (plain.width + _GAP, 0))
    del plain  # these pictures are large
    framed = _framed(pair, title, [*notes, ""])
    _legend(framed, threshold, has_unknown=bool(unknown.any()))
    _save(path, framed)


def _mapped(
    plain: Image.Image,
    probabilities: NDArray[np.float32],
    unknown: NDArray[np.bool_],
    extent: tuple[float, float],
    threshold: float,
) -> Image.Image:
    shades = _enlarged(_shades(probabilities), plain.size, extent)
    shades.putpalette(_palette(threshold).tobytes())
    over = Image.blend(plain, shades.convert("RGB"), _OPACITY)
    looked = _enlarged(~np.isnan(probabilities), plain.size, extent)
    pixels = np.array(Image.composite(over, plain, looked))
    hatch(pixels, np.asarray(_enlarged(unknown, plain.size, extent)), _line(plain))
    tumor = np.asarray(_enlarged(probabilities >= threshold, plain.size, extent))
    pixels[rim(tumor, _line(plain))] = INK
    return Image.fromarray(pixels)


def hatch(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], line: int) -> None:
    """Draw dark lines of a width in pixels on light grey over part of a picture (uint8[rows, columns, 3])."""
    pixels[mask] = LIGHT
    pixels[mask & is_line(mask.shape, 5 * line, 2 * line)] = DARK


def is_line(shape: tuple[int, ...], step: int, width: int) -> NDArray[np.bool_]:
    """Return bool[rows, columns]: diagonal lines, falling to the right, so many pixels wide at such a distance."""
    rows, columns = (np.arange(size, dtype=np.int32) for size in shape)
    lines: NDArray[np.bool_] = np.subtract.outer(rows, columns) % step < width
    return lines


def _enlarged(
    cells: NDArray[np.uint8] | NDArray[np.bool_], size: tuple[int, int], extent: tuple[float, float]
) -> Image.Image:
    box = (0.0, 0.0, min(extent[0], cells.shape[1]), min(extent[1], cells.shape[0]))
    return Image.fromarray(cells).resize(size, Image.Resampling.NEAREST, box=box)


def scaled(thumbnail: NDArray[np.uint8], least: int = _LEAST_PX) -> Image.Image:
    """Bring the longer side of a picture (uint8[rows, columns, 3]) to at most 2000 pixels and at least so many.

    Small slides are magnified so that cells can be seen.
    """
    picture, longer = Image.fromarray(thumbnail), max(thumbnail.shape[:2])
    factor = np.clip(longer, least, _MOST_PX) / longer
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.BILINEAR)


def _line(picture: Image.Image) -> int:
    """Return the width of outlines that stay visible when a whole picture is looked at."""
    return max(1, round(max(picture.size) / 600))


def rim(mask: NDArray[np.bool_], width: int = 1) -> NDArray[np.bool_]:
    """Return the set pixels that are no further than `width` from one that is not, or from the edge."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    outer: NDArray[np.bool_] = mask & ~inner
    return outer


def _framed(picture: Image.Image, title: str, notes: list[str]) -> Image.Image:
    large, small = ImageFont.load_default(16), ImageFont.load_default(13)
    width = max([picture.width, int(large.getlength(title)), *(int(small.getlength(note)) for note in notes)])
    height = picture.height + _LINE * (len(notes) + 1) + 3 * _MARGIN
    framed = Image.new("RGB", (width + 2 * _MARGIN, height), _PAPER)
    draw = ImageDraw.Draw(framed)
    draw.text((_MARGIN, _MARGIN), title, fill=INK, font=large)
    framed.paste(picture, (_MARGIN, _MARGIN + _LINE + 4))
    for number, note in enumerate(notes):
        draw.text((_MARGIN, _MARGIN + 8 + picture.height + (number + 1) * _LINE), note, fill=INK, font=small)
    return framed


def _legend(framed: Image.Image, threshold: float, *, has_unknown: bool) -> None:
    """Draw the colour scale in the lower left corner, and what is unknown where there is any."""
    width, height, left, top = 200, 12, 12, framed.height - 28
    bar = colored(np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1)), threshold)
    framed.paste(Image.fromarray(bar), (left + 110, top))
    draw, font = ImageDraw.Draw(framed), ImageFont.load_default(13)
    draw.text((left, top - 2), "p(tumour)   0", fill=INK, font=font)
    text = f"1      outlined: {threshold:.2f} and above"
    draw.text((left + 110 + width + 6, top - 2), text, fill=INK, font=font)
    if has_unknown:
        key = np.empty((height, 2 * height, 3), np.uint8)
        hatch(key, np.ones(key.shape[:2], np.bool_), 1)
        after = left + 110 + width + 30 + int(font.getlength(text))
        framed.paste(Image.fromarray(key), (after, top))
        draw.text((after + 2 * height + 6, top - 2), "unknown tissue, not judged", fill=INK, font=font)


def _save(path: Path, picture: Image.Image) -> None:
    with written_whole(path) as partial:
        picture.save(partial, "PNG", compress_level=1)  # a tenth larger than by default, in half the time
