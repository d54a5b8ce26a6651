"""Tiles to calibrate a model with and to compare it on: from tile stores, from images, or seeded textures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsiseg.model_file.self_test import seeded_pixels
from wsiseg.run.errors import UsageError
from wsiseg.slides.cohort import Cohort, CohortSlide
from wsiseg.tiles.store import TileStore, store_path

UNKNOWN = -1
_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"])
_MOST_SLIDES = 40
_SEED = 20260101


@dataclass(frozen=True)
class Sample:
    """Tiles uint8[n, tile, tile, 3] with the labels int8[n] of the slides that they came from, or `UNKNOWN`.

    `source` says in words where they came from, and `is_real` whether they were not made up.
    """

    tiles: NDArray[np.uint8]
    labels: NDArray[np.int8]
    source: str
    is_real: bool = True

    def __len__(self) -> int:
        return len(self.tiles)

    def first(self, count: int) -> "Sample":
        """Return the first tiles; samples are in random order."""
        return replace(self, tiles=self.tiles[:count], labels=self.labels[:count])


@dataclass(frozen=True)
class Samples:
    """Tiles to choose ranges of numbers with, and tiles to compare models on, of other slides or images."""

    calibration: Sample
    held_out: Sample


def from_cohort(path: Path, tile_px: int, mpp: float, counts: tuple[int, int]) -> Samples | None:
    """Draw tiles from the tile stores beside a cohort CSV.

    Those to calibrate with are from the training split, those to compare on from the validation split. Where the cohort
    has no such splits, every second slide serves one and the other; those of the test split serve nothing.

    Returns:
        As many tiles of either as `counts` says, or None if there are no stores.

    Raises:
        UsageError: The cohort is wrong, or its tiles are of another size.
    """
    there = [slide for slide in Cohort.read(path).slides if store_path(path.parent, slide.slide).is_dir()]
    slides = [slide for slide in there if slide.split != "test"]
    training, others = ([slide for slide in slides if slide.split == name] for name in ("train", "val"))
    if not training or not others:
        training, others = slides[::2], slides[1::2]
    drawn = [
        _from_stores(path.parent, group, tile_px, mpp, count)
        for group, count in zip((training, others), counts, strict=True)
    ]
    return Samples(*drawn) if all(map(len, drawn)) else None


def from_folder(folder: Path, tile_px: int, counts: tuple[int, int]) -> Samples:
    """Cut tiles out of images that have the model's um per pixel already; every second image serves one purpose.

    Raises:
        UsageError: There are not two images, or all are smaller than a tile.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file())
    random = np.random.default_rng(_SEED)
    paths = [paths[index] for index in random.permutation(len(paths))]
    drawn = []
    for group, count in zip((paths[::2], paths[1::2]), counts, strict=True):
        tiles = [tile for path in group[:count] for tile in _cut(path, tile_px)]
        order = random.permutation(len(tiles))[:count]
        if not tiles:
            raise UsageError(f"{folder}: needs two images of at least {tile_px}x{tile_px} pixels", "or give a cohort")
        chosen = np.stack([tiles[index] for index in order])
        drawn.append(Sample(chosen, np.full(len(chosen), UNKNOWN, np.int8), f"images of {folder.name}"))
    return Samples(*drawn)


def textures(tile_px: int, count: int) -> Samples:
    """Make up tiles in the colours of stained tissue, for want of real ones."""
    tiles = np.stack([seeded_pixels("texture", tile_px, tile_px, _SEED + 10 * index) for index in range(2 * count)])
    labels = np.full(count, UNKNOWN, np.int8)
    halves = (Sample(half, labels, "seeded textures", is_real=False) for half in (tiles[:count], tiles[count:]))
    return Samples(*halves)


def _from_stores(folder: Path, slides: Sequence[CohortSlide], tile_px: int, mpp: float, count: int) -> Sample:
    random = np.random.default_rng(_SEED)
    chosen = [slides[index] for index in random.permutation(len(slides))[:_MOST_SLIDES]]
    tiles, labels = [], []
    for slide in chosen:
        path = store_path(folder, slide.slide)
        with TileStore(path, slide.path) as store:
            found = store.tiles
            if found.tile_px != tile_px or not math.isclose(found.mpp, mpp):
                raise UsageError(
                    f"{path}: holds tiles of {found.tile_px} px at {found.mpp:g} um/px, "
                    f"but the model takes {tile_px} px at {mpp:g} um/px"
                )
            indices = random.permutation(len(found))[: -(-count // len(chosen))]
            tiles.append(store.read(np.sort(indices)))
            labels += [UNKNOWN if slide.label is None else slide.label] * len(indices)
    pixels = np.concatenate(tiles) if tiles else np.zeros((0, tile_px, tile_px, 3), np.uint8)
    order = random.permutation(len(pixels))[:count]
    splits = " and ".join(sorted({slide.split for slide in chosen if slide.split}))
    source = f"tiles of {len(chosen)} {splits} slides".replace("  ", " ")
    return Sample(pixels[order], np.array(labels, np.int8)[order], source)


def _cut(path: Path, tile_px: int) -> list[NDArray[np.uint8]]:
    """Cut an image into tiles that do not overlap; one that is smaller gives none."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  heavy: only where images are read

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as an image: {error}") from error
    rows, columns = (size // tile_px * tile_px for size in pixels.shape[:2])
    return [
        pixels[top : top + tile_px, left : left + tile_px]
        for top in range(0, rows, tile_px)
        for left in range(0, columns, tile_px)
    ]
