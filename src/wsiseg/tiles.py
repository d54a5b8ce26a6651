"""Tiles of one slide: where they lie, how much tissue each holds, and where asked for their pixels.

A store `<slide>.tiles.zarr` is a zarr group: `corners` int32[n, 2] (level-0 x, y), `tissue_share` and `inside_share`
float32[n] (shares of the tile that are tissue and that lie on the slide), and with pixels `pixels` uint8[bytes], the
JPEG files of all tiles one after the other, and `offsets` int64[n + 1], where each begins and the last ends.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from wsiseg.errors import WsisegError
from wsiseg.grid import Grid
from wsiseg.slide import Slide, SlideFacts

JPEG_QUALITY = 90
Indices = Sequence[int] | NDArray[np.integer]
_CHUNK_BYTES = 2**20
_SUFFIX = ".tiles.zarr"


@dataclass(frozen=True)
class Tiles:
    """The tiles of one slide.

    Attributes:
        slide: The slide they lie on.
        corners: int32[n, 2], level-0 x, y of the upper left corners, row by row.
        tissue_share: float32[n], share of each tile that is tissue.
        inside_share: float32[n], share of each tile that lies on the slide; the rest is background.
        tile_px: Side in pixels of `mpp`.
        stride_px: Distance of neighbours in pixels of `mpp`.
        mpp: Micrometers per tile pixel.
        tissue_mm2: Area of the slide's tissue.
        settings: What else they were made with.
    """

    slide: SlideFacts
    corners: NDArray[np.int32]
    tissue_share: NDArray[np.float32]
    inside_share: NDArray[np.float32]
    tile_px: int
    stride_px: int
    mpp: float
    tissue_mm2: float
    settings: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def grid(self) -> Grid:
        """The grid that the tiles are cells of."""
        return Grid(self.slide.size_px, self.slide.mpp, self.tile_px, self.stride_px, self.mpp)

    def save(self, group: Any) -> None:  # noqa: ANN401  a zarr group
        """Write everything but the pixels to an empty zarr group."""
        for name in ("corners", "tissue_share", "inside_share"):
            group.create_array(name, data=getattr(self, name))
        group.attrs["wsiseg"] = {
            "schema": "wsiseg.tiles/1",
            "slide": asdict(self.slide),
            "tile_px": self.tile_px,
            "stride_px": self.stride_px,
            "mpp": self.mpp,
            "tissue_mm2": self.tissue_mm2,
            "settings": self.settings,
        }


def store_path(folder: Path, slide: str) -> Path:
    """Give the place of a slide's store in a folder."""
    return folder / f"{slide}{_SUFFIX}"


def encoded(tile: NDArray[np.uint8]) -> bytes:
    """Give a tile (uint8[h, w, 3]) as JPEG."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pixels are touched

    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def save_pixels(group: Any, files: Iterable[bytes]) -> None:  # noqa: ANN401  a zarr group
    """Append JPEG files to a zarr group, holding about one chunk at a time."""
    pixels = group.create_array("pixels", shape=(0,), chunks=(_CHUNK_BYTES,), dtype=np.uint8, compressors=None)
    offsets, waiting, size = [0], [], 0
    for file in files:
        waiting.append(np.frombuffer(file, np.uint8))
        offsets.append(offsets[-1] + len(file))
        size += len(file)
        if size >= _CHUNK_BYTES:
            whole = np.concatenate(waiting)
            cut = size // _CHUNK_BYTES * _CHUNK_BYTES
            pixels.append(whole[:cut])
            waiting, size = [whole[cut:]], size - cut
    if size:
        pixels.append(np.concatenate(waiting))
    group.create_array("offsets", data=np.asarray(offsets, np.int64))


class TileStore:
    """A tile store, open for reading; thread-safe.

    Args:
        path: The folder `<slide>.tiles.zarr`.
        slide: Path of the slide, to read the pixels from where the store has none.

    Raises:
        WsisegError: There is no tile store at `path`.
    """

    def __init__(self, path: Path, slide: Path | None = None) -> None:
        import zarr  # noqa: PLC0415  heavy: only where a store is read

        self.path, self._slide = path, slide
        try:
            self._group = zarr.open_group(str(path), mode="r")
            self.tiles = _tiles(self._group)
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise WsisegError(f"{path}: not a tile store: {error}", "run wsiseg tile") from error

    def __len__(self) -> int:
        return len(self.tiles)

    @property
    def has_pixels(self) -> bool:
        """True if the tiles themselves are stored."""
        return "offsets" in self._group

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        return np.asarray(cast("Any", self._group["offsets"])[:])

    @cached_property
    def _pixels(self) -> Any:  # noqa: ANN401  a zarr array
        return self._group["pixels"]

    @cached_property
    def _open_slide(self) -> Slide:
        if self._slide is None:
            raise WsisegError(f"{self.path}: holds no pixels", "run wsiseg tile --pixels or keep the slide in place")
        facts = self.tiles.slide
        user = facts.mpp[0] if facts.mpp_source == "user" else None
        return Slide(self._slide, mpp=user)

    def read(self, indices: Indices, threads: int = 1) -> NDArray[np.uint8]:
        """Read tiles, from the store where it has pixels, else from the slide.

        Args:
            indices: Which tiles; any order, repeats allowed.
            threads: How many read at the same time.

        Returns:
            uint8[n, tile, tile, 3], RGB, in the order of `indices`.

        Raises:
            WsisegError: A tile cannot be read.
        """
        return self._gathered(indices, self.tiles.tile_px, self._tile, threads)

    def _gathered(
        self, indices: Indices, side: int, read: Callable[[int], NDArray[np.uint8]], threads: int
    ) -> NDArray[np.uint8]:
        out = np.empty((len(indices), side, side, 3), np.uint8)

        def fill(place: int) -> None:
            out[place] = read(int(indices[place]))

        if threads <= 1:
            for place in range(len(indices)):
                fill(place)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, range(len(indices))))
        return out

    def read_around(self, indices: Indices, side: int, threads: int = 1) -> NDArray[np.uint8]:
        """Read crops of `side` pixels with tiles in their middle, from the slide: uint8[n, side, side, 3].

        Raises:
            WsisegError: The slide is not there or cannot be read.
        """
        margin = (side - self.tiles.tile_px) / 2 * self.tiles.mpp
        step_x, step_y = (margin / mpp for mpp in self.tiles.slide.mpp)

        def crop(index: int) -> NDArray[np.uint8]:
            x, y = (int(value) for value in self.tiles.corners[index])
            return self._open_slide.read(x - step_x, y - step_y, (side, side), self.tiles.mpp)

        return self._gathered(indices, side, crop, threads)

    def _tile(self, index: int) -> NDArray[np.uint8]:
        if not self.has_pixels:
            x, y = (int(value) for value in self.tiles.corners[index])
            side = self.tiles.tile_px
            return self._open_slide.read(x, y, (side, side), self.tiles.mpp)
        from PIL import Image  # noqa: PLC0415  heavy: only where pixels are touched

        data = np.asarray(self._pixels[self._offsets[index] : self._offsets[index + 1]]).tobytes()
        return np.asarray(Image.open(io.BytesIO(data)))

    def close(self) -> None:
        """Free the slide, if it was opened."""
        if "_open_slide" in self.__dict__:
            self._open_slide.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tiles(group: Any) -> Tiles:  # noqa: ANN401  a zarr group
    own = group.attrs["wsiseg"]
    return Tiles(
        slide=SlideFacts.from_json(own["slide"]),
        corners=np.asarray(group["corners"][:], np.int32),
        tissue_share=np.asarray(group["tissue_share"][:], np.float32),
        inside_share=np.asarray(group["inside_share"][:], np.float32),
        tile_px=int(own["tile_px"]),
        stride_px=int(own["stride_px"]),
        mpp=float(own["mpp"]),
        tissue_mm2=float(own["tissue_mm2"]),
        settings=own["settings"],
    )
