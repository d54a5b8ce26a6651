"""Pyramidal JPEG slides of made tissue, for measurements where no real slide is at hand.

Needs NumPy and Pillow alone. Tissue of 2048 px repeats over the whole slide; each JPEG tile of 256 px stands in the
file on its own, and holds about as many bytes as one of a real slide.
"""

import io
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MPP = 0.5
_TILE, _SIDE, _QUALITY = 256, 2048, 80
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_CODES = {_SHORT: "H", _LONG: "I", _RATIONAL: "II"}
_SCALES = {4: 18.0, 16: 26.0, 64: 22.0, 256: 16.0}  # sides of blobs in pixels, and how strong they are
_EOSIN, _HEMATOXYLIN = np.array([224.0, 160, 196]), np.array([104.0, 62, 142])


def write_slide(path: Path, size: int, seed: int = 0) -> Path:
    """Write a square slide of `size` pixels, a multiple of 256, at 0.5 um per pixel."""
    tissue = made_tissue(seed)
    with path.open("wb") as file:
        file.write(struct.pack("<2sHI", b"II", 42, 0))
        link, level = 4, 0
        while level == 0 or size >> level >= 2 * _TILE:
            link = _write_level(file, link, _encoded(tissue, level), size >> level, level)
            level += 1
    return path


def made_tissue(seed: int) -> NDArray[np.uint8]:
    """Make tissue, uint8[2048, 2048, 3]: nuclei in stroma, and grain."""
    rng = np.random.default_rng(seed)
    field = sum(strength * _blobs(rng, side) for side, strength in _SCALES.items())
    nuclei = 1 / (1 + np.exp(-(_blobs(rng, 12) + 0.6 * _blobs(rng, 128) - 1.1) * 6))
    stain = np.clip(0.25 + field / 150 + 0.6 * nuclei, 0, 1)[..., None]
    pixels = _EOSIN * (1 - stain) + _HEMATOXYLIN * stain + rng.normal(0, 5, (_SIDE, _SIDE, 1))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _blobs(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    small = Image.fromarray(rng.normal(size=(_SIDE // side + 1,) * 2).astype(np.float32))
    return np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), float)


def _encoded(tissue: NDArray[np.uint8], level: int) -> list[list[bytes]]:
    """Return the JPEG tiles that repeat over a level, row by row."""
    small = Image.fromarray(tissue).reduce(2**level)
    pixels = np.tile(np.asarray(small), (-(-_TILE // small.height), -(-_TILE // small.width), 1))
    count = pixels.shape[0] // _TILE
    return [[_jpeg(pixels[y * _TILE :, x * _TILE :][:_TILE, :_TILE]) for x in range(count)] for y in range(count)]


def _jpeg(pixels: NDArray[np.uint8]) -> bytes:
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "JPEG", quality=_QUALITY)
    return held.getvalue()


def _write_level(file: BinaryIO, link: int, tiles: list[list[bytes]], size: int, level: int) -> int:
    """Write the tiles of a level and its directory; return where the address of the next directory goes."""
    number, count = -(-size // _TILE), len(tiles)
    offsets, sizes = [], []
    for place in range(number * number):
        tile = tiles[place // number % count][place % number % count]
        offsets.append(file.tell())
        sizes.append(len(tile))
        file.write(tile)
    per_cm = (round(1e6 / MPP / 2**level), 100)
    fields: list[tuple[int, int, Sequence[int]]] = [
        (254, _LONG, [int(level > 0)]),  # a smaller copy
        (256, _LONG, [size]),
        (257, _LONG, [size]),
        (258, _SHORT, [8, 8, 8]),
        (259, _SHORT, [7]),  # JPEG
        (262, _SHORT, [6]),  # YCbCr
        (277, _SHORT, [3]),
        (282, _RATIONAL, per_cm),
        (283, _RATIONAL, per_cm),
        (284, _SHORT, [1]),
        (296, _SHORT, [3]),  # per centimetre
        (322, _LONG, [_TILE]),
        (323, _LONG, [_TILE]),
        (324, _LONG, offsets),
        (325, _LONG, sizes),
        (530, _SHORT, [2, 2]),  # Pillow halves both axes of the colours
    ]
    entries = [(tag, kind, values, _stored(file, kind, values)) for tag, kind, values in fields]
    at = file.tell() + file.tell() % 2
    file.seek(link)
    file.write(struct.pack("<I", at))
    file.seek(at)
    file.write(struct.pack("<H", len(entries)))
    file.writelines(struct.pack("<HHI4s", tag, kind, len(values) // len(_CODES[kind]), value)
                    for tag, kind, values, value in entries)  # fmt: skip
    file.write(struct.pack("<I", 0))
    return file.tell() - 4


def _stored(file: BinaryIO, kind: int, values: Sequence[int]) -> bytes:
    """Return the four bytes of a field's value: itself, or where it was written."""
    raw = struct.pack(f"<{len(values)}{_CODES[kind][0]}", *values)
    if len(raw) <= 4:  # noqa: PLR2004  what an entry has room for
        return raw.ljust(4, b"\0")
    at = file.tell() + file.tell() % 2
    file.seek(at)
    file.write(raw)
    return struct.pack("<I", at)
