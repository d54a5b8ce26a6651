"""A small cohort that the package ships: slides of lymph node and colon, their labels and their truth to the pixel."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
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
    """What became of the example's files.

    Attributes:
        cohort: The table of its slides.
        fetched: Files that were written now.
        up_to_date: Files that were there already.
        changed: Files of other content that stand under a name of the example; they are left as they are.
    """

    cohort: Path
    fetched: tuple[Path, ...]
    up_to_date: tuple[Path, ...]
    changed: tuple[Path, ...]


def fetch_example(config: FetchExampleConfig) -> ExampleResult:
    """Write the example cohort, from what the package ships: no network is used, and nothing is ever replaced.

    Args:
        config: The settings.

    Returns:
        What became of each file.

    Raises:
        DownloadError: This installation lacks a file of the example, or has it damaged.
        OutputError: A file cannot be written or read.
    """
    found: dict[str, list[Path]] = {"fetched": [], "up_to_date": [], "changed": []}
    for name, content in _shipped(resources.files("wsiseg.fetch") / "cohort"):
        path = config.out / name
        found[_placed(content, path)].append(path)
    return ExampleResult(config.out / "cohort.csv", **{state: tuple(paths) for state, paths in found.items()})


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
        raise DownloadError(
            f"{error.filename}: is missing in this installation of wsiseg", "install it again"
        ) from error


def _placed(content: bytes, path: Path) -> str:
    """Write a file unless there is one, and return what became of it."""
    try:
        if path.exists():
            return "up_to_date" if path.is_file() and path.read_bytes() == content else "changed"
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror or error}", "choose another --out") from error
    with written_whole(path) as partial:
        partial.write_bytes(content)
    return "fetched"
