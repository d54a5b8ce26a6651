"""The files of a training run: settings, the state to go on from, the best checkpoint, measures by epoch."""

import csv
import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import torch

from wsiseg.config.train import FREE, FREE_WITH_FREEZE, TrainConfig
from wsiseg.network.weights import read_torch
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.outputs import write_text, written_whole
from wsiseg.training.bags import LabelledSlide

_SCHEMA = "wsiseg.training/1"
State = dict[str, Any]


class RunFolder:
    """The folder of a training run.

    Args:
        config: The run's settings; its folder is `config.out`.
        slides: What it is trained on.
    """

    def __init__(self, config: TrainConfig, slides: Sequence[LabelledSlide]) -> None:
        self.config = config
        self.best, self.last = config.out / "best.pt", config.out / "last.pt"
        self.metrics, self.settings = config.out / "metrics.csv", config.out / "config.toml"
        free = FREE if config.schedule == "constant" else FREE - {"epochs"}
        free |= FREE_WITH_FREEZE if config.freeze else frozenset()
        self._key = {**config.model_dump(mode="json", exclude=set(free)), "slides": _fingerprint(slides)}

    def begin(self) -> State:
        """Give the state of a run that begins."""
        return {"schema": _SCHEMA, "settings": self._key, "epoch": 0, "place": 0, "risks": [], "last_risks": {},
                "seconds": 0.0, "waited": 0.0, "history": [], "best": None, "finished": False}  # fmt: skip

    def earlier(self, note: Callable[[str], None] = lambda _: None) -> State | None:
        """Give the state that a run left here, if this one goes on from it; else `note` is told why not.

        Raises:
            UsageError: `resume` is asked for, but the settings or slides are others.
            WsisegError: The state cannot be read.
        """
        if self.config.overwrite or not self.last.exists():
            return None
        state = read_torch(self.last)
        if not isinstance(state, dict) or state.get("schema") != _SCHEMA:
            raise WsisegError(f"{self.last}: not the state of a training run", "give --overwrite or another --out")
        before = state["settings"]
        # A setting that the run's version of wsiseg did not have yet was as it is by default.
        usual = TrainConfig(cohort=self.config.cohort, out=self.config.out).model_dump(mode="json")
        changed = sorted(name for name, value in self._key.items() if value != before.get(name, usual.get(name)))
        if not changed:
            return state
        names = ", ".join(name.replace("_", "-") for name in changed)
        if self.config.resume:
            raise UsageError(f"{self.last}: was made with other settings: {names}", "give --overwrite or another --out")
        note(f"{self.config.out}: trained again, as these changed: {names}")
        return None

    def write_settings(self) -> None:
        """Write `config.toml`."""
        write_text(self.settings, self.config.model_copy(update={"resume": False, "overwrite": False}).to_toml())

    def save(self, state: State) -> None:
        """Write `last.pt`, whole or not at all, and `metrics.csv`."""
        with written_whole(self.last) as file:
            torch.save(state, file)
        if state["history"]:
            write_text(self.metrics, as_csv(state["history"]))


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Give rows of equal keys as CSV; None is empty."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return buffer.getvalue()


def _fingerprint(slides: Sequence[LabelledSlide]) -> str:
    """Give 16 hexadecimal digits that stand for slides, their tiles, labels and splits."""
    text = "\n".join(f"{one.slide} {one.label} {one.split} {one.site} {one.fingerprint}" for one in slides)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
