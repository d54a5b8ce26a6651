"""`wsiseg init` and `wsiseg tile`: what comes before training and mapping."""

from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.config.doctor import InitConfig
from wsiseg.config.tile import TileConfig


@command(app, InitConfig)
def init(streams: Streams, config: InitConfig) -> None:
    """Begin a study: write a cohort table to fill in, and settings files with every setting explained.

    Writes FOLDER/cohort.csv, with a row for each slide in the folder, and FOLDER/tile.toml, train.toml, predict.toml
    and evaluate.toml for --config. Existing files are kept.

    Examples:
        wsiseg init
        wsiseg init study
    """
    from wsiseg.slides.init import init as begin  # noqa: PLC0415  loads numerical libraries

    begun = begin(config)
    for path in begun.kept:
        streams.note(f"{path}: exists already and is kept")
    streams.result({name: list(map(str, paths)) for name, paths in vars(begun).items()}, map(str, begun.written))


@command(app, TileConfig)
def tile(streams: Streams, config: TileConfig) -> int:
    """Find the tissue of slides and the tiles that cover it.

    For every slide, writes OUT/SLIDE.tiles.zarr (tile store) and OUT/SLIDE.png (picture of the tissue that was kept).
    For the run, writes OUT/cohort.csv (for train), OUT/report.html (all slides in a table) and OUT/run.json (status of
    every slide). Prints the paths of the report and the cohort, and one line per slide.

    Run the same command again to do only what is missing.

    Examples:
        wsiseg tile slides/ --out tiles
        wsiseg tile cohort.csv --out tiles --pixels --jobs 4
        wsiseg tile scan.tiff --slide-mpp 0.25 --out tiles
    """
    from wsiseg.tiles.tile import tile as tile_slides  # noqa: PLC0415  loads numerical libraries

    return streams.run(tile_slides(config, streams), [config.out / "report.html", config.out / "cohort.csv"])
