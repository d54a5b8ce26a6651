"""Measures of a segmentation, from weighted scores to numbers: no files, no slides.

All measures count pixels, yet none is looked at: a cell of a heatmap has one score, and the areas of truth inside and
outside it are its weights. Ties and weights count as in scikit-learn's `roc_auc_score`, `average_precision_score` and
`f1_score` with `sample_weight`. What is undefined (an AUC without tumour, a precision where nothing is called) is NaN.

Arrays of counts may have leading axes, one item a resample; the measures then have them too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weights = NDArray[np.float64] | NDArray[np.float32]
ABOVE_ZERO = np.nextafter(np.zeros(1, np.float32), np.float32(1))
"""float32[1], the least score above 0."""


@dataclass(frozen=True)
class Pixels:
    """The pixels of one slide by their score. Made by `of`."""

    scores: NDArray[np.float32]  # float32[n] in 0..1, descending
    positive: Weights  # float[n], the number (or area) of tumour pixels with that score
    negative: Weights  # float[n], the number (or area) of the others

    @classmethod
    def of(cls, scores: NDArray[np.float32], positive: Weights, negative: Weights) -> Self:
        """Sort pixels by their score."""
        order = np.argsort(-scores)
        return cls(scores[order], positive[order], negative[order])

    @property
    def total(self) -> float:
        """All pixels, tumour or not."""
        return float(self.positive.sum(dtype=np.float64) + self.negative.sum(dtype=np.float64))

    def at_or_above(self, thresholds: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """Count the tumour and the other pixels from each of some thresholds up: float64[thresholds] each."""
        called = len(self.scores) - np.searchsorted(self.scores[::-1], thresholds, side="left")
        counts = (_from_zero(weights.cumsum(dtype=np.float64)) for weights in (self.positive, self.negative))
        hits, alarms = (count[called] for count in counts)
        return hits, alarms


@dataclass(frozen=True)
class Curve:
    """What is called tumour at every threshold, from the strictest down."""

    thresholds: NDArray[np.float32]  # float32[n], distinct, descending; the last calls everything
    hits: Floats  # float64[..., n], the tumour pixels at or above each
    false_alarms: Floats  # float64[..., n], the other pixels at or above each

    @property
    def positive(self) -> Floats:
        """All tumour pixels: float64[...]."""
        return self._last(self.hits)

    @property
    def negative(self) -> Floats:
        """All other pixels: float64[...]."""
        return self._last(self.false_alarms)

    def _last(self, counts: Floats) -> Floats:
        return counts[..., -1] if len(self.thresholds) else np.zeros(counts.shape[:-1])

    def with_zeros(self, positive: Floats | float, negative: Floats | float) -> Self:
        """Add pixels with the score 0, such as those that nobody looked at."""
        begins_above = not len(self.thresholds) or self.thresholds[-1] > 0
        kept = slice(None) if begins_above else slice(-1)
        hits, alarms = (
            np.concatenate([counts[..., kept], np.asarray(last + more)[..., None]], axis=-1)
            for counts, last, more in (
                (self.hits, self.positive, positive),
                (self.false_alarms, self.negative, negative),
            )
        )
        return type(self)(np.append(self.thresholds[kept], np.float32(0)), hits, alarms)


def curve(slides: Sequence[Pixels], exact: Sequence[float] = ()) -> Curve:
    """Count hits and false alarms over all pixels of some slides, wherever the curve bends.

    It bends where tumour is gained: at the scores that tumour pixels have, and just above them. Between these only
    false alarms are gained, which adds nothing to any measure; so the scores of other pixels are never sorted together.

    `exact` are further thresholds to count at.
    """
    thresholds = bends(slides, exact)
    hits, alarms = np.zeros((2, len(thresholds)))
    for pixels in slides:
        more_hits, more_alarms = pixels.at_or_above(thresholds)
        hits += more_hits
        alarms += more_alarms
    return Curve(thresholds, hits, alarms)


def bends(slides: Sequence[Pixels], exact: Sequence[float] = ()) -> NDArray[np.float32]:
    """Return the thresholds, descending, that tell all of the pooled curve: float32[n]; the last calls everything.

    One lies just above 0, so that pixels with the score 0 can be added later.
    """
    tumor = [pixels.scores[pixels.positive > 0] for pixels in slides]
    lowest = [pixels.scores[-1:] for pixels in slides]
    gained = np.unique(np.concatenate([*tumor, np.empty(0, np.float32)]))
    above = np.nextafter(gained, np.float32(np.inf))
    return np.unique(np.concatenate([gained, above, *lowest, ABOVE_ZERO, np.asarray(exact, np.float32)]))[::-1]


def auc(counts: Curve) -> Floats:
    """Return the area under the ROC curve, ties by the trapezoid; NaN where a class is missing."""
    area: Floats = np.asarray(np.trapezoid(_from_zero(counts.hits), _from_zero(counts.false_alarms), axis=-1))
    return _share(area, counts.positive * counts.negative)


def average_precision(counts: Curve) -> Floats:
    """Return the mean precision over recall, as steps; NaN where there is no tumour."""
    precision = np.nan_to_num(_share(counts.hits, counts.hits + counts.false_alarms))
    precision *= np.diff(counts.hits, axis=-1, prepend=0.0)
    return _share(precision.sum(-1), counts.positive)


def measures_at(counts: Curve, threshold: float) -> dict[str, Floats]:
    """Measure agreement when every score at or above `threshold`, one of the curve's, is called tumour.

    Returns:
        Precision, recall, specificity, F1, Dice (which is F1), intersection over union, and the share of all pixels
        that are called wrongly: float64[...] each.
    """
    called = int(np.count_nonzero(counts.thresholds >= np.float32(threshold)))
    none = np.zeros(counts.hits.shape[:-1])
    hit, false_alarm = (one[..., called - 1] if called else none for one in (counts.hits, counts.false_alarms))
    wrong = false_alarm + counts.positive - hit
    f1 = _share(2 * hit, 2 * hit + wrong)
    return {
        "precision": _share(hit, hit + false_alarm),
        "recall": _share(hit, counts.positive),
        "specificity": _share(counts.negative - false_alarm, counts.negative),
        "f1": f1,
        "dice": f1,
        "iou": _share(hit, hit + wrong),
        "wrong_share": _share(wrong, counts.positive + counts.negative),
    }


def unknown_shares(counts: Curve, unknown: Floats) -> dict[str, Floats]:
    """Return what share of all pixels was not judged, and of the tumour and of the other pixels by themselves.

    To leave tumour unjudged flatters the recall, and to leave other pixels unjudged the precision. `unknown` is
    float64[..., 2], the tumour and the other pixels that were not judged.
    """
    tumor, other = unknown[..., 0], unknown[..., 1]
    return {
        "unknown_share": _share(tumor + other, tumor + other + counts.positive + counts.negative),
        "unknown_tumor_share": _share(tumor, tumor + counts.positive),
        "unknown_other_share": _share(other, other + counts.negative),
    }


def measures(counts: Curve, threshold: float) -> dict[str, Floats]:
    """Return all measures that a curve tells: those over all thresholds, and those at one."""
    over_all = {"auc": auc(counts), "average_precision": average_precision(counts)}
    return over_all | measures_at(counts, threshold)


def best_threshold(counts: Curve) -> float | None:
    """Return the score that maximises F1, the highest of several; None where there is no tumour."""
    if not counts.positive > 0:
        return None
    f1 = 2 * counts.hits / (counts.hits + counts.false_alarms + counts.positive)
    return float(counts.thresholds[int(np.argmax(f1))])


def squared_error(pixels: Pixels) -> float:
    """Return the sum over all pixels of the squared difference of score and truth; its mean is the Brier score."""
    scores = pixels.scores.astype(np.float64)
    return float(pixels.positive @ (1 - scores) ** 2 + pixels.negative @ scores**2)


@dataclass(frozen=True)
class Reliability:
    """How often pixels of a range of scores are tumour."""

    mean_score: Floats  # float64[bins], NaN where a range is empty
    tumor_share: Floats  # float64[bins], NaN where a range is empty
    pixels: Floats  # float64[bins]


def reliability(slides: Sequence[Pixels], bins: int = 10) -> Reliability:
    """Compare scores with the share of tumour among their pixels, in ranges of equal width."""
    total, positive, score = np.zeros((3, bins))
    for pixels in slides:
        which = np.minimum((pixels.scores * bins).astype(int), bins - 1)
        count = pixels.positive + pixels.negative
        total += np.bincount(which, count, bins)
        positive += np.bincount(which, pixels.positive, bins)
        score += np.bincount(which, count * pixels.scores, bins)
    return Reliability(_share(score, total), _share(positive, total), total)


def slide_score(pixels: Pixels, share: float = 0.1) -> float:
    """Score a slide by the mean over the highest-scoring share of its tissue's area; NaN where there is no area."""
    area = (pixels.positive + pixels.negative).cumsum(dtype=np.float64)
    if not len(area) or not area[-1]:
        return float("nan")
    taken = np.diff(np.minimum(area, share * area[-1]), prepend=0.0)
    return float(taken @ pixels.scores / taken.sum())


def _share(part: Floats, whole: Floats) -> Floats:
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    share: Floats = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return share


def _from_zero(counts: Floats) -> Floats:
    return np.concatenate([np.zeros((*counts.shape[:-1], 1)), counts], axis=-1)
