"""A slide with its tumour map over it in a page: how much of the map shows is up to who looks."""

from dataclasses import dataclass
from html import escape

import numpy as np

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.pages.page import picture_address
from wsiseg.pages.pictures import INK, colored
from wsiseg.prediction.map_pictures import KEPT_PX, histogram, overlay, shown_px, smaller_jpeg

_LEAST_PX = 96
_BYTES_PER_PIXEL = 0.25  # of a typical picture with its map, as text
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
    """What is at hand of a slide.

    Attributes:
        heatmap: Its tumour map.
        jpeg: The kept picture of the slide, where there is one.
    """

    heatmap: Heatmap
    jpeg: bytes | None


def viewer_bar() -> str:
    """Give what stays at the top while the maps scroll: the slider, the keys and the legend."""
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in colored(np.linspace(0, 1, 21, dtype=np.float32)))
    high = tuple(colored(np.array([0.75], np.float32))[0].tolist())
    return (
        '<div class="bar"><label>Map <input type="range" id="opacity" min="0" max="100" step="5" value="60"> '
        '<output id="opacity-value">60 %</output></label>'
        "<span><kbd>←</kbd> <kbd>→</kbd> or <kbd>-</kbd> <kbd>+</kbd> change how much of the map shows, "
        "<kbd>n</kbd> and <kbd>p</kbd> go to the next and the previous slide</span>"
        "<span>Tissue by its probability of tumour: "
        f'0<span class="scale" style="background: linear-gradient(to right, {stops})"></span>1'
        f'<span class="key outlined" style="border-color: rgb{INK}; background: rgb{high}"></span>tumour; '
        "without colour: not looked at</span></div>"
    )


def viewed(found: Results, slide: str, most_bytes: int) -> str:
    """Give the slide with its map over it, and the histogram, in about so many bytes at most."""
    drawn = f"<figure>{histogram(found.heatmap).svg()}</figure>" if found.heatmap.tissue.any() else ""
    most_bytes = max(1, most_bytes - len(drawn))
    longest_px = int(min(KEPT_PX, max(_LEAST_PX, (most_bytes / _BYTES_PER_PIXEL) ** 0.5)))
    while True:
        pictures = _pictures(found, slide, longest_px)
        if len(pictures) <= most_bytes or longest_px == _LEAST_PX:
            return f'<div class="row">{pictures}{drawn}</div>'
        smaller = min(0.97 * (most_bytes / len(pictures)) ** 0.5, 0.9)
        longest_px = max(_LEAST_PX, int(smaller * longest_px))


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
