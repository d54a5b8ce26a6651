"""Tables of slides as people save them: which encoding, separator, header and words for nothing they have.

What can be read in one way only is read; everything else is refused with its line and what to do.
"""

import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

from wsiseg.run.errors import UsageError

COLUMNS = ("slide", "path", "case", "label", "split", "site", "mpp")
"""Columns that have a meaning, found in upper and lower case; others keep their names."""
TUMOR = "tumor"
PERCENTAGES = ("tumor_min", "tumor_percent", "tumor_max")
"""Further columns with a meaning: percent of the tissue, in rising order."""
KNOWN = (*COLUMNS, *PERCENTAGES)
NEEDED = COLUMNS[:2]
SUFFIXES = frozenset([".csv", ".tsv"])
_DELIMITERS = ",;\t|"
_BLANK = " \t\r\n\v\f\xa0\u200b\ufeff"
_WORDS_FOR_NOTHING = (
    "na n/a #n/a #na <na> n.a. nan -nan none null nil - -- --- \u2013 \u2014 ? ?? ??? . "
    "na_character_ na_integer_ na_real_"
)
_UNKNOWN = frozenset(["missing", "unknown", "undefined"])  # of all columns but those that name the slide
_BROKEN = frozenset(["#ref!", "#value!", "#name?", "#div/0!", "#null!", "#num!", "#spill!", "#calc!"])
_SHORTENED = re.compile(r"\d([.,]\d+)?E\+\d+", re.IGNORECASE)  # digits are lost: other slides and patients look alike
_CALLED = {
    "case": ("patient", "patient_id", "patientid", "patient id", "case_id", "caseid", "case id", "subject"),
    "label": ("tumor", "tumour", "is_tumor", "is_tumour"),
    "path": ("file", "filename", "file_name", "file name", "filepath", "file_path"),
    "slide": ("slide_id", "slideid", "slide id", "image", "image_id", "id"),
    "split": ("subset", "partition"),
    "mpp": ("mpp_x", "microns_per_pixel", "pixel_size", "pixelsize"),
}
_ADVICE = "save it as 'CSV UTF-8', with commas between"


def rows(path: Path, problems: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows of a table that are not blank.

    Args:
        path: A file with commas, semicolons, tabs or bars between its columns, in UTF-8 or UTF-16.
        problems: Takes a line for each row that is wrong.

    Yields:
        The line of the file that a row begins at, and its values by the name of the column; what means that nothing is
        known is empty.

    Raises:
        UsageError: It cannot be read, or its header is wrong.
    """
    text = _text(path)
    delimiter, first, header = _header(path, text)
    reader = csv.reader(_lines(text)[first:], delimiter=delimiter, strict=True)
    begun = first + 1
    try:
        for cells in reader:
            line, begun = begun, first + reader.line_num + 1
            try:
                values = _values(cells, header, delimiter)
            except ValueError as error:
                problems.append(f"line {line}: {error}")
                continue
            if values:
                yield line, values
    except csv.Error as error:
        problems.append(f"line {begun}: {error}; look for a quotation mark without its partner")


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as a cohort: {error.strerror}", "check the path") from error
    encoding = "utf-16" if content[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}: line {line}: not a text in UTF-8 or UTF-16", _ADVICE) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UsageError(f"{path}: line {line}: holds NUL, as no text in UTF-8 does", _ADVICE)
    return text


def _lines(text: str) -> list[str]:
    """Split at the ends of lines of any system, and at nothing else that Unicode calls one."""
    return list(io.StringIO(text, newline=""))


def _header(path: Path, text: str) -> tuple[str, int, list[str]]:
    """Find the delimiter, how many lines stand before the first row, and the names of the columns."""
    delimiters = _DELIMITERS
    for number, line in enumerate(_lines(text)):
        if said := re.fullmatch(r'"?sep=(.)"?[,;\t]*', line.strip(" \r\n")):  # Excel's own
            delimiters = said[1]
            continue
        if not line.strip(_BLANK + _DELIMITERS):
            continue
        headers = {sign: _names(line, sign) for sign in delimiters}
        delimiter = max(headers, key=lambda sign: sum(name in NEEDED for name in headers[sign]))
        if line.startswith("#") and not set(NEEDED) <= set(headers[delimiter]):
            continue
        _refuse_header(path, headers[delimiter])
        return delimiter, number + 1, headers[delimiter]
    raise UsageError(f"{path}: an empty table", f"its columns are {', '.join(COLUMNS)}")


def _names(line: str, delimiter: str) -> list[str]:
    names = [_plain(name) for name in next(csv.reader([line.lstrip("#")], delimiter=delimiter), [])]
    return [name.casefold() if name.casefold() in KNOWN else name for name in names]


def _refuse_header(path: Path, header: Sequence[str]) -> None:
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        text = f"{path}: column {' and '.join(map(repr, twice))} occurs twice"
        raise UsageError(text, "keep one of them, or rename the others")
    absent = [name for name in KNOWN if name not in header]
    meant = {name: other for other in header if other not in KNOWN for name in absent if _may_mean(other, name)}
    missing = [name for name in NEEDED if name in absent]
    if not missing and not meant:
        return
    what = f"column {' and '.join(missing or map(repr, meant.values()))} {'is missing' if missing else 'means nothing'}"
    advice = f"its columns are {', '.join(COLUMNS)}, with commas between; {' and '.join(NEEDED)} are needed"
    if meant:
        advice = ", ".join(f"call {other!r} {name}" for name, other in meant.items()) + ", or else by another word"
    raise UsageError(f"{path}: {what}", advice)


def _may_mean(other: str, name: str) -> bool:
    said = other.casefold()
    return said in _CALLED.get(name, ()) or difflib.SequenceMatcher(None, said, name).ratio() > 0.85  # noqa: PLR2004


def _values(cells: Sequence[str], header: Sequence[str], delimiter: str) -> dict[str, str]:
    """Return the values of a row; none of a blank one or a comment."""
    plain = [_plain(cell) for cell in cells]
    if not any(plain) or (plain[0].startswith("#") and not any(plain[1:])):
        return {}
    if plain[0].startswith("#"):
        raise ValueError("begins with #: remove it, or give the slide another id if it is none")
    if any(plain[len(header) :]):
        advice = f"put quotation marks around a value with {delimiter!r} in it"
        raise ValueError(f"{len(cells)} values for {len(header)} columns: {advice}")
    values = dict(zip(header, plain, strict=False))
    unnamed = [at for at, name in enumerate(header) if not name and at < len(plain) and plain[at]]
    if unnamed not in ([], [0]):  # the first may hold the row numbers of R and pandas
        raise ValueError(f"a value in column {unnamed[-1] + 1}, which has no name")
    values.pop("", None)
    for name, value in values.items():
        _refuse_value(name, value, delimiter, len(header))
    for name in set(KNOWN) & set(values):
        if is_missing(values[name]) or (name not in NEEDED and values[name].casefold() in _UNKNOWN):
            values[name] = ""
    return values


def _refuse_value(name: str, value: str, delimiter: str, count: int) -> None:
    is_known = name in KNOWN
    if is_known and value.casefold() in _BROKEN:
        raise ValueError(f"{name} is {value}, an error of the table program")
    if name in {"slide", "case"} and _SHORTENED.fullmatch(value):
        raise ValueError(f"{name} {value} is a number that a table program has shortened: enter it again, as text")
    lines = value.splitlines()
    if len(lines) > 1 and (is_known or any(line.count(delimiter) >= count - 1 for line in lines)):
        raise ValueError(f"{name} runs over {len(lines)} lines: look for a quotation mark without its partner")


def is_missing(text: str) -> bool:
    """Tell whether a value means that nothing is known, in R, pandas, Excel or by hand."""
    return not text or text.casefold() in _WORDS_FOR_NOTHING.split()


def _plain(cell: str) -> str:
    """Return a value without the blanks around it and the ="..." by which Excel keeps leading zeros."""
    text = cell.strip(_BLANK)
    kept = re.fullmatch(r'="(.*)"', text)
    return kept[1].strip(_BLANK) if kept else text


def same_name(text: str) -> str:
    """Return what names share that are one to some disks and people: whatever their case and the form of accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
