"""GDC manifests: tab-separated lists of files with their checksums."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wsiseg.fetch.connection import name_problem, shown
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import write_text

_COLUMNS = ("id", "filename", "md5", "size", "state")
_SUFFIX = ".svs"
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_MD5 = re.compile(r"[0-9a-fA-F]{32}")
_ADVICE = "give a manifest of slides from the GDC: UTF-8, tab-separated, with the columns id, filename, md5 and size"


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
    for name in _COLUMNS[:4]:
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
    write_text(path, "".join("\t".join(row) + "\n" for row in [_COLUMNS, *rows]))


def _entry(header: list[str], cells: list[str], where: str) -> Entry:
    if len(cells) > len(header):
        raise UsageError(f"{where}: {len(cells)} cells under {len(header)} columns", _ADVICE)
    row = dict(zip(header, cells, strict=False))
    uuid, name, md5, size = (row.get(column, "") for column in _COLUMNS[:4])
    problem = name_problem(name)
    if problem:
        raise UsageError(f"{where}: the file name {shown(name)} is refused: {problem}", _ADVICE)
    if not name.lower().endswith(_SUFFIX):
        raise UsageError(f"{where}: {shown(name)} is not an SVS slide", _ADVICE)
    for column, is_right in (("id", _UUID.fullmatch(uuid)), ("md5", _MD5.fullmatch(md5)), ("size", _is_size(size))):
        if not is_right:
            raise UsageError(f"{where}: {shown(row.get(column, ''))!r} is not a file's {column}", _ADVICE)
    return Entry(uuid.lower(), name, md5.lower(), int(size))


def _is_size(text: str) -> bool:
    return text.isascii() and text.isdigit()
