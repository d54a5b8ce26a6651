"""Choosing the tiles of a grid that hold enough tissue."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.mathematics.grid import Grid
from wsiseg.slides.slide import Slide
from wsiseg.tiles.store import Tiles
from wsiseg.tiles.tissue import TissueMask

_LEAST_TISSUE = 1e-6  # a tile without any tissue is never kept
_MUCH_UPSAMPLING = 1.5  # beyond it detail is missing that a model has seen in training


def placed(slide: Slide, tissue: TissueMask, grid: Grid, min_tissue: float, settings: dict[str, Any]) -> Tiles:
    """Give the tiles of a grid that hold enough tissue, those that reach beyond the slide among them.

    Args:
        slide: The slide.
        tissue: Where it holds tissue.
        grid: Tiles that cover the slide.
        min_tissue: Least share of tissue in the part of a tile that lies on the slide.
        settings: What else they are made with, to be kept with them.
    """
    share = tissue.share(grid)
    cells = np.argwhere(share >= max(min_tissue, _LEAST_TISSUE))
    corners = grid.corners(cells)
    return Tiles(
        slide=slide.facts,
        corners=corners,
        tissue_share=share[cells[:, 0], cells[:, 1]],
        inside_share=_inside(corners, grid),
        tile_px=grid.tile_px,
        stride_px=grid.stride_px,
        mpp=grid.tile_mpp,
        tissue_mm2=tissue.area_mm2,
        warnings=(*slide.warnings, *tissue.warnings, *_upsampling(slide, grid.tile_mpp)),
        settings=settings,
    )


def _inside(corners: NDArray[np.int32], grid: Grid) -> NDArray[np.float32]:
    """Give the share of each tile that lies on the slide."""
    sides = np.asarray(grid.tile_level0)
    covered = np.clip(np.asarray(grid.size_px) - corners, 0, sides) / sides
    share: NDArray[np.float32] = covered.prod(1).astype(np.float32)
    return share


def _upsampling(slide: Slide, mpp: float) -> tuple[str, ...]:
    """Say where a slide is much coarser than what is asked of it."""
    times = slide.upsampling(mpp)
    if times <= _MUCH_UPSAMPLING:
        return ()
    return (f"its pixels of {max(slide.mpp):g} um are {times:.1f} times coarser than {mpp:g} um",)
