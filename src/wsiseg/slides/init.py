"""`wsiseg init`, a verb that lives with its noun: the table of slides and the settings that a study begins with."""

from dataclasses import dataclass
from pathlib import Path

from wsiseg.config.doctor import InitConfig
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.config.settings import Config
from wsiseg.config.tile import TileConfig
from wsiseg.config.train import TrainConfig
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import write_text
from wsiseg.slides.cohort import Cohort
from wsiseg.slides.formats import SLIDE_SUFFIXES

_SETTINGS: dict[str, type[Config]] = {
    "tile": TileConfig, "train": TrainConfig, "predict": PredictConfig, "evaluate": EvaluateConfig,
}  # fmt: skip
_TABLE = """\
# The cohort table of a study: one row per slide. Give it to wsiseg tile or predict or to evaluate --cohort.
# slide: a unique id of your choice; results are named after it
# path: the slide file; relative to this file
# case: the patient; all slides of a patient stay in one split
# label: 1 or yes or tumor; 0 or no or normal; empty if not known
# split: train or val or test; leave all empty to let wsiseg tile split the labelled slides
# site: the organ
# mpp: micrometers per pixel at full resolution; empty to use what the file says
"""
_HEAD = """\
# Settings of wsiseg {verb} with their defaults. To change one, remove the # before its name and edit the value.
# Use this file with --config {verb}.toml; options on the command line override it.
"""


@dataclass(frozen=True)
class Begun:
    """What became of the files of a new study."""

    written: tuple[Path, ...]
    kept: tuple[Path, ...]  # were there before, and stay as they are


def init(config: InitConfig) -> Begun:
    """Write a table of the slides in a folder, and the settings with what they mean; nothing is ever replaced.

    Raises:
        OutputError: The folder cannot be written to.
    """
    names = ["cohort.csv", *(f"{verb}.toml" for verb in _SETTINGS)]
    kept = tuple(config.folder / name for name in names if (config.folder / name).exists())
    written = tuple(config.folder / name for name in names if config.folder / name not in kept)
    for path in written:
        if path.suffix == ".toml":
            write_text(path, _HEAD.format(verb=path.stem) + _SETTINGS[path.stem].commented())
        else:
            _slides(config.folder).write(path, _TABLE)
    return Begun(written, kept)


def _slides(folder: Path) -> Cohort:
    """Return what lies in a folder, and is called as slides are."""
    try:
        found = Cohort.from_inputs([str(folder)]).slides
    except UsageError:  # there are none yet
        found = ()
    return Cohort(tuple(one for one in found if one.path.suffix.lower() in {*SLIDE_SUFFIXES, ".dcm"}))
