"""The training loop."""

import math
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from wsiseg.config.train import TrainConfig
from wsiseg.run.errors import WsisegError
from wsiseg.run.pace import Pace
from wsiseg.run.record import Progress
from wsiseg.training.bags import ahead, drawn, epoch_of, place_among, visits_of
from wsiseg.training.processes import Processes, stop_asked
from wsiseg.training.run_folder import Row, RunFolder, State
from wsiseg.training.scoring import by_class, mean_of, pixel_measures, slide_measures
from wsiseg.training.slides import LabelledSlide
from wsiseg.training.step import Stepper, moving_average, optimizer_of, set_learning_rate, set_training
from wsiseg.training.task import Task

_THRESHOLD = 0.5
_RISKS_AT_ONCE = 16
_LONG_S = 5.0  # an epoch
_Risk = tuple[Tensor, str, int]
"""The risk of a bag, its slide and how many tiles count for it."""
_LOWER = "lower --lr; the last good state is kept"


@dataclass(frozen=True)
class Learner:
    """A network, what moves its weights, the moving average of these if there is one, and how far it has come."""

    task: Task
    config: TrainConfig
    folder: RunFolder
    processes: Processes
    stepper: Stepper
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    state: State

    @classmethod
    def of(cls, task: Task, config: TrainConfig, folder: RunFolder, processes: Processes) -> "Learner":
        """Begin, or go on from the state in the folder."""
        optimizer = optimizer_of(task.network, config)
        average = moving_average(task.network, config.average) if config.average else None
        state = folder.earlier()
        processes.wait()  # until every process has read it, before it goes where a run begins
        if state is not None:
            task.network.load_state_dict(state.network)
            optimizer.load_state_dict(state.optimizer)
            if average is not None:
                average.load_state_dict(state.average or {})
            if not processes.is_first:
                state.risks = []
            if state.processes not in {0, processes.count}:
                visits = len(_order(task, config, state.epoch))
                state.place = place_among(state.place, state.processes, visits, config.accumulate, processes.count)
        stepper = Stepper(config, task.device)
        return cls(task, config, folder, processes, stepper, optimizer, average, state or folder.begin())

    @property
    def kept(self) -> nn.Module:
        """The network that is validated and kept: the average where there is one."""
        return self.average.module if self.average is not None else self.task.network

    def move(self, done: float) -> None:
        """Move the weights along the gradients that were added up, when a share `done` of all steps is done."""
        set_learning_rate(self.optimizer, self.config, done)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(self.task.network)

    def save(self) -> None:
        """Write `last.pt`."""
        # Copies, as the best epoch's weights take the place of the last one's before the state is saved as finished.
        self.state.network = {name: value.clone() for name, value in self.task.network.state_dict().items()}
        self.state.optimizer = self.optimizer.state_dict()
        self.state.processes = self.processes.count
        self.state.average = None if self.average is None else self.average.state_dict()
        if self.processes.is_first:
            self.folder.save(self.state)


def fit(task: Task, config: TrainConfig, folder: RunFolder, processes: Processes, progress: Progress) -> State:
    """Visit the training slides in epochs, as `epoch_of` tells; keep the epoch that is best on the validation slides.

    Everything random in a visit follows from the seed, the epoch and the visit's place in it. So a run that was
    interrupted and goes on has the same weights as one that was not, and several processes as one that accumulates.

    Returns:
        The last state.

    Raises:
        WsisegError: The risk or a weight is NaN or infinite, or a slide cannot be read. What was saved before is kept.
    """
    learner = Learner.of(task, config, folder, processes)
    state = learner.state
    network = processes.joined(task.network)
    visits = len(_order(task, config, 0))
    pace = Pace((config.epochs - state.epoch) * visits - state.place * processes.count)
    with stop_asked() as asked:
        while state.epoch < config.epochs:
            if not _visit(learner, network, pace, progress, asked):
                if not asked():
                    # Another process was asked to stop: this one must not go on without it.
                    signal.raise_signal(signal.SIGTERM)
                return state
            processes.agree(learner.kept)
            row = _measured(learner)
            state.finished = False  # as a run may be that is to go on with more epochs
            if better(row, state.best, is_taught=bool(config.teacher)):
                state.best = row
                if processes.is_first:
                    task.checkpoint(learner.kept, config, row).save(folder.best)
            state.history.append(row)
            state.epoch, state.place, state.risks, state.seconds, state.waited = state.epoch + 1, 0, [], 0.0, 0.0
            learner.save()
            progress.note(f"epoch {_said(row, config.epochs, pace.left())}")
    return state


def _visit(learner: Learner, network: nn.Module, pace: Pace, progress: Progress, asked: Callable[[], bool]) -> bool:
    """Visit the rest of an epoch's slides; save and return False as soon as somebody asks to stop."""
    config, state, task, processes = learner.config, learner.state, learner.task, learner.processes
    order = _order(task, config, state.epoch)
    visits = visits_of(order, (config.seed, state.epoch), config.accumulate, processes.rank, processes.count)
    set_training(network, task.classifier, config)
    learner.optimizer.zero_grad()
    began = saved = time.monotonic()
    tasks = [partial(drawn, visit, task.source, config.bag, task.labels) for visit in visits[state.place :]]
    risks: list[_Risk] = []
    most = 1 if task.device.type == "cpu" else _RISKS_AT_ONCE
    with closing(ahead(tasks, config.bag * task.source.bytes_of(task.slides[0]))) as bags:
        for place in range(state.place, len(visits)):
            visit, asked_at = visits[place], time.monotonic()
            bag = next(bags)
            state.waited += time.monotonic() - asked_at
            torch.manual_seed(mixed(*visit.seed))
            risk = learner.stepper.backward(network, bag, is_last=visit.ends_step)
            risks.append((risk, bag.slide.slide, len(bag.tiles) if visit.weight > 0 else 0))
            if len(risks) >= most or place + 1 == len(visits):
                _learn(state, risks)
            pace.advance(processes.count)
            if pace.is_due():
                _learn(state, risks)
                progress.note(f"training: {pace.done:.0f} of {pace.total} slides, {_speed(state)}, {pace.left()}")
            if not visit.ends_step:
                continue
            learner.move((state.epoch + place / len(visits)) / config.epochs)
            now = time.monotonic()
            state.place, state.seconds, began = place + 1, state.seconds + now - began, now
            is_asked = processes.any(asked())
            if is_asked or state.place == len(visits) or now - saved > 60 * config.save_minutes:
                _learn(state, risks)
                _check_weights(
                    task.network, f"{bag.slide.slide}: NaN or infinity in the weights in epoch {state.epoch + 1}"
                )
                learner.save()
                saved = now
            if is_asked:
                return False
    return True


def _order(task: Task, config: TrainConfig, epoch: int) -> list[LabelledSlide]:
    return epoch_of(task.split("train"), config, epoch)


def _learn(state: State, risks: list[_Risk]) -> None:
    """Learn the risks of the last bags, for which the device must come to an end of its work."""
    found = torch.stack([risk for risk, _, _ in risks]).tolist() if risks else []
    for value, (_, slide, tiles) in zip(found, risks, strict=True):
        if not math.isfinite(value):
            raise WsisegError(f"{slide}: the risk is {value} in epoch {state.epoch + 1}", _LOWER)
        state.risks += [(value, tiles)] if tiles else []
    risks.clear()


def _check_weights(network: nn.Module, message: str) -> None:
    """Refuse weights that must not take the place of what was saved before."""
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise WsisegError(message, _LOWER)


def mixed(*numbers: int) -> int:
    """Mix numbers into one seed for torch."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def better(row: Row, best: Row | None, *, is_taught: bool = False) -> bool:
    """Compare epochs by the AUC of the validation slides, then by their risk; without such slides the later wins.

    What a teacher says of every tile tells more than the label of a slide: there the risk alone counts.
    """
    if best is None or row["val_risk"] is None:
        return True
    rank, rank_of_best = ((0.0 if is_taught else one["val_slide_auc"] or 0.0, -one["val_risk"]) for one in (row, best))
    return rank > rank_of_best


def _measured(learner: Learner) -> Row:
    """Return the row of `metrics.csv` for the epoch that has just been visited."""
    began = time.monotonic()
    config, state, task = learner.config, learner.state, learner.task
    found = task.scores(learner.kept, ["val"], config, learner.processes)
    risks = learner.processes.gathered(state.risks)
    tiles, seconds = sum(tiles for _, tiles in risks), max(state.seconds, 1e-9)
    row: Row = {"epoch": state.epoch + 1, "risk": float(np.mean([risk for risk, _ in risks]))}
    row |= {f"val_{name}": value for name, value in slide_measures(found, learner.stepper.risk, task.labels).items()}
    if any(task.truths):
        seen = zip(by_class(found, len(task.truths)), task.truths, strict=True)
        row["val_pixel_auc"] = mean_of([pixel_measures(one, truths, _THRESHOLD) for one, truths in seen])["auc"]
    row |= {"lr": learner.optimizer.param_groups[0]["lr"], "tiles_per_s": tiles / seconds}
    return row | {"waiting": state.waited / seconds, "seconds": seconds + time.monotonic() - began}


def _speed(state: State) -> str:
    said = f"epoch {state.epoch + 1}, risk {float(np.mean([risk for risk, _ in state.risks])):.4f}"
    if not state.seconds:  # the clock of an epoch is set after its first slide
        return said
    tiles = sum(tiles for _, tiles in state.risks)
    return f"{said}, {tiles / state.seconds:.1f} tiles/s, {state.waited / state.seconds:.0%} waiting"


def _said(row: Row, epochs: int, left: str) -> str:
    """Say what came of an epoch; how fast it was and how long the others will take, unless that is no time at all."""
    names = {"val_risk": "val risk", "val_slide_auc": "slide AUC", "val_pixel_auc": "pixel AUC"}
    measures = "".join(f", {names[name]} {row[name]:.3f}" for name in names if row.get(name) is not None)
    is_long = row["seconds"] > _LONG_S
    speed = f", {row['tiles_per_s']:.1f} tiles/s, {row['waiting']:.0%} waiting, {left}" if is_long else ""
    return f"{row['epoch']}/{epochs}: risk {row['risk']:.3f}{measures}{speed}"
