"""The slides of a cohort: what a row of its table says of one, and which of them are one.

Ids may name the same file, files may be of one case, and cases may cross splits.
"""

import hashlib
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from wsiseg.run.errors import NotASlideError, SlideError
from wsiseg.slides import table
from wsiseg.slides.address import bare, is_address, place_of
from wsiseg.slides.pixel_size import positive
from wsiseg.slides.slide import Slide
from wsiseg.slides.slide_file import LONGEST_READ_S

LABELS = {
    **dict.fromkeys(["1", "tumor", "tumour", "cancer", "malignant", "positive", "pos"], 1),
    **dict.fromkeys(["0", "normal", "benign", "negative", "neg", "non-tumor", "non-tumour", "no-tumor"], 0),
}
_WORDS = {**LABELS, **dict.fromkeys(["yes", "y", "true", "t", "+1"], 1), **dict.fromkeys(["no", "n", "false", "f"], 0)}
_LONGEST_NAME_BYTES = 180  # most disks take 255, and results are named after it
_DEVICES = frozenset(["con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(10))])
Stated = tuple[float | None, float | None]
"""The least and the most share of tumour in a slide's tissue, 0..1; None where nobody states it."""
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class CohortSlide:
    """One row of a cohort."""

    slide: str  # unique id; outputs are named after it
    path: Path  # where the slide lies
    case: str = ""  # slides of one case (patient) never cross splits; the slide's own id where nothing is known
    label: int | None = None  # 1 if it holds tumour (or the class that was asked for), 0 if not, None if nobody knows
    split: str | None = None  # train, val, test or None
    site: str = ""  # the organ, or empty
    mpp: float | None = None  # micrometers per level-0 pixel in place of what the file says, or None
    extra: dict[str, str] = field(default_factory=dict)  # further columns, kept as they are
    tumor_min: float | None = None  # at least so many percent of its tissue are tumour, or that class
    tumor_percent: float | None = None  # about so many percent are
    tumor_max: float | None = None  # at most so many percent are
    doubts: tuple[str, ...] = ()  # what its name says that could not be used; not kept in the CSV
    skipped: str = ""  # why it is not to be read on its own, or empty; not kept in the CSV
    address: str = field(default="", repr=False)  # where it is to be fetched from; `path` is its place in a cache then
    is_named: bool = field(default=False, compare=False)  # the user named the file itself; not kept in the CSV

    def in_cache(self, folder: Path) -> Self:
        """Return it with its place in a cache where it lies elsewhere."""
        return replace(self, path=folder / self.path) if self.address else self

    @property
    def must_be_slide(self) -> bool:
        """True where it is a failure, and nothing to pass over, that the file is not a slide."""
        return self.is_named and not self.skipped

    @property
    def can_teach(self) -> bool:
        """True where it is known whether it holds tumour, or how much at most."""
        return self.label is not None or self.tumor_max is not None

    @property
    def about(self) -> float | None:
        """About how many percent of its tissue are tumour: as stated, or the middle of its two bounds."""
        if self.tumor_percent is None and self.tumor_min is not None and self.tumor_max is not None:
            return (self.tumor_min + self.tumor_max) / 2
        return self.tumor_percent

    def stated(self, error: float) -> Stated:
        """Return the share of tumour that is stated; `tumor_percent` may be wrong by so many points of percent."""
        about = self.tumor_percent
        least, most = self.tumor_min, self.tumor_max
        if about is not None:
            least = max(0.0, about - error) if least is None else least
            most = min(100.0, about + error) if most is None else most
        return None if least is None else least / 100, None if most is None else most / 100

    @property
    def known(self) -> dict[str, Any]:
        """What the cohort says of the slide: its label, split and site, None where nothing is known."""
        return {"label": self.label, "split": self.split, "site": self.site or None}

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
        if self.address and not self.path.is_file():
            text = f"{bare(self.address)}: is an address, and only predict and tile read slides from addresses"
            raise SlideError(text, "download it, and name the file")
        return Slide(self.path, mpp=self.mpp or mpp, longest_read_s=longest_read_s)


def slide_of(values: Mapping[str, str], folder: Path, of: str = table.TUMOR, *, is_first: bool = True) -> CohortSlide:
    """Return the slide of a row of a table that lies in a folder, with what that says `of` a class.

    Raises:
        ValueError: Something in it does not fit; the message says what.
    """
    slide, path = _with_bytes(values.get("slide", "")), _with_bytes(values.get("path", ""))
    if not slide or not path:
        raise ValueError("slide and path are needed")
    if problem := name_problem(slide):
        raise ValueError(f"slide {slide!r} {problem}: give it an id that can name a file")
    is_elsewhere = is_address(path)
    return CohortSlide(
        slide=slide,
        path=place_of(path) if is_elsewhere else _located(folder, path),
        address=path if is_elsewhere else "",
        case=unicodedata.normalize("NFC", values.get("case", "")),
        site=values.get("site", ""),
        **_known(values, of, is_first=is_first),
        extra={key: value for key, value in values.items() if key not in table.KNOWN},
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


def _known(values: Mapping[str, str], of: str, *, is_first: bool) -> dict[str, Any]:
    """Return what has a meaning, in figures or in the words that people and folders have; None where one is empty."""
    split, mpp = (values.get(name, "") for name in ("split", "mpp"))
    said = {name.casefold(): "" if table.is_missing(text) else text for name, text in values.items()}
    is_label = is_first and (of == table.TUMOR or not said.keys() & {*table.PERCENTAGES, "tumor_label"})
    label = said.get(f"{of}_label".casefold()) or (said.get("label", "") if is_label else "")
    word = re.sub(r"^([01])[.,]0+$", r"\1", plain(label))
    if word and word not in _WORDS:
        raise ValueError(f"label {label!r} is not 1, 0 or empty, nor a word for one of them as yes, tumor or normal")
    if split and plain(split) not in SPLITS:
        raise ValueError(f"split {split!r} is not train, val, test or empty")
    if mpp and not positive(mpp):
        raise ValueError(f"mpp {mpp!r} is not a positive number")
    columns = {name: name.replace(table.TUMOR, of, 1) for name in table.PERCENTAGES}
    percentages = {column: _percent(column, said.get(column.casefold(), "")) for column in columns.values()}
    label_said = _label(_WORDS.get(word), percentages)
    stated = dict(zip(columns, percentages.values(), strict=True))
    return {"label": label_said, "split": SPLITS.get(plain(split)), "mpp": positive(mpp) or None, **stated}


def _percent(name: str, text: str) -> float | None:
    """Read a percentage, with or without its sign; a share of 0..1 is refused, as nobody could tell 1 from 1 %."""
    number = text.removesuffix("%").rstrip()
    value = positive(number) or (0.0 if re.fullmatch(r"0([.,]0*)?", number) else None)
    if text and (value is None or value > 100 or 0 < value < 1):  # noqa: PLR2004  percent
        raise ValueError(f"{name} {text!r} is not 0, nor a percentage from 1 to 100, as 30 for three tenths")
    return value


def _label(label: int | None, percentages: Mapping[str, float | None]) -> int | None:
    """Return the label of a slide, or what its percentages say of it."""
    known = {name: value for name, value in percentages.items() if value is not None}
    for (name, percent), (next_name, next_percent) in itertools.pairwise(known.items()):
        if percent > next_percent:
            raise ValueError(f"{name} {percent:g} is above {next_name} {next_percent:g}")
    low, about, high = percentages.values()
    said = 1 if low or about else 0 if 0.0 in {about, high} else None
    if None not in {label, said} and label != said:
        raise ValueError(f"label {label} contradicts {' and '.join(f'{name} {known[name]:g}' for name in known)}")
    return said if label is None else label


def plain(text: str) -> str:
    """Return a word without what writers differ in: capitals, and what stands between its parts."""
    return re.sub(r"[\s_-]+", "-", text.casefold())


def distinct(slides: Sequence[CohortSlide]) -> list[CohortSlide]:
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


def of_one_case(slides: Sequence[CohortSlide]) -> list[CohortSlide]:
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


def _file(slide: CohortSlide) -> Path:
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


def contradictions(slides: Sequence[CohortSlide], places: Sequence[str]) -> Iterator[str]:
    """Name ids that disks or people take for one, and cases that cross splits or are of one file.

    Args:
        slides: The slides.
        places: Where each of them was found, for the sentence.
    """
    for rows, where in _alike(slides, places, lambda slide: table.same_name(slide.slide)):
        names = sorted({row.slide for row in rows})
        same = f"slide {names[0]!r} occurs {len(rows)} times"
        same = same if len(names) == 1 else f"slides {_and(names)} would be one file on some disks"
        yield f"{same} ({where}): give each an id of its own"
    for rows, _ in _alike(slides, places, lambda slide: table.same_name(slide.case)):
        names, splits = sorted({row.case for row in rows}), sorted({row.split for row in rows if row.split})
        if len(names) > 1:
            yield f"cases {_and(names)} differ in upper and lower case only: write them alike, or apart"
        if len(splits) > 1:
            yield f"case {names[0]!r} stands in {_and(splits)}"
    for rows, where in _alike(slides, places, lambda slide: str(_file(slide))):
        names = sorted({row.case for row in rows})
        if len({table.same_name(name) for name in names}) > 1:
            yield f"cases {_and(names)} are of one file, {rows[0].path.name} ({where}): give them one case"


def _alike(
    slides: Sequence[CohortSlide], places: Sequence[str], key: Callable[[CohortSlide], str]
) -> Iterator[tuple[list[CohortSlide], str]]:
    """Yield the slides that share a key with others, and where they were found."""
    groups: dict[str, list[int]] = {}
    for number, slide in enumerate(slides):
        groups.setdefault(key(slide), []).append(number)
    for group in groups.values():
        if len(group) > 1:
            yield [slides[number] for number in group], _and([places[number] for number in group])


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)
