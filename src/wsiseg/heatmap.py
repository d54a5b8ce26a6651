"""Heatmaps: tumour probabilities on a grid of cells, in memory and as OME-NGFF on disk.

In memory a cell that was not looked at is NaN. On disk it is 0 with label 0, as the NGFF viewers need it.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.errors import WsisegError
from wsiseg.grid import Grid
from wsiseg.ngff import NgffVersion, open_levels, write_levels
from wsiseg.outlines.dissolved import outlines
from wsiseg.outputs import written_whole
from wsiseg.slide import ASSUMED, SlideFacts


@dataclass(frozen=True)
class Heatmap:
    """Tumour probabilities of one slide.

    Attributes:
        probabilities: float32[rows, columns] in 0..1, NaN where nobody looked.
        cell_um: Side of a square cell in micrometers. Cell (0, 0) begins at the slide's level-0 corner.
        slide: The slide it belongs to.
        threshold: A cell at or above it is tumour.
        model: What made it: name, sha256, mpp and more.
        run: The settings that it was made with.
        version: The version of wsiseg that made it.
    """

    probabilities: NDArray[np.float32]
    cell_um: float
    slide: SlideFacts
    threshold: float = 0.5
    model: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    version: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.probabilities.shape
        return rows, columns

    @property
    def tissue(self) -> NDArray[np.bool_]:
        """bool[rows, columns]: the cells that were looked at."""
        return ~np.isnan(self.probabilities)

    @property
    def tumor(self) -> NDArray[np.bool_]:
        """bool[rows, columns]: the cells at or above the threshold."""
        return np.nan_to_num(self.probabilities, nan=-1.0) >= self.threshold

    @property
    def labels(self) -> NDArray[np.uint8]:
        """uint8[rows, columns]: 0 background, 1 tissue, 2 tumour."""
        return self.tissue.astype(np.uint8) + self.tumor.astype(np.uint8)

    @property
    def cell_level0(self) -> tuple[float, float]:
        """Width and height of a cell in level-0 pixels."""
        return self.cell_um / self.slide.mpp[0], self.cell_um / self.slide.mpp[1]

    @property
    def cell_mm2(self) -> float:
        """Area of a cell in mm2."""
        return (self.cell_um / 1000) ** 2

    @property
    def grid(self) -> Grid:
        """The grid of the cells, one tile a cell."""
        return Grid(self.slide.size_px, self.slide.mpp, 1, 1, self.cell_um)

    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give the level-0 x of the columns' edges [columns + 1] and the y of the rows' edges [rows + 1].

        The outermost edges are those of the slide, so cells that reach beyond it are cut.
        """
        rows, columns = self.shape
        x = np.minimum(np.arange(columns + 1) * self.cell_level0[0], self.slide.size_px[0])
        y = np.minimum(np.arange(rows + 1) * self.cell_level0[1], self.slide.size_px[1])
        return x, y

    def at(self, x: float, y: float) -> float:
        """Give the probability at a level-0 point; NaN where nobody looked or outside the slide."""
        row, column = self.grid.cell_at(x, y)
        inside = 0 <= row < self.shape[0] and 0 <= column < self.shape[1]
        return float(self.probabilities[row, column]) if inside else math.nan

    def resample(self, cell_um: float) -> Self:
        """Give the heatmap on cells of another size; each takes the value at its centre."""
        grid = Grid(self.slide.size_px, self.slide.mpp, 1, 1, cell_um)
        rows, columns = (
            np.minimum(((np.arange(n) + 0.5) * cell_um / self.cell_um).astype(int), m - 1)
            for n, m in zip(grid.shape, self.shape, strict=True)
        )
        return type(self)(
            **{**self._fields(), "probabilities": self.probabilities[np.ix_(rows, columns)], "cell_um": cell_um}
        )

    def with_threshold(self, threshold: float) -> Self:
        """Give the same heatmap with another threshold."""
        return type(self)(**{**self._fields(), "threshold": threshold})

    def _provenance(self) -> dict[str, Any]:
        return {
            "schema": "wsiseg.heatmap/1",
            "version": self.version,
            "cell_um": self.cell_um,
            "threshold": self.threshold,
            "slide": asdict(self.slide),
            "model": self.model,
            "run": self.run,
        }

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def to_geojson(self, threshold: float | None = None, *, crop_to_bounds: bool = True) -> dict[str, Any]:
        """Give dissolved tumour and tissue outlines as a GeoJSON FeatureCollection for QuPath.

        Args:
            threshold: In place of the heatmap's own.
            crop_to_bounds: Count from the corner of the scan's bounds, as QuPath does by default, where the slide has
                bounds; else from the slide's level-0 corner.

        Returns:
            One feature per tumour focus and one MultiPolygon of tissue, coordinates in level-0 pixels.
        """
        heatmap = self if threshold is None else self.with_threshold(threshold)
        return {"type": "FeatureCollection", "features": list(_features(heatmap, crop_to_bounds=crop_to_bounds))}

    def save(self, path: Path | str, ngff: NgffVersion = "0.4") -> None:
        """Write the heatmap as OME-NGFF, whole or not at all.

        Args:
            path: The folder to write, named `<slide>.ome.zarr`.
            ngff: 0.4 (zarr 2; what QuPath and napari open) or 0.5 (zarr 3).

        Raises:
            OutputError: The folder cannot be written.
        """
        with written_whole(Path(path)) as partial:
            write_levels(
                partial,
                np.nan_to_num(self.probabilities, nan=0.0),
                self.labels,
                cell_um=self.cell_um,
                mpp=self.slide.mpp,
                name=f"{self.slide.file} tumour probability",
                own=self._provenance(),
                ngff=ngff,
                is_scaled=self.slide.mpp_source != ASSUMED,
            )

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read a heatmap that `save` wrote.

        Raises:
            WsisegError: There is no heatmap of wsiseg at `path`.
        """
        try:
            values, labels, own = open_levels(Path(path))
            return cls(
                probabilities=np.where(labels > 0, values, np.nan).astype(np.float32),
                cell_um=float(own["cell_um"]),
                slide=SlideFacts.from_json(own["slide"]),
                threshold=float(own["threshold"]),
                model=own["model"],
                run=own["run"],
                version=own["version"],
            )
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise WsisegError(
                f"{path}: not a heatmap of wsiseg: {error}", "give a folder that predict wrote"
            ) from error


def _features(heatmap: Heatmap, *, crop_to_bounds: bool) -> Iterator[dict[str, Any]]:
    bounds = heatmap.slide.bounds_px if crop_to_bounds else None
    shift = (-float(bounds[0]), -float(bounds[1])) if bounds else (0.0, 0.0)
    um2 = heatmap.slide.mpp[0] * heatmap.slide.mpp[1] / 1e6
    metadata = {
        "wsiseg": heatmap.version,
        "model": str(heatmap.model.get("name", "")),
        "model_sha256": str(heatmap.model.get("sha256", "")),
        "threshold": f"{heatmap.threshold:g}",
    }
    for polygon in outlines(heatmap.tumor, heatmap.cell_level0, shift):
        inside = _values_inside(heatmap, polygon, shift)
        yield {
            "type": "Feature",
            "geometry": _geometry([polygon]),
            "properties": {
                "objectType": "annotation",
                "name": f"tumor p>={heatmap.threshold:.2f}",
                "classification": {"name": "Tumor", "color": [200, 0, 0]},
                "isLocked": True,
                "measurements": {"area mm2": round(float(polygon.area) * um2, 6), "mean p(tumor)": round(inside, 4)},
                "metadata": metadata,
            },
        }
    tissue = outlines(heatmap.tissue, heatmap.cell_level0, shift)
    if tissue:
        area = round(float(sum(polygon.area for polygon in tissue)) * um2, 6)
        yield {
            "type": "Feature",
            "geometry": _geometry(tissue),
            "properties": {
                "objectType": "annotation",
                "name": "tissue",
                "classification": {"name": "Tissue", "color": [0, 114, 178]},
                "isLocked": True,
                "measurements": {"area mm2": area},
                "metadata": metadata,
            },
        }


def _values_inside(heatmap: Heatmap, polygon: Any, shift: tuple[float, float]) -> float:  # noqa: ANN401  shapely
    """Give the mean probability of the cells whose centre lies in a polygon."""
    import shapely  # noqa: PLC0415  kept with its only use

    step = heatmap.cell_level0
    left, top, right, below = polygon.bounds
    columns = np.arange(
        max(0, int((left - shift[0]) / step[0])), min(heatmap.shape[1], math.ceil((right - shift[0]) / step[0]))
    )
    rows = np.arange(
        max(0, int((top - shift[1]) / step[1])), min(heatmap.shape[0], math.ceil((below - shift[1]) / step[1]))
    )
    x, y = np.meshgrid((columns + 0.5) * step[0] + shift[0], (rows + 0.5) * step[1] + shift[1])
    inside = shapely.contains_xy(polygon, x, y)
    values = heatmap.probabilities[np.ix_(rows, columns)][inside]
    return float(np.nanmean(values)) if values.size else heatmap.threshold


def _geometry(polygons: list[Any]) -> dict[str, Any]:
    rings = [
        [[[int(x), int(y)] for x, y in ring.coords] for ring in (polygon.exterior, *polygon.interiors)]
        for polygon in polygons
    ]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}
