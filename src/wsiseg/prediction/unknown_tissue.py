"""Whether the tissue of a slide is of the kind that a model was trained on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.mathematics.grid import Grid
from wsiseg.model_file.model_file import ModelFile
from wsiseg.run.errors import SlideError
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue import TissueMask

UNKNOWN = "unknown"

_TILES = 32
_LEAST_TISSUE = 0.5


def distances(slide: Slide, tissue: TissueMask, models: Sequence[ModelFile]) -> list[dict[str, Any]]:
    """Measure how far the median of some tiles of a slide lies from the tissue that models know.

    Args:
        slide: The slide.
        tissue: Where it holds tissue; where there is none the whole slide is looked at.
        models: Those that cannot tell are left out.

    Returns:
        Name, `distance` and `limit` for each model; see `ModelFile.distances`.
    """
    found = []
    for model in models:
        known = model.card.known_tissue
        tiles = _some_tiles(slide, tissue, model) if known is not None else []
        if known is not None and tiles:
            distance = float(np.median(model.distances(np.stack(tiles))))
            found.append({"model": model.card.name, "distance": round(distance, 3), "limit": round(known.limit, 3)})
    return found


def warnings(heatmap: Heatmap) -> tuple[str, ...]:
    """Say for which models the tissue of a map is unknown."""
    return tuple(
        f"{UNKNOWN}: the tissue is unlike what {one['model']} was trained on (distance {one['distance']:.2f}, "
        f"known up to {one['limit']:.2f}); its map may mean nothing"
        for one in heatmap.run.get("known_tissue", ())
        if one["distance"] > one["limit"]
    )


def _some_tiles(slide: Slide, tissue: TissueMask, model: ModelFile) -> list[NDArray[np.uint8]]:
    """Read tiles that are spread evenly over the tissue; those that cannot be read are left out."""
    side, mpp = model.card.tile_px, model.card.mpp
    grid = Grid(slide.size_px, slide.mpp, side, side, mpp)
    share = tissue.share(grid)
    cells = np.argwhere(share >= min(_LEAST_TISSUE, float(share.max())))
    chosen = np.unique(np.linspace(0, len(cells) - 1, min(len(cells), _TILES)).round().astype(int))
    tiles = []
    for x, y in grid.corners(cells[chosen]).tolist():
        try:
            tiles.append(slide.read(x, y, (side, side), mpp))
        except SlideError:
            continue
    return tiles
