"""The small cohort, tiled, for tests of training."""

from pathlib import Path

from making.cohorts import write_cohort
from wsiseg.config.tile import TileConfig
from wsiseg.tiles.tile import tile

TILE_PX = 64


def write_tiled_cohort(folder: Path, *, pixels: bool = True) -> Path:
    """Write slides, truth and tile stores into a folder; give the cohort CSV beside the stores.

    Args:
        folder: Gets `cohort/` and `tiles/`.
        pixels: Store the tiles themselves.
    """
    write_cohort(folder / "cohort")
    tile(TileConfig(inputs=(str(folder / "cohort" / "cohort.csv"),), out=folder / "tiles", tile=TILE_PX, pixels=pixels))
    return folder / "tiles" / "cohort.csv"
