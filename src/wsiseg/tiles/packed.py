"""Tiles as JPEG files packed one after the other: written in order, read at random or in runs.

In a zarr group: `pixels` uint8[bytes], the files, and `offsets` int64[n + 1], where each begins and the last ends. The
array is not compressed, and its chunks are read as the plain files that they are: zarr would read a whole chunk to give
a few bytes of it.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.run.errors import WsisegError
from wsiseg.slides.jpeg_tiles import decoder

JPEG_QUALITY = 85
"""With colour at full resolution: less than a fifth of the raw bytes on a slide of much detail, and truer in colour, by
which stains are told apart, than quality 90 with the usual halved colour, which takes as much room."""
_CHUNK_BYTES = 2**22
_MAKE_AGAIN = "make it again with wsiseg tile --pixels --overwrite"


def encoded(tile: NDArray[np.uint8]) -> bytes:
    """Return a tile (uint8[h, w, 3]) as JPEG."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pixels are touched

    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4")
    return buffer.getvalue()


def save_packed(group: Any, files: Iterable[bytes]) -> None:  # noqa: ANN401  a zarr group
    """Append JPEG files to a zarr group, holding about one chunk at a time."""
    offsets, waiting = [0], bytearray()
    for file in files:
        waiting += file
        offsets.append(offsets[-1] + len(file))
        if len(waiting) >= _CHUNK_BYTES:
            _append(group, bytes(waiting[:_CHUNK_BYTES]))
            del waiting[:_CHUNK_BYTES]
    if waiting or "pixels" not in group:
        _append(group, bytes(waiting))
    group.create_array("offsets", data=np.asarray(offsets, np.int64))


def _append(group: Any, piece: bytes) -> None:  # noqa: ANN401  a zarr group
    """Append to the array, which the first piece makes: the last chunk of an array takes the room of a full one."""
    if "pixels" not in group:
        chunk = max(1, len(piece))
        group.create_array("pixels", shape=(0,), chunks=(chunk,), dtype=np.uint8, compressors=None)
    group["pixels"].append(np.frombuffer(piece, np.uint8))


class PackedTiles:
    """Packed JPEG files, open for reading; thread-safe, and nothing needs closing.

    They are those of the zarr group that `save_packed` filled, open and at a `path`; tiles have a `side` in pixels.

    Raises:
        KeyError: It holds no packed files.
        ValueError: They are stored in another way.
    """

    def __init__(self, path: Path, group: Any, side: int) -> None:  # noqa: ANN401  a zarr group
        self._folder, self._side = path / "pixels", side
        self._offsets: NDArray[np.int64] = np.asarray(group["offsets"][:])
        array = group["pixels"]
        if array.compressors or array.ndim != 1 or array.dtype != np.uint8:
            raise ValueError("its pixels are not plain bytes")
        self._chunk = int(array.chunks[0])

    def read(
        self, indices: Sequence[int] | NDArray[np.integer], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Read tiles in any order, repeats allowed: uint8[n, side, side, 3], RGB, into `out` where that is given.

        Raises:
            WsisegError: A tile is damaged or missing.
        """
        numbers = np.asarray(indices, int)
        out = np.empty((len(numbers), self._side, self._side, 3), np.uint8) if out is None else out
        begins, ends = self._offsets[numbers].tolist(), self._offsets[numbers + 1].tolist()
        decode, shape = decoder(), out.shape[1:]
        for run in map(np.ndarray.tolist, _runs(numbers)):
            first = begins[run[0]]
            data = self._bytes(first, ends[run[-1]])
            for place in run:
                try:
                    found = decode(data[begins[place] - first : ends[place] - first], buffer=out[place])
                except (OSError, SyntaxError, ValueError) as error:
                    raise self._damaged(numbers[place], error) from error
                if found.shape != shape:
                    raise self._damaged(numbers[place], "it is of another size")
        return out

    def _damaged(self, number: int, why: object) -> WsisegError:
        return WsisegError(f"{self._folder.parent}: tile {number} is damaged: {why}", _MAKE_AGAIN)

    def _bytes(self, begin: int, end: int) -> bytes:
        """Read bytes begin..end of the array from the files of its chunks."""
        parts = []
        while begin < end:
            number, start = divmod(begin, self._chunk)
            path = self._folder / "c" / str(number)
            try:
                with path.open("rb", buffering=0) as file:
                    file.seek(start)
                    part = file.read(min(end - begin, self._chunk - start))
            except OSError as error:
                raise WsisegError(f"{path}: cannot be read: {error.strerror}", _MAKE_AGAIN) from error
            if not part:  # the file was cut off; the decoder will say so
                break
            parts.append(part)
            begin += len(part)
        return b"".join(parts)


def _runs(indices: NDArray[np.integer]) -> list[NDArray[np.intp]]:
    """Divide the places of indices into runs of tiles that lie one after the other."""
    order = np.argsort(indices, kind="stable")
    breaks = np.flatnonzero(np.diff(indices[order]) != 1) + 1
    return [run for run in np.split(order, breaks) if len(run)]
