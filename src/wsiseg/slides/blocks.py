"""Filling a large picture block by block, so that memory does not depend on what it is made of, and resampling."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsiseg.run.errors import SlideError

MOST_UNREADABLE = 0.01
"""Largest share of a slide that may be unreadable, where nothing else is said."""

_WHOLE = 1e-3  # numbers this close to whole ones are whole


class Block(NamedTuple):
    """A rectangle in pixels of the picture."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Picture:
    """A picture of which parts may be missing.

    Attributes:
        image: uint8[rows, columns, 3], RGB; what could not be read is black.
        unreadable: bool[rows, columns], where it could not be read.
    """

    image: NDArray[np.uint8]
    unreadable: NDArray[np.bool_]


def filled(
    size_px: tuple[int, int],
    read: Callable[[Block], NDArray[np.uint8]],
    sides: tuple[int, int],
    *,
    threads: int = 1,
    most_unreadable: float = 0.0,
) -> Picture:
    """Read a picture block by block.

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
        place = np.s_[block.top : block.top + block.height, block.left : block.left + block.width]
        try:
            picture.image[place] = read(block)
        except SlideError:
            longer = max(block.width, block.height)
            if longer > sides[1]:
                for part in _divided(block, -(-longer // 2)):
                    fill(part)
                return
            picture.unreadable[place] = True
            unreadable.append(block.width * block.height)
            if sum(unreadable) > most_unreadable * picture.unreadable.size:
                raise

    blocks = list(_divided(Block(0, 0, *size_px), sides[0]))
    if threads == 1 or len(blocks) == 1:
        for block in blocks:
            fill(block)
    else:
        with ThreadPoolExecutor(threads, "reader") as pool:
            list(pool.map(fill, blocks))
    return picture


def _divided(whole: Block, side: int) -> Iterator[Block]:
    for top in range(whole.top, whole.top + whole.height, side):
        for left in range(whole.left, whole.left + whole.width, side):
            width, height = whole.left + whole.width - left, whole.top + whole.height - top
            yield Block(left, top, min(side, width), min(side, height))


def resized(
    region: NDArray[np.uint8],
    size: tuple[int, int],
    ratio: tuple[float, float],
    box: tuple[float, float, float, float],
    factor: int = 1,
) -> NDArray[np.uint8]:
    """Resample a part of a region: exact averages of whole pixels, else a smooth area filter, or linear upwards.

    Args:
        region: uint8[rows, columns, 3].
        size: Width and height of the result.
        ratio: Pixels per pixel of the result along x and y.
        box: Left, upper, right and lower edge of the part.
        factor: How many pixels, of those in which ratio and box are given, the region's were averaged from.
    """
    is_whole = all(abs(value - round(value)) <= _WHOLE for value in (*ratio, *box))
    kind = Image.Resampling.BOX if is_whole else Image.Resampling.HAMMING
    left, top, right, below = (edge / factor for edge in box)
    kind = Image.Resampling.BILINEAR if min(ratio) < 1 else kind
    return np.asarray(Image.fromarray(region).resize(size, kind, box=(left, top, right, below)))
