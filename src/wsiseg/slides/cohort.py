"""The table of slides: where each lies, whose it is, what is known of it."""

import csv
import hashlib
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from wsiseg.run.errors import NotASlideError, UsageError
from wsiseg.run.outputs import write_text
from wsiseg.slides import discovery, split
from wsiseg.slides.slide import Slide
from wsiseg.slides.slide_file import LONGEST_READ_S

COLUMNS = ("slide", "path", "case", "label", "split", "site", "mpp")
SPLITS = ("train", "val", "test")
_LABELS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "": None}  # a table program writes 1.0 where others are empty
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
        doubts: What its name says that could not be used; not kept in the CSV.
        skipped: Why it is not to be read on its own, or empty; not kept in the CSV.
        is_named: The user named the file itself, so that it must be a slide; not kept in the CSV.
    """

    slide: str
    path: Path
    case: str = ""
    label: int | None = None
    split: str | None = None
    site: str = ""
    mpp: float | None = None
    extra: dict[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()
    skipped: str = ""
    is_named: bool = field(default=False, compare=False)

    @property
    def must_be_slide(self) -> bool:
        """True where it is a failure, and nothing to pass over, that the file is not a slide."""
        return self.is_named and not self.skipped

    def open(self, mpp: float | None = None, longest_read_s: float = LONGEST_READ_S) -> Slide:
        """Open the slide.

        Args:
            mpp: Micrometers per level-0 pixel, where the row says nothing of it and the file is not to be believed.
            longest_read_s: Seconds after which reading is given up.

        Raises:
            SlideError: It cannot be opened, or is none (`NotASlideError`).
            StalledError: Its disk or network does not answer.
        """
        if self.skipped:
            raise NotASlideError(self.skipped)
        return Slide(self.path, mpp=self.mpp or mpp, longest_read_s=longest_read_s)


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
        slides, problems = [], []
        try:
            missing = [name for name in ("slide", "path") if name not in (reader.fieldnames or ())]
            if missing:
                advice = f"its columns are {', '.join(COLUMNS)}, with commas between; slide and path are needed"
                raise UsageError(f"{path}: column {' and '.join(missing)} is missing", advice)
            for row in reader:
                try:
                    slides.append(_row(row, path.parent))
                except ValueError as error:
                    problems.append(f"line {reader.line_num}: {error}")
        except csv.Error as error:
            problems.append(f"line {reader.line_num}: {error}")
        if not slides and not problems:
            problems.append("no slides")
        _refuse(f"{path}: not a valid cohort:", [*problems, *_contradictions(slides)])
        return cls(tuple(slides))

    def write(self, path: Path) -> None:
        """Write the cohort as CSV, paths relative to its folder, whole or not at all."""
        extra = sorted({name for slide in self.slides for name in slide.extra})
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*COLUMNS, *extra])
        for slide in self.slides:
            label = "" if slide.label is None else slide.label
            mpp = "" if slide.mpp is None else slide.mpp
            where = _relative(slide.path, path.parent).as_posix()
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
            The slides, each once, in the order named. Files of equal name get a short hash of their path.

        Raises:
            UsageError: A cohort is wrong, or nothing at all was found.
        """
        named = [text for name in inputs for text in (_lines(piped) if name == "-" else [name])]
        unique: dict[Path, CohortSlide] = {}
        for text in named:
            for slide in _slides_at(text):
                unique.setdefault(slide.path.absolute(), slide)
        if not unique:
            raise UsageError(f"no slides in {', '.join(inputs) or 'nothing'}", "name slides, folders or a cohort CSV")
        parts = discovery.parts_of_series(slide.path for slide in unique.values())
        slides = _distinct([replace(slide, skipped=parts.get(slide.path, "")) for slide in unique.values()])
        _refuse("these slides cannot be taken together:", list(_contradictions(slides)))
        return cls(tuple(slides))

    def with_splits(self, known: Mapping[str, str]) -> Self:
        """Share out the cases of labelled slides among train, val and test, where no slide has a split yet.

        Args:
            known: Splits of cases from an earlier run, which stay.
        """
        labelled = [slide for slide in self.slides if slide.label is not None]
        if any(slide.split for slide in self.slides):
            return self
        strata = [f"{slide.site}/{slide.label}" for slide in labelled]
        names = split.by_case([slide.case for slide in labelled], strata, known=known)
        chosen = {slide.slide: name for slide, name in zip(labelled, names, strict=True)}
        return type(self)(tuple(replace(slide, split=chosen.get(slide.slide)) for slide in self.slides))


def _relative(path: Path, folder: Path) -> Path:
    """Give a path as seen from a folder, also where a link leads to the folder; as it is from another drive."""
    try:
        return Path(os.path.relpath(path.absolute(), folder.resolve()))
    except ValueError:
        return path.absolute()


def _lines(piped: Iterable[str]) -> list[str]:
    return [line.strip() for line in piped if line.strip()]


def _slides_at(text: str) -> Iterator[CohortSlide]:
    if Path(text).suffix.lower() == ".csv":
        yield from Cohort.read(Path(text)).slides
        return
    for found in discovery.find(text):
        known = (found.name, found.path, found.case, found.label, found.split)
        yield CohortSlide(*known, doubts=found.doubts, is_named=found.is_named)


def _distinct(slides: Sequence[CohortSlide]) -> list[CohortSlide]:
    """Make ids unique: one that occurs twice gets a short hash of its path. A slide without a case is its own."""
    counts = Counter(slide.slide for slide in slides)
    distinct = []
    for slide in slides:
        name = slide.slide
        if counts[name] > 1:
            mark = hashlib.sha256(os.fsencode(slide.path.absolute())).hexdigest()[:8]
            name = f"{name}-{mark}"
        distinct.append(replace(slide, slide=name, case=slide.case or name))
    return distinct


def _refuse(sentence: str, problems: Sequence[str]) -> None:
    """Raise a UsageError with one line for each problem, if there are any."""
    if problems:
        more = len(problems) - _MOST_PROBLEMS_SHOWN
        shown = [*problems[:_MOST_PROBLEMS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise UsageError("\n  ".join([sentence, *shown]))


def _row(row: dict[str, str], folder: Path) -> CohortSlide:
    """Check one row.

    Raises:
        ValueError: Something in it does not fit; the message says what.
    """
    if None in row:
        raise ValueError("more fields than columns")
    values = {key: (value or "").strip() for key, value in row.items()}
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
        is_named=True,
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
    for name, count in Counter(slide.slide for slide in slides).items():
        if count > 1:
            yield f"slide {name!r} occurs {count} times"
    splits: dict[str, set[str]] = {}
    for slide in slides:
        if slide.split:
            splits.setdefault(slide.case, set()).add(slide.split)
    for case, names in splits.items():
        if len(names) > 1:
            yield f"case {case!r} stands in {' and '.join(sorted(names))}"
