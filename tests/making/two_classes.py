"""A small cohort of two classes, each of its own colour, for tests."""

import csv
import json
from pathlib import Path

import numpy as np

from making.cohorts import GLASS, PINK, PURPLE, SPLITS
from making.slides import write_slide

WITH_NECROSIS = {2, 3, 5, 6, 7}
SIDE, BEGIN, MIDDLE, END = 576, 32, 288, 544
CLASSES = {"tumor": PURPLE, "necrosis": (176, 96, 170)}


def write_two_classes(folder: Path) -> Path:
    """Write slides, truth and cohort.csv, which states presence of tumour and percentages of necrosis; return that.

    A slide has 2x2 parts of tissue. Every second slide has tumour in the upper left, others or the same have necrosis
    in the lower right.
    """
    random = np.random.default_rng(0)
    rows: list[tuple[str, ...]] = [("slide", "path", "case", "tumor_label", "split", "site", "necrosis_percent")]
    for number, split in enumerate(SPLITS):
        has = {"tumor": number % 2, "necrosis": number in WITH_NECROSIS}
        places = {"tumor": (BEGIN, MIDDLE), "necrosis": (MIDDLE, END)}
        picture = np.full((SIDE, SIDE, 3), GLASS, np.uint8)
        colors = [((BEGIN, END), PINK), *((places[name], color) for name, color in CLASSES.items() if has[name])]
        for (low, high), color in colors:
            picture[low:high, low:high] = np.clip(random.normal(color, 8, (high - low, high - low, 3)), 0, 255)
        name = f"slide-{number}"
        write_slide(folder / "slides" / f"{name}.tiff", picture, compression="jpeg")
        outlines = [outline(kind, *places[kind]) for kind in CLASSES if has[kind]]
        (folder / "truth").mkdir(exist_ok=True)
        text = json.dumps({"type": "FeatureCollection", "features": outlines})
        (folder / "truth" / f"{name}.geojson").write_text(text)
        told = has["tumor"], split, "colon", 25 * has["necrosis"]
        rows.append((name, f"slides/{name}.tiff", f"case-{number}", *map(str, told)))
    with (folder / "cohort.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "cohort.csv"


def outline(kind: str, low: int, high: int) -> dict[str, object]:
    """Return a square of a class as QuPath writes it."""
    ring = [[low, low], [high, low], [high, high], [low, high], [low, low]]
    properties = {"objectType": "annotation", "classification": {"name": kind.capitalize()}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
