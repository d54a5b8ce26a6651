"""The JPEG tiles of a TIFF, decoded as they lie in the file.

OpenSlide paints every tile onto a canvas, blending pixel by pixel, which takes five times as long as decoding it. Where
a level is a plain grid of JPEG tiles, as in the files of Aperio and in every TIFF written by vips or QuPath, its pixels
are had for the price of decoding (JPEG in TIFF: Adobe Photoshop TIFF Technical Notes, "Technical Note 2").
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.JpegImagePlugin import JpegImageFile

from wsiseg.run.machine import cores, within_memory
from wsiseg.slides.tiff import JpegPage

KEPT_BYTES = 32 * 2**20
"""Decoded pixels of a slide that are kept for up to 8 readers, as neighbouring regions share tiles."""

_LONGEST_GAP, _LONGEST_READ = 4096, 2**20
_SAME, _SAME_BUT_SHIFTED = 1, 8  # mean differences of pixels
_WHOLE = 1e-3  # less of a pixel is no shift
_Tiles = dict[int, NDArray[np.uint8]]


class Decode(Protocol):
    """Decodes a JPEG file, into memory that is there already if it is given."""

    def __call__(self, data: bytes, *, buffer: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Return uint8[height, width, 3]."""


class Cutout(NamedTuple):
    """Where pixels are read: the corner in pixels of the level, and the array uint8[height, width, 3] to fill."""

    left: int
    top: int
    out: NDArray[np.uint8]


class JpegTiles:
    """One level of a slide as a grid of JPEG tiles. Thread-safe; a tile that several threads need is decoded once.

    Args:
        path: The file.
        page: Where the tiles lie in it.
        background: Red, green and blue beyond the edges.
    """

    def __init__(self, path: Path, page: JpegPage, background: bytes) -> None:
        self._path, self._page, self._background = path, page, background
        self._columns = -(-page.size_px[0] // page.tile_px[0])
        kept_bytes = within_memory(KEPT_BYTES * max(8, cores()) // 8)
        self._most = max(1, kept_bytes // (page.tile_px[0] * page.tile_px[1] * 3))
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, NDArray[np.uint8] | Future[_Tiles]] = OrderedDict()  # or who decodes it

    def fill(self, cutouts: Sequence[Cutout]) -> None:
        """Read regions.

        Raises:
            OSError: The file cannot be read.
            ValueError: A tile is missing, broken or of another size.
        """
        places = [self._parts(cutout) for cutout in cutouts]
        tiles = self._tiles({number for parts in places for number, _, _ in parts})
        width, height = self._page.size_px
        for (left, top, out), parts in zip(cutouts, places, strict=True):
            rows, columns = out.shape[:2]
            if min(left, top, width - left - columns, height - top - rows) < 0:
                out[:] = np.frombuffer(self._background, np.uint8)
            for number, place, within in parts:
                out[place] = tiles[number][within]

    def are_as(self, read: Callable[[tuple[int, int], tuple[int, int]], NDArray[np.uint8]], down: float) -> bool:
        """Compare the tile with the most bytes, where wrong colours or a shift would show, with what a reader shows.

        Args:
            read: Gives uint8[height, width, 3] for level-0 x, y and width, height in pixels of the level.
            down: The level's downsample. Where it is not whole, a reader blends neighbouring pixels.
        """
        (width, height), (most_x, most_y) = self._page.tile_px, self._page.size_px
        row, column = divmod(int(self._page.lengths.argmax()), self._columns)
        left, top = column * width, row * height
        found = np.empty((min(height, most_y - top), min(width, most_x - left), 3), np.uint8)
        corner = round(left * down), round(top * down)
        is_whole = max(abs(corner[0] / down - left), abs(corner[1] / down - top)) < _WHOLE
        try:
            self.fill([Cutout(left, top, found)])
        except (OSError, ValueError):
            return False
        difference = np.abs(read(corner, (found.shape[1], found.shape[0])) - found.astype(np.int16)).mean()
        return bool(difference <= (_SAME if is_whole else _SAME_BUT_SHIFTED))

    def _parts(self, cutout: Cutout) -> list[tuple[int, tuple[slice, slice], tuple[slice, slice]]]:
        """Return the number of every tile under a region, where it lies in the region, and which part of it that is."""
        height, width = cutout.out.shape[:2]
        (tile_width, tile_height), (most_x, most_y) = self._page.tile_px, self._page.size_px
        columns = _spans(cutout.left, width, tile_width, most_x)
        return [
            (row * self._columns + column, (down, across), (down_within, across_within))
            for row, down, down_within in _spans(cutout.top, height, tile_height, most_y)
            for column, across, across_within in columns
        ]

    def _tiles(self, numbers: set[int]) -> _Tiles:
        """Return tiles: decode those that no thread decodes yet, and wait for the others."""
        mine: Future[_Tiles] = Future()
        with self._lock:
            found = {number: self._kept.get(number, mine) for number in sorted(numbers)}
            for number, tile in found.items():
                self._kept[number] = tile
                self._kept.move_to_end(number)
            while len(self._kept) > max(self._most, len(found)):
                self._kept.popitem(last=False)
        missing = [number for number, tile in found.items() if tile is mine]
        if missing:
            self._decode(missing, mine)
        return {number: tile.result()[number] if isinstance(tile, Future) else tile for number, tile in found.items()}

    def _decode(self, numbers: list[int], coming: "Future[_Tiles]") -> None:
        """Decode tiles for all who wait for them, and keep them."""
        try:
            tiles = dict(self._decoded(numbers))
        except BaseException as error:
            with self._lock:
                for number in [number for number, tile in self._kept.items() if tile is coming]:
                    del self._kept[number]
            coming.set_exception(error)
            raise
        with self._lock:
            self._kept.update((number, tile) for number, tile in tiles.items() if self._kept.get(number) is coming)
        coming.set_result(tiles)

    def _decoded(self, numbers: list[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        page, decode, shape = self._page, decoder(), (self._page.tile_px[1], self._page.tile_px[0], 3)
        with self._path.open("rb", buffering=0) as file:
            for run in self._runs(numbers):
                begins, lengths = page.begins[run].tolist(), page.lengths[run].tolist()
                file.seek(begins[0])
                data = file.read(begins[-1] + lengths[-1] - begins[0])
                for number, at, length in zip(run, begins, lengths, strict=True):
                    begin = at - begins[0]
                    if not length or begin + length > len(data):
                        raise ValueError(f"tile {number} is missing")
                    tile = decode(page.head + data[begin + 2 : begin + length])
                    if tile.shape != shape:
                        raise ValueError(f"tile {number} has {tile.shape[1]}x{tile.shape[0]} pixels")
                    yield number, tile

    def _runs(self, numbers: list[int]) -> Iterator[list[int]]:
        """Divide numbers of tiles, ascending, into those that lie one behind the other in the file."""
        begins = self._page.begins[numbers].tolist()
        ends = (self._page.begins[numbers] + self._page.lengths[numbers]).tolist()
        first = 0
        for place in range(1, len(numbers)):
            is_near = 0 <= begins[place] - ends[place - 1] <= _LONGEST_GAP
            if not is_near or ends[place] - begins[first] > _LONGEST_READ:
                yield numbers[first:place]
                first = place
        yield numbers[first:]


@lru_cache(maxsize=1024)  # of windows in rows and columns most have the spans of another
def _spans(begin: int, length: int, tile: int, most: int) -> tuple[tuple[int, slice, slice], ...]:
    """Return along one axis the numbers of tiles under a span, which part of the span each is, and of the tile."""
    first, end = max(begin, 0), min(begin + length, most)
    found = []
    for number in range(first // tile, -(-end // tile) if end > first else 0):
        low, high = max(first, number * tile), min(end, number * tile + tile)
        found.append((number, slice(low - begin, high - begin), slice(low - number * tile, high - number * tile)))
    return tuple(found)


@cache
def decoder() -> Decode:
    """Return what decodes a JPEG file as uint8[height, width, 3]; it raises `OSError` or `ValueError` at a broken one.

    It decodes into `buffer` where that is given; of an image of another size `ValueError` or the shape tells.

    Both that there are use libjpeg-turbo and let go of the interpreter's lock. Pillow, which serves where `simplejpeg`
    has no wheel, copies every pixel twice and takes twice as long.
    """
    try:
        from simplejpeg import decode_jpeg  # noqa: PLC0415  heavy: only where pixels are touched
    except ImportError:
        return _by_pillow
    return decode_jpeg  # type: ignore[no-any-return]  # it has no types


def _by_pillow(data: bytes, *, buffer: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    with JpegImageFile(io.BytesIO(data)) as image:
        found = np.asarray(image)
    if buffer is not None:
        buffer[:] = found
    return found
