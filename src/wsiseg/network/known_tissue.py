"""The tissue that a network was trained on, and how far other tiles lie from it; what is too far is unknown."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]

_MOST_AXES = 64
_FEWEST_TILES = 64
_TILES_PER_AXIS = 4
_SMALLEST_SHARE, _SMALLEST_REST = 0.01, 1e-6
_WITHIN = 98  # percent of known tissue is within the limit


@dataclass(frozen=True)
class KnownTissue:
    """The distribution of features over training tiles: a Gaussian whose covariance is shrunk.

    Features are standardised. Along the axes of largest variance the covariance is as measured, along all others it
    is their mean variance, so that it can be inverted however few the tiles are (Tipping and Bishop, Probabilistic
    principal component analysis, J. R. Statist. Soc. B 61, 1999).

    Attributes:
        mean: float32[channels].
        scale: float32[channels]; centred features times this are standardised, and divided by the root of their count.
        axes: float32[axes, channels], of unit length, at right angles.
        variances: float32[axes], along the axes.
        rest: Variance along every other axis.
        limit: Tissue that is farther than this is unknown.
        tiles: How many tiles it was measured on.
        slides: How many slides these came from.
    """

    mean: Features
    scale: Features
    axes: Features
    variances: Features
    rest: float
    limit: float
    tiles: int
    slides: int

    @classmethod
    def of(cls, training: Sequence[Features], others: Sequence[Features] = ()) -> Self | None:
        """Measure the features of tiles.

        Args:
            training: float32[tiles, channels] of each training slide.
            others: Of further slides of the same kind, as those for validation. 98 % of their tiles are within the
                limit; of the training tiles where there are no others, which lie nearer than new tissue would.

        Returns:
            What is known, or None where there are too few tiles to tell.
        """
        tiles = np.concatenate(training).astype(np.float64) if training else np.zeros((0, 1))
        count, channels = tiles.shape
        if count < _FEWEST_TILES:
            return None
        mean, std = tiles.mean(0), tiles.std(0)
        if not std.any():
            return None
        # A channel that hardly varies must not count for more than others by being divided by nearly nothing.
        scale = 1 / (np.maximum(std, _SMALLEST_SHARE * float(std.mean())) * np.sqrt(channels))
        inside = (tiles - mean) * scale
        variances, axes = np.linalg.eigh(inside.T @ inside / count)
        most = max(1, min(_MOST_AXES, count // _TILES_PER_AXIS, channels - 1))
        rest = max(float(variances[: max(1, channels - most)].mean()), _SMALLEST_REST * float(variances[-1]))
        found = cls(
            mean=mean.astype(np.float32),
            scale=scale.astype(np.float32),
            axes=np.ascontiguousarray(axes[:, : -most - 1 : -1].T, np.float32),
            variances=np.maximum(variances[: -most - 1 : -1], rest).astype(np.float32),
            rest=rest,
            limit=0.0,
            tiles=count,
            slides=len(training),
        )
        return replace(found, limit=limit_of(found.distances(np.concatenate(others or training))))

    def distances(self, features: Features) -> Features:
        """Return the squared Mahalanobis distance per channel, float32[n], of features [n, channels]."""
        inside = (features - self.mean) * self.scale
        along = inside @ self.axes.T
        found: Features = (along**2) @ self.gains + (inside**2).sum(1) * np.float32(self.gain_of_rest)
        return found

    @property
    def gain_of_rest(self) -> float:
        """What the square along any axis counts for."""
        return 1 / (self.rest * len(self.mean))

    @property
    def gains(self) -> Features:
        """What the square along an axis of large variance counts for beyond that, float32[axes]; below 0."""
        return (1 / (self.variances * len(self.mean)) - self.gain_of_rest).astype(np.float32)


def limit_of(distances: Features) -> float:
    """Return the distance within which 98 % of known tissue lies, from distances [n] of some of it."""
    return float(np.percentile(distances, _WITHIN))
