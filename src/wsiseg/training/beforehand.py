"""What is found, and refused, before any work begins: what the settings and the table of slides alone can tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsiseg.annotations.truth import truth_files
from wsiseg.config.train import FEATURES, TrainConfig
from wsiseg.network.network import TileClassifier
from wsiseg.network.weights import Note
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import check_folder
from wsiseg.run.record import Progress
from wsiseg.training.configurations import settings_of_grid
from wsiseg.training.processes import Processes, device_of
from wsiseg.training.run_folder import RunFolder
from wsiseg.training.slides import LabelledSlide, check_table, labelled_slides
from wsiseg.training.stored import StoredCohort, stored_cohort
from wsiseg.training.task import started
from wsiseg.training.teacher import opened
from wsiseg.training.truths import files_of


@dataclass(frozen=True)
class Beforehand:
    """What is there before any work begins."""

    config: TrainConfig  # with the architecture of a head on stored features
    every: tuple[TrainConfig, ...]  # each configuration to train
    slides: tuple[LabelledSlide, ...]
    stored: StoredCohort | None
    classifier: TileClassifier | None  # what training starts from; None where it was made before, to go on


def beforehand(config: TrainConfig, processes: Processes, progress: Progress, only: Path | None = None) -> Beforehand:
    """Find slides and network, and refuse what does not do; `only` one configuration of a grid.

    Raises:
        UsageError: The cohort, the starting weights, teachers or places do not do, or a run went on with others.
        DeviceError: The device is not there.
        OutputError: The run cannot be written.
    """
    if any(config.overwrite or not RunFolder(one, {}).last.exists() for one in _every(config, only)):
        device_of(config.device)
    if config.truth is not None:
        truth_files(config.truth)
    check_table(config.cohort, config.classes, config.percent_error, need_labels=not config.teacher)
    stored = stored_cohort(config, config.features, processes) if config.features else None
    if stored is not None:
        config = config.model_copy(update={"arch": f"{FEATURES}{stored.channels}"})
    slides = slides_of(config, stored, progress.note)
    if config.truth is not None:
        files_of(config.truth, slides)
    _check_context(config, slides)
    classifier, every = None, _every(config, only)
    if None in [RunFolder(one, {}).earlier() for one in every]:
        classifier = started(config, slides[0].tile_px, None, device_of(config.device), progress.note)
    if processes.is_first:
        check_folder(config.out)
    return Beforehand(config, every, slides, stored, classifier)


def check_teachers(config: TrainConfig, slides: Sequence[LabelledSlide]) -> None:
    """Refuse teachers that are not there or say nothing of slides, by a UsageError."""
    with opened(config.teacher, "cpu") as teachers:
        if teachers is not None:
            teachers.check(slides, config.classes[0])


def slides_of(config: TrainConfig, stored: StoredCohort | None, note: Note) -> tuple[LabelledSlide, ...]:
    """Find the slides with tiles that settings are about; see `labelled_slides`."""
    where, mpp = (None, None) if stored is None else (stored.stores, stored.size.mpp)
    how = note, config.max_tiles, where, mpp, config.percent_error
    return labelled_slides(config.cohort, *how, need_labels=not config.teacher, classes=config.classes)


def _every(config: TrainConfig, only: Path | None) -> tuple[TrainConfig, ...]:
    every = settings_of_grid(config) if config.grid else [config]
    return tuple(one for one in every if only in (None, one.out))


def _check_context(config: TrainConfig, slides: Sequence[LabelledSlide]) -> None:
    if config.context is not None and config.context < slides[0].tile_px:
        wrong = f"context {config.context} is smaller than the tiles of {slides[0].tile_px} pixels"
        raise UsageError(wrong, "give a larger side")
