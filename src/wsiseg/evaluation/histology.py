"""Where a map is wrong, on the histology: the outlines of truth and map over a slide, and the worst places near."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsiseg.annotations.coverage import outlines
from wsiseg.evaluation.comparison import Laid
from wsiseg.heatmap.opening import kept_image, kept_picture, slide_of
from wsiseg.mathematics.grid import sizes_of_parts
from wsiseg.pages.pictures import INK, TRUTH
from wsiseg.run.errors import WsisegError
from wsiseg.run.record import in_words
from wsiseg.slides.slide import SlideFacts

_HALF = 0.5  # a cell is tumour in truth, or left out, when half of it is
_MOST_OF_A_KIND = 3  # places of one slide, so that one bad slide does not hide the others
_CROP_UM, _LEAST_PX, _MOST_PX = 200.0, 256, 768  # the side of a crop
_OVERVIEW_PX, _QUALITY = 840, 78
_DETAIL = 4000  # bends of an outline are dropped that are smaller than this part of the slide
_WHITE = (255, 255, 255)
_WIDTHS = ((6, _WHITE), (3, None))  # of the lines: white around their colour
Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in level-0 pixels."""
Lines = Mapping[tuple[int, int, int], NDArray[Any]]
"""Lines in level-0 pixels by their colour."""


@dataclass(frozen=True)
class Place:
    """A connected area of cells that a map has wrong."""

    kind: str
    mm2: float
    box: Box  # what is shown of it
    lines: Lines  # the outlines there


@dataclass(frozen=True)
class Marked:
    """The outlines and the worst places of a slide, whose pixels are read when a picture is asked for."""

    facts: SlideFacts
    path: Path  # of the slide
    kept: Path  # the small picture that predict keeps
    lines: Lines
    places: tuple[Place, ...]

    @classmethod
    def of(cls, laid: Laid, slide: str, path: Path, threshold: float) -> Self:
        """Find what is to be drawn of a slide whose map is judged at a threshold."""
        heatmap = laid.heatmap
        called = heatmap.judged & (heatmap.probabilities >= np.float32(threshold))
        areas = {TRUTH: shapely.get_parts(laid.truth.tumor.geometry), INK: outlines(called, heatmap.cell_level0)}
        lines = {color: _rings(area) for color, area in areas.items()}
        detail = max(heatmap.slide.shown_px[2:]) / _DETAIL
        coarse = {color: shapely.simplify(rings, detail) for color, rings in lines.items()}
        kept = kept_picture(laid.path.parent, slide)
        return cls(heatmap.slide, path, kept, coarse, tuple(_places(laid, called, lines)))

    def overview(self, longest_px: float, places: Iterable[tuple[int, Place]]) -> bytes | None:
        """Return the slide with its outlines and some places, numbered, as JPEG; None where no picture is there."""
        image, (left, top, width, height) = kept_image(self.kept) or self._overview(), self.facts.shown_px
        if image is None:
            return None
        image.thumbnail((min(longest_px, _OVERVIEW_PX),) * 2)
        box = (left, top, left + width, top + height)
        _draw(image, box, self.lines)
        for number, place in places:
            _number(image, box, place.box, str(number))
        return _jpeg(image)

    def crop(self, place: Place) -> bytes | None:
        """Return a place at full resolution with its outlines as JPEG; None where the slide is not there."""
        left, top, right, below = map(int, place.box)
        slide = slide_of(self.facts, self.path)
        if slide is None:
            return None
        with slide, contextlib.suppress(WsisegError):
            image = Image.fromarray(slide.read_level(0, (left, top), (right - left, below - top)))
            _draw(image, place.box, place.lines)
            return _jpeg(image)
        return None

    def _overview(self) -> Image.Image | None:
        slide = slide_of(self.facts, self.path)
        if slide is None:
            return None
        with slide, contextlib.suppress(WsisegError):
            picture = slide.overview(max(self.facts.shown_px[2:]) / _OVERVIEW_PX * max(slide.mpp)).image
            return Image.fromarray(picture[self.facts.shown_part(picture.shape)])
        return None


def _rings(areas: Iterable[Any]) -> NDArray[Any]:
    """Return the boundaries of polygons as lines, which can be cut."""
    rings = shapely.get_rings(shapely.get_parts(list(areas)))
    points, ring = shapely.get_coordinates(rings, return_index=True)
    lines: NDArray[Any] = shapely.linestrings(points, indices=ring) if len(rings) else rings
    return lines


def _places(laid: Laid, called: NDArray[np.bool_], lines: Lines) -> Iterator[Place]:
    """Find the largest areas of cells that are wrong, of each kind, and what to show around their innermost cell."""
    from scipy import ndimage  # noqa: PLC0415  heavy: only where places are looked for

    heatmap, tumor = laid.heatmap, laid.tumor_share >= _HALF
    counts, edges = ~heatmap.unknown & (laid.ignored_share < _HALF), heatmap.edges()
    for kind, wrong in (
        (f"missed {in_words(heatmap.positive_class)}", tumor & ~called),
        ("false alarm", called & ~tumor),
    ):
        parts, count = ndimage.label(wrong & counts)
        sizes, found = sizes_of_parts(parts, count)[1:], ndimage.find_objects(parts)
        for part in np.argsort(-sizes, kind="stable")[:_MOST_OF_A_KIND]:
            depth = ndimage.distance_transform_edt(np.pad(parts[found[part]] == part + 1, 1))[1:-1, 1:-1]
            innermost = np.argwhere(depth == depth.max())
            row, column = innermost[np.abs(innermost - innermost.mean(0)).sum(1).argmin()].tolist()
            at = column + found[part][1].start, row + found[part][0].start
            x, y = (float(edge[one : one + 2].mean()) for edge, one in zip(edges, at, strict=True))
            box = _around(x, y, laid)
            near = {color: shapely.clip_by_rect(rings, *box) for color, rings in lines.items()}
            yield Place(kind, int(sizes[part]) * heatmap.cell_mm2, box, near)


def _around(x: float, y: float, laid: Laid) -> Box:
    """Return a square around a level-0 point, moved until it lies in the slide."""
    slide = laid.heatmap.slide
    sides = [min(size, round(min(max(_CROP_UM / slide.mpp[0], _LEAST_PX), _MOST_PX))) for size in slide.size_px]
    left, top = (
        int(min(max(at - side / 2, 0), size - side))
        for at, side, size in zip((x, y), sides, slide.size_px, strict=True)
    )
    return left, top, left + sides[0], top + sides[1]


def _draw(image: Image.Image, box: Box, lines: Lines) -> None:
    """Draw lines over a picture of a part of the slide."""
    draw, scale = ImageDraw.Draw(image), _scale(image, box)
    for width, halo in _WIDTHS:
        for color, rings in lines.items():
            for line in shapely.get_parts(rings[~shapely.is_empty(rings)]):
                points = (shapely.get_coordinates(line) - box[:2]) * scale
                draw.line(points.ravel().tolist(), halo or color, width, "curve")


def _number(image: Image.Image, box: Box, place: Box, number: str) -> None:
    """Draw the frame of a place and its number, white, which no outline is."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(18)
    corners = (np.reshape(place, (2, 2)) - box[:2]) * _scale(image, box)
    draw.rectangle(corners.ravel().tolist(), outline=_WHITE, width=2)
    left, top, right, below = draw.textbbox((corners[0][0] + 6, corners[0][1] + 2), number, font)
    draw.rectangle((left - 6, top - 6, right + 6, below + 6), fill=_WHITE)
    draw.text((corners[0][0] + 6, corners[0][1] + 2), number, INK, font)


def _scale(image: Image.Image, box: Box) -> tuple[float, float]:
    return image.width / (box[2] - box[0]), image.height / (box[3] - box[1])


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
