#!/usr/bin/env python3
"""Measure what a model file can do on tissue that it has not seen, and how much other scanners and stains change it.

- `tiles`: on a folder of tiles with a folder for each class, how well the probability tells one class from all others;
- `stain`: on the tiles of a cohort's split, what random changes of the stains do to the AUC of tiles;
- `um_per_px`: how far maps of the same tissue at other pixel sizes differ;
- `no_tissue`: the highest probability on images of glass, pen and blank background;
- `unknown`: what share of the tissue of slides is unlike that of training, and of what is called tumour in the rest.

Intervals are over resampled tiles, or over resampled slides.

Usage: measure_model.py MODEL.onnx [--tiles FOLDER --class TUM] [--cohort TILES/cohort.csv --truth FOLDER]
                        [--slides SLIDE...] [--slide-mpp SLIDE=0.5]
Prints one line of JSON.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.mathematics.metrics import Pixels, auc, curve
from wsiseg.model_file.model_file import ModelFile
from wsiseg.prediction import predict
from wsiseg.slides.slide import Slide
from wsiseg.training.augment import Changes
from wsiseg.training.slides import LabelledSlide, labelled_slides, tile_truths

Images = NDArray[np.uint8]
Values = NDArray[np.float64]
RESAMPLES, PART_PX = 1000, 3_000
STRENGTHS, SIZES_UM = (0.0, 0.1, 0.2, 0.3), (0.25, 0.5, 0.62)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tiles", type=Path)
    parser.add_argument("--class", dest="positive", default="TUM")
    parser.add_argument("--cohort", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--slides", type=Path, nargs="*", default=[])
    parser.add_argument("--slide-mpp", action="append", default=[], metavar="SLIDE=UM")
    given = parser.parse_args()
    found: dict[str, Any] = {"model": given.model.name}
    with ModelFile.open(given.model) as model:
        found["no_tissue"] = no_tissue(model)
        if given.tiles:
            found["tiles"] = of_tiles(model, given.tiles, given.positive)
        if given.cohort:
            slides = [slide for slide in labelled_slides(given.cohort) if slide.split == given.split]
            found["stain"] = of_stains(model, slides, given.truth)
            found["um_per_px"] = of_pixel_sizes(given.model, [slide for slide in slides if slide.label][:6])
    sizes = dict(text.rsplit("=", 1) for text in given.slide_mpp)
    slides = [*given.slides, *([slide.path for slide in slides] if given.cohort else [])]
    found["unknown"] = {path.name: of_unknown(path, given.model, sizes.get(path.name)) for path in slides}
    print(json.dumps(found))


def of_tiles(model: ModelFile, folder: Path, positive: str) -> dict[str, Any]:
    """Tell one class of tiles from all others."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    by_class = {name: _probabilities(model, _images(folder / name)) for name in classes}
    values = np.concatenate(list(by_class.values()))
    labels = np.concatenate([np.full(len(found), float(name == positive)) for name, found in by_class.items()])
    return {
        "tiles": len(values),
        **_with_interval(values, labels, np.arange(len(values))),
        "mean_probability": {name: round(float(found.mean()), 3) for name, found in by_class.items()},
        "at_threshold": {
            name: round(float((found >= model.card.threshold).mean()), 3) for name, found in by_class.items()
        },
    }


def of_stains(model: ModelFile, slides: list[LabelledSlide], truth: Path) -> dict[str, Any]:
    """Change the stains of tiles at random, alike for all tiles of a slide, and give the AUC of tiles."""
    truths = tile_truths(truth, slides, print)
    found = {}
    for strength in STRENGTHS:
        values, labels, slide_of = [], [], []
        for place, slide in enumerate(slides):
            with slide.open() as store:
                tiles = store.read(np.arange(slide.tiles))
            if strength:
                tiles = restained(tiles, np.random.default_rng(place), strength)
            values.append(_probabilities(model, tiles))
            labels.append(truths[slide.slide].labels.astype(float))
            slide_of.append(np.full(slide.tiles, place))
        together = (np.concatenate(part) for part in (values, labels, slide_of))
        found[f"{strength:g}"] = _with_interval(*together)
    return found


def restained(tiles: Images, random: np.random.Generator, strength: float) -> Images:
    """Change the stains of tiles, of all alike."""
    one, alike = Changes.drawn(1, random, strength), np.zeros(len(tiles), np.int64)
    factors = None if one.factors is None else one.factors[alike]
    changes = Changes(alike, factors, one.offsets[alike], np.array([[1.0, 1.0, 1.0, 0.0]])[alike])
    changed: Images = changes.applied(torch.from_numpy(tiles)).numpy()
    return changed


def of_pixel_sizes(model: Path, slides: list[LabelledSlide]) -> dict[str, Any]:
    """Write the same tissue at several pixel sizes and compare the maps with that of the slide as it is."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for size in SIZES_UM:
            differences, correlations = [], []
            for slide in slides:
                path = Path(folder) / f"{slide.slide}.tiff"
                reference = predict(slide.path, model, tissue="none")
                _write_resampled(slide.path, path, size)
                other = predict(path, model, tissue="none").resample(reference.cell_um)
                one, two = _common(reference, other)
                differences.append(float(np.abs(one - two).mean()))
                correlations.append(float(np.corrcoef(one, two)[0, 1]))
            found[f"{size:g}"] = {"mean_difference": round(float(np.mean(differences)), 4),
                                  "correlation": round(float(np.mean(correlations)), 4)}  # fmt: skip
    return found


def of_unknown(path: Path, model: Path, mpp: str | None) -> dict[str, Any]:
    """Return the shares of the tissue of a slide that are unknown and tumour."""
    heatmap = predict(path, model, slide_mpp=float(mpp) if mpp else None)
    tissue = max(1, int(heatmap.tissue.sum()))
    return {"unknown": round(heatmap.unknown_share or 0, 4), "tumor": round(int(heatmap.tumor.sum()) / tissue, 4)}


def no_tissue(model: ModelFile) -> dict[str, float]:
    """Ask about images that show no tissue."""
    side, random = model.card.tile_px, np.random.default_rng(0)
    glass = random.normal(243, 2, (4, side, side, 3))
    pen = glass.copy()
    for image, color in zip(pen, ((20, 30, 120), (20, 110, 60), (30, 30, 30), (170, 30, 40)), strict=True):
        image[side // 4 : side // 2] = color
    images = {
        "glass": glass,
        "pen": pen,
        "white": np.full((1, side, side, 3), 255),
        "black": np.zeros((1, side, side, 3)),
    }
    return {
        name: round(float(_probabilities(model, np.clip(some, 0, 255).astype(np.uint8)).max()), 4)
        for name, some in images.items()
    }


def _images(folder: Path) -> Images:
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())])


def _probabilities(model: ModelFile, images: Images) -> NDArray[np.float32]:
    return np.concatenate([model.answer(images[k : k + 16]).probabilities for k in range(0, len(images), 16)])


def _with_interval(values: NDArray[np.float32], labels: Values, groups: NDArray[np.int_]) -> dict[str, Any]:
    """Return the AUC, and its interval over resampled groups."""
    random, count = np.random.default_rng(0), int(groups.max()) + 1
    rows = random.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    resampled = [_auc(values, labels, row[groups]) for row in rows]
    low, high = np.nanpercentile(resampled, (2.5, 97.5))
    value = _auc(values, labels, np.ones(len(values)))
    return {"auc": round(value, 4), "ci95": [round(float(low), 3), round(float(high), 3)]}


def _auc(values: NDArray[np.float32], labels: Values, weights: Values) -> float:
    return float(auc(curve([Pixels.of(values, weights * labels, weights * (1 - labels))])))


def _write_resampled(path: Path, out: Path, mpp: float) -> None:
    """Write the upper left part of a slide at another pixel size."""
    with Slide(path) as slide:
        side = [min(PART_PX, int(length * own / mpp)) for length, own in zip(slide.size_px, slide.mpp, strict=True)]
        image = slide.read(0, 0, (side[0], side[1]), mpp)
    tifffile.imwrite(out, image, tile=(256, 256), photometric="rgb", resolution=(1e4 / mpp,) * 2,
                     resolutionunit="CENTIMETER")  # fmt: skip


def _common(one: Heatmap, two: Heatmap) -> tuple[Values, Values]:
    """Return the cells that both maps cover whole."""
    rows, columns = (min(a, b) - 1 for a, b in zip(one.shape, two.shape, strict=True))
    values = [heatmap.probabilities[:rows, :columns].ravel().astype(float) for heatmap in (one, two)]
    both = ~np.isnan(values[0]) & ~np.isnan(values[1])
    return values[0][both], values[1][both]


if __name__ == "__main__":
    main()
