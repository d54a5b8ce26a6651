#!/usr/bin/env python3
"""Ask what linear heads on the stages of a network can tell of tissue that no slide of the cohort showed.

For each stage a logistic regression is fitted to the true labels of tiles of the cohort's training slides, on the mean
and the deviation of the stage's channels; for the last features on their mean. It is more than slide labels can give.

- `val` and `test`: its AUC over tiles of those splits;
- `tiles`: on a folder of tiles with a folder for each class, how well it tells one class from all others.

Usage: heads_on_stages.py CHECKPOINT.pt TILES/cohort.csv TRUTH_FOLDER LAYER... --tiles FOLDER [--class TUM]
                          [--most 64]
As layers, EfficientNet-Lite0 has blocks.0 to blocks.6. Prints one line of JSON.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from wsiseg.network.network import Checkpoint, TileClassifier, load_classifier
from wsiseg.network.texture import Stage
from wsiseg.training.slides import evenly, labelled_slides, tile_truths

Features = dict[str, NDArray[np.float32]]
LAST, AT_ONCE, STRENGTH = "last", 16, 1e-3


def main() -> None:
    """Ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "cohort", "truth"):
        parser.add_argument(name, type=Path)
    parser.add_argument("layers", nargs="+")
    parser.add_argument("--tiles", type=Path, required=True)
    parser.add_argument("--class", dest="positive", default="TUM")
    parser.add_argument("--most", type=int, default=64, help="tiles of a slide")
    given = parser.parse_args()
    network = load_classifier(Checkpoint.load(given.checkpoint))
    slides = labelled_slides(given.cohort)
    truths = tile_truths(given.truth, slides, print)
    features: dict[str, list[Features]] = {}
    labels: dict[str, list[NDArray[np.bool_]]] = {}
    for slide in slides:
        chosen = evenly(slide.tiles, given.most)
        with slide.open() as store:
            features.setdefault(slide.split, []).append(described(network, store.read(chosen, 2), given.layers))
        labels.setdefault(slide.split, []).append(truths[slide.slide].labels[chosen] > 0)
    for folder in sorted(path for path in given.tiles.iterdir() if path.is_dir()):
        images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())])
        features.setdefault("tiles", []).append(described(network, images, given.layers))
        labels.setdefault("tiles", []).append(np.full(len(images), folder.name == given.positive))
    truth = {name: np.concatenate(parts) for name, parts in labels.items()}
    print(json.dumps({layer: aucs(layer, features, truth) for layer in (*given.layers, LAST)}))


@torch.inference_mode()
def described(network: TileClassifier, tiles: NDArray[np.uint8], layers: Sequence[str]) -> Features:
    """Return the features of tiles by layer, float32[tiles, channels]."""
    parts: dict[str, list[torch.Tensor]] = {layer: [] for layer in (*layers, LAST)}
    with ExitStack() as stack:
        stages = {layer: stack.enter_context(Stage(network.backbone, layer)) for layer in layers}
        for some in torch.from_numpy(tiles).split(AT_ONCE):
            parts[LAST].append(network.features(some))
            for layer, stage in stages.items():
                parts[layer].append(torch.cat([stage.map.mean((2, 3)), stage.map.std((2, 3))], 1))
    return {layer: torch.cat(some).numpy() for layer, some in parts.items()}


def aucs(layer: str, features: dict[str, list[Features]], truth: dict[str, NDArray[np.bool_]]) -> dict[str, float]:
    """Fit a head to the training tiles and measure it elsewhere."""
    seen = {name: np.concatenate([part[layer] for part in parts]) for name, parts in features.items()}
    head = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=300))
    head.fit(seen["train"], truth["train"])
    found = {name: roc_auc_score(truth[name], head.decision_function(seen[name])) for name in ("val", "test", "tiles")}
    return {name: round(float(value), 3) for name, value in found.items()}


if __name__ == "__main__":
    main()
