"""Stored features in place of pixels: what training reads of tiles is made of them, and a head is trained on them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from wsiseg.config.train import TrainConfig
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.outputs import written_whole
from wsiseg.slides.cohort import CohortSlide
from wsiseg.tiles.store import store_path
from wsiseg.tiles.stored_features import StoredFeatures, TileSize, features_file, read_features
from wsiseg.training.features import FeatureBank, standard_of
from wsiseg.training.processes import Processes
from wsiseg.training.slides import LabelledSlide, chosen, rows_by_class

T = TypeVar("T")


@dataclass(frozen=True)
class StoredCohort:
    """The stored features of a cohort."""

    files: Mapping[str, Path]  # by slide
    stores: Path  # folder of tile stores that say where the tiles lie
    size: TileSize  # how large the tiles are: the median of all slides
    channels: int  # features of a tile
    encoder: str  # what made them, as far as the files say

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when a file does, by its size and time."""
        states = [(name, path.stat().st_size, path.stat().st_mtime_ns) for name, path in sorted(self.files.items())]
        return hashlib.sha256(repr(states).encode()).hexdigest()[:16]

    def bank(self, slides: Sequence[LabelledSlide], folder: Path, processes: Processes) -> FeatureBank:
        """Copy the features of the tiles that are used into a folder, each process its share, and standardise them."""
        bank = FeatureBank(folder / self.fingerprint)
        for slide in processes.share(slides):
            if not bank.path(slide).exists():
                with slide.open() as store:
                    found = read_features(self.files[slide.slide], store.tiles.slide, self.size)
                bank.save(found.features[slide.places].astype(np.float16)[None], slide)
        processes.wait()
        return replace(bank, standard=standard_of(bank, [slide for slide in slides if slide.split == "train"]))


def stored_cohort(config: TrainConfig, folder: Path, processes: Processes) -> StoredCohort:
    """Find and check the stored features of a cohort, and write into the run where their tiles lie.

    Raises:
        UsageError: A slide has none, nothing says how large tiles are, or they differ in that or in their channels.
        WsisegError: A file cannot be used, or a slide cannot be opened.
    """
    import zarr  # noqa: PLC0415  heavy: only where a store is written

    rows = [row for (row, *_), _ in chosen(rows_by_class(config.cohort, config.classes))]
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder", "name the folder of stored features with --features")
    said = TileSize(config.tile, config.mpp) if config.tile and config.mpp else None
    files = {row.slide: features_file(folder, (row.slide, row.path.stem)) for row in rows}
    found = {row.slide: _read(row, files[row.slide], said) for row in rows}
    stored = StoredCohort(files, config.out / "features", *_alike(found, files))
    for name, one in found.items() if processes.is_first else ():
        with written_whole(store_path(stored.stores, name)) as partial:
            one.tiles.save(zarr.create_group(str(partial)))
    processes.wait()
    return stored


def _read(row: CohortSlide, path: Path, size: TileSize | None) -> StoredFeatures:
    """Read the features of a slide, of whose file only what it says of itself is read, and keep the first alone."""
    with row.open() as slide:
        found = read_features(path, slide.facts, size)
    return replace(found, features=found.features[:1].copy())


def _alike(found: Mapping[str, StoredFeatures], files: Mapping[str, Path]) -> tuple[TileSize, int, str]:
    """Return size, channels and encoder that all slides share; what has others than most is refused by name."""

    def usual(fact: Callable[[StoredFeatures], T]) -> T:
        return Counter(map(fact, found.values())).most_common(1)[0][0]

    px, channels, encoder = (
        usual(lambda one: one.size.px),
        usual(lambda one: one.features.shape[1]),
        usual(lambda one: one.encoder),
    )
    size = TileSize(px, median(one.size.mpp for one in found.values() if one.size.px == px))
    for name, one in found.items():
        if one.features.shape[1] != channels:
            raise WsisegError(f"{files[name]}: has {one.features.shape[1]} features a tile, most slides {channels}")
        if one.size.px != px or not one.size.agrees(size):
            raise WsisegError(f"{files[name]}: its tiles are {one.size}, those of most slides {size}")
        if one.encoder != encoder:
            raise WsisegError(f"{files[name]}: was made by {one.encoder or 'nobody knows'}, most slides by {encoder}")
    return size, channels, encoder
