"""Pictures of what was found on a slide, for people."""

import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsiseg.run.outputs import written_whole

_LEAST_PX, _MOST_PX = 700, 1200  # the longer side of a picture
INK, _PAPER, _WARNING = (34, 34, 34), (255, 255, 255), (179, 38, 30)
TUMOR, NORMAL = (213, 94, 0), (0, 114, 178)
"""What is tumour and what is not, by the truth and by a map; told apart by people who see no red or no green too."""
FURTHER = ((0, 158, 115), (204, 121, 167), (240, 228, 66), (86, 180, 233))
"""Further classes beside tumour, in turns (Okabe and Ito, Color universal design, 2008)."""
TRUTH = (0, 190, 115)
"""The outline of the true tumour; that of a map is `INK`."""
_SIDE = 128  # colours of each side of the threshold
_STOPS = (((8, 64, 129), NORMAL, (146, 197, 222)), ((253, 184, 99), TUMOR, (122, 36, 0)))
_OPACITY = 0.55
_GAP, _MARGIN, _LINE = 12, 12, 22  # between two pictures, around them, and from line to line
_LEGEND_PX = 860  # the width that the line of the colours needs
_ROUND = (1, 2, 5)
DARK, LIGHT = (64, 64, 64), (214, 214, 214)
"""The lines of what is unknown, and what lies between them."""
KEY_OF_UNKNOWN = f"repeating-linear-gradient(45deg, rgb{LIGHT} 0 3px, rgb{DARK} 3px 5px)"
"""A CSS background that looks like what is unknown."""


def colored(probabilities: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return probabilities (any shape, no NaN) as colours: blues below the threshold, oranges from it on."""
    return palette()[shades(probabilities, threshold)]


def palette() -> NDArray[np.uint8]:
    """Return uint8[256, 3], the colours of `shades`: from 0 to the threshold, and after a leap from there to 1."""
    places = np.linspace(0, 1, _SIDE)
    sides = [np.stack([np.interp(places, (0, 0.5, 1), one) for one in zip(*stops, strict=True)], 1) for stops in _STOPS]
    return np.concatenate(sides).round().astype(np.uint8)


def shades(probabilities: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return the place of each probability in the palette: from 128 on exactly where it is tumour; NaN is 0."""
    values = np.nan_to_num(probabilities, nan=0.0)  # the only copy of what may be large
    is_tumor = values >= threshold
    np.subtract(values, threshold, out=values, where=is_tumor)
    last, least = _SIDE - 1, 1e-6
    np.multiply(values, last / max(1 - threshold, least), out=values, where=is_tumor)
    np.multiply(values, last / max(threshold, least), out=values, where=~is_tumor)
    places = np.rint(values, out=values).astype(np.uint8)
    places[is_tumor] += _SIDE
    return places


def scale_bar(width_um: float) -> float:
    """Return a round length in um, 1, 2 or 5 and zeros, that is a tenth to a quarter of a picture's width."""
    lengths = [digit * 10.0**power for power in range(-3, 9) for digit in _ROUND]
    return max((length for length in lengths if length <= width_um / 4), default=lengths[0])


def tissue_picture(path: Path, thumbnail: NDArray[np.uint8], mask: NDArray[np.bool_], title: str) -> None:
    """Write a PNG of a slide (uint8[rows, columns, 3]) with its tissue outlined and everything else dimmed.

    The mask, bool[rows, columns], is of any size and over the whole slide; the title is a line above the picture.
    """
    canvas = scaled(thumbnail)
    kept = np.asarray(Image.fromarray(mask).resize(canvas.size, Image.Resampling.NEAREST))
    pixels = np.array(canvas)
    pixels[~kept] = pixels[~kept] // 2 + 90
    pixels[rim(kept, _line(canvas))] = TRUTH
    _save(path, _framed([Image.fromarray(pixels)], title))


def heatmap_picture(  # noqa: PLR0913  one argument for each thing that is drawn
    path: Path,
    thumbnail: NDArray[np.uint8],  # [rows, columns, 3], the whole slide
    # For each class, by the word for it, probabilities [rows, columns], NaN where nobody looked, and the threshold.
    maps: Mapping[str, tuple[NDArray[np.float32], float]],
    unknown: NDArray[np.bool_],  # [rows, columns], the cells that were not judged; they are hatched
    extent: tuple[float, float],  # how many heatmap columns and rows span the slide; the last may reach beyond it
    *,
    title: str,  # a line above the picture
    warnings: Sequence[str] = (),  # lines below the title, that nobody should miss
    notes: Sequence[str] = (),  # lines below the picture
    cell_um: float | None = None,  # side of a cell in um, for the scale bar; None where nobody knows it
) -> None:
    """Write a PNG of a slide beside the same slide with its map over it; maps of several classes below each other."""
    plain, panels = scaled(thumbnail), []
    for word, (probabilities, threshold) in maps.items():
        judged = np.where(unknown, np.float32(np.nan), probabilities)
        mapped = _mapped(plain, judged, unknown, extent, threshold)
        panels.append(_framed([plain, mapped], title, warnings, [*notes, ""], _LEGEND_PX))
        _legend(panels[-1], threshold, word, has_unknown=bool(unknown.any()))
        if cell_um is not None:
            _measure(panels[-1], extent[0] * cell_um, plain.width)
    _save(path, *panels)


def _mapped(
    plain: Image.Image,
    probabilities: NDArray[np.float32],
    unknown: NDArray[np.bool_],
    extent: tuple[float, float],
    threshold: float,
) -> Image.Image:
    places = _enlarged(shades(probabilities, threshold), plain.size, extent)
    places.putpalette(palette().tobytes())
    over = Image.blend(plain, places.convert("RGB"), _OPACITY)
    looked = _enlarged(~np.isnan(probabilities), plain.size, extent)
    pixels = np.array(Image.composite(over, plain, looked))
    if unknown.any():
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
    """Bring the longer side of a picture (uint8[rows, columns, 3]) to at most 1200 pixels and at least so many.

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


def _framed(
    pictures: Sequence[Image.Image],  # of one size, that stand beside each other
    title: str,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
    least_width: int = 0,
) -> Image.Image:
    large, small = ImageFont.load_default(16), ImageFont.load_default(13)
    above, below = [f"warning: {warning}" for warning in warnings], [*notes]
    widths = (
        math.ceil(font.getlength(line)) for font, lines in ((large, (title, *above)), (small, below)) for line in lines
    )
    step, height = pictures[0].width + _GAP, pictures[0].height
    width = max(len(pictures) * step - _GAP, least_width, *widths)
    top = _MARGIN + _LINE * (1 + len(above)) + 4
    framed = Image.new("RGB", (width + 2 * _MARGIN, top + height + 8 + _LINE * len(below) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(framed)
    for number, line in enumerate((title, *above)):
        draw.text((_MARGIN, _MARGIN + number * _LINE), line, fill=_WARNING if number else INK, font=large)
    for place, picture in enumerate(pictures):
        framed.paste(picture, (_MARGIN + place * step, top))
    for number, note in enumerate(below):
        draw.text((_MARGIN, top + height + 8 + number * _LINE), note, fill=INK, font=small)
    return framed


def _legend(framed: Image.Image, threshold: float, word: str, *, has_unknown: bool) -> None:
    """Draw the colour scale in the lower left corner, its threshold marked, and what is unknown where there is any."""
    width, height, left, top = 200, 12, 12, framed.height - 32
    bar = colored(np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1)), threshold)
    draw, font = ImageDraw.Draw(framed), ImageFont.load_default(13)
    head = f"p({word})   0"
    left += max(0, math.ceil(font.getlength(head)) - 102)
    framed.paste(Image.fromarray(bar), (left + 110, top))
    draw.text((12, top - 2), head, fill=INK, font=font)
    at = left + 110 + round(threshold * (width - 1))
    draw.line((at, top - 4, at, top + height + 3), fill=INK, width=2)
    draw.text((at, top + height + 2), f"{threshold:.2f}", fill=INK, font=font, anchor="ma")
    text = f"1      {word}, outlined: {threshold:.2f} and above"
    draw.text((left + 110 + width + 6, top - 2), text, fill=INK, font=font)
    if has_unknown:
        key = np.empty((height, 2 * height, 3), np.uint8)
        hatch(key, np.ones(key.shape[:2], np.bool_), 1)
        after = left + 110 + width + 30 + int(font.getlength(text))
        framed.paste(Image.fromarray(key), (after, top))
        draw.text((after + 2 * height + 6, top - 2), "unknown tissue, not judged", fill=INK, font=font)


def _measure(framed: Image.Image, width_um: float, width_px: int) -> None:
    """Draw a scale bar in the lower right corner for a picture so many um and pixels wide."""
    length = scale_bar(width_um)
    right, top = framed.width - _MARGIN, framed.height - 20
    draw = ImageDraw.Draw(framed)
    draw.rectangle((right - round(length / width_um * width_px) + 1, top - 4, right, top), fill=INK)
    draw.text((right, top - 22), f"{length:g} um", fill=INK, font=ImageFont.load_default(13), anchor="ra")


def _save(path: Path, *panels: Image.Image) -> None:
    """Write a PNG of pictures of one width below each other."""
    with written_whole(path) as partial, partial.open("wb") as file:
        file.writelines(_png([np.asarray(panel) for panel in panels]))


def _png(panels: Sequence[NDArray[np.uint8]]) -> Iterator[bytes]:
    """Return a PNG of pictures (uint8[rows, columns, 3]), whose rows are stored as differences from those above them.

    Pillow tries five kinds of differences for every row, which takes longer than compressing them; the file would be as
    large (PNG Specification, third edition, sections 5.3, 9.2 and 11.2).
    """
    rows, columns = sum(map(len, panels)), panels[0].shape[1]
    lines = np.full((rows, 1 + 3 * columns), 2, np.uint8)  # each begins with the kind of its differences
    top, above = 0, np.zeros(3 * columns, np.uint8)
    for pixels in panels:
        flat, differences = pixels.reshape(len(pixels), -1), lines[top : top + len(pixels), 1:]
        np.subtract(flat[0], above, out=differences[0])
        np.subtract(flat[1:], flat[:-1], out=differences[1:])
        top, above = top + len(pixels), flat[-1]
    head = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)  # of 8 bits a sample, in RGB
    yield b"\x89PNG\r\n\x1a\n"
    for name, data in ((b"IHDR", head), (b"IDAT", zlib.compress(lines.data, 1)), (b"IEND", b"")):
        yield from (struct.pack(">I", len(data)), name, data)
        yield struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
