"""Which slides are one: ids that name the same file, files that are of one case, cases that cross splits."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsiseg.slides import table

if TYPE_CHECKING:
    from wsiseg.slides.cohort_slide import CohortSlide

_LONGEST_NAME_BYTES = 180  # most disks take 255, and results are named after it
_DEVICES = frozenset(["con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(10))])


def distinct(slides: Sequence["CohortSlide"]) -> list["CohortSlide"]:
    """Make ids unique on every disk: one that occurs twice, or cannot name a file, gets a short hash of its path."""
    counts = Counter(table.same_name(slide.slide) for slide in slides)
    distinct = []
    for slide in slides:
        name = slide.slide
        if counts[table.same_name(name)] > 1 or name_problem(name):
            mark = hashlib.sha256(os.fsencode(slide.path.absolute())).hexdigest()[:8]
            plain = re.sub(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", "_", name).lstrip("-. ")
            if len(os.fsencode(plain)) > _LONGEST_NAME_BYTES - len(mark) - 1:
                plain = plain[:40]
            name = f"{plain or 'slide'}-{mark}"
        distinct.append(replace(slide, slide=name))
    return distinct


def of_one_case(slides: Sequence["CohortSlide"]) -> list["CohortSlide"]:
    """Return the slides with a case each: where it is empty, that of another row of the same file, else the own id."""
    rows: dict[Path, list[CohortSlide]] = {}
    files = [_file(slide) for slide in slides]
    for slide, file in zip(slides, files, strict=True):
        rows.setdefault(file, []).append(slide)
    doubts = ("another row of this file has the other label: give each its own --tissue or --roi",)
    found = []
    for slide, same in zip(slides, map(rows.__getitem__, files), strict=True):
        case = slide.case or next((row.case for row in same if row.case), same[0].slide)
        is_contradicted = {0, 1} <= {row.label for row in same}
        found.append(replace(slide, case=case, doubts=slide.doubts or (doubts if is_contradicted else ())))
    return found


def _file(slide: "CohortSlide") -> Path:
    """Return the file that a path leads to, so that two links to one file are seen to be one."""
    try:
        return slide.path.resolve()
    except (OSError, RuntimeError):  # a loop of links, or a disk that does not answer
        return slide.path.absolute()


def name_problem(name: str) -> str:
    """Say why an id cannot name files on every disk; nothing if it can."""
    if re.search(r"[/\\\x00-\x1f\x7f]", name) or name in {".", ".."}:
        return "is not a file name"
    if name[:1] in {".", "-"}:
        return f"begins with {name[0]!r}"
    if name.split(".", maxsplit=1)[0].strip().casefold() in _DEVICES:
        return "is a device of Windows"
    if table.is_missing(name):
        return "means that nothing is known"
    if len(os.fsencode(name)) > _LONGEST_NAME_BYTES:
        return f"is longer than {_LONGEST_NAME_BYTES} bytes"
    return ""


def contradictions(slides: Sequence["CohortSlide"], places: Sequence[str]) -> Iterator[str]:
    """Name ids that disks or people take for one, and cases that cross splits or are of one file.

    Args:
        slides: The slides.
        places: Where each of them was found, for the sentence.
    """
    for group in _alike(slides, places, lambda slide: table.same_name(slide.slide)):
        names = sorted({slide.slide for slide, _ in group})
        same = (
            f"slide {names[0]!r} occurs {len(group)} times"
            if len(names) == 1
            else f"slides {_and(names)} would be one file on some disks"
        )
        if len(group) > 1:
            yield f"{same} ({_and([place for _, place in group])}): give each an id of its own"
    for group in _alike(slides, places, lambda slide: table.same_name(slide.case)):
        names = sorted({slide.case for slide, _ in group})
        if len(names) > 1:
            yield f"cases {_and(names)} differ in upper and lower case only: write them alike, or apart"
        splits = sorted({slide.split for slide, _ in group if slide.split})
        if len(splits) > 1:
            yield f"case {names[0]!r} stands in {' and '.join(splits)}"
    for group in _alike(slides, places, lambda slide: str(_file(slide))):
        names = sorted({slide.case for slide, _ in group})
        if len({table.same_name(name) for name in names}) > 1:
            where = _and([place for _, place in group])
            yield f"cases {_and(names)} are of one file, {group[0][0].path.name} ({where}): give them one case"


def _alike(
    slides: Sequence["CohortSlide"], places: Sequence[str], key: Callable[["CohortSlide"], str]
) -> list[list[tuple["CohortSlide", str]]]:
    groups: dict[str, list[tuple[CohortSlide, str]]] = {}
    for slide, place in zip(slides, places, strict=True):
        groups.setdefault(key(slide), []).append((slide, place))
    return list(groups.values())


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)
