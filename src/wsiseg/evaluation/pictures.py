"""Pictures of one slide's truth, map and errors."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsiseg.pages.page import picture_address
from wsiseg.pages.pictures import colored

COLORS = {
    "hit": (0, 114, 178),
    "miss": (230, 159, 0),
    "false alarm": (204, 51, 102),
    "rest": (222, 226, 230),
    "left out": (128, 128, 128),
}
"""Of the errors, told apart by people who see no red or no green too."""
_TUMOR, _PAPER = (0, 114, 178), (255, 255, 255)
_HALF = 0.5  # a cell is tumour in truth, or left out, when half of it is
_CELLS = 256  # the longer side of what a picture shows
_HATCH = 3  # cells from one line to the next


@dataclass(frozen=True)
class JudgedPicture:
    """Prediction and truth at a size to look at.

    Attributes:
        probabilities: float32[rows, columns], NaN where nobody looked.
        tumor_share: float32[rows, columns], the share of each cell that is tumour in truth.
        ignored_share: float32[rows, columns], the share of each cell that is left out of all measures.
    """

    probabilities: NDArray[np.float32]
    tumor_share: NDArray[np.float32]
    ignored_share: NDArray[np.float32]


def picture_of(
    probabilities: NDArray[np.float32], tumor_share: NDArray[np.float64], ignored_share: NDArray[np.float64]
) -> JudgedPicture:
    """Average cells until the longer side is small enough."""
    factor = -(-max(probabilities.shape) // _CELLS)
    known = ~np.isnan(probabilities)
    count = _sums(known.astype(np.float64), factor)
    total = _sums(np.nan_to_num(probabilities).astype(np.float64), factor)
    values = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    cells = _sums(np.ones(probabilities.shape), factor)
    shares = (_sums(share, factor) / cells for share in (tumor_share, ignored_share))
    return JudgedPicture(*(one.astype(np.float32) for one in (values, *shares)))


def _sums(values: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Add up blocks of `factor` x `factor`, the last ones cut."""
    starts = [np.arange(0, size, factor) for size in values.shape]
    total: NDArray[np.float64] = np.add.reduceat(np.add.reduceat(values, starts[0], axis=0), starts[1], axis=1)
    return total


def _hatched(pixels: NDArray[np.uint8], picture: JudgedPicture) -> NDArray[np.uint8]:
    """Draw grey lines on white over what is left out."""
    left_out = picture.ignored_share >= _HALF
    lines = np.add.outer(*map(np.arange, left_out.shape)) % _HATCH == 0
    pixels[left_out] = _PAPER
    pixels[left_out & lines] = COLORS["left out"]
    return pixels


def truth_pixels(picture: JudgedPicture) -> NDArray[np.uint8]:
    """Return the truth as uint8[rows, columns, 3]: tissue grey, tumour blue by its share."""
    base = np.where(np.isnan(picture.probabilities)[..., None], _PAPER, COLORS["rest"])
    share = picture.tumor_share[..., None]
    return _hatched((base * (1 - share) + np.array(_TUMOR) * share).round().astype(np.uint8), picture)


def map_pixels(picture: JudgedPicture) -> NDArray[np.uint8]:
    """Return the probabilities as uint8[rows, columns, 3], from blue to red, white where nobody looked."""
    looked = ~np.isnan(picture.probabilities)
    pixels = np.full((*looked.shape, 3), 255, np.uint8)
    pixels[looked] = colored(picture.probabilities[looked])
    return _hatched(pixels, picture)


def error_pixels(picture: JudgedPicture, threshold: float) -> NDArray[np.uint8]:
    """Return hits, misses and false alarms as uint8[rows, columns, 3]."""
    tumor = picture.tumor_share >= _HALF
    called = np.nan_to_num(picture.probabilities, nan=-1.0) >= np.float32(threshold)
    pixels = np.full((*tumor.shape, 3), 255, np.uint8)
    pixels[~np.isnan(picture.probabilities)] = COLORS["rest"]
    pixels[tumor & called], pixels[tumor & ~called] = COLORS["hit"], COLORS["miss"]
    pixels[~tumor & called] = COLORS["false alarm"]
    return _hatched(pixels, picture)


def data_address(pixels: NDArray[np.uint8]) -> str:
    """Return an image as a `data:` address for a page."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pictures are made

    buffer = io.BytesIO()
    Image.fromarray(pixels).quantize(64).save(buffer, "PNG", optimize=True)
    return picture_address("png", buffer.getvalue())
