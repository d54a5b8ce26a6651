"""Where a slide holds tissue: a mask at 8 um per pixel, found by colour, without weights.

Light that passes haematoxylin and eosin loses green most, so tissue is what is denser than the glass around it and
whose optical density is greatest in green. That leaves out glass, grey (dust, bubbles, black pen, scanner borders) and
pens in blue, green and saturated red.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsiseg.grid import Grid, share_of_cells
from wsiseg.slide import Slide

MASK_MPP = 8.0
"""Micrometers per pixel of the mask."""

_LEAST_DENSITY, _MOST_DENSITY = 0.05, 0.12  # bounds of the density threshold, natural units
_LEAST_CHROMA = 0.2  # spread of the channels' densities over the largest; grey has none
_LEAST_GREEN = 0.75  # density in green over the largest of the three
_BLACK = 60  # a pixel none of whose channels reaches this is no tissue
_BRIGHT, _DIMMEST_GLASS = 150, 180
_LEAST_BRIGHT_SHARE, _DARK_SHARE = 0.01, 0.3  # less bright and more dark than this is no bright-field image
_SMALLEST_UM2, _SMALLEST_HOLE_UM2 = 1e4, 4e4
_LITTLE_MM2, _ALL = 0.5, 0.98


@dataclass(frozen=True)
class TissueMask:
    """Where a slide holds tissue.

    Attributes:
        mask: bool[rows, columns] over the whole slide.
        mpp: Micrometers per mask pixel along x and y.
        pixel_level0: Width and height of a mask pixel in level-0 pixels.
        source: `auto`, `none` or the file that it came from.
    """

    mask: NDArray[np.bool_]
    mpp: tuple[float, float]
    pixel_level0: tuple[float, float]
    source: str

    @property
    def area_mm2(self) -> float:
        """Area of the tissue."""
        return float(self.mask.sum()) * self.mpp[0] * self.mpp[1] / 1e6

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before trusting it."""
        if self.source == "none" or not self.mask.any():
            return ()
        if self.area_mm2 < _LITTLE_MM2:
            return (f"only {self.area_mm2:.2f} mm2 of tissue",)
        if self.mask.mean() > _ALL:
            return (f"{self.mask.mean():.0%} of the frame is taken for tissue",)
        return ()

    def share(self, grid: Grid) -> NDArray[np.float32]:
        """Give the share of tissue in every tile of a grid, float32[rows, columns]."""
        return share_of_cells(self.mask, self.pixel_level0, grid)


def find_tissue(slide: Slide) -> tuple[TissueMask, NDArray[np.uint8]]:
    """Find the tissue of a slide by its colour.

    Returns:
        The mask, and the thumbnail (uint8[rows, columns, 3]) that it was found in.
    """
    thumbnail = slide.thumbnail(MASK_MPP)
    return mask_over(slide, detect(thumbnail), "auto"), thumbnail


def mask_over(slide: Slide, mask: NDArray[np.bool_], source: str) -> TissueMask:
    """Lay a mask of any size over a whole slide."""
    pixel = (slide.size_px[0] / mask.shape[1], slide.size_px[1] / mask.shape[0])
    return TissueMask(mask, (pixel[0] * slide.mpp[0], pixel[1] * slide.mpp[1]), pixel, source)


def detect(thumbnail: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell tissue from everything else.

    Args:
        thumbnail: uint8[rows, columns, 3], RGB at `MASK_MPP`.

    Returns:
        bool[rows, columns].
    """
    from scipy import ndimage  # noqa: PLC0415  heavy: only where tissue is sought

    if not _is_bright_field(thumbnail):
        return np.zeros(thumbnail.shape[:2], np.bool_)
    density = _density(ndimage.uniform_filter(thumbnail, (3, 3, 1)))
    strongest = density.max(2)
    threshold = float(np.clip(_otsu(strongest), _LEAST_DENSITY, _MOST_DENSITY))
    seen = (strongest >= threshold) & _is_stained(density, strongest) & (thumbnail.max(2) >= _BLACK)
    return _without_specks(seen)


def _is_bright_field(thumbnail: NDArray[np.uint8]) -> bool:
    """Tell a lit slide from a fluorescent one, which is black where nothing shines."""
    is_bright = (thumbnail.min(2) > _BRIGHT).mean() >= _LEAST_BRIGHT_SHARE
    is_dark = (thumbnail.max(2) < _BLACK).mean() > _DARK_SHARE
    return bool(is_bright or not is_dark)


def _density(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Give the optical density of every channel, relative to the glass."""
    glass = np.maximum(np.percentile(image.reshape(-1, 3), 99, axis=0), _DIMMEST_GLASS)
    density: NDArray[np.float32] = np.maximum(np.log(glass) - np.log(np.maximum(image, 1.0)), 0).astype(np.float32)
    return density


def _is_stained(density: NDArray[np.float32], strongest: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell stain from grey, from pens in green and blue, and from red ink."""
    red, green, blue = np.moveaxis(density, 2, 0)
    is_colored = strongest - density.min(2) >= _LEAST_CHROMA * strongest
    is_red_ink = (green > 1.2) & (blue > 0.75 * green) & (red < 0.15 * green)  # noqa: PLR2004  as measured on pens
    stained: NDArray[np.bool_] = is_colored & (green >= _LEAST_GREEN * strongest) & ~is_red_ink
    return stained


def _otsu(values: NDArray[np.float32]) -> float:
    """Give the value that parts a histogram into two classes of least variance (Otsu 1979)."""
    counts, edges = np.histogram(values, 128, (0.0, 1.0))
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centers)
    valid = (below > 0) & (above > 0)
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = np.where(valid, below * above * (mean_below - mean_above) ** 2.0, -1.0)
    return float(edges[1:-1][np.argmax(between)]) if valid.any() else 0.0


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Remove specks of less than 0.01 mm2 and fill holes of less than 0.04 mm2."""
    kept = _without_small(mask, _SMALLEST_UM2 / MASK_MPP**2)
    return ~_without_small(~kept, _SMALLEST_HOLE_UM2 / MASK_MPP**2)


def _without_small(mask: NDArray[np.bool_], least: float) -> NDArray[np.bool_]:
    from scipy import ndimage  # noqa: PLC0415  heavy: only where tissue is sought

    parts, _ = ndimage.label(mask)
    large = np.bincount(parts.ravel()) >= least
    large[0] = False
    kept: NDArray[np.bool_] = large[parts]
    return kept
