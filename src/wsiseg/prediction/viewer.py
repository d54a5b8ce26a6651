"""A slide with its tumour map over it in a page: how much of the map shows is up to who looks."""

import io
import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.mathematics.grid import block_means
from wsiseg.pages.drawing import GRID, INK, Drawing, Polyline, Rectangle, Text
from wsiseg.pages.page import picture_address
from wsiseg.pages.pictures import DARK, KEY_OF_UNKNOWN, LIGHT, colored, is_line, rim
from wsiseg.pages.pictures import INK as OUTLINE
from wsiseg.slides.slide import SlideFacts

if TYPE_CHECKING:
    from PIL.Image import Image


KEPT_PX = 840
"""Longer side of the picture of a slide that is kept for pages."""

_LEAST_PX = 96
_BYTES_PER_PIXEL = 0.25  # of a typical picture with its map, as text
_KEPT_QUALITY, _QUALITY = 80, 70
_STEPS = 62  # colours of a map; further ones for its outlines, for what is unknown and for what is not covered
_HATCH_PX = (7, 3)  # from line to line, and the width of one
_HALF = 0.5
_WIDE = 5  # cells of more pixels than this have room for a wider outline
_BINS = 32
_BAR = "#5b6770"
STYLE = """
html { scroll-padding-top: 6rem; }
.bar { position: sticky; top: 0; z-index: 2; padding: .5rem 0; background: var(--paper);
  border-bottom: 1px solid var(--line); display: flex; flex-wrap: wrap; gap: .3rem 1.5rem; align-items: center; }
.bar input { width: 12rem; }
.bar output { display: inline-block; min-width: 3.2em; }
.scale { display: inline-block; width: 9rem; height: .8rem; margin: 0 .4rem; vertical-align: middle;
  border: 1px solid var(--line); }
.outlined { border: 2px solid; outline: 1px solid var(--line); }
kbd { border: 1px solid var(--line); border-radius: 3px; padding: 0 .3em; font: inherit; background: var(--soft); }
.slide { content-visibility: auto; contain-intrinsic-size: auto 34rem; padding: .2rem .4rem 1rem; }
.slide:focus { outline: 2px solid var(--link); outline-offset: 2px; }
.stack { position: relative; overflow: hidden; background: #fff; border: 1px solid var(--line);
  aspect-ratio: var(--ratio); flex: 1 1 20rem; max-width: min(100%, var(--widest), 70vh * var(--ratio)); }
.slide .row { align-items: flex-start; }
.stack img { position: absolute; inset: 0; width: 100%; height: 100%; }
.stack img.map { inset: auto; image-rendering: pixelated; opacity: var(--opacity, .6); }
@media print { .bar { position: static; } }
"""
SCRIPT = """
const slider = document.getElementById("opacity");
const bar = document.querySelector(".bar");
const sections = [...document.querySelectorAll("section.slide")];
const show = () => {
  document.documentElement.style.setProperty("--opacity", slider.value / 100);
  document.getElementById("opacity-value").textContent = slider.value + " %";
};
const change = step => { slider.value = Number(slider.value) + step; show(); };
const go = step => {
  const edge = bar.offsetHeight + 10;
  const tops = sections.map(section => section.getBoundingClientRect().top);
  let next = sections.indexOf(document.activeElement.closest("section.slide"));
  const isSeen = next >= 0 && tops[next] < innerHeight && sections[next].getBoundingClientRect().bottom > edge;
  if (isSeen) next += step;
  else if (step > 0) next = tops.findIndex(top => top > edge);
  else next = tops.findLastIndex(top => top < edge - 4);
  if (!sections[next]) return;
  sections[next].focus({preventScroll: true});
  sections[next].scrollIntoView();
};
const steps = {"+": 5, "=": 5, "-": -5, ArrowRight: 5, ArrowLeft: -5};
slider.addEventListener("input", show);
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key.startsWith("Arrow") && event.target.closest(".wide")) return;  // there they scroll the table
  if (event.key in steps) change(steps[event.key]);
  else if (event.key === "n") go(1);
  else if (event.key === "p") go(-1);
  else return;
  event.preventDefault();
});
new ResizeObserver(() => {
  document.documentElement.style.scrollPaddingTop = bar.offsetHeight + 8 + "px";
}).observe(bar);
show();
"""


@dataclass(frozen=True)
class Results:
    """What is at hand of a slide: its map, and its kept picture where there is one."""

    heatmap: Heatmap
    jpeg: bytes | None


@dataclass(frozen=True)
class Overlay:
    """A tumour map to lay over the picture of its slide."""

    png: bytes  # an image file with few colours, transparent where nobody looked, tumour outlined
    # Left, top, width and height as shares of the picture's width and height; the last cells may reach beyond.
    box: tuple[float, float, float, float]


def viewer_bar() -> str:
    """Return what stays at the top while the maps scroll: the slider, the keys and the legend."""
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in colored(np.linspace(0, 1, 21, dtype=np.float32), 0.5))
    high = tuple(colored(np.array([0.75], np.float32), 0.5)[0].tolist())
    return (
        '<div class="bar"><label>Map <input type="range" id="opacity" min="0" max="100" step="5" value="60"> '
        '<output id="opacity-value">60 %</output></label>'
        "<span><kbd>←</kbd> <kbd>→</kbd> or <kbd>-</kbd> <kbd>+</kbd> change how much of the map shows, "
        "<kbd>n</kbd> and <kbd>p</kbd> go to the next and the previous slide</span>"
        "<span>Tissue by its probability of tumour, warm from the threshold on: "
        f'0<span class="scale" style="background: linear-gradient(to right, {stops})"></span>1'
        f'<span class="key outlined" style="border-color: rgb{OUTLINE}; background: rgb{high}"></span>tumour '
        f'<span class="key" style="width: 1.6em; background: {KEY_OF_UNKNOWN}"></span>unknown tissue, not judged; '
        "without colour: not looked at</span></div>"
    )


def viewed(found: Results, slide: str, most_bytes: int) -> str:
    """Return the slide with its map over it, and the histogram, in about so many bytes at most."""
    drawn = f"<figure>{histogram(found.heatmap).svg()}</figure>" if found.heatmap.tissue.any() else ""
    most_bytes = max(1, most_bytes - len(drawn))
    longest_px = int(min(KEPT_PX, max(_LEAST_PX, (most_bytes / _BYTES_PER_PIXEL) ** 0.5)))
    while True:
        pictures = _pictures(found, slide, longest_px)
        if len(pictures) <= most_bytes or longest_px == _LEAST_PX:
            return f'<div class="row">{pictures}{drawn}</div>'
        smaller = min(0.97 * (most_bytes / len(pictures)) ** 0.5, 0.9)
        longest_px = max(_LEAST_PX, int(smaller * longest_px))


def shown_px(slide: SlideFacts) -> tuple[int, int, int, int]:
    """Return x, y, width, height of what is shown of a slide: the bounds of the scan, else all of level 0."""
    x, y, width, height = slide.bounds_px or (0, 0, *slide.size_px)
    left, top = (min(max(at, 0), size - 1) for at, size in zip((x, y), slide.size_px, strict=True))
    right, below = min(max(x + width, left + 1), slide.size_px[0]), min(max(y + height, top + 1), slide.size_px[1])
    return left, top, right - left, below - top


def slide_jpeg(picture: NDArray[np.uint8], slide: SlideFacts) -> bytes:
    """Return what is kept for pages of the picture (uint8[rows, columns, 3]) of a whole slide, as JPEG."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pictures are made

    x, y, width, height = shown_px(slide)
    across, down = picture.shape[1] / slide.size_px[0], picture.shape[0] / slide.size_px[1]
    top, left = int(y * down), int(x * across)
    part = picture[top : max(top + 1, round((y + height) * down)), left : max(left + 1, round((x + width) * across))]
    image = Image.fromarray(part)
    image.thumbnail((KEPT_PX, KEPT_PX))
    return _jpeg(image, _KEPT_QUALITY)


def smaller_jpeg(jpeg: bytes, longest_px: int) -> bytes | None:
    """Return the kept picture of a slide with a longer side of at most so many pixels; None where it is broken."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pictures are made

    try:
        image = Image.open(io.BytesIO(jpeg), formats=["JPEG"])
        if max(image.size) > KEPT_PX:
            return None
        image.thumbnail((longest_px, longest_px))
    except (OSError, Image.DecompressionBombError):
        return None
    return _jpeg(image.convert("RGB"), _QUALITY)


def overlay(heatmap: Heatmap, longest_px: int) -> Overlay:
    """Return a tumour map with a longer side of about so many pixels at most.

    Cells are repeated or averaged by a whole number of them, those that were judged; where half of them or more
    are unknown it is hatched.
    """
    x, y, width, height = shown_px(heatmap.slide)
    across, down = heatmap.cell_level0
    left, top = int(x / across), int(y / down)
    part = np.s_[top : math.ceil((y + height) / down), left : math.ceil((x + width) / across)]
    cells = max(1, math.ceil(max(heatmap.probabilities[part].shape) / longest_px))
    values = block_means(heatmap.probabilities[part], heatmap.judged[part], cells)
    unknown = np.nan_to_num(block_means(heatmap.unknown[part], heatmap.tissue[part], cells)) >= _HALF
    box = (
        (left * across - x) / width,
        (top * down - y) / height,
        values.shape[1] * cells * across / width,
        values.shape[0] * cells * down / height,
    )
    copies = max(1, longest_px // max(values.shape))
    line = 2 if copies > _WIDE else 1
    return Overlay(_png(values, unknown, heatmap.threshold, copies, line), box)


def histogram(heatmap: Heatmap) -> Drawing:
    """Draw how many cells have which probability, on a logarithmic scale, and the threshold."""
    values = heatmap.probabilities[heatmap.judged]
    counts = np.histogram(values, _BINS, (0, 1))[0]
    left, right, top, below = 14, 306, 44, 134
    step = (right - left) / _BINS
    drawing = Drawing(320, 182, "probabilities")
    shapes = drawing.shapes
    shapes.append(
        Text(left, 14, f"{values.size:,} judged cells; the highest bar has {counts.max():,} (logarithmic)", 11)
    )
    colors = colored(((np.arange(_BINS) + 0.5) / _BINS).astype(np.float32), heatmap.threshold)
    for number, (count, color) in enumerate(zip(counts, colors, strict=True)):
        height = (below - top) * math.log1p(count) / math.log1p(counts.max() or 1)
        at = left + number * step
        if count:
            shapes.append(Rectangle(at, below - height, step - 1, height, _BAR))
        shapes.append(Rectangle(at, below + 2, step, 8, "#" + color.tobytes().hex()))
    shapes.append(Polyline([(left, below + 1), (right, below + 1)], GRID, 1))
    shapes += [
        Text(at, below + 22, text, 11, "middle")
        for at, text in ((left, "0"), ((left + right) / 2, "0.5"), (right, "1"))
    ]
    shapes.append(Text((left + right) / 2, below + 36, "probability of tumour", 11, "middle"))
    at = left + heatmap.threshold * (right - left)
    shapes.append(Polyline([(at, top - 8), (at, below + 10)], INK, 1.5))
    label = f"tumour from {heatmap.threshold:.2f}"
    is_left = heatmap.threshold < 0.5  # noqa: PLR2004  the middle
    shapes.append(Text(at + 4, top - 10, label, 11) if is_left else Text(at - 4, top - 10, label, 11, "end"))
    return drawing


def _pictures(found: Results, slide: str, longest_px: int) -> str:
    name = escape(slide)
    _, _, width, height = shown_px(found.heatmap.slide)
    lazily = 'loading="lazy" decoding="async"'
    jpeg = None if found.jpeg is None else smaller_jpeg(found.jpeg, longest_px)
    images = []
    if jpeg is not None:
        images.append(f'<img src="{picture_address("jpeg", jpeg)}" alt="slide {name}" {lazily}>')
    if found.heatmap.tissue.any():
        laid = overlay(found.heatmap, longest_px)
        sides = ("left", "top", "width", "height")
        place = "; ".join(f"{side}: {share:.4%}" for side, share in zip(sides, laid.box, strict=True))
        images.append(
            f'<img class="map" style="{place}" src="{picture_address("png", laid.png)}" alt="tumour map of {name}" '
            f"{lazily}>"
        )
    widest = round(1.5 * longest_px * min(1, width / height))
    style = f"--ratio: {width / height:.5f}; --widest: {widest}px"
    return f'<div class="stack" style="{style}">{"".join(images)}</div>'


def _png(values: NDArray[np.float32], unknown: NDArray[np.bool_], threshold: float, copies: int, line_px: int) -> bytes:
    from PIL import Image  # noqa: PLC0415  heavy: only where pictures are made

    values, unknown = values.repeat(copies, 0).repeat(copies, 1), unknown.repeat(copies, 0).repeat(copies, 1)
    filled = np.where(unknown, -1.0, np.nan_to_num(values, nan=-1.0))
    indices = np.where(filled < 0, 0, 1 + (filled * (_STEPS - 1)).round()).astype(np.uint8)
    indices[unknown] = _STEPS + 2 - is_line(unknown.shape, *_HATCH_PX)[unknown]
    indices[rim(filled >= threshold, line_px)] = _STEPS + 3
    colors = colored(np.linspace(0, 1, _STEPS, dtype=np.float32), threshold)
    image = Image.fromarray(indices)
    image.putpalette(bytes((255, 255, 255)) + colors.tobytes() + bytes((*DARK, *LIGHT, *OUTLINE)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


def _jpeg(image: "Image", quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
