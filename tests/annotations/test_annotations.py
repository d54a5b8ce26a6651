import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from wsiseg.annotations.classes import Classes
from wsiseg.annotations.coverage import Truth
from wsiseg.annotations.geojson import read_json
from wsiseg.annotations.outlines import AnnotationError
from wsiseg.annotations.truth import Reading, open_truth, truth_files
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.slides.slide import SlideFacts

NO_AREA = "no outline of an area"
AREAS: dict[str, float | str] = {
    "aperio_imagescope_TCGA-EJ-5518-01Z-00-DX1.xml": "CaP; name the classes that mean tumour with tumor-class",
    "asap/asap-dot.xml": NO_AREA,
    "asap/asap-pointset.xml": NO_AREA,
    "asap/asap-polygon.xml": 28616.81,
    "camelyon16_json/Normal_001.json": 0,
    "camelyon16_json/Normal_002.json": 0,
    "camelyon16_json/Tumor_001.json": 11377414,
    "camelyon16_json/Tumor_005.json": 2382688,
    "camelyon16_json/Tumor_009.json": 850599959,
    "camelyon16_json/Tumor_016.json": 160727591,
    "camelyon16_json/Tumor_026.json": 806684784,
    "camelyon16_json/Tumor_031.json": 124529609,
    "camelyon16_json/Tumor_036.json": 77596970,
    "camelyon16_json/Tumor_051.json": 94104705,
    "camelyon16_json/Tumor_064.json": 133825865,
    "camelyon16_json/Tumor_078.json": 970947242,
    "camelyon16_json/Tumor_091.json": 47887556,
    "qupath/qupath-brush.json": 10071.92,
    "qupath/qupath-ellipse.json": 45350.45,
    "qupath/qupath-line.json": NO_AREA,
    "qupath/qupath-multipoint.json": NO_AREA,
    "qupath/qupath-point.json": NO_AREA,
    "qupath/qupath-polygon-cell-classified.json": "Cell, Nucleus; name the classes",
    "qupath/qupath-polygon.json": 94491.5,
    "qupath/qupath-polyline.json": NO_AREA,
    "qupath/qupath-rectangle.json": 210 * 176,
    "qupath/qupath-wand.json": 2651.5,
    "qupath05_dlup.geojson": 168998,
    "qupath_geojson_example.json": 2265677914.23,
    "qupath_holed.geojson": 7827735.31,
}
"""Level-0 pixels of tumour in each file of real outlines, or why it is refused."""


BROKEN_ASAP = (
    '<?xml version="1.0"?><ASAP_Annotations><Annotation Type="Polygon"><Coordinates>'
    '<Coordinate X="a" Y="1"/></Coordinates></Annotation></ASAP_Annotations>'
)


def facts(
    width: int = 200_000,
    height: int = 250_000,
    mpp: float = 0.25,
    bounds: tuple[int, int, int, int] | None = None,
) -> SlideFacts:
    return SlideFacts("a.svs", "f", (width, height), (mpp, mpp), "user", {}, bounds, "generic", icc_present=False)


def read(path: Path, *tumor: str, slide: SlideFacts | None = None, **how: Any) -> Truth:
    return open_truth(path, slide or facts(), Reading(Classes(tumor), **how))


def square(left: float, top: float, side: float, name: str = "Tumor") -> dict[str, Any]:
    ring = [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}} if name else {}}


def geojson(path: Path, *features: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def polygon(points: list[tuple[float, float]]) -> dict[str, Any]:
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[*points, points[0]]]}, "properties": {}}


def test_the_table_names_every_file_of_real_outlines(data: Path) -> None:
    found = {path.relative_to(data / "annotations").as_posix() for path in (data / "annotations").rglob("*.*")}
    assert set(AREAS) == found


@pytest.mark.parametrize("name", AREAS)
def test_real_outlines_load_to_the_area_of_their_own_tool_or_are_refused(data: Path, name: str) -> None:
    expected, path = AREAS[name], data / "annotations" / name
    if isinstance(expected, str):
        with pytest.raises(AnnotationError, match=expected) as refused:
            read(path)
        assert path.name in str(refused.value)
    else:
        assert read(path).tumor.total == pytest.approx(expected, rel=1e-6)


def test_the_areas_that_imagescope_wrote_into_its_file_are_ours(data: Path) -> None:
    path = data / "annotations" / "aperio_imagescope_TCGA-EJ-5518-01Z-00-DX1.xml"
    truth = read(path, "CaP", slide=facts(mpp=0.252))
    assert truth.tumor.total == pytest.approx(29046449.6 + 641099844.1, rel=1e-6)
    assert [note.split(": ")[1] for note in truth.notes] == ["repaired 3 self-crossing outlines"]
    assert "drawn at 0.252 um/px, the slide has 0.5 um/px" in read(path, "cap", slide=facts(mpp=0.5)).notes[-1]


def test_cells_that_qupath_classified_count_when_their_class_is_named(data: Path) -> None:
    path = data / "annotations" / "qupath" / "qupath-polygon-cell-classified.json"
    outlines = {outline.class_name: outline.polygon.area for outline in read_json(path).outlines}
    assert set(outlines) == {"Cell", "Nucleus"}
    assert 0 < read(path, "Cell").tumor.total < read(path, "Cell", "Nucleus").tumor.total


@pytest.mark.slow
def test_camelyon_outlines_cover_what_painting_them_covers(data: Path) -> None:
    step = 8
    for path in sorted((data / "annotations" / "camelyon16_json").glob("Tumor_*.json")):
        content = json.loads(path.read_text())
        corners = np.concatenate([one["vertices"] for one in content["positive"]])
        low, high = corners.min(0), corners.max(0)
        image = Image.new("1", tuple((high - low) // step + 1))
        for key in ("positive", "negative"):
            for one in content[key]:
                points = ((np.array(one["vertices"]) - low) / step - 0.5).ravel().tolist()
                ImageDraw.Draw(image).polygon(points, fill=int(key == "positive"))
        painted = sum(image.histogram()[1:]) * step**2
        assert read(path).tumor.total == pytest.approx(painted, rel=0.04), path.name


def test_outlines_nested_in_each_other_are_laid_from_the_largest_down(tmp_path: Path) -> None:
    island = square(40, 40, 10)
    path = geojson(tmp_path / "a.geojson", island, square(30, 30, 40, "Normal"), square(0, 0, 100), square(5, 5, 20))
    assert read(path).tumor.total == 100**2 - 40**2 + 10**2


def test_classes_are_mapped_as_the_user_says(tmp_path: Path) -> None:
    features = [
        square(0, 0, 10, "Gleason 4"),
        square(20, 0, 20, "Stroma"),
        square(50, 0, 5, ""),
        square(1, 1, 2, "pit"),
    ]
    path = geojson(tmp_path / "a.geojson", *features)
    with pytest.raises(
        AnnotationError, match=r"a\.geojson: nothing is of a class known as tumour, but of Gleason 4, pit"
    ):
        read(path)
    assert read(path, "gleason 4").tumor.total == 100
    assert open_truth(path, facts(), Reading(Classes(("Gleason 4",), ("Pit",)))).tumor.total == 96
    with_tumor = geojson(tmp_path / "b.geojson", *features, square(0, 50, 3))
    truth = read(with_tumor)
    assert truth.tumor.total == 9 + 25
    assert any("1 outlines of class Gleason 4 do not count as tumour; name" in note for note in truth.notes)


def test_outlines_without_a_class_are_tumour_and_named_ones_can_be_chosen(data: Path) -> None:
    path = data / "annotations" / "qupath05_dlup.geojson"
    parts = [read(path, name).tumor.total for name in ("UT", "I")]
    assert sum(parts) == pytest.approx(168998)
    assert min(parts) > 0


def test_an_outline_that_crosses_itself_is_repaired_and_reported(tmp_path: Path) -> None:
    bow = geojson(tmp_path / "bow.geojson", polygon([(0, 0), (10, 10), (10, 0), (0, 10)]))
    truth = read(bow)
    assert truth.tumor.total == 50
    assert truth.notes[0] == "bow.geojson: repaired 1 self-crossing outline"
    twice = [(0, 0), (20, 0), (20, 20), (0, 20), (0, 0), (10, 0), (10, 10), (0, 10)]
    overlapping = geojson(tmp_path / "twice.geojson", polygon([(float(x), float(y)) for x, y in twice]))
    assert read(overlapping).tumor.total == 400


def test_a_file_without_outlines_is_a_slide_without_tumour(tmp_path: Path) -> None:
    (tmp_path / "b.xml").write_text("<ASAP_Annotations><Annotations/><AnnotationGroups/></ASAP_Annotations>")
    (tmp_path / "c.json").write_text('{"positive": [], "negative": []}')
    for path in (geojson(tmp_path / "a.geojson"), tmp_path / "b.xml", tmp_path / "c.json"):
        assert read(path) == read(path)
        assert read(path).tumor.total == 0


def test_qupath_counts_from_the_bounds_of_the_scan_and_others_from_level_0(tmp_path: Path) -> None:
    slide = facts(bounds=(1000, 2000, 50_000, 60_000))
    asap = asap_file(tmp_path / "a.xml", ("Tumor", [(0, 0), (10, 0), (10, 10)]))
    path = geojson(tmp_path / "a.geojson", square(0, 0, 10))
    corner = {how: read(path, slide=slide, origin=how).tumor.geometry.bounds[:2] for how in ("auto", "slide", "bounds")}
    assert corner == {"auto": (1000, 2000), "slide": (0, 0), "bounds": (1000, 2000)}
    assert read(asap, slide=slide).tumor.geometry.bounds[:2] == (0, 0)
    assert read(asap, slide=slide, origin="bounds").tumor.geometry.bounds[:2] == (1000, 2000)


def test_our_own_outlines_come_back_as_they_were_on_a_slide_with_bounds(tmp_path: Path) -> None:
    values = np.full((20, 30), 0.1, np.float32)
    values[5:9, 8:20] = 0.9
    slide = facts(300, 200, 0.5, (30, 20, 200, 150))
    (tmp_path / "a.geojson").write_text(json.dumps(Heatmap(values, 5.0, slide).to_geojson()))
    area = read(tmp_path / "a.geojson", slide=slide).tumor.covered(np.linspace(0, 300, 31), np.linspace(0, 200, 21))
    np.testing.assert_array_equal(area > 0, values > 0.5)


def test_gzipped_geojson_and_nested_child_objects_are_read(tmp_path: Path) -> None:
    parent = square(0, 0, 10)
    parent["properties"]["childObjects"] = [square(100, 100, 5)]
    with gzip.open(tmp_path / "a.geojson.gz", "wt") as file:
        json.dump([parent], file)
    assert read(tmp_path / "a.geojson.gz").tumor.total == 125


def test_outlines_that_unpack_to_far_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsiseg.annotations.geojson._MOST_BYTES", 2**20)
    with gzip.open(tmp_path / "a.geojson.gz", "wb") as file:
        file.write(b" " * 2**22)
    with pytest.raises(AnnotationError, match=r"^a\.geojson\.gz: more than"):
        read(tmp_path / "a.geojson.gz")
    (tmp_path / "b.geojson.gz").write_bytes(gzip.compress(b"{}")[:-9])
    with pytest.raises(AnnotationError, match=r"^b\.geojson\.gz: cannot be read as JSON"):
        read(tmp_path / "b.geojson.gz")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '"text"', '{"type": "Feature"}', '{"type": "FeatureCollection", "features": 3}',
     '{"type": "Polygon", "coordinates": [[[0, 0], [1, "x"], [1, 1], [0, 0]]]}',
     '{"type": "Polygon", "coordinates": [[[0, 0], [1, NaN], [1, 1], [0, 0]]]}',
     '{"type": "Polygon", "coordinates": [[[0, 0], [1e300, 1], [1, 1e300], [0, 0]]]}',
     '{"type": "Polygon", "coordinates": [[[0, 0]]]}', '{"type": "Polygon"}', "[" * 100_000],
)  # fmt: skip
def test_broken_json_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(AnnotationError, match=r"^a\.geojson: "):
        read(tmp_path / "a.geojson")


def asap_file(path: Path, *groups: tuple[str, list[tuple[float, float]]]) -> Path:
    outlines = ""
    for group, points in groups:
        listed = [f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in enumerate(points)]
        inside = "".join(reversed(listed))
        outlines += f'<Annotation Type="Polygon" PartOfGroup="{group}"><Coordinates>{inside}</Coordinates></Annotation>'
    path.write_text(f"<ASAP_Annotations><Annotations>{outlines}</Annotations></ASAP_Annotations>")
    return path


def test_asap_groups_of_camelyon_cut_holes(tmp_path: Path) -> None:
    whole = [(0.0, 0.0), (100.0, 0.0), (100.0, 100.0), (0.0, 100.0)]
    hole = [(10.0, 10.0), (20.0, 10.0), (20.0, 20.0), (10.0, 20.0)]
    for tumor, normal in (("_0", "_2"), ("_1", "_2"), ("Tumor", "Exclusion"), ("metastases", "normal"), ("None", "_2")):
        path = asap_file(tmp_path / "a.xml", (normal, hole), (tumor, whole))
        assert read(path).tumor.total == 9900, (tumor, normal)


def test_imagescope_negative_regions_cut_holes_and_ellipses_are_round(tmp_path: Path) -> None:
    def region(points: list[tuple[float, float]], kind: int, negative: int) -> str:
        inside = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in points)
        return f'<Region Type="{kind}" NegativeROA="{negative}"><Vertices>{inside}</Vertices></Region>'

    regions = region([(0, 0), (100, 0), (100, 100), (0, 100)], 1, 0) + region([(20, 20), (60, 40)], 2, 1)
    ruler = region([(0, 0), (5, 5)], 4, 0)
    layer = f'<Annotation Name="Tumor"><Regions>{regions}{ruler}</Regions></Annotation>'
    (tmp_path / "a.xml").write_text(f"<Annotations>{layer}</Annotations>")
    assert read(tmp_path / "a.xml").tumor.total == pytest.approx(100**2 - math.pi * 20 * 10, rel=1e-4)


@pytest.mark.parametrize(
    "text",
    ["", "<svg/>", "<Annotations>", "not xml", BROKEN_ASAP],
)
def test_broken_xml_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(AnnotationError, match=r"^a\.xml: "):
        read(tmp_path / "a.xml")


def test_entities_are_never_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("1")
    external = f'<!DOCTYPE a [<!ENTITY e SYSTEM "{secret.as_uri()}">]><ASAP_Annotations>&e;</ASAP_Annotations>'
    bomb = '<!DOCTYPE a [<!ENTITY e "xxxxxxxxxx"><!ENTITY f "&e;&e;&e;">]><ASAP_Annotations>&f;</ASAP_Annotations>'
    for text in (external, bomb):
        (tmp_path / "a.xml").write_text(text)
        with pytest.raises(AnnotationError, match=r"^a\.xml: cannot be read as XML"):
            read(tmp_path / "a.xml")


def test_truth_is_found_by_the_name_of_its_slide(tmp_path: Path) -> None:
    for name in ("a.geojson", "b.svs.png", "c_mask.tif", "d.geojson.gz", "readme.txt"):
        (tmp_path / name).touch()
    assert sorted(truth_files(tmp_path)) == ["a", "b.svs", "c", "d"]
    (tmp_path / "a.ome.zarr").mkdir()
    assert truth_files(tmp_path) == {"a": [tmp_path / "a.ome.zarr"]}
