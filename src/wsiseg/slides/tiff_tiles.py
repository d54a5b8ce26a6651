"""Tiles of TIFF files that no reader could hold.

OpenSlide believes what a directory says of its tiles and ends the whole process where it cannot get the memory for one.
So the directories are looked at first (TIFF 6.0, section 15; BigTIFF).
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

_TILE_WIDTH, _TILE_LENGTH, _TILE_BYTE_COUNTS = 322, 323, 325
_MOST_PIXELS = 2**27
_MOST_DIRECTORIES = 1000
_BIG = 43


def impossible_tile(path: Path) -> str:
    """Say which tiles of a file cannot be true; nothing where there are none, or it is no TIFF file.

    The warnings of the process are changed meanwhile, so that one thread at a time may call this.
    """
    length = path.stat().st_size
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for number, directory in enumerate(_directories(file)):
                width, height = directory.get(_TILE_WIDTH, 0), directory.get(_TILE_LENGTH, 0)
                if _largest(width) * _largest(height) > _MOST_PIXELS:
                    return f"tiles of {width}x{height} pixels in directory {number}"
                if (count := _largest(directory.get(_TILE_BYTE_COUNTS, 0))) > length:
                    return f"a tile of {count} bytes in directory {number}, more than the file has"
        except Exception:  # noqa: BLE001  a broken directory is OpenSlide's to refuse
            return ""
    return ""


def _directories(file: IO[bytes]) -> Iterator["ImageFileDirectory_v2"]:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2  # noqa: PLC0415  heavy: only where a slide is opened

    header = file.read(8)
    if header[2:3] == bytes([_BIG]) or header[3:4] == bytes([_BIG]):
        header += file.read(8)
    directory = ImageFileDirectory_v2(header)
    place = directory.next
    seen: set[int] = set()
    while place and place not in seen and len(seen) < _MOST_DIRECTORIES:
        seen.add(place)
        file.seek(place)
        directory = ImageFileDirectory_v2(header)
        directory.load(file)
        yield directory
        place = directory.next


def _largest(value: Any) -> int:  # noqa: ANN401  a number, or numbers in a tuple
    return max(map(int, value)) if isinstance(value, tuple) else int(value)
