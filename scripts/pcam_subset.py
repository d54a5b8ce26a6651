#!/usr/bin/env python3
"""Write a part of PatchCamelyon, stored as JPEG patches, in the layout of the official files.

`wsiseg evaluate --pcam OUT` reads what is written. DATA holds `patches.csv` (split,label,name) with `train.zip`,
`valid.zip` and `test.zip`. Rows are written in the order of the table.

Usage: pcam_subset.py DATA OUT [--splits test]
Writes OUT/camelyonpatch_level_2_split_SPLIT_x.h5 and _y.h5.
"""

import argparse
import csv
import io
import zipfile
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from wsiseg.run.outputs import written_whole
from wsiseg.tiles.pcam_files import SIDE_PX, Split, name


def main() -> None:
    """Write the splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--splits", nargs="*", default=["test"], choices=["train", "valid", "test"])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for split in given.splits:
        print(f"{split}: {write_split(given.data, given.out, split)} patches")


def write_split(data: Path, out: Path, split: Split) -> int:
    """Write one split; return the number of its patches."""
    with (data / "patches.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split.replace("valid", "val")]
    with written_whole(out / name(split, "x")) as place, h5py.File(place, "w") as file:
        images = file.create_dataset("x", (len(rows), SIDE_PX, SIDE_PX, 3), np.uint8)
        with zipfile.ZipFile(data / f"{split}.zip") as patches:
            for number, row in enumerate(rows):
                images[number] = Image.open(io.BytesIO(patches.read(row["name"]))).convert("RGB")
    with written_whole(out / name(split, "y")) as place, h5py.File(place, "w") as file:
        file["y"] = np.array([int(row["label"]) for row in rows], np.uint8).reshape(-1, 1, 1, 1)
    return len(rows)


if __name__ == "__main__":
    main()
