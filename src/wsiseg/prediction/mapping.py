"""One slide from opening to its tumour map: find the tissue, ask every model, combine what they say."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.cohort import CohortSlide
from wsiseg.config import PredictConfig
from wsiseg.errors import SlideError
from wsiseg.heatmap import Heatmap
from wsiseg.model_file import ModelFile
from wsiseg.prediction.inference import Plan, Sums, plan_tiles, plan_windows, run
from wsiseg.prediction.map_files import MapFiles, key_of
from wsiseg.reading.pyramid import level_for
from wsiseg.slide import Slide
from wsiseg.tiling.tissue_choice import TissueChoice
from wsiseg.tissue import TissueMask

SAVE_EVERY_S = 30.0
"""How often what is known of an unfinished slide is kept."""

_ALL_EQUAL = 0.995
_COARSER = 1.5
_PICTURE_PX = 1200  # longer side of the picture of a small slide
_MOST_PICTURE_PX = 64_000_000  # of the level that it is read from


@dataclass(frozen=True)
class Job:
    """One open slide with all that its map depends on.

    Attributes:
        row: Its row in the cohort.
        slide: The open slide.
        tissue: Where it holds tissue.
        thumbnail: uint8[rows, columns, 3], the whole slide.
        plans: What to read and ask, one plan a model.
        settings: What the probabilities depend on besides the slide.
    """

    row: CohortSlide
    slide: Slide
    tissue: TissueMask
    thumbnail: NDArray[np.uint8]
    plans: tuple[Plan, ...]
    settings: dict[str, Any]

    @property
    def windows(self) -> int:
        """How many windows will be asked about."""
        return sum(len(plan.windows) for plan in self.plans)


def prepare(
    row: CohortSlide,
    slide: Slide,
    models: list[ModelFile],
    config: PredictConfig,
    choice: TissueChoice,
) -> Job:
    """Find the tissue of an open slide and plan what to ask each model."""
    tissue, thumbnail = choice.find(row.slide, slide, most_unreadable=config.max_bad_tiles)
    plans = tuple(_plan(slide, tissue, model, config) for model in models)
    return Job(row, slide, tissue, thumbnail, plans, settings_of(models, config, choice.settings(row.slide)))


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


def kind(model: ModelFile, config: PredictConfig) -> str:
    """Tell whether a model maps densely or by tiles."""
    return model.card.map if config.map == "auto" else config.map


def _plan(slide: Slide, tissue: TissueMask, model: ModelFile, config: PredictConfig) -> Plan:
    if kind(model, config) == "dense":
        return plan_windows(slide, tissue, model, config.min_tissue)
    return plan_tiles(slide, tissue, model, config.min_tissue, config.stride)


def settings_of(models: list[ModelFile], config: PredictConfig, tissue: str) -> dict[str, Any]:
    """Give what the probabilities depend on besides the slide; `tissue` is what its tissue depends on."""
    chosen = config.model_dump(mode="json", include={"min_tissue", "map", "stride"})
    return {**chosen, "tissue": tissue, "provider": models[0].provider, "models": [model.sha256 for model in models]}


def threshold_of(models: list[ModelFile], config: PredictConfig) -> float:
    """Give the probability from which a cell is tumour: the user's, or the mean of the models' own."""
    return float(np.mean([model.card.threshold for model in models])) if config.threshold is None else config.threshold


def map_slide(
    job: Job,
    models: list[ModelFile],
    config: PredictConfig,
    files: MapFiles | None = None,
    advance: Callable[[int], None] = lambda _windows: None,
) -> Heatmap:
    """Ask the models for the map of a slide.

    Args:
        job: The slide, prepared.
        models: What to ask.
        config: How.
        files: Where what is known of an unfinished slide is kept; nothing is kept where it is None.
        advance: Called with the number of further windows that are done.

    Returns:
        The map; several models are averaged on the finest of their grids.

    Raises:
        SlideError: More than `config.max_bad_tiles` of the tissue cannot be read.
    """
    maps = [_ask(job, plan, model, config, files, advance) for plan, model in zip(job.plans, models, strict=True)]
    heatmap = _mean(maps)
    tiles, bad = heatmap.run["tiles"], heatmap.run["bad_tiles"]
    if bad > config.max_bad_tiles * tiles:
        text = f"{job.row.path.name}: {bad} of {tiles} tissue cells cannot be read"
        raise SlideError(text, "get the slide again or raise --max-bad-tiles")
    return replace(heatmap, run={**job.settings, **heatmap.run}, threshold=threshold_of(models, config))


def _ask(
    job: Job,
    plan: Plan,
    model: ModelFile,
    config: PredictConfig,
    files: MapFiles | None,
    advance: Callable[[int], None],
) -> Heatmap:
    """Ask one model, going on from what an interrupted run knew."""
    from wsiseg import __version__  # noqa: PLC0415  the package imports this module

    key = key_of({**job.settings, "models": model.sha256, "slide": job.slide.facts.fingerprint, "mpp": job.slide.mpp})
    known = files.load_unfinished(key) if files is not None else None
    sums = known or Sums.empty(plan.grid.shape)
    probabilities = run(job.slide, plan, model, sums, _keeper(files, key, advance))
    wanted = int(plan.wanted.sum())
    return Heatmap(
        probabilities=probabilities,
        cell_um=plan.grid.stride_um,
        slide=job.slide.facts,
        model=model.provenance,
        run={
            "kind": kind(model, config),
            "tiles": wanted,
            "bad_tiles": wanted - int((~np.isnan(probabilities)).sum()),
            "tissue_mm2": round(job.tissue.area_mm2, 6),
        },
        version=__version__,
    )


def _keeper(files: MapFiles | None, key: str, advance: Callable[[int], None]) -> Callable[[Sums, int], None]:
    """Give what to do after every batch: count it, and now and then keep what is known."""
    saved = time.monotonic()

    def after(sums: Sums, windows: int) -> None:
        nonlocal saved
        advance(windows)
        if files is not None and time.monotonic() - saved > SAVE_EVERY_S:
            files.save_unfinished(sums, key)
            saved = time.monotonic()

    return after


def _mean(heatmaps: list[Heatmap]) -> Heatmap:
    """Average heatmaps on the finest of their grids; a cell counts where all models looked."""
    finest = min(heatmaps, key=lambda heatmap: heatmap.cell_um)
    if len(heatmaps) == 1:
        return finest
    stacked = np.stack([heatmap.resample(finest.cell_um).probabilities for heatmap in heatmaps])
    model = {
        "name": " + ".join(str(heatmap.model["name"]) for heatmap in heatmaps),
        "mpp": finest.model["mpp"],
        "sha256": key_of({"models": [heatmap.model["sha256"] for heatmap in heatmaps]}),
        "models": [heatmap.model for heatmap in heatmaps],
    }
    return replace(finest, probabilities=stacked.mean(0), model=model)


def warnings_of(job: Job, heatmap: Heatmap, models: list[ModelFile]) -> tuple[str, ...]:
    """Say what a person should know before trusting a map."""
    asked = min(model.card.mpp for model in models)
    coarser = job.slide.upsampling(asked)
    pixels = f"its pixels of {max(job.slide.mpp):g} um are {coarser:.1f} times coarser than the model's {asked:g} um"
    return (
        *job.slide.warnings,
        *job.tissue.warnings,
        *((pixels,) if coarser > _COARSER else ()),
        *doubts(heatmap),
    )


def doubts(heatmap: Heatmap) -> tuple[str, ...]:
    """Say where a map cannot be true: one value almost everywhere."""
    values = heatmap.probabilities[heatmap.tissue]
    if values.size < 2:  # noqa: PLR2004  one cell is always equal to itself
        return ()
    _, counts = np.unique(values.round(6), return_counts=True)
    if counts.max() <= _ALL_EQUAL * values.size:
        return ()
    return (f"one value, {float(np.median(values)):.4f}, over {counts.max() / values.size:.1%} of the tissue",)
