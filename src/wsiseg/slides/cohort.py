"""The table of slides: where each lies, whose it is, what is known of it."""

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from wsiseg.run.errors import UsageError, shortened
from wsiseg.run.outputs import write_text
from wsiseg.slides import discovery, split, table
from wsiseg.slides.address import bare, is_address
from wsiseg.slides.cohort_slide import CohortSlide, contradictions, distinct, of_one_case, slide_of

__all__ = ["Cohort", "CohortSlide", "in_shard"]
_MOST_PROBLEMS_SHOWN = 20


@dataclass(frozen=True)
class Cohort:
    """A table of slides with unique ids, no case in two splits."""

    slides: tuple[CohortSlide, ...]

    @classmethod
    def read(cls, path: Path, of: str = table.TUMOR, *, is_first: bool = True) -> Self:
        """Read a cohort CSV; paths in it are relative to its folder.

        Of another class than tumour, label and percentages are those of the columns `<class>_label`, `<class>_min`,
        `<class>_percent` and `<class>_max`. Where there is no `<class>_label`, the column `label` is that of the class
        that `is_first`, unless the table has such columns of tumour: then it is tumour's.

        Raises:
            UsageError: It cannot be read, or rows are wrong: one line for each of them.
        """
        problems: list[str] = []
        slides, lines = [], []
        for line, values in table.rows(path, problems):
            try:
                slides.append(slide_of(values, path.parent, of, is_first=is_first))
                lines.append(f"line {line}")
            except ValueError as error:
                problems.append(f"line {line}: {error}")
        if not slides and not problems:
            problems.append("no slides")
        slides = of_one_case(slides)
        problems.sort(key=lambda text: int(text.split()[1].rstrip(":")) if text.startswith("line ") else 0)
        _refuse(f"{path}: not a valid cohort:", [*problems, *contradictions(slides, lines)])
        return cls(tuple(slides))

    def write(self, path: Path, comments: str = "") -> None:
        """Write the cohort as CSV below some comments, paths relative to its folder, whole or not at all."""
        extra = sorted({name for slide in self.slides for name in slide.extra})
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        stated = [name for name in table.PERCENTAGES if any(vars(slide)[name] is not None for slide in self.slides)]
        known = [*table.COLUMNS, *stated]
        writer.writerow([*known, *extra])
        for slide in self.slides:
            place = bare(slide.address) or _relative(slide.path, path.parent).as_posix()
            values = {**vars(slide), "path": place}
            writer.writerow([*(values[name] for name in known), *(slide.extra.get(name, "") for name in extra)])
        write_text(path, comments + buffer.getvalue())

    @classmethod
    def from_inputs(cls, inputs: Sequence[str], piped: Iterable[str] = ()) -> Self:
        """Find the slides that a user names.

        Args:
            inputs: Files, folders (searched in depth), globs, cohort CSVs, or `-` for `piped`.
            piped: Lines that stand in for `-`: a path each, or paths that end by NUL, as of `find -print0`.

        Returns:
            The slides, each once, in the order named; rows of a table count more than the same files found elsewhere,
            and every row of one file stays. Files of equal name get a short hash of their path.

        Raises:
            UsageError: A cohort is wrong, or nothing at all was found.
        """
        lines = _piped(piped) if "-" in inputs else []
        named = [text for name in inputs for text in (lines if name == "-" else [name])]
        found = [slide for text in named for slide in _slides_at(text)]
        if not found:
            raise UsageError(f"no slides in {', '.join(inputs) or 'nothing'}", "name slides, folders or a cohort CSV")
        unique = _unique(found)
        parts = discovery.parts_of_series({slide.path: None for slide in unique})
        unlike = distinct([replace(slide, skipped=parts.get(slide.path, "")) for slide in unique])
        slides, paths = of_one_case(unlike), [str(slide.path) for slide in unlike]
        _refuse("these slides cannot be taken together:", list(contradictions(slides, paths)))
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


def in_shard(slide: str, shard: str | None) -> bool:
    """Return whether a slide belongs to a shard `I/N`; its id alone decides."""
    if shard is None:
        return True
    number, count = (int(part) for part in shard.split("/"))
    return int(hashlib.sha256(slide.encode()).hexdigest(), 16) % count == number - 1


def _relative(path: Path, folder: Path) -> Path:
    """Return a path as seen from a folder, also where a link leads to the folder; as it is from another drive."""
    try:
        return Path(os.path.relpath(path.absolute(), folder.resolve()))
    except ValueError:
        return path.absolute()


def _piped(lines: Iterable[str]) -> list[str]:
    """Return paths that are given one a line, or ended by NULs, as names that hold line breaks need it."""
    given = list(lines)
    if any("\0" in line for line in given):
        return list(filter(None, "".join(given).split("\0")))
    return [path for line in given if (path := line.lstrip("\ufeff").strip())]


def _slides_at(text: str) -> list[tuple[CohortSlide, bool]]:
    """Return the slides that a path names, each with True if a table lists it."""
    is_table = Path(text).suffix.lower() in table.SUFFIXES and not is_address(text)
    return [(slide, is_table) for slide in (Cohort.read(Path(text)).slides if is_table else discovery.find(text))]


def _unique(found: Sequence[tuple[CohortSlide, bool]]) -> list[CohortSlide]:
    """Leave out what was named before; of a file that tables list, their rows stay."""
    listed = {slide.path.absolute() for slide, is_listed in found if is_listed}
    unique: dict[tuple[Path, str], CohortSlide] = {}
    differing = []
    for slide, is_listed in found:
        path = slide.path.absolute()
        if not is_listed and path in listed:
            continue
        key = (path, slide.slide if is_listed else "")
        first = unique.setdefault(key, slide)
        if first.address != slide.address:
            differing.append(f"slide {slide.slide!r} has two addresses that differ in their query alone")
        elif is_listed and first != slide:
            differing.append(f"slide {slide.slide!r} stands in two tables that say different things of it")
        elif slide.is_named and not first.is_named:
            unique[key] = replace(first, is_named=True)
    _refuse("these tables cannot be taken together:", differing)
    return list(unique.values())


def _refuse(sentence: str, problems: Sequence[str]) -> None:
    if problems:
        raise UsageError("\n  ".join([sentence, *shortened(problems, _MOST_PROBLEMS_SHOWN)]))
