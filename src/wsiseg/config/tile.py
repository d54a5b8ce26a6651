"""The settings of `wsiseg tile`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from wsiseg.config.settings import IN_FILE, Config, Shard, Share, Shown


class TileConfig(Config):
    """Settings of `wsiseg tile`."""

    inputs: Annotated[tuple[str, ...], Shown("argument", "INPUT...")]
    """Slides, folders, globs, a cohort CSV, `-` for one path per line on standard input, or slides that lie elsewhere
    as s3://, gs:// or https:// addresses."""
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
    cache: Annotated[Path | None, IN_FILE] = None
    """Folder for slides that are fetched; `.slides` in that of the tiles where it is not given."""
    cache_gb: Annotated[float, IN_FILE] = Field(default=100.0, gt=0)
    """Gigabytes that it may hold; the slides that were asked for longest ago leave it first."""
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

    @property
    def cache_place(self) -> tuple[Path, float]:
        """Where slides that are fetched lie, and how many bytes they may take."""
        return self.cache or self.out / ".slides", self.cache_gb * 1e9

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        if self.stride is not None and self.stride > self.tile:
            raise ValueError(f"a stride of {self.stride} leaves gaps between tiles of {self.tile}")
        return self
