"""`wsiseg train`: bags of tiles + one label per slide -> checkpoint."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsiseg.cli.options import Out, Overwrite
from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.config.train import TrainConfig
from wsiseg.run.errors import WsisegError

if TYPE_CHECKING:
    from wsiseg.training.train import Trained

_TUNING, _SPEED = "Fine-tuning", "Speed and saving"


def _tuning(help: str) -> Any:  # noqa: ANN401  what typer.Option gives
    return typer.Option(help=help, rich_help_panel=_TUNING)


def _speed(help: str) -> Any:  # noqa: ANN401  what typer.Option gives
    return typer.Option(help=help, rich_help_panel=_SPEED)


@command(app)
def train(
    streams: Streams,
    cohort: Annotated[Path, typer.Argument(help="The cohort CSV that wsiseg tile wrote.", show_default=False)],
    out: Out,
    alpha: Annotated[float, typer.Option(help="Least share of tumour assumed in a tumour slide.")] = 0.2,
    beta: Annotated[float, typer.Option(help="Least share of normal tissue assumed in a tumour slide.")] = 0.2,
    grid: Annotated[bool, typer.Option("--grid", help="Train 15 configurations of alpha and beta.")] = False,
    supervised: Annotated[
        bool, typer.Option("--supervised", help="Train on true tile labels too, the grid's upper bound. Needs --truth.")
    ] = False,
    top: Annotated[int, typer.Option(help="Fine-tune so many of the best of a frozen grid.")] = 0,
    tune_lr: Annotated[float, _tuning("Learning rate of what --top fine-tunes.")] = 1e-5,
    tune_epochs: Annotated[int, _tuning("Epochs of what --top fine-tunes.")] = 5,
    truth: Annotated[Path | None, typer.Option(help="Folder of outlines or masks, for measures by pixel.")] = None,
    arch: Annotated[str, typer.Option(help="A torchvision classifier, or timm:NAME.")] = "resnet50",
    init: Annotated[str, typer.Option(help="imagenet, none, or a file: state dict or checkpoint.")] = "imagenet",
    freeze: Annotated[bool, typer.Option("--freeze", help="Compute features once and train the head alone.")] = False,
    views: Annotated[int, typer.Option(help="Copies of a training tile with --freeze, augmented but the first.")] = 1,
    epochs: Annotated[int, typer.Option(help="Times that every training slide is visited.")] = 20,
    bag: Annotated[int, typer.Option(help="Tiles drawn from a slide at a time.")] = 150,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or any device that PyTorch names.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from last.pt; refuse other settings.")] = False,
    overwrite: Overwrite = False,
    c0: Annotated[float, _tuning("Weight of slides without tumour.")] = 1.0,
    c1: Annotated[float, _tuning("Weight of slides with tumour.")] = 1.0,
    loss: Annotated[str, _tuning("cross-entropy, focal, or dense (at every position of the map).")] = "cross-entropy",
    optimizer: Annotated[str, _tuning("adam or sgd.")] = "adam",
    schedule: Annotated[str, _tuning("constant, or cosine down to zero.")] = "constant",
    weight_decay: Annotated[float, _tuning("Share by which weights shrink per step and learning rate.")] = 0.0,
    balance: Annotated[
        bool,
        typer.Option("--balance", help="Visit slides of the rarer class more often.", rich_help_panel=_TUNING),
    ] = False,
    guard: Annotated[float, _tuning("Share of slides, those of the highest risk, left out for an epoch.")] = 0.0,
    colors: Annotated[str, _tuning("Standardise by colours of the cohort or of the starting weights.")] = "auto",
    stain_jitter: Annotated[float, _tuning("Largest random change of the amounts of stain.")] = 0.0,
    context: Annotated[int | None, _tuning("Side in pixels of crops around the tiles.")] = None,
    parts: Annotated[int, _tuning("Tile-sized parts of each crop to learn from.")] = 1,
    train_last: Annotated[int | None, _tuning("Train only so many of the last blocks, and the head.")] = None,
    batch_norm: Annotated[str, _tuning("train, or frozen statistics.")] = "train",
    average: Annotated[float, _tuning("Decay of a moving average of the weights; 0 for none.")] = 0.0,
    test_views: Annotated[int, _tuning("Turned copies of a tile averaged in validation, up to 8.")] = 1,
    micro_batch: Annotated[int | None, _speed("Tiles held with their gradients; all of a bag by default.")] = None,
    accumulate: Annotated[int, _speed("Slides averaged in a step, in each process.")] = 1,
    precision: Annotated[str, _speed("float32 or bfloat16.")] = "float32",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the network first.", rich_help_panel=_SPEED)
    ] = False,
    validation_tiles: Annotated[int, _speed("Tiles of a validation slide looked at per epoch at most.")] = 600,
    threads: Annotated[int, _speed("Threads that read tiles.")] = 2,
    save_minutes: Annotated[float, _speed("Minutes between savings within an epoch.")] = 10.0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves for TensorBoard too.", rich_help_panel=_SPEED)
    ] = False,
) -> None:
    """Train a tile classifier from one label per slide.

    Writes OUT/best.pt, last.pt, config.toml, metrics.csv and report.html; with --grid one folder each, grid.csv and
    grid.png. The same command again goes on where it was stopped.

    Examples:
        wsiseg train tiles/cohort.csv --out run

        wsiseg train tiles/cohort.csv --freeze --grid --truth truth --supervised --out grid

        wsiseg train tiles/cohort.csv --out run --resume
    """
    values = {name: value for name, value in locals().items() if name != "streams"}
    config = TrainConfig.checked(**values)
    try:
        from wsiseg.training.train import train as run  # noqa: PLC0415  loads torch
    except ModuleNotFoundError as error:
        raise WsisegError(f"train needs {error.name}, which is not installed", "pip install 'wsiseg[train]'") from error
    trained = run(config, streams)
    if os.environ.get("RANK", "0") != "0":
        return  # of the processes that torchrun started the first one speaks
    streams.result(trained.as_json(), _lines(trained))


def _lines(trained: "Trained") -> Iterator[str]:
    for split, groups in trained.best.figures.items():
        known = {name: value for name, value in groups["all"].items() if value is not None}
        yield f"{split}: " + ", ".join(f"{name} {value:.3f}" for name, value in known.items())
    yield str(trained.best.out / "best.pt")
    if trained.configurations:
        yield str(trained.out / "grid.csv")
