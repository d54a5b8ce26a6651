"""Tiles of one slide: where they lie, how much tissue each holds, and where asked for their pixels.

A store `<slide>.tiles.zarr` is a zarr group: `corners` int32[n, 2] (level-0 x, y), `tissue_share` and `inside_share`
float32[n] (shares of the tile that are tissue and that lie on the slide), where asked for the tiles themselves as
`packed` describes, and under the key `wsiseg` what slide they are of and how they were made.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.mathematics.grid import Grid
from wsiseg.run.errors import DAMAGED, WsisegError
from wsiseg.slides.slide import Slide, SlideFacts
from wsiseg.tiles.packed import PackedTiles

Indices = Sequence[int] | NDArray[np.integer]
_SUFFIX = ".tiles.zarr"
_STORES_KNOWN = 256
_MOST_NUMBERS = 50_000_000  # of an array
_ARRAYS: dict[str, Any] = {"corners": np.int32, "tissue_share": np.float32, "inside_share": np.float32}
_FACTS = {"tile_px": int, "stride_px": int, "mpp": float, "tissue_mm2": float, "bad_tiles": int}


@dataclass(frozen=True)
class Tiles:
    """The tiles of one slide."""

    slide: SlideFacts  # the slide they lie on
    corners: NDArray[np.int32]  # int32[n, 2], level-0 x, y of the upper left corners, row by row
    tissue_share: NDArray[np.float32]  # float32[n], share of tissue in the part of each tile that lies on the slide
    inside_share: NDArray[np.float32]  # float32[n], share of each tile that lies on the slide; the rest is background
    tile_px: int  # side in pixels of `mpp`
    stride_px: int  # distance of neighbours in pixels of `mpp`
    mpp: float  # micrometers per tile pixel
    tissue_mm2: float  # area of the slide's tissue
    bad_tiles: int = 0  # tiles left out because they cannot be read; only where pixels were asked for is that known
    warnings: tuple[str, ...] = ()  # what a person should know of them
    settings: dict[str, Any] = field(default_factory=dict)  # what else they were made with

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def grid(self) -> Grid:
        """The grid that the tiles are cells of."""
        return Grid(self.slide.size_px, self.slide.mpp, self.tile_px, self.stride_px, self.mpp)

    def only(self, readable: NDArray[np.bool_]) -> Self:
        """Leave out the tiles that cannot be read; `readable`, bool[n], is True for those that stay."""
        bad = int((~readable).sum())
        kept = {name: getattr(self, name)[readable] for name in _ARRAYS}
        note = (f"{bad} of {len(self)} tissue tiles cannot be read and are left out",) if bad else ()
        return replace(self, **kept, bad_tiles=bad, warnings=(*self.warnings, *note))

    def save(self, group: Any) -> None:  # noqa: ANN401  a zarr group
        """Write everything but the pixels to an empty zarr group."""
        for name in _ARRAYS:
            group.create_array(name, data=getattr(self, name))
        facts = {name: getattr(self, name) for name in (*_FACTS, "settings")} | {"warnings": list(self.warnings)}
        group.attrs["wsiseg"] = {"schema": "wsiseg.tiles/1", "slide": asdict(self.slide), **facts}

    @classmethod
    def load(cls, group: Any) -> Self:  # noqa: ANN401  a zarr group
        """Read what `save` wrote."""
        own = group.attrs["wsiseg"]
        if any(max(group[name].size, *group[name].chunks) > _MOST_NUMBERS for name in _ARRAYS):
            raise ValueError(f"more than {_MOST_NUMBERS:,} numbers, which no slide has")
        arrays: dict[str, Any] = {name: np.asarray(group[name][:], kind) for name, kind in _ARRAYS.items()}
        facts: dict[str, Any] = {name: kind(own[name]) for name, kind in _FACTS.items()}
        slide, warnings = SlideFacts.from_json(own["slide"]), tuple(own["warnings"])
        return cls(slide=slide, **arrays, **facts, warnings=warnings, settings=own["settings"])


def store_path(folder: Path, slide: str) -> Path:
    """Return the place of a slide's store in a folder."""
    return folder / f"{slide}{_SUFFIX}"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open the zarr group of a store; what is wrong with it while the block reads it is said in a sentence."""
    import zarr  # noqa: PLC0415  heavy: only where a store is read

    try:
        # Without the format zarr looks for files of the older one too, in the background.
        yield zarr.open_group(str(path), mode="r", zarr_format=3)
    except DAMAGED as error:
        raise WsisegError(f"{path}: not a tile store: {error}", "make it again with wsiseg tile") from error


def open_packed(path: Path, side: int) -> PackedTiles:
    """Open the pixels of a tile store alone, those that were read last without looking at its files again.

    Raises:
        WsisegError: There are none at `path`.
    """
    attributes = path / "zarr.json"
    return _packed(path, side, attributes.stat().st_mtime_ns if attributes.exists() else 0)


@lru_cache(_STORES_KNOWN)
def _packed(path: Path, side: int, _written_ns: int) -> PackedTiles:
    """Open pixels, those of a store that was made again anew; what is kept are 8 bytes a tile."""
    with _opened(path) as group:
        return PackedTiles(path, group, side)


def fill_tiles(out: NDArray[np.uint8], store: str, slide: str | None, indices: Indices) -> None:
    """Read tiles into uint8[n, side, side, 3]: those that the store holds, or of any side around them from its slide.

    Raises:
        WsisegError: A tile cannot be read.
    """
    if slide is None:
        open_packed(Path(store), out.shape[1]).read(indices, out)
        return
    with TileStore(Path(store), Path(slide)) as opened:
        opened.read_around(indices, out.shape[1], out)


class TileStore(AbstractContextManager["TileStore"]):
    """A tile store `<slide>.tiles.zarr`, open for reading; thread-safe.

    Where it has no pixels, they are read from the slide, if that is given.

    Raises:
        WsisegError: There is no tile store at `path`.
    """

    def __init__(self, path: Path, slide: Path | None = None) -> None:
        self.path, self._slide = path, slide
        with _opened(path) as group:
            self.tiles = Tiles.load(group)
            self._packed = PackedTiles(path, group, self.tiles.tile_px) if "offsets" in group else None

    def __len__(self) -> int:
        return len(self.tiles)

    @property
    def has_pixels(self) -> bool:
        """True if the tiles themselves are stored."""
        return self._packed is not None

    @cached_property
    def _open_slide(self) -> Slide:
        if self._slide is None:
            raise WsisegError(f"{self.path}: holds no pixels", "run wsiseg tile --pixels or keep the slide in place")
        facts = self.tiles.slide
        return Slide(self._slide, mpp=facts.mpp[0] if facts.mpp_source == "user" else None)

    def read(self, indices: Indices) -> NDArray[np.uint8]:
        """Read tiles from the store where it has pixels, else from the slide: uint8[n, tile, tile, 3], RGB.

        They are in the order of `indices`, which may repeat.

        Raises:
            WsisegError: A tile cannot be read.
        """
        if self._packed is not None:
            return self._packed.read(indices)
        return self.read_around(indices, self.tiles.tile_px)

    def read_around(self, indices: Indices, side: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Read crops of `side` pixels with tiles in their middle, from the slide: uint8[n, side, side, 3].

        Raises:
            WsisegError: The slide is not there or cannot be read.
        """
        margin = (side - self.tiles.tile_px) / 2 * self.tiles.mpp
        step_x, step_y = (margin / mpp for mpp in self.tiles.slide.mpp)
        slide = self._open_slide
        out = np.empty((len(indices), side, side, 3), np.uint8) if out is None else out
        for tile, (x, y) in zip(out, self.tiles.corners[np.asarray(indices, int)].tolist(), strict=True):
            tile[:] = slide.read(x - step_x, y - step_y, (side, side), self.tiles.mpp)
        return out

    def __exit__(self, *_: object) -> None:
        if "_open_slide" in self.__dict__:
            self._open_slide.close()
