"""Pictures of slides for the page: truth, map and errors cell by cell, both outlines on the histology, worst places."""

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsiseg.evaluation.comparison import Compared, Laid
from wsiseg.evaluation.histology import Marked, Place
from wsiseg.evaluation.metrics_file import Report
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.mathematics.grid import block_means
from wsiseg.pages.page import picture_address
from wsiseg.pages.pictures import INK, KEY_OF_UNKNOWN, TRUTH, TUMOR, colored, hatch, is_line
from wsiseg.run.record import SlideRecord, slides_of
from wsiseg.slides.slide import ASSUMED

COLORS = {
    "hit": TUMOR,
    "miss": (240, 228, 66),
    "false alarm": (135, 60, 150),
    "rest": (222, 226, 230),
    "left out": (128, 128, 128),
}
"""Of the errors, told apart by people who see no red or no green too."""
KEYS = {
    **{name: f"rgb{color}" for name, color in COLORS.items()},
    "left out": f"repeating-linear-gradient(-45deg, #fff 0 3px, rgb{COLORS['left out']} 3px 4px)",
    "unknown, not judged": KEY_OF_UNKNOWN,
}
"""CSS backgrounds that look like what is drawn."""
STYLE = """
.histology, .place { width: 46rem; max-width: 100%; } .place, .row > p { width: 22rem; max-width: 100%; }
figure:has(.histology) { flex-basis: 100%; }
"""
_OUTLINES = (
    f'<p class="small">Outlines:<span class="key" style="background: rgb{TRUTH}"></span>truth'
    f'<span class="key" style="background: rgb{INK}"></span>map</p>'
)
_GONE = "<p>The slide is not where it was when it was mapped, so its histology cannot be shown.</p>"
_MOST_PICTURES, _MOST_PLACES = 200, 24
_MOST_BYTES, _BYTES_PER_PIXEL = 12_000_000, 0.35  # of all overviews as text, and of one
_PAPER = (255, 255, 255)
_HALF = 0.5  # a cell is tumour in truth, or left out, when half of it is
_CELLS = 256  # the longer side of what a picture shows
_HATCH = 3  # cells from one line of what is left out to the next


@dataclass(frozen=True)
class JudgedPicture:
    """Prediction and truth at a size to look at, [rows, columns] each."""

    probabilities: NDArray[np.float32]  # the mean of what was judged, NaN where nothing was
    unknown_share: NDArray[np.float32]  # of what was looked at, NaN where nobody looked
    tumor_share: NDArray[np.float32]  # of each cell, by the truth
    ignored_share: NDArray[np.float32]  # of each cell, left out of all measures


def picture_of(heatmap: Heatmap, tumor_share: NDArray[np.float64], ignored_share: NDArray[np.float64]) -> JudgedPicture:
    """Average cells until the longer side is small enough, or repeat them until hatching can be seen in them."""
    factor, copies = -(-max(heatmap.shape) // _CELLS), max(1, _CELLS // max(heatmap.shape))
    everywhere = np.ones(heatmap.shape, np.bool_)
    means = (
        block_means(heatmap.probabilities, heatmap.judged, factor),
        block_means(heatmap.unknown, heatmap.tissue, factor),
        block_means(tumor_share, everywhere, factor),
        block_means(ignored_share, everywhere, factor),
    )
    return JudgedPicture(*(one.repeat(copies, 0).repeat(copies, 1) for one in means))


def _hatched(pixels: NDArray[np.uint8], picture: JudgedPicture, *, with_unknown: bool = True) -> NDArray[np.uint8]:
    """Draw rising grey lines on white over what is left out, and falling dark ones on grey over what is unknown."""
    left_out = picture.ignored_share >= _HALF
    if with_unknown:
        hatch(pixels, np.nan_to_num(picture.unknown_share) >= _HALF, 1)
    pixels[left_out] = _PAPER
    pixels[left_out & is_line(left_out.shape, _HATCH, 1)[:, ::-1]] = COLORS["left out"]
    return pixels


def drawn(picture: JudgedPicture, threshold: float) -> dict[str, NDArray[np.uint8]]:
    """Draw truth, map and errors, uint8[rows, columns, 3] each, white where nobody looked.

    The truth is orange by the share of tumour, the map from the threshold on, and the errors are those of cells.
    """
    looked, judged = ~np.isnan(picture.unknown_share), ~np.isnan(picture.probabilities)
    base = np.where(looked[..., None], COLORS["rest"], _PAPER).astype(np.uint8)
    share = picture.tumor_share[..., None]
    truth = (base * (1 - share) + np.array(TUMOR) * share).round().astype(np.uint8)
    colors = np.full_like(base, 255)
    colors[judged] = colored(picture.probabilities[judged], threshold)
    tumor = picture.tumor_share >= _HALF
    called = np.nan_to_num(picture.probabilities, nan=-1.0) >= np.float32(threshold)
    base[tumor & called], base[tumor & ~called] = COLORS["hit"], COLORS["miss"]
    base[~tumor & called] = COLORS["false alarm"]
    found = {"truth": _hatched(truth, picture, with_unknown=False), "map": _hatched(colors, picture)}
    return found | {"error": _hatched(base, picture)}


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return an image as a PNG file."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pictures are made

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)  # fewer colours would blend the grey of the unknown
    return buffer.getvalue()


def pictures(report: Report, ranked: Sequence[SlideRecord], slides: Sequence[Compared]) -> Iterator[str]:
    """Show the worst places of the slides, and the slides with the outlines of truth and map, worst first."""
    by_slide, recorded = {one.row.slide: one for one in slides}, _recorded(Path(report.run))
    sections: list[tuple[str, Marked, str]] = []
    for record in ranked[:_MOST_PICTURES]:
        one = by_slide.get(record.slide)
        if one is not None and one.again is not None:
            laid, path = one.again(), one.row.path
            path = path if path.is_file() else recorded.get(record.slide, path)
            marked = Marked.of(laid, record.slide, path, report.threshold.value)
            sections.append((record.slide, marked, _cells(laid, report.threshold.value, record.slide)))
    if not sections:
        return
    found = [(place, slide, marked) for slide, marked, _ in sections for place in marked.places]
    worst = sorted(found, key=lambda one: one[0].mm2, reverse=True)[:_MOST_PLACES]
    yield f"<h2>Worst places, {escape(report.scope)}</h2>{_OUTLINES}"
    yield f'<div class="row">{"".join(itertools.starmap(_worst, enumerate(worst, 1)))}</div>'
    keys = "".join(f'<span class="key" style="background: {key}"></span>{name}' for name, key in KEYS.items())
    yield f'<h2>Pictures, worst slide first</h2>{_OUTLINES}<p class="small">Errors:{keys}</p>'
    longest = (_MOST_BYTES / len(sections) / _BYTES_PER_PIXEL) ** 0.5
    for slide, marked, cells in sections:
        own = [(number, place) for number, (place, of, _) in enumerate(worst, 1) if of == slide]
        histology = _figure(marked.overview(longest, own), f"{slide}, outlined", "histology", "histology") or _GONE
        yield f'<h3 id="{anchor(slide)}">{escape(slide)}</h3><div class="row">{histology}{cells}</div>'


def anchor(slide: str) -> str:
    """Return the id of the pictures of a slide in the page."""
    return f"slide-{escape(slide)}"


def _recorded(run: Path) -> dict[str, Path]:
    """Return where the slides of a run were, by their ids; nothing where it keeps no record."""
    with contextlib.suppress(OSError, ValueError):
        return {one.slide: Path(one.path) for one in slides_of(run)}
    return {}


def _worst(number: int, found: tuple[Place, str, Marked]) -> str:
    """Show a place at full resolution; where the slide is not at hand it is named."""
    place, slide, marked = found
    area = "" if marked.facts.mpp_source == ASSUMED else f", {place.mm2:.2g} mm2"
    text = f'{number}. <a href="#{anchor(slide)}">{escape(slide)}</a>: {place.kind}{area}'
    return _figure(marked.crop(place), f"{place.kind} on {slide}", text, "place") or f"<p>{text}. {_GONE}</p>"


def _cells(laid: Laid, threshold: float, slide: str) -> str:
    """Draw truth, map and errors of a slide cell by cell."""
    shown = drawn(picture_of(laid.heatmap, laid.tumor_share, laid.ignored_share), threshold)
    return "".join(_figure(png(pixels), f"{name} of {slide}", name, "cells") for name, pixels in shown.items())


def _figure(content: bytes | None, alt: str, caption: str, kind: str) -> str:
    """Return a figure of a PNG or JPEG file, its caption HTML; nothing where there is no image."""
    if content is None:
        return ""
    address = picture_address("png" if content.startswith(b"\x89PNG") else "jpeg", content)
    image = f'<img decoding="async" class="{kind}" src="{address}" alt="{escape(alt)}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
