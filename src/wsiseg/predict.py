"""Map tumour on slides."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.cohort import Cohort, CohortSlide
from wsiseg.config import PredictConfig
from wsiseg.errors import NotASlideError, SlideError, UsageError, WsisegError
from wsiseg.heatmap import Heatmap
from wsiseg.inference import Plan, Sums, plan_tiles, plan_windows, run
from wsiseg.map_files import MapFiles, key_of
from wsiseg.model_file import ModelFile, default_model_path
from wsiseg.run import Failure, Progress, Run, RunFile, Silent, SlideRecord, now
from wsiseg.slide import Slide
from wsiseg.tissue import TissueMask, find_tissue

_ALL_EQUAL = 0.995
_SAVE_EVERY_S = 30.0


def predict(slide: Path | str, model: Path | str = "default", **settings: Any) -> Heatmap:  # noqa: ANN401  the fields of PredictConfig
    """Map tumour on one slide.

    Args:
        slide: The slide.
        model: A model file; `default` is the bundled one.
        **settings: Further fields of `PredictConfig`, as `slide_mpp` or `map`.

    Returns:
        The tumour map. Nothing is written.

    Raises:
        SlideError: The slide cannot be read.
        ModelFileError: The model file is invalid.
        UsageError: A setting does not fit.
    """
    config = PredictConfig.checked(inputs=(str(slide),), model=(str(model),), **settings)
    with _models(config) as models, Slide(slide, mpp=config.slide_mpp) as opened:
        tissue, _ = _tissue(opened, config)
        job = _Job(CohortSlide(Path(slide).stem, Path(slide)), opened, tissue, models, config)
        return _mean([_mapped(job, model, lambda _sums, _windows: None, None) for model in models])


def predict_slides(config: PredictConfig, progress: Progress | None = None) -> Run:
    """Write a tumour map, outlines and a picture for every slide.

    Args:
        config: What to do.
        progress: Who watches.

    Returns:
        What became of every slide. One that fails does not stop the others.

    Raises:
        UsageError: The inputs name nothing, or a model or the cohort is wrong.
        ModelFileError: A model file is invalid.
        DeviceError: The device is not available.
        OutputError: Nothing can be written to `config.out`.
    """
    progress = progress or Silent()
    cohort = Cohort.from_inputs(config.inputs, sys.stdin if "-" in config.inputs else ())
    with _models(config) as models:
        for line in _introduction(models):
            progress.note(line)
        progress.begin(len(cohort.slides))
        with RunFile(config.out / "run.json", _run(config, models)) as file:
            for slide in cohort.slides:
                record = _predict_or_say_why(slide, models, config, progress)
                file.add(record)
                progress.done(record)
            return file.finish()


def _introduction(models: list[ModelFile]) -> Iterator[str]:
    for model in models:
        yield f"model {model.card.name} {model.card.version} on {model.provider}: {model.card.intended_use}"
        yield from (f"warning: {warning}" for warning in model.warnings)


def _run(config: PredictConfig, models: list[ModelFile]) -> Run:
    from wsiseg import __version__  # noqa: PLC0415  the package imports this module

    return Run(
        command="predict",
        version=__version__,
        started=now(),
        model=models[0].provenance if len(models) == 1 else {"models": [model.provenance for model in models]},
        device={"requested": config.device, "provider": models[0].provider},
        settings=config.model_dump(mode="json", exclude={"inputs", "out", "overwrite"}),
    )


@contextmanager
def _models(config: PredictConfig) -> Iterator[list[ModelFile]]:
    """Open the model files, so that a bad one stops the run before any slide is touched."""
    with ExitStack() as stack:
        paths = [default_model_path() if name == "default" else Path(name) for name in config.model]
        models = [stack.enter_context(ModelFile.open(path, config.device)) for path in paths]
        for model in models:
            if config.map == "dense" and model.card.output_stride is None:
                raise UsageError(f"{model.path}: this model gives no dense map", "use --map tile")
        yield models


def _predict_or_say_why(
    slide: CohortSlide,
    models: list[ModelFile],
    config: PredictConfig,
    progress: Progress,
) -> SlideRecord:
    began = time.monotonic()
    try:
        record = _predict_slide(slide, models, config, progress)
    except NotASlideError as error:
        record = SlideRecord(slide=slide.slide, path=str(slide.path), status="skipped", error=Failure.of(error))
    except WsisegError as error:
        record = SlideRecord(slide=slide.slide, path=str(slide.path), status="failed", error=Failure.of(error))
    return record.model_copy(update={"seconds": round(time.monotonic() - began, 3)})


@dataclass(frozen=True)
class _Job:
    """One slide, open, with all that its map depends on."""

    row: CohortSlide
    slide: Slide
    tissue: TissueMask
    models: list[ModelFile]
    config: PredictConfig

    def kind(self, model: ModelFile) -> str:
        """Whether a model maps densely or by tiles."""
        return model.card.map if self.config.map == "auto" else self.config.map

    def plan(self, model: ModelFile) -> Plan:
        """What to read and ask."""
        how = plan_windows if self.kind(model) == "dense" else plan_tiles
        return how(self.slide, self.tissue, model, self.config.min_tissue)


def _settings(models: list[ModelFile], config: PredictConfig) -> dict[str, Any]:
    """Give what the probabilities depend on besides the slide."""
    chosen = config.model_dump(mode="json", include={"tissue", "min_tissue", "map"})
    return {**chosen, "provider": models[0].provider, "models": [model.sha256 for model in models]}


def _predict_slide(
    row: CohortSlide,
    models: list[ModelFile],
    config: PredictConfig,
    progress: Progress,
) -> SlideRecord:
    files = MapFiles(config.out, row.slide, config.csv, config.ngff)
    with Slide(row.path, mpp=row.mpp or config.slide_mpp) as slide:
        before = None if config.overwrite else files.open()
        if before is not None and _is_same(before, slide, models, config) and files.are_there:
            return _record(row, before, files, "up_to_date")
        tissue, thumbnail = _tissue(slide, config)
        job = _Job(row, slide, tissue, models, config)
        heatmap = _mean([_mapped(job, model, _keeper(files, job, model, progress), files) for model in models])
        _refuse_bad(heatmap, config, row)
        doubts = _doubts(heatmap)
        files.write(
            heatmap,
            thumbnail,
            [f"{model.card.name} {model.card.version}: {model.card.intended_use}" for model in models],
        )
    status = "no_tissue" if not heatmap.run["tiles"] else "suspect" if doubts else "ok"
    return _record(row, heatmap, files, status, (*slide.warnings, *tissue.warnings, *doubts))


def _is_same(before: Heatmap, slide: Slide, models: list[ModelFile], config: PredictConfig) -> bool:
    """Tell whether a map was made from this slide, with these models and settings."""
    threshold = _threshold(models, config)
    same_run = {name: before.run.get(name) for name in _settings(models, config)} == _settings(models, config)
    return before.slide == slide.facts and same_run and before.threshold == threshold


def _threshold(models: list[ModelFile], config: PredictConfig) -> float:
    return float(np.mean([model.card.threshold for model in models])) if config.threshold is None else config.threshold


def _tissue(slide: Slide, config: PredictConfig) -> tuple[TissueMask, NDArray[np.uint8]]:
    tissue, thumbnail = find_tissue(slide)
    if config.tissue == "none":
        return replace(tissue, mask=np.ones_like(tissue.mask), source="none"), thumbnail
    return tissue, thumbnail


def _keeper(files: MapFiles, job: _Job, model: ModelFile, progress: Progress) -> Callable[[Sums, int], None]:
    """Give what to do after every batch: count it, and now and then keep what is known."""
    saved = time.monotonic()

    def after(sums: Sums, windows: int) -> None:
        nonlocal saved
        progress.advance(job.row.slide, windows)
        if time.monotonic() - saved > _SAVE_EVERY_S:
            files.save_unfinished(sums, _key(job, model))
            saved = time.monotonic()

    return after


def _key(job: _Job, model: ModelFile) -> str:
    return key_of({**_settings([model], job.config), "slide": job.slide.facts.fingerprint, "mpp": job.slide.mpp})


def _mapped(job: _Job, model: ModelFile, after: Callable[[Sums, int], None], files: MapFiles | None) -> Heatmap:
    """Ask one model for the map of a slide, going on from what an interrupted run knew."""
    from wsiseg import __version__  # noqa: PLC0415  the package imports this module

    plan = job.plan(model)
    known = files.load_unfinished(_key(job, model)) if files is not None else None
    probabilities = run(job.slide, plan, model, known or Sums.empty(plan.grid.shape), after)
    wanted = int(plan.wanted.sum())
    bad = wanted - int((~np.isnan(probabilities)).sum())
    run_facts = {
        "tiles": wanted,
        "bad_tiles": bad,
        "kind": job.kind(model),
        "tissue_mm2": round(job.tissue.area_mm2, 6),
    }
    return Heatmap(
        probabilities=probabilities,
        cell_um=plan.grid.stride_um,
        slide=job.slide.facts,
        threshold=_threshold([model], job.config),
        model=model.provenance,
        run={**_settings(job.models, job.config), **run_facts},
        version=__version__,
    )


def _mean(heatmaps: list[Heatmap]) -> Heatmap:
    """Average heatmaps on the finest of their grids; a cell counts where all models looked."""
    finest = min(heatmaps, key=lambda heatmap: heatmap.cell_um)
    if len(heatmaps) == 1:
        return finest
    stacked = np.stack([heatmap.resample(finest.cell_um).probabilities for heatmap in heatmaps])
    model = {"name": " + ".join(str(heatmap.model["name"]) for heatmap in heatmaps), "mpp": finest.model["mpp"]}
    model["models"] = [heatmap.model for heatmap in heatmaps]
    model["sha256"] = key_of({"models": [heatmap.model["sha256"] for heatmap in heatmaps]})
    threshold = float(np.mean([heatmap.threshold for heatmap in heatmaps]))
    return replace(finest, probabilities=stacked.mean(0), model=model, threshold=threshold)


def _refuse_bad(heatmap: Heatmap, config: PredictConfig, row: CohortSlide) -> None:
    """Refuse a map too much of which could not be read.

    Raises:
        SlideError: More of it is missing than the settings allow.
    """
    tiles, bad = heatmap.run["tiles"], heatmap.run["bad_tiles"]
    if bad > config.max_bad_tiles * tiles:
        text = f"{row.path.name}: {bad} of {tiles} tissue cells cannot be read"
        raise SlideError(text, "get the slide again or raise --max-bad-tiles")


def _doubts(heatmap: Heatmap) -> tuple[str, ...]:
    """Say where a map cannot be true: one value almost everywhere."""
    values = heatmap.probabilities[heatmap.tissue]
    if values.size < 2:  # noqa: PLR2004  one cell is always equal to itself
        return ()
    _, counts = np.unique(values.round(6), return_counts=True)
    if counts.max() > _ALL_EQUAL * values.size:
        return (f"one value, {float(np.median(values)):.4f}, over {counts.max() / values.size:.1%} of the tissue",)
    return ()


def _record(
    row: CohortSlide,
    heatmap: Heatmap,
    files: MapFiles,
    status: Any,  # noqa: ANN401  pydantic checks it
    warnings: tuple[str, ...] = (),
) -> SlideRecord:
    tissue, tumor = int(heatmap.tissue.sum()), int(heatmap.tumor.sum())
    values = heatmap.probabilities[heatmap.tissue]
    numbers = {"mean_probability": float(values.mean()), "max_probability": float(values.max())} if tissue else {}
    return SlideRecord(
        slide=row.slide,
        path=str(row.path),
        status=status,
        outputs={kind: str(path) for kind, path in files.outputs.items()},
        mpp=heatmap.slide.mpp,
        mpp_source=heatmap.slide.mpp_source,
        tissue_mm2=round(tissue * heatmap.cell_mm2, 6),
        tumor_mm2=round(tumor * heatmap.cell_mm2, 6),
        tumor_share=round(tumor / tissue, 6) if tissue else None,
        tiles=heatmap.run["tiles"],
        bad_tiles=heatmap.run["bad_tiles"],
        warnings=warnings,
        **{name: round(value, 6) for name, value in numbers.items()},
    )
