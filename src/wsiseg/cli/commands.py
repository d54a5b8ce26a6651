"""The commands that do one thing each: settings -> one call to a verb -> its result printed."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wsiseg.cli.shell import StoppedError, app, command, needing_torch
from wsiseg.cli.streams import Streams, fitted
from wsiseg.config.doctor import DoctorConfig, InitConfig
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.config.export import ExportConfig
from wsiseg.config.predict import ConvertConfig, PredictConfig, ViewConfig
from wsiseg.config.tile import TileConfig
from wsiseg.config.train import TrainConfig
from wsiseg.run.memory import give_back_large_arrays

if TYPE_CHECKING:
    from wsiseg.evaluation.metrics_file import Report
    from wsiseg.exporting.export import Exported
    from wsiseg.run.proof import Findings
    from wsiseg.training.train import Trained


@command(app, InitConfig)
def init(streams: Streams, config: InitConfig) -> None:
    """Begin a study: write a table of slides to fill in, and every setting with what it means.

    Writes FOLDER/cohort.csv, with a row for each slide that lies there, and FOLDER/tile.toml, train.toml, predict.toml
    and evaluate.toml for --config. What is there already stays as it is.

    Examples:
        wsiseg init
        wsiseg init study
    """
    from wsiseg.slides.init import init as begin  # noqa: PLC0415  loads numerical libraries

    begun = begin(config)
    for path in begun.kept:
        streams.note(f"{path}: stays as it is")
    streams.result({name: list(map(str, paths)) for name, paths in vars(begun).items()}, map(str, begun.written))


@command(app, TileConfig)
def tile(streams: Streams, config: TileConfig) -> int:
    """Find the tissue of slides and the tiles that cover it.

    Writes OUT/SLIDE.tiles.zarr, OUT/SLIDE.png (what was kept), OUT/cohort.csv, OUT/run.json and OUT/report.html, a
    table of all slides to look at. Prints where the page and the cohort are and what became of each slide.

    Examples:
        wsiseg tile slides/ --out tiles
        wsiseg tile cohort.csv --out tiles --pixels --jobs 4
        wsiseg tile scan.tiff --slide-mpp 0.25 --out tiles
    """
    from wsiseg.tiles.tile import tile as tile_slides  # noqa: PLC0415  loads numerical libraries

    return streams.run(tile_slides(config, streams), [config.out / "report.html", config.out / "cohort.csv"])


@command(app, TrainConfig)
def train(streams: Streams, config: TrainConfig) -> None:
    """Train a tile classifier from one label per slide.

    Writes OUT/best.pt, last.pt, config.toml, metrics.csv and report.html; with --grid one folder each, grid.csv and
    grid.png. The same command again goes on where it was stopped.

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
    """Write a checked ONNX model file that explains itself, and its model card.

    Writes MODEL.onnx and MODEL.md.

    Examples:
        wsiseg export run --out model.onnx
        wsiseg export run --out model.onnx --card card.toml
        wsiseg export run --out fast.onnx --precision int8
        wsiseg export --from-wsinfer breast-tumor-resnet34 --out breast.onnx
    """
    exported: Exported = needing_torch("export", "exporting.export")(config, streams)
    streams.result(exported.as_json(), [str(exported.path), str(exported.page)])


@command(app, PredictConfig)
def predict(streams: Streams, config: PredictConfig) -> int:
    """Map tumour on slides.

    Writes for every slide OUT/SLIDE.ome.zarr (probabilities), OUT/SLIDE.geojson (outlines for QuPath) and
    OUT/SLIDE.png, and OUT/run.json with what became of each, OUT/slides.csv with a row for each, and OUT/report.html
    to look at. Prints where the page is and what became of each slide.

    Examples:
        wsiseg predict slide.svs
        wsiseg predict slides/ --dry-run
        wsiseg predict slides/ --model mine.onnx --out maps --csv
        ls *.svs | wsiseg predict - --json
    """
    give_back_large_arrays()
    from wsiseg.prediction.predict import predict_slides  # noqa: PLC0415  loads numerical libraries

    run = predict_slides(config, streams)
    return streams.run(run, [] if config.dry_run else [config.report])


@command(app, ViewConfig)
def view(streams: Streams, config: ViewConfig) -> int:
    """Look at slides with their maps in a browser, on this machine alone.

    Prints the address of the page, and answers until it is interrupted (Ctrl-C). Who does not know the token in the
    address is refused.

    Examples:
        wsiseg view
        wsiseg view maps --truth outlines
        wsiseg view maps --slides /mnt/slides --port 8000
    """
    from wsiseg.heatmap.view import viewing  # noqa: PLC0415  loads numerical libraries

    with viewing(config) as server:
        streams.result({"address": server.address}, [server.address])
        streams.note("open this address in a browser; Ctrl-C ends it")
        try:
            server.serve_forever()
        except StoppedError as stopped:  # so it ends, and there is nothing to go on with
            return 128 + int(stopped.args[0])
    return 0


@command(app, ConvertConfig)
def convert(streams: Streams, config: ConvertConfig) -> int:
    """Write maps in the forms of other programs: DICOM objects that lie on their DICOM slides, OME-TIFF, CSV.

    Writes for every slide OUT/SLIDE.segmentation.dcm and OUT/SLIDE.probability.dcm, OUT/SLIDE.map.dcm,
    OUT/SLIDE.map.ome.tiff, OUT/SLIDE.ngff.zarr, OUT/SLIDE.spatialdata.zarr or OUT/SLIDE.csv, as --to says, and
    OUT/run.convert.json.

    Examples:
        wsiseg convert maps --to dicom-seg --to dicom-map
        wsiseg convert maps --to dicom-seg --dicomize --out dicom
        wsiseg convert maps --to csv --slide CMU-1
    """
    from wsiseg.heatmap.convert import convert as convert_maps  # noqa: PLC0415  loads numerical libraries

    return streams.run(convert_maps(config, streams))


@command(app, DoctorConfig)
def doctor(streams: Streams, config: DoctorConfig) -> int:
    """Examine the installation, a slide or a model file, or verify a run, and print what was found.

    A run is verified against its run.json: its files, the record itself, the model and the slides. Exits with 1 where
    anything differs, or where tiles of a slide cannot be read.

    Examples:
        wsiseg doctor
        wsiseg doctor slide.svs --deep
        wsiseg doctor --model mine.onnx --json
        wsiseg doctor wsiseg-out --sample 50
    """
    from wsiseg.doctor import doctor as examine  # noqa: PLC0415  loads numerical libraries
    from wsiseg.prediction.verify import is_of_run, verify  # noqa: PLC0415  the same

    findings = (verify if is_of_run(config.slide) else examine)(config, streams)
    streams.result(findings.as_json(), _findings_lines(findings))
    return findings.exit_code


@command(app, EvaluateConfig)
def evaluate(streams: Streams, config: EvaluateConfig) -> int:
    """Measure tumour maps against truth, pixel by pixel, or against percentages of tumour.

    Truth may be outlines of QuPath, ASAP, ImageScope or CAMELYON, masks, NGFF labels or other heatmaps. Leaves with 3
    where a gate (--fail-under, --fail-over) is not met, with 1 where a slide failed or has no map.

    Examples:
        wsiseg evaluate maps --truth outlines
        wsiseg evaluate maps --truth outlines --cohort cohort.csv --out evaluation
        wsiseg evaluate maps --truth outlines --fail-under auc=0.8 --junit ci.xml
        wsiseg evaluate maps --cohort cohort.csv --out evaluation
        wsiseg evaluate --pcam pcam --model mine.onnx --out evaluation
    """
    from wsiseg.evaluation.evaluate import evaluate as measure  # noqa: PLC0415  loads numerical libraries
    from wsiseg.evaluation.plots import write_paper_tables  # noqa: PLC0415  the same

    if config.grid is not None and config.out is not None:
        paths = [str(path) for path in write_paper_tables(config.grid, config.out)]
        streams.result({"outputs": paths}, paths)
        return 0
    report = measure(config, streams)
    _tell(streams, report, config.out)
    return report.exit_code


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


def _findings_lines(findings: "Findings") -> Iterator[str]:
    facts = [f"{name}: {_text(value)}" for facts in findings.facts.values() for name, value in facts.items()]
    page = [f"\n{findings.page}"] if findings.page else []
    for text in (*facts, *page, *(f"problem: {one}" for one in findings.problems)):
        yield fitted(text, sys.stdout)


def _text(value: Any) -> str:  # noqa: ANN401  any JSON value
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items()) or "nothing"
    if isinstance(value, list | tuple):
        return ", ".join(_text(one) for one in value) or "none"
    return "none" if value is None else str(value)


def _tell(streams: Streams, report: "Report", out: Path | None) -> None:
    from wsiseg.evaluation.gate import gate_lines  # noqa: PLC0415  loads numerical libraries

    for note in report.notes:
        streams.note(f"note: {note}")
    for line in gate_lines(report):
        typer.echo(line, err=True)
    page = [] if out is None else [str(out / "report.html")]
    streams.result(report.model_dump(mode="json", by_alias=True), [*page, *_report_lines(report)])


def _report_lines(report: "Report") -> Iterator[str]:
    from wsiseg.evaluation.metrics_file import measured, with_interval  # noqa: PLC0415  only here

    if report.others:
        for each in (report.model_copy(update={"others": ()}), *report.others):
            yield f"class {each.positive_class}"
            yield from _report_lines(each)
        return
    yield f"{report.scope}:"
    yield f"{'':20}{''.join(f'{head:>28}' for head in report.columns)}"
    for name, texts in report.rows.items():
        yield f"{name:20}{''.join(f'{text:>28}' for text in texts)}"
    if report.slide_auc:
        yield f"{'slide_auc':20}{with_interval(report.slide_auc):>28}"
    percentages = report.percentages or {}
    for name, one in measured(percentages).items():
        yield f"{name:20}{with_interval(one):>28}  percentages of {percentages['slides']} slides"
    yield f"{'threshold':20}{report.threshold.value:>28.4f}  ({report.threshold.origin})"
