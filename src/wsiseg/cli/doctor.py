"""`wsiseg doctor`: the installation, a slide or a model file."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.config.doctor import DoctorConfig

if TYPE_CHECKING:
    from wsiseg.doctor import Findings


@command(app, DoctorConfig)
def doctor(streams: Streams, config: DoctorConfig) -> int:
    """Examine the installation, a slide or a model file, and print what was found.

    Exits with 1 where tiles of the slide cannot be read.

    Examples:
        wsiseg doctor
        wsiseg doctor slide.svs --deep
        wsiseg doctor --model mine.onnx --json
    """
    from wsiseg.doctor import doctor as examine  # noqa: PLC0415  loads numerical libraries

    findings = examine(config, streams)
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
