"""`wsiseg tile`."""

from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.config.tile import TileConfig


@command(app, TileConfig)
def tile(streams: Streams, config: TileConfig) -> int:
    """Find the tissue of slides and the tiles that cover it.

    Writes OUT/SLIDE.tiles.zarr, OUT/SLIDE.png (what was kept), OUT/cohort.csv and OUT/run.json.

    Examples:
        wsiseg tile slides/ --out tiles
        wsiseg tile cohort.csv --out tiles --pixels --jobs 4
        wsiseg tile scan.tiff --slide-mpp 0.25 --out tiles
    """
    from wsiseg.tiles.tile import tile as tile_slides  # noqa: PLC0415  loads numerical libraries

    return streams.run(tile_slides(config, streams))
