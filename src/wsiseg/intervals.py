"""95 % intervals by drawing whole cases again, never pixels: those of one patient are alike.

Every resample draws as many cases as there are, with replacement. The scores of each case are counted once, on a fixed
scale; a resample only adds up counts. The scale holds all distinct scores where these are few; otherwise it holds some
2,000 of them, so that an interval may be off by a few ten-thousandths. The measures themselves are never rounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.metrics import Curve, Pixels

Floats = NDArray[np.float64]
_MOST_STEPS = 2048
_LEAST_DEFINED = 0.5  # of the resamples, for an interval that means something


@dataclass(frozen=True)
class Resamples:
    """How often every item counts in every resample.

    Attributes:
        weights: float64[resamples, items].
    """

    weights: Floats

    @classmethod
    def of(cls, cases: Sequence[str], count: int, seed: int) -> Self:
        """Draw cases again and again.

        Args:
            cases: The case of every item; items of one case are drawn together. A single case cannot be drawn from:
                then there are no resamples.
            count: The number of resamples.
            seed: Equal seeds and cases give equal resamples.
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
        defined = ~np.isnan(values)
        count = self.weights[:, defined].sum(1)
        total = self.weights[:, defined] @ values[defined]
        return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)

    def curve(self, items: Sequence[Pixels], exact: Sequence[float] = ()) -> Curve:
        """Count hits and false alarms of every resample on a fixed scale of scores.

        Args:
            items: The pixels of every item.
            exact: Thresholds at which the counts are to be exact.
        """
        edges = _scale(items, exact)
        hits, alarms = (
            np.stack([np.bincount(_steps(edges, one.scores), getattr(one, kind), len(edges)) for one in items])
            for kind in ("positive", "negative")
        )
        return Curve(edges[::-1], *(self.total(counts[:, ::-1]).cumsum(1) for counts in (hits, alarms)))


def interval(values: Floats) -> list[float] | None:
    """Give the middle 95 % of resampled values; None where there are too few to say."""
    defined = values[~np.isnan(values)]
    if len(defined) < _LEAST_DEFINED * len(values) or not len(values):
        return None
    low, high = np.quantile(defined, (0.025, 0.975))
    return [float(low), float(high)]


def _scale(items: Sequence[Pixels], exact: Sequence[float]) -> NDArray[np.float32]:
    """Choose ascending scores: all distinct ones, or as many quantiles of them as are kept, and those asked for."""
    distinct = np.unique(np.concatenate([one.scores for one in items]))
    if len(distinct) > _MOST_STEPS:
        distinct = distinct[np.linspace(0, len(distinct) - 1, _MOST_STEPS).astype(int)]
    edges: NDArray[np.float32] = np.unique(np.concatenate([distinct, np.asarray(exact, np.float32)]))
    return edges


def _steps(edges: NDArray[np.float32], scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Give the highest step at or below every score; the lowest also takes what lies beneath it."""
    return np.maximum(np.searchsorted(edges, scores, side="right") - 1, 0)
