"""What a trained network is worth, class by class: its calibration, its thresholds and its measures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from wsiseg.config.train import TrainConfig
from wsiseg.network.checkpoint import Checkpoint, ClassFit
from wsiseg.pages.configurations import ALL
from wsiseg.training.processes import Processes
from wsiseg.training.scoring import (
    Measures,
    Scored,
    by_class,
    calibration_error,
    chosen_threshold,
    fitted,
    mean_of,
    pixel_measures,
)
from wsiseg.training.task import Task
from wsiseg.training.truths import TileTruth

_THRESHOLD = 0.5


def judged(
    checkpoint: Checkpoint, task: Task, config: TrainConfig, processes: Processes
) -> tuple[Checkpoint, list[list[Scored]]]:
    """Calibrate the kept epoch, choose its thresholds and measure it; return the validation scores of each class too.

    Figures of several classes are means over them.
    """
    best = task.best(checkpoint)
    raw = by_class(best.scores(best.network, ["val", "test"], config, processes), len(config.classes))
    seen = [_judged_class(*one) for one in zip(config.classes, raw, task.truths, strict=True)]
    splits = {one.fit.name: one.splits for one in seen}
    errors = mean_of([one.errors for one in seen])
    known = {name: error for name, error in errors.items() if error is not None}
    figures = {**checkpoint.figures, "splits": _over_classes(splits), **known}
    found = replace(checkpoint, classes=tuple(one.fit for one in seen), figures=figures)
    return found, [one.validation for one in seen]


class _JudgedClass(NamedTuple):
    """What came out for a class: its threshold and calibration, measures, calibration errors, validation scores."""

    fit: ClassFit
    splits: dict[str, dict[str, Measures]]
    errors: Measures
    validation: list[Scored]


def _judged_class(name: str, raw: list[Scored], truths: Mapping[str, TileTruth]) -> _JudgedClass:
    """Calibrate the scores of a class, choose its threshold and measure them."""
    calibration = fitted(_of_validation(raw), truths)
    scores = calibration.applied(raw)
    validation = _of_validation(scores)
    threshold = chosen_threshold(validation, truths)
    threshold = _THRESHOLD if threshold is None else min(threshold, 1.0)
    every = {"calibration_error_before": raw, "calibration_error": scores}
    errors = {name: calibration_error(_of_validation(slides), truths) for name, slides in every.items()}
    fit = ClassFit(name, threshold, calibration.temperature, calibration.offset)
    return _JudgedClass(fit, split_measures(scores, truths, threshold), errors, validation)


def _of_validation(slides: Sequence[Scored]) -> list[Scored]:
    return [one for one in slides if one.slide.split == "val"]


def _over_classes(figures: Mapping[str, dict[str, dict[str, Measures]]]) -> dict[str, dict[str, Measures]]:
    """Average the measures of classes by split and site, and keep those of each class over all sites as a group."""
    first, *others = figures.values()
    if not others:
        return first
    return {
        split: {
            **{site: mean_of([one[split][site] for one in figures.values()]) for site in sites},
            **{f"class {name}": one[split][ALL] for name, one in figures.items()},
        }
        for split, sites in first.items()
    }


def split_measures(
    scores: Sequence[Scored], truths: Mapping[str, TileTruth], threshold: float
) -> dict[str, dict[str, Measures]]:
    """Return the measures of every split, over all its slides and by site."""
    groups: dict[str, dict[str, list[Scored]]] = {}
    for one in sorted(scores, key=lambda one: (one.slide.split != "val", one.slide.site)):
        for name in filter(None, (ALL, one.slide.site)):
            groups.setdefault(one.slide.split, {}).setdefault(name, []).append(one)
    return {
        split: {name: pixel_measures(group, truths, threshold) for name, group in sites.items()}
        for split, sites in groups.items()
    }
