"""The levels of a slide: which one serves a resolution, which of its pixels a region needs, and how they are resampled.

`x, y` are level-0 pixels. A level's downsample is a number with a fraction, one per axis: 4443 pixels over 2221 are
2.00045, and a step rounded to 2 would be 1 pixel off at the far end.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsiseg.run.errors import SlideError

MOST_UNREADABLE = 0.01
"""Largest share of a slide that may be unreadable, where nothing else is said."""
SAME_RESOLUTION = 0.01
"""A level whose pixels differ from those asked for by no more than this share is used as it is."""

_NOISE = 1e-6  # of floating-point numbers, in pixels
_WHOLE = 1e-3  # numbers this close to whole ones are whole
_LARGE_RATIO = 8  # from here on pixels are averaged by whole squares first, which is quicker


@dataclass(frozen=True)
class Level:
    """One resolution of a slide."""

    size_px: tuple[int, int]  # width and height
    downsample: tuple[float, float]  # level-0 pixels per pixel along x and y
    reader_downsample: float  # the one number by which the reader turns level-0 positions into pixels of this level

    def corner(self, x: float, y: float) -> tuple[int, int]:
        """Return the whole level-0 position to ask the reader for so that it starts at most half a pixel from x, y.

        A reader blends neighbours where it does not start at a whole pixel of the level, so it is made to start at one
        wherever that is near enough.
        """
        down = self.reader_downsample
        return _start(x / self.downsample[0], down), _start(y / self.downsample[1], down)


@lru_cache(maxsize=4096)  # windows in rows and columns share their edges
def _start(pixel: float, down: float) -> int:
    at_whole_pixel = round(round(pixel) * down)
    if abs(at_whole_pixel / down - pixel) <= 0.5:  # noqa: PLR2004  half a pixel
        return at_whole_pixel
    return round(pixel * down)


@dataclass(frozen=True)
class Window:
    """What to read for a region."""

    corner: tuple[int, int]  # whole level-0 position to ask the reader for
    size_px: tuple[int, int]  # width and height to read, in pixels of the level
    box: tuple[float, float, float, float]  # left, upper, right, lower edge of the region in it, in pixels of the level


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


def resized(
    region: NDArray[np.uint8], size: tuple[int, int], ratio: tuple[float, float], box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    """Resample a part of a region: exact averages of whole pixels, else a smooth area filter, or linear upwards.

    Args:
        region: uint8[rows, columns, 3].
        size: Width and height of the result.
        ratio: Pixels per pixel of the result along x and y.
        box: Left, upper, right and lower edge of the part.
    """
    is_whole = all(abs(value - round(value)) <= _WHOLE for value in (*ratio, *box))
    kind = Image.Resampling.BOX if is_whole else Image.Resampling.HAMMING
    kind = Image.Resampling.BILINEAR if min(ratio) < 1 else kind
    gap = 2.0 if min(ratio) >= _LARGE_RATIO else None
    return np.asarray(Image.fromarray(region).resize(size, kind, box, gap))


class Block(NamedTuple):
    """A rectangle in pixels of a picture."""

    left: int
    top: int
    width: int
    height: int

    @property
    def place(self) -> tuple[slice, slice]:
        """Where it lies in an array of rows and columns."""
        return np.s_[self.top : self.top + self.height, self.left : self.left + self.width]

    def divided(self, side: int) -> "Iterator[Block]":
        """Yield the blocks of at most this side that it consists of."""
        for top in range(self.top, self.top + self.height, side):
            for left in range(self.left, self.left + self.width, side):
                width, height = self.left + self.width - left, self.top + self.height - top
                yield Block(left, top, min(side, width), min(side, height))


@dataclass(frozen=True)
class Picture:
    """A picture of which parts may be missing."""

    image: NDArray[np.uint8]  # uint8[rows, columns, 3], RGB; what could not be read is black
    unreadable: NDArray[np.bool_]  # bool[rows, columns], where it could not be read


def filled(
    size_px: tuple[int, int],
    read: Callable[[Block], NDArray[np.uint8]],
    sides: tuple[int, int],
    threads: int,
    most_unreadable: float,
) -> Picture:
    """Read a picture block by block, so that memory does not depend on what it is made of.

    Args:
        size_px: Width and height of the picture.
        read: Gives uint8[height, width, 3] of a block.
        sides: Side of a block, and of the smallest that an unreadable one is divided into.
        threads: How many read at the same time.
        most_unreadable: Largest share of the picture that may be unreadable.

    Raises:
        SlideError: More than that share cannot be read.
    """
    unreadable: list[int] = []  # pixels of each block; a list, as threads may append to it at the same time
    picture = Picture(np.zeros((size_px[1], size_px[0], 3), np.uint8), np.zeros((size_px[1], size_px[0]), np.bool_))

    def fill(block: Block) -> None:
        try:
            picture.image[block.place] = read(block)
        except SlideError:
            longer = max(block.width, block.height)
            if longer > sides[1]:
                for part in block.divided(-(-longer // 2)):
                    fill(part)
                return
            picture.unreadable[block.place] = True
            unreadable.append(block.width * block.height)
            if sum(unreadable) > most_unreadable * picture.unreadable.size:
                raise

    with ThreadPoolExecutor(threads, "reader") as pool:
        list(pool.map(fill, Block(0, 0, *size_px).divided(sides[0])))
    return picture
