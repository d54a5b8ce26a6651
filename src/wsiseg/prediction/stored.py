"""Stored features in place of pixels: the map that a head makes of them; and how those of a model are stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsiseg.mathematics.grid import Grid
from wsiseg.model_file.answer import Answer
from wsiseg.model_file.model_file import ModelFile
from wsiseg.prediction.inference import Asking, Sums
from wsiseg.prediction.windows import Plan
from wsiseg.run.errors import UsageError
from wsiseg.slides.slide import Slide
from wsiseg.tiles.store import Tiles
from wsiseg.tiles.stored_features import StoredFeatures, TileSize, read_features, write_features
from wsiseg.tiles.tissue import TissueMask


@dataclass(frozen=True)
class WithFeatures:
    """A model that gives the features of tiles with its answers."""

    model: ModelFile

    def answer(self, tiles: NDArray[np.uint8]) -> Answer:
        """Return one answer per tile, [n], and its features."""
        return self.model.answer_with_features(tiles)

    def answer_map(self, images: NDArray[np.uint8]) -> Answer:
        """Return one answer per cell, [n, rows, columns]."""
        return self.model.answer_map(images)


def check_models(models: Sequence[ModelFile], *, have_features: bool) -> None:
    """Refuse models that take pixels where there are features, and the other way round.

    Raises:
        UsageError: One does.
    """
    for model in models:
        if have_features and model.card.input != "features":
            advice = "wsiseg export --head writes the head of a run alone"
            raise UsageError(f"{model.path}: takes pixels and no features", advice)
        if not have_features and model.card.input == "features":
            advice = "give the folder of features with --features"
            raise UsageError(f"{model.path}: takes stored features and no pixels", advice)


def answered(path: Path, slide: Slide, tissue: TissueMask, model: ModelFile) -> tuple[Plan, Sums]:
    """Return what a head says of the tiles of a slide whose features are stored; nothing is left to ask.

    Each tile counts in all cells that it covers, on the coarsest grid that the corners of tiles lie on. Where features
    are those of the tiles of a map by tiles, so are the cells.

    Raises:
        UsageError: h5py is not installed, or the features are none of those that the model takes.
        WsisegError: The file cannot be used.
    """
    card, wanted = model.card, model.card.features
    stored = read_features(path, slide.facts, TileSize(card.tile_px, card.mpp))
    channels = stored.features.shape[1]
    if wanted is None or channels != wanted.channels:
        raise UsageError(
            f"{path}: has {channels} features a tile, {model.path.name} takes {wanted and wanted.channels}"
        )
    if stored.encoder and wanted.encoder and stored.encoder != wanted.encoder:
        raise UsageError(f"{path}: was made by {stored.encoder}, {model.path.name} takes features of {wanted.encoder}")
    grid = stored.tiles.grid
    stride, side = grid.stride_px, grid.tile_px // grid.stride_px
    probabilities = model.answer_features(stored.features).probabilities.reshape(len(stored.features), -1)
    sums = Sums.empty(grid.shape, classes=probabilities.shape[1])
    for step in np.ndindex(side, side):
        cells = grid.cells(stored.tiles.corners) + step
        is_there = (cells < grid.shape).all(1)
        for total, values in zip(sums.total, probabilities.T, strict=True):
            np.add.at(total, tuple(cells[is_there].T), values[is_there])
        np.add.at(sums.weight, tuple(cells[is_there].T), 1)
    is_inside = tissue.share(Grid(grid.size_px, grid.mpp, stride, stride, grid.tile_mpp)) > 0
    return Plan(grid, is_inside & (sums.weight > 0), (), is_dense=False), sums


def covered(plan: Plan) -> TissueMask:
    """Return the cells of a plan as tissue."""
    side = plan.grid.stride_um
    return TissueMask(plan.wanted, (side, side), plan.grid.stride_level0, "stored features")


def write_of(asking: Asking, encoder: str, path: Path) -> None:
    """Store the features of the tiles that a model was asked about, those that could be read.

    Raises:
        UsageError: h5py is not installed.
        OutputError: The file cannot be written.
    """
    grid = asking.plan.grid
    cells = np.array([cell[:2] for cell, _ in asking.features], np.int32).reshape(-1, 2)
    features = np.stack([values for _, values in asking.features])
    ones = np.ones(len(cells), np.float32)
    area = len(cells) * grid.tile_um**2 / 1e6
    tiles = Tiles(
        asking.slide.facts, grid.corners(cells), ones, ones, grid.tile_px, grid.stride_px, grid.tile_mpp, area
    )
    write_features(path, StoredFeatures(tiles, features, encoder))
