"""What a person should know before trusting a map."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.model_card import ModelCard
from wsiseg.slides.slide import Slide

_ALL_EQUAL = 0.995
_COARSER = 1.5


def doubts(heatmap: Heatmap) -> tuple[str, ...]:
    """Say where a map cannot be true: one value almost everywhere."""
    values = heatmap.probabilities[heatmap.tissue]
    if values.size < 2:  # noqa: PLR2004  one cell is always equal to itself
        return ()
    _, counts = np.unique(values.round(6), return_counts=True)
    if counts.max() <= _ALL_EQUAL * values.size:
        return ()
    return (f"one value, {float(np.median(values)):.4f}, over {counts.max() / values.size:.1%} of the tissue",)


def coarseness(slide: Slide, cards: Iterable[ModelCard]) -> Iterator[str]:
    """Say where the slide's pixels are much coarser than those that a model was trained on."""
    asked = min(card.mpp for card in cards)
    coarser = slide.upsampling(asked)
    if coarser > _COARSER:
        yield f"its pixels of {max(slide.mpp):g} um are {coarser:.1f} times coarser than the model's {asked:g} um"


def foreignness(site: str, cards: Iterable[ModelCard]) -> Iterator[str]:
    """Say where the cohort names another organ than those that a model was trained on."""
    for card in cards:
        known = known_sites(card)
        if site.strip() and known and not any(_is_same(site, one) for one in known):
            yield f"its site is {site.strip()}, but {card.name} was trained on {', '.join(known)}"


def known_sites(card: ModelCard) -> tuple[str, ...]:
    """Give the organs that a model's card says it was trained on; none where it does not say."""
    stated: Any = card.trained_on.get("sites") or card.trained_on.get("site") or ()
    return tuple(str(one) for one in ([stated] if isinstance(stated, str) else stated))


def _is_same(site: str, other: str) -> bool:
    """Compare names of organs: lung is found in `Bronchus and lung`."""
    words, others = (set(name.casefold().replace(",", " ").split()) for name in (site, other))
    return words <= others or others <= words
