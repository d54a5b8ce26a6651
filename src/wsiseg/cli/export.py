"""`wsiseg export`."""

from pathlib import Path
from typing import Annotated

import typer

from wsiseg.cli.options import Overwrite
from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.config.export import ExportConfig
from wsiseg.run.errors import WsisegError


@command(app)
def export(
    streams: Streams,
    out: Annotated[Path, typer.Option("--out", help="The model file to write, as MODEL.onnx.", show_default=False)],
    run: Annotated[
        Path | None,
        typer.Argument(help="Folder of a training run, or one of its checkpoints.", show_default=False),
    ] = None,
    from_torch: Annotated[
        Path | None, typer.Option(help="In place of RUN: a state dict of PyTorch or safetensors.")
    ] = None,
    from_wsinfer: Annotated[Path | None, typer.Option(help="In place of RUN: folder of a WSInfer model.")] = None,
    arch: Annotated[
        str | None, typer.Option(help="Network of --from-torch: a torchvision classifier, or timm:NAME.")
    ] = None,
    positive_class: Annotated[
        str | None, typer.Option(help="Class whose probability is given, where none is called tumor.")
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Side of a tile of --from-torch in pixels; 224 by default.")] = None,
    mpp: Annotated[float | None, typer.Option(help="Micrometers per pixel of --from-torch; 0.5 by default.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 (for GPUs) or int8 (for CPUs).")] = "fp32",
    output_stride: Annotated[
        int | None, typer.Option(help="32 or 16 input pixels per cell of the dense map; the network's own by default.")
    ] = None,
    unknown_penalty: Annotated[
        float, typer.Option(help="Logits that tiles lose for being unlike the training tiles.")
    ] = 0.0,
    texture_penalty: Annotated[
        float, typer.Option(help="Logits that tiles lose for textures unlike those of the training's tumour.")
    ] = 0.0,
    threshold: Annotated[
        float | None, typer.Option(help="Probability from which a cell is tumour; the training's by default.")
    ] = None,
    map: Annotated[str, typer.Option(help="Kind of map that predict makes by default: tile or dense.")] = "tile",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Folder of images or tiled cohort CSV to calibrate and compare with."),
    ] = None,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Write the file even if it strays from the network.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    model_version: Annotated[str, typer.Option(help="Version of the model.")] = "1",
    licence: Annotated[str, typer.Option(help="Terms under which it may be used.")] = "not stated",
    data: Annotated[str | None, typer.Option(help="A sentence on the data it was trained on.")] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="A sentence on what it cannot do, for its card; may be repeated.")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="metrics.json of wsiseg evaluate, for the model card.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a checked ONNX model file that explains itself, and its model card.

    Writes MODEL.onnx and MODEL.md.

    Examples:
        wsiseg export run --out model.onnx

        wsiseg export run --out fast.onnx --precision int8

        wsiseg export --from-wsinfer breast-tumor-resnet34 --out breast.onnx
    """
    try:
        from wsiseg.exporting.export import export as export_model  # noqa: PLC0415  loads torch
    except ModuleNotFoundError as error:
        raise WsisegError(
            f"export needs {error.name}, which is not installed", "pip install 'wsiseg[train]'"
        ) from error
    exported = export_model(
        ExportConfig.checked(
            out=out, run=run, from_torch=from_torch, from_wsinfer=from_wsinfer, arch=arch, tile=tile, mpp=mpp,
            positive_class=positive_class, precision=precision, output_stride=output_stride, map=map,
            unknown_penalty=unknown_penalty, texture_penalty=texture_penalty, threshold=threshold,
            calibration=calibration, allow_loss=allow_loss, name=name, model_version=model_version, licence=licence,
            data=data, limit=limit or (), figures=figures, overwrite=overwrite,
        ),
        streams,
    )  # fmt: skip
    streams.result(exported.as_json(), [str(exported.path), str(exported.page)])
