#!/usr/bin/env python3
"""Make the example cohort that the package ships, from the test parts of PatchCamelyon and EBHI-Seg alone.

The bundled model has seen none of it. The example has splits of its own: no patch is in two of its slides, and each of
its colon slides is a case.

Usage: make_example.py DATA [OUT]; DATA is what `open_cohort.py` takes. OUT is replaced.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from open_cohort import MadeSlide, Patches, colon_slides, mosaic, write_cohort

OUT = Path(__file__).resolve().parents[1] / "src" / "wsiseg" / "fetch" / "cohort"
SUMS = "SHA256SUMS"
SPLITS = ("train", "train", "train", "val", "val", "test", "test")
LABELS = (1, 1, 0, 1, 0, 1, 0)
CASES = ("2012151", "2110185", "2013942", "2015354", "2100144", "2012481", "2100093")
"""Of EBHI-Seg, for the splits and labels above: with some fields each, and those without tumour of several kinds."""
SHAPE = (9, 12)
SEED = 0
README = """\
# The example cohort of wsiseg

Fourteen small slides with a label each (`cohort.csv`), and where their tumour is (`truth/`): outlines for lymph node,
masks, white on black, for colon. They are for learning how the program is used. `parts.csv` says which published image
lies where.

- `slides/node-*.tiff`: mosaics of patches of lymph node from the test part of PatchCamelyon (Veeling, Linmans,
  Winkens, Cohen, Welling: Rotation Equivariant CNNs for Digital Pathology, MICCAI 2018), which was made from
  CAMELYON16. CC0 1.0. Patches of many glasses lie side by side, of similar stain. A patch is outlined as a whole where
  its middle 32 pixels hold any tumour, as published.
- `slides/colon-*.tiff`: the biopsy fields of one case each, from EBHI-Seg (Shi, Li, Hu, Chen, et al.: EBHI-Seg: A
  novel enteroscope biopsy histopathological hematoxylin and eosin image dataset for image segmentation tasks,
  Frontiers in Medicine 10:1114673, 2023, figshare 21540159). Creative Commons Attribution 4.0,
  https://creativecommons.org/licenses/by/4.0/. Changed: the fields are drawn out to 4:3, lie on made glass, and are
  compressed anew; the masks are those of the adenocarcinomas alone. The pixel size, 1.05 um, is an estimate.

The splits are those of the example: all of it belongs to the test parts of both data sets, and the bundled model has
seen none of it. Slides of lymph node count as a case each, as whose patches are in them is not published.
"""


class Unshared(Patches):
    """Patches that are used once, those of a slide of similar stain."""

    def stain(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Return the mean colour of any patch."""
        color: NDArray[np.float64] = self.colors[int(random.integers(len(self.colors)))]
        return color

    def near(self, stain: NDArray[np.float64], label: int, count: int, random: np.random.Generator) -> list[int]:
        """Draw from the unused patches of a label that are nearest to a colour, twice as many as are needed."""
        there = np.flatnonzero((self.labels == label) & (self.used == 0))
        distance = np.linalg.norm(self.colors[there] - stain, axis=1)
        chosen = random.choice(there[np.argsort(distance, kind="stable")[: 2 * count]], count, replace=False)
        self.used[chosen] = 1
        return [int(k) for k in chosen]


def node(data: Path) -> Iterator[MadeSlide]:
    """Yield mosaics of lymph node."""
    patches = Unshared(data, "test")
    for number, (split, label) in enumerate(zip(SPLITS, LABELS, strict=True), 1):
        yield mosaic(patches, f"node-{number}", split, label, SHAPE, np.random.default_rng([SEED, number]))


def outline(made: MadeSlide, folder: Path) -> None:
    """Write the tumour of a mosaic as outlines in place of a mask."""
    squares = [
        shapely.box(part.x, part.y, part.x + part.width, part.y + part.height)
        for part in made.parts
        if part.kind == "tumor"
    ]
    pieces = shapely.get_parts(shapely.union_all(squares).normalize())
    properties = {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}}
    features = [
        {"type": "Feature", "geometry": shapely.geometry.mapping(piece), "properties": properties} for piece in pieces
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (folder / f"{made.slide}.geojson").write_text(text + "\n")
    (folder / f"{made.slide}.png").unlink()


def colon(data: Path) -> Iterator[MadeSlide]:
    """Yield the chosen cases of colon."""
    made = {one.case: one for one in colon_slides(data, "test") if one.label is not None}
    for number, (case, split, label) in enumerate(zip(CASES, SPLITS, LABELS, strict=True), 1):
        if made[case].label != label:
            raise SystemExit(f"case {case} has another label than {label}")
        yield replace(made[case], slide=f"colon-{number}", split=split)


def main() -> None:
    """Make the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=OUT)
    given = parser.parse_args()
    shutil.rmtree(given.out, ignore_errors=True)
    mosaics = list(node(given.data))
    write_cohort((*mosaics, *colon(given.data)), given.out)
    shutil.rmtree(given.out / "tissue", ignore_errors=True)  # the tissue of small slides is found well enough
    for made in mosaics:
        outline(made, given.out / "truth")
    (given.out / "README.md").write_text(README, encoding="utf-8")
    paths = sorted(path for path in given.out.rglob("*") if path.is_file())
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(given.out).as_posix()}" for path in paths
    ]
    (given.out / SUMS).write_text("".join(f"{line}\n" for line in sums))
    print(len(paths), "files,", sum(path.stat().st_size for path in paths), "bytes, in", given.out)


if __name__ == "__main__":
    main()
