"""Pictures of one slide's truth, map and errors."""

import io

import numpy as np
from numpy.typing import NDArray

from wsiseg.evaluation.comparison import Picture
from wsiseg.pages.page import picture_address
from wsiseg.pages.pictures import colored

COLORS = {"hit": (0, 114, 178), "miss": (230, 159, 0), "false alarm": (204, 51, 102), "rest": (222, 226, 230)}
"""Of the errors, told apart by people who see no red or no green too."""
_TUMOR, _PAPER = (0, 114, 178), (255, 255, 255)
_HALF = 0.5  # a cell is tumour in truth when half of it is


def truth_pixels(picture: Picture) -> NDArray[np.uint8]:
    """Return the truth as uint8[rows, columns, 3]: tissue grey, tumour blue by its share."""
    base = np.where(np.isnan(picture.probabilities)[..., None], _PAPER, COLORS["rest"])
    share = picture.tumor_share[..., None]
    mixed: NDArray[np.uint8] = (base * (1 - share) + np.array(_TUMOR) * share).round().astype(np.uint8)
    return mixed


def map_pixels(picture: Picture) -> NDArray[np.uint8]:
    """Return the probabilities as uint8[rows, columns, 3], from blue to red, white where nobody looked."""
    looked = ~np.isnan(picture.probabilities)
    pixels = np.full((*looked.shape, 3), 255, np.uint8)
    pixels[looked] = colored(picture.probabilities[looked])
    return pixels


def error_pixels(picture: Picture, threshold: float) -> NDArray[np.uint8]:
    """Return hits, misses and false alarms as uint8[rows, columns, 3]."""
    tumor = picture.tumor_share >= _HALF
    called = np.nan_to_num(picture.probabilities, nan=-1.0) >= np.float32(threshold)
    pixels = np.full((*tumor.shape, 3), 255, np.uint8)
    pixels[~np.isnan(picture.probabilities)] = COLORS["rest"]
    pixels[tumor & called], pixels[tumor & ~called] = COLORS["hit"], COLORS["miss"]
    pixels[~tumor & called] = COLORS["false alarm"]
    return pixels


def data_address(pixels: NDArray[np.uint8]) -> str:
    """Return an image as a `data:` address for a page."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pictures are made

    buffer = io.BytesIO()
    Image.fromarray(pixels).quantize(64).save(buffer, "PNG", optimize=True)
    return picture_address("png", buffer.getvalue())
