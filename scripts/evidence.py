#!/usr/bin/env python3
"""Measure what docs/explanation/evidence.md states, step by step; what is there already is not done again.

- `pcam`: the published test patches that DATA has, native; and by a network trained on the true labels of tiles;
- `colon`: the fields of the test cases, tumour against each other class, and pixel by pixel;
- `laboratories`: images of GlaS and the nine classes of the CRC tiles, which nothing was chosen by;
- `slides`: three slides that the model does not know;
- `robustness`: what scanners' changes and foreign tissue do to test slides (robustness.py);
- `grid`: on each organ the 15 configurations and the true labels of tiles, heads on frozen features;
- `few`: the same head from 5, 10, 20 and 40 training slides of each organ;
- `labels`: the pupil and its head again, with the true labels of tiles in place of what teachers said.

Usage: evidence.py DATA WEIGHTS WORK [--model FILE] [--only STEP...]
DATA is as in open_cohort.py, with `glas`, `crc` and `slides` beside; WORK is where make_model.py
made the model.
Writes WORK/evidence.json and prints it.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import tomli_w
from make_model import (
    ARCH,
    FOLDER,
    PUPIL,
    PUPILS_HEAD,
    PUPILS_STEADY,
    TAUGHT,
    TEACHERS,
    exported,
    of_split,
    run_of,
    state_dict,
    wsiseg,
)
from numpy.typing import NDArray
from open_cohort import ORGANS, TUMOR, table, write_rows
from PIL import Image
from steady_head import steadied

from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.mathematics.metrics import Pixels, auc, curve
from wsiseg.model_file.model_file import ModelFile
from wsiseg.run.outputs import write_text

SCRIPTS = Path(__file__).resolve().parent
UNKNOWN, GLAS_MPP, CRC_MPP = 3, 0.62, 0.5
GLAS_TEST = {"1", "5"}
FOREIGN = {"CMU-1-Small-Region.svs": None, "TCGA-CR-7395-01A-01-TS1.svs": 0.5, "hamamatsu_test3-DAPI-2-387.ndpi": None}
COUNTS, EPOCHS = (5, 10, 20, 40), 20
CHANGED = 8  # tumour slides of each organ
Cells = tuple[NDArray[np.float64], NDArray[np.bool_]]
"""Probabilities of cells that were looked at, float64[n], and which of them are unknown, bool[n]."""


def main() -> None:
    """Measure."""
    steps: dict[str, Callable[[argparse.Namespace], Any]] = {
        "pcam": pcam, "colon": colon, "laboratories": laboratories, "slides": foreign_slides,
        "robustness": robustness, "grid": grid, "few": few_slides, "labels": true_labels,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "weights", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--model", type=Path, default=FOLDER / "default.onnx", help="instead of the bundled one")
    parser.add_argument("--only", nargs="*", default=[*steps], choices=[*steps])
    given = parser.parse_args()
    place = given.work / "evidence.json"
    found = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    for name in given.only:
        if name not in found:
            found[name] = steps[name](given)
            write_text(place, json.dumps(found, indent=1))
            print(name, json.dumps(found[name]), flush=True)


def pcam(given: argparse.Namespace, model: Path | None = None) -> dict[str, Any]:
    """Ask a model for the test patches of PatchCamelyon."""
    model = model or given.model
    out, files = given.work / f"pcam-{model.stem}", given.work / "pcam"
    command = [SCRIPTS / "pcam_subset.py", given.data / "pcam", files, "--splits", "test"]
    subprocess.run([sys.executable, *map(str, command)], check=True)
    wsiseg("evaluate", "--pcam", files, "--model", model, "--split", "test", "--out", out)
    return measures(out)


def measures(out: Path) -> dict[str, Any]:
    """Read the main figures of an evaluation."""
    metrics = json.loads((out / "metrics.json").read_text())
    names = ("without_background", "with_background", "per_site", "unknown_share", "threshold", "judged")
    return {name: metrics[name] for name in names if name in metrics}


def mapped(given: argparse.Namespace, name: str, *inputs: object) -> Path:
    """Map slides with the model; return the folder of maps."""
    out = given.work / f"evidence-{name}"
    wsiseg("predict", *inputs, "--model", given.model, "--out", out)
    return Path(out)


def cells_of(maps: Path, slide: str, part: dict[str, str] | None = None) -> Cells:
    """Read the cells of a map, of a part of the slide whose middles lie in it."""
    heatmap = Heatmap.open(maps / f"{slide}.ome.zarr")
    chosen = heatmap.tissue
    if part is not None:
        width, height = heatmap.cell_level0
        x, y = (np.arange(heatmap.shape[1]) + 0.5) * width, (np.arange(heatmap.shape[0]) + 0.5) * height
        left, top, wide, high = (int(part[key]) for key in ("x", "y", "width", "height"))
        inside = ((y >= top) & (y < top + high))[:, None] & ((x >= left) & (x < left + wide))[None]
        chosen = chosen & inside
    return heatmap.probabilities[chosen].astype(float), heatmap.labels[chosen] == UNKNOWN


def colon(given: argparse.Namespace) -> dict[str, Any]:
    """Tell tumour fields of the test cases from those of each other class, and tumour pixels from others."""
    cohort = given.work / "tiles" / "cohort.csv"
    rows = {row["slide"]: row for row in table(cohort)}
    test_cases = {row["case"] for row in rows.values() if row["split"] == "test" and row["site"] == ORGANS["colon"]}
    fields = table(given.data / "ebhi" / "fields.csv")
    test_cases |= {row["case"] for row in fields if row["split"] == "test"}
    chosen = [row for row in rows.values() if row["case"] in test_cases]
    part = cohort.with_name("colon-test.csv")
    write_rows(part, chosen)
    maps = mapped(given, "colon", part)
    by_class: dict[str, list[Cells]] = {}
    for row in table(given.work / "cohort" / "parts.csv"):
        if row["slide"] in {one["slide"] for one in chosen}:
            by_class.setdefault(row["kind"], []).append(cells_of(maps, row["slide"], row))
    means = {name: [float(cells.mean()) for cells, _ in found if len(cells)] for name, found in by_class.items()}
    others = [kind for kind in means if kind != TUMOR]
    out, truth = given.work / "evidence-colon-figures", given.work / "cohort" / "truth"
    wsiseg("evaluate", maps, "--truth", truth, "--cohort", part, "--split", "test", "--out", out)
    return {
        "pixels": measures(out),
        "fields": {kind: {"auc": of_two(means[TUMOR], means[kind]), "fields": len(means[kind])} for kind in others},
        "cells": {kind: shares(found, given.model) for kind, found in by_class.items()},
    }


def shares(found: list[Cells], model: Path) -> dict[str, Any]:
    """Return of all cells the shares that are unknown, and that are known and called tumour."""
    values, unknown = (np.concatenate([one[place] for one in found]) for place in (0, 1))
    with ModelFile.open(model) as opened:
        tumor = values >= opened.card.threshold
    return {
        "cells": len(values),
        "unknown": round(float(unknown.mean()), 4),
        "known_called_tumor": round(float((tumor & ~unknown).mean()), 4),
        "called_tumor": round(float(tumor.mean()), 4),
        "mean_probability": round(float(values.mean()), 4),
    }


def of_two(positive: list[float], negative: list[float]) -> float:
    """Return the AUC of two kinds of values."""
    values = np.array([*positive, *negative], np.float32)
    labels = np.array([1.0] * len(positive) + [0.0] * len(negative))
    return round(float(auc(curve([Pixels.of(values, labels, 1 - labels)]))), 4)


def laboratories(given: argparse.Namespace) -> dict[str, Any]:
    """Map the images of GlaS, and ask for the tiles of CRC."""
    folder = given.work / "glas"
    folder.mkdir(exist_ok=True)
    images = table(given.data / "glas" / "labels.csv")
    for row in images:
        pixels = np.asarray(Image.open(given.data / "glas" / "images" / f"{row['image']}.jpg").convert("RGB"))
        tifffile.imwrite(folder / f"{row['image']}.tiff", pixels, tile=(256, 256), photometric="rgb",
                         resolution=(1e4 / GLAS_MPP,) * 2, resolutionunit="CENTIMETER")  # fmt: skip
    maps = mapped(given, "glas", folder)
    names = [row["image"] for row in images if (maps / f"{row['image']}.ome.zarr").is_dir()]
    cells = {name: cells_of(maps, name) for name in names}
    found = {}
    for name, patients in (("patients 1 and 5", GLAS_TEST), ("all", {row["patient"] for row in images})):
        own = [row for row in images if row["patient"] in patients and row["image"] in cells]
        kinds = [[cells[row["image"]] for row in own if int(row["tumor"]) == kind] for kind in (0, 1)]
        normal, tumor = ([float(value) for one in kind for value in one[0]] for kind in kinds)
        means = [[float(one[0].mean()) for one in kind] for kind in kinds]
        known = [[float(value) for one in kind for value in one[0][~one[1]]] for kind in kinds]
        found[name] = {
            "images": len(own), "auc_cells": of_two(tumor, normal), "auc_images": of_two(means[1], means[0]),
            "auc_known_cells": of_two(known[1], known[0]) if all(known) else None,
            "normal": shares(kinds[0], given.model), "tumor": shares(kinds[1], given.model),
        }  # fmt: skip
    return {"glas": found, "crc": crc(given)}


def crc(given: argparse.Namespace) -> dict[str, Any]:
    """Ask for the middle of every CRC tile."""
    found: dict[str, Cells] = {}
    with ModelFile.open(given.model) as model:
        side = model.card.tile_px
        for folder in sorted(path for path in (given.data / "crc").iterdir() if path.is_dir()):
            tiles = np.stack([middle(path, CRC_MPP / model.card.mpp, side) for path in sorted(folder.iterdir())])
            answer = model.answer(tiles)
            limit = np.inf if model.limit is None else model.limit
            distances = answer.distances
            unknown = np.zeros(len(tiles), bool) if distances is None else distances > limit
            found[folder.name] = (answer.probabilities.astype(float), unknown)
    others = [value for name, one in found.items() if name != "TUM" for value in one[0]]
    return {
        "auc": of_two(list(found["TUM"][0]), others),
        "classes": {name: shares([one], given.model) for name, one in found.items()},
    }


def middle(path: Path, factor: float, side: int) -> NDArray[np.uint8]:
    """Resize an image and return its middle."""
    image = Image.open(path).convert("RGB")
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)))


def foreign_slides(given: argparse.Namespace) -> dict[str, Any]:
    """Map slides that the model does not know."""
    found = {}
    for name, mpp in FOREIGN.items():
        given_mpp = () if mpp is None else ("--slide-mpp", mpp)
        maps = mapped(given, Path(name).stem, given.data / "slides" / name, *given_mpp)
        record = json.loads((maps / "run.json").read_text())["slides"][0]
        keys = ("status", "tissue_mm2", "tumor_share", "unknown_mm2", "unknown_share", "warnings")
        found[name] = {key: record[key] for key in keys if key in record}
    return found


def robustness(given: argparse.Namespace) -> dict[str, Any]:
    """Change test slides."""
    out = given.work / "robustness"
    cohort, truth = given.work / "tiles" / "cohort.csv", given.work / "cohort" / "truth"
    command: list[object] = [SCRIPTS / "robustness.py", cohort, "--truth", truth]
    command += ["--model", given.model, "--split", "test", "--slides", CHANGED, "--out", out]
    subprocess.run([sys.executable, *map(str, command)], check=True)
    return dict(json.loads((out / "robustness.json").read_text()))


def organs(given: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Yield the cohort of each organ."""
    cohort = given.work / "tiles" / "cohort.csv"
    for name, site in ORGANS.items():
        part = cohort.with_name(f"{name}.csv")
        write_rows(part, [row for row in table(cohort) if row["site"] == site and row["label"]])
        yield name, part


def heads(given: argparse.Namespace, cohort: Path, out: Path, *options: object, epochs: int = EPOCHS) -> dict[str, Any]:
    """Train heads on the features that the model's own head was trained on; return the figures of the best."""
    out.mkdir(exist_ok=True)
    if not (out / "features").exists() and (features := given.work / "colon" / "head" / "features").is_dir():
        (out / "features").symlink_to(features.resolve())
    settings = given.work / f"{out.name}.toml"
    settings.write_text(tomli_w.dumps({**TEACHERS["colon"].head, "epochs": epochs}))
    weights, truth = state_dict(given.weights, given.work), given.work / "cohort" / "truth"
    command = ["train", cohort, *ARCH, "--init", weights, "--freeze", "--truth", truth, "--config", settings, *options]
    print("$ wsiseg", *command, "--out", out, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "wsiseg", *map(str, command), "--out", str(out), "--json"],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    best: dict[str, Any] = json.loads(done.stdout)["best"]
    return best


def grid(given: argparse.Namespace) -> dict[str, list[dict[str, str]]]:
    """Train the benchmark on each organ; return its tables."""
    found = {}
    for name, cohort in organs(given):
        out = given.work / f"grid-{name}"
        heads(given, cohort, out, "--grid", "--supervised")
        found[name] = [row for row in table(out / "grid.csv") if row["site"] == "all"]
    return found


def few_slides(given: argparse.Namespace) -> dict[str, Any]:
    """Train heads from few slides, a third of them without tumour, for as many steps however few they are."""
    found: dict[str, Any] = {}
    for name, cohort in organs(given):
        rows = table(cohort)
        training = [row for row in rows if row["split"] == "train"]
        by_label = [[row for row in training if int(row["label"]) == label] for label in (0, 1)]
        for count in COUNTS:
            part, out = cohort.with_name(f"{name}-{count}.csv"), given.work / f"few-{name}-{count}"
            chosen = by_label[0][: count // 3] + by_label[1][: count - count // 3]
            write_rows(part, [*chosen, *(row for row in rows if row["split"] != "train")])
            best = heads(given, part, out, *TEACHERS["colon"].shares, epochs=EPOCHS * 100 // count)
            found[f"{name} {count}"] = {split: groups["all"] for split, groups in best["figures"].items()}
    return found


def true_labels(given: argparse.Namespace) -> dict[str, Any]:
    """Train pupil and head on the true labels of tiles, finish as `make_model` does, and ask for the test patches."""
    work, made = given.work / "true-labels", given.work / "cohort"
    work.mkdir(exist_ok=True)
    seen, init = of_split(given.work / "tiles" / "cohort.csv", *TAUGHT), given.work / "colon" / "last" / "best.pt"
    run = run_of(work / "pupil", seen, made, init, PUPIL, "--supervised")
    run = run_of(work / "pupils-head", seen, made, run / "best.pt", PUPILS_HEAD, "--freeze", "--supervised")
    run = steadied(run, seen, work / "steadied", PUPILS_STEADY)
    return {"pcam": pcam(given, exported(run, work / "true-labels.onnx", precision="int8"))}


if __name__ == "__main__":
    main()
