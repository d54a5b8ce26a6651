"""Draw what viewers show of a map, from the files that they read, for the pages about them; the viewers take no part.

python scripts/viewer_pictures.py SLIDE.tiff MAPS docs/how-to, after wsiseg predict SLIDE.tiff --cells --out MAPS
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wsiseg import Slide

_WIDTH = 640
_COLORS = {"Tumor": (213, 94, 0), "Unknown": (128, 128, 128), "Tissue": (90, 150, 90)}


def qupath(picture: Image.Image, factor: float, maps: Path, name: str) -> Image.Image:
    """Fill detections by their measurement, from blue to orange, and draw the outlines of annotations."""
    shown = picture.convert("RGB")
    draw = ImageDraw.Draw(shown, "RGBA")
    cells = json.loads(gzip.decompress((maps / f"{name}.cells.geojson.gz").read_bytes()))
    for one in cells["features"]:
        p = one["properties"]["measurements"]["p(tumor)"]
        color = (
            np.interp(p, (0, 0.5, 1), (0, 230, 213)),
            np.interp(p, (0, 1), (114, 94)),
            np.interp(p, (0, 1), (178, 0)),
        )
        draw.polygon(_ring(one["geometry"]["coordinates"][0], factor), fill=(*map(round, color), 120))
    for one in json.loads((maps / f"{name}.geojson").read_text())["features"]:
        kind, shape = one["properties"]["classification"]["name"], one["geometry"]
        parts = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
        for ring in (ring for part in parts for ring in part):
            draw.line(_ring(ring, factor), fill=_COLORS[kind], width=2)
    return shown


def napari(picture: Image.Image, um: float, maps: Path, name: str) -> Image.Image:
    """Add the channel in its colour of `omero`, between its limits, to the slide, each value where its cell lies."""
    group = zarr.open_group(maps / f"{name}.ome.zarr", mode="r")
    channel = group.attrs["omero"]["channels"][0]
    values = np.asarray(group["0"])[0] / channel["window"]["end"]
    color = np.array([int(channel["color"][k : k + 2], 16) for k in (0, 2, 4)])
    cells = Image.fromarray((values[..., None] * color).astype(np.uint8))
    scale = group.attrs["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    box = (0, 0, picture.width * um / scale[2], picture.height * um / scale[1])  # the last cells may reach beyond
    layer = cells.resize(picture.size, Image.Resampling.NEAREST, box=box)
    both: NDArray[np.uint16] = np.asarray(picture, np.uint16) // 2 + np.asarray(layer, np.uint16)
    return Image.fromarray(both.clip(0, 255).astype(np.uint8))


def _ring(points: list[list[float]], factor: float) -> list[tuple[float, float]]:
    return [(x * factor, y * factor) for x, y in points]


def main() -> None:
    """Draw both."""
    path, maps, out = map(Path, sys.argv[1:])
    with Slide(path) as slide:
        factor = _WIDTH / slide.size_px[0]
        um = slide.mpp[0] / factor
        picture = Image.fromarray(slide.overview(um).image)
    for viewer, shown in (
        ("qupath", qupath(picture, factor, maps, path.stem)),
        ("napari", napari(picture, um, maps, path.stem)),
    ):
        shown.save(out / f"{viewer}.jpg", quality=80)


if __name__ == "__main__":
    main()
