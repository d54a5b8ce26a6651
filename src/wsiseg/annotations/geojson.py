"""Outlines in JSON: GeoJSON of any program, and the positive and negative lists of CAMELYON tools."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wsiseg.annotations.classes import is_usual
from wsiseg.annotations.outlines import EMPTY, NOT_AN_AREA, AnnotationError, Drawn, Outline, drawn

_MOST_BYTES = 2**30
_GZIPPED = b"\x1f\x8b"
_LINE_STARTS = "\x1e \t\r\n"  # of a text sequence (RFC 8142)
_AREAS, _OTHERS = ("Polygon", "MultiPolygon"), ("Point", "MultiPoint", "LineString", "MultiLineString")
_BROKEN = "features that are not GeoJSON"
_QUPATH_KEYS = frozenset(["objecttype", "islocked", "measurements"])
_CLASS_KEYS = (
    *("classification", "class", "classname", "classlabel", "category", "categoryname", "annotationclass"),
    *("pathology", "tissue", "tissuetype", "tissueclass"),
)
_OTHER_KEYS = (
    *("label", "labelname", "group", "groupname", "partofgroup", "layer", "layername"),
    *("type", "kind", "objecttype", "name", "title"),
)
"""Keys that hold a class or something else."""
_NO_CLASS = frozenset(["", "nan", "none", "null", "unclassified"])
_SAYS_NOTHING = re.compile(
    r"(path)?(annotation|area|brush|cell|detection|ellipse|feature|freehand|geometry|item|line|multi ?point|nucleus"
    r"|object|path|point|polygon|polyline|rectangle|region|roi|root|shape|square|tile|tma core|unknown|unnamed"
    r"|untitled|wand)( ?object)?[\s#_-]*\d*"
)
"""Values that are not a class, in small letters."""


def read_json(path: Path) -> Drawn:
    """Read the outlines of a JSON file.

    Understands a GeoJSON FeatureCollection, Feature, geometry, a list or lines of these, gzipped or not, in UTF-8, 16
    or 32, and `{"positive": [{"vertices": ...}], "negative": [...]}` (CAMELYON). What is not an area is passed over.

    Raises:
        AnnotationError: The file is no such JSON, or holds nothing but lines, points and broken outlines.
    """
    content = _content(path)
    known = {"FeatureCollection", "Feature", "GeometryCollection", *_AREAS, *_OTHERS}
    is_camelyon = isinstance(content, dict) and "positive" in content
    is_geojson = isinstance(content, list) or (isinstance(content, dict) and content.get("type") in known)
    if not (is_camelyon or is_geojson):
        what = "is JSON, but neither a FeatureCollection, a Feature, a geometry nor a list of Features"
        raise AnnotationError(f"{path.name}: {what}", "export it as GeoJSON")
    try:
        return drawn(path.name, _camelyon(content) if is_camelyon else _parts(content))
    except RecursionError as error:
        raise AnnotationError(f"{path.name}: its objects are nested too deeply", "export it again") from error


def _content(path: Path) -> Any:  # noqa: ANN401  any JSON value
    try:
        text = _unpacked(path)
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data") and text[:1] != b"\x1e":
                raise
            lines = text.decode(json.detect_encoding(text)).splitlines()
            return [json.loads(line.strip(_LINE_STARTS)) for line in lines if line.strip(_LINE_STARTS)]
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise AnnotationError(f"{path.name}: cannot be read as JSON: {error}", "get or export it again") from error


def _unpacked(path: Path) -> bytes:
    text = io.BytesIO()
    with path.open("rb") as plain:
        is_gzipped = plain.read(len(_GZIPPED)) == _GZIPPED
    with gzip.open(path) if is_gzipped else path.open("rb") as file:
        while block := file.read(2**20):
            if text.write(block) and text.tell() > _MOST_BYTES:
                raise AnnotationError(f"{path.name}: more than 1 GiB of outlines", "keep only what is evaluated")
    return text.getvalue()


def _camelyon(content: Mapping[str, Any]) -> Iterator[Outline | str]:
    for key in ("positive", "negative"):
        for one in content.get(key) or []:
            has_points = isinstance(one, dict) and isinstance(one.get("vertices"), list)
            yield Outline([one["vertices"]], "positive", is_negative=key == "negative") if has_points else _BROKEN


def _parts(content: Any) -> Iterator[Outline | str]:  # noqa: ANN401  any JSON value
    """Yield the areas of a GeoJSON object, those nested in others included."""
    if isinstance(content, list):
        for item in content:
            yield from _parts(item)
    elif not isinstance(content, dict):
        yield _BROKEN
    elif content.get("type") == "FeatureCollection":
        yield from _parts(content.get("features"))
    elif content.get("type") == "Feature":
        properties = content.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        yield from _geometry(content.get("geometry", _BROKEN), *_class_and_name(content, properties))
        yield from _parts(properties.get("childObjects") or [])
    else:
        yield from _geometry(content, "", "")


def _geometry(geometry: Any, class_name: str, name: str) -> Iterator[Outline | str]:  # noqa: ANN401  any JSON value
    """Yield the areas of a geometry, or why it is none."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    parts = geometry.get("geometries" if kind == "GeometryCollection" else "coordinates") if kind else None
    if geometry is None or parts == []:
        yield EMPTY
    elif kind in _OTHERS:
        yield NOT_AN_AREA
    elif not isinstance(parts, list) or kind not in {"GeometryCollection", *_AREAS}:
        yield _BROKEN
    elif kind == "GeometryCollection":
        for part in parts:
            yield from _geometry(part, class_name, name)
    else:
        for rings in [parts] if kind == "Polygon" else parts:
            yield Outline(rings, class_name, name=name) if isinstance(rings, list) else _BROKEN


def _class_and_name(feature: Mapping[str, Any], properties: Mapping[str, Any]) -> tuple[str, str]:
    """Return the class of a feature, wherever a program wrote it, and the name that QuPath gave it besides."""
    own = {key: value for key, value in feature.items() if key not in {"type", "geometry", "properties", "id"}}
    texts = {re.sub("[^a-z]", "", key.casefold()): _text(value) for key, value in {**own, **properties}.items()}
    found = [texts[key] for key in _CLASS_KEYS if texts.get(key, "").casefold() not in _NO_CLASS]
    others = [texts[key] for key in _OTHER_KEYS if not _says_nothing(key, texts.get(key, ""))]
    name = texts.get("name", "")
    if _QUPATH_KEYS & texts.keys():
        others = [text for text in others if text != name]
    found += [text for text in others if is_usual(text)] + others
    return (found[0] if found else ""), name


def _says_nothing(key: str, text: str) -> bool:
    """Tell whether a value is not a class but a kind of object, perhaps numbered, a number of one, or nothing."""
    plain = text.casefold()
    is_number = key in {"name", "title"} and plain.isdigit()
    return is_number or plain in _NO_CLASS or _SAYS_NOTHING.fullmatch(plain) is not None


def _text(value: Any) -> str:  # noqa: ANN401  any JSON value
    """Return a class in any of the ways in which it is written: text, number, object or list of names."""
    if isinstance(value, dict):
        return next((text for key in ("name", "names", "label", "value") if (text := _text(value.get(key)))), "")
    if isinstance(value, list):
        return ": ".join(filter(None, map(_text, value)))
    return "" if value is None or isinstance(value, bool) else str(value).strip()
