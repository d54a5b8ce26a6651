"""One slide from opening to its tumour map: find where to look, ask every model, average what they say."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.model_card import ModelCard
from wsiseg.model_file.model_file import ModelFile
from wsiseg.pages.pictures import scaled
from wsiseg.prediction.feed import Feed
from wsiseg.prediction.inference import Asking, Sums
from wsiseg.prediction.map_files import MapFiles, key_of
from wsiseg.prediction.places import Places
from wsiseg.prediction.stored import WithFeatures, answered, covered
from wsiseg.prediction.windows import Plan, plan_tiles, plan_windows
from wsiseg.run.errors import SlideError, counted
from wsiseg.run.pace import spoken
from wsiseg.run.record import SlideRecord
from wsiseg.run.version import __version__
from wsiseg.slides.cohort import CohortSlide
from wsiseg.slides.pyramid import level_for
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue import TissueMask

SAVE_EVERY_S = 30.0
"""How often what is known of an unfinished slide is kept."""

_READING = 3  # changes when pixels or answers do, so that no map is half of one kind and half of another
_PICTURE_PX, _AS_IT_IS_PX = 1200, 1000  # longer side of the picture of a small slide; of a level that serves as it is
_MOST_PICTURE_PX = 64_000_000  # of the level that it is read from


@dataclass(frozen=True)
class Job:
    """One open slide with all that its map depends on."""

    row: CohortSlide
    slide: Slide
    tissue: TissueMask  # where is looked
    thumbnail: NDArray[np.uint8]  # [rows, columns, 3], the whole slide
    plans: tuple[Plan, ...]  # what to read and ask, one plan a model
    places: dict[str, str | None]  # what the cells that are looked at depend on
    warnings: tuple[str, ...] = ()  # what a person should know of where is looked
    sums: tuple[Sums, ...] = ()  # what the models said already, where they were asked about stored features

    @property
    def tiles(self) -> int:
        """How many tiles will be asked about, by all models together."""
        return sum(plan.tiles() for plan in self.plans)


def prepare(row: CohortSlide, slide: Slide, models: list[ModelFile], config: PredictConfig, places: Places) -> Job:
    """Find out where to look on an open slide and plan what to ask each model."""
    tissue, picture, warnings = places.find(row.slide, slide, config.max_bad_tiles)
    stored = places.stored(row.slide)
    if stored is not None:
        plans, sums = zip(*(answered(stored, slide, tissue, model) for model in models), strict=True)
        return Job(row, slide, covered(plans[0]), picture, plans, places.settings(row.slide), warnings, sums)
    plan_of = {"dense": plan_windows, "tile": plan_tiles}
    plans = tuple(
        replace(plan_of[kind(model, config)](slide, tissue, model, config.min_tissue), views=config.views)
        for model in models
    )
    thumbnail = np.asarray(scaled(picture, least=1))  # a large one would be held until the slide is done
    return Job(row, slide, tissue, thumbnail, plans, places.settings(row.slide), warnings)


def picture_of(job: Job) -> NDArray[np.uint8]:
    """Read the slide for people, uint8[rows, columns, 3]: finer than the thumbnail where that costs little."""
    slide = job.slide
    smaller = max((px for px in map(max, slide.level_sizes_px) if px <= _PICTURE_PX), default=0)
    scale = max(1.0, max(slide.size_px) / (smaller if smaller >= _AS_IT_IS_PX else _PICTURE_PX))
    level = slide.levels[level_for(slide.levels, (scale, scale))]
    if max(job.thumbnail.shape) >= _PICTURE_PX or level.size_px[0] * level.size_px[1] > _MOST_PICTURE_PX:
        return job.thumbnail
    try:
        return slide.overview(scale * max(slide.mpp)).image
    except SlideError:
        return job.thumbnail


def particulars(job: Job, models: Sequence[ModelFile]) -> str:
    """Say how a slide is read: where its pixel size comes from, and which of its levels models see."""
    slide = job.slide
    parts = [f"{slide.mpp[0]:.4g} um/px from {slide.pixel_size.source}", f"tissue {job.places['tissue']}"]
    for mpp in sorted({model.card.mpp for model in models}):
        number = level_for(slide.levels, (mpp / slide.mpp[0], mpp / slide.mpp[1]))
        own = slide.mpp[0] * slide.size_px[0] / slide.level_sizes_px[number][0]
        parts.append(f"{mpp:g} um/px read from level {number} of {own:.4g} um/px")
    return ", ".join(parts)


def forecast(job: Job, speed: float, slides: int) -> str:
    """Say how long a slide, and `slides` like it in all, take at so many tiles a second."""
    what = "it takes" if slides == 1 else f"{slides} slides like it take"
    said = f"{job.row.slide} has {counted(job.tiles, 'tile')}; at {speed:.3g} tiles/s, as measured so far, "
    return f"{said}{what} about {spoken(slides * job.tiles / speed)}"


def plan_record(job: Job, tiles: int, speed: float) -> SlideRecord:
    """Say what mapping a slide will do: ask about so many tiles, so many a second."""
    return SlideRecord(
        slide=job.row.slide,
        path=str(job.row.path),
        status="planned",
        mpp=job.slide.mpp,
        mpp_source=job.slide.pixel_size.source,
        tissue_mm2=round(job.tissue.area_mm2, 6),
        tiles=tiles,
        seconds=round(tiles / speed, 3),
        warnings=(*job.slide.warnings, *job.warnings),
        **job.row.known,
    )


def warnings_of(row: CohortSlide, slide: Slide, heatmap: Heatmap, models: Sequence[ModelFile]) -> tuple[str, ...]:
    """Say what to know before trusting a map, old or new: of slide, tissue, pixels and organ, and of what it shows."""
    cards = [model.card for model in models]
    return (
        *slide.warnings,
        *heatmap.run.get("warnings", ()),
        *slide.coarseness(min(card.mpp for card in cards)),
        *_other_organ(row.site.strip(), cards),
        *heatmap.warnings,
    )


def _other_organ(site: str, cards: Sequence[ModelCard]) -> Iterator[str]:
    """Say where the cohort names another organ than those that a model says it was trained on."""
    for card in cards:
        stated: Any = card.trained_on.get("sites") or card.trained_on.get("site") or ()
        known = [str(one) for one in ([stated] if isinstance(stated, str) else stated)]
        if site and known and not any(_is_same(site, one) for one in known):
            yield f"its site is {site}, but {card.name} was trained on {', '.join(known)}"


def _is_same(site: str, other: str) -> bool:
    """Compare names of organs: lung is found in `Bronchus and lung`."""
    words, others = (set(name.casefold().replace(",", " ").split()) for name in (site, other))
    return words <= others or others <= words


def kind(model: ModelFile, config: PredictConfig) -> str:
    """Tell whether a model maps densely or by tiles."""
    return "tile" if config.write_features else model.card.map if config.map == "auto" else config.map


def settings_of(models: list[ModelFile], config: PredictConfig, places: dict[str, str | None]) -> dict[str, Any]:
    """Return all that probabilities depend on besides the slide: a map made with the same is not made again.

    The SHA-256 of a model file says what is in it, whatever its name. `places` is what the cells depend on.
    """
    chosen = config.model_dump(mode="json", include={"min_tissue", "map", "views"})
    limits = [model.limit for model in models]
    told = {"limits": limits} if any(limit is not None for limit in limits) else {}
    return {**chosen, **places, **told, "provider": models[0].provider, "models": [model.sha256 for model in models]}


def threshold_of(models: Sequence[ModelFile], config: PredictConfig) -> float:
    """Return the probability from which a cell is tumour: the user's, or the mean of the models' own."""
    own = float(np.mean([model.card.threshold for model in models]))
    return own if config.threshold is None else config.threshold


@dataclass(frozen=True)
class _Alone:
    """The only slide of a feed."""

    askings: list[Asking]


def map_slide(job: Job, models: list[ModelFile], config: PredictConfig) -> Heatmap:
    """Ask the models for the map of one slide; else as `map_of`."""
    (alone,) = Feed().run(iter([_Alone(askings_of(job, models, config))]))
    return map_of(job, alone.askings, models, config)


def askings_of(
    job: Job,
    models: list[ModelFile],
    config: PredictConfig,
    files: MapFiles | None = None,
    advance: Callable[[int, float], None] = lambda _tiles, _waited: None,
) -> list[Asking]:
    """Return what to ask the models of a slide, going on from what an interrupted run kept in its files, if any.

    `advance` is called with the number of further tiles that are done and the seconds spent waiting for them.
    """
    facts = {"slide": job.slide.facts.fingerprint, "mpp": job.slide.mpp, "reading": _READING}
    askings = []
    for number, (plan, model) in enumerate(zip(job.plans, models, strict=True)):
        key = key_of({**settings_of([model], config, job.places), **facts, "windows": plan.mark})
        known = files.load_unfinished(key) if files is not None and not config.write_features else None
        known = job.sums[number] if job.sums else known
        count = len(model.card.given)
        sums = (
            replace(known, classes=count)
            if known
            else Sums.empty(plan.grid.shape, with_distances=model.limit is not None, classes=count)
        )
        after = _keeper(files, key, advance, keeps_end=len(models) > 1)
        asked = WithFeatures(model) if config.write_features else model
        askings.append(Asking(job.slide, plan, asked, sums, after))
    return askings


def _keeper(
    files: MapFiles | None, key: str, advance: Callable[[int, float], None], *, keeps_end: bool
) -> Callable[[Asking, int, float], None]:
    """Return what to do after every batch: count it, and now and then (and at the end?) keep what is known."""
    saved = time.monotonic()

    def after(asking: Asking, tiles: int, waited: float) -> None:
        nonlocal saved
        advance(tiles, waited)
        is_end = keeps_end and asking.sums.done == len(asking.plan.windows)
        if files is not None and (is_end or time.monotonic() - saved > SAVE_EVERY_S):
            files.save_unfinished(asking.sums, key)
            saved = time.monotonic()

    return after


def map_of(job: Job, askings: Sequence[Asking], models: list[ModelFile], config: PredictConfig) -> Heatmap:
    """Return the map of a slide that all models were asked about, that of several on the finest of their grids.

    Raises:
        SlideError: More than `config.max_bad_tiles` of the tissue cannot be read.
        WsisegError: The slide's disk did not answer, or a model could not compute it.
    """
    for asking in askings:
        if asking.failure is not None:
            raise asking.failure
    heatmap = combined([_member(job, asking, model, config) for asking, model in zip(askings, models, strict=True)])
    facts = {**heatmap.run, **settings_of(models, config, job.places)}
    return replace(heatmap, run=facts, threshold=threshold_of(models, config))


def _member(job: Job, asking: Asking, model: ModelFile, config: PredictConfig) -> Heatmap:
    """Return the map of one model."""
    plan, found = asking.plan, asking.sums.answer(asking.plan)
    wanted = int(plan.wanted.sum())
    rows, columns = plan.grid.shape
    probabilities = np.moveaxis(found.probabilities.reshape(rows, columns, -1), -1, 0)
    bad = wanted - int((~np.isnan(probabilities[0])).sum())
    if bad > config.max_bad_tiles * wanted:
        text = f"{job.row.path.name}: {bad} of {wanted} tissue cells cannot be read"
        raise SlideError(text, "get the slide again, or allow more with max-bad-tiles in the --config file")
    facts = {
        "kind": kind(model, config),
        "tiles": wanted,
        "bad_tiles": bad,
        "tissue_mm2": round(job.tissue.area_mm2, 6),
    }
    is_far = np.False_ if model.limit is None or found.distances is None else found.distances > model.limit
    (name, _), *others = model.card.given.items()
    heatmap = Heatmap(
        probabilities=probabilities[0],
        positive_class=name,
        unknown=np.asarray(is_far),
        cell_um=plan.grid.stride_um,
        slide=job.slide.facts,
        threshold=threshold_of([model], config),
        model=model.provenance,
        run={**settings_of([model], config, job.places), **facts},
        version=__version__,
    )
    return heatmap.with_others(dict(others), list(probabilities[1:]))


def combined(members: Sequence[Heatmap]) -> Heatmap:
    """Average the maps of several models of one slide on the finest of their grids; one alone stays as it is.

    A cell is NaN where any model did not look, and unknown where any does not know it. `disagreement` is the standard
    deviation between the models themselves, divided by their number, in 0..0.5.
    """
    finest = min(members, key=lambda member: member.cell_um)
    if len(members) == 1:
        return finest
    alike = [member.resample(finest.cell_um) for member in members]
    values = np.stack([member.probabilities for member in alike])
    models = [member.model for member in members]
    return replace(
        finest,
        probabilities=values.mean(0),
        unknown=np.any([member.unknown for member in alike], 0),
        disagreement=values.std(0, dtype=np.float64).astype(np.float32),
        model={
            "name": " + ".join(str(model["name"]) for model in models),
            "mpp": finest.model["mpp"],
            "sha256": key_of({"models": [model["sha256"] for model in models]}),
            "models": models,
        },
    )
