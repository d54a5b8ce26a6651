"""The table of slides: where each lies, whose it is, what is known of it."""

import csv
import glob
import hashlib
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from wsiseg.errors import UsageError
from wsiseg.outputs import write_text
from wsiseg.slide import SLIDE_SUFFIXES

COLUMNS = ("slide", "path", "case", "label", "split", "site", "mpp")
SPLITS = ("train", "val", "test")
_LABELS = {"1": 1, "0": 0, "": None}
_MOST_PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class CohortSlide:
    """One row of a cohort.

    Attributes:
        slide: Unique id; outputs are named after it.
        path: Where the slide lies.
        case: Slides of one case (patient) never cross splits; the slide's own id where nothing is known.
        label: 1 if the slide holds tumour, 0 if not, None if nobody knows.
        split: train, val, test or None.
        site: The organ, or empty.
        mpp: Micrometers per level-0 pixel in place of what the file says, or None.
        extra: Further columns, kept as they are.
    """

    slide: str
    path: Path
    case: str = ""
    label: int | None = None
    split: str | None = None
    site: str = ""
    mpp: float | None = None
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cohort:
    """A table of slides with unique ids, no case in two splits."""

    slides: tuple[CohortSlide, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a cohort CSV; paths in it are relative to its folder.

        Raises:
            UsageError: It cannot be read, or rows are wrong: one line for each of them.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read as a cohort: {error}") from error
        reader = csv.DictReader(io.StringIO(text))
        missing = [name for name in ("slide", "path") if name not in (reader.fieldnames or ())]
        if missing:
            advice = f"its columns are {', '.join(COLUMNS)}, of which slide and path are needed"
            raise UsageError(f"{path}: column {' and '.join(missing)} is missing", advice)
        slides, problems = [], []
        for row in reader:
            try:
                slides.append(_row(row, path.parent))
            except ValueError as error:
                problems.append(f"line {reader.line_num}: {error}")
        problems += _contradictions(slides)
        if not slides and not problems:
            problems.append("no slides")
        if problems:
            more = len(problems) - _MOST_PROBLEMS_SHOWN
            shown = problems[:_MOST_PROBLEMS_SHOWN] + ([f"and {more} more"] if more > 0 else [])
            raise UsageError("\n  ".join([f"{path}: not a valid cohort:", *shown]))
        return cls(tuple(slides))

    def write(self, path: Path) -> None:
        """Write the cohort as CSV, paths relative to its folder, whole or not at all."""
        extra = sorted({name for slide in self.slides for name in slide.extra})
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*COLUMNS, *extra])
        for slide in self.slides:
            label = "" if slide.label is None else slide.label
            mpp = "" if slide.mpp is None else f"{slide.mpp:g}"
            where = Path(os.path.relpath(slide.path, path.parent)).as_posix()
            known = (slide.slide, where, slide.case, label, slide.split or "", slide.site, mpp)
            writer.writerow([*known, *(slide.extra.get(name, "") for name in extra)])
        write_text(path, buffer.getvalue())

    @classmethod
    def from_inputs(cls, inputs: Sequence[str], piped: Iterable[str] = ()) -> Self:
        """Find the slides that a user names.

        Args:
            inputs: Files, folders (searched in depth), globs, cohort CSVs, or `-` for `piped`.
            piped: Paths, one an item, that stand in for `-`.

        Returns:
            The slides, each once, in the order named. Files of equal name get a short hash of their folder.

        Raises:
            UsageError: A cohort is wrong, or nothing at all was found.
        """
        found: list[CohortSlide] = []
        for name in inputs:
            for text in [line.strip() for line in piped if line.strip()] if name == "-" else [name]:
                found += _slides_at(text)
        unique = list({slide.path.absolute(): slide for slide in found}.values())
        if not unique:
            raise UsageError(f"no slides in {', '.join(inputs) or 'nothing'}", "name slides, folders or a cohort CSV")
        return cls(tuple(_distinct(unique)))


def _slides_at(text: str) -> Iterator[CohortSlide]:
    path = Path(text)
    if path.suffix.lower() == ".csv":
        yield from Cohort.read(path).slides
    elif path.is_dir():
        yield from map(_of_file, _files(path))
    elif path.exists() or not glob.has_magic(text):
        yield _of_file(path)
    else:
        yield from (_of_file(Path(match)) for match in sorted(glob.glob(text, recursive=True)))  # noqa: PTH207  any root


def _files(folder: Path) -> list[Path]:
    """List the files that may be slides: all but hidden ones, and what MRXS keeps beside its slide."""
    mrxs = {path.with_suffix("") for path in folder.rglob("*") if path.suffix.lower() == ".mrxs"}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not mrxs.intersection(path.parents)
    )


def _of_file(path: Path) -> CohortSlide:
    name = path.stem if path.suffix.lower() in SLIDE_SUFFIXES else path.name
    return CohortSlide(slide=name.removesuffix(".ome") or path.name, path=path)


def _distinct(slides: Sequence[CohortSlide]) -> Iterator[CohortSlide]:
    """Make ids unique: one that occurs twice gets a short hash of its path."""
    counts = Counter(slide.slide for slide in slides)
    for slide in slides:
        if counts[slide.slide] == 1:
            yield slide
        else:
            mark = hashlib.sha256(str(slide.path.absolute()).encode()).hexdigest()[:8]
            yield replace(slide, slide=f"{slide.slide}-{mark}")


def _row(row: dict[str, str], folder: Path) -> CohortSlide:
    """Check one row.

    Raises:
        ValueError: Something in it does not fit; the message says what.
    """
    values = {key: (value or "").strip() for key, value in row.items() if key is not None}
    slide, path = values["slide"], values["path"]
    if not slide or not path:
        raise ValueError("slide and path are needed")
    if re.search(r"[/\\\x00-\x1f]", slide) or slide in {".", ".."}:
        raise ValueError(f"slide {slide!r} is no file name")
    if values.get("label", "") not in _LABELS:
        raise ValueError(f"label {values['label']!r} is not 1, 0 or empty")
    if values.get("split", "") not in ("", *SPLITS):
        raise ValueError(f"split {values['split']!r} is not train, val, test or empty")
    return CohortSlide(
        slide=slide,
        path=folder / path,
        case=values.get("case") or slide,
        label=_LABELS[values.get("label", "")],
        split=values.get("split") or None,
        site=values.get("site", ""),
        mpp=_mpp(values.get("mpp", "")),
        extra={key: value for key, value in values.items() if key not in COLUMNS},
    )


def _mpp(text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"mpp {text!r} is no positive number")
    return value


def _contradictions(slides: Sequence[CohortSlide]) -> Iterator[str]:
    """Name ids that occur twice and cases that cross splits."""
    for slide, count in Counter(slide.slide for slide in slides).items():
        if count > 1:
            yield f"slide {slide!r} occurs {count} times"
    splits: dict[str, set[str]] = {}
    for slide in slides:
        if slide.split:
            splits.setdefault(slide.case, set()).add(slide.split)
    for case, names in splits.items():
        if len(names) > 1:
            yield f"case {case!r} stands in {' and '.join(sorted(names))}"
