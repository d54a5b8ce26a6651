from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wsiseg.mathematics.metrics import auc, curve
from wsiseg.training.scoring import (
    Calibration,
    Scored,
    calibration_error,
    chosen_threshold,
    fitted,
    pixels_of,
    slide_measures,
)
from wsiseg.training.slides import LabelledSlide
from wsiseg.training.truths import TileTruth


def scored(logits: NDArray[np.float32], tumor: NDArray[np.float64]) -> tuple[list[Scored], dict[str, TileTruth]]:
    """A slide whose tiles hold some share of tumour."""
    slide = LabelledSlide("a", 1, "val", "colon", Path("a.zarr"), Path("a.tiff"), len(logits), 64, 0.5, "0")
    truth = TileTruth(100 * tumor, 100 * (1 - tumor), (0.0, 0.0))
    return [Scored(slide, np.arange(len(logits)), logits)], {"a": truth}


def drawn(slope: float, offset: float) -> tuple[list[Scored], dict[str, TileTruth]]:
    """Tiles whose tumour is as likely as the sigmoid of `slope` times their logit plus `offset`."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, 20_000).astype(np.float32)
    return scored(logits, (random.random(20_000) < 1 / (1 + np.exp(-slope * logits - offset))).astype(float))


@pytest.mark.parametrize(("slope", "offset"), [(1, 0), (0.5, 1), (2, -0.7)])
def test_the_calibration_that_tiles_were_drawn_with_is_found(slope: float, offset: float) -> None:
    slides, truths = drawn(slope, offset)
    found = fitted(slides, truths)
    assert 1 / found.temperature == pytest.approx(slope, rel=0.08)
    assert found.offset == pytest.approx(offset, abs=0.08)
    after = found.applied(slides)
    assert (calibration_error(after, truths) or 0) < 0.01
    assert (calibration_error(slides, truths) or 0) >= (calibration_error(after, truths) or 0) - 0.005
    areas = [float(auc(curve(pixels_of(some, truths)))) for some in (slides, after)]
    assert areas[0] == pytest.approx(areas[1], abs=1e-3)


def test_slides_of_which_nobody_knows_whether_they_hold_tumor_have_no_say_in_their_auc() -> None:
    few = [
        (label, scored(np.full((10, 1), logit, np.float32), np.zeros(10))[0][0]) for label, logit in LABELS_AND_LOGITS
    ]
    found = slide_measures([replace(one, slide=replace(one.slide, label=label)) for label, one in few], no_risk, None)
    assert found["slide_auc"] == 0.5


LABELS_AND_LOGITS = [(1, 0.0), (1, 2.0), (0, 1.0), (None, -9.0), (None, 9.0)]


def no_risk(logits: torch.Tensor, _slide: LabelledSlide, _labels: torch.Tensor | None) -> torch.Tensor:
    return logits.sum()


def test_nothing_changes_where_nothing_can_be_learned() -> None:
    logits = np.linspace(-2, 2, 50, dtype=np.float32)
    none_known: tuple[list[Scored], dict[str, TileTruth]] = (scored(logits, np.zeros(50))[0], {})
    one_kind = scored(logits, np.zeros(50))
    wrong_way = scored(logits, (logits < 0).astype(float))
    for slides, truths in (none_known, one_kind, wrong_way):
        assert fitted(slides, truths) == Calibration()
    assert calibration_error(*none_known) is None


def test_truth_that_a_threshold_parts_gives_finite_numbers() -> None:
    logits = np.linspace(-2, 2, 50, dtype=np.float32)
    found = fitted(*scored(logits, (logits > 0).astype(float)))
    assert 0.01 < found.temperature < 1
    assert abs(found.offset) < 10


@pytest.mark.parametrize("logit", [-1.5, 0.0, 1.5])
def test_the_threshold_is_the_least_probability_of_what_is_tumour(logit: float) -> None:
    logits = np.linspace(-2, 2, 41, dtype=np.float32)
    slides, truths = scored(logits, (logits >= logit - 0.01).astype(float))
    assert chosen_threshold(slides, truths) == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-3)


def test_without_tumour_there_is_no_threshold_to_choose() -> None:
    assert chosen_threshold(*scored(np.linspace(-2, 2, 9, dtype=np.float32), np.zeros(9))) is None
