"""Predictions beside their truth: how many pixels of each score are tumour, slide by slide."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wsiseg.annotations.classes import Classes
from wsiseg.annotations.coverage import NOTHING, Floats, Truth
from wsiseg.annotations.masks import ZeroedMapError
from wsiseg.annotations.outlines import AnnotationError
from wsiseg.annotations.truth import Reading, open_region, open_truth, truth_files
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation.froc import Lesions, find_lesions
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.heatmap.opening import open_prediction
from wsiseg.mathematics.metrics import Pixels
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.record import Failure, Progress, SlideRecord, in_words
from wsiseg.slides.cohort import CohortSlide
from wsiseg.slides.slide import ASSUMED
from wsiseg.tiles.tissue_choice import named_after

_SAME_SIZE = 0.01  # pixel sizes may differ by this share
_OUTSIDE = 0.02  # a mask's last pixels may reach beyond the slide
_NOISE = 1e-9  # of a cell's area, from adding up what covers it


@dataclass(frozen=True)
class Laid:
    """The truth of a slide over its map; what is ignored or outside the region is neither tumour nor rest."""

    path: Path  # of the map
    heatmap: Heatmap
    truth: Truth
    tumor: Floats  # float64[rows, columns], level-0 pixels of tumour in each cell
    rest: Floats  # float64[rows, columns], the same of what is no tumour
    ignored_share: Floats  # float64[rows, columns], of each cell
    notes: tuple[str, ...]  # what a person should know

    @property
    def tumor_share(self) -> Floats:
        """float64[rows, columns], the share of tumour in each cell."""
        x, y = self.heatmap.edges()
        return self.tumor / np.diff(y)[:, None] / np.diff(x)


@dataclass(frozen=True)
class Compared:
    """One slide: its prediction beside its truth; nothing of it is about what is left out."""

    row: CohortSlide  # what the cohort says of it
    threshold: float  # the heatmap's own
    mpp: tuple[float, float] | None  # micrometers per level-0 pixel along x and y; None where nobody knows
    tissue: Pixels  # the cells that were judged, weights in level-0 pixels
    background: tuple[float, float]  # level-0 pixels of tumour and of the rest where nobody looked
    unknown: tuple[float, float]  # the same in unknown tissue, which no measure is about
    again: Callable[[], Laid] | None  # reads map and truth again, for pictures; None where there is no truth
    notes: tuple[str, ...]  # what a person should know
    classes: frozenset[str] = frozenset()  # the classes that its truth has
    lesions: Lesions | None = None  # single lesions and detections, where they were asked for
    own: dict[str, dict[str, float]] = field(default_factory=dict)  # its measures by mode and name, when it is judged

    @property
    def truth_px(self) -> float:
        """Level-0 pixels of tumour on the whole slide."""
        return float(self.tissue.positive.sum(dtype=np.float64)) + self.background[0] + self.unknown[0]

    @property
    def pixel_mm2(self) -> float | None:
        """Area of a level-0 pixel; None where nobody knows."""
        return None if self.mpp is None else self.mpp[0] * self.mpp[1] / 1e6

    def predicted_percent(self, threshold: float) -> float | None:
        """Return the percentage of the judged tissue at or above a threshold; None where nothing was judged."""
        return 100 * self.called_px(threshold) / self.tissue.total if self.tissue.total else None

    def called_px(self, threshold: float) -> float:
        """Return the level-0 pixels at or above a threshold."""
        return float(sum(count[0] for count in self.tissue.at_or_above(np.array([threshold], np.float32))))


class Sought(NamedTuple):
    """The class that is evaluated, and all classes of the maps, the first one first."""

    name: str = "tumor"
    every: tuple[str, ...] = ("tumor",)

    @property
    def word(self) -> str:
        """The class as sentences call it."""
        return in_words(self.name)

    def reading(self, config: EvaluateConfig) -> Reading:
        """Return how truth is read: by the classes that are named, else by the class that is sought."""
        classes = Classes(config.tumor_class) if config.tumor_class else Classes.of(self.name, self.every)
        negative = (*classes.negative, *config.negative_class)
        return Reading(Classes(classes.tumor, negative, config.ignore_class), config.truth_origin, config.truth_mpp)

    def map_in(self, heatmap: Heatmap, slide: str) -> Heatmap:
        """Return the map of the class; a WsisegError says that there is none."""
        wanted = Classes.of(self.name)
        found = next((one for one in heatmap.by_class if Classes.of(one.positive_class) == wanted), None)
        if found is None:
            raise WsisegError(f"{slide}: its map is of {', '.join(heatmap.classes)}, not of {self.name}")
        return found


class MissingMapError(WsisegError):
    """A slide that is to be evaluated has no map."""


@dataclass(frozen=True)
class ComparedRun:
    """The predictions of one folder beside their truth."""

    place: Path
    compared: tuple[Compared, ...]  # the slides that could be compared
    records: tuple[SlideRecord, ...]  # what became of every slide
    expected: tuple[CohortSlide, ...]  # all slides with a map, and those of the cohort, or with a truth, that have none
    outside: tuple[str, ...]  # the slides with a prediction that are not in the cohort
    unpredicted: tuple[str, ...]  # the files of truth that belong to none of the predictions
    unknown_classes: tuple[str, ...]  # the classes named in the settings that no truth has


def compare_run(
    config: EvaluateConfig,
    place: Path,
    predictions: Mapping[str, Path],
    cohort: Sequence[CohortSlide],
    is_due: Callable[[CohortSlide], bool],
    progress: Progress,
    sought: Sought = Sought(),  # noqa: B008  it cannot be changed
) -> ComparedRun:
    """Compare all predictions of a folder with their truth; `predictions` are by slide.

    A slide without a prediction of which `is_due` is true fails, unless the settings let it be missing.

    Raises:
        UsageError: There is no truth, a region belongs to no slide, or no truth has a class that is to mean tumour.
    """
    known, truths = {row.slide: row for row in cohort}, truth_files(config.truth) if config.truth else {}
    rows = [known.get(slide) or CohortSlide(slide=slide, path=Path(), case=slide) for slide in predictions]
    names = {row.slide: {row.slide, row.path.name, row.path.stem, f"{row.slide}.svs"} & truths.keys() for row in rows}
    unused = sorted(truths.keys() - set().union(*names.values()))
    others = [CohortSlide(name.removesuffix(".svs"), truths[name][0], name) for name in unused]
    absent = [row for row in cohort if row.slide not in predictions] if cohort else others
    # A single region need not be named after the only prediction.
    is_for_one = config.roi is not None and config.roi.is_file() and len(predictions) == 1
    slides = [*predictions] if is_for_one else [*predictions, *known, *truths]
    regions = None if config.roi is None else named_after("--roi", str(config.roi), slides)
    compared, records, wanted = [], [], (*rows, *filter(is_due, absent))
    progress.begin(len(wanted))
    for row in wanted:
        began, found = time.monotonic(), dict[str, object](status="ok")
        files = [file for name in sorted(names.get(row.slide, ())) for file in truths[name]]
        try:
            compared.append(_compared(config, sought, row, predictions.get(row.slide), files, regions))
            found["warnings"] = compared[-1].notes
        except WsisegError as error:
            may_be = isinstance(error, ZeroedMapError) or (config.allow_missing and isinstance(error, MissingMapError))
            found = {"status": "skipped" if may_be else "failed", "error": Failure.of(error)}
        known_of_it = {name: getattr(row, name) for name in ("slide", "case", "label", "split", "site")}
        place_of_it = {"path": str(predictions.get(row.slide, row.path)), "seconds": round(time.monotonic() - began, 3)}
        records.append(SlideRecord.model_validate(known_of_it | place_of_it | found))
        progress.done(records[-1])
    return ComparedRun(
        place,
        tuple(compared),
        tuple(records),
        (*rows, *absent),
        outside=tuple(row.slide for row in rows if cohort and row.slide not in known),
        unpredicted=tuple(file.name for name in unused for file in truths[name]),
        unknown_classes=_absent(config, sought, frozenset().union(*(one.classes for one in compared))),
    )


def _absent(config: EvaluateConfig, sought: Sought, found: frozenset[str]) -> tuple[str, ...]:
    """Return the named classes that no truth has; a slide would pass for free of tumour that is called otherwise."""
    classes = sought.reading(config).classes
    absent = classes.absent(found)
    if found and classes.tumor and set(classes.tumor) <= set(absent):
        text = f"tumor-class {', '.join(classes.tumor)}: no ground truth that could be read has such a class"
        raise UsageError(text, f"its classes are: {', '.join(sorted(found))}")
    return tuple(name for name in absent if name not in sought.every)


def _compared(
    config: EvaluateConfig,
    sought: Sought,
    row: CohortSlide,
    path: Path | None,
    files: Sequence[Path],
    regions: Mapping[str, Path] | None,
) -> Compared:
    """Compare a slide whose map and truth are there, each once."""
    if path is None:
        advice = "map it with wsiseg predict, or give --allow-missing"
        raise MissingMapError(f"{row.slide}: has no map in {config.predictions[0]}", advice)
    if config.truth and not files:
        advice = f"an outline file without outlines means no {sought.word}"
        raise WsisegError(f"{row.slide}: no truth for this slide", advice)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise WsisegError(f"{row.slide}: has more than one truth: {names}", "keep one of them in the folder")
    if regions is not None and row.slide not in regions:
        raise WsisegError(f"{row.slide}: has no region in {config.roi}", f"add {row.slide}.geojson, or leave out --roi")
    again = partial(_laid, config, sought, row, path, files, None if regions is None else regions[row.slide])
    laid = again()
    heatmap, tumor, rest = laid.heatmap, laid.tumor, laid.rest
    counted = heatmap.judged & (tumor + rest > 0)
    background, unknown = (
        (float(tumor[cells].sum()), float(rest[cells].sum())) for cells in (~heatmap.tissue, heatmap.unknown)
    )
    return Compared(
        row=row,
        threshold=heatmap.threshold,
        mpp=None if heatmap.slide.mpp_source == ASSUMED else heatmap.slide.mpp,
        tissue=Pixels.of(heatmap.probabilities[counted], *(one[counted].astype(np.float32) for one in (tumor, rest))),
        background=background,
        unknown=unknown,
        again=again if files else None,
        lesions=find_lesions(heatmap, laid.truth.tumor, laid.ignored_share) if config.froc else None,
        notes=laid.notes + heatmap.warnings,
        classes=laid.truth.classes,
    )


def _laid(
    config: EvaluateConfig,
    sought: Sought,
    row: CohortSlide,
    path: Path,
    files: Sequence[Path],
    region_file: Path | None,
) -> Laid:
    """Lay the truth of a slide over its prediction, without what is ignored or outside its region."""
    heatmap = sought.map_in(open_prediction(path, row.path, row.mpp), row.slide)
    reading = sought.reading(config)
    edges, truth = heatmap.edges(), open_truth(files[0], heatmap.slide, reading) if files else Truth(NOTHING)
    tumor, ignored = truth.covered(*edges)
    notes = truth.notes + _other_size(row, heatmap)
    if files:
        notes += _outside(files[0], truth, float(tumor.sum()), sought.word)
        notes += _contradictions(row, files[0], truth, sought.word)
    if region_file is not None:
        region = open_region(region_file, heatmap.slide, reading)
        truth, notes = truth.inside(region.area, heatmap.slide.size_px), notes + region.notes
        tumor, ignored = truth.covered(*edges)
    cells = np.diff(edges[1])[:, None] * np.diff(edges[0])[None, :]
    tumor, rest = (np.where(area > _NOISE * cells, area, 0) for area in (tumor, cells - tumor - ignored))
    if not (tumor.any() or rest.any()):
        raise WsisegError(f"{row.slide}: nothing of it is left to measure", "see --roi and --ignore-class")
    return Laid(path, heatmap, truth, tumor, rest, ignored / cells, notes)


def _outside(path: Path, truth: Truth, inside_px: float, word: str) -> tuple[str, ...]:
    """Say how much of the truth lies beyond the slide."""
    total = truth.tumor.total
    if total > 0 and inside_px <= 0:
        advice = "set truth-origin in the --config file"
        raise AnnotationError(f"{path.name}: all of its {word} lies outside the slide", advice)
    if inside_px < (1 - _OUTSIDE) * total:
        return (f"{path.name}: {1 - inside_px / total:.0%} of its {word} lies outside the slide",)
    return ()


def _contradictions(row: CohortSlide, path: Path, truth: Truth, word: str) -> tuple[str, ...]:
    """Say where the cohort does not agree with the truth."""
    if row.label == 1 and truth.tumor.total == 0:
        return (f"{path.name}: holds no {word}, but the cohort calls {row.slide} a {word} slide",)
    if row.label == 0 and truth.tumor.total > 0:
        return (f"{path.name}: holds {word}, but the cohort calls {row.slide} a normal slide",)
    return ()


def _other_size(row: CohortSlide, heatmap: Heatmap) -> tuple[str, ...]:
    """Say where the cohort does not agree with the heatmap on the size of a pixel."""
    mpp = heatmap.slide.mpp[0]
    if row.mpp is None or abs(row.mpp / mpp - 1) <= _SAME_SIZE:
        return ()
    return (f"{row.slide}: was mapped at {mpp:g} um/px, the cohort says {row.mpp:g} um/px",)
