"""Windows of a dense map: rectangles of cells that cover what is wanted and little else."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Cells = tuple[int, int, int, int]
"""First row, first column, rows and columns of a window."""


def windows_over(wanted: NDArray[np.bool_], side: int, overlap: int, surround: int, multiple: int) -> Iterator[Cells]:
    """Cover the wanted cells with windows no larger than needed, in bands from the top and from left to right.

    Args:
        wanted: bool[rows, columns].
        side: Largest side in cells.
        overlap: Cells that neighbouring windows share.
        surround: Cells around what is wanted.
        multiple: Sides are multiples of this.
    """
    for top, rows in spans_over(np.asarray(wanted.any(1)), side, overlap, surround, multiple):
        part = np.asarray(wanted[top : top + rows].any(0))
        for left, columns in spans_over(part, side, overlap, surround, multiple):
            yield top, left, rows, columns


def spans_over(
    wanted: NDArray[np.bool_], side: int, overlap: int, surround: int, multiple: int
) -> Iterator[tuple[int, int]]:
    """Cover the wanted places of a line: first place and length of each span.

    Spans end in gaps where they can: what nobody wants is not computed.
    """
    places = np.nonzero(wanted)[0]
    margin, gap = overlap // 2, 2 * surround
    seam: int | None = None  # where the next span begins if it goes on from the last one
    while places.size:
        begin = max(0, int(places[0]) - surround) if seam is None else seam
        inside = places[places < begin + side - margin]
        if _goes_on(places, inside.size, gap):
            breaks = 1 + np.nonzero(np.diff(inside) > gap)[0]
            inside = inside[: breaks[-1]] if breaks.size and inside[breaks[-1] - 1] > begin + side // 2 else inside
        is_cut = _goes_on(places, inside.size, gap)
        needed = side if is_cut else int(inside[-1]) + 1 + surround - begin
        yield begin, min(side, -(-needed // multiple) * multiple)
        places = places[inside.size :]
        seam = begin + side - overlap if is_cut else None


def _goes_on(places: NDArray[np.integer], count: int, gap: int) -> bool:
    """Tell whether the places go on behind the first `count` of them without a gap."""
    return count < len(places) and int(places[count]) - int(places[count - 1]) <= gap
