#!/usr/bin/env python3
"""Measure everything that docs/explanation/evidence.md states, step by step; what is there already is not done again.

- `grid`: the 15 configurations and the tiles' true labels, heads on frozen features;
- `slides`: the same head (alpha 0.4, beta 0) from fewer training slides, a third of them without tumour;
- `networks`: the head on each further network that is named with --network;
- `model`: the bundled model's recipe, from data to file, mapped by tiles, densely and with overlapping tiles;
- `supervised`: the same network trained by the same recipe on the true labels of tiles, beside the bundled one's,
  both without a penalty for unknown tissue; both densely mapped;
- `folds`: the recipe patient by patient (patient_folds.py);
- `foreign`: what the file says of other tissue, stains and pixel sizes (measure_model.py).

Usage: evidence.py COHORT.csv TRUTH WEIGHTS.pth WORK --images FOLDER --labels LABELS.csv [--tiles FOLDER]
                   [--slides SLIDE...] [--network ARCH=INIT...] [--only STEP...]
Writes WORK/evidence.json and prints it.
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from make_default_model import ARCH, SHARES, TUNING, auc_with_interval, measured, of_split, wsiseg

from wsiseg.run.outputs import write_text

SCRIPTS = Path(__file__).resolve().parent
COUNTS = (10, 20, 40, 60)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cohort", "truth", "weights", "work"):
        parser.add_argument(name, type=Path)
    for name in ("images", "labels"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--tiles", type=Path)
    parser.add_argument("--slides", nargs="*", default=[])
    parser.add_argument("--network", nargs="*", default=[], metavar="ARCH=INIT")
    steps: dict[str, Callable[[argparse.Namespace], Any]] = {
        "grid": grid, "slides": fewer_slides, "networks": networks, "model": model, "supervised": supervised,
        "folds": folds, "foreign": foreign
    }  # fmt: skip
    parser.add_argument("--only", nargs="*", default=[*steps], choices=[*steps])
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    place = given.work / "evidence.json"
    found = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    for name in given.only:
        if name not in found:
            found[name] = steps[name](given)
            write_text(place, json.dumps(found, indent=1))
    print(json.dumps(found))


def tiled(given: argparse.Namespace) -> Path:
    """Tile the cohort, once."""
    wsiseg("tile", given.cohort, "--out", given.work / "tiles", "--pixels", "--jobs", 2)
    return Path(given.work / "tiles" / "cohort.csv")


def grid(given: argparse.Namespace) -> list[dict[str, str]]:
    """Train the benchmark; give its table."""
    out = given.work / "grid"
    wsiseg("train", tiled(given), *ARCH, "--init", given.weights, "--truth", given.truth, "--grid", "--freeze",
           "--supervised", "--out", out)  # fmt: skip
    with (out / "grid.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["site"] == "all"]


def fewer_slides(given: argparse.Namespace) -> dict[str, Any]:
    """Train heads from fewer slides, on the features of the grid."""
    cohort = tiled(given)
    with cohort.open(newline="") as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), reader.fieldnames or []
    training = [row for row in rows if row["split"] == "train"]
    found = {}
    for count in COUNTS:
        part, out = cohort.with_name(f"slides-{count}.csv"), given.work / f"slides-{count}"
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows([*training[:count], *(row for row in rows if row["split"] != "train")])
        out.mkdir(exist_ok=True)
        if not (out / "features").exists() and (given.work / "grid" / "features").is_dir():
            (out / "features").symlink_to((given.work / "grid" / "features").resolve())
        found[str(count)] = figures_of_head(part, given, (*ARCH, "--init", given.weights), out, 20 * 60 // count)
    return found


def figures_of_head(
    cohort: Path, given: argparse.Namespace, network: tuple[object, ...], out: Path, epochs: int = 20
) -> dict[str, Any]:
    """Train a head on frozen features, for as many steps however few slides there are; give its figures by split."""
    command = ("train", cohort, *network, *SHARES, "--truth", given.truth, "--freeze", "--epochs", epochs, "--out", out)
    print("$ wsiseg", *command, flush=True)
    done = subprocess.run([sys.executable, "-m", "wsiseg", *map(str, command), "--json"], check=True,
                          stdout=subprocess.PIPE, text=True)  # fmt: skip
    return {split: groups["all"] for split, groups in json.loads(done.stdout)["best"]["figures"].items()}


def networks(given: argparse.Namespace) -> dict[str, Any]:
    """Train the head on other networks."""
    found = {}
    for network in given.network:
        arch, _, init = network.partition("=")
        out = given.work / f"network-{arch.replace(':', '-')}"
        found[arch] = figures_of_head(tiled(given), given, ("--arch", arch, "--init", init), out)
    return found


def model(given: argparse.Namespace) -> dict[str, Any]:
    """Make the model; give the AUC of its maps on validation and test slides, with intervals."""
    work, out = given.work / "model", given.work / "model.onnx"
    script("make_default_model.py", given.cohort, given.truth, given.weights, work, "--out", out)
    cohort = work / "tiles" / "cohort.csv"
    kinds = {"tile": ("tile",), "dense": ("dense",), "stride 96": ("tile", "--stride", 96)}
    return {
        name: {
            split: auc_with_interval(
                measured(out, cohort, given.truth, kind[0], split, f"-final-{name.replace(' ', '-')}", kind[1:])
            )
            for split in ("val", "test")
        }
        for name, kind in kinds.items()
    }


def supervised(given: argparse.Namespace) -> dict[str, Any]:
    """Train the recipe on the true labels of tiles; give the AUC of dense maps from either kind of label."""
    weak = given.work / "model" / "run"
    if not weak.is_dir():
        raise SystemExit(f"{weak}: missing: do the step `model` first")
    cohort = given.work / "model" / "tiles" / "cohort.csv"
    head, run = given.work / "supervised" / "head", given.work / "supervised" / "run"
    seen = of_split(cohort, "train", "val")
    network = (*ARCH, "--truth", given.truth, "--supervised")
    wsiseg("train", seen, *network, "--init", given.weights, "--freeze", "--out", head)
    wsiseg("train", seen, *network, "--init", head / "best.pt", *TUNING, "--out", run)
    found = {}
    for name, folder in (("slide labels", weak), ("true labels", run)):
        file = given.work / "supervised" / f"{name.replace(' ', '-')}.onnx"
        wsiseg("export", folder, "--out", file, "--overwrite")
        found[name] = {
            split: auc_with_interval(measured(file, cohort, given.truth, "dense", split, f"-from-{file.stem}"))
            for split in ("val", "test")
        }
    return found


def folds(given: argparse.Namespace) -> Any:  # noqa: ANN401  any JSON value
    """Cross-validate the recipe."""
    return script("patient_folds.py", given.images, given.labels, given.weights, given.work / "folds")


def foreign(given: argparse.Namespace) -> Any:  # noqa: ANN401  any JSON value
    """Ask the file about what it has not seen."""
    options = ["--tiles", given.tiles, "--class", "TUM"] if given.tiles else []
    options += ["--cohort", tiled(given), "--truth", given.truth]
    options += ["--slides", *given.slides] if given.slides else []
    return script("measure_model.py", given.work / "model.onnx", *options)


def script(name: str, *arguments: object) -> Any:  # noqa: ANN401  any JSON value
    """Run another script; give the JSON of its last line, if it is any."""
    command = [sys.executable, str(SCRIPTS / name), *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="", flush=True)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    return json.loads(last) if last.startswith("{") else None


if __name__ == "__main__":
    main()
