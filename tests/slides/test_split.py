from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from wsiseg.slides.split import SHARES, SPLITS, by_case

Slides = st.lists(st.tuples(st.integers(0, 60), st.sampled_from("abc")), max_size=150)


def columns(slides: list[tuple[int, str]]) -> tuple[list[str], list[str]]:
    return [f"case-{case}" for case, _ in slides], [stratum for _, stratum in slides]


@given(Slides, st.integers(0, 3))
def test_no_case_stands_in_two_splits(slides: list[tuple[int, str]], seed: int) -> None:
    cases, strata = columns(slides)
    splits = by_case(cases, strata, seed)
    assert set(splits) <= set(SPLITS)
    assert len(set(zip(cases, splits, strict=True))) == len(set(cases))


@given(Slides, st.randoms(use_true_random=False))
def test_the_order_of_the_slides_plays_no_part(slides: list[tuple[int, str]], random: object) -> None:
    cases, strata = columns(slides)
    shuffled = list(slides)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
    again = by_case(*columns(shuffled))
    assert dict(zip(columns(shuffled)[0], again, strict=True)) == dict(zip(cases, by_case(cases, strata), strict=True))


@given(st.integers(1, 400), st.integers(0, 3))
def test_the_shares_are_met_to_the_nearest_case(count: int, seed: int) -> None:
    cases = [f"case-{number}" for number in range(count)]
    counts = Counter(by_case(cases, ["all"] * count, seed))
    for name, share in zip(SPLITS, SHARES, strict=True):
        assert abs(counts[name] - share * count) < 1


@given(Slides)
def test_every_stratum_is_shared_out_alike(slides: list[tuple[int, str]]) -> None:
    slides = sorted(dict(slides).items())
    cases, strata = columns(slides)
    counts = Counter(zip(strata, by_case(cases, strata), strict=True))
    for stratum, size in Counter(strata).items():
        for name, share in zip(SPLITS, SHARES, strict=True):
            assert abs(counts[stratum, name] - share * size) <= 2


@given(Slides, Slides)
def test_known_cases_stay_and_new_ones_fill_up(old: list[tuple[int, str]], new: list[tuple[int, str]]) -> None:
    before = dict(zip(columns(old)[0], by_case(*columns(old)), strict=True))
    cases, strata = columns(old + new)
    after = dict(zip(cases, by_case(cases, strata, known=before), strict=True))
    assert before.items() <= after.items()


def test_without_the_known_splits_few_cases_move() -> None:
    cases = [f"case-{number}" for number in range(1000)]
    before, after = by_case(cases[:900], ["all"] * 900), by_case(cases, ["all"] * 1000)
    assert sum(a != b for a, b in zip(before, after, strict=False)) < 45


def test_another_seed_gives_another_split() -> None:
    cases = [f"case-{number}" for number in range(100)]
    assert by_case(cases, ["all"] * 100, 0) != by_case(cases, ["all"] * 100, 1)
