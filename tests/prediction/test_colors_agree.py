"""In every picture of a map what lies inside the tumour's outline has the colours of tumour, and nothing else has."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image

from making.maps import slide_facts
from making.slides import stained_picture
from wsiseg.evaluation.pictures import drawn, picture_of, png
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.pages.pictures import DARK, INK, LIGHT
from wsiseg.prediction.map_files import MapFiles
from wsiseg.prediction.viewer import Results, slide_jpeg, viewed

SIZE, CELL_PX, MARGIN, GAP, OPACITY = (1200, 900), 30, 12, 12, 0.55
Pixels = NDArray[np.uint8]


def heatmap_at(threshold: float) -> Heatmap:
    """Make a map with all kinds of cells, many of them hardly above or below the threshold."""
    rng = np.random.default_rng(0)
    values = rng.random((SIZE[1] // CELL_PX, SIZE[0] // CELL_PX), dtype=np.float32)
    at = np.float32(threshold)
    for share, value in ((0.2, at), (0.2, np.nextafter(at, np.float32(0))), (0.1, np.float32(np.nan))):
        values[rng.random(values.shape) < share] = value
    unknown = rng.random(values.shape) < 0.1
    return Heatmap(values, CELL_PX / 2, slide_facts(*SIZE), threshold=threshold, unknown=unknown)


def is_tumor_by_outlines(file: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Tell for the centre of every pixel of a picture of the slide whether it lies inside an outline of tumour."""
    features = json.loads(file.read_text())["features"]
    tumor = [one["geometry"] for one in features if one["properties"]["classification"]["name"] == "Tumor"]
    outline = shapely.union_all([shapely.from_geojson(json.dumps(one)) for one in tumor])
    shapely.prepare(outline)
    x, y = ((np.arange(count) + 0.5) * whole / count for count, whole in zip(size, SIZE, strict=True))
    inside: NDArray[np.bool_] = shapely.contains_xy(outline, *np.meshgrid(x, y))
    return inside


def agree(colors: NDArray[np.float64], is_shown: NDArray[np.bool_], is_tumor: NDArray[np.bool_]) -> None:
    """Compare the side of the scale that colours are of with the outlines; blue is normal and orange is tumour."""
    assert is_shown.mean() > 0.5
    assert 0.1 < is_tumor[is_shown].mean() < 0.95
    np.testing.assert_array_equal((colors[..., 0] > colors[..., 2])[is_shown], is_tumor[is_shown])


def is_one_of(pixels: Pixels, *colors: tuple[int, int, int]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.any([(pixels == color).all(-1) for color in colors], 0)
    return found


@pytest.fixture(params=[0.234, 0.9])
def heatmap(request: pytest.FixtureRequest) -> Heatmap:
    return heatmap_at(request.param)


def test_in_the_picture_of_a_slide(heatmap: Heatmap, tmp_path: Path) -> None:
    files, (width, height) = MapFiles(tmp_path, "a"), SIZE
    files.write(heatmap, stained_picture(*SIZE, 0), ["a note"])
    with Image.open(files.outputs["png"]) as image:
        pixels = np.asarray(image)
    top = MARGIN + 22 + 4
    slide, mapped = (pixels[top : top + height, left : left + width] for left in (MARGIN, MARGIN + width + GAP))
    colors = (mapped - (1 - OPACITY) * slide) / OPACITY
    is_shown = (mapped != slide).any(-1) & ~is_one_of(mapped, INK, DARK, LIGHT)
    agree(colors, is_shown, is_tumor_by_outlines(files.outputs["geojson"], SIZE))


def test_in_the_page_of_a_run(heatmap: Heatmap, tmp_path: Path) -> None:
    files = MapFiles(tmp_path, "a")
    files.write(heatmap, stained_picture(*SIZE, 0), [])
    text = viewed(Results(heatmap, slide_jpeg(stained_picture(*SIZE, 0), heatmap.slide)), "a", 2_000_000)
    (png,) = re.findall(r"data:image/png;base64,([^\"]+)", text)
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        pixels = np.asarray(image.convert("RGBA"))
    is_shown = (pixels[..., 3] > 0) & ~is_one_of(pixels[..., :3], INK, DARK, LIGHT)
    agree(pixels.astype(float), is_shown, is_tumor_by_outlines(files.outputs["geojson"], pixels.shape[1::-1]))


def test_in_the_page_of_an_evaluation(heatmap: Heatmap, tmp_path: Path) -> None:
    files, nothing = MapFiles(tmp_path, "a"), np.zeros(heatmap.shape)
    files.write(heatmap, stained_picture(*SIZE, 0), [])
    shown = drawn(picture_of(heatmap, nothing, nothing), heatmap.threshold)["map"]
    with Image.open(io.BytesIO(png(shown))) as image:
        pixels = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels, shown)  # the few pixels of the unknown stay grey
    is_shown = ~is_one_of(pixels, DARK, LIGHT, (255, 255, 255))
    agree(pixels.astype(float), is_shown, is_tumor_by_outlines(files.outputs["geojson"], pixels.shape[1::-1]))
