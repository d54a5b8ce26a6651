"""Outlines are what QuPath takes: its keys, valid polygons with their holes, packed where they are long."""

import gzip
import json
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jsonschema import Draft202012Validator
from shapely.geometry import shape

from making.maps import slide_facts
from wsiseg.annotations.geojson import read_json
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.heatmap.qupath import cells_text, collection_text
from wsiseg.prediction.map_files import MapFiles
from wsiseg.run.outputs import write_packed

_POINT = {"type": "array", "prefixItems": [{"type": "integer"}] * 2, "items": False, "minItems": 2}
_RING = {"type": "array", "items": _POINT, "minItems": 5}
_POLYGON = {"type": "array", "items": _RING, "minItems": 1}
_TEXT = {"type": "string", "minLength": 1}
_COLOR = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}, "minItems": 3, "maxItems": 3}


def closed(properties: dict[str, Any], *needed: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(needed), "additionalProperties": False}


def geometry(kind: str, coordinates: dict[str, Any]) -> dict[str, Any]:
    return closed({"type": {"const": kind}, "coordinates": coordinates}, "type", "coordinates")


QUPATH = closed(
    {
        "type": {"const": "FeatureCollection"},
        "features": {
            "type": "array",
            "items": closed(
                {
                    "type": {"const": "Feature"},
                    "id": {"type": "string", "format": "uuid"},
                    "geometry": {
                        "oneOf": [
                            geometry("Polygon", _POLYGON),
                            geometry("MultiPolygon", {"type": "array", "items": _POLYGON, "minItems": 2}),
                        ]
                    },
                    "properties": closed(
                        {
                            "objectType": {"enum": ["annotation", "detection", "tile", "cell"]},
                            "name": _TEXT,
                            "color": _COLOR,
                            "classification": closed({"name": _TEXT, "color": _COLOR}, "name"),
                            "isLocked": {"type": "boolean"},
                            "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                        },
                        "objectType",
                    ),
                },
                "type",
                "geometry",
                "properties",
            ),
        },
    },
    "type",
    "features",
)
"""The keys that QuPath's reader of GeoJSON knows; it throws on others in places, and shows none of them."""


def heatmap(values: np.ndarray, cell: float = 32.0, mpp: float = 0.4993) -> Heatmap:
    rows, columns = values.shape
    size = (round(columns * cell / mpp), round(rows * cell / mpp))
    model = {"name": "m", "sha256": "ab"}
    return Heatmap(values.astype(np.float32), cell, slide_facts(*size, mpp=mpp), model=model, version="1")


cells = st.one_of(st.just(np.nan), st.floats(0, 1, width=32))


@given(values=arrays(np.float32, (6, 7), elements=cells), cell=st.floats(3, 300), mpp=st.floats(0.1, 2))
def test_any_map_gives_valid_polygons_with_holes_and_without_slivers(
    values: np.ndarray, cell: float, mpp: float
) -> None:
    found = heatmap(values, max(cell, 3 * mpp), mpp)
    collection = json.loads("".join(collection_text(found)))
    Draft202012Validator(QUPATH).validate(collection)
    tumor = [f for f in collection["features"] if f["properties"]["classification"]["name"] == "Tumor"]
    x, y = (edges.round() for edges in (np.arange(n + 1) * found.cell_level0[0] for n in (7, 6)))
    least = np.diff(x).min() * np.diff(y).min()
    for feature in collection["features"]:
        polygon = shape(feature["geometry"])
        assert polygon.is_valid
        parts = getattr(polygon, "geoms", [polygon])
        for part in parts:
            assert part.area >= least  # no sliver: a part is at least a cell
            assert all(
                shape({"type": "Polygon", "coordinates": [hole.coords]}).area >= least for hole in part.interiors
            )
    area = sum(shape(feature["geometry"]).area for feature in tumor)
    on_pixels = (np.diff(y)[:, None] * np.diff(x)[None])[np.nan_to_num(values, nan=-1.0) >= 0.5].sum()
    assert area == pytest.approx(on_pixels)


def test_a_hole_stays_a_hole() -> None:
    values = np.ones((5, 5))
    values[2, 2] = 0
    values[1, 3] = np.nan
    collection = heatmap(values, mpp=0.5).to_geojson()
    tumor, tissue = (shape(feature["geometry"]) for feature in collection["features"])
    assert len(tumor.interiors) == 2
    assert len(tissue.interiors) == 1
    assert collection["features"][0]["properties"]["measurements"] == {
        "area mm2": pytest.approx(23 * 0.032**2, abs=1e-6),
        "mean p(tumor)": 1.0,
    }


def test_the_text_is_the_collection() -> None:
    found = heatmap(np.random.default_rng(0).random((40, 50)))
    assert json.loads("".join(collection_text(found))) == found.to_geojson()
    nothing = heatmap(np.full((3, 3), np.nan))
    assert json.loads("".join(collection_text(nothing))) == {"type": "FeatureCollection", "features": []}


@given(values=arrays(np.float32, (5, 6), elements=cells), bounds=st.none() | st.just((30, 20, 300, 200)))
def test_cells_are_detections_that_lie_side_by_side_in_qupaths_frame(values: np.ndarray, bounds: Any) -> None:
    unknown = np.random.default_rng(0).random(values.shape) < 0.2
    found = replace(heatmap(values), unknown=unknown & ~np.isnan(values))
    found = replace(found, slide=replace(found.slide, bounds_px=bounds))
    collection = json.loads("".join(cells_text(found)))
    Draft202012Validator(QUPATH).validate(collection)
    (x, y), (left, top) = found.edges(), (bounds or (0, 0))[:2]
    places = [tuple(at) for at in np.argwhere(found.tissue)]
    assert len(collection["features"]) == len(places)
    for (row, column), feature in zip(places, collection["features"], strict=True):
        expected = np.round([x[column] - left, y[row] - top, x[column + 1] - left, y[row + 1] - top])
        assert shape(feature["geometry"]).bounds == tuple(expected)
        assert feature["properties"]["objectType"] == "detection"
        assert feature["properties"]["measurements"]["p(tumor)"] == pytest.approx(values[row, column], abs=1e-4)
        name = {1: "Tissue", 2: "Tumor", 3: "Unknown"}[int(found.labels[row, column])]
        assert feature["properties"]["classification"]["name"] == name


def test_cells_are_streamed_and_packed(tmp_path: Path) -> None:
    found = heatmap(np.random.default_rng(0).random((125, 200)), mpp=0.5)
    tracemalloc.start()
    files = MapFiles(tmp_path, "a", with_cells=True)
    write_packed(tmp_path / "a.cells.geojson", cells_text(found), most_bytes=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_500_000, "5 MB as text"
    with gzip.open(files.outputs["cells"]) as file:
        assert len(json.load(file)["features"]) == 25_000
    small = heatmap(np.ones((3, 3)))
    files.write(small, np.zeros((70, 70, 3), np.uint8), [])
    assert files.are_there
    MapFiles(tmp_path, "a").write(small, np.zeros((70, 70, 3), np.uint8), [])
    assert not files.outputs["cells"].exists(), "those of an earlier map"


def test_a_long_text_is_packed_and_the_plain_file_removed(tmp_path: Path) -> None:
    path, parts = tmp_path / "a.geojson", ["ä" * 600, "\n" * 400]
    assert write_packed(path, parts, most_bytes=1600) == path
    assert path.read_text() == "".join(parts)
    packed = write_packed(path, iter(parts), most_bytes=1599)
    assert [one.name for one in tmp_path.iterdir()] == ["a.geojson.gz"]
    assert gzip.decompress(packed.read_bytes()).decode() == "".join(parts)
    before = packed.read_bytes()
    write_packed(path, parts, most_bytes=10)
    assert packed.read_bytes() == before
    write_packed(path, parts)
    assert [one.name for one in tmp_path.iterdir()] == ["a.geojson"]


def test_a_long_text_is_never_held_whole(tmp_path: Path) -> None:
    tracemalloc.start()
    write_packed(tmp_path / "a", ("0123456789" * 100 for _ in range(50_000)), most_bytes=1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000
    with gzip.open(tmp_path / "a.gz") as file:
        assert sum(len(block) for block in iter(lambda: file.read(2**20), b"")) == 50_000_000


def test_many_foci_give_a_packed_file_that_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsiseg.prediction.map_files.write_packed", partial(write_packed, most_bytes=100_000))
    random = np.random.default_rng(0)
    files = MapFiles(tmp_path, "a")
    (tmp_path / "a.geojson").write_text("of an earlier run")
    found = heatmap(random.random((90, 90)))
    files.write(found, np.zeros((70, 70, 3), np.uint8), [])
    assert files.outputs["geojson"].name == "a.geojson.gz"
    assert not (tmp_path / "a.geojson").exists()
    assert files.are_there
    with gzip.open(files.outputs["geojson"]) as file:
        text = file.read()
    assert len(text) > 100_000
    collection = json.loads(text)
    Draft202012Validator(QUPATH).validate({**collection, "features": collection["features"][:100]})
    assert len(read_json(files.outputs["geojson"]).outlines) > 200
