"""Training, validation and test sets by case: no patient in two of them, every stratum shared out alike."""

import hashlib
from collections.abc import Mapping, Sequence

SPLITS = ("train", "val", "test")
SHARES = (0.65, 0.15, 0.20)
"""Of train, val and test; those of Lerousseau et al. 2020."""


def by_case(
    cases: Sequence[str], strata: Sequence[str], seed: int = 0, known: Mapping[str, str] | None = None
) -> list[str]:
    """Assign every slide to train, val or test.

    The order of a stratum's cases is drawn from a hash of seed and case, and its first cases are the training set. So
    the order of the slides plays no part, and of a larger cohort all but a few cases at the seams stand where they
    stood; with `known` all of them do.

    Args:
        cases: The case of each slide.
        strata: What is shared out alike, for each slide, as site and label. A case with slides in several strata forms
            a stratum with its like.
        seed: Draws another split.
        known: Splits of cases from an earlier run, which stay.

    Returns:
        `train`, `val` or `test` for each slide.
    """
    of_case: dict[str, set[str]] = {}
    for case, stratum in zip(cases, strata, strict=True):
        of_case.setdefault(case, set()).add(stratum)
    groups: dict[tuple[str, ...], list[str]] = {}
    for case, found in of_case.items():
        groups.setdefault(tuple(sorted(found)), []).append(case)
    assigned = {case: name for case, name in (known or {}).items() if case in of_case}
    due = [0.0, 0.0, 0.0]
    for group in sorted(groups):
        new = sorted((case for case in groups[group] if case not in assigned), key=lambda case: _draw(seed, case))
        old = [assigned[case] for case in groups[group] if case in assigned]
        shares = zip(due, SHARES, SPLITS, strict=True)
        due = [rest + share * len(groups[group]) - old.count(name) for rest, share, name in shares]
        counts = _whole(due, len(new))
        due = [rest - count for rest, count in zip(due, counts, strict=True)]
        names = [name for name, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
        assigned.update(zip(new, names, strict=True))
    return [assigned[case] for case in cases]


def _draw(seed: int, case: str) -> bytes:
    return hashlib.sha256(f"{seed}:{case}".encode()).digest()


def _whole(due: Sequence[float], total: int) -> list[int]:
    """Share out `total` cases in proportion to what is due to each set, in whole numbers by the largest remainders."""
    positive = [max(0.0, value) for value in due]
    exact = [value * (total / (sum(positive) or 1)) for value in positive]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda which: counts[which] - exact[which])
    for which in by_remainder[: total - sum(counts)]:
        counts[which] += 1
    return counts
