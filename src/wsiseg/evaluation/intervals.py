"""95 % intervals by drawing whole cases again, never pixels: those of one patient are alike.

Every resample draws as many cases as there are, with replacement. The pixels of each slide are counted once, at fixed
thresholds; a resample only adds up counts. The thresholds are all that matter where these are few; otherwise they are
some 2,000 of them, so that an interval may be off by a few ten-thousandths. The measures themselves are never rounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.mathematics.metrics import ABOVE_ZERO, Curve, Pixels, bends

Floats = NDArray[np.float64]
_MOST_STEPS = 2048
_LEAST_DEFINED = 0.5  # of the resamples, for an interval that means something


@dataclass(frozen=True)
class Resamples:
    """How often every item counts in every resample."""

    weights: Floats  # float64[resamples, items]

    @classmethod
    def of(cls, cases: Sequence[str], count: int, seed: int) -> Self:
        """Draw cases so many times; equal seeds and cases give equal resamples.

        Items of one case are drawn together. A single case cannot be drawn from: then there are no resamples.
        """
        names, case = np.unique(np.asarray(cases, dtype=np.str_), return_inverse=True)
        if len(names) < 2:  # noqa: PLR2004  one case
            return cls(np.empty((0, len(case))))
        drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), count)
        return cls(drawn[:, case].astype(np.float64))

    def total(self, values: Floats) -> Floats:
        """Add up a value of every item: float64[items, ...] -> float64[resamples, ...]."""
        total: Floats = np.tensordot(self.weights, values, axes=1)
        return total

    def mean(self, values: Floats) -> Floats:
        """Average a value of every item where it is defined: float64[items] -> float64[resamples]."""
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):  # undefined where none of the items is
            mean: Floats = self.weights[:, known] @ values[known] / self.weights[:, known].sum(1)
        return mean

    def curve(self, items: Sequence[Pixels], exact: Sequence[float] = ()) -> Curve:
        """Count hits and false alarms of every resample on a fixed scale of scores, exactly at some thresholds."""
        scale = _scale(items, exact)
        hits, alarms = (np.stack(counts) for counts in zip(*(one.at_or_above(scale) for one in items), strict=True))
        return Curve(scale, self.total(hits), self.total(alarms))


def single_draws(
    pixels: Pixels, unknown: Floats, count: int, seed: int, exact: Sequence[float] = ()
) -> tuple[Curve, Floats]:
    """Resample single items rather than cases: for patches of which nobody knows the slide.

    Drawing n of n items (`pixels` of weight 1, and the tumour and other `unknown` ones, float64[2]) with replacement is
    drawing how many fall on each step of the pooled curve. Equal seeds give equal resamples.

    Returns:
        The curve, and how many unknown items were drawn: float64[resamples, 2].
    """
    scale = _scale([pixels], exact)
    steps = np.concatenate([*(np.diff(counts, prepend=0.0) for counts in pixels.at_or_above(scale)), unknown])
    drawn = np.random.default_rng(seed).multinomial(round(steps.sum()), steps / steps.sum(), count).astype(np.float64)
    hits, alarms = np.split(drawn[:, :-2], 2, axis=1)
    return Curve(scale, hits.cumsum(1), alarms.cumsum(1)), drawn[:, -2:]


def interval(values: Floats) -> list[float] | None:
    """Return the middle 95 % of resampled values; None where there are too few to say."""
    defined = values[~np.isnan(values)]
    if len(defined) < _LEAST_DEFINED * len(values) or not len(values):
        return None
    low, high = np.quantile(defined, (0.025, 0.975))
    return [float(low), float(high)]


def _scale(items: Sequence[Pixels], exact: Sequence[float]) -> NDArray[np.float32]:
    """Choose thresholds, descending: all that matter or as many of them as are kept, and those asked for."""
    found = bends(items)
    if len(found) > _MOST_STEPS:
        found = found[np.linspace(0, len(found) - 1, _MOST_STEPS).astype(int)]
    return np.unique(np.concatenate([found, ABOVE_ZERO, np.asarray(exact, np.float32)]))[::-1]
