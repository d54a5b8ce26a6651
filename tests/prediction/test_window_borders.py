"""Where windows of a dense map meet, the bundled model's map is as smooth as elsewhere."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import wsiseg
from wsiseg.model_file.model_file import BUNDLED, ModelFile, model_path
from wsiseg.prediction.windows import Cells, plan_windows
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tissue import find_tissue

MakeSlide = Callable[..., Path]


def border_ratio(path: Path) -> float:
    """Give the mean step between neighbouring cells across borders of windows by that elsewhere."""
    values = wsiseg.predict(path, map="dense").probabilities
    with Slide(path) as slide, ModelFile.open(model_path(BUNDLED)) as model:
        windows = plan_windows(slide, find_tissue(slide)[0], model, 0.5).windows
    down, right = np.abs(np.diff(values, axis=0)), np.abs(np.diff(values, axis=1))
    at_down, at_right = borders(windows, values.shape)
    at = np.concatenate([down[at_down], right[at_right]])
    elsewhere = np.concatenate([down[~at_down], right[~at_right]])
    assert np.isfinite(at).sum() > 20, "there are borders"
    return float(np.nanmean(at) / np.nanmean(elsewhere))


def borders(windows: tuple[Cells, ...], shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mark the steps down (bool[rows - 1, columns]) and right that lead into or out of a window."""
    down, right = np.zeros((shape[0] - 1, shape[1]), np.bool_), np.zeros((shape[0], shape[1] - 1), np.bool_)
    for top, left, rows, columns in windows:
        for edge in (top - 1, top + rows - 1):
            if 0 <= edge < down.shape[0]:
                down[edge, left : left + columns] = True
        for edge in (left - 1, left + columns - 1):
            if 0 <= edge < right.shape[1]:
                right[top : top + rows, edge] = True
    return down, right


@pytest.mark.slow
def test_borders_do_not_show_on_a_real_slide(data: Path) -> None:
    assert border_ratio(data / "slides" / "CMU-1-Small-Region.svs") <= 1.2


@pytest.mark.slow
def test_borders_do_not_show_on_a_larger_slide_of_colon(data: Path, make_slide: MakeSlide) -> None:
    images = (np.asarray(Image.open(path).convert("RGB")) for path in sorted((data / "glas" / "images").glob("*.jpg")))
    pictures = [image[:512, :768] for image in images if image.shape[0] >= 512 and image.shape[1] >= 768][:48]
    rows = [np.concatenate(pictures[row * 6 : row * 6 + 6], 1) for row in range(8)]
    picture = np.concatenate(rows, 0)[:4096, :4096]
    slide = make_slide("large.tiff", picture, mpp=0.62, compression="jpeg")
    assert border_ratio(slide) <= 1.2
