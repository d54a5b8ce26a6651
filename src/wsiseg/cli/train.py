"""`wsiseg train` and `wsiseg export`: from slides with labels to a model file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from wsiseg.cli.shell import app, command, needing_torch
from wsiseg.cli.streams import Streams
from wsiseg.config.export import ExportConfig
from wsiseg.config.train import TrainConfig

if TYPE_CHECKING:
    from wsiseg.exporting.export import Exported
    from wsiseg.training.train import Trained


@command(app, TrainConfig)
def train(streams: Streams, config: TrainConfig) -> None:
    """Train a tile classifier from one label per slide.

    Writes OUT/best.pt (the checkpoint to export), last.pt, config.toml, metrics.csv and report.html. With --grid,
    writes one such folder per configuration, grid.csv and grid.png. Needs `pip install 'wsiseg[train]'`.

    Run the same command again to continue an interrupted run.

    Examples:
        wsiseg train tiles/cohort.csv --out run
        wsiseg train tiles/cohort.csv --freeze --grid --truth truth --out grid
        wsiseg train tiles/cohort.csv --out run --resume
    """
    trained: Trained = needing_torch("train", "training.train")(config, streams)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun started the first one speaks
        from wsiseg.pages.configurations import export_command  # noqa: PLC0415  loads numerical libraries

        streams.result(trained.as_json(), _train_lines(trained))
        streams.note(f"next, a model file of it:\n{export_command(trained.best)}")


@command(app, ExportConfig)
def export(streams: Streams, config: ExportConfig) -> None:
    """Export a training run as a checked ONNX model file with a model card.

    Writes MODEL.onnx and MODEL.md. Needs `pip install 'wsiseg[train]'`.

    Examples:
        wsiseg export run --out model.onnx
        wsiseg export run --out model.onnx --card card.toml
        wsiseg export run --out fast.onnx --precision int8
        wsiseg export --from-wsinfer breast-tumor-resnet34.tcga-brca --out breast.onnx
    """
    exported: Exported = needing_torch("export", "exporting.export")(config, streams)
    streams.result(exported.as_json(), [str(exported.path), str(exported.page)])


def _train_lines(trained: "Trained") -> Iterator[str]:
    yield str(trained.out / "report.html")
    if trained.configurations:
        from wsiseg.pages.configurations import ranking  # noqa: PLC0415  loads numerical libraries

        yield "AUC of configurations, best first by the validation slides:"
        yield from _aligned([[one.removesuffix(" AUC") for one in row] for row in ranking(trained.configurations)], 2)
        yield str(trained.out / "grid.csv")
    else:
        yield from _aligned(_measures(trained.best.figures), 1)
    yield str(trained.best.out / "best.pt")


def _measures(figures: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> list[list[str]]:
    """Return heads and rows of a table: a row for each split."""
    names = list(next(iter(figures.values()), {}).get("all", {}))
    texts = {
        split: ["" if one is None else f"{one:.3f}" for one in map(groups["all"].get, names)]
        for split, groups in figures.items()
    }
    return [["", *names], *([split, *row] for split, row in texts.items())]


def _aligned(rows: Sequence[Sequence[str]], names: int) -> Iterator[str]:
    """Write a table whose first columns, so many, are names and the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [one.rjust(width) for one, width in zip(row, widths, strict=True)]
        cells[names - 1] = row[names - 1].ljust(widths[names - 1])
        yield "  ".join(cells)
