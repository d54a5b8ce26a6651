"""Maps as SpatialData are read by its own library, in their places."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from making.maps import slide_facts
from wsiseg.heatmap.convert import write_spatialdata
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.slides.slide import ASSUMED

sd = pytest.importorskip("spatialdata", reason="needs pip install 'wsiseg[spatialdata]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of the many libraries that it loads
CELL_PX = 10.5


def a_map() -> Heatmap:
    random = np.random.default_rng(0)
    values = random.random((30, 40)).astype(np.float32)
    values[random.random(values.shape) < 0.3] = np.nan
    slide = slide_facts(415, 311)
    unknown = random.random(values.shape) < 0.1
    model = {"name": "a model", "sha256": "ab" * 32}
    return Heatmap(values, CELL_PX * slide.mpp[0], slide, 0.4, model, unknown=unknown, version="1.2.3")


def extent(element: Any, system: str) -> list[float]:
    found = sd.get_extent(element, coordinate_system=system)
    return [*found["x"], *found["y"]]


def test_its_own_library_reads_it(tmp_path: Path) -> None:
    heatmap = a_map()
    write_spatialdata(tmp_path / "a.zarr", heatmap)
    read = sd.read_zarr(tmp_path / "a.zarr")
    assert list(read["probability"].c.values) == ["tumor"]
    assert np.array_equal(read["probability"].values[0], np.nan_to_num(heatmap.probabilities))
    assert np.array_equal(read["state"].values, heatmap.labels)
    names = dict(zip(read["states"].obs["label"], read["states"].obs["state"], strict=True))
    assert names == {0: "background", 1: "tissue", 2: "tumor", 3: "unknown"}
    assert read.attrs["wsiseg"]["model"] == heatmap.model
    assert read.attrs["wsiseg"]["thresholds"] == {"tumor": 0.4}
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_all_of_it_lies_where_the_slide_lies(tmp_path: Path) -> None:
    heatmap = a_map()
    write_spatialdata(tmp_path / "a.zarr", heatmap)
    read = sd.read_zarr(tmp_path / "a.zarr")
    for name in ("probability", "state"):
        assert extent(read[name], "global") == pytest.approx([0, 40 * CELL_PX, 0, 30 * CELL_PX])
        assert extent(read[name], "micrometers") == pytest.approx([0, 20 * CELL_PX, 0, 15 * CELL_PX])
    outlines = read["outlines"]
    tumor = shapely.union_all(outlines.geometry[outlines["class"] == "Tumor"].to_numpy())
    for row, column in np.argwhere(heatmap.tissue):
        middle = shapely.Point((column + 0.5) * CELL_PX, (row + 0.5) * CELL_PX)
        assert tumor.contains(middle) == heatmap.tumor[row, column]
    assert extent(outlines, "micrometers") == pytest.approx(np.divide(extent(outlines, "global"), 2))


def test_without_tissue_or_pixel_size(tmp_path: Path) -> None:
    known = a_map()
    nowhere = np.full_like(known.probabilities, np.nan)
    heatmap = replace(known, probabilities=nowhere, slide=replace(known.slide, mpp_source=ASSUMED))
    write_spatialdata(tmp_path / "a.zarr", heatmap)
    read = sd.read_zarr(tmp_path / "a.zarr")
    assert read.coordinate_systems == ["global"]
    assert "outlines" not in read
    assert not read["state"].values.any()
