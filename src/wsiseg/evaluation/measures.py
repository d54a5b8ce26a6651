"""Measures of groups of slides: values with 95 % intervals, pooled and as means per slide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from wsiseg.evaluation.comparison import Compared
from wsiseg.evaluation.intervals import Resamples, interval
from wsiseg.mathematics import metrics
from wsiseg.mathematics.metrics import Curve, Floats, Pixels

MODES = ("without_background", "with_background")
"""Over the cells that the heatmap calls tissue, and over every pixel of the slide."""


@dataclass(frozen=True)
class Judging:
    """How slides are judged."""

    threshold: float  # from which a score is called tumour
    named: Mapping[str, float]  # further thresholds to report, by where they come from
    resamples: int  # of the cases
    seed: int  # of the resamples

    def draw(self, slides: Sequence[Compared]) -> Resamples:
        """Draw the resamples of the cases of some slides."""
        return Resamples.of([one.row.case for one in slides], self.resamples, self.seed)


@dataclass(frozen=True)
class Estimate:
    """A measure."""

    value: float  # over all; NaN where it is undefined
    resampled: Floats  # float64[resamples]

    def as_json(self) -> dict[str, Any]:
        """Return the value with its interval; None where undefined."""
        return {"value": number(self.value), "ci95": interval(self.resampled)}


def number(value: Any) -> float | None:  # noqa: ANN401  any number of numpy or Python
    """Return a number for JSON, where NaN is null."""
    return None if np.isnan(value) else float(value)


def numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Return numbers by name for JSON."""
    return {name: number(value) for name, value in values.items()}


@dataclass(frozen=True)
class Judged:
    """A slide with its own measures."""

    compared: Compared
    measures: dict[str, dict[str, float]]  # by mode and name; NaN where undefined

    @classmethod
    def of(cls, one: Compared, threshold: float) -> Self:
        """Measure a slide."""
        curves, unknown = pooled_curves([one], [threshold]), np.array(one.unknown)
        found = {
            mode: metrics.measures(counts, threshold) | metrics.unknown_shares(counts, unknown)
            for mode, counts in curves.items()
        }
        return cls(one, {mode: {name: float(value) for name, value in one.items()} for mode, one in found.items()})


def group_measures(slides: Sequence[Judged], judging: Judging, expected: int) -> dict[str, dict[str, Any]]:
    """Measure a group of slides, of which there should be so many, in both modes.

    Returns:
        By mode: every measure with its interval, `mean_per_slide`, the figures `at` other thresholds, and how many
        pixels, slides and cases there are.
    """
    compared = [one.compared for one in slides]
    curves = pooled_curves(compared, [judging.threshold, *judging.named.values()])
    estimates = _estimates(compared, curves, judging)
    return {
        mode: {
            **{name: estimate.as_json() for name, estimate in estimates[mode].items()},
            "mean_per_slide": _mean_per_slide(slides, mode, judging),
            "at": _at_thresholds(curves[mode], judging.named),
            "tumor_px": float(curves[mode].positive),
            "other_px": float(curves[mode].negative),
            "slides": len(slides),
            "expected_slides": expected,
            "cases": len({one.row.case for one in compared}),
        }
        for mode in MODES
    }


def group_differences(
    first: Sequence[Compared], second: Sequence[Compared], judgings: tuple[Judging, Judging]
) -> dict[str, dict[str, Any]]:
    """Subtract the pooled measures of one run from those of another on the same slides, in the same order.

    Both are resampled alike, so the intervals are those of paired differences.
    """
    one, other = (
        _estimates(slides, pooled_curves(slides, [judging.threshold]), judging)
        for slides, judging in zip((first, second), judgings, strict=True)
    )
    return {
        mode: {
            name: Estimate(mine.value - one[mode][name].value, mine.resampled - one[mode][name].resampled).as_json()
            for name, mine in other[mode].items()
        }
        for mode in MODES
    }


def pooled_curves(slides: Sequence[Compared], exact: Sequence[float] = ()) -> dict[str, Curve]:
    """Return the curve over all pixels of a group, by mode; `exact` are thresholds to count at besides."""
    tissue = metrics.curve([one.tissue for one in slides], exact)
    positive, negative = (float(sum(one.background[side] for one in slides)) for side in (0, 1))
    return dict(zip(MODES, (tissue, tissue.with_zeros(positive, negative)), strict=True))


def _estimates(
    slides: Sequence[Compared], curves: Mapping[str, Curve], judging: Judging
) -> dict[str, dict[str, Estimate]]:
    """Estimate the pooled measures of a group, by mode and name."""
    resamples, unknown = judging.draw(slides), np.array([one.unknown for one in slides])
    background, unknown_drawn = resamples.total(np.array([one.background for one in slides])), resamples.total(unknown)
    tissue = resamples.curve([one.tissue for one in slides], [judging.threshold])
    drawn = dict(zip(MODES, (tissue, tissue.with_zeros(background[:, 0], background[:, 1])), strict=True))
    estimates = {}
    for mode in MODES:
        values, again = (
            metrics.measures(counts, judging.threshold) | metrics.unknown_shares(counts, not_judged)
            for counts, not_judged in ((curves[mode], unknown.sum(0)), (drawn[mode], unknown_drawn))
        )
        estimates[mode] = {name: Estimate(float(value), again[name]) for name, value in values.items()}
        estimates[mode]["brier"] = _brier(slides, resamples, mode)
    return estimates


def slide_auc(slides: Sequence[Compared], judging: Judging) -> dict[str, Any]:
    """Tell tumour slides from normal ones by their highest-scoring tenth of tissue.

    The label is the cohort's where it knows one, otherwise whether the truth holds tumour. Slides nothing of which was
    judged have no score and are counted as `unjudged`.
    """
    judged = [one for one in slides if len(one.tissue.scores)]
    labels = [float(one.row.label if one.row.label is not None else one.truth_px > 0) for one in judged]
    items = [
        Pixels(np.array([metrics.slide_score(one.tissue)], np.float32), np.array([label]), np.array([1.0 - label]))
        for one, label in zip(judged, labels, strict=True)
    ]
    value = float(metrics.auc(metrics.curve(items)))
    again = metrics.auc(judging.draw(judged).curve(items)) if items else np.empty(0)
    return {**Estimate(value, again).as_json(), "slides": len(items), "unjudged": len(slides) - len(items)}


def tumor_area(slides: Sequence[Compared], judging: Judging) -> dict[str, Any]:
    """Compare the called with the true tumour area of what was judged of every slide, in mm2, where that is known."""
    known = [one for one in slides if one.mpp is not None]
    mm2 = np.array([one.mpp[0] * one.mpp[1] / 1e6 for one in known if one.mpp is not None])
    truth = np.array([one.truth_px - one.unknown[0] for one in known]) * mm2
    called = np.array([one.called_px(judging.threshold) for one in known]) * mm2
    resamples = judging.draw(known) if known else Resamples(np.empty((0, 0)))
    errors = {"mean_error_mm2": called - truth, "mean_absolute_error_mm2": np.abs(called - truth)}
    return {
        "truth_mm2": float(truth.sum()),
        "called_mm2": float(called.sum()),
        "slides": len(known),
        **{
            name: Estimate(float(error.mean()) if known else np.nan, resamples.mean(error)).as_json()
            for name, error in errors.items()
        },
    }


def reliability_table(slides: Sequence[Pixels]) -> dict[str, list[float | None]]:
    """Compare scores with the share of tumour among their pixels, in ranges of equal width."""
    return {name: [number(value) for value in values] for name, values in vars(metrics.reliability(slides)).items()}


def _mean_per_slide(slides: Sequence[Judged], mode: str, judging: Judging) -> dict[str, Any]:
    """Average the slides' own measures; a slide where one is undefined does not count for it."""
    resamples, means = judging.draw([one.compared for one in slides]), {}
    for name in slides[0].measures[mode]:
        values = np.array([one.measures[mode][name] for one in slides])
        count = int(np.count_nonzero(~np.isnan(values)))
        mean = float(np.nanmean(values)) if count else np.nan
        means[name] = {**Estimate(mean, resamples.mean(values)).as_json(), "slides": count}
    return means


def _brier(slides: Sequence[Compared], resamples: Resamples, mode: str) -> Estimate:
    """Average the squared difference of score and truth; where nobody looked the score is 0."""
    error = np.array([metrics.squared_error(one.tissue) for one in slides])
    pixels = np.array([one.tissue.total for one in slides])
    if mode == "with_background":
        error += [one.background[0] for one in slides]
        pixels += [sum(one.background) for one in slides]
    total, all_pixels = resamples.total(error), resamples.total(pixels)
    value = float(error.sum() / pixels.sum()) if pixels.sum() else np.nan
    return Estimate(value, np.divide(total, all_pixels, out=np.full(len(total), np.nan), where=all_pixels > 0))


def _at_thresholds(counts: Curve, named: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
    best = metrics.best_threshold(counts)
    thresholds = dict(named) | ({} if best is None else {"best": best})
    return {
        source: {"threshold": threshold, **numbers(metrics.measures_at(counts, threshold))}
        for source, threshold in thresholds.items()
    }
