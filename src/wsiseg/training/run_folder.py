"""The files of a training run: settings, the state to go on from, the best checkpoint, measures by epoch."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import torch

from wsiseg.config.train import FREE, FREE_WITH_FREEZE, GONE_DEFAULTS, TrainConfig
from wsiseg.network.weights import StateDict, read_torch
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.outputs import csv_text, write_text, written_whole
from wsiseg.run.proof import written
from wsiseg.run.record import Run, RunFile, now
from wsiseg.run.version import __version__
from wsiseg.training.slides import LabelledSlide
from wsiseg.training.truths import TileTruth

_SCHEMA = "wsiseg.training/1"
_FILES = ("best.pt", "last.pt", "config.toml", "metrics.csv", "report.html", "grid.csv", "grid.png", "grid.svg")
Row = dict[str, Any]
"""The measures of an epoch by name, a row of `metrics.csv`."""


@dataclass
class State:
    """How far a run has come; what `last.pt` holds."""

    settings: dict[str, Any]  # what the weights depend on; a run with others does not go on from here
    epoch: int = 0  # how many epochs are done
    place: int = 0  # how many visits of the next epoch each process has done
    processes: int = 0  # how many these are; 0 where an earlier version did not write it down
    risks: list[tuple[float, int]] = field(default_factory=list)  # risk and number of tiles of each of these visits
    seconds: float = 0.0  # how long they took
    waited: float = 0.0  # how much of that was spent waiting for tiles
    history: list[Row] = field(default_factory=list)  # the measures of each epoch
    best: Row | None = None  # those of the epoch that is kept
    finished: bool = False  # the kept epoch was measured, and the report is written
    network: StateDict = field(default_factory=dict)  # the weights
    optimizer: dict[str, Any] = field(default_factory=dict)  # the state of what moves them
    average: StateDict | None = None  # their moving average, where there is one

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a `last.pt`, whichever version wrote it.

        Raises:
            WsisegError: It cannot be read or is something else.
        """
        content = read_torch(path)
        if not isinstance(content, dict) or content.get("schema") != _SCHEMA:
            raise WsisegError(f"{path}: not the state of a training run", "give --overwrite or another --out")
        state = cls(**{one.name: content[one.name] for one in fields(cls) if one.name in content})
        # Earlier versions wrote the slide before its risk.
        state.risks = [(risk, tiles) for *_, risk, tiles in state.risks]
        return state

    def save(self, path: Path) -> None:
        """Write a `last.pt`, whole or not at all."""
        with written_whole(path) as file:
            torch.save({"schema": _SCHEMA, **vars(self)}, file)


class RunFolder:
    """The folder `config.out` of a training run on `inputs`, as `fingerprints` tells."""

    def __init__(self, config: TrainConfig, inputs: Mapping[str, Any]) -> None:
        self.config = config
        self.best, self.last = config.out / "best.pt", config.out / "last.pt"
        self._record = config.out / "run.json"
        free = FREE if config.schedule == "constant" and not config.warm_up else FREE - {"epochs"}
        free |= FREE_WITH_FREEZE if config.freeze else frozenset()
        self._key = {**config.model_dump(mode="json", exclude=set(free)), **inputs}

    def begin(self) -> State:
        """Return the state of a run that begins; one that is there goes, whose best epoch is not this run's."""
        self.last.unlink(missing_ok=True)
        return State(self._key)

    def earlier(self, note: Callable[[str], None] = lambda _: None) -> State | None:
        """Return the state that a run left here, if this one goes on from it; else `note` is told why not.

        Raises:
            UsageError: `resume` is asked for, but the settings, the slides or their truth are others.
            WsisegError: The state cannot be read.
        """
        if self.config.overwrite or not self.last.exists():
            return None
        state = State.read(self.last)
        changed = self._changed(state.settings) | ({"epochs"} if state.epoch > self.config.epochs else set())
        if not changed:
            state.settings = {**state.settings, **self._key}
            return state
        names = ", ".join(sorted(changed))
        if self.config.resume:
            raise UsageError(f"{self.last}: was made with other settings: {names}", "give --overwrite or another --out")
        note(f"{self.config.out}: trained again, as these changed: {names}")
        return None

    def _changed(self, before: Mapping[str, Any]) -> set[str]:
        """Name what differs from an earlier run."""
        # A setting that the run's version of wsiseg did not have yet was as it is by default, with two exceptions: all
        # tiles were used, and nobody wrote down what truth and starting weights were.
        defaults = TrainConfig(cohort=self.config.cohort, out=self.config.out).model_dump(mode="json")
        usual = {**self._key, **defaults, "max_tiles": None}
        changed = [name for name, value in self._key.items() if before.get(name, usual[name]) != value]
        gone = [name for name, value in GONE_DEFAULTS.items() if before.get(name, value) != value]
        changed += [f"{name} = {before[name]}, which is no longer a setting" for name in gone]
        return {name.replace("_", "-") for name in changed}

    def write_settings(self) -> None:
        """Write `config.toml`; a record of an earlier run, which would not be true for long, goes."""
        self._record.unlink(missing_ok=True)
        text = self.config.model_copy(update={"resume": False, "overwrite": False}).to_toml()
        write_text(self.config.out / "config.toml", text)

    def save(self, state: State) -> None:
        """Write `last.pt` and `metrics.csv`."""
        state.save(self.last)
        if state.history:
            write_text(self.config.out / "metrics.csv", as_csv(state.history))

    def seal(self) -> None:
        """Write `run.json`: with what settings the run was made, and what its files are now."""
        out, settings = self.config.out, self.config.model_dump(mode="json", exclude={"resume", "overwrite"})
        files = written(out, (out / name for name in _FILES))
        run = Run(command="train", version=__version__, started=now(), settings=settings, written=files)
        RunFile(self._record, run).finish()


def fingerprints(
    config: TrainConfig, slides: Sequence[LabelledSlide], truths: Sequence[Mapping[str, TileTruth]]
) -> dict[str, Any]:
    """Return what stands for the slides, tiles, labels, truth and starting weights that a run depends on."""
    places = "\n".join(f"{one.slide} {_known(one)} {one.split} {one.site} {one.fingerprint}" for one in slides)
    truth = hashlib.sha256()
    for name, one in (pair for of_class in truths for pair in sorted(of_class.items())):
        truth.update(name.encode() + one.tumor.tobytes() + one.rest.tobytes())
    found = {
        "slides": hashlib.sha256(places.encode()).hexdigest()[:16],
        "max_tiles": config.max_tiles if any(one.stored > one.tiles for one in slides) else None,
    }
    if any(truths):
        found["labels of tiles"] = truth.hexdigest()[:16]
    if Path(config.init).is_file():
        with Path(config.init).open("rb") as file:
            found["weights of init"] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return found


def _known(slide: LabelledSlide) -> str:
    seen = slide.by_class
    return " ".join(str(one.label if one.stated == (None, None) else (one.label, *one.stated)) for one in seen)


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV, the names of the first on top; None is empty."""
    return csv_text([rows[0], *([row.get(name) for name in rows[0]] for row in rows)])
