"""TIFF files as their directories describe them (TIFF 6.0, section 15; BigTIFF).

OpenSlide believes what a directory says about its tiles and ends the whole process where it cannot get the memory for
one. So the directories are looked at first.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

_COMPRESSION, _TILE_WIDTH, _TILE_LENGTH, _TILE_BYTE_COUNTS = 259, 322, 323, 325
_MOST_PIXELS = 2**27
_MOST_DIRECTORIES = 1000
_BIG = 43
_CODECS = {
    1: "none",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    33003: "JPEG 2000 (YCbCr)",
    33005: "JPEG 2000 (RGB)",
    34712: "JPEG 2000",
    50000: "zstd",
    50001: "WebP",
}


def directories(path: Path) -> Iterator["ImageFileDirectory_v2"]:
    """Yield the directories of a TIFF file, the first 1000 of them.

    The warnings of the process are changed meanwhile, so only one thread at a time may use this.

    Raises:
        Exception: The file is broken or is not a TIFF; Pillow raises almost anything.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2  # noqa: PLC0415  heavy: only where a slide is opened

    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = file.read(8)
        if _BIG in header[2:4]:
            header += file.read(8)
        place = ImageFileDirectory_v2(header).next
        seen: set[int] = set()
        while place and place not in seen and len(seen) < _MOST_DIRECTORIES:
            seen.add(place)
            file.seek(place)
            directory = ImageFileDirectory_v2(header)
            directory.load(file)
            yield directory
            place = directory.next


def impossible_tile(path: Path) -> str:
    """Say which tiles of a file cannot be true; nothing where all can, or where it is not a TIFF file."""
    length = path.stat().st_size
    try:
        for number, directory in enumerate(directories(path)):
            width, height = directory.get(_TILE_WIDTH, 0), directory.get(_TILE_LENGTH, 0)
            if _largest(width) * _largest(height) > _MOST_PIXELS:
                return f"tiles of {width}x{height} pixels in directory {number}"
            if (count := _largest(directory.get(_TILE_BYTE_COUNTS, 0))) > length:
                return f"a tile of {count} bytes in directory {number}, more than the file has"
    except Exception:  # noqa: BLE001  a broken directory is OpenSlide's to refuse
        return ""
    return ""


def compression(path: Path) -> str:
    """Name the compression of the first image of a TIFF, a PNG or a JPEG; `unknown` for other files."""
    with path.open("rb") as file:
        head = file.read(4)
    if head == b"\x89PNG":
        return "PNG"
    if head.startswith(b"\xff\xd8"):
        return "JPEG"
    try:
        code = int(next(directories(path))[_COMPRESSION])
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, StopIteration):
        return "unknown"
    return _CODECS.get(code, f"TIFF compression {code}")


def _largest(value: Any) -> int:  # noqa: ANN401  a number, or numbers in a tuple
    return max(map(int, value)) if isinstance(value, tuple) else int(value)
