"""Windows of dense maps cover all that is wanted, with surroundings, and little else."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiseg.prediction.windows import spans_over

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
