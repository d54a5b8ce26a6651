"""Verify a run: that its files and its record are what was written, of the same model and slides, and say the same."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.config.doctor import DoctorConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.model_file import ModelFile, model_path
from wsiseg.prediction.inference import complete
from wsiseg.prediction.map_files import MapFiles, what_changed
from wsiseg.prediction.mapping import map_slide, prepare, settings_of
from wsiseg.prediction.places import Places
from wsiseg.prediction.predict import opened_models
from wsiseg.prediction.windows import Plan
from wsiseg.run.errors import WsisegError, counted
from wsiseg.run.proof import SEAL, Findings, Written, differences, sealed, signer
from wsiseg.run.record import Progress, Run, SlideRecord, run_files
from wsiseg.slides.cohort import CohortSlide
from wsiseg.slides.slide import Slide

_HEATMAP = ".ome.zarr"
_ANY_MPP = 1.0  # the pixel size does not count where a slide is compared with what it was
_MAPPED = ("ok", "suspect", "no_tissue", "up_to_date")


@dataclass
class _Verdict:
    """What is proven, what is not, and what differs."""

    facts: dict[str, Any] = field(default_factory=dict)
    unproven: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def is_of_run(path: Path | None) -> bool:
    """Tell whether a path is the folder of a run, or a heatmap."""
    return path is not None and path.is_dir() and (path.name.endswith(_HEATMAP) or bool(run_files(path)))


def verify(config: DoctorConfig, progress: Progress | None = None) -> Findings:
    """Verify the run in the folder `config.slide`, or one heatmap of it.

    Returns:
        What is as it was, and under `not proven` what nobody can tell here, and why; what differs are the problems.
    """
    path, verdict = config.slide or Path(), _Verdict()
    name = path.resolve().name if path.name.endswith(_HEATMAP) else None
    folder = path.resolve().parent if name else path
    runs = [run for file in run_files(folder) for run in _read(file, verdict)]
    if config.signed_by is not None:
        signers = [who for file in run_files(folder) for who in _signed(file, config.signed_by, verdict)]
        verdict.facts["signed by"] = ", ".join(sorted({*signers})) or "nobody"
    latest = {record.slide: (record, run) for run in sorted(runs, key=lambda run: run.started) for record in run.slides}
    mapped = [(record, run) for record, run in latest.values() if record.status in _MAPPED and run.command == "predict"]
    mapped = [one for one in mapped if name in (None, f"{one[0].slide}{_HEATMAP}")]
    _verify_files(folder, runs, [record for record, _ in mapped], name, verdict)
    models = [one for run in runs for one in _verify_models(run, config.model, verdict)]
    if models:
        verdict.facts["models"] = f"{len(set(models))} as recorded"
    slides = {record.slide: _verify_slide(record, config.slides, verdict) for record, _ in mapped}
    if mapped:
        same = sum(there is not None for there in slides.values())
        verdict.facts["slides"] = f"{same} of {len(slides)} as recorded: their size, metadata and coarsest level"
    if config.sample:
        known = [(record, run, there) for record, run in mapped if (there := slides[record.slide])]
        _ask_again(folder, known, config, verdict, progress or Progress())
    elif mapped:
        verdict.unproven.append("probabilities, and pixels of finer levels of slides: ask again with --sample N")
    facts = {"folder": str(path), **verdict.facts, "not proven": verdict.unproven}
    return Findings({"run": facts}, tuple(dict.fromkeys(verdict.problems)))


def _read(path: Path, verdict: _Verdict) -> Iterator[Run]:
    """Read the record of a run, if it can be read, and compare it with its own hash."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        run = Run.model_validate(raw)
    except (OSError, ValueError) as error:
        verdict.problems.append(f"{path.name}: cannot be read as the record of a run: {str(error).splitlines()[0]}")
        return
    has_hashes = run.written or any(record.written for record in run.slides)
    if (SEAL in raw or has_hashes) and sealed(raw).get(SEAL) != raw.get(SEAL):
        verdict.problems.append(f"{path.name}: its content is not what was written ({SEAL})")
    if not has_hashes:
        made = f"{run.command} of wsiseg {run.version or 'of an earlier version'}"
        verdict.unproven.append(f"{path.name}: no hashes recorded, by {made}")
    yield run


def _signed(path: Path, allowed: Path, verdict: _Verdict) -> Iterator[str]:
    """Yield who signed a record."""
    try:
        yield signer(path, allowed)
    except ValueError as error:
        verdict.problems.append(str(error))


def _verify_files(
    folder: Path, runs: Sequence[Run], records: Sequence[SlideRecord], name: str | None, verdict: _Verdict
) -> None:
    """Compare files with their hashes: those of slides, and if no `name` is given, those of whole runs."""
    known: dict[str, Written] = {}
    for record in records:
        known |= {one: was for one, was in record.written.items() if name in (None, one)}
        if not record.written:
            verdict.unproven.append(f"{record.slide}: no hashes recorded")
    found = list(differences(folder, known))
    overviews = [] if name else [run.written for run in runs]
    names = dict.fromkeys(one for written in overviews for one in written)
    for one in names:  # the table of all shards is that of the shard that wrote it last
        said = [list(differences(folder, {one: written[one]})) for written in overviews if one in written]
        found += [] if [] in said else said[-1]
    verdict.problems += found
    if name is not None and not known:
        verdict.unproven.append(f"{name}: no hashes recorded")
    verdict.facts["files"] = f"{len(known) + len(names) - len(found)} of {len(known) + len(names)} as recorded"


def _verify_models(run: Run, given: str | None, verdict: _Verdict) -> Iterator[str]:
    """Compare the model files of a run with their hashes; yield those that are the same."""
    recorded = (run.model or {}).get("models") or ([run.model] if run.model else [])
    names = run.settings.get("model") or [given or ""] * len(recorded)
    for model, name in zip(recorded, names, strict=False):
        path = model_path(given or name)
        path = path / str(model.get("file")) if path.is_dir() else path
        try:
            now = Written.of(path).sha256
        except OSError:
            verdict.unproven.append(f"{path}: the model file is not there; name it with --model")
            continue
        if now == model.get("sha256"):
            yield now
        else:
            text = f"{path}: is not the model of this run (sha256 {now[:12]}, not {str(model.get('sha256'))[:12]})"
            verdict.problems.append(text)


def _verify_slide(record: SlideRecord, folder: Path | None, verdict: _Verdict) -> Path | None:
    """Compare a slide with what is recorded of it; return where it lies if nothing differs."""
    path = Path(record.path) if folder is None else folder / Path(record.path).name
    known = getattr(record, "fingerprint", None)
    if not path.exists() or known is None:
        reason = "nothing is recorded of its slide" if path.exists() else f"{path} is not there; see --slides"
        verdict.unproven.append(f"{record.slide}: {reason}")
        return None
    try:
        with Slide(path, mpp=_ANY_MPP) as slide:
            if slide.fingerprint == known:
                return path
            verdict.problems.append(f"{path}: is not the slide of this run (fingerprint {slide.fingerprint})")
    except WsisegError as error:
        verdict.problems.append(f"{path}: is not the slide of this run: {error.message}")
    return None


def _ask_again(
    folder: Path, known: Sequence[tuple[SlideRecord, Run, Path]], config: DoctorConfig, verdict: _Verdict,
    progress: Progress,
) -> None:  # fmt: skip
    """Ask the models of runs about a sample of every slide again."""
    worst, cells = 0.0, 0
    progress.begin(len(known))
    for run in {id(run): run for _, run, _ in known}.values():
        try:
            settings = _settings(folder, run, config)
            with opened_models(settings) as models:
                names = [record.slide for record in run.slides]
                places = Places.of(settings.tissue, settings.roi, settings.exclude, names, settings.features)
                for record, path in ((record, path) for record, its, path in known if its is run):
                    off, count = _sampled(record, path, settings, models, places, config.sample, verdict)
                    worst, cells = max(worst, off), cells + count
                    progress.done(record)
        except WsisegError as error:
            verdict.unproven.append(f"probabilities: {error.message}")
    verdict.facts["asked again"] = f"{counted(cells, 'cell')} of maps, off by {worst:.2g} at most"


def _settings(folder: Path, run: Run, config: DoctorConfig) -> PredictConfig:
    alone = {"shard": None, "dask": None, "jobs": 1, "device": "auto", "max_bad_tiles": 1.0}
    model = {"model": (config.model,)} if config.model else {}
    return PredictConfig.checked(**{**run.settings, **alone, **model}, inputs=(str(folder),), out=folder)


def _sampled(
    record: SlideRecord, path: Path, config: PredictConfig, models: list[ModelFile], places: Places, tiles: int,
    verdict: _Verdict,
) -> tuple[float, int]:  # fmt: skip
    """Ask about some windows of a slide again: the largest difference in probability, and of how many cells."""
    if len(models) > 1:
        verdict.unproven.append(f"{record.slide}: its probabilities are of several models")
        return 0.0, 0
    known = MapFiles.of(config, record.slide).open()
    if known is None:
        return 0.0, 0  # what is wrong with it was said before
    mpp = known.slide.mpp[0] if known.slide.mpp_source == "user" else None
    row = CohortSlide(record.slide, path)
    try:
        with Slide(path, mpp=mpp, longest_read_s=config.read_timeout) as slide:
            wanted = settings_of(models, config, places.settings(row.slide))
            wanted.pop("provider")
            reason = what_changed(known, slide, wanted, known.threshold)
            if reason is not None:
                verdict.unproven.append(f"{record.slide}: its probabilities, as {reason}")
                return 0.0, 0
            job = prepare(row, slide, models, config, places)
            (plan,) = job.plans
            part = replace(plan, windows=_chosen(plan, tiles, row.slide))
            again = map_slide(replace(job, plans=(part,)), models, config)
    except WsisegError as error:
        verdict.problems.append(f"{path}: {error.message}")
        return 0.0, 0
    return _compared(known, again, plan, part, models[0].card.self_test.tolerance, verdict)


def _chosen(plan: Plan, tiles: int, slide: str) -> tuple[tuple[int, int, int, int], ...]:
    """Choose windows at random, always the same of a slide, that amount to so many tiles at least."""
    order = np.random.default_rng(list(slide.encode())).permutation(len(plan.windows))
    sums = np.cumsum([plan.tiles(slice(number, number + 1)) for number in order])
    chosen = sorted(order[: 1 + int(np.searchsorted(sums, tiles))])
    return tuple(plan.windows[number] for number in chosen)


def _compared(
    known: Heatmap, again: Heatmap, plan: Plan, part: Plan, tolerance: float, verdict: _Verdict
) -> tuple[float, int]:
    is_compared = complete(plan, part) & known.tissue & again.tissue
    pairs = zip(known.by_class, again.by_class, strict=True)
    off = np.max([np.abs(one.probabilities - other.probabilities)[is_compared] for one, other in pairs], 0)
    worst = float(off.max(initial=0))
    if worst > tolerance:
        many = int((off > tolerance).sum())
        text = f"{many} of {off.size} cells differ, by {worst:.2g} at most (allowed is {tolerance:g})"
        verdict.problems.append(f"{known.slide.file}: asked again, {text}: its pixels or its heatmap changed")
    return worst, off.size
