"""Measures of groups of slides: values with 95 % intervals, pooled and as means per slide."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wsiseg.evaluation.comparison import Compared, ComparedRun
from wsiseg.evaluation.intervals import Resamples, interval, single_draws
from wsiseg.evaluation.metrics_file import Threshold
from wsiseg.mathematics import metrics
from wsiseg.mathematics.metrics import Curve, Floats, Pixels

MODES = ("without_background", "with_background")
"""Over the cells that the heatmap calls tissue, and over every pixel of the slide."""
_ALIKE = 1e-6  # points of percent, to the fourth power


@dataclass(frozen=True)
class Judging:
    """How slides are judged."""

    threshold: Threshold  # from which a score is called tumour
    named: Mapping[str, float]  # further thresholds to report, by where they come from
    resamples: int  # of the cases
    seed: int  # of the resamples
    singly: bool = False  # single pixels are drawn, not cases: patches of which nobody knows the slide

    def draw(self, slides: Sequence[Compared]) -> Resamples:
        """Draw the resamples of the cases of some slides."""
        return Resamples.of([one.row.case for one in slides], self.resamples, self.seed)


def stated(value: float, resampled: Floats) -> dict[str, Any]:
    """Return a measure for JSON with its interval, from its value over resamples; None where undefined."""
    return {"value": number(value), "ci95": interval(resampled)}


def number(value: Any) -> float | None:  # noqa: ANN401  any number of numpy or Python
    """Return a number for JSON, where NaN is null."""
    return None if np.isnan(value) else float(value)


def numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Return numbers by name for JSON."""
    return {name: number(value) for name, value in values.items()}


def judged(run: ComparedRun, judging: Judging) -> ComparedRun:
    """Return a run whose slides have their own measures, NaN where undefined."""
    return replace(run, compared=tuple(_judged(one, judging.threshold.value) for one in run.compared))


def _judged(one: Compared, threshold: float) -> Compared:
    found = {
        mode: _measured(curve, np.array(one.unknown), threshold)
        for mode, curve in pooled_curves([one], [threshold]).items()
    }
    own = {mode: {name: float(value) for name, value in values.items()} for mode, values in found.items()}
    return replace(one, own=own)


def _measured(counts: Curve, unknown: Floats, threshold: float) -> dict[str, Floats]:
    return metrics.measures(counts, threshold) | metrics.unknown_shares(counts, unknown)


def group_measures(slides: Sequence[Compared], judging: Judging, expected: int) -> dict[str, dict[str, Any]]:
    """Measure a group of judged slides, of which there should be so many.

    Returns:
        By mode what `pooled_measures` returns, and `mean_per_slide`.
    """
    resamples, pooled = judging.draw(slides), pooled_measures(slides, judging)
    return {
        mode: {
            **block,
            "mean_per_slide": _mean_per_slide([one.own[mode] for one in slides], resamples),
            "expected_slides": expected,
        }
        for mode, block in pooled.items()
    }


def _mean_per_slide(measures: Sequence[Mapping[str, float]], resamples: Resamples) -> dict[str, Any]:
    """Average the slides' own measures; a slide where one is undefined does not count for it."""
    means = {}
    for name in measures[0]:
        values = np.array([one[name] for one in measures])
        count = int(np.count_nonzero(~np.isnan(values)))
        mean = float(np.nanmean(values)) if count else np.nan
        means[name] = {**stated(mean, resamples.mean(values)), "slides": count}
    return means


def pooled_measures(slides: Sequence[Compared], judging: Judging) -> dict[str, dict[str, Any]]:
    """Measure all pixels of a group.

    Returns:
        By mode: every measure with its interval, the figures `at` other thresholds, and how many pixels, slides and
        cases there are.
    """
    curves = pooled_curves(slides, [judging.threshold.value, *judging.named.values()])
    estimates = _estimates(slides, curves, judging)
    return {
        mode: {
            **{name: stated(*estimate) for name, estimate in estimates[mode].items()},
            "at": _at_thresholds(curves[mode], judging.named),
            "tumor_px": float(curves[mode].positive),
            "other_px": float(curves[mode].negative),
            "slides": len(slides),
            "cases": len({one.row.case for one in slides}),
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
        _estimates(slides, pooled_curves(slides, [judging.threshold.value]), judging)
        for slides, judging in zip((first, second), judgings, strict=True)
    )
    return {
        mode: {
            name: stated(value - one[mode][name][0], again - one[mode][name][1])
            for name, (value, again) in other[mode].items()
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
) -> dict[str, dict[str, tuple[float, Floats]]]:
    """Measure a group and its resamples, by mode and name."""
    resamples, exact = judging.draw(slides), [judging.threshold.value]
    unknown = np.array([one.unknown for one in slides])
    if judging.singly:
        tissue, unknown_drawn = single_draws(slides[0].tissue, unknown[0], judging.resamples, judging.seed, exact)
        drawn = (tissue, tissue)
    else:
        tissue, unknown_drawn = resamples.curve([one.tissue for one in slides], exact), resamples.total(unknown)
        background = resamples.total(np.array([one.background for one in slides]))
        drawn = (tissue, tissue.with_zeros(background[:, 0], background[:, 1]))
    estimates = {}
    for mode, counts in zip(MODES, drawn, strict=True):
        values = _measured(curves[mode], unknown.sum(0), judging.threshold.value)
        again = _measured(counts, unknown_drawn, judging.threshold.value)
        estimates[mode] = {name: (float(value), again[name]) for name, value in values.items()}
        estimates[mode]["brier"] = _brier(slides, resamples, mode)
    return estimates


def _brier(slides: Sequence[Compared], resamples: Resamples, mode: str) -> tuple[float, Floats]:
    """Average the squared difference of score and truth; where nobody looked the score is 0."""
    counts_all = mode == MODES[1]
    error = np.array([metrics.squared_error(one.tissue) + counts_all * one.background[0] for one in slides])
    pixels = np.array([one.tissue.total + counts_all * sum(one.background) for one in slides])
    with np.errstate(invalid="ignore"):  # undefined where there are no pixels
        return float(error.sum() / pixels.sum()), resamples.total(error) / resamples.total(pixels)


def _at_thresholds(counts: Curve, named: Mapping[str, float]) -> dict[str, dict[str, float | None]]:
    best = metrics.best_threshold(counts)
    thresholds = dict(named) | ({} if best is None else {"best": best})
    return {
        source: {"threshold": threshold, **numbers(metrics.measures_at(counts, threshold))}
        for source, threshold in thresholds.items()
    }


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
    return {**stated(value, again), "slides": len(items), "unjudged": len(slides) - len(items)}


def tumor_area(slides: Sequence[Compared], judging: Judging) -> dict[str, Any]:
    """Compare the called with the true tumour area of what was judged of every slide, in mm2, where that is known."""
    known = [one for one in slides if one.mpp is not None]
    mm2 = np.array([one.pixel_mm2 or 0.0 for one in known])
    truth = np.array([one.truth_px - one.unknown[0] for one in known]) * mm2
    called = np.array([one.called_px(judging.threshold.value) for one in known]) * mm2
    resamples = judging.draw(known) if known else Resamples(np.empty((0, 0)))
    sums = {"truth_mm2": float(truth.sum()), "called_mm2": float(called.sum()), "slides": len(known)}
    errors = {"mean_error_mm2": called - truth, "mean_absolute_error_mm2": np.abs(called - truth)}
    means = {name: error.mean() if known else np.nan for name, error in errors.items()}
    return sums | {name: stated(float(mean), resamples.mean(errors[name])) for name, mean in means.items()}


def percentages(slides: Sequence[Compared], judging: Judging) -> dict[str, Any] | None:
    """Compare the percentage of tumour that maps call with what the cohort states, over the slides where it does.

    Returns:
        Pearson's `correlation`, `mean_error` and `mean_absolute_error` in points of percent, and the number of
        `slides`; None where there are none.
    """
    known = [one for one in slides if one.row.about is not None and len(one.tissue.scores)]
    if not known:
        return None
    told, found = np.array(stated_and_predicted(known, judging.threshold.value)).T
    mean = judging.draw(known).mean
    correlation = _correlation(lambda values: values.mean(keepdims=True), told, found)
    errors = {"mean_error": found - told, "mean_absolute_error": np.abs(found - told)}
    means = {name: stated(float(error.mean()), mean(error)) for name, error in errors.items()}
    return {
        "correlation": stated(float(correlation[0]), _correlation(mean, told, found)), **means, "slides": len(known),
    }  # fmt: skip


def _correlation(mean: Callable[[Floats], Floats], first: Floats, second: Floats) -> Floats:
    """Compute Pearson's correlation from averages over all items, or over each resample; NaN where all are alike."""
    spread = (mean(first**2) - mean(first) ** 2) * (mean(second**2) - mean(second) ** 2)
    defined = np.where(spread > _ALIKE, spread, np.nan)
    correlation: Floats = (mean(first * second) - mean(first) * mean(second)) / np.sqrt(defined)
    return correlation


def stated_and_predicted(slides: Sequence[Compared], threshold: float) -> list[tuple[float, float]]:
    """Return the stated and the predicted percentage of slides that have both."""
    pairs = [(one.row.about, one.predicted_percent(threshold)) for one in slides]
    return [(stated, predicted) for stated, predicted in pairs if stated is not None and predicted is not None]


def reliability_table(slides: Sequence[Pixels]) -> dict[str, list[float | None]]:
    """Compare scores with the share of tumour among their pixels, in ranges of equal width."""
    return {name: [number(value) for value in values] for name, values in vars(metrics.reliability(slides)).items()}
