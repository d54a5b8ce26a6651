"""Train a tile classifier from bags of tiles and one label per slide."""

import csv
import io
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wsiseg import augment
from wsiseg.allocation import keep_freed_memory
from wsiseg.bags import Bag, LabelledSlide, Source, TileSource, ahead, drawn_indices, labelled_slides
from wsiseg.config import TrainConfig
from wsiseg.errors import DeviceError, UsageError, WsisegError
from wsiseg.features import FeatureBank, fill, fingerprint, standard_of
from wsiseg.network import Checkpoint, TileClassifier, build
from wsiseg.outputs import write_text, written_whole
from wsiseg.run import Progress, Silent
from wsiseg.scoring import Scored, scored, slide_measures
from wsiseg.step import Risk
from wsiseg.weights import read_torch

BEST, LAST, SETTINGS, METRICS = "best.pt", "last.pt", "config.toml", "metrics.csv"
_STATE = "wsiseg.training/1"
_MOST_TILES_VALIDATED = 600
# Settings that do not change what comes out, or that may grow.
_FREE_SETTINGS = {"resume", "overwrite", "device", "out", "cohort", "epochs"}


@dataclass(frozen=True)
class Trained:
    """What a training run left behind.

    Attributes:
        out: Its folder.
        status: `ok`, or `up_to_date` if it was done before.
        best_epoch: The epoch that `best.pt` is from, counted from 1.
        epochs: How many there were.
        figures: Measures of the best epoch.
    """

    out: Path
    status: str
    best_epoch: int
    epochs: int
    figures: dict[str, Any]


@dataclass(frozen=True)
class _Task:
    """What is trained, on what."""

    classifier: TileClassifier
    network: nn.Module
    source: Source
    slides: tuple[LabelledSlide, ...]
    device: torch.device

    def split(self, name: str) -> list[LabelledSlide]:
        return [slide for slide in self.slides if slide.split == name]


def train(config: TrainConfig, progress: Progress | None = None) -> Trained:
    """Train one configuration.

    Args:
        config: What to do.
        progress: Who watches.

    Returns:
        Where the checkpoint lies and how good it is on the validation slides.

    Raises:
        UsageError: The cohort, the starting weights or the settings do not do.
        DeviceError: The device is not there.
        WsisegError: A slide cannot be read, or the risk is no number any more.
    """
    progress = progress or Silent()
    slides = labelled_slides(config.cohort, progress.note)
    device = _device(config.device)
    keep_freed_memory()
    torch.manual_seed(config.seed)
    classifier = build(config.arch, config.init, progress.note).to(device).to(memory_format=torch.channels_last)
    state = _earlier_state(config, progress)
    write_text(config.out / SETTINGS, _settings(config))
    task = _task(config, classifier, slides, device, progress)
    return _fit(task, config, state, progress)


def _device(name: str) -> torch.device:
    """Find the device.

    Raises:
        DeviceError: It is not there.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(f"device {name}: {str(error).splitlines()[0]}", "use --device cpu") from error
    return device


def _settings(config: TrainConfig) -> str:
    return config.model_copy(update={"resume": False, "overwrite": False}).to_toml()


def _task(
    config: TrainConfig,
    classifier: TileClassifier,
    slides: tuple[LabelledSlide, ...],
    device: torch.device,
    progress: Progress,
) -> _Task:
    """Choose what is trained: the classifier on tiles, or its head on features."""
    tiles = TileSource(augment.augmented)
    if not config.freeze:
        return _Task(classifier, classifier, tiles, slides, device)
    folder = config.out / "features" / fingerprint(classifier)
    bank = FeatureBank(folder)
    _fill(bank, slides, classifier.eval(), tiles, device, progress)
    training = [slide for slide in slides if slide.split == "train"]
    bank = FeatureBank(folder, standard=standard_of(bank, training))
    return _Task(classifier, nn.Sequential(classifier.head, nn.Flatten(0)), bank, slides, device)


def _fill(
    bank: FeatureBank,
    slides: tuple[LabelledSlide, ...],
    classifier: TileClassifier,
    tiles: TileSource,
    device: torch.device,
    progress: Progress,
) -> None:
    began, done, total = time.monotonic(), 0, sum(slide.tiles for slide in slides)
    spoke = began
    for slide in slides:
        fill(bank, slide, classifier, tiles, device, lambda _: None)
        done += slide.tiles
        if time.monotonic() - spoke > 60:  # noqa: PLR2004  a line a minute
            spoke = time.monotonic()
            left = (spoke - began) / done * (total - done) / 60
            progress.note(f"features: {done}/{total} tiles, {done / (spoke - began):.0f} tiles/s, {left:.1f} min left")
    progress.note(f"features: {total} tiles, {time.monotonic() - began:.0f} s")


def _earlier_state(config: TrainConfig, progress: Progress) -> dict[str, Any] | None:
    """Give the state that a run in this folder left, if this run goes on from it.

    Raises:
        UsageError: `--resume` with other settings.
    """
    path = config.out / LAST
    if config.overwrite or not path.exists():
        return None
    state = read_torch(path)
    if not isinstance(state, dict) or state.get("schema") != _STATE:
        raise WsisegError(f"{path}: not the state of a training run", "give --overwrite or another --out")
    now = config.model_dump(mode="json", exclude=_FREE_SETTINGS)
    changed = [name for name in now if state["settings"].get(name, now[name]) != now[name]]
    if changed:
        names = ", ".join(name.replace("_", "-") for name in changed)
        if config.resume:
            raise UsageError(f"{path}: was made with other settings: {names}", "give --overwrite or another --out")
        progress.note(f"{config.out}: trained again, as these settings changed: {names}")
        return None
    return state


def _fit(task: _Task, config: TrainConfig, state: dict[str, Any] | None, progress: Progress) -> Trained:
    """Visit every training slide once per epoch; keep the epoch that is best on the validation slides."""
    training, validation = task.split("train"), task.split("val")
    if not validation:
        progress.note("no validation slides: the last epoch is kept")
    network, risk = task.network, Risk(config.alpha, config.beta, micro_batch=config.micro_batch)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    if state is None:
        state = {"schema": _STATE, "epoch": 0, "history": [], "best": None}
        state["settings"] = config.model_dump(mode="json", exclude=_FREE_SETTINGS)
    else:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    for epoch in range(state["epoch"], config.epochs):
        began, waited, tiles, risks = time.monotonic(), 0.0, 0, []
        order = np.random.default_rng([config.seed, epoch]).permutation(len(training))
        visits = [partial(_drawn, task.source, training[k], config.bag, [config.seed, epoch, int(k)]) for k in order]
        bags = ahead(visits)
        network.train()
        for place in range(len(visits)):
            asked = time.monotonic()
            bag = next(bags)
            waited += time.monotonic() - asked
            torch.manual_seed(_step_seed(config.seed, epoch, place))
            optimizer.zero_grad()
            value = risk.backward(network, bag, task.device, torch.default_generator)
            if not math.isfinite(value):
                raise WsisegError(f"{bag.slide.slide}: the risk is {value} in epoch {epoch + 1}", "lower --lr")
            optimizer.step()
            risks.append(value)
            tiles += len(bag.tiles)
        network.eval()
        seconds = time.monotonic() - began
        scores = list(scored(network, task.source, validation, task.device, most_tiles=_MOST_TILES_VALIDATED))
        row = {"epoch": epoch + 1, "risk": float(np.mean(risks)), **_named(scores, config)}
        row |= {"tiles_per_s": tiles / seconds, "waiting": waited / seconds, "seconds": time.monotonic() - began}
        state["history"].append(row)
        if _is_better(row, state["best"]):
            state["best"] = row
            _checkpoint(task, config, row).save(config.out / BEST)
        state |= {"epoch": epoch + 1, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
        with written_whole(config.out / LAST) as file:
            torch.save(state, file)
        _write_metrics(config.out / METRICS, state["history"])
        progress.note(_line(row, config.epochs))
    best = state["best"]
    return Trained(config.out, "ok", best["epoch"], state["epoch"], best)


def _drawn(source: Source, slide: LabelledSlide, bag: int, seed: list[int]) -> Bag:
    """Draw a bag; everything random in it follows from the seed."""
    random = np.random.default_rng(seed)
    return Bag(slide, source.draw(slide, drawn_indices(slide.tiles, bag, random), random))


def _step_seed(*numbers: int) -> int:
    """Mix numbers into one seed, so that a resumed run draws what an uninterrupted one would."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _named(scores: list[Scored], config: TrainConfig) -> dict[str, float | None]:
    return {f"val_{name}": value for name, value in slide_measures(scores, config.alpha, config.beta).items()}


def _is_better(row: dict[str, Any], best: dict[str, Any] | None) -> bool:
    """Compare by the slides' AUC, then by risk; without validation slides the later epoch is the better."""
    if best is None or row["val_risk"] is None:
        return True
    rank, rank_of_best = ((one["val_slide_auc"] or 0.0, -one["val_risk"]) for one in (row, best))
    return rank > rank_of_best


def _checkpoint(task: _Task, config: TrainConfig, row: dict[str, Any]) -> Checkpoint:
    """Make the checkpoint of an epoch: always a whole classifier, also where the head alone was trained."""
    tensors = {key: value.detach().cpu().clone() for key, value in task.classifier.state_dict().items()}
    if isinstance(task.source, FeatureBank) and task.source.standard is not None:
        folded = task.source.standard.fold(task.classifier.head)
        tensors |= {f"head.{name}": value for name, value in folded.items()}
    counts = {
        split: {"slides": len(task.split(split)), "tiles": sum(slide.tiles for slide in task.split(split))}
        for split in ("train", "val", "test")
    }
    return Checkpoint(
        state_dict=tensors,
        arch=config.arch,
        tile_px=task.slides[0].tile_px,
        mpp=task.slides[0].mpp,
        alpha=config.alpha,
        beta=config.beta,
        trained_on={"cohort": config.cohort.name, **counts, "settings": config.model_dump(mode="json")},
        figures=row,
        sites=tuple(sorted({slide.site for slide in task.split("train") if slide.site})),
        version=_version(),
    )


def _version() -> str:
    from wsiseg import __version__  # noqa: PLC0415  the package imports this module

    return __version__


def _write_metrics(path: Path, history: list[dict[str, Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in history)
    write_text(path, buffer.getvalue())


def _line(row: dict[str, Any], epochs: int) -> str:
    area = "" if row["val_slide_auc"] is None else f", validation slide AUC {row['val_slide_auc']:.3f}"
    left = row["seconds"] * (epochs - row["epoch"]) / 60
    return (
        f"epoch {row['epoch']}/{epochs}: risk {row['risk']:.4f}{area}, {row['tiles_per_s']:.1f} tiles/s, "
        f"{row['waiting']:.0%} waiting, {left:.1f} min left"
    )
