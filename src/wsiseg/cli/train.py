"""`wsiseg train`."""

from pathlib import Path
from typing import Annotated

import typer

from wsiseg.cli.options import Out, Overwrite
from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.config import TrainConfig
from wsiseg.errors import WsisegError


@command(app)
def train(
    streams: Streams,
    cohort: Annotated[Path, typer.Argument(help="The cohort CSV that wsiseg tile wrote.", show_default=False)],
    out: Out,
    alpha: Annotated[float, typer.Option(help="Least share of tumour assumed in a tumour slide.")] = 0.2,
    beta: Annotated[float, typer.Option(help="Least share of normal tissue assumed in a tumour slide.")] = 0.2,
    arch: Annotated[str, typer.Option(help="A torchvision classifier, or timm:NAME.")] = "resnet50",
    init: Annotated[str, typer.Option(help="imagenet, none, or a file with a state dict.")] = "imagenet",
    freeze: Annotated[bool, typer.Option("--freeze", help="Compute features once and train the head alone.")] = False,
    epochs: Annotated[int, typer.Option(help="Times that every training slide is visited.")] = 20,
    bag: Annotated[int, typer.Option(help="Tiles drawn from a slide at a time.")] = 150,
    micro_batch: Annotated[
        int | None, typer.Option(help="Tiles held with their gradients at a time; all of a bag by default.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate of Adam.")] = 1e-4,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, or any device that PyTorch names.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint; begin where there is none.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a tile classifier from one label per slide.

    Writes OUT/best.pt, OUT/last.pt, OUT/config.toml and OUT/metrics.csv.

    Examples:
        wsiseg train tiles/cohort.csv --out run

        wsiseg train tiles/cohort.csv --freeze --epochs 10 --out quick

        wsiseg train tiles/cohort.csv --out run --resume
    """
    try:
        from wsiseg.train import train as train_one  # noqa: PLC0415  loads torch
    except ModuleNotFoundError as error:
        raise WsisegError(f"train needs {error.name}, which is not installed", "pip install 'wsiseg[train]'") from error
    trained = train_one(
        TrainConfig.checked(
            cohort=cohort, out=out, alpha=alpha, beta=beta, arch=arch, init=init, freeze=freeze, epochs=epochs,
            bag=bag, micro_batch=micro_batch, lr=lr, seed=seed, device=device, resume=resume, overwrite=overwrite,
        ),
        streams,
    )  # fmt: skip
    value = {"schema": "wsiseg.train/1", "out": str(trained.out), "status": trained.status,
             "best_epoch": trained.best_epoch, "epochs": trained.epochs, "figures": trained.figures}  # fmt: skip
    streams.result(value, [str(trained.out / "best.pt")])
