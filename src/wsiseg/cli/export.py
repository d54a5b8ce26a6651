"""`wsiseg export`: checkpoint -> model file."""

from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.config.export import ExportConfig
from wsiseg.run.errors import WsisegError


@command(app, ExportConfig)
def export(streams: Streams, config: ExportConfig) -> None:
    """Write a checked ONNX model file that explains itself, and its model card.

    Writes MODEL.onnx and MODEL.md.

    Examples:
        wsiseg export run --out model.onnx
        wsiseg export run --out fast.onnx --precision int8
        wsiseg export --from-wsinfer breast-tumor-resnet34 --out breast.onnx
    """
    try:
        from wsiseg.exporting.export import export as write  # noqa: PLC0415  loads torch
    except ModuleNotFoundError as error:
        raise WsisegError(
            f"export needs {error.name}, which is not installed", "pip install 'wsiseg[train]'"
        ) from error
    exported = write(config, streams)
    streams.result(exported.as_json(), [str(exported.path), str(exported.page)])
