"""The settings of `wsiseg tile`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from wsiseg.config.settings import IN_FILE, Config, Shard, Share, Shown


class TileConfig(Config):
    """Settings of `wsiseg tile`."""

    inputs: Annotated[tuple[str, ...], Shown("argument", "INPUT...")]
    """Slides, folders, globs, a cohort CSV, or `-` for one path per line on standard input."""
    out: Path
    """Folder for the tile stores."""
    tile: int = Field(default=224, ge=16, le=4096)
    """Side of a tile in pixels of `mpp`."""
    mpp: float = Field(default=0.5, gt=0, le=100)
    """Micrometers per tile pixel."""
    stride: int | None = Field(default=None, ge=1)
    """Distance of neighbouring tiles in pixels of `mpp`; a tile's side where it is not given."""
    slide_mpp: float | None = Field(default=None, gt=0)
    """Micrometers per level-0 pixel of the slides, in place of what the files say."""
    tissue: str = "auto"
    """`auto`, `none` (everything is tissue), a mask image, a GeoJSON file, or a folder of either."""
    min_tissue: Share = 0.5
    """Least share of tissue in a tile that is kept."""
    pixels: bool = False
    """Store the tiles themselves too."""
    max_bad_tiles: Annotated[Share, IN_FILE] = 0.01
    """Largest share of tissue tiles that may be unreadable."""
    jobs: int = Field(default=1, ge=1)
    """Slides that are read at the same time; with `dask` threads that read a slide."""
    dask: str | None = None
    """Address of a Dask scheduler, or `local:N` for N processes here."""
    shard: Shard | None = None
    """`I/N`: only the slides of part I of N, counted from 1."""
    overwrite: bool = False
    """Redo what is already there."""

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        if self.stride is not None and self.stride > self.tile:
            raise ValueError(f"a stride of {self.stride} leaves gaps between tiles of {self.tile}")
        return self
