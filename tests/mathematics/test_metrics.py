import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from wsiseg.evaluation.intervals import Resamples, interval, single_draws
from wsiseg.mathematics.metrics import (
    Pixels,
    auc,
    average_precision,
    best_threshold,
    curve,
    measures,
    measures_at,
    reliability,
    slide_score,
    squared_error,
)

Case = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]


@st.composite
def cases(draw: st.DrawFn, levels: int = 6) -> Case:
    """Scores with many ties, weights of both kinds, some of them zero; both classes occur."""
    size = draw(st.integers(2, 40))
    whole = st.integers(0, levels)
    scores = (np.array(draw(st.lists(whole, min_size=size, max_size=size))) / levels).astype(np.float32)
    weights = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 1e6)), min_size=size, max_size=size)
    positive, negative = np.array(draw(weights)), np.array(draw(weights))
    positive[0], negative[-1] = 1.0, 2.0
    return scores, positive, negative


def for_sklearn(case: Case) -> dict[str, NDArray[np.float64]]:
    """Every score twice: once as tumour and once as not."""
    scores, positive, negative = case
    truth = np.r_[np.ones(len(scores)), np.zeros(len(scores))]
    return {"y_true": truth, "score": np.r_[scores, scores], "sample_weight": np.r_[positive, negative]}


@given(cases())
def test_auc_and_average_precision_equal_those_of_scikit_learn(case: Case) -> None:
    counts, other = curve([Pixels.of(*case)]), for_sklearn(case)
    truth, scores, weights = other["y_true"], other["score"], other["sample_weight"]
    expected = sklearn_metrics.roc_auc_score(truth, scores, sample_weight=weights)
    assert float(auc(counts)) == pytest.approx(expected, abs=1e-12)
    expected = sklearn_metrics.average_precision_score(truth, scores, sample_weight=weights)
    assert float(average_precision(counts)) == pytest.approx(expected, abs=1e-12)


@given(cases(), st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]))
def test_measures_at_a_threshold_equal_those_of_scikit_learn(case: Case, threshold: float) -> None:
    other = for_sklearn(case)
    called = other["score"] >= np.float32(threshold)
    arguments = {"y_true": other["y_true"], "y_pred": called, "sample_weight": other["sample_weight"]}
    found = measures_at(curve([Pixels.of(*case)], [threshold]), threshold)
    expected = {
        "precision": sklearn_metrics.precision_score(**arguments, zero_division=np.nan),
        "recall": sklearn_metrics.recall_score(**arguments),
        "specificity": sklearn_metrics.recall_score(**arguments, pos_label=0),
        "f1": sklearn_metrics.f1_score(**arguments),
        "dice": sklearn_metrics.f1_score(**arguments),
        "iou": sklearn_metrics.jaccard_score(**arguments),
        "wrong_share": 1 - sklearn_metrics.accuracy_score(**arguments),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-12, nan_ok=True)


@given(cases())
def test_brier_score_equals_that_of_scikit_learn(case: Case) -> None:
    other = for_sklearn(case)
    expected = sklearn_metrics.brier_score_loss(
        other["y_true"], other["score"].astype(float), sample_weight=other["sample_weight"]
    )
    pixels = Pixels.of(*case)
    assert squared_error(pixels) / pixels.total == pytest.approx(expected, abs=1e-12)


@given(st.lists(cases(), min_size=1, max_size=5), st.integers(0, 1000), st.integers(0, 1000))
def test_a_pooled_curve_equals_the_curve_of_all_pixels_at_once(parts: list[Case], positive: int, negative: int) -> None:
    slides = [Pixels.of(*part) for part in parts]
    together = tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
    zeros = (np.r_[together[0], np.float32(0)], np.r_[together[1], positive], np.r_[together[2], negative])
    found = measures(curve(slides, [0.5]).with_zeros(positive, negative), 0.5)
    expected = measures(curve([Pixels.of(*zeros)], [0.5]), 0.5)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-12)


@given(cases(levels=30))
def test_no_threshold_gives_a_better_f1_than_the_best(case: Case) -> None:
    counts = curve([Pixels.of(*case)], list(case[0]))
    best = best_threshold(counts)
    assert best is not None
    scores = [float(measures_at(counts, float(score))["f1"]) for score in case[0]]
    assert float(measures_at(counts, best)["f1"]) >= max(scores) - 1e-12


Counts = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)


@given(Counts)
def test_of_several_best_thresholds_the_highest_is_taken(rows: list[tuple[int, int, int]]) -> None:
    scores, positive, negative = (np.array(column, float) for column in zip(*rows, strict=True))
    found = best_threshold(curve([Pixels.of((scores / 5).astype(np.float32), positive, negative)]))
    if not positive.sum():
        assert found is None
        return
    by_score = {}
    for score in set(scores):
        called = scores >= score
        by_score[score] = 2 * positive[called].sum() / (positive.sum() + (positive + negative)[called].sum())
    highest = max(score for score, f1 in by_score.items() if f1 == max(by_score.values()))
    assert found == np.float32(highest / 5)


@given(Counts)
def test_a_score_at_the_threshold_is_called(rows: list[tuple[int, int, int]]) -> None:
    scores, positive, negative = (np.array(column, float) for column in zip(*rows, strict=True))
    pixels = Pixels.of((scores / 5).astype(np.float32), positive, negative)
    for score in range(6):
        found = pixels.at_or_above(np.array([score / 5], np.float32))
        called = scores >= score
        assert [float(count[0]) for count in found] == [positive[called].sum(), negative[called].sum()]


@given(Counts, st.integers(1, 4))
def test_reliability_equals_that_of_every_pixel_one_by_one(rows: list[tuple[int, int, int]], bins: int) -> None:
    pixels = [(score / 5, label) for score, *counts in rows for label, count in zip((1, 0), counts, strict=True)
              for _ in range(count)]  # fmt: skip
    half = len(rows) // 2
    slides = [Pixels.of(np.array([score / 5 for score, *_ in part], np.float32),
                        *(np.array([one[side] for one in part], float) for side in (1, 2)))
              for part in (rows[:half], rows[half:])]  # fmt: skip
    found = reliability(slides, bins)
    for number in range(bins):
        inside = [one for one in pixels if min(int(np.float32(one[0]) * np.float32(bins)), bins - 1) == number]
        assert found.pixels[number] == len(inside)
        expected = np.mean(inside, axis=0) if inside else (np.nan, np.nan)
        np.testing.assert_allclose((found.mean_score[number], found.tumor_share[number]), expected, rtol=1e-6)


@given(Counts, st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_the_score_of_a_slide_equals_that_of_every_pixel_one_by_one(
    rows: list[tuple[int, int, int]], share: float
) -> None:
    scores, positive, negative = (np.array(column, float) for column in zip(*rows, strict=True))
    each = np.sort(np.repeat(scores / 5, ((positive + negative) * 20).astype(int)))[::-1]  # twentieths: whole shares
    found = slide_score(Pixels.of((scores / 5).astype(np.float32), positive, negative), share)
    if len(each):
        assert found == pytest.approx(each[: round(share * len(each))].mean(), rel=1e-6)
    else:
        assert math.isnan(found)


def test_measures_without_tumour_or_without_anything_are_undefined() -> None:
    normal = curve([Pixels.of(np.array([0.2, 0.7], np.float32), np.zeros(2), np.ones(2))], [0.5])
    found = measures(normal, 0.5)
    assert [name for name, value in found.items() if math.isnan(value)] == ["auc", "average_precision", "recall"]
    assert (float(found["specificity"]), float(found["f1"])) == (0.5, 0.0)
    nothing = curve([Pixels.of(np.empty(0, np.float32), np.empty(0), np.empty(0))])
    assert all(math.isnan(value) for value in measures(nothing, 0.5).values())
    assert best_threshold(normal) is None
    assert best_threshold(nothing) is None
    only_background = measures(nothing.with_zeros(3.0, 5.0), 0.5)
    assert (float(only_background["auc"]), float(only_background["recall"])) == (0.5, 0.0)


def test_reliability_of_scores_that_are_true_lies_on_the_diagonal() -> None:
    scores = ((np.arange(1000) + 0.5) / 1000).astype(np.float32)
    found = reliability([Pixels.of(scores, scores.astype(np.float64), 1 - scores.astype(np.float64))])
    np.testing.assert_allclose(found.mean_score, found.tumor_share, atol=1e-6)
    np.testing.assert_allclose(found.pixels, 100)


def test_the_score_of_a_slide_is_the_mean_of_its_highest_tenth_by_area() -> None:
    scores, area = np.array([0.9, 0.5, 0.1], np.float32), np.array([5.0, 10.0, 85.0])
    assert slide_score(Pixels.of(scores, area * 0, area)) == pytest.approx((5 * 0.9 + 5 * 0.5) / 10)
    assert math.isnan(slide_score(Pixels.of(scores[:0], area[:0], area[:0])))


def test_resampled_measures_equal_those_of_the_drawn_slides_measured_anew() -> None:
    rng = np.random.default_rng(3)
    slides = [Pixels.of(rng.random(30).astype(np.float32), rng.random(30), rng.random(30)) for _ in range(5)]
    drawn = Resamples.of(["a", "a", "b", "c", "d"], count=20, seed=1)
    assert (drawn.weights[:, 0] == drawn.weights[:, 1]).all()
    found = measures(drawn.curve(slides, [0.4]), 0.4)
    for number, weights in enumerate(drawn.weights):
        again = [slide for slide, times in zip(slides, weights, strict=True) for _ in range(int(times))]
        for name, value in measures(curve(again, [0.4]), 0.4).items():
            np.testing.assert_allclose(found[name][number], value, atol=1e-12)


def test_thinned_resamples_miss_an_auc_by_less_than_a_thousandth() -> None:
    rng = np.random.default_rng(3)
    slides = [
        Pixels.of(rng.random(20_000).astype(np.float32), rng.random(20_000), rng.random(20_000)) for _ in range(3)
    ]
    weights = np.ones((1, 3))
    assert float(auc(Resamples(weights).curve(slides))[0]) == pytest.approx(float(auc(curve(slides))), abs=1e-3)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for seed in range(200):
        values = rng.normal(size=40)
        found = interval(Resamples.of([str(k) for k in range(40)], 400, seed).mean(values))
        assert found is not None
        covered += found[0] <= 0 <= found[1]
    assert 0.88 <= covered / 200 <= 0.99


def test_one_case_has_no_interval_and_equal_seeds_give_equal_ones() -> None:
    assert interval(Resamples.of(["a", "a"], 100, 0).mean(np.array([1.0, 2.0]))) is None
    one, two, other = (Resamples.of(list("abcdef"), 50, seed).weights for seed in (7, 7, 8))
    assert (one == two).all()
    assert (one != other).any()


def test_single_patches_are_drawn_as_by_the_usual_bootstrap() -> None:
    rng = np.random.default_rng(5)
    labels = rng.random(400) < 0.4
    scores = (rng.random(400) * 0.6 + labels * 0.4).astype(np.float32)
    found = auc(single_draws(Pixels.of(scores, labels * 1.0, ~labels * 1.0), np.zeros(2), 500, 0)[0])
    usual = []
    for _ in range(500):
        drawn = rng.integers(0, 400, 400)
        usual.append(sklearn_metrics.roc_auc_score(labels[drawn], scores[drawn]))
    assert found.mean() == pytest.approx(np.mean(usual), abs=0.005)
    assert found.std() == pytest.approx(np.std(usual), rel=0.2)


def test_no_warning_escapes_from_empty_groups() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(float(auc(curve([]))))
