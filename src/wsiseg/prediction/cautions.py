"""What a person should know before trusting a map: of its slide, its organ, its pixels, and of what it shows."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.model_card import ModelCard
from wsiseg.model_file.model_file import ModelFile
from wsiseg.prediction.mapping import Job
from wsiseg.slides.slide import Slide

_COARSER = 1.5


def warnings_of(job: Job, heatmap: Heatmap, models: Sequence[ModelFile]) -> tuple[str, ...]:
    """Say what a person should know before trusting a map."""
    cards = [model.card for model in models]
    return (
        *job.slide.warnings,
        *job.warnings,
        *_coarse(job.slide, cards),
        *_other_organ(job.row.site, cards),
        *heatmap.warnings,
    )


def _coarse(slide: Slide, cards: Iterable[ModelCard]) -> Iterator[str]:
    """Say where the slide's pixels are much coarser than those that a model was trained on."""
    asked = min(card.mpp for card in cards)
    coarser = slide.upsampling(asked)
    if coarser > _COARSER:
        yield f"its pixels of {max(slide.mpp):g} um are {coarser:.1f} times coarser than the model's {asked:g} um"


def _other_organ(site: str, cards: Iterable[ModelCard]) -> Iterator[str]:
    """Say where the cohort names another organ than those that a model was trained on."""
    for card in cards:
        known = _known_sites(card)
        if site.strip() and known and not any(_is_same(site, one) for one in known):
            yield f"its site is {site.strip()}, but {card.name} was trained on {', '.join(known)}"


def _known_sites(card: ModelCard) -> tuple[str, ...]:
    """Return the organs that a model's card says it was trained on; none where it does not say."""
    stated: Any = card.trained_on.get("sites") or card.trained_on.get("site") or ()
    return tuple(str(one) for one in ([stated] if isinstance(stated, str) else stated))


def _is_same(site: str, other: str) -> bool:
    """Compare names of organs: lung is found in `Bronchus and lung`."""
    words, others = (set(name.casefold().replace(",", " ").split()) for name in (site, other))
    return words <= others or others <= words
