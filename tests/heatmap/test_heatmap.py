"""Heatmaps survive the disk, validate as NGFF and land on the slide."""

import base64
import io
import json
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from ome_zarr.io import parse_url
from ome_zarr.reader import Reader
from ome_zarr_models.v04 import Image as Image04
from ome_zarr_models.v05 import Image as Image05
from PIL import Image
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from wsiseg.annotations.truth import Reading, open_truth
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.heatmap.ngff import labels_of
from wsiseg.prediction.viewer import overlay
from wsiseg.run.errors import WsisegError
from wsiseg.slides.slide import ASSUMED, SlideFacts

FACTS = SlideFacts(
    file="slide.svs",
    fingerprint="f00d",
    size_px=(46000, 32914),
    mpp=(0.499, 0.499),
    mpp_source="openslide.mpp-x",
    mpp_raw={"openslide.mpp-x": "0.499"},
    bounds_px=None,
    vendor="aperio",
    icc_present=False,
)


NONE = np.zeros((), np.bool_)


def heatmap(rows: int = 147, columns: int = 205, seed: int = 0, **fields: Any) -> Heatmap:
    random = np.random.default_rng(seed)
    values = random.random((rows, columns)).astype(np.float32)
    values[random.random((rows, columns)) < 0.3] = np.nan
    unknown = random.random((rows, columns)) < 0.2
    usual = {"probabilities": values, "unknown": unknown, "cell_um": 112.0, "slide": FACTS, "threshold": 0.4}
    return Heatmap(**{**usual, **fields})


def attributes(path: Path, ngff: str) -> dict[str, Any]:
    if ngff == "0.4":
        return dict(json.loads((path / ".zattrs").read_text()))
    return dict(json.loads((path / "zarr.json").read_text())["attributes"])


def flooded(mask: NDArray[np.bool_]) -> list[int]:
    """Count the cells of every focus, from neighbour to neighbour."""
    left = set(map(tuple, np.argwhere(mask).tolist()))
    sizes = []
    while left:
        reached, size = [left.pop()], 0
        while reached:
            row, column = reached.pop()
            size += 1
            around = {(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)} & left
            left -= around
            reached += around
        sizes.append(size)
    return sizes


@given(st.integers(1, 600), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_foci_are_counted_through_sides_and_not_corners(rows: int, columns: int, seed: int) -> None:
    found = heatmap(rows, columns, seed, cell_um=100.0)
    np.testing.assert_allclose(np.sort(found.foci_mm2), 0.01 * np.sort(flooded(found.tumor)))


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_saving_and_opening_gives_the_same_heatmap(tmp_path: Path, ngff: Any) -> None:
    saved = heatmap(model={"name": "m", "sha256": "ab"}, run={"map": "tile"}, version="1.2.3")
    saved.save(tmp_path / "a.ome.zarr", ngff)
    opened = Heatmap.open(tmp_path / "a.ome.zarr")
    for one in fields(Heatmap):
        np.testing.assert_equal(getattr(opened, one.name), getattr(saved, one.name))
    assert attributes(tmp_path / "a.ome.zarr", ngff)["wsiseg"]["unknown_share"] == saved.unknown_share


@pytest.mark.parametrize(("ngff", "image"), [("0.4", Image04), ("0.5", Image05)])
def test_the_files_validate_as_ngff(tmp_path: Path, ngff: Any, image: Any) -> None:
    heatmap().save(tmp_path / "a.ome.zarr", ngff)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    image.from_zarr(group)
    labels = zarr.open_group(tmp_path / "a.ome.zarr" / "labels" / "segmentation", mode="r")
    assert sorted(group.array_keys()) == sorted(labels.array_keys()) == ["0", "1", "2"]


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_the_files_validate_against_the_official_schemas(tmp_path: Path, ngff: Any, data: Path) -> None:
    schemas = {p.name: json.loads(p.read_text()) for p in (data / "ngff_schemas" / ngff).glob("*.schema")}
    registry: Registry[Any] = Registry().with_resources(
        (schema["$id"], DRAFT202012.create_resource(schema)) for schema in schemas.values()
    )
    heatmap().save(tmp_path / "a.ome.zarr", ngff)
    for name, place in (
        ("strict_image", tmp_path / "a.ome.zarr"),
        ("strict_label", tmp_path / "a.ome.zarr/labels/segmentation"),
    ):
        validator = Draft202012Validator(schemas[f"{name}.schema"], registry=registry)
        validator.validate(attributes(place, ngff))


def test_every_level_covers_the_slide_from_its_corner(tmp_path: Path) -> None:
    heatmap().save(tmp_path / "a.ome.zarr")
    (multiscale,) = attributes(tmp_path / "a.ome.zarr", "0.4")["multiscales"]
    for dataset in multiscale["datasets"]:
        scale, translation = dataset["coordinateTransformations"]
        for side, center in zip(scale["scale"][1:], translation["translation"][1:], strict=True):
            # The first pixel's centre less half its side is the corner of the slide's first pixel.
            assert center - side / 2 == pytest.approx(-FACTS.mpp[0] / 2)
    assert multiscale["datasets"][0]["coordinateTransformations"][1]["translation"] == [0.0, 55.7505, 55.7505]


@pytest.mark.parametrize("mpp", [(0.499, 0.499), (0.2525, 0.2501)])
@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_ome_zarrs_own_reader_puts_the_corners_of_the_slide_into_the_corner_cells(
    tmp_path: Path, ngff: Any, mpp: tuple[float, float]
) -> None:
    slide = replace(FACTS, mpp=mpp)
    rows, columns = (-(-size * step // 112.0) for size, step in zip(slide.size_px[::-1], mpp[::-1], strict=True))
    saved = heatmap(int(rows), int(columns), slide=slide)
    saved.save(tmp_path / "a.ome.zarr", ngff)
    place = parse_url(str(tmp_path / "a.ome.zarr"))
    assert place is not None
    image, _, segmentation = Reader(place)()
    assert image.metadata["channel_names"] == ["p(tumor)"]
    assert image.metadata["contrast_limits"] == [[0, 1]]
    assert image.metadata["colormap"] == [[[0, 0, 0], [213 / 255, 94 / 255, 0]]]
    assert image.metadata["visible"] == [True]
    assert segmentation.metadata["properties"] == {n: {"class": name} for n, name in labels_of(["tumor"]).items()}
    assert [axis["name"] for axis in image.metadata["axes"]] == ["c", "y", "x"]
    np.testing.assert_array_equal(np.asarray(image.data[0])[0], np.nan_to_num(saved.probabilities))
    np.testing.assert_array_equal(np.asarray(segmentation.data[0])[0], saved.labels)
    for node in (image, segmentation):
        for level, (scale, translation) in zip(node.data, node.metadata["coordinateTransformations"], strict=True):
            for axis, size, step in ((1, slide.size_px[1], mpp[1]), (2, slide.size_px[0], mpp[0])):
                # The slide's first pixel has its centre at 0, so its corners lie half a pixel outside.
                edges = np.array([-0.5, size - 0.5]) * step
                cells = (edges - translation["translation"][axis]) / scale["scale"][axis]
                np.testing.assert_array_less(np.abs(cells - [0, level.shape[axis] - 1]), 0.5 + 1e-9)


def test_labels_tell_background_tissue_tumor_and_unknown(tmp_path: Path) -> None:
    saved = heatmap()
    saved.save(tmp_path / "a.ome.zarr")
    labels = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")["labels/segmentation/0"][0]  # type: ignore[index]  # zarr: Array | Group
    seen, known = ~np.isnan(saved.probabilities), ~saved.unknown
    np.testing.assert_array_equal(labels == 0, ~seen)
    np.testing.assert_array_equal(labels == 2, seen & known & (np.nan_to_num(saved.probabilities) >= 0.4))
    np.testing.assert_array_equal(labels == 3, saved.unknown)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.1, 0.0, 1.0])
def test_a_cell_at_the_threshold_is_tumour_and_the_next_number_below_is_not(tmp_path: Path, threshold: float) -> None:
    """In memory, in the labels on the disk, in the outlines, and in the picture of a page alike."""
    at = np.float32(threshold)
    values = np.full((3, 4), np.nan, np.float32)
    values[1, 1:3] = at, max(np.nextafter(at, np.float32(-1)), np.float32(0))
    is_tumor = np.nan_to_num(values, nan=-1) >= at
    slide = replace(FACTS, size_px=(4 * 224, 3 * 224), mpp=(0.5, 0.5))
    made = heatmap(probabilities=values, unknown=NONE, slide=slide, threshold=threshold)
    np.testing.assert_array_equal(made.tumor, is_tumor)
    np.testing.assert_array_equal(made.labels, np.where(np.isnan(values), 0, 1) + is_tumor)
    made.save(tmp_path / "a.ome.zarr")
    labels = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")["labels/segmentation/0"][0]  # type: ignore[index]  # zarr: Array | Group
    np.testing.assert_array_equal(labels, made.labels)
    outlines = [one for one in made.to_geojson()["features"] if one["properties"]["name"] != "tissue"]
    assert sum(one["properties"]["measurements"]["area mm2"] for one in outlines) == pytest.approx(
        is_tumor.sum() * made.cell_mm2, abs=1e-6
    )
    picture = Image.open(io.BytesIO(overlay(made, 4).png))
    inked = np.asarray(picture) == np.asarray(picture).max()
    np.testing.assert_array_equal(inked, is_tumor)


states = st.tuples(
    arrays(np.float32, (3, 4), elements=st.one_of(st.just(np.nan), st.floats(0, 1, width=32))),
    arrays(np.bool_, (3, 4)),
)


@given(states, st.floats(0, 1), st.floats(0, 1))
def test_states_part_the_tissue_and_no_threshold_changes_what_is_unknown(
    made: tuple[np.ndarray, np.ndarray], threshold: float, other: float
) -> None:
    values, unknown = made
    found = heatmap(probabilities=values, unknown=unknown, threshold=threshold)
    again = replace(found, threshold=other)
    np.testing.assert_array_equal(found.unknown, unknown & ~np.isnan(values))
    np.testing.assert_array_equal(again.unknown, found.unknown)
    for one in (found, again):
        parts = (~one.tissue, one.judged & ~one.tumor, one.tumor, one.unknown)
        np.testing.assert_array_equal(np.sum(parts, 0), np.ones((3, 4)))
        np.testing.assert_array_equal(one.labels, np.argmax(parts, 0))
    turned = heatmap(probabilities=values.T, unknown=unknown.T, threshold=threshold)
    np.testing.assert_array_equal(turned.labels, found.labels.T)
    assert turned.warnings == found.warnings


@given(states, st.floats(0, 1))
def test_outlines_read_as_truth_give_tumour_where_it_is_and_leave_out_what_is_unknown(
    made: tuple[np.ndarray, np.ndarray], threshold: float
) -> None:
    slide = replace(FACTS, size_px=(4 * 224, 3 * 224), mpp=(0.5, 0.5))
    found = heatmap(probabilities=made[0], unknown=made[1], slide=slide, threshold=threshold)
    collection = found.to_geojson()
    classes = {one["properties"]["classification"]["name"] for one in collection["features"]}
    is_there = {"Tumor": found.tumor.any(), "Unknown": found.unknown.any(), "Tissue": found.tissue.any()}
    assert classes == {name for name, is_it in is_there.items() if is_it}
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.geojson")
        path.write_text(json.dumps(collection))
        tumor, ignored = open_truth(path, slide, Reading()).covered(*found.edges())
    np.testing.assert_allclose(tumor / 224**2, found.tumor, atol=1e-6)
    np.testing.assert_allclose(ignored / 224**2, found.unknown, atol=1e-6)


@pytest.mark.parametrize(("unknown", "is_suspect"), [(10, False), (11, True)])
def test_from_a_quarter_of_unknown_tissue_on_the_map_warns_wherever_it_goes(
    tmp_path: Path, unknown: int, *, is_suspect: bool
) -> None:
    values = np.linspace(0, 1, 44, dtype=np.float32).reshape(4, 11)
    mask = np.arange(44).reshape(4, 11) < unknown
    made = heatmap(probabilities=values, unknown=mask)
    made.save(tmp_path / "a.ome.zarr")
    stored = attributes(tmp_path / "a.ome.zarr", "0.4")["wsiseg"]
    told = [one["properties"]["metadata"].get("warning", "") for one in made.to_geojson()["features"]]
    assert stored["warnings"] == list(made.warnings)
    assert stored["unknown_mm2"] == pytest.approx(unknown * made.cell_mm2, abs=1e-6)
    for text in (*told, "".join(made.warnings)):
        assert ("25% of the tissue could not be judged" in text) == is_suspect


def test_a_model_that_knows_nothing_of_a_slide_says_so_and_calls_none_of_it_normal() -> None:
    made = heatmap(unknown=np.ones((147, 205), np.bool_))
    assert (made.unknown_share, int(made.tumor.sum()), made.foci_mm2.size) == (1.0, 0, 0)
    assert "100% of the tissue could not be judged" in made.warnings[0]
    assert heatmap(probabilities=np.full((147, 205), np.nan)).unknown_share is None


def test_no_area_is_stated_where_nobody_knows_the_size_of_a_pixel() -> None:
    made = heatmap(3, 4, slide=replace(FACTS, mpp_source=ASSUMED))
    assert all("area mm2" not in one["properties"]["measurements"] for one in made.to_geojson()["features"])


@given(values=arrays(np.float32, (3, 4), elements=st.floats(0, 1, width=32)), threshold=st.floats(0, 1))
def test_areas_in_the_outlines_are_those_of_the_cells(values: np.ndarray, threshold: float) -> None:
    slide = replace(FACTS, size_px=(4 * 224, 3 * 224), mpp=(0.5, 0.5))
    made = heatmap(3, 4, probabilities=values, unknown=NONE, slide=slide)
    features = made.to_geojson(threshold)["features"]
    tumor = sum(f["properties"]["measurements"]["area mm2"] for f in features if f["properties"]["name"] != "tissue")
    assert tumor == pytest.approx((values >= threshold).sum() * made.cell_mm2, abs=1e-5)


def test_outlines_count_from_the_bounds_where_the_slide_has_them() -> None:
    slide = replace(FACTS, bounds_px=(1000, 2000, 500, 500))
    made = heatmap(2, 2, probabilities=np.ones((2, 2), np.float32), unknown=NONE, slide=slide)
    cropped = made.to_geojson()["features"][0]["geometry"]["coordinates"][0]
    whole = made.to_geojson(crop_to_bounds=False)["features"][0]["geometry"]["coordinates"][0]
    assert np.min(whole, 0).tolist() == [0, 0]
    assert np.min(cropped, 0).tolist() == [-1000, -2000]


def test_a_point_finds_its_cell() -> None:
    made = heatmap(slide=replace(FACTS, mpp=(0.5, 0.5)))
    assert made.at(224 * 3 + 1, 224 * 2 + 1) == pytest.approx(float(made.probabilities[2, 3]), nan_ok=True)
    assert np.isnan(made.at(-1, 0))
    assert np.isnan(made.at(0, 1e9))


def test_resampling_to_smaller_cells_repeats_and_back_is_the_same() -> None:
    made = heatmap()
    fine = made.resample(28.0)
    assert fine.shape == (-(-32914 * 0.499 // 28), -(-46000 * 0.499 // 28))
    np.testing.assert_array_equal(fine.resample(112.0).probabilities, made.probabilities)
    np.testing.assert_array_equal(fine.resample(112.0).labels, made.labels)


def test_a_folder_that_is_no_heatmap_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WsisegError, match=r"nothing\.ome\.zarr: not a heatmap"):
        Heatmap.open(tmp_path / "nothing.ome.zarr")
    zarr.create_group(str(tmp_path / "other.zarr"))
    with pytest.raises(WsisegError, match=r"other\.zarr: not a heatmap"):
        Heatmap.open(tmp_path / "other.zarr")


def test_saving_over_a_heatmap_replaces_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.zarr"
    heatmap().save(path)
    heatmap(20, 20, slide=replace(FACTS, size_px=(4480, 4480))).save(path)
    assert Heatmap.open(path).shape == (20, 20)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ome.zarr"]


def test_a_notebook_shows_the_map_in_its_colours() -> None:
    values = np.full((4, 5), np.nan, np.float32)
    values[1, 1], values[1, 2], values[2, 2] = 0.39, 0.41, 0.9
    made = heatmap(
        probabilities=values,
        unknown=values == np.float32(0.9),
        slide=replace(FACTS, size_px=(1120, 896), mpp=(0.5, 0.5)),
    )
    html = made._repr_html_()
    with Image.open(io.BytesIO(base64.b64decode(html.partition("base64,")[2].partition('"')[0]))) as image:
        pixels = np.asarray(image, int)[40::80, 40::80]
    assert pixels.shape == (4, 5, 3)
    assert (np.sign(pixels[1, 1:3, 0] - pixels[1, 1:3, 2])).tolist() == [-1, 1]
    assert (pixels[0] == 255).all()
    assert len(set(pixels[2, 2].tolist())) == 1, "grey"
    assert FACTS.file in html
