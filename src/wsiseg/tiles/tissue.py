"""Where a slide holds tissue: a mask at 8 um per pixel, found by colour, without weights."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsiseg.mathematics.grid import Grid, connected_parts, share_of_cells, sizes_of_parts
from wsiseg.run.errors import percent
from wsiseg.slides.pyramid import MOST_UNREADABLE, Picture
from wsiseg.slides.slide import Slide
from wsiseg.tiles.stain import is_stained

MASK_MPP = 8.0
"""Micrometers per pixel of the mask."""

_SMALLEST_UM2, _SMALLEST_HOLE_UM2 = 1e4, 4e4
_LITTLE_MM2, _ALL = 0.5, 0.98
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class TissueMask:
    """Where a slide holds tissue."""

    mask: NDArray[np.bool_]  # bool[rows, columns] over the whole slide
    mpp: tuple[float, float]  # micrometers per mask pixel along x and y
    pixel_level0: tuple[float, float]  # width and height of a mask pixel in level-0 pixels
    source: str  # `auto`, `none` or the file that it came from
    unreadable_share: float = 0.0  # share of the slide whose overview could not be read; it does not count as tissue
    notes: tuple[str, ...] = ()  # what a person should know of where it came from

    @property
    def area_mm2(self) -> float:
        """Area of the tissue."""
        return float(self.mask.sum()) * self.mpp[0] * self.mpp[1] / 1e6

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before trusting it."""
        found = [*self.notes]
        if self.unreadable_share:
            found.append(f"{self.unreadable_share:.2%} of the slide cannot be read and is left out")
        if self.source != "none" and self.mask.any():
            if self.area_mm2 < _LITTLE_MM2:
                found.append(f"less than {_LITTLE_MM2:g} mm2 of tissue")
            if self.mask.mean() > _ALL:
                found.append(f"{percent(self.mask.mean())} of the frame is taken for tissue")
        return tuple(found)

    def share(self, grid: Grid) -> NDArray[np.float32]:
        """Return the share of tissue in every tile of a grid, float32[rows, columns]."""
        return share_of_cells(self.mask, self.pixel_level0, grid)


def find_tissue(
    slide: Slide, *, threads: int = 1, most_unreadable: float = MOST_UNREADABLE
) -> tuple[TissueMask, NDArray[np.uint8]]:
    """Find the tissue of a slide by its colour, within the bounds of the scan; so many threads read.

    With the mask comes the thumbnail (uint8[rows, columns, 3]) that it was found in.

    Raises:
        SlideError: More than the share `most_unreadable` of the slide cannot be read.
    """
    overview = slide.overview(MASK_MPP, threads=threads, most_unreadable=most_unreadable)
    mask, part = np.zeros_like(overview.unreadable), slide.facts.shown_part(overview.image.shape)
    mask[part] = detect(overview.image[part])
    return mask_over(slide, mask, "auto", overview), overview.image


def mask_over(
    slide: Slide, mask: NDArray[np.bool_], source: str, overview: Picture, notes: tuple[str, ...] = ()
) -> TissueMask:
    """Lay a mask of any size over a whole slide; what of the slide could not be read is not tissue."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pixels are touched

    if overview.unreadable.any():
        size = (mask.shape[1], mask.shape[0])
        mask = mask & ~np.asarray(Image.fromarray(overview.unreadable).resize(size, Image.Resampling.NEAREST))
    pixel = (slide.size_px[0] / mask.shape[1], slide.size_px[1] / mask.shape[0])
    mpp = (pixel[0] * slide.mpp[0], pixel[1] * slide.mpp[1])
    return TissueMask(mask, mpp, pixel, source, float(overview.unreadable.mean()), notes)


def detect(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Find the tissue of an image (uint8[rows, columns, 3] at `MASK_MPP`) as bool[rows, columns].

    Specks of less than 0.01 mm2 are removed and enclosed holes of less than 0.04 mm2 filled.
    """
    kept = _without_small(is_stained(image), _SMALLEST_UM2 / MASK_MPP**2)
    return ~_without_small(~kept, _SMALLEST_HOLE_UM2 / MASK_MPP**2, keeps_rim=True)


def _without_small(mask: NDArray[np.bool_], least: float, *, keeps_rim: bool = False) -> NDArray[np.bool_]:
    """Remove connected parts of fewer pixels than `least`, where wanted save those that touch the image's rim."""
    parts, count = connected_parts(mask)
    kept: NDArray[np.bool_] = sizes_of_parts(parts, count) >= least
    if keeps_rim:
        rim = (parts[0], parts[-1], parts[:, 0], parts[:, -1])
        kept[np.concatenate(rim)] = True
    kept[0] = False
    found = np.empty_like(mask)
    for row in range(0, len(parts), _ROWS_AT_ONCE):  # to look up, NumPy makes numbers of 8 bytes
        band = np.s_[row : row + _ROWS_AT_ONCE]
        found[band] = kept[parts[band]]
    return found
