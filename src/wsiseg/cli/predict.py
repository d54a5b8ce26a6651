"""`wsiseg predict`."""

from pathlib import Path
from typing import Annotated

import typer

from wsiseg.cli.options import Device, Inputs, MaxBadTiles, MinTissue, Overwrite, SlideMpp, Tissue
from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams, run_lines
from wsiseg.config.settings import PredictConfig
from wsiseg.run.memory import give_back_large_arrays


@command(app)
def predict(
    streams: Streams,
    inputs: Inputs,
    model: Annotated[list[str], typer.Option(help="Model file; several are combined.")] = ["default"],  # noqa: B006  Typer copies it
    combine: Annotated[
        str, typer.Option(help="How several models are combined: mean, max, min, or vote (share at their thresholds).")
    ] = "mean",
    keep_members: Annotated[
        bool, typer.Option("--keep-members", help="Write each of several models' own map too, to OUT/members.")
    ] = False,
    views: Annotated[
        int, typer.Option(help="Average over so many views, turned and mirrored: 4 all turns, 8 mirrored too.", max=8)
    ] = 1,
    out: Annotated[Path, typer.Option(help="Folder for the maps.")] = Path("wsiseg-out"),
    slide_mpp: SlideMpp = None,
    device: Device = "auto",
    tissue: Tissue = "auto",
    min_tissue: MinTissue = 0.5,
    roi: Annotated[
        str | None, typer.Option(help="Look only in these GeoJSON outlines or mask, or a folder of them by slide name.")
    ] = None,
    exclude: Annotated[
        str | None, typer.Option(help="Do not look in these outlines or mask, or a folder of them by slide name.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Probability from which a cell is tumour; by default the model's own.", min=0, max=1),
    ] = None,
    map: Annotated[str, typer.Option(help="dense, tile, or auto for the model's better one.")] = "auto",
    stride: Annotated[
        int | None,
        typer.Option(help="Distance of tiles in the model's pixels, for tile maps of overlapping tiles."),
    ] = None,
    shard: Annotated[str | None, typer.Option(help="I/N: only the slides of part I of N, counted from 1.")] = None,
    dask: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Work on a Dask cluster: a scheduler's address, or local:N."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Write the cells as CSV too.")] = False,
    ngff: Annotated[str, typer.Option(help="Version of the heatmap's format: 0.4 or 0.5.")] = "0.4",
    max_bad_tiles: MaxBadTiles = 0.01,
    read_timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Give a slide up when reading from it hangs for so long.")
    ] = 300.0,
    overwrite: Overwrite = False,
) -> int:
    """Map tumour on slides.

    Writes for every slide OUT/SLIDE.ome.zarr (probabilities), OUT/SLIDE.geojson (outlines for QuPath) and
    OUT/SLIDE.png, and OUT/run.json with what became of each and OUT/report.html to look at.

    Examples:
        wsiseg predict slide.svs
        wsiseg predict slides/ --model mine.onnx --out maps --csv
        ls *.svs | wsiseg predict - --json
    """
    give_back_large_arrays()
    from wsiseg.prediction.predict import predict_slides  # noqa: PLC0415  loads numerical libraries

    config = PredictConfig.checked(
        inputs=inputs, model=model, combine=combine, keep_members=keep_members, views=views, out=out,
        slide_mpp=slide_mpp, device=device, tissue=tissue, min_tissue=min_tissue, roi=roi, exclude=exclude,
        threshold=threshold, map=map, stride=stride, shard=shard, dask=dask, csv=csv, ngff=ngff,
        max_bad_tiles=max_bad_tiles, read_timeout=read_timeout, overwrite=overwrite,
    )  # fmt: skip
    run = predict_slides(config, streams)
    streams.result(run.model_dump(mode="json", by_alias=True), run_lines(run))
    return run.exit_code
