"""Measures of a segmentation, from weighted scores to numbers: no files, no slides.

All measures count pixels, yet none is looked at: a cell of a heatmap has one score, and the areas of truth inside and
outside it are its weights. Ties and weights count as in scikit-learn's `roc_auc_score`, `average_precision_score` and
`f1_score` with `sample_weight`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pixels:
    """Pixels that share a score, by how many are tumour in truth and how many are not.

    Attributes:
        scores: float32[n] in 0..1.
        positive: float64[n], the number (or area) of tumour pixels with that score.
        negative: float64[n], the number (or area) of the others.
    """

    scores: NDArray[np.float32]
    positive: Floats
    negative: Floats

    @classmethod
    def pooled(cls, parts: Sequence[Self]) -> Self:
        """Put the pixels of several slides together."""
        if not parts:
            return cls(np.empty(0, np.float32), np.empty(0), np.empty(0))
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class Curve:
    """What is called tumour at every threshold, from the strictest down.

    Attributes:
        thresholds: float32[n], the distinct scores, descending.
        hits: float64[n], the tumour pixels at or above each.
        false_alarms: float64[n], the other pixels at or above each.
    """

    thresholds: NDArray[np.float32]
    hits: Floats
    false_alarms: Floats


def curve(pixels: Pixels) -> Curve:
    """Count hits and false alarms at every distinct score."""
    order = np.argsort(pixels.scores)[::-1]
    scores = pixels.scores[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else np.empty(0, np.intp)
    return Curve(scores[last], pixels.positive[order].cumsum()[last], pixels.negative[order].cumsum()[last])


def auc(counts: Curve) -> float | None:
    """Give the area under the ROC curve, ties by the trapezoid; None where a class is missing."""
    if not len(counts.hits) or counts.hits[-1] <= 0 or counts.false_alarms[-1] <= 0:
        return None
    recall, fall_out = (np.append(0.0, n / n[-1]) for n in (counts.hits, counts.false_alarms))
    return float(np.trapezoid(recall, fall_out))


def average_precision(counts: Curve) -> float | None:
    """Give the mean precision over recall, as steps; None where there is no tumour."""
    if not len(counts.hits) or counts.hits[-1] <= 0:
        return None
    called = counts.hits + counts.false_alarms
    precision = np.divide(counts.hits, called, out=np.ones_like(called), where=called > 0)
    return float(np.sum(np.diff(counts.hits, prepend=0.0) * precision) / counts.hits[-1])


@dataclass(frozen=True)
class Confusion:
    """Areas of agreement and error at one threshold, in pixels.

    Attributes:
        hit: Tumour called tumour.
        false_alarm: Other tissue called tumour.
        miss: Tumour not called.
        correct_rejection: Other tissue not called.
    """

    hit: float
    false_alarm: float
    miss: float
    correct_rejection: float

    @property
    def precision(self) -> float | None:
        """Share of what is called that is tumour; None where nothing is called."""
        return _share(self.hit, self.hit + self.false_alarm)

    @property
    def recall(self) -> float | None:
        """Share of the tumour that is called; None where there is none."""
        return _share(self.hit, self.hit + self.miss)

    @property
    def specificity(self) -> float | None:
        """Share of the rest that is not called; None where there is no rest."""
        return _share(self.correct_rejection, self.correct_rejection + self.false_alarm)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, the same as Dice; None where nothing is tumour or called."""
        return _share(2 * self.hit, 2 * self.hit + self.false_alarm + self.miss)

    @property
    def iou(self) -> float | None:
        """Intersection of truth and call over their union; None where both are empty."""
        return _share(self.hit, self.hit + self.false_alarm + self.miss)


def confusion(pixels: Pixels, threshold: float) -> Confusion:
    """Count agreement and error when every score at or above `threshold` is called tumour."""
    called = pixels.scores >= np.float32(threshold)
    hit, false_alarm = float(pixels.positive[called].sum()), float(pixels.negative[called].sum())
    miss, rest = float(pixels.positive[~called].sum()), float(pixels.negative[~called].sum())
    return Confusion(hit, false_alarm, miss, rest)


def best_threshold(counts: Curve) -> float | None:
    """Give the score that maximises F1, the highest of several; None where there is no tumour."""
    if not len(counts.hits) or counts.hits[-1] <= 0:
        return None
    f1 = 2 * counts.hits / (counts.hits + counts.false_alarms + counts.hits[-1])
    return float(counts.thresholds[int(np.argmax(f1))])


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
