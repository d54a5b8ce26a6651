"""Windows of dense maps cover all that is wanted, with surroundings, and little else."""

from collections.abc import Callable
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiseg.model_file.model_file import BUNDLED, ModelFile, model_path
from wsiseg.model_file.onnx_session import PROVIDERS
from wsiseg.prediction.windows import plan_windows, spans_over
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue import find_tissue

SIDE, OVERLAP, SURROUND = 36, 4, 1


def spans(wanted: list[bool], multiple: int = 1) -> list[tuple[int, int]]:
    return list(spans_over(np.array(wanted, np.bool_), SIDE, OVERLAP, SURROUND, multiple))


RUNS = st.lists(st.tuples(st.booleans(), st.integers(1, 90)), max_size=8)


@given(RUNS, st.sampled_from([1, 2, 4]))
def test_every_wanted_place_is_seen_with_its_surround(runs: list[tuple[bool, int]], multiple: int) -> None:
    wanted = [is_wanted for is_wanted, count in runs for _ in range(count)]
    found = spans(wanted, multiple)
    for place in (place for place, is_wanted in enumerate(wanted) if is_wanted):
        reach = range(max(0, place - SURROUND), place + SURROUND + 1)
        assert any(first <= reach[0] and reach[-1] < first + length for first, length in found)
    assert all(0 < length <= SIDE and length % multiple == 0 for _, length in found)
    assert all(any(wanted[first : first + length]) for first, length in found), "no window is empty"
    assert found == sorted(found)


@given(st.integers(1, 400))
def test_tissue_that_goes_on_is_cut_with_an_overlap(count: int) -> None:
    found = spans([True] * count)
    for (first, length), (following, _) in pairwise(found):
        assert following == first + length - OVERLAP


@pytest.mark.parametrize("gap", [3, 6, 20])
def test_gaps_are_not_computed(gap: int) -> None:
    found = spans(([True] * 20 + [False] * gap) * 4)
    assert [length for _, length in found] == [21, 22, 22, 22]
    assert [first for first, _ in found[1:]] == [k * (20 + gap) - 1 for k in (1, 2, 3)]


def test_accelerators_are_given_the_same_windows_by_size(make_slide: Callable[..., Path]) -> None:
    picture = np.full((1600, 3600, 3), 245, np.uint8)
    for left, top, side in ((50, 100, 1400), (1900, 40, 300), (2600, 200, 900)):
        picture[top : top + side, left : left + side] = (150, 60, 140)
    with ModelFile.open(model_path(BUNDLED)) as model, Slide(make_slide("islands.tiff", picture, mpp=1.0)) as slide:
        tissue = find_tissue(slide)[0]
        here = plan_windows(slide, tissue, model, 0.5)
        model.provider = PROVIDERS["cuda"]
        there = plan_windows(slide, tissue, model, 0.5)
    assert sorted(there.windows) == sorted(here.windows)
    assert there.mark != here.mark, "what is known of half a slide is not gone on with in another order"
    sizes = [there.shape_px(number) for number in range(len(there.windows))]
    changes = len(list(groupby(sizes)))
    assert changes == len(set(sizes)) < len(list(groupby(map(here.shape_px, range(len(here.windows))))))
    assert [height * width for height, width in sizes] == sorted((h * w for h, w in sizes), reverse=True)
