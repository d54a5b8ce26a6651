"""One slide from opening to its tumour map: find where to look, ask every model, combine what they say."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.model_file import ModelFile
from wsiseg.pages.pictures import scaled
from wsiseg.prediction import unknown_tissue
from wsiseg.prediction.combining import combined
from wsiseg.prediction.doubts import coarseness, doubts, foreignness
from wsiseg.prediction.inference import Plan, Sums, plan_tiles, plan_windows, run
from wsiseg.prediction.map_files import MapFiles, key_of
from wsiseg.prediction.places import Places
from wsiseg.prediction.settings import kind, settings_of, threshold_of, threshold_of_member
from wsiseg.prediction.views import viewed
from wsiseg.run.errors import SlideError
from wsiseg.slides.cohort import CohortSlide
from wsiseg.slides.pyramid import level_for
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue import TissueMask

SAVE_EVERY_S = 30.0
"""How often what is known of an unfinished slide is kept."""

_PICTURE_PX = 1200  # longer side of the picture of a small slide
_MOST_PICTURE_PX = 64_000_000  # of the level that it is read from


@dataclass(frozen=True)
class Job:
    """One open slide with all that its map depends on.

    Attributes:
        row: Its row in the cohort.
        slide: The open slide.
        tissue: Its tissue that is looked at.
        thumbnail: uint8[rows, columns, 3], the whole slide.
        plans: What to read and ask, one plan a model.
        places: What the cells that are looked at depend on.
        warnings: What a person should know of where is looked.
    """

    row: CohortSlide
    slide: Slide
    tissue: TissueMask
    thumbnail: NDArray[np.uint8]
    plans: tuple[Plan, ...]
    places: dict[str, str | None]
    warnings: tuple[str, ...] = ()

    @property
    def tiles(self) -> int:
        """How many tiles will be asked about, by all models together."""
        return sum(plan.tiles() for plan in self.plans)


def prepare(
    row: CohortSlide,
    slide: Slide,
    models: list[ModelFile],
    config: PredictConfig,
    places: Places,
) -> Job:
    """Find out where to look on an open slide and plan what to ask each model."""
    found = places.find(row.slide, slide, config.max_bad_tiles)
    plans = tuple(_plan(slide, found.tissue, model, config) for model in models)
    thumbnail = np.asarray(scaled(found.thumbnail, least=1))  # a large one would be held until the slide is done
    return Job(row, slide, found.tissue, thumbnail, plans, places.settings(row.slide), found.warnings)


def picture_of(job: Job) -> NDArray[np.uint8]:
    """Give the slide for people, uint8[rows, columns, 3]: finer than the thumbnail where reading that costs little."""
    slide = job.slide
    scale = max(1.0, max(slide.size_px) / _PICTURE_PX)
    level = slide.levels[level_for(slide.levels, (scale, scale))]
    if max(job.thumbnail.shape) >= _PICTURE_PX or level.size_px[0] * level.size_px[1] > _MOST_PICTURE_PX:
        return job.thumbnail
    try:
        return slide.overview(scale * max(slide.mpp)).image
    except SlideError:
        return job.thumbnail


def _plan(slide: Slide, tissue: TissueMask, model: ModelFile, config: PredictConfig) -> Plan:
    if kind(model, config) == "dense":
        return plan_windows(slide, tissue, model, config.min_tissue)
    return plan_tiles(slide, tissue, model, config.min_tissue, config.stride)


def map_slide(
    job: Job,
    models: list[ModelFile],
    config: PredictConfig,
    files: MapFiles | None = None,
    advance: Callable[[int, float], None] = lambda _tiles, _waited: None,
) -> tuple[Heatmap, tuple[Heatmap, ...]]:
    """Ask the models for the map of a slide.

    Args:
        job: The slide, prepared.
        models: What to ask.
        config: How.
        files: Where what is known of an unfinished slide is kept; nothing is kept where it is None.
        advance: Called with the number of further tiles that are done and the seconds spent waiting for them.

    Returns:
        The map, that of several models on the finest of their grids, and each model's own.

    Raises:
        SlideError: More than `config.max_bad_tiles` of the tissue cannot be read.
    """
    members = tuple(
        _ask(job, plan, model, config, files, advance) for plan, model in zip(job.plans, models, strict=True)
    )
    heatmap = combined(members, config.combine, [model.card.threshold for model in models])
    for member in members:
        tiles, bad = member.run["tiles"], member.run["bad_tiles"]
        if bad > config.max_bad_tiles * tiles:
            text = f"{job.row.path.name}: {bad} of {tiles} tissue cells cannot be read"
            raise SlideError(text, "get the slide again or raise --max-bad-tiles")
    settings = settings_of(models, config, job.places)
    found = unknown_tissue.distances(job.slide, job.tissue, models)
    facts = {**heatmap.run, **settings, **({"known_tissue": found} if found else {})}
    return replace(heatmap, run=facts, threshold=threshold_of(models, config)), members


def _ask(
    job: Job,
    plan: Plan,
    model: ModelFile,
    config: PredictConfig,
    files: MapFiles | None,
    advance: Callable[[int, float], None],
) -> Heatmap:
    """Ask one model, going on from what an interrupted run knew."""
    from wsiseg.run.version import __version__  # noqa: PLC0415  the package imports this module

    settings = settings_of([model], config, job.places)
    key = key_of({**settings, "slide": job.slide.facts.fingerprint, "mpp": job.slide.mpp, "windows": plan.mark})
    known = files.load_unfinished(key) if files is not None else None
    sums = known or Sums.empty(plan.grid.shape)
    probabilities = run(job.slide, plan, viewed(model, config.views), sums, _keeper(files, key, advance))
    if files is not None and len(job.plans) > 1:
        files.save_unfinished(sums, key)
    wanted = int(plan.wanted.sum())
    facts: dict[str, Any] = {
        "kind": kind(model, config),
        "tiles": wanted,
        "bad_tiles": wanted - int((~np.isnan(probabilities)).sum()),
        "tissue_mm2": round(job.tissue.area_mm2, 6),
    }
    return Heatmap(
        probabilities=probabilities,
        cell_um=plan.grid.stride_um,
        slide=job.slide.facts,
        threshold=threshold_of_member(model, config),
        model=model.provenance,
        run={**settings, **facts},
        version=__version__,
    )


def _keeper(
    files: MapFiles | None, key: str, advance: Callable[[int, float], None]
) -> Callable[[Sums, int, float], None]:
    """Give what to do after every batch: count it, and now and then keep what is known."""
    saved = time.monotonic()

    def after(sums: Sums, tiles: int, waited: float) -> None:
        nonlocal saved
        advance(tiles, waited)
        if files is not None and time.monotonic() - saved > SAVE_EVERY_S:
            files.save_unfinished(sums, key)
            saved = time.monotonic()

    return after


def warnings_of(job: Job, heatmap: Heatmap, models: Sequence[ModelFile]) -> tuple[str, ...]:
    """Say what a person should know before trusting a map."""
    cards = [model.card for model in models]
    return (
        *job.slide.warnings,
        *job.warnings,
        *coarseness(job.slide, cards),
        *foreignness(job.row.site, cards),
        *doubts(heatmap),
        *unknown_tissue.warnings(heatmap),
    )
