"""A prediction beside its truth: how many pixels of each score are tumour."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.truth import AnnotationError, Reading, Truth, open_truth
from wsiseg.evaluation.froc import Lesions, find_lesions
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.heatmap.opening import open_prediction
from wsiseg.mathematics.metrics import Floats, Pixels
from wsiseg.slides.cohort import CohortSlide
from wsiseg.slides.slide import ASSUMED

_PICTURE_CELLS = 256  # the longer side of what a picture shows
_SAME_SIZE = 0.01  # pixel sizes may differ by this share
_OUTSIDE = 0.02  # a mask's last pixels may reach beyond the slide


@dataclass(frozen=True)
class Picture:
    """Prediction and truth at a size to look at.

    Attributes:
        probabilities: float32[rows, columns], NaN where nobody looked.
        tumor_share: float32[rows, columns], the share of each cell that is tumour in truth.
    """

    probabilities: NDArray[np.float32]
    tumor_share: NDArray[np.float32]


@dataclass(frozen=True)
class Compared:
    """One slide: its prediction beside its truth.

    Attributes:
        row: What the cohort says of it.
        threshold: The heatmap's own.
        mpp: Micrometers per level-0 pixel along x and y; None where nobody knows.
        tissue: The cells that were looked at, weights in level-0 pixels.
        background: Level-0 pixels of tumour and of the rest where nobody looked.
        picture: For people, where one was asked for.
        lesions: Single lesions and detections, where they were asked for.
        notes: What a person should know.
    """

    row: CohortSlide
    threshold: float
    mpp: tuple[float, float] | None
    tissue: Pixels
    background: tuple[float, float]
    picture: Picture | None
    lesions: Lesions | None
    notes: tuple[str, ...]

    @property
    def truth_px(self) -> float:
        """Level-0 pixels of tumour on the whole slide."""
        return float(self.tissue.positive.sum(dtype=np.float64)) + self.background[0]

    def called_px(self, threshold: float) -> float:
        """Give the level-0 pixels at or above a threshold."""
        return float(sum(count[0] for count in self.tissue.at_or_above(np.array([threshold], np.float32))))


def compare(
    row: CohortSlide,
    prediction: Path,
    truth_path: Path,
    reading: Reading,
    *,
    with_picture: bool = False,
    with_lesions: bool = False,
) -> Compared:
    """Lay the truth of a slide over its prediction.

    Args:
        row: What the cohort says of the slide.
        prediction: A heatmap or a published map.
        truth_path: Outlines, a mask or labels.
        reading: How to read the truth.
        with_picture: Keep what a picture needs.
        with_lesions: Look for single lesions.

    Raises:
        WsisegError: The heatmap or the truth cannot be read, or all of the truth lies outside the slide.
    """
    heatmap = open_prediction(prediction, row.path, row.mpp)
    truth = open_truth(truth_path, heatmap.slide, reading)
    x_edges, y_edges = heatmap.edges()
    cells = np.diff(y_edges)[:, None] * np.diff(x_edges)[None, :]
    tumor = truth.tumor.covered(x_edges, y_edges)
    rest, looked = cells - tumor, heatmap.tissue
    return Compared(
        row=row,
        threshold=heatmap.threshold,
        mpp=None if heatmap.slide.mpp_source == ASSUMED else heatmap.slide.mpp,
        tissue=Pixels.of(heatmap.probabilities[looked], *(area[looked].astype(np.float32) for area in (tumor, rest))),
        background=(float(tumor[~looked].sum()), float(rest[~looked].sum())),
        picture=_picture(heatmap, tumor / cells) if with_picture else None,
        lesions=find_lesions(heatmap, truth.tumor) if with_lesions else None,
        notes=truth.notes
        + _outside(truth_path, truth, float(tumor.sum()))
        + _contradictions(row, truth_path, truth, heatmap),
    )


def _outside(path: Path, truth: Truth, inside_px: float) -> tuple[str, ...]:
    """Say how much of the truth lies beyond the slide.

    Raises:
        AnnotationError: All of it does.
    """
    total = truth.tumor.total
    if total > 0 and inside_px <= 0:
        raise AnnotationError(f"{path.name}: all of its tumour lies outside the slide", "see --truth-origin")
    if inside_px < (1 - _OUTSIDE) * total:
        return (f"{path.name}: {1 - inside_px / total:.0%} of its tumour lies outside the slide",)
    return ()


def _contradictions(row: CohortSlide, path: Path, truth: Truth, heatmap: Heatmap) -> tuple[str, ...]:
    """Say where the cohort does not agree with the truth or the heatmap."""
    notes = []
    if row.label == 1 and truth.tumor.total == 0:
        notes.append(f"{path.name}: holds no tumour, but the cohort calls {row.slide} a tumour slide")
    if row.label == 0 and truth.tumor.total > 0:
        notes.append(f"{path.name}: holds tumour, but the cohort calls {row.slide} a normal slide")
    if row.mpp is not None and abs(row.mpp / heatmap.slide.mpp[0] - 1) > _SAME_SIZE:
        notes.append(f"{row.slide}: was mapped at {heatmap.slide.mpp[0]:g} um/px, the cohort says {row.mpp:g} um/px")
    return tuple(notes)


def _picture(heatmap: Heatmap, share: Floats) -> Picture:
    """Average cells until the longer side is small enough."""
    factor = -(-max(share.shape) // _PICTURE_CELLS)
    looked = heatmap.tissue
    count = _sums(looked.astype(np.float64), factor)
    total = _sums(np.nan_to_num(heatmap.probabilities).astype(np.float64), factor)
    values = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return Picture(
        values.astype(np.float32), (_sums(share, factor) / _sums(np.ones_like(share), factor)).astype(np.float32)
    )


def _sums(values: Floats, factor: int) -> Floats:
    """Add up blocks of `factor` x `factor`, the last ones cut."""
    starts = [np.arange(0, size, factor) for size in values.shape]
    total: Floats = np.add.reduceat(np.add.reduceat(values, starts[0], axis=0), starts[1], axis=1)
    return total
