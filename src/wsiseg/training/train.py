"""Train a tile classifier from bags of tiles and one label per slide: one configuration, or the paper's fifteen."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from wsiseg.annotations.classes import Classes
from wsiseg.config.train import TrainConfig
from wsiseg.network.checkpoint import Checkpoint
from wsiseg.network.known_tissue import KnownTissue
from wsiseg.network.network import TileClassifier, load_classifier
from wsiseg.pages.configurations import Configured, best_first
from wsiseg.run.machine import cores
from wsiseg.run.memory import keep_freed_memory, start_zarr
from wsiseg.run.outputs import write_text
from wsiseg.run.reader_processes import ReaderProcesses
from wsiseg.run.record import Progress
from wsiseg.slides.table import TUMOR
from wsiseg.training.bags import TileSource, source_of
from wsiseg.training.beforehand import Beforehand, beforehand
from wsiseg.training.cautions import cautions, cost, looks
from wsiseg.training.colors import Colors, cohort_colors
from wsiseg.training.configurations import write_grid
from wsiseg.training.features import Compute, FeatureBank
from wsiseg.training.fit import fit
from wsiseg.training.judging import judged
from wsiseg.training.known_tissue import known_tissue
from wsiseg.training.page import NOTE, training_page
from wsiseg.training.processes import Processes, device_of, joined_processes, precision_on
from wsiseg.training.run_folder import RunFolder, fingerprints
from wsiseg.training.sharing import shared_out
from wsiseg.training.slides import LabelledSlide
from wsiseg.training.stored import StoredCohort
from wsiseg.training.task import Task, Truths, check_true_labels, filled_bank, standardised, started, task_of
from wsiseg.training.teacher import Teachers, opened
from wsiseg.training.truths import tile_truths


@dataclass(frozen=True)
class Trained:
    """What a training run left behind in its folder."""

    out: Path
    status: str  # `ok`, or `up_to_date` if all of it was done before
    best: Configured  # what came out; of a grid, of the best configuration by the validation slides
    # those of a grid, best first by the validation slides, the one trained on true labels last
    configurations: tuple[Configured, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return {"schema": "wsiseg.train/1", **plain}


@dataclass(frozen=True)
class _Ground:
    """What all configurations of a run share."""

    slides: tuple[LabelledSlide, ...]
    truths: Truths
    inputs: Mapping[str, Any]
    colors: Colors | None
    source: TileSource
    processes: Processes
    progress: Progress
    stored: StoredCohort | None = None
    teachers: Teachers | None = None


def train(config: TrainConfig, progress: Progress | None = None) -> Trained:
    """Train one configuration, or with `config.grid` all of the paper's.

    Args:
        config: What to do.
        progress: Who watches.

    Returns:
        Where the checkpoints lie and how good they are.

    Raises:
        UsageError: The cohort, the starting weights or the settings do not do.
        DeviceError: The device is not there.
        WsisegError: A slide cannot be read, or the risk is NaN or infinite.
    """
    if config.dask is not None:
        config = shared_out(config, config.dask, progress or Progress(), _configurations_at)
    return _train(config, progress)


def _configurations_at(outs: Sequence[Path], config: TrainConfig) -> list[Path]:
    """Train the configurations of a grid whose folders are `outs` on a worker."""
    return [_train(config, only=out).best.out for out in outs]


def _train(config: TrainConfig, progress: Progress | None = None, only: Path | None = None) -> Trained:
    """Train a configuration or a grid in this process and those that `torchrun` joins to it; `only` one of a grid."""
    keep_freed_memory()
    start_zarr()
    torch.set_num_threads(min(torch.get_num_threads(), cores()))  # torch knows no quota of containers
    with joined_processes() as processes:
        progress = progress if progress and processes.is_first else Progress()
        ready = beforehand(config, processes, progress, only)
        with opened(config.teacher, "cpu" if config.device == "cpu" else "auto") as teachers:
            return _trained_all(ready, teachers, processes, progress, is_grid=config.grid and only is None)


def _trained_all(
    ready: Beforehand, teachers: Teachers | None, processes: Processes, progress: Progress, *, is_grid: bool
) -> Trained:
    """Train what is not there already of the configurations, and write what a grid has of its own."""
    config, slides = ready.config, ready.slides
    if teachers is not None:
        teachers.check(slides, config.classes[0])
    truths = _truths(config, slides, progress)
    if config.supervised:
        check_true_labels(slides, truths, config.classes)
    inputs = _inputs(ready, truths, teachers)
    done = [_done(one, inputs, progress) for one in ready.every]
    finished = [one for one in done if one]
    if len(finished) == len(done):
        if is_grid and processes.is_first and not (config.out / "report.html").exists():
            write_grid(config, finished)
        return _result(config, finished, "up_to_date")
    device = device_of(config.device)
    precision = precision_on(device, config.precision)
    config, *every = (one.model_copy(update={"precision": precision}) for one in (config, *ready.every))
    ready = replace(ready, config=config, every=tuple(every))
    for caution in cautions(config, slides, device):
        progress.note(caution)
    with _readers(device) as readers:
        source = source_of(config, device, readers)
        colors = cohort_colors(config, slides, source, processes, progress.note)
        ground = _Ground(slides, truths, inputs, colors, source, processes, progress, ready.stored, teachers)
        configured = _configurations(ready, done, ground)
    if is_grid and processes.is_first:
        write_grid(config, configured)
    return _result(config, configured, "ok")


def _inputs(ready: Beforehand, truths: Truths, teachers: Teachers | None) -> dict[str, Any]:
    """Return what stands for all that a run depends on besides its settings."""
    found = fingerprints(ready.config, ready.slides, truths) | {"teacher": teachers.fingerprint if teachers else []}
    return found | ({"stored features": ready.stored.fingerprint} if ready.stored else {})


def _truths(config: TrainConfig, slides: Sequence[LabelledSlide], progress: Progress) -> Truths:
    every = [Classes.of(name, config.classes) for name in config.classes]
    return [tile_truths(config.truth, slides, progress.note, one) if config.truth else {} for one in every]


def _readers(device: torch.device) -> AbstractContextManager[ReaderProcesses | None]:
    """Start processes that read for an accelerator, those of the machine's cores that are this process's."""
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return (device.type != "cpu" and ReaderProcesses.for_accelerator(sharing)) or nullcontext()


def _configurations(ready: Beforehand, done: Sequence[Configured | None], ground: _Ground) -> list[Configured]:
    """Train what is not done yet; with `freeze` all on the same features."""
    config, every, slides, note = ready.config, ready.every, ground.slides, ground.progress.note
    begin = slides[0].tile_px, ground.colors, ground.source.device, note
    classifier = standardised(ready.classifier, ground.colors) if ready.classifier else started(config, *begin)
    if not config.freeze:
        trained, scored, passes = (done.count(None) * count for count in looks(config, slides))
        compute = Compute(classifier, None, config.precision == "bfloat16")
        what = f"{trained} tiles trained and {scored} scored"
        side = config.context or slides[0].tile_px
        for sentence in cost(passes // ground.processes.count, compute, side, what):
            note(f"{sentence}; fewer --epochs, a smaller --bag or --arch cost less")
    if ground.teachers is not None:
        classifier.licence = "; ".join(filter(None, (classifier.licence, ground.teachers.licence)))
    bank, known = None, None
    if ground.stored is not None:
        bank = ground.stored.bank(slides, config.out / "features", ground.processes)
        classifier.encoder = ground.stored.encoder
    elif config.freeze:
        bank = filled_bank(config, classifier, slides, ground.source, ground.processes, ground.progress)
        known = known_tissue(classifier, slides, ground.source, ground.processes, bank)
    configured = []
    for one, there in zip(every, done, strict=True):
        if there is not None:
            configured.append(there)
            continue
        if config.grid:
            note(f"{one.out.name}:")
        fresh = classifier if bank or one is every[0] else started(one, *begin)
        configured.append(_trained(one, fresh, bank, known, ground))
    return configured


def _result(config: TrainConfig, configured: Sequence[Configured], status: str) -> Trained:
    ranked = best_first(configured) if config.grid else configured
    return Trained(config.out, status, ranked[0], tuple(ranked) if config.grid else ())


def _done(config: TrainConfig, inputs: Mapping[str, Any], progress: Progress) -> Configured | None:
    """Return what is there already, if this configuration was finished before."""
    folder = RunFolder(config, inputs)
    state = folder.earlier(progress.note)
    if state is None or not state.finished or state.epoch < config.epochs or not folder.best.exists():
        return None
    return _configured(Checkpoint.load(folder.best), config)


def _configured(checkpoint: Checkpoint, config: TrainConfig) -> Configured:
    figures = checkpoint.figures["splits"]
    return Configured(checkpoint.alpha, checkpoint.beta, config.out, checkpoint.threshold, figures)


def _trained(
    config: TrainConfig,
    classifier: TileClassifier,
    bank: FeatureBank | None,
    known: KnownTissue | None,
    ground: _Ground,
) -> Configured:
    """Train a configuration, then measure its best epoch on validation and test slides and choose its threshold.

    What tissue a frozen network knows is measured once for all configurations.
    """
    folder, processes = RunFolder(config, ground.inputs), ground.processes
    folder.write_settings()
    out, teachers = config.out / "teacher", ground.teachers
    taught = teachers.targets(ground.slides, out, processes, ground.progress) if teachers is not None else None
    task = task_of(config, classifier, ground.slides, ground.truths, bank or ground.source, taught)
    state = fit(task, config, folder, processes, ground.progress)
    processes.wait()
    checkpoint, validation = judged(Checkpoint.load(folder.best), task, config, processes)
    if not bank:
        best = load_classifier(checkpoint).to(ground.source.device)
        known = known_tissue(best, ground.slides, ground.source, processes)
    checkpoint = replace(checkpoint, known_tissue=known)
    configured = _configured(checkpoint, config)
    if processes.is_first:
        checkpoint.save(folder.best)
        title = f"Training of {config.out.name}"
        shown = {} if ground.stored else dict(zip(config.classes, validation, strict=True))  # whose tiles are pictured
        text = training_page(title, _facts(config, task, checkpoint), configured.figures, state.history, shown)
        write_text(config.out / "report.html", text)
        state.finished = True
        folder.save(state)
        folder.seal()
    return configured


def _facts(config: TrainConfig, task: Task, checkpoint: Checkpoint) -> dict[str, str]:
    shares = "true labels of tiles" if config.supervised else f"alpha {config.alpha:g}, beta {config.beta:g}"
    stated = sum(slide.stated != (None, None) for slide in task.split("train"))
    if config.teacher:
        shares = f"what {', '.join(config.teacher)} say of tiles"
    elif stated and not config.supervised:
        shares += f", and what the cohort states of {stated} training slides"
    slides = ", ".join(f"{name} {len(task.split(name))}" for name in ("train", "val", "test"))
    named = config.classes != (TUMOR,)
    how = "head on frozen features" if config.freeze else "all layers"
    return {
        "learned from": shares,
        "network": f"{config.arch}, {how}",
        "slides": slides,
        "kept": f"epoch {checkpoint.figures['epoch']['epoch']} of {config.epochs}",
        "threshold": ", ".join(f"{one.threshold:.3f}" + f" ({one.name})" * named for one in checkpoint.classes),
        "use": NOTE,
    }
