"""`wsiseg train`: bags of tiles + one label per slide -> checkpoint."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.config.train import TrainConfig
from wsiseg.run.errors import WsisegError

if TYPE_CHECKING:
    from wsiseg.training.train import Trained


@command(app, TrainConfig)
def train(streams: Streams, config: TrainConfig) -> None:
    """Train a tile classifier from one label per slide.

    Writes OUT/best.pt, last.pt, config.toml, metrics.csv and report.html; with --grid one folder each, grid.csv and
    grid.png. The same command again goes on where it was stopped.

    Examples:
        wsiseg train tiles/cohort.csv --out run
        wsiseg train tiles/cohort.csv --freeze --grid --truth truth --supervised --out grid
        wsiseg train tiles/cohort.csv --out run --resume
    """
    try:
        from wsiseg.training.train import train as run  # noqa: PLC0415  loads torch
    except ModuleNotFoundError as error:
        raise WsisegError(f"train needs {error.name}, which is not installed", "pip install 'wsiseg[train]'") from error
    trained = run(config, streams)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun started the first one speaks
        streams.result(trained.as_json(), _lines(trained))


def _lines(trained: "Trained") -> Iterator[str]:
    for split, groups in trained.best.figures.items():
        known = {name: value for name, value in groups["all"].items() if value is not None}
        yield f"{split}: " + ", ".join(f"{name} {value:.3f}" for name, value in known.items())
    yield str(trained.best.out / "best.pt")
    if trained.configurations:
        yield str(trained.out / "grid.csv")
