"""Pictures of one slide's truth, map and errors."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.mathematics.grid import block_means
from wsiseg.pages.page import picture_address
from wsiseg.pages.pictures import KEY_OF_UNKNOWN, TUMOR, colored, hatch, is_line

COLORS = {
    "hit": TUMOR,
    "miss": (240, 228, 66),
    "false alarm": (135, 60, 150),
    "rest": (222, 226, 230),
    "left out": (128, 128, 128),
}
"""Of the errors, told apart by people who see no red or no green too."""
KEYS = {
    **{name: f"rgb{color}" for name, color in COLORS.items()},
    "left out": f"repeating-linear-gradient(-45deg, #fff 0 3px, rgb{COLORS['left out']} 3px 4px)",
    "unknown, not judged": KEY_OF_UNKNOWN,
}
"""CSS backgrounds that look like what is drawn."""
_PAPER = (255, 255, 255)
_HALF = 0.5  # a cell is tumour in truth, or left out, when half of it is
_CELLS = 256  # the longer side of what a picture shows
_HATCH = 3  # cells from one line of what is left out to the next


@dataclass(frozen=True)
class JudgedPicture:
    """Prediction and truth at a size to look at, [rows, columns] each."""

    probabilities: NDArray[np.float32]  # the mean of what was judged, NaN where nothing was
    unknown_share: NDArray[np.float32]  # of what was looked at, NaN where nobody looked
    tumor_share: NDArray[np.float32]  # of each cell, by the truth
    ignored_share: NDArray[np.float32]  # of each cell, left out of all measures


def picture_of(heatmap: Heatmap, tumor_share: NDArray[np.float64], ignored_share: NDArray[np.float64]) -> JudgedPicture:
    """Average cells until the longer side is small enough, or repeat them until hatching can be seen in them."""
    factor, copies = -(-max(heatmap.shape) // _CELLS), max(1, _CELLS // max(heatmap.shape))
    everywhere = np.ones(heatmap.shape, np.bool_)
    means = (
        block_means(heatmap.probabilities, heatmap.judged, factor),
        block_means(heatmap.unknown, heatmap.tissue, factor),
        block_means(tumor_share, everywhere, factor),
        block_means(ignored_share, everywhere, factor),
    )
    return JudgedPicture(*(one.repeat(copies, 0).repeat(copies, 1) for one in means))


def _hatched(pixels: NDArray[np.uint8], picture: JudgedPicture, *, with_unknown: bool = True) -> NDArray[np.uint8]:
    """Draw rising grey lines on white over what is left out, and falling dark ones on grey over what is unknown."""
    left_out = picture.ignored_share >= _HALF
    if with_unknown:
        hatch(pixels, np.nan_to_num(picture.unknown_share) >= _HALF, 1)
    pixels[left_out] = _PAPER
    pixels[left_out & is_line(left_out.shape, _HATCH, 1)[:, ::-1]] = COLORS["left out"]
    return pixels


def drawn(picture: JudgedPicture, threshold: float) -> dict[str, NDArray[np.uint8]]:
    """Draw truth, map and errors, uint8[rows, columns, 3] each, white where nobody looked.

    The truth is orange by the share of tumour, the map from the threshold on, and the errors are those of cells.
    """
    looked, judged = ~np.isnan(picture.unknown_share), ~np.isnan(picture.probabilities)
    base = np.where(looked[..., None], COLORS["rest"], _PAPER).astype(np.uint8)
    share = picture.tumor_share[..., None]
    truth = (base * (1 - share) + np.array(TUMOR) * share).round().astype(np.uint8)
    colors = np.full_like(base, 255)
    colors[judged] = colored(picture.probabilities[judged], threshold)
    tumor = picture.tumor_share >= _HALF
    called = np.nan_to_num(picture.probabilities, nan=-1.0) >= np.float32(threshold)
    base[tumor & called], base[tumor & ~called] = COLORS["hit"], COLORS["miss"]
    base[~tumor & called] = COLORS["false alarm"]
    found = {"truth": _hatched(truth, picture, with_unknown=False), "map": _hatched(colors, picture)}
    return found | {"error": _hatched(base, picture)}


def data_address(pixels: NDArray[np.uint8]) -> str:
    """Return an image as a `data:` address for a page."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pictures are made

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)  # fewer colours would blend the grey of the unknown
    return picture_address("png", buffer.getvalue())
