"""The small cohort, tiled, for tests of training."""

from pathlib import Path
from typing import Any

from making.cohorts import write_cohort
from wsiseg.config.tile import TileConfig
from wsiseg.config.train import TrainConfig
from wsiseg.tiles.tile import tile

TILE_PX = 64
SMALL = "timm:test_resnet"


def write_tiled_cohort(folder: Path, *, pixels: bool = True) -> Path:
    """Write slides, truth and tile stores into a folder; give the cohort CSV beside the stores.

    Args:
        folder: Gets `cohort/` and `tiles/`.
        pixels: Store the tiles themselves.
    """
    write_cohort(folder / "cohort")
    tile(TileConfig(inputs=(str(folder / "cohort" / "cohort.csv"),), out=folder / "tiles", tile=TILE_PX, pixels=pixels))
    return folder / "tiles" / "cohort.csv"


def training(cohort: Path, out: Path, **values: Any) -> TrainConfig:
    """Settings of a training that ends in a second."""
    small = {"arch": SMALL, "init": "none", "epochs": 2, "bag": 12, "max_tiles": 24}
    return TrainConfig(**{"cohort": cohort, "out": out, **small, **values})
