"""Telling stained tissue from everything else on a lit slide by its colour; arrays only.

Light that passes haematoxylin and eosin loses green most, so tissue is what is denser than the glass around it and
whose optical density is greatest in green. That leaves out glass, grey (dust, bubbles, black pen, scanner borders) and
pens in blue, green and red; not magenta, which is eosin's own colour. On real tissue of five sources fewer than 2 in
100 pixels of 8 um fall outside these bounds.
"""

import numpy as np
from numpy.typing import NDArray

_LEAST_DENSITY, _MOST_DENSITY = 0.05, 0.12  # bounds of the density threshold, natural units
_LEAST_CHROMA = 0.2  # spread of the channels' densities over the largest; grey has none
_LEAST_GREEN = 0.9  # density in green over the largest of the three; less is ink in blue or green
_INK_BLUE, _INK_RED = 0.7, 0.25  # red ink: more density in blue, less in red, both over that in green
_NAVY_DENSITY, _NAVY_RED = 1.2, 0.95  # dark blue ink: as dense, and in red nearly or more than in green
_BLACK = 60  # a pixel none of whose channels reaches this is black
_LIT = 30  # where light passes, every channel reaches this
_DIM_GLASS, _GRAY, _FILL = 180, 20, 254  # glass is bright and grey; above 254 it may be filled in, not scanned
_BINS = 128  # of the histogram of densities
_ROWS_AT_ONCE = 512
_LEAST_GLASS = 0.005  # share of a slide that is enough to know its glass by


def is_stained(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell stained tissue from everything else in an RGB image, uint8[rows, columns, 3], as bool[rows, columns].

    Nothing is set in a fluorescence image.
    """
    planes = np.ascontiguousarray(np.moveaxis(image, 2, 0))
    brightest, dimmest = planes.max(0), planes.min(0)
    stained, is_black = np.zeros(brightest.shape, np.bool_), brightest < _BLACK
    # A fluorescent slide shines in one or two channels only where it is not black.
    if (dimmest[~is_black] >= _LIT).sum() * 2 <= (~is_black).sum():
        return stained
    # The optical density, relative to the glass, of every value of every channel: float32[3, 256].
    of_value = np.log(_glass(planes, brightest, dimmest))[:, None] - np.log(np.maximum(np.arange(256), 1.0))
    of_value = np.maximum(of_value, 0).astype(np.float32)
    # Densities are numbers of 4 bytes for every channel: they are held for some rows at a time.
    bands = [np.s_[row : row + _ROWS_AT_ONCE] for row in range(0, len(image), _ROWS_AT_ONCE)]
    counts = np.zeros(_BINS, np.int64)
    for band in bands:
        strongest = _density(planes[:, band], of_value).max(0)
        counts += np.histogram(strongest[~is_black[band]], _BINS, (0.0, 1.0))[0]
    threshold = float(np.clip(_otsu(counts), _LEAST_DENSITY, _MOST_DENSITY))
    for band in bands:
        density = _density(planes[:, band], of_value)
        stained[band] = (density.max(0) >= threshold) & _is_dye(density) & ~is_black[band]
    return stained


def _glass(planes: NDArray[np.uint8], brightest: NDArray[np.uint8], dimmest: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the colour of the glass; the brightest hundredth of the slide where there is none."""
    is_glass = (dimmest >= _DIM_GLASS) & (brightest - dimmest <= _GRAY)
    for candidates in (is_glass & (dimmest < _FILL), is_glass):
        if candidates.mean() >= _LEAST_GLASS:
            return np.array([_quantile(plane, 0.5, candidates) for plane in planes])
    return np.array([max(_quantile(plane, 0.99), _DIM_GLASS) for plane in planes])


def _quantile(plane: NDArray[np.uint8], share: float, among: NDArray[np.bool_] | None = None) -> float:
    """Return a quantile of some pixels by counting, which for bytes is far quicker than sorting."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pixels are touched

    counts = np.cumsum(Image.fromarray(plane).histogram(None if among is None else Image.fromarray(among)))
    return float(np.searchsorted(counts, share * counts[-1]))


def _density(planes: NDArray[np.uint8], of_value: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the optical density of every channel, float32[3, rows, columns]."""
    return np.stack([own[plane] for own, plane in zip(of_value, planes, strict=True)])


def _is_dye(density: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell haematoxylin and eosin from grey and from inks."""
    (red, green, blue), strongest = density, density.max(0)
    is_colored = density.min(0) <= (1 - _LEAST_CHROMA) * strongest
    is_red_ink = (blue >= _INK_BLUE * green) & (red <= _INK_RED * green)
    is_navy_ink = (strongest > _NAVY_DENSITY) & (red > _NAVY_RED * green)
    dye: NDArray[np.bool_] = is_colored & (green >= _LEAST_GREEN * strongest) & ~is_red_ink & ~is_navy_ink
    return dye


def _otsu(counts: NDArray[np.int64]) -> float:
    """Return the value that parts a histogram of 0..1 into two classes of least variance (Otsu 1979)."""
    edges = np.linspace(0, 1, _BINS + 1)
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centers)
    valid = (below > 0) & (above > 0)
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = np.where(valid, below * above * (mean_below - mean_above) ** 2.0, -1.0)
    return float(edges[1:-1][np.argmax(between)]) if valid.any() else 0.0
