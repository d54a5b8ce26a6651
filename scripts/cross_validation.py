#!/usr/bin/env python3
"""Cross-validate weak labels patient by patient: a head on frozen features, from labels of mosaics alone.

Every patient is left out once. From the images of the others mosaics of twelve are drawn, a third of them without
tumour, the rest with three to ten images of tumour; each mosaic has one label, and the head is trained on bags of its
tiles (alpha and beta as given). It then scores the tiles of the patient who was left out. The same is done with every
tile's true label. Tiles and images of all patients are pooled for the AUC; the spread is over seeds, the interval over
resampled patients.

LABELS.csv has the columns image, patient and tumor (0 or 1); the images lie beside each other as IMAGE.jpg.

Usage: cross_validation.py IMAGES LABELS.csv WORK --init WEIGHTS.pth [--image-mpp 0.62] [--seeds 3]
Prints one line of JSON.
"""

import argparse
import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsiseg.evaluation.intervals import Resamples
from wsiseg.mathematics import mil
from wsiseg.mathematics.metrics import Pixels, auc, curve
from wsiseg.network.network import build
from wsiseg.run.memory import keep_freed_memory
from wsiseg.training.bags import TileSource
from wsiseg.training.features import Compute, FeatureBank, fill
from wsiseg.training.slides import LabelledSlide, labelled_slides

Features = NDArray[np.float32]
IMAGES_OF_MOSAIC, FEWEST, MOST = 12, 3, 10
RESAMPLES = 1000


@dataclass(frozen=True)
class Image:
    """An image: its patient, its label, and the features of its tiles, float32[tiles, channels]."""

    name: str
    patient: str
    tumor: int
    features: Features


def main() -> None:
    """Cross-validate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("images", "labels", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--arch", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--init", required=True)
    parser.add_argument("--image-mpp", type=float, default=0.62)
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--beta", type=float, default=0.2)
    parser.add_argument("--mosaics", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    keep_freed_memory()
    images = with_features(given)
    found = {
        kind: [scores(images, given, seed, is_supervised=kind == "true tile labels") for seed in range(given.seeds)]
        for kind in ("slide labels", "true tile labels")
    }
    print(json.dumps({"images": len(images), "patients": len({one.patient for one in images}),
                      "tiles": sum(len(one.features) for one in images),
                      **{kind: summary(images, runs) for kind, runs in found.items()}}))  # fmt: skip


def with_features(given: argparse.Namespace) -> list[Image]:
    """Tile the images and compute the features of their tiles once."""
    with given.labels.open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    tiles = given.work / "tiles"
    given.work.mkdir(parents=True, exist_ok=True)
    cohort = given.work / "images.csv"
    with cohort.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("slide", "path", "case", "label", "split", "mpp"))
        writer.writerows((name, (given.images / f"{name}.jpg").resolve(), row["patient"], row["tumor"], "train",
                          given.image_mpp) for name, row in rows.items())  # fmt: skip
    command = ("tile", str(cohort), "--out", str(tiles), "--tissue", "none", "--pixels", "--jobs", "2", "--quiet")
    subprocess.run([sys.executable, "-m", "wsiseg", *command], check=True, stdout=subprocess.DEVNULL)
    compute = Compute(build(given.arch, given.init).eval())
    bank, source = FeatureBank(given.work / "features"), TileSource()
    slides = labelled_slides(tiles / "cohort.csv")
    fill(bank, slides, compute, source, lambda _: None, 0)
    return [_image(slide, rows[slide.slide]["patient"], bank) for slide in slides]


def _image(slide: LabelledSlide, patient: str, bank: FeatureBank) -> Image:
    return Image(slide.slide, patient, slide.label, bank.raw(slide)[0].astype(np.float32))


def scores(images: list[Image], given: argparse.Namespace, seed: int, *, is_supervised: bool) -> dict[str, Features]:
    """Score the tiles of every image by a head that has not seen its patient: logits float32[tiles] by image."""
    found = {}
    for patient in sorted({one.patient for one in images}):
        others = [one for one in images if one.patient != patient]
        stacked = np.concatenate([one.features for one in others])
        mean, std = stacked.mean(0), np.maximum(stacked.std(0), 0.01 * float(stacked.std(0).mean()))
        head = trained(others, (mean, std), given, seed, is_supervised=is_supervised)
        with torch.inference_mode():
            for one in images:
                if one.patient == patient:
                    found[one.name] = head(torch.from_numpy((one.features - mean) / std))[:, 0].numpy()
    return found


def trained(
    images: list[Image],
    standard: tuple[Features, Features],
    given: argparse.Namespace,
    seed: int,
    *,
    is_supervised: bool,
) -> torch.nn.Linear:
    """Train a head on mosaics of images."""
    random = np.random.default_rng([seed, 1])
    torch.manual_seed(seed)
    drawn = [_mosaic(images, int(number % 3 != 0), random) for number in range(given.mosaics)]
    bags = []
    for label, chosen in drawn:
        features = np.concatenate([one.features for one in chosen])
        truth = np.concatenate([np.full(len(one.features), one.tumor, np.int8) for one in chosen])
        bags.append((label, torch.from_numpy((features - standard[0]) / standard[1]), torch.from_numpy(truth)))
    head = torch.nn.Linear(bags[0][1].shape[1], 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=given.lr)
    for _ in range(given.epochs):
        for place in random.permutation(len(bags)):
            label, tiles, truth = bags[place]
            logits = head(tiles)[:, 0]
            labels = truth if is_supervised else mil.proxy_labels(logits, label, given.alpha, given.beta)
            risk = mil.risk(logits, label, labels)
            optimizer.zero_grad()
            risk.backward()
            optimizer.step()
    return head


def _mosaic(images: list[Image], label: int, random: np.random.Generator) -> tuple[int, list[Image]]:
    """Draw the images of a mosaic."""
    pools = [[one for one in images if one.tumor == kind] for kind in (0, 1)]
    tumors = int(random.integers(FEWEST, MOST + 1)) if label else 0
    counts = (IMAGES_OF_MOSAIC - tumors, tumors)
    chosen = [pool[k] for pool, count in zip(pools, counts, strict=True) for k in random.choice(len(pool), count)]
    return label, chosen


def summary(images: list[Image], runs: list[dict[str, Features]]) -> dict[str, Any]:
    """Give the AUC of tiles and of images: mean and deviation over seeds, and the interval over patients."""
    found: dict[str, Any] = {}
    for unit in ("tile", "image"):
        values = [_auc(images, run, unit, np.ones(len(images))) for run in runs]
        weights = Resamples.of([one.patient for one in images], RESAMPLES, 0).weights
        resampled = [_auc(images, runs[0], unit, row) for row in weights]
        low, high = np.nanpercentile(resampled, (2.5, 97.5))
        found[f"{unit}_auc"] = {"mean": round(float(np.mean(values)), 4), "deviation": round(float(np.std(values)), 4),
                                "ci95": [round(float(low), 3), round(float(high), 3)]}  # fmt: skip
    return found


def _auc(images: list[Image], run: dict[str, Features], unit: str, weights: NDArray[np.float64]) -> float:
    pixels = []
    for one, weight in zip(images, weights, strict=True):
        logits = run[one.name] if unit == "tile" else run[one.name].mean(keepdims=True)
        ones = np.full(len(logits), weight)
        probabilities = torch.from_numpy(logits).sigmoid().numpy()
        pixels.append(Pixels.of(probabilities, ones * one.tumor, ones * (1 - one.tumor)))
    return float(auc(curve(pixels)))


if __name__ == "__main__":
    main()
