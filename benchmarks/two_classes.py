#!/usr/bin/env python3
"""Learn adenocarcinoma and polyp of the colon in one network, from what is said of whole slides; measure each by pixel.

Slides are the cases of EBHI-Seg as `scripts/open_cohort.py` makes them (its DATA). Of each it is said how many percent
of the tissue are tumour (adenocarcinoma) and polyp, rounded to whole ones; truth are the outlines of both. A head on
frozen features of EfficientNet-Lite0 is trained, exported, maps the test slides and is evaluated.

Usage: PYTHONPATH=scripts two_classes.py DATA OUT [--init WEIGHTS] [--labels-only]
"""

import argparse
import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from open_cohort import HEIGHT, WIDTH, MadeSlide, colon_slides, write_slide
from PIL import Image

from wsiseg.annotations.coverage import outlines
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.config.export import ExportConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.config.tile import TileConfig
from wsiseg.config.train import TrainConfig
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.exporting.export import export
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.record import Progress
from wsiseg.tiles.tile import tile
from wsiseg.training.train import train

CLASSES = {"tumor": "Adenocarcinoma", "polyp": "Polyp"}
TILE_PX, MPP = 128, 1.05


class Printed(Progress):
    """Prints notes."""

    def note(self, text: str) -> None:
        """Print one."""
        print(text, flush=True)


def main() -> None:
    """Make the slides, go from them to measures, and print the AUC of each class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--init", default="imagenet")
    parser.add_argument("--labels-only", action="store_true", help="say of slides yes or no alone")
    given = parser.parse_args()
    out = given.out
    if not (out / "cohort.csv").exists():
        write_cohort(given.data, out, labels_only=given.labels_only)
    tiles = TileConfig(inputs=(str(out / "cohort.csv"),), out=out / "tiles", tile=TILE_PX, mpp=MPP, pixels=True)
    tile(tiles, Printed())
    cohort = out / "tiles" / "cohort.csv"
    kind = {"arch": "timm:tf_efficientnet_lite0", "init": given.init, "freeze": True, "lr": 1e-3}
    settings = TrainConfig(cohort=cohort, out=out / "run", truth=out / "truth", classes=tuple(CLASSES), **kind)
    train(settings, Printed())
    export(ExportConfig(run=out / "run", out=out / "two.onnx"), Printed())
    test = [row for row in csv.DictReader(cohort.read_text().splitlines()) if row["split"] == "test"]
    slides = tuple(str(out / "slides" / f"{row['slide']}.tiff") for row in test)
    predict_slides(PredictConfig(inputs=slides, model=(str(out / "two.onnx"),), out=out / "maps"))
    report = evaluate(
        EvaluateConfig(
            predictions=(out / "maps",), truth=out / "truth", cohort=cohort, split="test", allow_missing=True,
            out=out / "evaluation",
        )
    )  # fmt: skip
    for name, one in report.per_class.items():
        measures = {kind: one["without_background"][kind] for kind in ("auc", "f1")}
        print(name, one["without_background"]["slides"], "slides", json.dumps(measures), json.dumps(one["slide_auc"]))


def write_cohort(data: Path, out: Path, *, labels_only: bool) -> None:
    """Write slides, their outlines, and what is said of each class."""
    for folder in ("slides", "truth"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    says = "label" if labels_only else "percent"
    rows: list[list[object]] = [["slide", "path", "case", "split", "site", *(f"{name}_{says}" for name in CLASSES)]]
    with zipfile.ZipFile(data / "ebhi" / "fields.zip") as file:
        for one in (slide for split in ("train", "val", "test") for slide in colon_slides(data, split) if slide.split):
            areas = {name: truth_of(one, kind, file) for name, kind in CLASSES.items()}
            write_slide(out / "slides" / f"{one.slide}.tiff", one.pixels, one.mpp)
            features = [feature(name, area) for name, area in areas.items() if area.any()]
            text = json.dumps({"type": "FeatureCollection", "features": features})
            (out / "truth" / f"{one.slide}.geojson").write_text(text)
            shares = [float(area.sum() / one.tissue.sum()) for area in areas.values()]
            told = [int(share > 0) if labels_only else round(100 * max(share, 0.01 * (share > 0))) for share in shares]
            rows.append([one.slide, f"slides/{one.slide}.tiff", one.case, one.split, one.site, *told])
    with (out / "cohort.csv").open("w", newline="") as table:
        csv.writer(table).writerows(rows)


def truth_of(slide: MadeSlide, kind: str, file: zipfile.ZipFile) -> NDArray[np.bool_]:
    """Return what the masks of the fields of a kind outline, bool[height, width]."""
    area = np.zeros(slide.truth.shape, np.bool_)
    for part in slide.parts:
        if part.kind == kind:
            mask = Image.open(io.BytesIO(file.read(f"mask/{part.name}.png"))).convert("L")
            marked = np.asarray(mask.resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)) > 127  # noqa: PLR2004  half
            area[part.y : part.y + HEIGHT, part.x : part.x + WIDTH] = marked
    return area


def feature(name: str, area: NDArray[np.bool_]) -> dict[str, object]:
    """Return an area as an annotation of QuPath."""
    geometry = json.loads(shapely.to_geojson(shapely.MultiPolygon(outlines(area, (1.0, 1.0)))))
    properties = {"objectType": "annotation", "classification": {"name": name.capitalize()}}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


if __name__ == "__main__":
    main()
