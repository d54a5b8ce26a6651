"""Map tumour on slides."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.model_file import ModelFile, model_path
from wsiseg.prediction.map_files import MapFiles, write_overviews
from wsiseg.prediction.mapping import kind, map_slide, prepare
from wsiseg.prediction.merging import merge
from wsiseg.prediction.pipeline import planned, records
from wsiseg.prediction.places import Places
from wsiseg.prediction.processes import in_processes
from wsiseg.prediction.stored import check_models
from wsiseg.prediction.unchanged import Setting
from wsiseg.run.cluster import READING, on_cluster
from wsiseg.run.errors import ModelFileError, UsageError, counted
from wsiseg.run.pace import spoken
from wsiseg.run.record import Progress, Run, RunFile, SlideRecord, in_words, now, slides_of, totals
from wsiseg.run.version import __version__
from wsiseg.slides.cache import Cache
from wsiseg.slides.cohort import Cohort, CohortSlide, in_shard
from wsiseg.slides.dicom import ADDRESS
from wsiseg.slides.slide import Slide

_TOGETHER = 4  # slides that a worker of a cluster has at once, so that one is opened while another is computed
_NO_PART = {"inputs", "out", "overwrite", "dry_run", "merge", "cache", "cache_gb"}  # of what maps depend on


def predict(slide: Path | str, model: Path | str = "default", **settings: Any) -> Heatmap:  # noqa: ANN401  the fields of PredictConfig
    """Map tumour on one slide.

    Args:
        slide: The slide file.
        model: A model file; `default` comes with wsiseg.
        **settings: Other settings of `wsiseg predict`, such as `slide_mpp` or `map`.

    Returns:
        The tumour map. Nothing is written.

    Raises:
        SlideError: The slide cannot be read.
        StalledError: The slide's disk or network does not answer.
        ModelFileError: The model file is invalid.
        UsageError: A setting does not fit.
    """
    config = PredictConfig.checked(inputs=(str(slide),), model=(str(model),), **settings)
    with (
        opened_models(config) as models,
        Slide(slide, mpp=config.slide_mpp, longest_read_s=config.read_timeout) as opened,
    ):
        row = CohortSlide(Path(slide).stem, Path(slide))
        places = Places.of(config.tissue, config.roi, config.exclude, [row.slide], config.features)
        return map_slide(prepare(row, opened, models, config, places), models, config)


def predict_slides(config: PredictConfig, progress: Progress | None = None) -> Run:
    """Write a tumour map, outlines and a picture for every slide, or join what such runs wrote.

    Returns:
        What became of every slide, or would in a dry run. One that fails does not stop the others.

    Raises:
        UsageError: The inputs name nothing, or a model or the cohort is wrong.
        ModelFileError: A model file is invalid.
        DeviceError: The device is not available.
        OutputError: Nothing can be written to `config.out`.
    """
    progress = progress or Progress()
    if config.merge:
        return merge(config, progress)
    with Cache(*config.cache_place) as cache:
        return _predict(config, cache, progress)


def _predict(config: PredictConfig, cache: Cache, progress: Progress) -> Run:
    cohort = Cohort.from_inputs(_fetched(config, cache, progress), sys.stdin if "-" in config.inputs else ())
    rows = [row.in_cache(cache.folder) for row in cohort.slides if in_shard(row.slide, config.shard)]
    if any(row.address for row in rows):
        from wsiseg.slides.remote import check  # noqa: PLC0415  loads the HTTP client

        check(rows)
    names = [row.slide for row in cohort.slides if not row.skipped]
    places = Places.of(config.tissue, config.roi, config.exclude, names, config.features)
    with opened_models(config) as models:
        for line in _introduction(models):
            progress.note(line)
        for model in models:
            progress.detail(_particulars(model, config))
        setting = Setting(places, models, config, progress, _earlier(config.out))
        if config.dry_run:
            return _dry_run(rows, setting)
        progress.begin(len(rows))
        with RunFile(config.out / config.run_name, _run(config, models)) as file:
            try:
                for record in _records(rows, setting):
                    if record.status == "up_to_date":  # what lies there now must not pass for what was written
                        was = setting.earlier.get(record.slide, record).written
                        hashes = was or MapFiles.of(config, record.slide).written()
                        record = record.model_copy(update={"written": hashes})  # noqa: PLW2901  the same slide
                    file.add(record)
                    progress.done(record)
                return file.finish()
            finally:
                write_overviews(file, config.out, config.run_name, config.report)


def _earlier(folder: Path) -> dict[str, SlideRecord]:
    """Return what earlier runs recorded of each slide."""
    with suppress(OSError, ValueError):
        return {record.slide: record for record in slides_of(folder)}
    return {}


def _fetched(config: PredictConfig, cache: Cache, progress: Progress) -> list[str]:
    """Return the inputs, with a file of the slide in place of the address of a series."""
    addresses = [one for one in config.inputs if one.startswith(ADDRESS)]
    if not addresses:
        return list(config.inputs)
    from wsiseg.slides.dicomweb import fetch_series  # noqa: PLC0415  loads the HTTP client

    files = iter(fetch_series(addresses, cache, progress))
    return [str(next(files)) if one.startswith(ADDRESS) else one for one in config.inputs]


def _dry_run(rows: list[CohortSlide], setting: Setting) -> Run:
    """Return what a run would do."""
    slides = tuple(planned(rows, setting))
    run = _run(setting.config, setting.models).model_copy(update={"slides": slides, "totals": totals(slides)})
    open_ones = [record for record in slides if record.status == "planned"]
    tiles, seconds = sum(one.tiles for one in open_ones), sum(one.seconds for one in open_ones)
    told = f"{counted(len(open_ones), 'slide')} to do, {counted(tiles, 'tile')}: about {spoken(seconds)} of computing"
    setting.progress.note(f"{told} on {setting.models[0].provider}, by the speed with made tiles; nothing was written")
    return run


def _records(rows: list[CohortSlide], setting: Setting) -> Iterator[SlideRecord]:
    """Return what is recorded of slides that are up to date for sure, and map the others."""
    others = []
    for row in rows:
        record = setting.unchanged(row)
        if record is None:
            others.append(row)
        else:
            yield record
    if others:
        yield from _mapped(others, replace(setting, earlier={}))


def _mapped(rows: list[CohortSlide], setting: Setting) -> Iterator[SlideRecord]:
    """Map slides in this process, in several of this machine, or on a cluster."""
    places, models, config, progress = setting.places, setting.models, setting.config, setting.progress
    if config.dask is None and len(config.devices) == 1:
        return records(rows, setting)
    hashes = tuple(model.sha256 for model in models)
    opened = zip(config.model, models, strict=True)  # of a folder all processes take the same file
    names = tuple(str(model.path) if Path(name).is_dir() else name for name, model in opened)
    config = config.model_copy(update={"model": names})
    work = partial(_in_process, places=places, config=config, hashes=hashes)
    if config.dask is not None:
        step = partial(work, progress=Progress(), device=config.device)
        return on_cluster(config.dask, step, rows, (*READING, "onnxruntime"), _TOGETHER)
    devices = [models[0].device if name == "auto" else name for name in config.devices]
    for model in models:
        model.close()  # each process opens them itself
    return in_processes(devices, work, rows, progress)


def _in_process(
    rows: Sequence[CohortSlide],
    progress: Progress,
    device: str,
    places: Places,
    config: PredictConfig,
    hashes: tuple[str, ...],
) -> Iterator[SlideRecord]:
    """Map slides in a process that shares them with others."""
    return records(rows, Setting(places, _models_of_worker(config.model, device, hashes), config, progress))


@lru_cache(maxsize=1)
def _models_of_worker(names: tuple[str, ...], device: str, hashes: tuple[str, ...]) -> list[ModelFile]:
    """Open the model files once in a process; they stay open until other files of these names are asked for."""
    models = _open_models(names, device, ExitStack())
    for model, sha256 in zip(models, hashes, strict=True):
        if model.sha256 != sha256:
            theirs, ours = model.sha256[:12], sha256[:12]
            text = f"{model.path}: the worker has another file of this name (sha256 {theirs}, not {ours})"
            raise ModelFileError(text, "copy the model file to every worker, or put it where all of them see it")
    return models


def _introduction(models: list[ModelFile]) -> Iterator[str]:
    for model in models:
        yield f"model {model.card.name} {model.card.version} on {model.provider}: {model.card.intended_use}"
        yield from (f"warning: {warning}" for warning in model.warnings)


def _particulars(model: ModelFile, config: PredictConfig) -> str:
    """Say what a person who looks for the cause of something wants to know of a model."""
    card = model.card
    chosen = "as the model file says" if config.map == "auto" else "as --map says"
    return (
        f"{model.path}: sha256 {model.sha256[:12]}, {card.precision}, {model.provider} ({model.reason}), "
        f"{kind(model, config)} maps ({chosen}), tiles of {card.tile_px} px at {card.mpp:g} um/px"
    )


def _run(config: PredictConfig, models: list[ModelFile]) -> Run:
    return Run(
        command="predict",
        version=__version__,
        started=now(),
        model=models[0].provenance if len(models) == 1 else {"models": [model.provenance for model in models]},
        device={"requested": config.device, "provider": models[0].provider, "reason": models[0].reason},
        settings=config.model_dump(mode="json", exclude=_NO_PART),
    )


@contextmanager
def opened_models(config: PredictConfig) -> Iterator[list[ModelFile]]:
    """Open the model files, so that a bad one stops the run before any slide is touched."""
    with ExitStack() as stack:
        models = _open_models(config.model, config.devices[0], stack)
        check_models(models, have_features=config.features is not None)
        for model in models:
            if config.map == "dense" and model.card.output_stride is None:
                raise UsageError(f"{model.path}: this model gives no dense map", "use --map tile")
        _check_classes(models, config)
        yield models


def _check_classes(models: Sequence[ModelFile], config: PredictConfig) -> None:
    """Refuse models that cannot be averaged as they give other classes, and a threshold for several classes."""
    first, *others = models
    for model in others:
        classes = [[in_words(name).casefold() for name in one.card.given] for one in (first, model)]
        if classes[0] != classes[1] or len(classes[0]) > 1:
            listed = " and ".join(", ".join(one.card.given) for one in (first, model))
            raise UsageError(f"{model.path}: cannot be averaged with {first.path}: {listed}", "map with each alone")
    if config.threshold is not None and first.card.thresholds:
        raise UsageError(f"{first.path}: has a threshold for each of its classes", "leave out --threshold")


def _open_models(names: Sequence[str], device: str, stack: ExitStack) -> list[ModelFile]:
    paths = [model_path(name) for name in names]
    return [stack.enter_context(ModelFile.open(path, device)) for path in paths]
