"""What a person should know before trusting a map: tissue the model does not know, pixels too coarse, one value."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.mathematics.grid import Grid
from wsiseg.model_file.model_card import ModelCard
from wsiseg.model_file.model_file import ModelFile
from wsiseg.run.errors import SlideError
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue import TissueMask

UNKNOWN = "unknown"
"""The first word of the caution that a slide's tissue is unlike what a model was trained on."""

_TILES = 32
_LEAST_TISSUE = 0.5
_ALL_EQUAL = 0.995
_COARSER = 1.5


def uniform(heatmap: Heatmap) -> tuple[str, ...]:
    """Say where a map has one value almost everywhere, which cannot be true."""
    values = heatmap.probabilities[heatmap.tissue]
    if values.size < 2:  # noqa: PLR2004  one cell is always equal to itself
        return ()
    _, counts = np.unique(values.round(6), return_counts=True)
    if counts.max() <= _ALL_EQUAL * values.size:
        return ()
    return (f"one value, {float(np.median(values)):.4f}, over {counts.max() / values.size:.1%} of the tissue",)


def unknown(heatmap: Heatmap) -> tuple[str, ...]:
    """Say for which models the tissue of a map is unknown."""
    return tuple(
        f"{UNKNOWN}: the tissue is unlike what {one['model']} was trained on (distance {one['distance']:.2f}, "
        f"known up to {one['limit']:.2f}); its map may mean nothing"
        for one in heatmap.run.get("known_tissue", ())
        if one["distance"] > one["limit"]
    )


def coarse(slide: Slide, cards: Iterable[ModelCard]) -> Iterator[str]:
    """Say where the slide's pixels are much coarser than those that a model was trained on."""
    asked = min(card.mpp for card in cards)
    coarser = slide.upsampling(asked)
    if coarser > _COARSER:
        yield f"its pixels of {max(slide.mpp):g} um are {coarser:.1f} times coarser than the model's {asked:g} um"


def other_organ(site: str, cards: Iterable[ModelCard]) -> Iterator[str]:
    """Say where the cohort names another organ than those that a model was trained on."""
    for card in cards:
        known = known_sites(card)
        if site.strip() and known and not any(_is_same(site, one) for one in known):
            yield f"its site is {site.strip()}, but {card.name} was trained on {', '.join(known)}"


def known_sites(card: ModelCard) -> tuple[str, ...]:
    """Return the organs that a model's card says it was trained on; none where it does not say."""
    stated: Any = card.trained_on.get("sites") or card.trained_on.get("site") or ()
    return tuple(str(one) for one in ([stated] if isinstance(stated, str) else stated))


def distances(slide: Slide, tissue: TissueMask, models: Sequence[ModelFile]) -> list[dict[str, Any]]:
    """Measure how far the median of some tiles of a slide lies from the tissue that models know.

    Args:
        slide: The slide.
        tissue: Where it holds tissue; where there is none the whole slide is looked at.
        models: Those that cannot tell are left out.

    Returns:
        Name, `distance` and `limit` for each model; see `Answer.distances`.
    """
    found = []
    for model in models:
        tiles = _some_tiles(slide, tissue, model) if model.limit is not None else []
        distances = model.answer(np.stack(tiles)).distances if tiles else None
        if model.limit is not None and distances is not None:
            distance = float(np.median(distances))
            found.append({"model": model.card.name, "distance": round(distance, 3), "limit": round(model.limit, 3)})
    return found


def _is_same(site: str, other: str) -> bool:
    """Compare names of organs: lung is found in `Bronchus and lung`."""
    words, others = (set(name.casefold().replace(",", " ").split()) for name in (site, other))
    return words <= others or others <= words


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
