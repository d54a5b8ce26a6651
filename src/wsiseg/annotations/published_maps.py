"""The tumour maps that Lerousseau et al. 2020 published: one PNG a slide, one pixel a tile.

Red is floor(255 p), green is 0, blue is 255 on tissue and 0 elsewhere. In the thresholded twins red is 255 where
p > 0.3. A pixel is 448 level-0 pixels whatever the magnification. The maps of normal slides (sample codes 10-14) were
set to zero by hand, so they say nothing about false alarms.
Source: https://github.com/marvinler/tcga_segmentation, folder `results`.
"""

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.outlines import AnnotationError
from wsiseg.run.errors import UsageError
from wsiseg.slides import barcode

_TISSUE = 255  # the blue of tissue
STEP_PX = 448
"""Level-0 pixels per pixel of a map."""
THRESHOLD = 0.3
"""The authors called tumour what lies above it."""


class ZeroedMapError(AnnotationError):
    """A published map of normal tissue, set to zero by hand: it is left out, not failed."""


def is_published_map(pixels: NDArray[np.uint8]) -> bool:
    """Tell whether an image (uint8[rows, columns, 3]) is laid out as a published map, with red on blue only."""
    red, green, blue = np.moveaxis(pixels, 2, 0)
    return not green.any() and bool((blue[red > 0] == _TISSUE).all() and np.isin(blue, (0, _TISSUE)).all())


def probabilities(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probabilities of a published map: float32[rows, columns], NaN off the tissue."""
    values: NDArray[np.float32] = np.where(pixels[..., 2] > 0, pixels[..., 0] / np.float32(255), np.nan)
    return values.astype(np.float32)


def is_zeroed(name: str, values: NDArray[np.float32]) -> bool:
    """Tell whether a map is that of a normal slide, set to zero by hand."""
    try:
        is_normal = barcode.label(name) == 0
    except UsageError:
        return False
    return is_normal and not np.nan_to_num(values).any()


def zeroed(name: str) -> ZeroedMapError:
    """Make the error for a map that was set to zero by hand."""
    return ZeroedMapError(f"{name}: a map of normal tissue that was set to zero by hand is not truth")
