"""Outlines of a tumour map as the GeoJSON features that QuPath takes.

Keys: https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html (GeoJSON). One feature a focus,
one for all that is unknown, one for all tissue. Text is made polygon by polygon, so that large files are never held as
a whole.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.dissolved import labelled_outlines, outlines

_TUMOR = {"name": "Tumor", "color": [200, 0, 0]}
_UNKNOWN, _TISSUE = {"name": "Unknown", "color": [128, 128, 128]}, {"name": "Tissue", "color": [0, 114, 178]}


@dataclass(frozen=True)
class Frame:
    """Where the cells of a map lie.

    Attributes:
        cell_px: Width and height of a cell in level-0 pixels.
        corner_px: x and y of the first cell's corner.
        mpp: Micrometers per pixel along x and y; None where nobody knows them.
    """

    cell_px: tuple[float, float]
    corner_px: tuple[float, float]
    mpp: tuple[float, float] | None

    def measured(self, *polygons: Any) -> dict[str, float]:  # noqa: ANN401  shapely polygons
        """Return the area of polygons under the name that it has in the file."""
        if self.mpp is None:
            return {}
        return {"area mm2": round(sum(one.area for one in polygons) * self.mpp[0] * self.mpp[1] / 1e6, 6)}


@dataclass(frozen=True)
class Feature:
    """One GeoJSON feature.

    Attributes:
        properties: What QuPath shows of it.
        polygons: Shapely polygons with corners on whole pixels.
    """

    properties: dict[str, Any]
    polygons: list[Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the feature as GeoJSON."""
        rings = [_rings(polygon) for polygon in self.polygons]
        coordinates = rings[0] if len(rings) == 1 else rings
        geometry = {"type": "Polygon" if len(rings) == 1 else "MultiPolygon", "coordinates": coordinates}
        return {"type": "Feature", "geometry": geometry, "properties": self.properties}

    def text(self) -> Iterator[str]:
        """Return the feature as JSON, polygon by polygon."""
        is_one = len(self.polygons) == 1
        kind = '"Polygon"' if is_one else '"MultiPolygon"'
        yield f'{{"type":"Feature","geometry":{{"type":{kind},"coordinates":' + ("" if is_one else "[")
        for number, polygon in enumerate(self.polygons):
            yield ("," if number else "") + _json(_rings(polygon))
        yield f'{"" if is_one else "]"}}},"properties":{_json(self.properties)}}}'


def collection_text(found: Iterable[Feature]) -> Iterator[str]:
    """Return a FeatureCollection as JSON, piece by piece."""
    yield '{"type":"FeatureCollection","features":['
    for number, feature in enumerate(found):
        if number:
            yield ","
        yield from feature.text()
    yield "]}\n"


def features(
    values: NDArray[np.float32],
    unknown: NDArray[np.bool_],
    threshold: float,
    frame: Frame,
    metadata: dict[str, str],
) -> Iterator[Feature]:
    """Outline the foci of a tumour map, the largest first, then what is unknown, and then all its tissue.

    Args:
        values: float32[rows, columns], probabilities, NaN where nobody looked.
        unknown: bool[rows, columns], the cells that were not judged.
        threshold: A judged cell at or above it is tumour.
        frame: Where the cells lie.
        metadata: What every feature says of its origin.
    """
    seen = ~np.isnan(values)
    tumor = seen & ~unknown & (np.nan_to_num(values, nan=-1.0) >= threshold)
    foci, labels = labelled_outlines(tumor, frame.cell_px, frame.corner_px)
    numbers = labels[tumor]
    means = np.bincount(numbers, values[tumor]) / np.maximum(np.bincount(numbers), 1)
    del labels, numbers, tumor  # the tissue is outlined next
    for number in sorted(range(len(foci)), key=lambda number: -foci[number].area):
        measured = {**frame.measured(foci[number]), "mean p(tumor)": round(float(means[number + 1]), 4)}
        parts = _parts(foci[number])
        if parts:
            yield Feature(_properties(f"tumor p>={threshold:.2f}", _TUMOR, measured, metadata), parts)
    for name, classification, mask in (("unknown", _UNKNOWN, unknown), ("tissue", _TISSUE, seen)):
        found = outlines(mask, frame.cell_px, frame.corner_px)
        if found:
            yield Feature(_properties(name, classification, frame.measured(*found), metadata), found)


def _properties(
    name: str, classification: dict[str, Any], measurements: dict[str, float], metadata: dict[str, str]
) -> dict[str, Any]:
    return {
        "objectType": "annotation",
        "name": name,
        "classification": classification,
        "isLocked": True,
        "measurements": measurements,
        "metadata": metadata,
    }


def _parts(area: Any) -> list[Any]:  # noqa: ANN401  a shapely geometry
    """Return the polygons of an area."""
    import shapely  # noqa: PLC0415  heavy: only where outlines are traced

    return [part for part in shapely.get_parts(area) if part.area > 0]


def _rings(polygon: Any) -> list[list[list[int]]]:  # noqa: ANN401  a shapely polygon
    return [[[int(x), int(y)] for x, y in ring.coords] for ring in (polygon.exterior, *polygon.interiors)]


def _json(value: Any) -> str:  # noqa: ANN401  any JSON value
    return json.dumps(value, separators=(",", ":"))
