"""The tissue that a network was trained on, and how far other tissue lies from it; what is too far is unknown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]
Floats = NDArray[np.floating]
OfSlide = tuple[str, Features]
"""The site of a slide, and float32[tiles, channels]: what describes tiles of it."""

FARTHEST = 1000.0
"""Distances are cut here, so that they fit into half the bits."""

_MOST_AXES = 64
_FEWEST_TILES = 64
_TILES_PER_AXIS = 4
_SMALLEST_SHARE, _SMALLEST_REST = 0.01, 1e-6
_WITHIN = 98  # percent of known tissue is within the limit


class _Gaussian(NamedTuple):
    """Of one site; see `KnownTissue`."""

    mean: Floats
    scale: Floats
    axes: Floats
    variances: Floats
    rest: np.floating


def squared_distances(features: Any, mean: Any, scale: Any, axes: Any, variances: Any, rest: Any) -> Any:  # noqa: ANN401  arrays of NumPy or tensors
    """Return the distances [...] of features [..., channels] from one Gaussian of a `KnownTissue`.

    All are arrays of NumPy, or all are tensors of PyTorch, from which the same is traced for a model file.
    """
    inside = (features - mean) * scale
    along = inside @ axes.T
    return (along**2 * (1 / variances - 1 / rest)).sum(-1) + (inside**2).sum(-1) / rest


@dataclass(frozen=True)
class KnownTissue:
    """The distribution of what describes training tiles: for each site a Gaussian whose covariance is shrunk.

    Features are standardised. Along the axes of largest variance the covariance is as measured, along all others it
    is their mean variance, so that it can be inverted however few the tiles are (Tipping and Bishop, Probabilistic
    principal component analysis, J. R. Statist. Soc. B 61, 1999). Variances are in units in which 98 % of known tissue
    of the site is within the distance 1.
    """

    layer: str  # of the network, whose output over a tile is described; see `stage.described`
    sites: tuple[str, ...]  # their names; sites with few tiles share the name ""
    mean: Features  # float32[sites, channels]
    scale: Features  # float32[sites, channels]; centred features times this are standardised
    axes: Features  # float32[sites, axes, channels], of unit length, at right angles
    variances: Features  # float32[sites, axes], along the axes
    rest: Features  # float32[sites], the variance along every other axis
    tiles: int  # how many tiles it was measured on
    slides: int  # how many slides these came from

    @classmethod
    def of(cls, layer: str, training: Sequence[OfSlide], others: Sequence[OfSlide] = ()) -> Self | None:
        """Measure what the output of a layer says of tiles; None where there are too few to tell.

        Args:
            layer: Whose output describes them.
            training: Of each training slide.
            others: Of further slides of the same sites, as those for validation, which set the distances within which
                98 % of known tissue lies. The training slides set them where a site has no others; they lie nearer
                than new tissue would.
        """
        counts = Counter(site for site, tiles in training for _ in tiles)
        large = {site for site, count in counts.items() if count >= _FEWEST_TILES}
        groups = {name: tiles for name, tiles in _grouped(training, large).items() if len(tiles) >= _FEWEST_TILES}
        groups = {name: tiles for name, tiles in groups.items() if tiles.std(0).any()}
        if not groups:
            return None
        fewest, channels = min(map(len, groups.values())), training[0][1].shape[1]
        most = max(1, min(_MOST_AXES, fewest // _TILES_PER_AXIS, channels - 1))
        unseen = _grouped(others, large)
        found = [_measured(tiles, unseen.get(name, tiles), most) for name, tiles in groups.items()]
        arrays = [np.stack(parts).astype(np.float32) for parts in zip(*found, strict=True)]
        stacked = dict(zip(_Gaussian._fields, arrays, strict=True))
        tiles = sum(map(len, groups.values()))
        return cls(layer=layer, sites=tuple(groups), **stacked, tiles=tiles, slides=len(training))

    @property
    def gaussians(self) -> tuple[_Gaussian, ...]:
        """The Gaussian of each site."""
        return tuple(map(_Gaussian, self.mean, self.scale, self.axes, self.variances, self.rest))

    def distances(self, features: Features) -> Features:
        """Return the least distance from any site, float32[n], of features [n, channels]; known tissue is within 1."""
        least = np.min([squared_distances(features, *one) for one in self.gaussians], 0)
        return np.asarray(np.minimum(least, FARTHEST), np.float32)


def limit_of(distances: Floats) -> float:
    """Return the distance within which 98 % of known tissue lies, from distances [n] of some of it."""
    return float(np.percentile(distances, _WITHIN))


def _grouped(slides: Sequence[OfSlide], large: set[str]) -> Mapping[str, Floats]:
    """Join the slides of each large site, and under the name "" those of all others."""
    groups: dict[str, list[Features]] = {}
    for site, tiles in slides:
        groups.setdefault(site if site in large else "", []).append(tiles)
    return {name: np.concatenate(some).astype(np.float64) for name, some in groups.items()}


def _measured(tiles: Floats, unseen: Floats, most: int) -> _Gaussian:
    """Measure the Gaussian of a site with so many axes, in units in which 98 % of `unseen` is within 1."""
    (count, channels), mean, std = tiles.shape, tiles.mean(0), tiles.std(0)
    # A channel that hardly varies must not count for more than others by being divided by nearly nothing.
    scale = 1 / np.maximum(std, _SMALLEST_SHARE * float(std.mean()))
    inside = (tiles - mean) * scale
    variances, axes = np.linalg.eigh(inside.T @ inside / count)
    rest = max(float(variances[: max(1, channels - most)].mean()), _SMALLEST_REST * float(variances[-1]))
    largest = np.maximum(variances[: -most - 1 : -1], rest)
    found = _Gaussian(mean, scale, np.ascontiguousarray(axes[:, : -most - 1 : -1].T), largest, np.float32(rest))
    limit = limit_of(squared_distances(unseen, *found))
    return found._replace(variances=found.variances * limit, rest=np.float32(rest * limit))
