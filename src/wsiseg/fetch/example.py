"""A small cohort that the package ships: slides of lymph node and colon, their labels and their truth to the pixel."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from wsiseg.config.fetch import FetchExampleConfig
from wsiseg.run.errors import DownloadError, OutputError
from wsiseg.run.outputs import written_whole

SUMS = "SHA256SUMS"
"""Lists every other file of the example, as `sha256sum -c` reads it."""


@dataclass(frozen=True)
class ExampleResult:
    """What became of the example's files."""

    cohort: Path  # the table of its slides
    fetched: list[Path] = field(default_factory=list)  # written now
    up_to_date: list[Path] = field(default_factory=list)
    changed: list[Path] = field(default_factory=list)  # of other content than the example's; left as they are


def fetch_example(config: FetchExampleConfig) -> ExampleResult:
    """Write the example cohort, from what the package ships: no network is used, and nothing is ever replaced.

    Raises:
        DownloadError: This installation lacks a file of the example, or has it damaged.
        OutputError: A file cannot be written or read.
    """
    result = ExampleResult(config.out / "cohort.csv")
    for name, content in _shipped(resources.files("wsiseg.fetch") / "cohort"):
        path = config.out / name
        try:
            if not path.exists():
                with written_whole(path) as partial:
                    partial.write_bytes(content)
                result.fetched.append(path)
            elif path.is_file() and path.read_bytes() == content:
                result.up_to_date.append(path)
            else:
                result.changed.append(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be read: {error.strerror or error}", "choose another --out") from error
    return result


def _shipped(folder: Traversable) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the example's files, each checked against its sum."""
    try:
        sums = (folder / SUMS).read_bytes()
        yield SUMS, sums
        for line in sums.decode().splitlines():
            digest, name = line.split()
            content = folder.joinpath(*name.split("/")).read_bytes()
            if hashlib.sha256(content).hexdigest() != digest:
                raise DownloadError(f"{name}: is damaged in this installation of wsiseg", "install wsiseg again")
            yield name, content
    except OSError as error:
        text = f"{error.filename}: is missing in this installation of wsiseg"
        raise DownloadError(text, "install it again") from error
