"""The class of an outline is found where the program wrote it, and what is not tumour is not counted."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from making.maps import slide_facts
from wsiseg.annotations.classes import Classes
from wsiseg.annotations.coverage import Truth
from wsiseg.annotations.outlines import AnnotationError
from wsiseg.annotations.truth import Reading, open_truth

RING = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]
SQUARE = {"type": "Polygon", "coordinates": [RING]}
AREA = 100.0**2


def feature(geometry: Any = SQUARE, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def shifted(by: float) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[[x + by, y] for x, y in RING]]}


def truth(folder: Path, *features: Any, classes: Classes | None = None, text: str | bytes | None = None) -> Truth:
    path = folder / "a.geojson"
    text = json.dumps({"type": "FeatureCollection", "features": features}) if text is None else text
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_truth(path, slide_facts(1000, 1000), Reading(classes or Classes()))


WRITTEN: list[Any] = [
    *[{key: "{}"} for key in ("classification", "class", "Class", "class_name", "className", "Class Name", "label")],
    *[{key: "{}"} for key in ("category", "Classification", "type", "group", "layer", "objectType", "name", "title")],
    {"classification": {"name": "{}", "color": [1, 2, 3]}},
    {"classification": {"names": ["{}", "Positive"]}},
    {"classification": ["{}"]},
    {"classification": {"label": "{}"}, "name": "Annotation 3"},
    {"objectType": "annotation", "name": "{}"},
    {"type": "polygon", "label": "{}"},
    {"group": "Annotations of Anna", "label": "{}"},
]


@pytest.mark.parametrize("properties", WRITTEN, ids=json.dumps)
@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("Tumor", 1),
        ("TUMOUR ", 1),
        ("tumour_region", 1),
        ("Stroma", 0),
        ("normal", 0),
        ("Non-tumour", 0),
        ("Immune cells", 0),
    ],
)
def test_a_class_is_found_wherever_it_is_written(tmp_path: Path, properties: Any, name: str, share: float) -> None:
    written = json.loads(json.dumps(properties).replace("{}", name))
    assert truth(tmp_path, feature(**written)).tumor.total == share * AREA
    at_the_side = {**feature(), **{key: value for key, value in written.items() if key != "type"}}
    if "type" not in written:
        assert truth(tmp_path, at_the_side).tumor.total == share * AREA


@pytest.mark.parametrize("key", ["classification", "class", "label", "category", "type", "name"])
def test_an_unknown_class_is_refused_alone_and_noted_beside_tumour(tmp_path: Path, key: str) -> None:
    unknown = feature(shifted(200), **{key: "Gleason 4"})
    with pytest.raises(AnnotationError, match=r"known as tumour, but of Gleason 4; .*tumor-class"):
        truth(tmp_path, unknown)
    found = truth(tmp_path, feature(**{key: "Tumor"}), unknown)
    assert found.tumor.total == AREA
    (note,) = found.notes
    assert note.startswith("a.geojson: 1 outlines of class Gleason 4 do not count as tumour; ")
    assert "tumor-class" in note
    assert truth(tmp_path, unknown, classes=Classes(("gleason-4",))).tumor.total == AREA
    assert truth(tmp_path, feature(label=4), classes=Classes(("4",))).tumor.total == AREA
    with pytest.raises(AnnotationError, match="but of 4"):
        truth(tmp_path, feature(label=4))


@pytest.mark.parametrize(
    "properties",
    [{}, {"classification": None}, {"class": "None"}, {"name": "Annotation 12"}, {"type": "freehand"},
     {"label": "ROI_3"}, {"objectType": "annotation", "name": "where I looked"},
     {"isLocked": False, "name": "mine"}, {"id": 7}],
    ids=json.dumps,
)  # fmt: skip
def test_outlines_without_any_class_are_tumour_and_that_is_said(tmp_path: Path, properties: dict[str, Any]) -> None:
    found = truth(tmp_path, feature(**properties))
    assert found.tumor.total == AREA
    (note,) = found.notes
    assert note.startswith("a.geojson: 1 outlines without a class count as tumour; name the classes")


def test_a_class_derived_from_another_means_what_its_base_means(tmp_path: Path) -> None:
    parts = [feature(shifted(200 * k), classification={"name": name}) for k, name in
             enumerate(("Tumor: Positive", "Stroma: Positive", "Immune cells: CD8", "Ignore*: Pen"))]  # fmt: skip
    found = truth(tmp_path, *parts)
    assert (found.tumor.total, found.ignored.total, found.notes) == (AREA, AREA, ())
    assert truth(tmp_path, *parts, classes=Classes(("stroma",))).tumor.geometry.bounds == (200, 0, 300, 100)
    assert truth(tmp_path, *parts, classes=Classes(("Stroma: Positive",))).tumor.geometry.bounds == (200, 0, 300, 100)


TUMOR = feature(classification={"name": "Tumor"})
BESIDE: dict[str, tuple[Any, str]] = {
    "null geometry": (feature(None), "1 feature without geometry"),
    "empty polygon": (feature({"type": "Polygon", "coordinates": []}), "1 feature without geometry"),
    "empty multipolygon": (feature({"type": "MultiPolygon", "coordinates": []}), "1 feature without geometry"),
    "empty collection": (feature({"type": "GeometryCollection", "geometries": []}), "1 feature without geometry"),
    "empty ring": (feature({"type": "Polygon", "coordinates": [[]]}), "1 outline without an area"),
    "four equal points": (feature({"type": "Polygon", "coordinates": [[[5, 5]] * 4]}), "1 outline without an area"),
    "a line as polygon": (feature({"type": "Polygon", "coordinates": [[[0, 0], [9, 9], [0, 0]]]}), "without an area"),
    "point": (feature({"type": "Point", "coordinates": [5, 5]}), "1 point or line"),
    "line": (feature({"type": "LineString", "coordinates": [[5, 5], [9, 9]]}), "1 point or line"),
    "infinite": (feature({"type": "Polygon", "coordinates": [[[0, 0], [1e300, 0], [0, 9]]]}), "lies on no slide"),
    "text": (feature({"type": "Polygon", "coordinates": [[["a", 0], [1, 0], [0, 9]]]}), "are not two numbers"),
    "null points": (feature({"type": "Polygon", "coordinates": [[None, [1, 0], [0, 9]]]}), "are not two numbers"),
    "no geometry": ({"type": "Feature", "properties": {}}, "1 features that are not GeoJSON"),
    "circle": (feature({"type": "Circle", "coordinates": [5, 5], "radius": 3}), "1 features that are not GeoJSON"),
    "null": (None, "1 features that are not GeoJSON"),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_a_broken_part_never_rejects_the_others(tmp_path: Path, kind: str) -> None:
    broken, note = BESIDE[kind]
    found = truth(tmp_path, TUMOR, broken)
    assert found.tumor.total == AREA
    assert len(found.notes) == 1
    assert note in found.notes[0]
    if "without geometry" in note:  # nothing was drawn
        assert truth(tmp_path, broken).tumor.total == 0
    else:
        with pytest.raises(AnnotationError, match=r"^a\.geojson: holds no outline of an area, but 1 "):
            truth(tmp_path, broken)


COLLECTION = {"type": "GeometryCollection", "geometries": [SQUARE, {"type": "Point", "coordinates": [1, 1]}]}
SHAPES: dict[str, Any] = {
    "bare geometry": SQUARE,
    "one feature": TUMOR,
    "list of features": [TUMOR],
    "list of geometries": [SQUARE],
    "multipolygon": feature({"type": "MultiPolygon", "coordinates": [SQUARE["coordinates"]]}),
    "collection": COLLECTION,
    "nested": feature({"type": "GeometryCollection", "geometries": [COLLECTION]}),
    "no properties": {**feature(), "properties": None},
    "child": [feature(None, childObjects=[TUMOR])],
}  # fmt: skip


@pytest.mark.parametrize("kind", SHAPES)
def test_every_kind_of_geojson_is_read(tmp_path: Path, kind: str) -> None:
    assert truth(tmp_path, text=json.dumps(SHAPES[kind])).tumor.total == AREA


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "gzip", "lines", "sequence"])
def test_every_way_to_write_text_is_read(tmp_path: Path, encoding: str) -> None:
    whole = feature(classification={"name": "Tumor"}, name="Größe")
    lines = [json.dumps(one, ensure_ascii=False) for one in (whole, feature(shifted(200), label="stroma"))]
    text = '{"type": "FeatureCollection", "features": [' + ", ".join(lines) + "]}"
    written = {
        "gzip": gzip.compress(text.encode()),
        "lines": ("\n".join(lines) + "\n\n").encode(),
        "sequence": "".join(f"\x1e{line}\n" for line in lines).encode(),
    }
    assert truth(tmp_path, text=written.get(encoding) or text.encode(encoding)).tumor.total == AREA


@pytest.mark.parametrize("text", ["[]", '{"type": "FeatureCollection", "features": []}'])
def test_a_file_without_outlines_means_no_tumour(tmp_path: Path, text: str) -> None:
    assert truth(tmp_path, text=text).tumor.total == 0


@pytest.mark.parametrize(
    "text", ['{"images": [], "annotations": []}', "3", '"text"', '{"type": "Topology"}', "[" * 600 + "]" * 600]
)
def test_other_json_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    if text.startswith("[["):
        text = text.replace("[]", "[3]")
    with pytest.raises(AnnotationError, match=r"^a\.geojson: (is JSON, but|its objects are nested|holds no outline)"):
        truth(tmp_path, text=text)


def test_regions_of_halo_are_read(tmp_path: Path) -> None:
    def region(kind: str, points: list[tuple[int, int]], negative: int) -> str:
        corners = "".join(f'<V X="{x}" Y="{y}" />' for x, y in points)
        return f'<Region Type="{kind}" HasEndcaps="0" NegativeROA="{negative}"><Vertices>{corners}</Vertices></Region>'

    regions = region("Rectangle", [(0, 0), (100, 100)], 0) + region("Polygon", [(0, 0), (10, 0), (10, 10), (0, 10)], 1)
    layers = f'<Annotation Name="{{}}" Visible="True" LineColor="65280"><Regions>{regions}</Regions></Annotation>'
    for name, area in (("Tumor", AREA - 100), ("Stroma", 0)):
        (tmp_path / "a.xml").write_text(f"<Annotations>{layers.format(name)}</Annotations>")
        found = open_truth(tmp_path / "a.xml", slide_facts(1000, 1000), Reading())
        assert found.tumor.total == area
