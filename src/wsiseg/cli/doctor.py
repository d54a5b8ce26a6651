"""`wsiseg doctor`: the installation, a slide or a model file."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsiseg.cli.options import SlideMpp
from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams

if TYPE_CHECKING:
    from wsiseg.doctor import Findings


@command(app)
def doctor(
    streams: Streams,
    slide: Annotated[Path | None, typer.Argument(help="The slide to examine.", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option(help="Model file to examine; default is the bundled one.", show_default=False)
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Read every tile of the slide and name the bad ones.")] = False,
    slide_mpp: SlideMpp = None,
) -> int:
    """Examine the installation, a slide or a model file, and print what was found.

    Exits with 1 where tiles of the slide cannot be read.

    Examples:
    wsiseg doctor

    wsiseg doctor slide.svs --deep

    wsiseg doctor --model mine.onnx --json
    """
    from wsiseg.doctor import DoctorConfig  # noqa: PLC0415  loads numerical libraries
    from wsiseg.doctor import doctor as examine  # noqa: PLC0415  the same

    findings = examine(DoctorConfig.checked(slide=slide, model=model, deep=deep, slide_mpp=slide_mpp), streams)
    streams.result({**findings.facts, "problems": list(findings.problems)}, _lines(findings))
    return findings.exit_code


def _lines(findings: "Findings") -> Iterator[str]:
    for facts in findings.facts.values():
        for name, value in facts.items():
            yield f"{name}: {_text(value)}"
    for problem in findings.problems:
        yield f"problem: {problem}"


def _text(value: Any) -> str:  # noqa: ANN401  any JSON value
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items()) or "nothing"
    if isinstance(value, list | tuple):
        return ", ".join(_text(one) for one in value) or "none"
    return "none" if value is None else str(value)
