"""Heatmaps and outlines made on the spot."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.slides.slide import SlideFacts

Bounds = tuple[int, int, int, int]


def slide_facts(width: int, height: int, mpp: float = 0.5, bounds: Bounds | None = None) -> SlideFacts:
    """Describe a slide that is not there."""
    return SlideFacts("a.svs", "f", (width, height), (mpp, mpp), "user", {}, bounds, "generic", icc_present=False)


def write_map(
    path: Path, values: NDArray[Any], cell_px: float = 10.0, unknown: NDArray[Any] | None = None, **slide: Any
) -> Heatmap:
    """Write a heatmap whose last cells reach a little beyond the slide.

    Args:
        path: The folder to write, which ends in `.ome.zarr`.
        values: [rows, columns], NaN where nobody looked.
        cell_px: Side of a cell in level-0 pixels.
        unknown: bool[rows, columns], the cells that were not judged; none where it is not given.
        **slide: Arguments of `slide_facts` in place of the usual ones.
    """
    rows, columns = values.shape
    size = (round(columns * cell_px - 0.3 * cell_px), round(rows * cell_px - 0.4 * cell_px))
    facts = slide_facts(*slide.pop("size", size), **slide)
    unknown = np.zeros(values.shape, np.bool_) if unknown is None else unknown
    heatmap = Heatmap(values.astype(np.float32), cell_px * facts.mpp[0], facts, unknown=unknown)
    heatmap.save(path)
    return heatmap


def polygon(points: Sequence[tuple[float, float]], name: str = "Tumor") -> dict[str, Any]:
    """Return a GeoJSON feature."""
    ring = [list(point) for point in (*points, points[0])]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}


def box(left: float, top: float, right: float, below: float, name: str = "Tumor") -> dict[str, Any]:
    """Return a rectangle as a GeoJSON feature."""
    return polygon([(left, top), (right, top), (right, below), (left, below)], name)


def write_outlines(path: Path, *features: dict[str, Any]) -> Path:
    """Write a GeoJSON file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def write_run(folder: Path, *, slides: int = 12, skill: float = 0.35, seed: int = 0) -> None:
    """Write maps of a made cohort to `folder/maps`, outlines to `folder/truth`, and `folder/cohort.csv`.

    Every third slide is normal. The first two slides are of the train split and of breast, the next two of val, all
    others of test, where colon joins breast.

    Args:
        folder: Where to write.
        slides: How many.
        skill: How much more probable tumour looks than the rest.
        seed: Of the probabilities.
    """
    rng = np.random.default_rng(seed)
    rows = ["slide,path,case,label,split,site"]
    for number in range(slides):
        values = rng.random((24, 36)) * (1 - skill)
        values[:, :5] = np.nan
        is_tumor = number % 3 != 0
        left, top = 80 + 10 * (number % 4), 50 + 10 * (number % 3)
        if is_tumor:
            values[top // 10 : top // 10 + 8, left // 10 : left // 10 + 12] += skill
        write_map(folder / "maps" / f"slide-{number}.ome.zarr", values)
        outlines = [box(left, top, left + 120, top + 80)] if is_tumor else []
        write_outlines(folder / "truth" / f"slide-{number}.geojson", *outlines)
        split = ("train", "val", "test")[min(number // 2, 2)]
        site = "colon" if number % 2 and split == "test" else "breast"
        rows.append(f"slide-{number},slide-{number}.svs,case-{number},{int(is_tumor)},{split},{site}")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
