"""The table of slides: where each lies, whose it is, what is known of it."""

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from wsiseg.run.errors import NotASlideError, UsageError
from wsiseg.run.outputs import write_text
from wsiseg.slides import discovery, identity, split, table
from wsiseg.slides.slide import Slide
from wsiseg.slides.slide_file import LONGEST_READ_S

COLUMNS = ("slide", "path", "case", "label", "split", "site", "mpp")
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
            SlideError: It cannot be opened.
            NotASlideError: It is not a slide, or belongs to another.
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
        problems: list[str] = []
        slides, lines = [], []
        for row in table.rows(path, COLUMNS, ("slide", "path"), problems):
            try:
                slides.append(_slide(row.values, path.parent))
                lines.append(f"line {row.line}")
            except ValueError as error:
                problems.append(f"line {row.line}: {error}")
        if not slides and not problems:
            problems.append("no slides")
        slides = identity.of_one_case(slides)
        problems.sort(key=lambda text: int(text.split()[1].rstrip(":")) if text.startswith("line ") else 0)
        _refuse(f"{path}: not a valid cohort:", [*problems, *identity.contradictions(slides, lines)])
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
            The slides, each once, in the order named; rows of a table count more than the same files found elsewhere,
            and every row of one file stays. Files of equal name get a short hash of their path.

        Raises:
            UsageError: A cohort is wrong, or nothing at all was found.
        """
        named = [text for name in inputs for text in (_lines(piped) if name == "-" else [name])]
        found = [slide for text in named for slide in _slides_at(text)]
        if not found:
            raise UsageError(f"no slides in {', '.join(inputs) or 'nothing'}", "name slides, folders or a cohort CSV")
        unique = _unique(found)
        parts = discovery.parts_of_series({slide.path: None for slide in unique})
        distinct = identity.distinct([replace(slide, skipped=parts.get(slide.path, "")) for slide in unique])
        slides, paths = identity.of_one_case(distinct), [str(slide.path) for slide in distinct]
        _refuse("these slides cannot be taken together:", list(identity.contradictions(slides, paths)))
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
    """Return a path as seen from a folder, also where a link leads to the folder; as it is from another drive."""
    try:
        return Path(os.path.relpath(path.absolute(), folder.resolve()))
    except ValueError:
        return path.absolute()


def _lines(piped: Iterable[str]) -> list[str]:
    return [line.strip() for line in piped if line.strip()]


def _slides_at(text: str) -> Iterator[tuple[CohortSlide, bool]]:
    """Yield the slides that a path names, each with True if a table lists it."""
    path = Path(text)
    if path.suffix.lower() in table.SUFFIXES:
        yield from ((slide, True) for slide in Cohort.read(path).slides)
        return
    for found in discovery.find(text):
        known = (found.name, found.path, found.case, found.label, found.split)
        yield CohortSlide(*known, doubts=found.doubts, is_named=found.is_named), False


def _unique(found: Sequence[tuple[CohortSlide, bool]]) -> list[CohortSlide]:
    """Leave out what was named before; of a file that tables list, their rows stay.

    Raises:
        UsageError: Two tables say different things of one slide.
    """
    listed = {slide.path.absolute() for slide, is_listed in found if is_listed}
    unique: dict[tuple[Path, str], CohortSlide] = {}
    differing = []
    for slide, is_listed in found:
        path = slide.path.absolute()
        if not is_listed and path in listed:
            continue
        key = (path, slide.slide if is_listed else "")
        first = unique.setdefault(key, slide)
        if is_listed and first != slide:
            differing.append(f"slide {slide.slide!r} stands in two tables that say different things of it")
        elif slide.is_named and not first.is_named:
            unique[key] = replace(first, is_named=True)
    _refuse("these tables cannot be taken together:", differing)
    return list(unique.values())


def _refuse(sentence: str, problems: Sequence[str]) -> None:
    """Raise a UsageError with one line for each problem, if there are any."""
    if problems:
        more = len(problems) - _MOST_PROBLEMS_SHOWN
        shown = [*problems[:_MOST_PROBLEMS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise UsageError("\n  ".join([sentence, *shown]))


def _slide(values: Mapping[str, str], folder: Path) -> CohortSlide:
    """Check one row.

    Raises:
        ValueError: Something in it does not fit; the message says what.
    """
    slide, path = _with_bytes(values.get("slide", "")), _with_bytes(values.get("path", ""))
    if not slide or not path:
        raise ValueError("slide and path are needed")
    if problem := identity.name_problem(slide):
        raise ValueError(f"slide {slide!r} {problem}: give it an id that can name a file")
    return CohortSlide(
        slide=slide,
        path=_located(folder, path),
        case=unicodedata.normalize("NFC", values.get("case", "")),
        label=discovery.label_of(values.get("label", "")),
        split=discovery.split_of(values.get("split", "")),
        site=values.get("site", ""),
        mpp=_mpp(values.get("mpp", "")),
        extra={key: value for key, value in values.items() if key not in COLUMNS},
        is_named=True,
    )


def _with_bytes(text: str) -> str:
    """Undo the escapes that a table has for bytes that are not text, as a file name may hold them."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda found: chr(0xDC00 + int(found[1], 16)), text)


def _located(folder: Path, text: str) -> Path:
    """Return where a row's slide lies: as written, else with the slashes and the accents that its disk has."""
    slashed = text.replace("\\", "/")
    forms = [text, slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]
    return next((folder / form for form in forms if (folder / form).exists()), folder / slashed)


def _mpp(text: str) -> float | None:
    if not text:
        return None
    try:
        value = table.number(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"mpp {text!r} is not a positive number")
    return value
