"""Map tumour on slides."""

import csv
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg import report
from wsiseg.cohort import Cohort, CohortSlide
from wsiseg.config import PredictConfig
from wsiseg.errors import NotASlideError, SlideError, UsageError, WsisegError
from wsiseg.heatmap import Heatmap
from wsiseg.inference import SlideMap, map_densely, map_tiles
from wsiseg.model_file import ModelFile, default_model_path
from wsiseg.outputs import write_text, written_whole
from wsiseg.run import Failure, Progress, Run, RunFile, Silent, SlideRecord, now
from wsiseg.slide import Slide
from wsiseg.tissue import TissueMask, find_tissue

RESEARCH_ONLY = "For research, not for diagnosis."
_ALL_EQUAL = 0.995


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
        return _mapped(opened, models, config, lambda _tiles: None).heatmap


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
        progress.note(_introduction(models))
        progress.begin(len(cohort.slides))
        with RunFile(config.out / "run.json", _run(config, models)) as file:
            for slide in cohort.slides:
                record = _predict_or_say_why(slide, models, config, progress)
                file.add(record)
                progress.done(record)
            return file.finish()


def _introduction(models: list[ModelFile]) -> str:
    cards = [f"{model.card.name} {model.card.version} ({model.card.intended_use})" for model in models]
    return f"model {', '.join(cards)} on {models[0].provider}"


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
    slide: CohortSlide, models: list[ModelFile], config: PredictConfig, progress: Progress
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
class _Outcome:
    heatmap: Heatmap
    tissue: TissueMask
    thumbnail: Any
    tiles: int
    bad_tiles: int


def _predict_slide(
    slide: CohortSlide, models: list[ModelFile], config: PredictConfig, progress: Progress
) -> SlideRecord:
    outputs = _outputs(slide.slide, config)
    with Slide(slide.path, mpp=slide.mpp or config.slide_mpp) as opened:
        done = _up_to_date(outputs, opened, models, config)
        if done is not None:
            return _record(slide, done, outputs, "up_to_date", 0, 0, ())
        outcome = _mapped(opened, models, config, lambda tiles: progress.advance(slide.slide, tiles))
        if outcome.bad_tiles > config.max_bad_tiles * max(outcome.tiles, 1):
            text = f"{slide.path.name}: {outcome.bad_tiles} of {outcome.tiles} tissue cells cannot be read"
            raise SlideError(text, "get the slide again or raise --max-bad-tiles")
        warnings = (*opened.warnings, *outcome.tissue.warnings, *_doubts(outcome.heatmap))
        _write(slide.slide, outcome, outputs, models, config)
    status = "no_tissue" if not outcome.tiles else "suspect" if _doubts(outcome.heatmap) else "ok"
    return _record(slide, outcome.heatmap, outputs, status, outcome.tiles, outcome.bad_tiles, warnings)


def _outputs(slide: str, config: PredictConfig) -> dict[str, Path]:
    suffixes = {"zarr": ".ome.zarr", "geojson": ".geojson", "png": ".png"}
    if config.csv:
        suffixes["csv"] = ".csv"
    return {kind: config.out / f"{slide}{suffix}" for kind, suffix in suffixes.items()}


def _mapped(slide: Slide, models: list[ModelFile], config: PredictConfig, advance: Any) -> _Outcome:  # noqa: ANN401  a callback
    """Find the tissue, ask every model, and average what they say."""
    tissue, thumbnail = find_tissue(slide)
    if config.tissue == "none":
        tissue = replace(tissue, mask=np.ones_like(tissue.mask), source="none")
    maps = [_map(slide, tissue, model, config, advance) for model in models]
    heatmaps = [_heatmap(slide, result, model, config) for result, model in zip(maps, models, strict=True)]
    tiles, bad = max(result.tiles for result in maps), max(result.bad_tiles for result in maps)
    return _Outcome(_mean(heatmaps), tissue, thumbnail, tiles, bad)


def _map(slide: Slide, tissue: TissueMask, model: ModelFile, config: PredictConfig, advance: Any) -> SlideMap:  # noqa: ANN401  a callback
    how = map_densely if _kind(model, config) == "dense" else map_tiles
    return how(slide, tissue, model, config.min_tissue, advance)


def _kind(model: ModelFile, config: PredictConfig) -> str:
    return model.card.map if config.map == "auto" else config.map


def _heatmap(slide: Slide, result: SlideMap, model: ModelFile, config: PredictConfig) -> Heatmap:
    from wsiseg import __version__  # noqa: PLC0415  the package imports this module

    return Heatmap(
        probabilities=result.probabilities,
        cell_um=result.grid.stride_um,
        slide=slide.facts,
        threshold=model.card.threshold if config.threshold is None else config.threshold,
        model=model.provenance,
        run=_settings([model], config),
        version=__version__,
    )


def _settings(models: list[ModelFile], config: PredictConfig) -> dict[str, Any]:
    """Give what a map depends on besides slide and model."""
    chosen = config.model_dump(mode="json", include={"tissue", "min_tissue", "slide_mpp", "threshold", "ngff"})
    kinds = [_kind(model, config) for model in models]
    return {**chosen, "map": kinds[0], "provider": models[0].provider, "models": [model.sha256 for model in models]}


def _mean(heatmaps: list[Heatmap]) -> Heatmap:
    """Average heatmaps on the finest of their grids; a cell counts where all models looked."""
    finest = min(heatmaps, key=lambda heatmap: heatmap.cell_um)
    if len(heatmaps) == 1:
        return finest
    stacked = np.stack([heatmap.resample(finest.cell_um).probabilities for heatmap in heatmaps])
    run = {**finest.run, "models": [heatmap.model["sha256"] for heatmap in heatmaps]}
    model = {**finest.model, "models": [heatmap.model for heatmap in heatmaps]}
    threshold = float(np.mean([heatmap.threshold for heatmap in heatmaps]))
    return replace(finest, probabilities=stacked.mean(0), run=run, model=model, threshold=threshold)


def _up_to_date(
    outputs: dict[str, Path], slide: Slide, models: list[ModelFile], config: PredictConfig
) -> Heatmap | None:
    """Give the heatmap that is there, where it was made from the same slide, models and settings."""
    if config.overwrite or not all(path.exists() for path in outputs.values()):
        return None
    try:
        heatmap = Heatmap.open(outputs["zarr"])
    except WsisegError:
        return None
    same = heatmap.slide == slide.facts and heatmap.run == _settings(models, config)
    return heatmap if same else None


def _doubts(heatmap: Heatmap) -> tuple[str, ...]:
    """Say where a map cannot be true: a value that is no number, or one value almost everywhere."""
    values = heatmap.probabilities[heatmap.tissue]
    if values.size < 2:  # noqa: PLR2004  one cell is always equal to itself
        return ()
    _, counts = np.unique(values.round(6), return_counts=True)
    if counts.max() > _ALL_EQUAL * values.size:
        return (f"one value, {float(np.median(values)):.4f}, over {counts.max() / values.size:.1%} of the tissue",)
    return ()


def _write(
    name: str, outcome: _Outcome, outputs: dict[str, Path], models: list[ModelFile], config: PredictConfig
) -> None:
    heatmap = outcome.heatmap
    heatmap.save(outputs["zarr"], config.ngff)
    write_text(outputs["geojson"], json.dumps(heatmap.to_geojson(), separators=(",", ":")) + "\n")
    extent = (heatmap.slide.size_px[0] / heatmap.cell_level0[0], heatmap.slide.size_px[1] / heatmap.cell_level0[1])
    report.heatmap_picture(
        outputs["png"],
        outcome.thumbnail,
        heatmap.probabilities,
        extent,
        threshold=heatmap.threshold,
        title=f"{heatmap.slide.file}   {_summary(heatmap)}",
        notes=[f"{model.card.name} {model.card.version}: {model.card.intended_use}" for model in models]
        + [RESEARCH_ONLY],
    )
    if "csv" in outputs:
        _write_csv(outputs["csv"], heatmap)


def _summary(heatmap: Heatmap) -> str:
    tissue = int(heatmap.tissue.sum())
    if not tissue:
        return "no tissue"
    share = heatmap.tumor.sum() / tissue
    return f"{tissue * heatmap.cell_mm2:.2f} mm2 of tissue, {share:.0%} of it tumour"


def _write_csv(path: Path, heatmap: Heatmap) -> None:
    """Write the cells that were looked at as x, y, width, height in level-0 pixels and probability."""
    x, y = (edges.round().astype(int) for edges in heatmap.edges())
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["x", "y", "width", "height", "probability"])
        for row, column in np.argwhere(heatmap.tissue):
            value = f"{heatmap.probabilities[row, column]:.6f}"
            writer.writerow([x[column], y[row], x[column + 1] - x[column], y[row + 1] - y[row], value])


def _record(  # noqa: PLR0913, PLR0917  one argument for each thing to record
    slide: CohortSlide,
    heatmap: Heatmap,
    outputs: dict[str, Path],
    status: Any,  # noqa: ANN401  pydantic checks it
    tiles: int,
    bad_tiles: int,
    warnings: tuple[str, ...],
) -> SlideRecord:
    tissue, tumor = int(heatmap.tissue.sum()), int(heatmap.tumor.sum())
    return SlideRecord(
        slide=slide.slide,
        path=str(slide.path),
        status=status,
        outputs={kind: str(path) for kind, path in outputs.items()},
        mpp=heatmap.slide.mpp,
        mpp_source=heatmap.slide.mpp_source,
        tissue_mm2=round(tissue * heatmap.cell_mm2, 6),
        tumor_mm2=round(tumor * heatmap.cell_mm2, 6),
        tumor_share=round(tumor / tissue, 6) if tissue else None,
        tiles=tiles or tissue,
        bad_tiles=bad_tiles,
        warnings=warnings,
    )
