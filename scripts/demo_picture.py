#!/usr/bin/env python3
"""Draw slides with the outline of their true tumour, each beside its map with the outline of what is called tumour.

Usage: demo_picture.py FOLDER PICTURE.png SLIDE...; in FOLDER lie `slides`, `truth` and `map`.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsiseg import Heatmap
from wsiseg.annotations.truth import Reading, open_truth, truth_files
from wsiseg.pages.pictures import INK, TRUTH, colored, hatch, rim
from wsiseg.slides.slide import Slide

WIDTH, GAP, LINE, COLORS = 620, 10, 3, 256
OPACITY = 0.6
TUMOR_LABEL, UNKNOWN_LABEL, HALF = 2, 3, 0.5

Pixels = NDArray[np.uint8]


def drawn(folder: Path, name: str) -> Image.Image:
    """Return a slide with its truth, and its map beside it."""
    heatmap = Heatmap.open(folder / "map" / f"{name}.ome.zarr")
    with Slide(folder / "slides" / f"{name}.tiff") as slide:
        size = (WIDTH, round(WIDTH * slide.size_px[1] / slide.size_px[0]))
        picture = Image.fromarray(slide.overview(slide.mpp[0]).image).resize(size, Image.Resampling.BOX)
        scale = slide.size_px[0] / WIDTH
    (path,) = truth_files(folder / "truth")[name]
    share, _ = open_truth(path, heatmap.slide, Reading()).covered(*(np.arange(side + 1) * scale for side in size))
    left = np.array(picture)
    left[rim(share >= HALF, LINE)] = TRUTH
    pair = Image.new("RGB", (2 * WIDTH + GAP, size[1]), "white")
    pair.paste(Image.fromarray(left), (0, 0))
    pair.paste(Image.fromarray(mapped(np.array(picture), heatmap, scale)), (WIDTH + GAP, 0))
    return pair


def mapped(pixels: Pixels, heatmap: Heatmap, scale: float) -> Pixels:
    """Lay a map over a slide of which a pixel is `scale` level-0 pixels."""
    rows, columns = (
        (np.arange(side) * scale / cell).astype(int)
        for side, cell in zip(pixels.shape[:2], heatmap.cell_level0[::-1], strict=True)
    )
    there = np.ix_(rows, columns)
    probabilities, labels = heatmap.probabilities[there], heatmap.labels[there]
    looked = labels > 0
    colors = colored(probabilities[looked], heatmap.threshold)
    pixels[looked] = (1 - OPACITY) * pixels[looked] + OPACITY * colors
    hatch(pixels, labels == UNKNOWN_LABEL, 1)
    pixels[rim(labels == TUMOR_LABEL, LINE)] = INK
    return pixels


def main(folder: Path, out: Path, names: list[str]) -> None:
    """Draw slides one below the other."""
    pairs = [drawn(folder, name) for name in names]
    top = 30
    canvas = Image.new("RGB", (2 * WIDTH + GAP, top + sum(pair.height + GAP for pair in pairs)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(18)
    draw.text((0, 4), "the slide; green: its true tumour", fill=INK, font=font)
    draw.text((WIDTH + GAP, 4), "its map, blue normal, orange tumour; black: where it turns", fill=INK, font=font)
    for pair in pairs:
        canvas.paste(pair, (0, top))
        top += pair.height + GAP
    canvas.quantize(COLORS).save(out, optimize=True)
    print(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
