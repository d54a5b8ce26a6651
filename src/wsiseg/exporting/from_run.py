"""Export a training run of wsiseg."""

import json
from pathlib import Path
from typing import Any

import torch

from wsiseg.config.settings import read_toml
from wsiseg.config.train import FEATURES
from wsiseg.exporting.origin import Origin, of_classifier, of_head
from wsiseg.network.checkpoint import Checkpoint
from wsiseg.network.network import TIMM, load_classifier
from wsiseg.network.weights import read_torch
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.record import in_words

BEST, LAST, SETTINGS, GRID = "best.pt", "last.pt", "config.toml", "grid.csv"
# Settings that name places of one machine, or that do not concern the outcome.
_PRIVATE = {
    "features",
    "cohort",
    "out",
    "truth",
    "init",
    "resume",
    "overwrite",
    "device",
    "threads",
    "save_minutes",
    "tensorboard",
}
_OF_THE_MACHINE = {"tiles_per_s", "waiting", "seconds"}  # figures of an epoch


def from_run(path: Path, output_stride: int | None, *, head: bool = False) -> Origin:
    """Make an origin of the best checkpoint of a run that has ended, or of a checkpoint file of any run.

    Of a run on stored features, and where it is asked for, it is the `head` alone.

    Raises:
        UsageError: There is no such run, it has not ended, or has no best checkpoint.
        WsisegError: The checkpoint is damaged.
    """
    file = path if path.is_file() else _best_of(path)
    checkpoint = Checkpoint.load(file)
    try:
        classifier = load_classifier(checkpoint)
    except WsisegError as error:
        reason = " ".join(error.message.split())[:300]
        raise UsageError(f"{file}: not a tile classifier with an output a class: {reason}", "train it again") from error
    with torch.no_grad():
        temperatures, offsets = torch.tensor([(one.temperature, one.offset) for one in checkpoint.classes]).T
        classifier.head.weight /= temperatures[:, None]
        classifier.head.bias.copy_(classifier.head.bias / temperatures + offsets)
    cohort = _cohort(file.parent / SETTINGS)
    facts = _facts(checkpoint)
    if head or checkpoint.arch.startswith(FEATURES):
        return of_head(classifier, facts)
    return of_classifier(classifier, facts, output_stride, cohort, checkpoint.known_tissue)


def _best_of(run: Path) -> Path:
    """Find the best checkpoint of a run that has ended."""
    if not run.is_dir():
        raise UsageError(f"{run}: no such run", "name the folder that wsiseg train wrote")
    if (run / GRID).is_file() and not (run / BEST).is_file():
        raise UsageError(f"{run}: holds several configurations", f"name one of its folders; {GRID} says which is best")
    if not (run / SETTINGS).is_file():
        raise UsageError(f"{run}: not a training run: it has no {SETTINGS}", "name the folder that wsiseg train wrote")
    if not _has_ended(run):
        advice = f"go on with wsiseg train --resume, or name {run / BEST} to export what there is"
        raise UsageError(f"{run}: the training was interrupted", advice)
    if not (run / BEST).is_file():
        raise UsageError(f"{run}: has no best checkpoint ({BEST})", "train it again")
    return run / BEST


def _has_ended(run: Path) -> bool:
    if not (run / LAST).is_file():
        return False
    state = read_torch(run / LAST)
    is_done = isinstance(state, dict) and state.get("epoch", 0) >= _setting(run / SETTINGS, "epochs")
    return is_done and state.get("finished", True)  # calibrated, with its threshold chosen


def _cohort(settings: Path) -> Path | None:
    """Find the cohort that a run was trained on, if it is still there."""
    if not settings.is_file():
        return None
    cohort = Path(_setting(settings, "cohort"))
    return next((place for place in (cohort, settings.parent / cohort) if place.is_file()), None)


def _setting(settings: Path, name: str) -> Any:  # noqa: ANN401  a value of TOML
    """Return a setting of a run, whose others may be such that this version would refuse them."""
    values = read_toml(settings)
    if name not in values:
        raise UsageError(f"{settings}: does not say {name}", "name the folder that wsiseg train wrote")
    return values[name]


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the fields of the model card that a checkpoint knows."""
    trained_on = dict(checkpoint.trained_on)
    settings = {name: value for name, value in trained_on.pop("settings", {}).items() if name not in _PRIVATE}
    if settings.get("teacher"):
        settings["teacher"] = [Path(one).name for one in settings["teacher"]]  # without its place on the machine
    sites, thresholds = ", ".join(checkpoint.sites), {one.name: one.threshold for one in checkpoint.classes}
    first, *others = checkpoint.classes
    limits = [
        f"Trained on {sites} only; on other organs nothing was measured." if sites else "Its organs are not recorded.",
        f"It sees tiles of {checkpoint.tile_px * checkpoint.mpp:g} um; structures that need a wider view escape it.",
        f"It gives probabilities of {' and '.join(map(in_words, thresholds))}, not a diagnosis or a grade.",
    ]
    return {
        "name": f"wsiseg {checkpoint.arch.removeprefix(TIMM)}",
        "architecture": checkpoint.arch,
        "tile_px": checkpoint.tile_px,
        "mpp": checkpoint.mpp,
        "alpha": checkpoint.alpha,
        "beta": checkpoint.beta,
        "classes": ("normal", *thresholds),
        "positive_class": first.name,
        "threshold": first.threshold,
        "thresholds": thresholds if others else {},
        "trained_on": _plain({**trained_on, "sites": list(checkpoint.sites), "settings": settings}),
        "figures": {"validation": _plain(_figures(checkpoint))},
        "calibration": None if others else {"temperature": first.temperature, "offset": first.offset},
        "limits": tuple(limits),
        "intended_use": f"{sites or 'Unknown organs'} only; for research, not for diagnosis.",
    }


def _figures(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the figures of a checkpoint but those that another run of the same would not have."""
    epoch = {name: value for name, value in checkpoint.figures.get("epoch", {}).items() if name not in _OF_THE_MACHINE}
    return {**checkpoint.figures, **({"epoch": epoch} if epoch else {})}


def _plain(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Return plain JSON in which NaN and infinity are null, and what is none of JSON is text."""
    return json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
