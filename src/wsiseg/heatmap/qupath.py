"""Outlines of a tumour map as the GeoJSON that QuPath takes.

Keys: https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html (GeoJSON). Text is made feature
by feature, so that large files are never held as a whole.
"""

import itertools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

from wsiseg.annotations.coverage import labelled_outlines, outlines
from wsiseg.heatmap.ngff import UNKNOWN, color_of, label_of
from wsiseg.pages.pictures import NORMAL
from wsiseg.slides.slide import ASSUMED

if TYPE_CHECKING:
    from wsiseg.heatmap.heatmap import Heatmap

_UNKNOWN, _TISSUE = {"name": "Unknown", "color": [128, 128, 128]}, {"name": "Tissue", "color": [*NORMAL]}


def collection_text(heatmap: "Heatmap", *, crop_to_bounds: bool = True) -> Iterator[str]:
    """Return a FeatureCollection as JSON, piece by piece: the foci of the tumour, what is unknown, and all tissue."""
    yield '{"type":"FeatureCollection","features":['
    for number, (polygons, properties) in enumerate(_features(heatmap, crop_to_bounds=crop_to_bounds)):
        area = polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)
        geometry = shapely.to_geojson(area).replace(".0", "")  # corners are whole pixels
        stated = json.dumps(properties, separators=(",", ":"))
        yield f'{"," if number else ""}{{"type":"Feature","geometry":{geometry},"properties":{stated}}}'
    yield "]}\n"


def cells_text(heatmap: "Heatmap") -> Iterator[str]:
    """Return the cells that were looked at as a FeatureCollection of detections with the measurement `p(<class>)`.

    Measurement maps of QuPath colour them by it. Coordinates begin at the scan's bounds, as in `collection_text`.
    """
    corner = (heatmap.slide.bounds_px or (0, 0))[:2]
    x, y = (np.round(edges - at).astype(int).tolist() for edges, at in zip(heatmap.edges(), corner, strict=True))
    own = {0: _TISSUE, 1: _TISSUE, UNKNOWN: _UNKNOWN, **_kinds(heatmap)}
    kinds = {label: json.dumps(one, separators=(",", ":")) for label, one in own.items()}
    labels, comma = heatmap.labels, ""
    yield '{"type":"FeatureCollection","features":['
    for row, (top, below) in enumerate(itertools.pairwise(y)):
        for column in np.flatnonzero(labels[row]).tolist():
            left, right = x[column], x[column + 1]
            measured = ",".join(
                f"{json.dumps(f'p({one.positive_class})')}:{one.probabilities[row, column]:.4f}"
                for one in heatmap.by_class
            )
            yield (
                f'{comma}{{"type":"Feature","geometry":{{"type":"Polygon","coordinates":[[[{left},{top}],[{right},{top}],'
                f'[{right},{below}],[{left},{below}],[{left},{top}]]]}},"properties":{{"objectType":"detection",'
                f'"classification":{kinds[labels[row, column]]},'
                f'"measurements":{{{measured}}}}}}}\n'
            )
            comma = ","
    yield "]}\n"


def _kinds(heatmap: "Heatmap") -> dict[int, dict[str, Any]]:
    """Return the classifications of QuPath of the classes, by label."""
    return {
        label_of(place): {"name": name[:1].upper() + name[1:], "color": [*color_of(place)]}
        for place, name in enumerate(heatmap.classes)
    }


def _features(heatmap: "Heatmap", *, crop_to_bounds: bool) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Outline the foci of the tumour, the largest first, then what is unknown, and then all tissue.

    Of several classes the foci of each follow those of the one before.
    """
    bounds = heatmap.slide.bounds_px if crop_to_bounds else None
    corner = (-bounds[0], -bounds[1]) if bounds else (0, 0)
    stated = _stated(heatmap)
    for one, cells, kind in zip(heatmap.by_class, heatmap.called.values(), _kinds(heatmap).values(), strict=True):
        for parts, name, measured in _foci(one, cells, corner):
            yield parts, {**stated, "name": name, "classification": kind, "measurements": measured}
    for name, kind, mask in (("unknown", _UNKNOWN, heatmap.unknown), ("tissue", _TISSUE, heatmap.tissue)):
        parts = outlines(mask, heatmap.cell_level0, corner)
        if parts:
            yield parts, {**stated, "name": name, "classification": kind, "measurements": _measured(heatmap, parts)}


def _foci(
    heatmap: "Heatmap", cells: NDArray[np.bool_], corner: tuple[float, float]
) -> Iterator[tuple[list[Any], str, dict[str, float]]]:
    """Outline the connected parts of the cells of a class, with their names and what is measured of them."""
    foci, labels = labelled_outlines(cells, heatmap.cell_level0, corner)
    numbers = labels[cells]
    means = np.bincount(numbers, heatmap.probabilities[cells]) / np.maximum(np.bincount(numbers), 1)
    del labels, numbers
    for number in np.argsort(-shapely.area(foci), kind="stable"):
        parts = [part for part in shapely.get_parts(foci[number]) if part.area > 0]
        if parts:
            mean = {f"mean p({heatmap.positive_class})": round(float(means[number + 1]), 4)}
            yield parts, f"{heatmap.positive_class} p>={heatmap.threshold:.2f}", {**_measured(heatmap, parts), **mean}


def _stated(heatmap: "Heatmap") -> dict[str, Any]:
    """Return what every feature says: that it is QuPath's kind of annotation, and what made it."""
    metadata = {
        "wsiseg": heatmap.version,
        "model": str(heatmap.model.get("name", "")),
        "model_sha256": str(heatmap.model.get("sha256", "")),
        "threshold": ", ".join(f"{one.threshold:g}" for one in heatmap.by_class),
        **({"warning": "; ".join(heatmap.warnings)} if heatmap.warnings else {}),
    }
    return {"objectType": "annotation", "isLocked": True, "metadata": metadata}


def _measured(heatmap: "Heatmap", polygons: list[Any]) -> dict[str, float]:
    """Return the area of polygons, where the size of a pixel is known."""
    mpp = heatmap.slide.mpp
    area = sum(polygon.area for polygon in polygons) * mpp[0] * mpp[1] / 1e6
    return {} if heatmap.slide.mpp_source == ASSUMED else {"area mm2": round(area, 6)}
