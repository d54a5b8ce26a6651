"""Train a tile classifier from bags of tiles and one label per slide."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from wsiseg.allocation import keep_freed_memory
from wsiseg.bags import labelled_slides
from wsiseg.errors import DeviceError
from wsiseg.fit import fit
from wsiseg.network import Checkpoint
from wsiseg.processes import Processes, joined_processes
from wsiseg.run import Progress, Silent
from wsiseg.run_folder import RunFolder
from wsiseg.scoring import Scored, chosen_threshold, pixel_measures
from wsiseg.task import Task, filled_bank, started, task_of
from wsiseg.tile_truth import tile_truths
from wsiseg.train_config import TrainConfig

_ALL, _THRESHOLD = "all", 0.5


@dataclass(frozen=True)
class Trained:
    """What a training run left behind.

    Attributes:
        out: Its folder.
        status: `ok`, or `up_to_date` if it was done before.
        best_epoch: The epoch that `best.pt` is from, counted from 1.
        epochs: How many there were.
        threshold: Probability from which a tile is tumour.
        figures: Measures by split and site.
    """

    out: Path
    status: str
    best_epoch: int
    epochs: int
    threshold: float
    figures: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Give it as JSON."""
        return {"schema": "wsiseg.train/1", **asdict(self), "out": str(self.out)}


def train(config: TrainConfig, progress: Progress | None = None) -> Trained:
    """Train one configuration.

    Args:
        config: What to do.
        progress: Who watches.

    Returns:
        Where the checkpoint lies and how good it is.

    Raises:
        UsageError: The cohort, the starting weights or the settings do not do.
        DeviceError: The device is not there.
        WsisegError: A slide cannot be read, or the risk is no number any more.
    """
    progress = progress or Silent()
    keep_freed_memory()
    with joined_processes() as processes:
        slides = labelled_slides(config.cohort, progress.note)
        folder = RunFolder(config, slides)
        done = _done(config, folder, progress)
        if done is not None:
            return done
        truths = tile_truths(config.truth, slides, progress.note) if config.truth else {}
        if not any(slide.split == "val" for slide in slides):
            progress.note("no validation slides: the last epoch is kept")
        classifier = started(config, slides, device_of(config.device), progress.note)
        folder.write_settings()
        bank = filled_bank(config, classifier, slides, processes, progress) if config.freeze else None
        task = task_of(config, classifier, slides, truths, bank)
        return finished(task, config, folder, processes, progress)


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


def _done(config: TrainConfig, folder: RunFolder, progress: Progress) -> Trained | None:
    """Give what is there already, if this run was finished before."""
    state = folder.earlier(progress.note)
    if state is None or not state["finished"] or state["epoch"] < config.epochs:
        return None
    return _trained(Checkpoint.load(folder.best), config, state["epoch"], "up_to_date")


def _trained(checkpoint: Checkpoint, config: TrainConfig, epochs: int, status: str) -> Trained:
    figures = checkpoint.figures
    return Trained(config.out, status, figures["epoch"]["epoch"], epochs, checkpoint.threshold, figures["splits"])


def finished(task: Task, config: TrainConfig, folder: RunFolder, processes: Processes, progress: Progress) -> Trained:
    """Train to the end, then measure the best epoch on the validation and test slides and choose its threshold."""
    state = fit(task, config, folder, processes, progress)
    processes.wait()
    checkpoint = Checkpoint.load(folder.best)
    best = task.best(checkpoint)
    scores = best.scores(best.network, ["val", "test"], config, processes, None)
    threshold = chosen_threshold([one for one in scores if one.slide.split == "val"], task.truths)
    threshold = _THRESHOLD if threshold is None else min(threshold, 1.0)
    checkpoint = replace(checkpoint, threshold=threshold)
    checkpoint = replace(checkpoint, figures={**checkpoint.figures, "splits": split_measures(scores, task, threshold)})
    if processes.is_first:
        checkpoint.save(folder.best)
        folder.save({**state, "finished": True})
    return _trained(checkpoint, config, state["epoch"], "ok")


def split_measures(scores: list[Scored], task: Task, threshold: float) -> dict[str, Any]:
    """Give the measures of every split, over all its slides and by site."""
    found: dict[str, Any] = {}
    for split in ("val", "test"):
        there = [one for one in scores if one.slide.split == split]
        groups = {_ALL: there} | {site: [one for one in there if one.slide.site == site] for site in _sites(there)}
        found |= (
            {split: {name: pixel_measures(group, task.truths, threshold) for name, group in groups.items()}}
            if there
            else {}
        )
    return found


def _sites(scores: list[Scored]) -> list[str]:
    return sorted({one.slide.site for one in scores if one.slide.site})
