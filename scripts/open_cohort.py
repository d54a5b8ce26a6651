#!/usr/bin/env python3
"""Make cohorts of small whole-slide images from openly licensed tissue: one label a slide, and truth to the pixel.

Lymph node (PatchCamelyon, Veeling et al. 2018, CC0): which slide a patch is of is not published, so that a slide is a
mosaic of patches of 96 px at 0.972 um, edge to edge, of similar stain whatever their label. A tumour slide holds 20
to 80 % patches of tumour, which lie together; a slide without tumour holds none. A patch may be in several slides of
its split, and each slide counts as a case. Truth: a patch is tumour as a whole, where the published label says that its
middle 32 px hold any.

Colon (EBHI-Seg, Shi et al. 2023, CC BY 4.0): a slide is a case, all of its biopsy fields side by side with glass
between them. It is a tumour slide if a field of it is of adenocarcinoma; tumour is what the masks of those fields
outline. The fields are squeezed to squares as published; they are drawn out to 4:3 again, 299 x 224 px, which is about
1.05 um a pixel, an estimate. High-grade neoplasia is neither: its fields are in no slide with a label, but in slides
of their own without label and split. Fields that were stained brown (immunohistochemistry) are left out.

DATA holds `pcam/patches.csv` (split,label,name) with `train.zip`, `valid.zip` and `test.zip` of JPEG patches, and
`ebhi/fields.csv` (name,class,case,split) with `fields.zip` of `image/NAME.jpg` and `mask/NAME.png`.

Usage: open_cohort.py DATA OUT [--organs node colon] [--splits train val test] [--slides 120 30 30] [--seed 0]
Writes OUT/slides/*.tiff, OUT/truth/*.png, OUT/tissue/*.png, OUT/cohort.csv, and OUT/parts.csv: which patch or field
lies where. The masks of tissue are for `wsiseg tile --tissue`: mosaics have no glass to tell pale tissue from.
"""

import argparse
import csv
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
Rows = list[dict[str, str]]
SPLITS = ("train", "val", "test")
ORGANS = {"node": "lymph node", "colon": "colon"}
NODE_MPP, PATCH, COLUMNS, ROWS = 0.972, 96, 24, 16
COLON_MPP, WIDTH, HEIGHT, GAP = 1.05, 299, 224, 80
TUMOR, UNSURE = "Adenocarcinoma", "High-grade IN"
LEAST_TUMOR, MOST_TUMOR, FOCI = 0.2, 0.8, 3
MOST_BROWN = 0.1  # of a field's tissue; two fields have .44 and .82, no other more than .041
LEVELS = 3


@dataclass(frozen=True)
class Part:
    """Where a patch or field lies in a slide, and what it is: `tumor` or `normal`, or the class of a field."""

    name: str
    kind: str
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class MadeSlide:
    """A slide in memory.

    Attributes:
        slide: Its id.
        case: Whose tissue it is.
        label: 1 or 0; None for tissue that counts as neither.
        split: train, val or test; empty without a label.
        site: The organ.
        mpp: Micrometers per pixel.
        pixels: uint8[height, width, 3].
        truth: bool[height, width], True where there is tumour.
        parts: What it is made of.
    """

    slide: str
    case: str
    label: int | None
    split: str
    site: str
    mpp: float
    pixels: Pixels
    truth: NDArray[np.bool_]
    parts: tuple[Part, ...]

    @property
    def tissue(self) -> NDArray[np.bool_]:
        """bool[height, width], True where a patch or field lies."""
        tissue = np.zeros(self.truth.shape, bool)
        for part in self.parts:
            tissue[part.y : part.y + part.height, part.x : part.x + part.width] = True
        return tissue


class Patches:
    """The patches of a split of PatchCamelyon in memory, with their labels, colours and how often each was used."""

    def __init__(self, data: Path, split: str) -> None:
        rows = [row for row in table(data / "pcam" / "patches.csv") if row["split"] == split]
        with zipfile.ZipFile(data / "pcam" / f"{'valid' if split == 'val' else split}.zip") as file:
            self.pixels = np.stack([opened(file.read(row["name"])) for row in rows])
        self.names = [row["name"] for row in rows]
        self.labels = np.array([int(row["label"]) for row in rows])
        self.colors = np.stack([tissue_color(patch) for patch in self.pixels])
        self.used = np.zeros(len(self.labels), int)

    def stain(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Return the mean colour of one of the patches that were used least."""
        color: NDArray[np.float64] = self.colors[int(np.argmin(self.used + random.random(len(self.used))))]
        return color

    def near(self, stain: NDArray[np.float64], label: int, count: int, random: np.random.Generator) -> list[int]:
        """Draw patches of a label whose colour is near `stain`, those first that were used least.

        Drawn without regard to that, unusual patches are hardly ever seen: a head learns .02 less AUC.
        """
        there = np.flatnonzero(self.labels == label)
        distance = np.linalg.norm(self.colors[there] - stain, axis=1)
        nearest = random.permutation(there[np.argsort(distance, kind="stable")[: max(8 * count, 1500)]])
        chosen = nearest[np.argsort(self.used[nearest], kind="stable")[:count]]
        self.used[chosen] += 1
        return [int(k) for k in random.permutation(np.resize(chosen, count))]


def node_slides(data: Path, split: str, count: int, seed: int = 0, shape: tuple[int, int] = (ROWS, COLUMNS)
                ) -> Iterator[MadeSlide]:  # fmt: skip
    """Yield mosaics of lymph node; every third is without tumour.

    Args:
        data: Holds `pcam`.
        split: train, val or test.
        count: How many.
        seed: Of everything random.
        shape: Rows and columns of patches.
    """
    patches = Patches(data, split)
    for number in range(count):
        random = np.random.default_rng([seed, SPLITS.index(split), number])
        yield mosaic(patches, f"node-{split}-{number:03d}", split, int(number % 3 != 0), shape, random)


def mosaic(patches: Patches, name: str, split: str, label: int, shape: tuple[int, int], random: np.random.Generator
           ) -> MadeSlide:  # fmt: skip
    """Lay patches of similar stain side by side, those with tumour around a few places."""
    rows, columns = shape
    cells = rows * columns
    tumor = int(random.integers(max(1, round(LEAST_TUMOR * cells)), round(MOST_TUMOR * cells))) if label else 0
    foci = random.random((int(random.integers(1, FOCI + 1)), 2)) * shape
    place = np.stack(np.divmod(np.arange(cells), columns), 1)
    distance = np.min(((place[:, None] - foci) ** 2).sum(-1), 1) + random.random(cells)
    labels = np.zeros(cells, int)
    labels[np.argsort(distance)[:tumor]] = 1
    stain = patches.stain(random)
    chosen = np.empty(cells, int)
    for kind in (0, 1):
        chosen[labels == kind] = patches.near(stain, kind, int((labels == kind).sum()), random)
    pixels = patches.pixels[chosen].reshape(rows, columns, PATCH, PATCH, 3).swapaxes(1, 2)
    truth = np.kron(labels.reshape(shape), np.ones((PATCH, PATCH), int)).astype(bool)
    parts = [
        Part(patches.names[k], ("normal", "tumor")[kind], int(x) * PATCH, int(y) * PATCH, PATCH, PATCH)
        for k, kind, (y, x) in zip(chosen, labels, place, strict=True)
    ]
    size = (rows * PATCH, columns * PATCH, 3)
    return MadeSlide(name, name, label, split, ORGANS["node"], NODE_MPP, pixels.reshape(size), truth, tuple(parts))


def colon_slides(data: Path, split: str) -> Iterator[MadeSlide]:
    """Yield a slide for each case of a split, and one without label for the high-grade neoplasia of a case."""
    rows = [row for row in table(data / "ebhi" / "fields.csv") if row["split"] == split]
    with zipfile.ZipFile(data / "ebhi" / "fields.zip") as file:
        for case in sorted({row["case"] for row in rows}):
            own = [row for row in rows if row["case"] == case]
            for unsure in (False, True):
                chosen = [row for row in own if (row["class"] == UNSURE) == unsure]
                fields = [(row, *field(file, row["name"])) for row in chosen]
                fields = [one for one in fields if brown_share(one[1]) <= MOST_BROWN]
                if fields:
                    yield side_by_side(case, split, fields, unsure=unsure)


def side_by_side(case: str, split: str, fields: Sequence[tuple[dict[str, str], Pixels, NDArray[np.bool_]]], *,
                 unsure: bool) -> MadeSlide:  # fmt: skip
    """Lay the fields of a case on glass."""
    columns = int(np.ceil(np.sqrt(len(fields))))
    rows = -(-len(fields) // columns)
    shape = (rows * (HEIGHT + GAP) + GAP, columns * (WIDTH + GAP) + GAP)
    random = np.random.default_rng(int(case))
    pixels = random.normal(240, 2, (*shape, 3)).clip(0, 255).astype(np.uint8)
    truth = np.zeros(shape, bool)
    parts = []
    for number, (row, image, mask) in enumerate(fields):
        y, x = GAP + number // columns * (HEIGHT + GAP), GAP + number % columns * (WIDTH + GAP)
        pixels[y : y + HEIGHT, x : x + WIDTH] = image
        truth[y : y + HEIGHT, x : x + WIDTH] = mask & (row["class"] == TUMOR)
        parts.append(Part(row["name"], row["class"], x, y, WIDTH, HEIGHT))
    label = None if unsure else int(any(part.kind == TUMOR for part in parts))
    name = f"colon-{case}-high-grade" if unsure else f"colon-{case}"
    return MadeSlide(
        name, case, label, "" if unsure else split, ORGANS["colon"], COLON_MPP, pixels, truth, tuple(parts)
    )


def field(file: zipfile.ZipFile, name: str) -> tuple[Pixels, NDArray[np.bool_]]:
    """Read a field, uint8[224, 299, 3], and what its mask outlines, bool[224, 299]."""
    image = Image.open(io.BytesIO(file.read(f"image/{name}.jpg"))).convert("RGB")
    mask = Image.open(io.BytesIO(file.read(f"mask/{name}.png"))).convert("L")
    size = (WIDTH, HEIGHT)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC)), np.asarray(
        mask.resize(size, Image.Resampling.NEAREST)
    ) > 127  # noqa: PLR2004  half of 255


def brown_share(image: Pixels) -> float:
    """Return the share of a field's tissue that takes blue out of the light most, as DAB does, and hardly any H&E."""
    density = -np.log((image[::3, ::3].reshape(-1, 3).astype(float) + 1) / 256)
    density = (density - np.percentile(density, 5, axis=0)).clip(0)  # glass may be yellow
    red, green, blue = density.T
    tissue = density.sum(1) > 0.5  # noqa: PLR2004  hardly any colour
    return float((tissue & (blue > green) & (blue > red)).sum() / max(1, tissue.sum()))


def tissue_color(patch: Pixels) -> NDArray[np.float64]:
    """Return the mean red, green and blue of the tissue; of all where there is hardly any."""
    tissue = patch[patch.min(-1) < 215]  # noqa: PLR2004  what is brighter is glass
    mean: NDArray[np.float64] = (tissue if len(tissue) > 500 else patch.reshape(-1, 3)).mean(0)  # noqa: PLR2004
    return mean


def opened(content: bytes) -> Pixels:
    """Decode an image."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def table(path: Path) -> Rows:
    """Read a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Rows) -> None:
    """Write a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_slide(path: Path, pixels: Pixels, mpp: float, quality: int = 90) -> None:
    """Write a tiled pyramid in JPEG."""
    with tifffile.TiffWriter(path) as tiff:
        for level in range(LEVELS):
            height, width = (side // 2 * 2 for side in pixels.shape[:2])
            tiff.write(
                pixels,
                tile=(256, 256),
                compression="jpeg",
                compressionargs={"level": quality},
                photometric="rgb",
                resolution=(1e4 / mpp / 2**level,) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(level > 0),
            )
            halves = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
            pixels = halves.mean((1, 3)).astype(np.uint8)


def write_cohort(slides: Iterable[MadeSlide], out: Path, quality: int = 90, *, tissue: bool = False) -> int:
    """Write slides, their truth, `cohort.csv` and `parts.csv`.

    Args:
        slides: Taken one by one.
        out: Folder, made where it is missing.
        quality: Of the JPEG tiles, to 100.
        tissue: Write masks of where tissue lies too.

    Returns:
        How many slides there are.
    """
    for folder in ("slides", "truth", *(["tissue"] if tissue else [])):
        (out / folder).mkdir(parents=True, exist_ok=True)
    cohort: list[tuple[object, ...]] = [("slide", "path", "case", "label", "split", "site")]
    parts: list[tuple[object, ...]] = [("slide", "name", "kind", "x", "y", "width", "height")]
    for one in slides:
        write_slide(out / "slides" / f"{one.slide}.tiff", one.pixels, one.mpp, quality)
        Image.fromarray(one.truth).save(out / "truth" / f"{one.slide}.png")
        if tissue:
            Image.fromarray(one.tissue).save(out / "tissue" / f"{one.slide}.png")
        label = "" if one.label is None else one.label
        cohort.append((one.slide, f"slides/{one.slide}.tiff", one.case, label, one.split, one.site))
        parts += [(one.slide, *vars(part).values()) for part in one.parts]
    for name, rows in (("cohort.csv", cohort), ("parts.csv", parts)):
        with (out / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return len(cohort) - 1


def open_slides(
    data: Path, organs: Sequence[str], splits: Sequence[str], counts: Sequence[int], seed: int
) -> Iterator[MadeSlide]:
    """Yield the slides of organs and splits; so many mosaics of lymph node in each split."""
    for split, count in zip(splits, counts, strict=False):
        if "node" in organs:
            yield from node_slides(data, split, count, seed)
        if "colon" in organs:
            yield from colon_slides(data, split)


def main() -> None:
    """Make a cohort."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--organs", nargs="+", default=[*ORGANS], choices=[*ORGANS])
    parser.add_argument("--splits", nargs="+", default=[*SPLITS], choices=SPLITS)
    parser.add_argument("--slides", nargs="+", type=int, default=[120, 30, 30], help="of lymph node in each split")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    slides = open_slides(given.data, given.organs, given.splits, given.slides, given.seed)
    print(write_cohort(slides, given.out, tissue=True), "slides in", given.out)


if __name__ == "__main__":
    main()
