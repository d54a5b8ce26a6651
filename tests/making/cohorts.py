"""A small cohort for tests, for the documentation and for the gate; `PYTHONPATH=tests python -m making.cohorts OUT`."""

import csv
import json
import sys
from pathlib import Path

import numpy as np

from making.slides import write_slide

PINK, PURPLE, GLASS = (222, 172, 204), (96, 44, 124), 242
SPLITS = ("train", "train", "train", "train", "val", "val", "test", "test")


def write_cohort(folder: Path, *, side: int = 672) -> None:
    """Write slides/*.tiff, cohort.csv and truth/*.geojson: every second slide holds a dark square, its tumour.

    Args:
        folder: Where to write.
        side: Width and height of the slides in pixels of 0.5 um.
    """
    rng = np.random.default_rng(0)
    rows = []
    for number, split in enumerate(SPLITS):
        label = number % 2
        name = f"slide-{number}"
        picture = np.full((side, side, 3), GLASS, np.uint8)
        picture[32:-32, 32:-32] = np.clip(rng.normal(PINK, 8, (side - 64, side - 64, 3)), 0, 255)
        corner, size = 32 + 64 * (number // 2), side // 2
        if label:
            dark = rng.normal(PURPLE, 8, (size, size, 3))
            picture[corner : corner + size, corner : corner + size] = np.clip(dark, 0, 255)
        write_slide(folder / "slides" / f"{name}.tiff", picture, compression="jpeg")
        _write_truth(folder / "truth" / f"{name}.geojson", corner, size if label else 0)
        rows.append((name, f"slides/{name}.tiff", f"case-{number}", label, split, "colon"))
    with (folder / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("slide", "path", "case", "label", "split", "site"), *rows])


def _write_truth(path: Path, corner: int, size: int) -> None:
    path.parent.mkdir(exist_ok=True)
    low, high = corner, corner + size
    ring = [[low, low], [high, low], [high, high], [low, high], [low, low]]
    properties = {"objectType": "annotation", "classification": {"name": "Tumor"}}
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature] if size else []}))


if __name__ == "__main__":
    write_cohort(Path(sys.argv[1]))
