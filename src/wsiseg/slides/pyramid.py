"""The levels of a slide: which one serves a resolution, and which of its pixels a region needs. Pure geometry.

`x, y` are level-0 pixels. A level's downsample is a number with a fraction, one per axis: 4443 pixels over 2221 are
2.00045, and a step rounded to 2 would be 1 pixel off at the far end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SAME_RESOLUTION = 0.01
"""A level whose pixels differ from those asked for by no more than this share is used as it is."""

_NOISE = 1e-6  # of floating-point numbers, in pixels


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    Attributes:
        size_px: Width and height.
        downsample: Level-0 pixels per pixel along x and y.
        reader_downsample: The one number by which the reader turns level-0 positions into pixels of this level.
    """

    size_px: tuple[int, int]
    downsample: tuple[float, float]
    reader_downsample: float

    def corner(self, x: float, y: float) -> tuple[int, int]:
        """Return the whole level-0 position to ask the reader for so that it starts at most half a pixel from x, y.

        A reader blends neighbours where it does not start at a whole pixel of the level, so it is made to start at one
        wherever that is near enough.
        """
        return self._start(x / self.downsample[0]), self._start(y / self.downsample[1])

    def _start(self, pixel: float) -> int:
        at_whole_pixel = round(round(pixel) * self.reader_downsample)
        if abs(at_whole_pixel / self.reader_downsample - pixel) <= 0.5:  # noqa: PLR2004  half a pixel
            return at_whole_pixel
        return round(pixel * self.reader_downsample)


@dataclass(frozen=True)
class Window:
    """What to read for a region.

    Attributes:
        corner: Whole level-0 position to ask the reader for.
        size_px: Width and height to read, in pixels of the level.
        box: Left, upper, right and lower edge of the region within what is read, in pixels of the level.
    """

    corner: tuple[int, int]
    size_px: tuple[int, int]
    box: tuple[float, float, float, float]


def level_for(levels: Sequence[Level], scale: tuple[float, float]) -> int:
    """Pick the coarsest level with pixels of at most `scale` level-0 pixels; the finest where there is none."""
    least = 1 / (1 + SAME_RESOLUTION)
    fine = [number for number, level in enumerate(levels) if min(ratio_to(level, scale)) >= least]
    return fine[-1] if fine else 0


def ratio_to(level: Level, scale: tuple[float, float]) -> tuple[float, float]:
    """Return how many pixels of a level make one pixel of `scale` level-0 pixels, along x and y."""
    return scale[0] / level.downsample[0], scale[1] / level.downsample[1]


def is_same(ratio: tuple[float, float]) -> bool:
    """Tell whether pixels are so nearly of one size that they need no resampling."""
    return all(abs(value - 1) <= SAME_RESOLUTION for value in ratio)


def window(
    level: Level,
    at: tuple[float, float],
    size_px: tuple[int, int],
    ratio: tuple[float, float],
    *,
    sees_beyond: bool = True,
) -> Window:
    """Say which pixels of a level to resample into a region.

    Args:
        level: The level to read.
        at: x, y of the region's corner.
        size_px: Width and height of the region in its own pixels.
        ratio: Pixels of the level per pixel of the region, along x and y.
        sees_beyond: Add as many pixels on every side as a filter of twice a pixel's width sees, so that neighbouring
            regions join without a seam.
    """
    margin = (math.ceil(ratio[0]) + 1, math.ceil(ratio[1]) + 1) if sees_beyond else (0, 0)
    (corner_x, width, left, right), (corner_y, height, top, below) = (
        _span(level, axis, at[axis] / level.downsample[axis], size_px[axis] * ratio[axis], margin[axis])
        for axis in (0, 1)
    )
    return Window((corner_x, corner_y), (width, height), (left, top, right, below))


def _span(level: Level, axis: int, begin: float, length: float, margin: int) -> tuple[int, int, float, float]:
    """Return along one axis the level-0 start, how much is read, and where in that the region begins and ends.

    What a filter would see beyond the slide is left out, so that a region within the slide gets no background.
    """
    first, last = math.floor(begin + _NOISE), math.ceil(begin + length - _NOISE)
    first = max(first - margin, min(first, 0))
    last = min(last + margin, max(last, level.size_px[axis]))
    start = round(first * level.reader_downsample)
    offset = begin - start / level.reader_downsample
    return start, last - first, max(0.0, offset), min(float(last - first), offset + length)
