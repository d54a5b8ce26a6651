"""GDC manifests: tab-separated lists of files with their checksums."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, ValidationError
from pydantic.dataclasses import dataclass

from wsiseg.run.connection import shown
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import write_text

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LONGEST_NAME = 200  # file systems take 255 bytes, and `.part` and the like must fit behind
_COLUMNS = {"id": "id", "filename": "name", "md5": "md5", "size": "size"}
_ADVICE = "give a manifest of slides from the GDC: UTF-8, tab-separated, with the columns id, filename, md5 and size"


def name_problem(name: str) -> str:
    """Say what is wrong with a file name that came from outside; return nothing where it is safe.

    What is not plainly a file name is refused, never repaired.
    """
    if len(name) > _LONGEST_NAME:
        return f"it has {len(name)} characters"
    if not _PLAIN_NAME.fullmatch(name):
        return "it is not made of letters, digits, dots, dashes and underscores alone"
    if name.endswith("."):
        return "it ends with a dot"
    return "Windows reserves it" if _RESERVED_NAME.fullmatch(name) else ""


def _of_slide(name: str) -> str:
    if problem := name_problem(name):
        raise ValueError(f"the file name {shown(name)} is refused: {problem}")
    if not name.lower().endswith(".svs"):
        raise ValueError(f"{shown(name)} is not an SVS slide")
    return name


@dataclass(frozen=True)
class Entry:
    """A slide file of the GDC, as a row of a manifest; it is checked as it is made.

    The id is the UUID that the file had when the manifest was made, the size is in bytes.
    """

    id: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", to_lower=True)]
    name: Annotated[str, AfterValidator(_of_slide)]
    md5: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{32}$", to_lower=True)]
    size: Annotated[int, Field(ge=0)]


def entry_problem(error: ValidationError) -> str:
    """Say why something is no entry."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    return f"{shown(str(first['input']))!r} is not a file's {first['loc'][-1]}"


def read_manifest(path: Path) -> list[Entry]:
    """Read a manifest of slides; a byte order mark, Windows line ends, quotes around cells and blank rows do no harm.

    Raises:
        UsageError: It cannot be read, lacks a column or has it twice, or a row has more cells than there are columns,
            is wrong, or names something else than an SVS slide or a slide of another row.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a manifest: {error}", _ADVICE) from error
    rows = [
        # A quote never spans cells or lines: one without its partner would swallow all rows up to the next.
        (number, [cell.strip().strip('"').strip() for cell in line.split("\t")])
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]
    header = rows[0][1] if rows else []
    for name in _COLUMNS:
        if header.count(name) != 1:
            what = "occurs twice" if name in header else "is missing"
            raise UsageError(f"{path}: not a manifest of slides: the column {name} {what}", _ADVICE)
    entries = [_entry(header, cells, f"{path}, line {number}") for number, cells in rows[1:]]
    if not entries:
        raise UsageError(f"{path}: a manifest without slides", _ADVICE)
    name, count = Counter(entry.name.casefold() for entry in entries).most_common(1)[0]
    if count > 1:
        raise UsageError(f"{path}: {name} stands in {count} rows", "leave one row for each file")
    return entries


def write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    """Write a manifest, whole or not at all."""
    rows = [(entry.id, entry.name, entry.md5, str(entry.size), "released") for entry in entries]
    write_text(path, "".join("\t".join(row) + "\n" for row in [(*_COLUMNS, "state"), *rows]))


def _entry(header: list[str], cells: list[str], where: str) -> Entry:
    if len(cells) > len(header):
        raise UsageError(f"{where}: {len(cells)} cells under {len(header)} columns", _ADVICE)
    row = dict(zip(header, cells, strict=False))
    try:
        return Entry(**{field: row.get(column, "") for column, field in _COLUMNS.items()})  # type: ignore[arg-type]  # the size is text as yet
    except ValidationError as error:
        raise UsageError(f"{where}: {entry_problem(error)}", _ADVICE) from error
