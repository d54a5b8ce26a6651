"""Outlines in JSON: GeoJSON as QuPath writes it, and the positive and negative lists of CAMELYON tools."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsiseg.annotations.classes import AnnotationError, Outline, drawn_polygon

_MOST_BYTES = 2**30
_AREAS = ("Polygon", "MultiPolygon")


def read_json(path: Path) -> list[Outline]:
    """Read the outlines of a JSON file.

    Understands a GeoJSON FeatureCollection, Feature, geometry, or a list of Features (QuPath), gzipped or not, and
    `{"positive": [{"vertices": ...}], "negative": [...]}` (CAMELYON). Lines and points are passed over.

    Returns:
        The outlines; none for a file that holds nothing.

    Raises:
        AnnotationError: The file is no such JSON, or holds only lines or points.
    """
    content = _load(path)
    try:
        if isinstance(content, dict) and "positive" in content:
            return list(_camelyon(content))
        features = list(_features(content))
        outlines = [outline for feature in features for outline in _outlines(feature)]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise AnnotationError(f"{path.name}: not GeoJSON: {error}", "export it from QuPath again") from error
    if features and not outlines:
        raise AnnotationError(f"{path.name}: holds lines or points but no outline of an area", "draw closed outlines")
    return outlines


def _load(path: Path) -> Any:  # noqa: ANN401  any JSON value
    opened = gzip.open if path.suffix == ".gz" else open
    text = bytearray()
    try:
        with opened(path, "rb") as file:
            while block := file.read(2**20):
                text += block
                if len(text) > _MOST_BYTES:
                    raise AnnotationError(f"{path.name}: more than 1 GiB of outlines", "keep only what is evaluated")
        return json.loads(text)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise AnnotationError(f"{path.name}: cannot be read as JSON: {error}", "get or export it again") from error


def _features(content: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401  any JSON value
    """Give the features of any GeoJSON object, those nested in others included."""
    if isinstance(content, list):
        for item in content:
            yield from _features(item)
    elif content["type"] == "FeatureCollection":
        yield from _features(content["features"])
    elif content["type"] == "Feature":
        yield content
        yield from _features((content.get("properties") or {}).get("childObjects") or [])
    else:
        yield {"geometry": content}


def _outlines(feature: dict[str, Any]) -> Iterator[Outline]:
    properties = feature.get("properties") or {}
    class_name, name = _class_name(properties), str(properties.get("name") or "")
    for geometry in _geometries(feature["geometry"]):
        for rings in [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]:
            yield Outline(_polygon(rings[0], rings[1:]), class_name, name=name)


def _geometries(geometry: dict[str, Any] | None) -> list[dict[str, Any]]:
    if geometry is None:
        return []
    parts = geometry["geometries"] if geometry["type"] == "GeometryCollection" else [geometry]
    return [part for part in parts if part["type"] in _AREAS]


def _class_name(properties: dict[str, Any]) -> str:
    """Give the class in any of the ways that QuPath has written it."""
    found = properties.get("classification") or ""
    if isinstance(found, dict):
        return str(found.get("name") or ": ".join(found.get("names") or []))
    return str(found)


def _camelyon(content: dict[str, Any]) -> Iterator[Outline]:
    for key in ("positive", "negative"):
        for one in content.get(key) or []:
            yield Outline(_polygon(one["vertices"], []), is_negative=key == "negative")


def _polygon(shell: list[list[float]], holes: list[list[list[float]]]) -> Any:  # noqa: ANN401  a shapely polygon
    rings = [[(float(point[0]), float(point[1])) for point in ring] for ring in (shell, *holes)]
    return drawn_polygon(rings[0], rings[1:])
