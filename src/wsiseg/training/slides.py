"""The slides that are learned from: their tiles and their labels."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.mathematics.mil import share_target
from wsiseg.run.errors import UsageError, shortened
from wsiseg.run.record import in_words
from wsiseg.slides.cohort import Cohort, CohortSlide
from wsiseg.slides.cohort_slide import Stated
from wsiseg.slides.table import TUMOR
from wsiseg.tiles.store import TileStore, fill_tiles, store_path

Indices = NDArray[np.integer]
TileLabels = NDArray[np.int8] | NDArray[np.float32]
"""True labels of tiles, int8[tiles, classes], or probabilities that are to be learned, float32[tiles, classes]."""
Rows = tuple[CohortSlide, ...]
"""A row of the table, as it speaks of each class."""
_SHOWN = 10
_NONE = "none of its {} training slides with tiles holds {}"
_ALL = "its {} training slides with tiles all hold {}, and of none is it known that some of it is normal"


@dataclass(frozen=True)
class LabelledSlide:
    """A slide with tiles of which it is known whether it holds tumour, or how much; or another class that is learned.

    Of several classes, this is what is known of the first, and `others` the same slide for each further one.
    """

    slide: str
    label: int | None  # 1 if it holds tumour, 0 if not, None if it may hold up to the stated share or nobody knows
    split: str  # train, val or test
    site: str
    store: Path
    path: Path
    tiles: int  # how many of its tiles are used
    tile_px: int  # side of a tile in pixels of `mpp`, micrometers
    mpp: float
    fingerprint: str  # changes whenever its pixels or the places of the tiles that are used do
    stored: int = 0  # how many tiles its store holds, where these are more
    has_pixels: bool = False  # the store holds the tiles themselves
    stated: Stated = (None, None)  # the least and the most share of tumour, where the cohort states them
    needs_normal: bool = False  # no training slide is without tumour, so that normal tissue is learned from this one
    target: float | None = None  # what its tiles are drawn to by its share then; see `mil.share_target`
    others: tuple["LabelledSlide", ...] = ()

    @property
    def by_class(self) -> tuple["LabelledSlide", ...]:
        """The slide with what is known of each class, in their order."""
        return (self, *self.others)

    def shares(self, alpha: float, beta: float) -> tuple[float, float]:
        """Return the shares of tumour and of normal tissue in its tiles: as stated, else by the label.

        They are the least shares; beside slides without tumour, the middle of the bounds is tumour and nothing normal.

        Args:
            alpha: Least share of tumour in a slide that holds some and of which no more is stated.
            beta: Least share of normal tissue in such a slide.
        """
        if self.label == 0:
            return 0.0, 1.0
        if self.label is None:
            alpha, beta = 0.0, 0.0 if self.stated == (None, None) else beta
        least, most = self.stated
        if least is not None and self.label and not self.needs_normal:
            return (least if most is None else (least + most) / 2), 0.0
        if least is not None:
            alpha, beta = least, min(beta, 1 - least)
        if most is not None:
            alpha, beta = min(alpha, most), 1 - most if self.needs_normal else min(beta, 1 - most)
        return alpha, beta

    def open(self) -> TileStore:
        """Open its tile store, with the tiles that are not used too; `places` tells which are."""
        return TileStore(self.store, self.path)

    @property
    def places(self) -> Indices:
        """Where in its store the tiles lie that are used, int[tiles], the same ones in every run."""
        return spread(self.stored or self.tiles, self.tiles, np.random.default_rng(0))

    def read(self, indices: Indices, context_px: int | None = None) -> NDArray[np.uint8]:
        """Read tiles, or the crops of `context_px` around them: uint8[n, side, side, 3]."""
        shape, task = self.task(indices, context_px)
        out = np.empty(shape, np.uint8)
        fill_tiles(out, *task)
        return out

    def task(self, indices: Indices, context_px: int | None) -> tuple[tuple[int, int, int, int], tuple[Any, ...]]:
        """Return the shape of such tiles, and what `fill_tiles` is to be told to read them."""
        side, places = context_px or self.tile_px, self.places[indices].tolist()
        slide = None if self.has_pixels and context_px is None else str(self.path)
        return (len(places), side, side, 3), (str(self.store), slide, places)


def spread(count: int, most: int, random: np.random.Generator) -> Indices:
    """Choose one of each of `most` equal parts of so many things; all where there are fewer."""
    edges = np.arange(min(count, most) + 1) * count // max(1, min(count, most))
    return random.integers(edges[:-1], edges[1:])


def evenly(count: int, most: int) -> Indices:
    """Choose at most so many of `count` things at equal distances, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def in_parts(indices: Indices, size: int) -> list[Indices]:
    """Cut indices into parts of at most so many."""
    return [indices[begin : begin + size] for begin in range(0, len(indices), size)]


def labelled_slides(  # noqa: PLR0913  one argument for each thing that decides
    cohort: Path,
    note: Callable[[str], None] = lambda _: None,
    most_tiles: int | None = None,
    stores: Path | None = None,
    mpp: float | None = None,
    percent_error: float = 0.0,
    *,
    need_labels: bool = True,
    classes: Sequence[str] = (TUMOR,),
) -> tuple[LabelledSlide, ...]:
    """Find the slides of a cohort that have a label, or stated shares, of one of the classes, and tiles.

    Where no slide has a split, all are for training. Percentages may be wrong by `percent_error` points.

    Their tile stores lie in the folder `stores`, or beside the cohort. All are taken to be of `mpp`, if it is given.
    Unless they `need_labels`, those without a label are found too.

    Raises:
        UsageError: Stores are missing or differ in tile size, or the training slides do not tell tumour from normal.
    """
    slides, missing = [], []
    for rows, split in chosen(rows_by_class(cohort, classes), note, need_labels=need_labels):
        store = store_path(stores or cohort.parent, rows[0].slide)
        if not store.is_dir():
            missing.append(rows[0].slide)
            continue
        for doubt in rows[0].doubts:
            note(f"{rows[0].slide}: {doubt}")
        slides.append(_known(_labelled(rows[0], split, store, most_tiles), rows, percent_error))
    if missing:
        advice = f"run wsiseg tile again, or take the slides out of {cohort.name}"
        raise UsageError(f"{cohort}: no tile store beside it for {', '.join(shortened(missing, _SHOWN))}", advice)
    _tell_left_out("tiles", [slide.slide for slide in slides if not slide.tiles], note)
    usable = tuple(slide for slide in slides if slide.tiles)
    if mpp is not None:
        usable = tuple(replace(slide, mpp=mpp) for slide in usable)
    _check_sizes(cohort, usable)
    _check_leaks(cohort, usable)
    return _checked(cohort, usable, classes, need_labels=need_labels)


def check_table(cohort: Path, classes: Sequence[str], percent_error: float = 0.0, *, need_labels: bool = True) -> None:
    """Refuse a table of which `labelled_slides` would refuse the labels, whatever tiles its slides have.

    Raises:
        UsageError: It cannot be read, or its training slides do not tell tumour from normal.
    """
    slides = [
        _known(
            LabelledSlide(one.slide, None, split, one.site, Path(), one.path, 1, 1, 1.0, ""),
            (one, *more),
            percent_error,
        )
        for (one, *more), split in chosen(rows_by_class(cohort, classes), need_labels=need_labels)
    ]
    _check_sizes(cohort, slides)
    _checked(cohort, slides, classes, need_labels=need_labels)


def chosen(
    every: Sequence[Rows], note: Callable[[str], None] = lambda _: None, *, need_labels: bool = True
) -> list[tuple[Rows, str]]:
    """Choose the rows that are used, with their splits, and `note` which others lack a split or a label alone."""
    has_splits = any(row.split for row, *_ in every)
    found, no_split, no_label = [], [], []
    for rows in every:
        split = rows[0].split if has_splits else "train"
        is_labelled = not need_labels or any(one.can_teach for one in rows)
        if split and is_labelled:
            found.append((rows, split))
        elif split:
            no_label.append(rows[0].slide)
        elif is_labelled:
            no_split.append(rows[0].slide)
    _tell_left_out("split", no_split, note)
    _tell_left_out("label", no_label, note)
    return found


def _tell_left_out(what: str, slides: Sequence[str], note: Callable[[str], None]) -> None:
    if slides:
        note(f"left out, having no {what}: {', '.join(shortened(slides, _SHOWN))}")


def _known(slide: LabelledSlide, rows: Rows, percent_error: float) -> LabelledSlide:
    """Return a slide with what its rows say of each class."""
    first, *others = (replace(slide, label=one.label, stated=one.stated(percent_error)) for one in rows)
    return replace(first, others=tuple(others))


def _checked(
    cohort: Path, slides: Sequence[LabelledSlide], classes: Sequence[str], *, need_labels: bool
) -> tuple[LabelledSlide, ...]:
    """Check that each class can be learned, and return slides that know whether normal tissue is learned from them."""
    by_class = list(zip(*(slide.by_class for slide in slides), strict=True))
    for name, known in zip(classes, by_class if need_labels else (), strict=False):
        _check_labels(cohort, name, known)
    seen = zip(*map(with_normal, by_class), strict=True)
    return tuple(replace(slide, others=tuple(others)) for slide, *others in seen)


def rows_by_class(cohort: Path, classes: Sequence[str]) -> list[Rows]:
    """Read the rows of a cohort, each as it speaks of every class; a UsageError says which are wrong."""
    tables = (Cohort.read(cohort, name, is_first=name == classes[0]) for name in classes)
    return list(zip(*(table.slides for table in tables), strict=True))


def with_normal(slides: Sequence[LabelledSlide]) -> list[LabelledSlide]:
    """Return slides, as one class sees them, that know whether normal tissue is learned from them, and how."""
    training = [slide for slide in slides if slide.split == "train"]
    if any(slide.label == 0 for slide in training):
        return list(slides)
    among = [slide.stated for slide in training]
    return [replace(slide, needs_normal=True, target=share_target(slide.stated, among)) for slide in slides]


def _labelled(row: CohortSlide, split: str, store: Path, most_tiles: int | None) -> LabelledSlide:
    opened = TileStore(store)
    tiles = opened.tiles
    used = min(len(tiles), most_tiles or len(tiles))
    of_row = (row.slide, row.label, split, row.site, store, row.path)
    slide = LabelledSlide(*of_row, used, tiles.tile_px, tiles.mpp, "", len(tiles), opened.has_pixels)
    digest = hashlib.sha256(tiles.slide.fingerprint.encode() + tiles.corners[slide.places].tobytes())
    digest.update(f"{tiles.tile_px} {tiles.mpp} {tiles.slide.mpp}".encode())
    return replace(slide, fingerprint=digest.hexdigest()[:16])


def _check_labels(cohort: Path, name: str, slides: Sequence[LabelledSlide]) -> None:
    training = [slide for slide in slides if slide.split == "train"]
    word, counted = in_words(name), len(training)
    if not any(slide.label for slide in training):
        advice = "train needs slides with label 1" + f" (or {name}_label, {name}_percent)" * (name != TUMOR)
        raise UsageError(f"{cohort}: {_NONE.format(counted, word)}", advice)
    if not any(replace(slide, needs_normal=True).shares(1.0, 0.0)[1] > 0 for slide in training):
        advice = f"add slides with label 0, or say of some how much is {word}: {name}_percent, or {name}_max below 100"
        raise UsageError(f"{cohort}: {_ALL.format(counted, word)}", advice)


def _check_leaks(cohort: Path, slides: Sequence[LabelledSlide]) -> None:
    """Refuse copies of a slide in several splits, whose measures would say nothing of new slides."""
    alike: dict[str, list[LabelledSlide]] = {}
    for slide in slides:
        alike.setdefault(slide.fingerprint, []).append(slide)
    for same in alike.values():
        if len({slide.split for slide in same}) > 1:
            where = " and ".join(f"{slide.slide} ({slide.split})" for slide in same)
            raise UsageError(f"{cohort}: {where} are copies of one slide", "leave it in one split")


def _check_sizes(cohort: Path, slides: Sequence[LabelledSlide]) -> None:
    if not any(slide.split == "train" for slide in slides):
        raise UsageError(f"{cohort}: no training slide has tiles", "give slides the split train")
    sizes = {(slide.tile_px, slide.mpp) for slide in slides}
    if len(sizes) > 1:
        kinds = " and ".join(f"{side} px of {mpp:g} um" for side, mpp in sorted(sizes))
        raise UsageError(f"{cohort}: its tile stores differ: {kinds}", "run wsiseg tile again with --overwrite")
