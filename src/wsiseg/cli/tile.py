"""`wsiseg tile`."""

from typing import Annotated

import typer

from wsiseg.cli.options import Inputs, MaxBadTiles, MinTissue, Out, Overwrite, SlideMpp, Tissue
from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams, run_lines
from wsiseg.config.settings import TileConfig


@command(app)
def tile(
    streams: Streams,
    inputs: Inputs,
    out: Out,
    tile: Annotated[int, typer.Option(help="Side of a tile in pixels.")] = 224,
    mpp: Annotated[float, typer.Option(help="Micrometers per tile pixel.")] = 0.5,
    stride: Annotated[
        int | None, typer.Option(help="Distance of neighbouring tiles; by default a tile's side.")
    ] = None,
    slide_mpp: SlideMpp = None,
    tissue: Tissue = "auto",
    min_tissue: MinTissue = 0.5,
    pixels: Annotated[bool, typer.Option("--pixels", help="Store the tiles themselves, for faster training.")] = False,
    max_bad_tiles: MaxBadTiles = 0.01,
    jobs: Annotated[int, typer.Option(help="Slides that are read at the same time.")] = 1,
    overwrite: Overwrite = False,
) -> int:
    """Find the tissue of slides and the tiles that cover it.

    Writes OUT/SLIDE.tiles.zarr, OUT/SLIDE.png (what was kept), OUT/cohort.csv and OUT/run.json.

    Examples:
        wsiseg tile slides/ --out tiles
        wsiseg tile cohort.csv --out tiles --pixels --jobs 4
        wsiseg tile scan.tiff --slide-mpp 0.25 --out tiles
    """
    from wsiseg.tiles.tile import tile as tile_slides  # noqa: PLC0415  loads numerical libraries

    config = TileConfig.checked(
        inputs=inputs, out=out, tile=tile, mpp=mpp, stride=stride, slide_mpp=slide_mpp, tissue=tissue,
        min_tissue=min_tissue, pixels=pixels, max_bad_tiles=max_bad_tiles, jobs=jobs, overwrite=overwrite,
    )  # fmt: skip
    run = tile_slides(config, streams)
    streams.result(run.model_dump(mode="json", by_alias=True), run_lines(run))
    return run.exit_code
