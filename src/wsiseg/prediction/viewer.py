"""A slide with its tumour map over it in a page: how much of the map shows is up to who looks."""

import io
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.pages.page import picture_address
from wsiseg.pages.pictures import (
    DARK,
    INK,
    KEY_OF_UNKNOWN,
    LIGHT,
    NORMAL,
    TUMOR,
    is_line,
    palette,
    rim,
    scale_bar,
    shades,
)
from wsiseg.run.errors import counted
from wsiseg.run.record import in_words
from wsiseg.slides.slide import ASSUMED, SlideFacts

if TYPE_CHECKING:
    from PIL.Image import Image

KEPT_PX = 840
"""Longer side of the picture of a slide that is kept for pages."""

_LEAST_PX = 96
_BYTES_PER_PIXEL = 0.25  # of a typical picture with its map, as text
_KEPT_QUALITY, _QUALITY = 80, 70
_SHADES = 4  # of the palette that a page shows as one
_STEPS = (
    256 // _SHADES
)  # colours of a map; further ones for its outlines, for what is unknown and for what is not covered
_HATCH_PX = (7, 3)  # from line to line, and the width of one
_WIDE = 5  # cells of more pixels than this have room for a wider outline
_BINS = 32


class Results(NamedTuple):
    """What is at hand of a slide: its map, and its kept picture where there is one."""

    heatmap: Heatmap
    jpeg: bytes | None


class Overlay(NamedTuple):
    """A tumour map to lay over the picture of its slide."""

    png: bytes  # an image file with few colours, transparent where nobody looked, tumour outlined
    # Left, top, width and height as shares of the picture's width and height; the last cells may reach beyond.
    box: tuple[float, float, float, float]


def colors() -> str:
    """Return the colours of maps as CSS: the scale, tumour, its outline, and what is unknown."""
    outline = f"--tumor: rgb{TUMOR}; --normal: rgb{NORMAL}; --outline: rgb{INK}; --unknown: {KEY_OF_UNKNOWN};"
    return f":root {{ {_scale(0.5)}; {outline} }}\n"


def _scale(threshold: float) -> str:
    """Return the colours of probabilities as a CSS gradient, with the leap at the threshold."""
    shown, side = palette()[[0, 32, 64, 96, 127, 128, 160, 192, 224, 255]], np.linspace(0, 1, 5)
    places = [*(threshold * side), *(threshold + (1 - threshold) * side)]
    stops = ", ".join(f"rgb({r} {g} {b}) {at:.2%}" for (r, g, b), at in zip(shown, places, strict=True))
    return f"--scale: linear-gradient(to right, {stops})"


def viewed(found: Results, slide: str, most_bytes: int) -> str:
    """Return the slide with its map over it, and the histogram, in about so many bytes at most; class by class."""
    several = found.heatmap.by_class
    if len(several) > 1:
        parts = (viewed(Results(one, found.jpeg), slide, most_bytes // len(several)) for one in several)
        return "".join(f"<h4>{_word(one)}</h4>{part}" for one, part in zip(several, parts, strict=True))
    drawn = _histogram(found.heatmap) if found.heatmap.tissue.any() else ""
    most_bytes = max(1, most_bytes - len(drawn))
    longest_px = int(min(KEPT_PX, max(_LEAST_PX, (most_bytes / _BYTES_PER_PIXEL) ** 0.5)))
    while True:
        pictures = _pictures(found, escape(slide), longest_px)
        if len(pictures) <= most_bytes or longest_px == _LEAST_PX:
            return f'<div class="row">{pictures}{drawn}</div>'
        smaller = min(0.97 * (most_bytes / len(pictures)) ** 0.5, 0.9)
        longest_px = max(_LEAST_PX, int(smaller * longest_px))


def _word(heatmap: Heatmap) -> str:
    return escape(in_words(heatmap.positive_class))


def slide_jpeg(picture: NDArray[np.uint8], slide: SlideFacts) -> bytes:
    """Return what is kept for pages of the picture (uint8[rows, columns, 3]) of a whole slide, as JPEG."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pictures are made

    return _jpeg(Image.fromarray(picture[slide.shown_part(picture.shape)]), KEPT_PX, _KEPT_QUALITY)


def smaller_jpeg(jpeg: bytes, longest_px: int) -> bytes | None:
    """Return the kept picture of a slide with a longer side of at most so many pixels; None where it is broken."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pictures are made

    try:
        image = Image.open(io.BytesIO(jpeg), formats=["JPEG"])
        return _jpeg(image, longest_px, _QUALITY) if max(image.size) <= KEPT_PX else None
    except (OSError, Image.DecompressionBombError):
        return None


def _jpeg(image: "Image", longest_px: int, quality: int) -> bytes:
    image.thumbnail((longest_px, longest_px))
    buffer = io.BytesIO()
    (image if image.mode == "RGB" else image.convert("RGB")).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def overlay(heatmap: Heatmap, longest_px: int) -> Overlay:
    """Return a tumour map with a longer side of about so many pixels at most.

    Cells are repeated or averaged by a whole number of them, those that were judged; where half of them or more
    are unknown it is hatched.
    """
    values, unknown, box = heatmap.shown(longest_px)
    return Overlay(_png(values, unknown, heatmap.threshold, max(1, longest_px // max(values.shape))), box)


def _png(values: NDArray[np.float32], unknown: NDArray[np.bool_], threshold: float, copies: int) -> bytes:
    from PIL import Image  # noqa: PLC0415  heavy: only where pictures are made

    known = np.where(unknown, -1.0, np.nan_to_num(values, nan=-1.0))
    colored = np.where(known < 0, 0, 1 + shades(np.maximum(known, 0), threshold) // _SHADES).astype(np.uint8)
    indices = colored.repeat(copies, 0).repeat(copies, 1)
    unknown, tumor = (one.repeat(copies, 0).repeat(copies, 1) for one in (unknown, known >= threshold))
    indices[unknown] = _STEPS + 2 - is_line(unknown.shape, *_HATCH_PX)[unknown]
    indices[rim(tumor, 2 if copies > _WIDE else 1)] = _STEPS + 3
    colors = palette()[_SHADES // 2 :: _SHADES]
    image = Image.fromarray(indices)
    image.putpalette(bytes((255, 255, 255)) + colors.tobytes() + bytes((*DARK, *LIGHT, *INK)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


def _histogram(heatmap: Heatmap) -> str:
    """Show how many cells have which probability, on a logarithmic scale, and the threshold."""
    values = heatmap.probabilities[heatmap.judged]
    counts = np.histogram(values, _BINS, (0, 1))[0]
    bars = "".join(f'<i style="height: {height:.1%}"></i>' for height in np.log1p(counts) / np.log1p(max(1, *counts)))
    return (
        f'<figure class="histogram" style="--threshold: {heatmap.threshold:.2%}; {_scale(heatmap.threshold)}">'
        f"<div>{counted(values.size, 'judged cell')}; the highest bar has {counts.max():,} (logarithmic)</div>"
        f'<div class="bars">{bars}<b></b></div><div class="scale"></div>'
        f'<div class="ends"><span>0</span><span>probability of {_word(heatmap)}</span><span>1</span></div>'
        f"<div>{_word(heatmap)} from {heatmap.threshold:.2f}</div></figure>"
    )


def _pictures(found: Results, name: str, longest_px: int) -> str:
    """Lay the map over the picture of a slide, whose name is HTML."""
    images = []
    if found.jpeg is not None and (jpeg := smaller_jpeg(found.jpeg, longest_px)) is not None:
        images.append(f'alt="slide {name}" src="{picture_address("jpeg", jpeg)}"')
    if found.heatmap.tissue.any():
        png, box = overlay(found.heatmap, longest_px)
        alt = f"{_word(found.heatmap)} map of {name}"
        place = "left: {:.4%}; top: {:.4%}; width: {:.4%}; height: {:.4%}".format(*box)
        images.append(f'class="map" style="{place}" alt="{alt}" src="{picture_address("png", png)}"')
    slide = found.heatmap.slide
    _, _, width, height = slide.shown_px
    style = f"--ratio: {width / height:.5f}; --widest: {round(1.5 * longest_px * min(1, width / height))}px"
    lazy = "".join(f'<img loading="lazy" decoding="async" {image}>' for image in images)
    return f'<div class="stack" style="{style}">{lazy}{_ruler(slide, width * slide.mpp[0])}</div>'


def _ruler(slide: SlideFacts, width_um: float) -> str:
    """Return the scale bar of a picture so many um wide, as HTML; none where nobody knows the micrometers."""
    length = scale_bar(width_um)
    bar = f'<span class="ruler" style="width: {length / width_um:.3%}">{length:g} um</span>'
    return "" if slide.mpp_source == ASSUMED else bar
