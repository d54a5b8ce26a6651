"""A training run for tests of export, made without training."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from wsiseg.config.train import TrainConfig
from wsiseg.network.checkpoint import Checkpoint, ClassFit
from wsiseg.network.known_tissue import Features, KnownTissue
from wsiseg.network.network import TileClassifier, build
from wsiseg.network.stage import Stage, stage_layer
from wsiseg.slides.cohort import Cohort
from wsiseg.tiles.store import TileStore, store_path


def settled(arch: str, tiles: torch.Tensor) -> TileClassifier:
    """Return a seeded network whose statistics are those of some tiles, with logits that spread around zero."""
    torch.manual_seed(0)
    classifier = build(arch, "none", tile_px=tiles.shape[1]).train()
    for layer in classifier.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        classifier(tiles)
        classifier.eval()
        logits = classifier(tiles)
        classifier.head.weight *= 1 / logits.std()
        classifier.head.bias.copy_(-classifier(tiles).mean() + classifier.head.bias)
    return classifier.eval()


def tiles_of(cohort: Path, count: int = 8) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Give tiles of every slide of a tiled cohort."""
    tiles = []
    for slide in Cohort.read(cohort).slides:
        with TileStore(store_path(cohort.parent, slide.slide), slide.path) as store:
            tiles.append(store.read(np.linspace(0, len(store) - 1, count).astype(int)))
    return np.concatenate(tiles)


@torch.no_grad()
def description(classifier: TileClassifier, images: torch.Tensor, layer: str) -> Features:
    """Return the means and deviations of a layer's channels over whole images."""
    with Stage(classifier.backbone, layer) as stage:
        classifier(images)
        return torch.cat([stage.map.mean((2, 3)), stage.map.std((2, 3), correction=0)], 1).numpy()


def known_to(classifier: TileClassifier, cohort: Path) -> KnownTissue | None:
    """Return the tissue of a cohort as a network sees it; every second tile sets the limit."""
    layer = stage_layer(classifier) or ""
    parts = torch.from_numpy(tiles_of(cohort, 64)).split(64) if layer else ()
    features = [description(classifier, part, layer) for part in parts]
    sited = [(("colon", "lung")[place % 2], one) for place, one in enumerate(features)]
    return KnownTissue.of(layer, [(site, one[::2]) for site, one in sited], [(site, one[1::2]) for site, one in sited])


def write_run(folder: Path, cohort: Path, arch: str = "resnet18") -> TileClassifier:
    """Write a run that has ended, as `wsiseg train` would; give its network with the calibration in its head."""
    with TileStore(store_path(cohort.parent, Cohort.read(cohort).slides[0].slide)) as store:
        tile_px, mpp = store.tiles.tile_px, store.tiles.mpp
    classifier = settled(arch, torch.from_numpy(tiles_of(cohort)))
    checkpoint = Checkpoint(
        state_dict=classifier.state_dict(),
        arch=arch,
        tile_px=tile_px,
        mpp=mpp,
        alpha=0.2,
        beta=0.4,
        classes=(ClassFit("tumor", 0.6, 1.25, -0.1),),
        trained_on={
            "cohort": "cohort.csv",
            "train": {"slides": 4},
            "settings": {"out": "/home/me", "teacher": ["/home/me/maps"], "lr": 1e-4},
        },
        figures={"val_slide_auc": 0.75, "val_risk": float("nan")},
        sites=("colon",),
        known_tissue=known_to(classifier, cohort),
    )
    checkpoint.save(folder / "best.pt")
    config = TrainConfig(cohort=cohort, out=folder, arch=arch, init="none", epochs=2)
    (folder / "config.toml").write_text(config.to_toml())
    torch.save({"schema": "wsiseg.training/1", "epoch": 2}, folder / "last.pt")
    with torch.no_grad():
        classifier.head.weight /= 1.25
        classifier.head.bias.copy_(classifier.head.bias / 1.25 - 0.1)
    return classifier
