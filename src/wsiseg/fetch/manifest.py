"""GDC manifests: tab-separated lists of files with their checksums."""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wsiseg.fetch.names import name_problem, shown
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import write_text

_COLUMNS = ("id", "filename", "md5", "size", "state")
_SUFFIX = ".svs"
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MD5 = re.compile(r"[0-9a-fA-F]{32}")
_ADVICE = "give a manifest of slides from the GDC, with the columns id, filename, md5 and size"


@dataclass(frozen=True)
class Entry:
    """A row of a manifest.

    Attributes:
        id: The UUID that the file had when the manifest was made.
        name: Its name.
        md5: Of its content.
        size: In bytes.
    """

    id: str
    name: str
    md5: str
    size: int


def read_manifest(path: Path) -> list[Entry]:
    """Read a manifest of slides.

    Raises:
        UsageError: It cannot be read, lacks a column, or a row is wrong or names something else than an SVS slide.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a manifest: {error}", _ADVICE) from error
    reader = csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = [name for name in _COLUMNS[:4] if name not in (reader.fieldnames or ())]
    if missing:
        raise UsageError(f"{path}: no manifest of slides: column {' and '.join(missing)} is missing", _ADVICE)
    entries = [_entry(row, f"{path}, line {reader.line_num}") for row in reader]
    if not entries:
        raise UsageError(f"{path}: an empty manifest", _ADVICE)
    unique = {entry.name.casefold() for entry in entries}
    if len(unique) < len(entries):
        raise UsageError(f"{path}: {len(entries) - len(unique)} file names occur twice", _ADVICE)
    return entries


def write_manifest(path: Path, entries: Iterable[Entry]) -> None:
    """Write a manifest, whole or not at all."""
    rows = [(entry.id, entry.name, entry.md5, str(entry.size), "released") for entry in entries]
    write_text(path, "".join("\t".join(row) + "\n" for row in [_COLUMNS, *rows]))


def _entry(row: dict[str, str | None], where: str) -> Entry:
    uuid, name, md5, size = ((row[column] or "").strip() for column in _COLUMNS[:4])
    problem = name_problem(name)
    if problem:
        raise UsageError(f"{where}: the file name {shown(name)} is refused: {problem}", _ADVICE)
    if not name.lower().endswith(_SUFFIX):
        raise UsageError(f"{where}: {shown(name)} is no SVS slide", _ADVICE)
    if not _UUID.fullmatch(uuid) or not _MD5.fullmatch(md5) or not size.isascii() or not size.isdigit():
        raise UsageError(f"{where}: no UUID, md5 or size where one should be", _ADVICE)
    return Entry(uuid.lower(), name, md5.lower(), int(size))
