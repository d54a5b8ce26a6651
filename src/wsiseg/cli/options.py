"""Options that several commands share, so that each help text exists once."""

from pathlib import Path
from typing import Annotated

import typer

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Slides, folders, globs, a cohort CSV, or - for one path per line on standard input.",
        show_default=False,
    ),
]
SlideMpp = Annotated[
    float | None,
    typer.Option("--slide-mpp", help="Micrometers per level-0 pixel, in place of what the files say.", min=0),
]
Tissue = Annotated[
    str,
    typer.Option(help="auto, none (all is tissue), a mask image, a GeoJSON file, or a folder of either by slide name."),
]
MinTissue = Annotated[float, typer.Option(help="Least share of tissue in a tile that is kept.", min=0, max=1)]
MaxBadTiles = Annotated[
    float,
    typer.Option(help="Largest share of tissue tiles that may be unreadable.", min=0, max=1),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Redo or replace what is already there.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the results.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, coreml, directml or openvino.")]
