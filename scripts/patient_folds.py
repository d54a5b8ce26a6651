#!/usr/bin/env python3
"""Cross-validate the recipe of the bundled model patient by patient, in folds, from labels of mosaics alone.

The patients are shared out to folds, each of about as many images. For every fold mosaics of twelve images are drawn
from the patients outside it, a third of them without tumour, the rest with three to ten images of tumour, each with one
label; one patient with images of both kinds is kept for validation. The recipe of make_default_model.py is trained on
them: a head on frozen features, then the fine-tuning. The images of the fold are mapped with the finished file. Cells
and images of all folds together give the AUC; an image's score is its mean cell. The spread is over folds, the interval
over resampled patients. A fold that is there already is not trained again.

LABELS.csv has the columns image, patient and tumor (0 or 1); the images lie beside each other as IMAGE.jpg.

Usage: patient_folds.py IMAGES LABELS.csv WEIGHTS.pth WORK [--image-mpp 0.62] [--folds 3] [--mosaics 40]
                        [--only FOLD...] [--without PATIENT...] [--also MODEL=PATIENT,PATIENT]
Prints one line of JSON.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from make_default_model import ARCH, SHARES, TUNING, wsiseg
from numpy.typing import NDArray
from PIL import Image as Picture

from wsiseg.evaluation.intervals import Resamples
from wsiseg.mathematics.metrics import Pixels, auc, curve
from wsiseg.prediction import predict

COLUMNS, ROWS, GAP_PX, GLASS = 4, 3, 160, 240
FEWEST, MOST, RESAMPLES = 3, 10, 1000


@dataclass(frozen=True)
class Image:
    """An image: its file, its patient and its label."""

    path: Path
    patient: str
    tumor: int


def main() -> None:
    """Cross-validate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "labels", "weights", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--image-mpp", type=float, default=0.62)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--mosaics", type=int, default=40)
    parser.add_argument("--only", type=int, nargs="*", help="these folds alone")
    parser.add_argument("--also", help="a further file, and patients that it has not seen, as one more fold")
    parser.add_argument("--without", nargs="*", default=[], help="patients that do not count in the end")
    given = parser.parse_args()
    with given.labels.open(newline="") as file:
        rows = list(csv.DictReader(file))
    images = [Image(given.images / f"{row['image']}.jpg", row["patient"], int(row["tumor"])) for row in rows]
    found: list[tuple[Image, int, NDArray[np.float32]]] = []
    for fold, patients in enumerate(shared_out(images, given.folds)):
        if given.only is not None and fold not in given.only:
            continue
        held_out = [one for one in images if one.patient in patients]
        model = trained(given, fold, [one for one in images if one.patient not in patients])
        print(f"fold {fold}: patients {', '.join(sorted(patients, key=int))}, {len(held_out)} images", flush=True)
        counted = [one for one in held_out if one.patient not in given.without]
        found += [(one, fold, cells_of(one, model, given.image_mpp)) for one in counted]
    if given.also:
        name, _, patients = given.also.rpartition("=")
        unseen = [one for one in images if one.patient in patients.split(",")]
        found += [(one, given.folds, cells_of(one, Path(name), given.image_mpp)) for one in unseen]
    print(json.dumps(summary(found)))


def shared_out(images: Sequence[Image], folds: int) -> list[set[str]]:
    """Share patients out to folds so that each has about as many images of either kind, the largest first."""
    counts = {patient: np.zeros(2, int) for patient in {one.patient for one in images}}
    for one in images:
        counts[one.patient][one.tumor] += 1
    groups: list[set[str]] = [set() for _ in range(folds)]
    totals = np.zeros((folds, 2))
    whole = np.sum(list(counts.values()), 0)
    for patient in sorted(counts, key=lambda name: (-int(counts[name].max()), name)):
        fullest = [float(((total + counts[patient]) / whole).max()) for total in totals]
        place = int(np.argmin(fullest))
        groups[place].add(patient)
        totals[place] += counts[patient]
    return groups


def trained(given: argparse.Namespace, fold: int, images: Sequence[Image]) -> Path:
    """Train the recipe on the images outside a fold; give the model file."""
    folder = given.work / f"fold-{fold}"
    model = folder / "model.onnx"
    if model.is_file():
        return model
    kinds = {
        patient: {one.tumor for one in images if one.patient == patient} for patient in {i.patient for i in images}
    }
    both = [patient for patient, labels in kinds.items() if labels == {0, 1}]
    watched = min(both, key=lambda name: (sum(one.patient == name for one in images), name))
    splits = {
        "train": [one for one in images if one.patient != watched],
        "val": [one for one in images if one.patient == watched],
    }
    cohort = folder / "cohort.csv"
    if not cohort.is_file():
        counts = {"train": given.mosaics, "val": max(3, given.mosaics // 5)}
        write_cohort(cohort, splits, counts, given.image_mpp)
    tiles, head, run = folder / "tiles", folder / "head", folder / "run"
    wsiseg("tile", cohort, "--out", tiles, "--pixels", "--jobs", 2)
    network = (*ARCH, *SHARES, "--truth", folder / "truth")
    wsiseg("train", tiles / "cohort.csv", *network, "--init", given.weights, "--freeze", "--out", head)
    wsiseg("train", tiles / "cohort.csv", *network, "--init", head / "best.pt", *TUNING, "--out", run)
    wsiseg("export", run, "--out", model, "--overwrite")
    return model


def write_cohort(cohort: Path, splits: dict[str, list[Image]], counts: dict[str, int], mpp: float) -> None:
    """Write the mosaics of each split and their outlines beside a cohort, and that at last."""
    random, folder = np.random.default_rng(0), cohort.parent
    for name in ("slides", "truth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for split, images in splits.items():
        for number in range(counts[split]):
            name, label = f"{split}-{number:03d}", int(number % 3 != 0)
            pixels, outlines = mosaic(images, label, random)
            path = folder / "slides" / f"{name}.tiff"
            tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="deflate",
                             resolution=(1e4 / mpp,) * 2, resolutionunit="CENTIMETER")  # fmt: skip
            text = json.dumps(outlined(outlines))
            (folder / "truth" / f"{name}.geojson").write_text(text, encoding="utf-8")
            rows.append((name, f"slides/{name}.tiff", label, split, "colon"))
    with cohort.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("slide", "path", "label", "split", "site"), *rows])


def mosaic(
    images: Sequence[Image], label: int, random: np.random.Generator
) -> tuple[NDArray[np.uint8], list[tuple[int, int, int, int]]]:
    """Draw a mosaic: its pixels, and left, top, width and height of its images of tumour."""
    tumors = int(random.integers(FEWEST, MOST + 1)) if label else 0
    pools = [[one for one in images if one.tumor == kind] for kind in (0, 1)]
    counts = (COLUMNS * ROWS - tumors, tumors)
    chosen = [pool[k] for pool, count in zip(pools, counts, strict=True) for k in random.choice(len(pool), count)]
    pictures = [np.asarray(Picture.open(one.path).convert("RGB")) for one in chosen]
    height, width = (max(one.shape[axis] for one in pictures) + GAP_PX for axis in (0, 1))
    glass = random.normal(GLASS, 2, (ROWS * height + GAP_PX, COLUMNS * width + GAP_PX, 3))
    pixels, outlines = glass.clip(0, 255).astype(np.uint8), []
    for place, k in enumerate(random.permutation(len(chosen))):
        turned = np.rot90(pictures[k], 2 * int(random.integers(2)))[:, :: 1 - 2 * int(random.integers(2))]
        top, left = GAP_PX + place // COLUMNS * height, GAP_PX + place % COLUMNS * width
        pixels[top : top + turned.shape[0], left : left + turned.shape[1]] = turned
        if chosen[k].tumor:
            outlines.append((left, top, turned.shape[1], turned.shape[0]))
    return pixels, outlines


def outlined(rectangles: Sequence[tuple[int, int, int, int]]) -> dict[str, Any]:
    """Give rectangles of tumour as QuPath writes them."""
    features = []
    for left, top, width, height in rectangles:
        right, bottom = left + width, top + height
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        features.append(
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def cells_of(image: Image, model: Path, mpp: float) -> NDArray[np.float32]:
    """Map an image; give the probabilities of its cells."""
    heatmap = predict(image.path, model, slide_mpp=mpp, tissue="none")
    return heatmap.probabilities[~np.isnan(heatmap.probabilities)]


def summary(found: Sequence[tuple[Image, int, NDArray[np.float32]]]) -> dict[str, Any]:
    """Give the AUC of cells and of images: over all, in each fold, and the interval over patients."""
    everyone = np.ones(len(found))
    weights = Resamples.of([image.patient for image, _, _ in found], RESAMPLES, 0).weights
    result: dict[str, Any] = {"images": len(found), "patients": len({image.patient for image, _, _ in found})}
    for unit in ("cell", "image"):
        folds = [_auc(found, unit, np.array([float(fold == k) for _, fold, _ in found])) for k in folds_of(found)]
        low, high = np.nanpercentile([_auc(found, unit, row) for row in weights], (2.5, 97.5))
        result[f"{unit}_auc"] = {
            "all": round(_auc(found, unit, everyone), 4),
            "folds": [round(value, 4) for value in folds],
            "mean": round(float(np.mean(folds)), 4),
            "deviation": round(float(np.std(folds)), 4),
            "ci95": [round(float(low), 3), round(float(high), 3)],
        }
    return result


def folds_of(found: Sequence[tuple[Image, int, NDArray[np.float32]]]) -> list[int]:
    """List the folds."""
    return sorted({fold for _, fold, _ in found})


def _auc(found: Sequence[tuple[Image, int, NDArray[np.float32]]], unit: str, weights: NDArray[np.float64]) -> float:
    pixels = []
    for (image, _, cells), weight in zip(found, weights, strict=True):
        values = cells if unit == "cell" else cells.mean(keepdims=True)
        ones = np.full(len(values), weight)
        pixels.append(Pixels.of(values, ones * image.tumor, ones * (1 - image.tumor)))
    return float(auc(curve(pixels)))


if __name__ == "__main__":
    main()
