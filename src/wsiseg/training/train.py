"""Train a tile classifier from bags of tiles and one label per slide: one configuration, or the paper's fifteen."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from wsiseg.config.train import TrainConfig
from wsiseg.network.network import Checkpoint, TileClassifier
from wsiseg.pages.configurations import ALL, Configured, picture
from wsiseg.pages.page import page
from wsiseg.run.errors import DeviceError, UsageError
from wsiseg.run.memory import keep_freed_memory
from wsiseg.run.outputs import write_text
from wsiseg.run.record import Progress, Silent
from wsiseg.training.bags import LabelledSlide, labelled_slides
from wsiseg.training.calibration import calibration_error, fitted
from wsiseg.training.cautions import cautions
from wsiseg.training.colors import Colors, cohort_colors
from wsiseg.training.configurations import settings_of_grid, table, tuned_settings
from wsiseg.training.features import FeatureBank
from wsiseg.training.fit import fit
from wsiseg.training.known_tissue import known_tissue
from wsiseg.training.page import facts_table, measures_table, training_page
from wsiseg.training.processes import Processes, joined_processes
from wsiseg.training.run_folder import RunFolder, as_csv
from wsiseg.training.scoring import Scored, chosen_threshold, pixel_measures
from wsiseg.training.task import Task, filled_bank, started, task_of
from wsiseg.training.tile_truth import TileTruth, tile_truths
from wsiseg.training.tumor_texture import tumor_texture

_THRESHOLD = 0.5
_NOTE = "For research, not for diagnosis."


@dataclass(frozen=True)
class Trained:
    """What a training run left behind.

    Attributes:
        out: Its folder.
        status: `ok`, or `up_to_date` if all of it was done before.
        best: What came out; of a grid, of the best configuration by the validation slides.
        configurations: Every configuration of a grid.
    """

    out: Path
    status: str
    best: Configured
    configurations: tuple[Configured, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON."""
        return {
            "schema": "wsiseg.train/1",
            "out": str(self.out),
            "status": self.status,
            "best": _plain(self.best),
            "configurations": [_plain(one) for one in self.configurations],
        }


def _plain(configured: Configured) -> dict[str, Any]:
    return {**asdict(configured), "out": str(configured.out)}


@dataclass(frozen=True)
class _Ground:
    """What all configurations of a run share."""

    slides: tuple[LabelledSlide, ...]
    truths: Mapping[str, TileTruth]
    colors: Colors | None
    device: torch.device
    processes: Processes
    progress: Progress


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
        WsisegError: A slide cannot be read, or the risk is no number any more.
    """
    keep_freed_memory()
    with joined_processes() as processes:
        progress = progress if progress and processes.is_first else Silent()
        slides = labelled_slides(config.cohort, progress.note)
        every = list(settings_of_grid(config)) if config.grid else [config]
        done = [_done(one, slides, progress) for one in every]
        finished = [one for one in done if one]
        if len(finished) == len(every) and not config.top:
            if config.grid and processes.is_first and not (config.out / "report.html").exists():
                _write_grid(config, finished, [])
            return _result(config, finished, "up_to_date")
        device = device_of(config.device)
        _check_context(config, slides)
        for caution in cautions(config, slides, device):
            progress.note(caution)
        truths = tile_truths(config.truth, slides, progress.note) if config.truth else {}
        colors = cohort_colors(config, slides, processes, progress.note)
        ground = _Ground(slides, truths, colors, device, processes, progress)
        classifier = started(config, colors, device, progress.note)
        bank = filled_bank(config, classifier, slides, processes, progress) if config.freeze else None
        configured = []
        for one, there in zip(every, done, strict=True):
            if there is not None:
                configured.append(there)
                continue
            if config.grid:
                progress.note(f"{one.out.name}:")
            fresh = classifier if bank or one is every[0] else started(one, colors, device, progress.note)
            configured.append(_trained(one, fresh, bank, ground))
        result = _result(config, configured, "ok")
        tuned = [_tuned(config, one, ground) for one in _best(configured)[: config.top]]
        if config.grid and processes.is_first:
            _write_grid(config, configured, tuned)
        return result


def _result(config: TrainConfig, configured: Sequence[Configured], status: str) -> Trained:
    best = _best(configured)[0] if config.grid else configured[0]
    return Trained(config.out, status, best, tuple(configured) if config.grid else ())


def _best(configured: Sequence[Configured]) -> list[Configured]:
    """Order configurations, best first; the one that has seen true labels takes no part."""
    return sorted((one for one in configured if one.alpha is not None), key=lambda one: one.rank, reverse=True)


def _check_context(config: TrainConfig, slides: Sequence[LabelledSlide]) -> None:
    tile_px = slides[0].tile_px
    if config.context is not None and config.context < tile_px:
        raise UsageError(
            f"context {config.context} is smaller than the tiles of {tile_px} pixels", "give a larger side"
        )


def device_of(name: str) -> torch.device:
    """Find a device by its name; `auto` is a GPU where there is one.

    Raises:
        DeviceError: It is not there.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(f"device {name}: {str(error).splitlines()[0]}", "use --device cpu") from error
    return device


def _done(config: TrainConfig, slides: Sequence[LabelledSlide], progress: Progress) -> Configured | None:
    """Give what is there already, if this configuration was finished before."""
    folder = RunFolder(config, slides)
    state = folder.earlier(progress.note)
    if state is None or not state["finished"] or state["epoch"] < config.epochs or not folder.best.exists():
        return None
    return _configured(Checkpoint.load(folder.best), config)


def _configured(checkpoint: Checkpoint, config: TrainConfig) -> Configured:
    figures = checkpoint.figures["splits"]
    return Configured(checkpoint.alpha, checkpoint.beta, config.out, checkpoint.threshold, figures)


def _tuned(config: TrainConfig, best: Configured, ground: _Ground) -> Configured:
    """Fine-tune a configuration whose head was trained on frozen features."""
    tuned = tuned_settings(config, best)
    ground.progress.note(f"{tuned.out.name}:")
    done = _done(tuned, ground.slides, ground.progress)
    if done is not None:
        return done
    classifier = started(tuned, None, ground.device, ground.progress.note)
    return _trained(tuned, classifier, None, ground)


def _trained(config: TrainConfig, classifier: TileClassifier, bank: FeatureBank | None, ground: _Ground) -> Configured:
    """Train a configuration, then measure its best epoch on validation and test slides and choose its threshold."""
    folder, processes = RunFolder(config, ground.slides), ground.processes
    folder.write_settings()
    task = task_of(config, classifier, ground.slides, ground.truths, bank)
    state = fit(task, config, folder, processes, ground.progress)
    processes.wait()
    checkpoint, validation = _judged(Checkpoint.load(folder.best), task, config, processes)
    configured = _configured(checkpoint, config)
    if processes.is_first:
        checkpoint.save(folder.best)
        title = f"Training of {config.out.name}"
        text = training_page(title, _facts(config, task, checkpoint), configured.figures, state["history"], validation)
        write_text(config.out / "report.html", text)
        folder.save({**state, "finished": True})
    return configured


def _judged(
    checkpoint: Checkpoint, task: Task, config: TrainConfig, processes: Processes
) -> tuple[Checkpoint, list[Scored]]:
    """Calibrate the kept epoch, choose its threshold, measure it, and measure the tissue that it knows.

    Returns:
        The checkpoint with all that, and the scores of the validation slides.
    """
    best = task.best(checkpoint)
    raw = best.scores(best.network, ["val", "test"], config, processes, None)
    calibration = fitted([one for one in raw if one.slide.split == "val"], task.truths)
    scores = calibration.applied(raw)
    validation = [one for one in scores if one.slide.split == "val"]
    threshold = chosen_threshold(validation, task.truths)
    threshold = _THRESHOLD if threshold is None else min(threshold, 1.0)
    figures = {**checkpoint.figures, "splits": split_measures(scores, task, threshold)}
    for name, slides in (("calibration_error_before", raw), ("calibration_error", scores)):
        error = calibration_error([one for one in slides if one.slide.split == "val"], task.truths)
        figures |= {} if error is None else {name: error}
    known = known_tissue(best, config, processes)
    judged = replace(checkpoint, threshold=threshold, figures=figures, known_tissue=known)
    texture = tumor_texture(best, config, processes)
    if texture is not None:
        judged = replace(judged, texture_layer=texture[0], tumor_texture=texture[1])
    return replace(judged, temperature=calibration.temperature, offset=calibration.offset), validation


def split_measures(scores: Sequence[Scored], task: Task, threshold: float) -> dict[str, Any]:
    """Give the measures of every split, over all its slides and by site."""
    found: dict[str, Any] = {}
    for split in ("val", "test"):
        there = [one for one in scores if one.slide.split == split]
        sites = sorted({one.slide.site for one in there if one.slide.site})
        groups = {ALL: there} | {site: [one for one in there if one.slide.site == site] for site in sites}
        if there:
            found[split] = {name: pixel_measures(group, task.truths, threshold) for name, group in groups.items()}
    return found


def _facts(config: TrainConfig, task: Task, checkpoint: Checkpoint) -> dict[str, str]:
    shares = "true labels of tiles" if config.supervised else f"alpha {config.alpha:g}, beta {config.beta:g}"
    slides = ", ".join(f"{name} {len(task.split(name))}" for name in ("train", "val", "test"))
    how = "head on frozen features" if config.freeze else "all layers"
    return {
        "learned from": shares,
        "network": f"{config.arch}, {how}",
        "slides": slides,
        "kept": f"epoch {checkpoint.figures['epoch']['epoch']} of {config.epochs}",
        "threshold": f"{checkpoint.threshold:.3f}",
        "use": _NOTE,
    }


def _write_grid(config: TrainConfig, configured: Sequence[Configured], tuned: Sequence[Configured]) -> None:
    """Write `grid.csv`, `grid.png` and the page of a grid, and `top.csv` of what was fine-tuned."""
    write_text(config.out / "config.toml", config.model_copy(update={"resume": False, "overwrite": False}).to_toml())
    rows = table(configured)
    if rows:
        write_text(config.out / "grid.csv", as_csv(rows))
    if tuned:
        write_text(config.out / "top.csv", as_csv(table(tuned)))
    split = "test" if any("test" in one.figures for one in configured) else "val"
    drawing = picture(configured, split)
    drawing.save(config.out / "grid")
    best = {"network": config.arch, "best by validation": _best(configured)[0].out.name, "use": _NOTE}
    parts = [f"<h1>Training of {config.out.name}</h1>", facts_table(best)]
    parts.append(f"<figure>{drawing.svg()}</figure>")
    for name, group in (("Configurations", configured), ("Fine-tuned", tuned)):
        parts += [f"<h2>{name}</h2>"] if group else []
        parts += [f"<h3>{one.out.name}</h3>{measures_table(one.figures)}" for one in group]
    write_text(config.out / "report.html", page(f"Training of {config.out.name}", "\n".join(parts)))
