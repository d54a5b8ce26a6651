#!/usr/bin/env python3
"""Measure what a model makes of tissue that a scanner changed, and of tissue made foreign.

Slides with truth are changed, written without loss and mapped as `wsiseg predict` maps any slide. Of every pixel that
was changed it is counted what the map says of it: tumour, normal, unknown, or nothing, where the tissue mask left it
out. `SCANNER` leaves tissue what it is: the recall should hold, or the tissue become unknown. What `FOREIGN` makes
should become unknown or be no tissue. Sizes are in level-0 pixels; a resized slide keeps its stated um/px.

Usage: robustness.py COHORT.csv [--truth FOLDER] [--model FILE] [--split val] [--site SITE] [--slides 3]
                     [--tissue auto|none|FOLDER] [--only CHANGE...] [--out FOLDER]
Measures the first tumour slides of every site of the split. Truth lies in `truth` beside the cohort unless named.
Tissue is found as `wsiseg predict` finds it, or is what masks named after the slides say. Prints a Markdown table; with
--out also writes robustness.md and robustness.json.
"""

import argparse
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy import ndimage

from wsiseg.annotations.truth import Reading, open_truth, truth_files
from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.outputs import write_text
from wsiseg.slides.cohort import Cohort, CohortSlide

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Change = Callable[[Picture], Picture]
PartialChange = Callable[[Picture], tuple[Picture, Mask]]

HEMATOXYLIN, EOSIN, DAB = (0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776)
"""Optical density of the dyes in red, green and blue (Ruifrok and Johnston 2001)."""
BLUE_INK = (0.10, 0.25, 0.65)
"""Share of red, green and blue that a marker lets through."""
LABELS = ("nothing", "normal", "tumor", "unknown")


def noisy(picture: Picture) -> Picture:
    """Add Gaussian noise of a deviation of 6 to every value."""
    return _picture(picture + np.random.default_rng(0).normal(0, 6, picture.shape))


def blurred(picture: Picture) -> Picture:
    """Blur with a Gaussian of 2 pixels."""
    return _picture(ndimage.gaussian_filter(picture.astype(np.float32), (2, 2, 0)))


def compressed(picture: Picture) -> Picture:
    """Store as JPEG of quality 30."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=30)
    return np.asarray(Image.open(file))


def saturated(picture: Picture) -> Picture:
    """Raise the saturation by half."""
    return np.asarray(ImageEnhance.Color(Image.fromarray(picture)).enhance(1.5))


def balanced(*gains: float) -> Change:
    """Return the change that multiplies red, green and blue."""
    return lambda picture: _picture(picture * np.array(gains))


def resized(factor: float) -> Change:
    """Return the change that shows everything larger or smaller."""
    return lambda picture: np.asarray(_scaled(Image.fromarray(picture), factor, Image.Resampling.BICUBIC))


def as_ihc(picture: Picture) -> Picture:
    """Recolour: the eosin becomes the brown of DAB."""
    hematoxylin, eosin = _dyes(picture)
    return _stained(hematoxylin[..., None] * HEMATOXYLIN + eosin[..., None] * DAB)


def as_fluorescence(picture: Picture) -> Picture:
    """Show the hematoxylin as the light of DAPI on black."""
    light = _dyes(picture)[0]
    return _picture(255 * (light / np.quantile(light, 0.99))[..., None] * (0.05, 0.15, 1.0))


def as_glass(picture: Picture) -> Picture:
    """Leave nothing but glass."""
    return _picture(np.random.default_rng(0).normal(240, 2, picture.shape))


def penned(picture: Picture) -> tuple[Picture, Mask]:
    """Draw over half of it with a blue marker, in bands of 400 pixels."""
    covered = _bands(picture, 800, 400)
    return _picture(np.where(covered[..., None], picture * np.array(BLUE_INK), picture)), covered


def folded(picture: Picture) -> tuple[Picture, Mask]:
    """Lay the tissue double in bands of 150 pixels."""
    covered = _bands(picture, 600, 150)
    double = _density(picture) + _density(np.roll(picture[:, ::-1], 101, axis=0))
    return np.where(covered[..., None], _stained(double), picture), covered


SCANNER: dict[str, Change] = {
    "as it is": lambda picture: picture,
    "noise of 6": noisy,
    "blur of 2 px": blurred,
    "JPEG 30": compressed,
    "saturation x1.5": saturated,
    "white balance, red x1.08 blue x0.92": balanced(1.08, 1.0, 0.92),
    "white balance, red x0.92 blue x1.08": balanced(0.92, 1.0, 1.08),
    "size x0.8": resized(0.8),
    "size x1.25": resized(1.25),
}
FOREIGN: dict[str, Change | PartialChange] = {
    "IHC (eosin as DAB)": as_ihc,
    "blue pen": penned,
    "fold": folded,
    "glass": as_glass,
    "fluorescence (DAPI)": as_fluorescence,
}


@dataclass(frozen=True)
class Sample:
    """A slide, its level 0 uint8[height, width, 3], its um/px, and bool[height, width], where it is tumour."""

    name: str
    picture: Picture
    mpp: float
    tumor: Mask


def samples(cohort: Path, truth: Path, split: str, count: int, site: str | None = None) -> Iterator[Sample]:
    """Read the first tumour slides of every site of a split, or of one site."""
    chosen: dict[str, list[CohortSlide]] = {}
    for row in Cohort.read(cohort).slides:
        if row.split == split and row.label == 1 and site in {None, row.site}:
            chosen.setdefault(row.site or "", []).append(row)
    truths = truth_files(truth)
    for row in (row for rows in chosen.values() for row in rows[:count]):
        with row.open() as slide:
            width, height = slide.facts.size_px
            area = open_truth(truths[row.slide][0], slide.facts, Reading()).tumor
            tumor = area.covered(np.arange(width + 1.0), np.arange(height + 1.0)) > 0.5  # noqa: PLR2004  half a pixel
            yield Sample(row.slide, slide.read_level(0, (0, 0), (width, height)), slide.facts.mpp[0], tumor)


def measure(
    slides: Sequence[Sample], change: Change | PartialChange, model: str, tissue: str = "auto"
) -> dict[str, Any]:
    """Change slides, map them, with `tissue` as for `wsiseg predict`, and count what the maps say.

    Returns:
        Shares, null where there is nothing to count, of the pixels that were changed: `recall`, of the tumour that was
        judged, that is called tumour; `called`, the same of the other tissue; `unknown`, of what was looked at;
        `unknown_tumor`, of the tumour that was looked at; `normal`, of what was looked at, that is called normal;
        `nothing`, that was not looked at. And `warned`, the share of slides with a warning or a status that is not ok.
    """
    counts = np.zeros((2, len(LABELS)))
    with TemporaryDirectory() as place:
        folder, out = Path(place) / "slides", Path(place) / "maps"
        folder.mkdir()
        changed: dict[str, Mask] = {}
        for slide in slides:
            made = change(slide.picture)
            picture, covered = made if isinstance(made, tuple) else (made, np.ones(made.shape[:2], np.bool_))
            changed[slide.name] = covered
            _write(folder / f"{slide.name}.tiff", picture, slide.mpp)
        run = predict_slides(PredictConfig(inputs=(str(folder),), model=(model,), out=out, tissue=tissue))
        for slide in slides:
            covered, found = changed[slide.name], out / f"{slide.name}.ome.zarr"
            labels = _at_pixels(Heatmap.open(found), covered.shape) if found.exists() else np.zeros(covered.shape, int)
            tumor = _scaled(Image.fromarray(slide.tumor), size=covered.shape[::-1])
            counts += np.bincount((2 * 2 * np.asarray(tumor) + labels)[covered], minlength=8).reshape(2, 4)
    warned = np.mean([bool(record.status != "ok" or record.warnings) for record in run.slides])
    return {**_shares(counts), "warned": round(float(warned), 3)}


def _shares(counts: NDArray[np.float64]) -> dict[str, float | None]:
    """Divide counts [other or tumour, label]."""
    everything, tumor, other = counts.sum(0), counts[1], counts[0]
    return {
        "recall": _share(tumor[2], tumor[1:3]),
        "called": _share(other[2], other[1:3]),
        "unknown": _share(everything[3], everything[1:]),
        "unknown_tumor": _share(tumor[3], tumor[1:]),
        "normal": _share(everything[1], everything[1:]),
        "nothing": _share(everything[0], everything),
    }


def _share(part: float, whole: NDArray[np.float64]) -> float | None:
    return round(float(part / whole.sum()), 3) if whole.sum() else None


def table(found: dict[str, dict[str, Any]]) -> str:
    """Write figures as Markdown."""
    heads = {
        "recall": "recall", "called": "other tissue called tumour", "unknown": "unknown",
        "unknown_tumor": "tumour unknown", "normal": "called normal",
        "nothing": "not looked at", "warned": "slides warned",
    }  # fmt: skip
    rows = [["change", *heads.values()], ["---"] * (len(heads) + 1)]
    rows += [[name, *("-" if one[key] is None else f"{one[key]:.3f}" for key in heads)] for name, one in found.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def main() -> None:
    """Measure all changes."""
    changes = SCANNER | FOREIGN
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--split", default="val")
    parser.add_argument("--site")
    parser.add_argument("--tissue", default="auto")
    parser.add_argument("--slides", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[*changes], choices=[*changes])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    slides = list(
        samples(given.cohort, given.truth or given.cohort.parent / "truth", given.split, given.slides, given.site)
    )
    found = {name: measure(slides, changes[name], given.model, given.tissue) for name in given.only}
    print(table(found))
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        facts = {name: getattr(given, name) for name in ("model", "split", "tissue")}
        facts["slides"] = [slide.name for slide in slides]
        write_text(given.out / "robustness.json", json.dumps({**facts, "changes": found}, indent=1))
        write_text(given.out / "robustness.md", table(found))


def _at_pixels(heatmap: Heatmap, shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return the label of the cell that every pixel lies in: int[height, width]."""
    width, height = heatmap.cell_level0
    rows = np.minimum((np.arange(shape[0]) + 0.5) / height, heatmap.shape[0] - 1).astype(int)
    columns = np.minimum((np.arange(shape[1]) + 0.5) / width, heatmap.shape[1] - 1).astype(int)
    return heatmap.labels[np.ix_(rows, columns)].astype(int)


def _write(path: Path, picture: Picture, mpp: float) -> None:
    """Write a pyramid of two levels without loss."""
    with tifffile.TiffWriter(path) as tiff:
        for step in (1, 4):
            level = np.asarray(Image.fromarray(picture).reduce(step))
            tiff.write(level, tile=(256, 256), photometric="rgb", compression="deflate", resolutionunit="CENTIMETER",
                       resolution=(1e4 / mpp / step,) * 2, subfiletype=int(step > 1))  # fmt: skip


def _scaled(image: Image.Image, factor: float = 1.0, how: Any = Image.Resampling.NEAREST,  # noqa: ANN401  of Pillow
            size: tuple[int, ...] | None = None) -> Image.Image:  # fmt: skip
    width, height = size or (round(image.width * factor), round(image.height * factor))
    return image.resize((width, height), how)


def _bands(picture: Picture, period: int, width: int) -> Mask:
    """Mark diagonal bands: bool[height, width]."""
    y, x = np.ogrid[: picture.shape[0], : picture.shape[1]]
    return (x + y) % period < width


def _density(picture: Picture) -> NDArray[np.float32]:
    """Return the optical density against glass of 245."""
    return -np.log(np.clip(picture.astype(np.float32), 1, 245) / 245)


def _stained(density: NDArray[Any]) -> Picture:
    return _picture(245 * np.exp(-density))


def _dyes(picture: Picture) -> NDArray[np.float32]:
    """Separate hematoxylin and eosin: float32[2, height, width], not negative."""
    both = np.linalg.pinv(np.array([HEMATOXYLIN, EOSIN], np.float32))
    return np.moveaxis(np.maximum(_density(picture) @ both, 0), -1, 0)


def _picture(values: NDArray[Any]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
