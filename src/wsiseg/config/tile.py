"""The settings of `wsiseg tile`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from wsiseg.config.settings import IN_FILE, Config, Shard, Share, Shown


class TileConfig(Config):
    """Settings of `wsiseg tile`."""

    inputs: Annotated[tuple[str, ...], Shown("argument", "INPUT...")]
    """Slides, folders, globs, a cohort CSV, s3://, gs:// or https:// addresses of slides, or `-` to read paths from
    standard input, one per line or NUL-terminated."""
    out: Path
    """Output folder for the tile stores, pictures and tables."""
    tile: int = Field(default=224, ge=16, le=4096)
    """Side of a tile, in pixels at the resolution of `--mpp`."""
    mpp: float = Field(default=0.5, gt=0, le=100)
    """Resolution of the tiles, in micrometers per pixel."""
    stride: int | None = Field(default=None, ge=1)
    """Distance between neighbouring tiles, in pixels at the resolution of `--mpp`; by default the side of a tile."""
    slide_mpp: float | None = Field(default=None, gt=0)
    """Micrometers per level-0 pixel of the slides; overrides what the files say."""
    tissue: str = "auto"
    """Where the tissue is: `auto` (found by colour), `none` (everywhere), a mask image, an outline file, or a folder of
    masks or outline files named after the slides."""
    min_tissue: Share = 0.5
    """Smallest share of tissue in a tile that is kept."""
    pixels: bool = False
    """Store the pixels of the tiles too, not only their positions."""
    cache: Annotated[Path | None, IN_FILE] = None
    """Folder for downloaded slides; by default `.slides` in the output folder."""
    cache_gb: Annotated[float, IN_FILE] = Field(default=100.0, gt=0)
    """Largest size of `cache` in gigabytes; the slides requested longest ago are deleted first."""
    max_bad_tiles: Annotated[Share, IN_FILE] = 0.01
    """Largest share of the tissue tiles that may be unreadable; beyond it the slide fails."""
    jobs: int = Field(default=1, ge=1)
    """Slides to read in parallel; with `--dask`, threads that read one slide."""
    dask: str | None = None
    """Address of a Dask scheduler, or `local:N` to start N worker processes on this machine."""
    shard: Shard | None = None
    """`I/N`: process only part I of N of the slides, with I from 1 to N."""
    overwrite: bool = False
    """Redo slides that are already done."""

    @property
    def cache_place(self) -> tuple[Path, float]:
        """Where slides that are fetched lie, and how many bytes they may take."""
        return self.cache or self.out / ".slides", self.cache_gb * 1e9

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        if self.stride is not None and self.stride > self.tile:
            raise ValueError(f"a stride of {self.stride} leaves gaps between tiles of {self.tile}")
        return self
