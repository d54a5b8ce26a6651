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

from wsiseg.annotations.coverage import labelled_outlines, outlines
from wsiseg.pages.pictures import NORMAL, TUMOR
from wsiseg.slides.slide import ASSUMED

if TYPE_CHECKING:
    from wsiseg.heatmap.heatmap import Heatmap

_TUMOR = {"name": "Tumor", "color": [*TUMOR]}
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
    """Return the cells that were looked at as a FeatureCollection of detections with the measurement `p(tumor)`.

    Measurement maps of QuPath colour them by it. Coordinates begin at the scan's bounds, as in `collection_text`.
    """
    corner = (heatmap.slide.bounds_px or (0, 0))[:2]
    x, y = (np.round(edges - at).astype(int).tolist() for edges, at in zip(heatmap.edges(), corner, strict=True))
    kinds = [json.dumps(one, separators=(",", ":")) for one in (_TISSUE, _TISSUE, _TUMOR, _UNKNOWN)]  # by label
    labels, comma = heatmap.labels, ""
    yield '{"type":"FeatureCollection","features":['
    for row, (top, below) in enumerate(itertools.pairwise(y)):
        for column in np.flatnonzero(labels[row]).tolist():
            left, right = x[column], x[column + 1]
            yield (
                f'{comma}{{"type":"Feature","geometry":{{"type":"Polygon","coordinates":[[[{left},{top}],[{right},{top}],'
                f'[{right},{below}],[{left},{below}],[{left},{top}]]]}},"properties":{{"objectType":"detection",'
                f'"classification":{kinds[labels[row, column]]},'
                f'"measurements":{{"p(tumor)":{heatmap.probabilities[row, column]:.4f}}}}}}}\n'
            )
            comma = ","
    yield "]}\n"


def _features(heatmap: "Heatmap", *, crop_to_bounds: bool) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Outline the foci of the tumour, the largest first, then what is unknown, and then all tissue."""
    bounds = heatmap.slide.bounds_px if crop_to_bounds else None
    corner = (-bounds[0], -bounds[1]) if bounds else (0, 0)
    tumor = heatmap.tumor
    foci, labels = labelled_outlines(tumor, heatmap.cell_level0, corner)
    numbers = labels[tumor]
    means = np.bincount(numbers, heatmap.probabilities[tumor]) / np.maximum(np.bincount(numbers), 1)
    del labels, numbers, tumor  # the tissue is outlined next
    name, stated = f"tumor p>={heatmap.threshold:.2f}", _stated(heatmap)
    for number in np.argsort(-shapely.area(foci), kind="stable"):
        parts = [part for part in shapely.get_parts(foci[number]) if part.area > 0]
        if parts:
            mean = {"mean p(tumor)": round(float(means[number + 1]), 4)}
            measured = {**_measured(heatmap, parts), **mean}
            yield parts, {**stated, "name": name, "classification": _TUMOR, "measurements": measured}
    for name, kind, mask in (("unknown", _UNKNOWN, heatmap.unknown), ("tissue", _TISSUE, heatmap.tissue)):
        parts = outlines(mask, heatmap.cell_level0, corner)
        if parts:
            yield parts, {**stated, "name": name, "classification": kind, "measurements": _measured(heatmap, parts)}


def _stated(heatmap: "Heatmap") -> dict[str, Any]:
    """Return what every feature says: that it is QuPath's kind of annotation, and what made it."""
    metadata = {
        "wsiseg": heatmap.version,
        "model": str(heatmap.model.get("name", "")),
        "model_sha256": str(heatmap.model.get("sha256", "")),
        "threshold": f"{heatmap.threshold:g}",
        **({"warning": "; ".join(heatmap.warnings)} if heatmap.warnings else {}),
    }
    return {"objectType": "annotation", "isLocked": True, "metadata": metadata}


def _measured(heatmap: "Heatmap", polygons: list[Any]) -> dict[str, float]:
    """Return the area of polygons, where the size of a pixel is known."""
    mpp = heatmap.slide.mpp
    area = sum(polygon.area for polygon in polygons) * mpp[0] * mpp[1] / 1e6
    return {} if heatmap.slide.mpp_source == ASSUMED else {"area mm2": round(area, 6)}
