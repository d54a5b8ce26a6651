"""Reading large parts of a slide in blocks, averaged as they come, so that memory depends on the result alone."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsiseg.errors import SlideError
from wsiseg.slide_file import SlideFile

MOST_UNREADABLE = 0.01
"""Largest share of a slide that may be unreadable, where nothing else is said."""

_BLOCK_PX = 2048  # side of what is read at once
_SMALLEST_BLOCK_PX = 256  # an unreadable block is divided down to this

_Block = tuple[int, int, int, int]  # left, upper edge, width and height in pixels of the result


@dataclass(frozen=True)
class Averaged:
    """A part of a slide, averaged.

    Attributes:
        image: uint8[rows, columns, 3], RGB; what could not be read is black.
        unreadable: bool[rows, columns], where it could not be read.
    """

    image: NDArray[np.uint8]
    unreadable: NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """A rectangle of one level of a slide.

    Attributes:
        level: Number of the level.
        downsample: The reader's level-0 pixels per pixel of the level.
        corner: Level-0 x, y of its corner.
        size_px: Width and height in pixels of the level.
    """

    level: int
    downsample: float
    corner: tuple[int, int]
    size_px: tuple[int, int]


def read_averaged(
    file: SlideFile, part: Part, factor: int, *, threads: int = 1, most_unreadable: float = MOST_UNREADABLE
) -> Averaged:
    """Average squares of `factor` x `factor` pixels; the last ones of a row or column may be narrower.

    Args:
        file: What to read from.
        part: What to read of it.
        factor: Side of a square in pixels of the level.
        threads: How many read at the same time.
        most_unreadable: Largest share of the result that may be unreadable.

    Raises:
        SlideError: More than that share cannot be read.
    """
    width, height = (-(-size // factor) for size in part.size_px)
    result = Averaged(np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.bool_))

    def fill(block: _Block) -> None:
        left, top, columns, rows = block
        place = np.s_[top : top + rows, left : left + columns]
        try:
            result.image[place] = _block(file, part, factor, block)
        except SlideError:
            smaller = list(_blocks(block, max(columns, rows) // 2))
            if max(columns, rows) * factor > _SMALLEST_BLOCK_PX and len(smaller) > 1:
                for quarter in smaller:
                    fill(quarter)
                return
            result.unreadable[place] = True
            if result.unreadable.mean() > most_unreadable:
                raise

    blocks = list(_blocks((0, 0, width, height), max(1, _BLOCK_PX // factor)))
    if threads == 1 or len(blocks) == 1:
        for block in blocks:
            fill(block)
    else:
        with ThreadPoolExecutor(threads, "reader") as pool:
            list(pool.map(fill, blocks))
    return result


def _block(file: SlideFile, part: Part, factor: int, block: _Block) -> NDArray[np.uint8]:
    """Read one block of the result."""
    begin = (block[0] * factor, block[1] * factor)
    size = (min(block[2] * factor, part.size_px[0] - begin[0]), min(block[3] * factor, part.size_px[1] - begin[1]))
    corner = (part.corner[0] + round(begin[0] * part.downsample), part.corner[1] + round(begin[1] * part.downsample))
    return np.asarray(file.read(corner, part.level, size).reduce(factor))


def _blocks(whole: _Block, side: int) -> Iterator[_Block]:
    """Divide a rectangle into blocks of at most `side` x `side`."""
    left, top, width, height = whole
    side = max(1, side)
    for y in range(top, top + height, side):
        for x in range(left, left + width, side):
            yield x, y, min(side, left + width - x), min(side, top + height - y)
