#!/usr/bin/env python3
"""Measure what `wsiseg export` makes of several networks: size, speed and AUC in float32, float16 and int8.

For each network a head is trained on frozen features of a cohort, then the run is exported three times. The table that
is printed stands in docs/how-to/export.md. Speeds are of this machine, all precisions asked in turns.

Usage: measure_exports.py TILES/cohort.csv WORK_FOLDER ARCH=INIT [ARCH=INIT...]
where INIT is what `wsiseg train --init` takes, as `timm:tf_efficientnet_lite0=WEIGHTS.pth resnet50=imagenet`.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from wsiseg.exporting.sample_tiles import from_cohort
from wsiseg.model_file import ModelFile

PRECISIONS = ("fp32", "fp16", "int8")


def wsiseg(*arguments: object) -> dict[str, Any]:
    """Run a command of wsiseg; give its result."""
    command = [sys.executable, "-m", "wsiseg", *map(str, arguments), "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("networks", nargs="+", metavar="ARCH=INIT")
    given = parser.parse_args()
    print("| network | precision | MB | tiles/s | times fp32 | AUC | mean difference | opens in s |")
    print("|---|---|---|---|---|---|---|---|")
    for network in given.networks:
        arch, _, init = network.partition("=")
        run = given.work / arch.replace(":", "-")
        wsiseg("train", given.cohort, "--arch", arch, "--init", init, "--freeze", "--out", run)
        paths = {precision: run / f"{precision}.onnx" for precision in PRECISIONS}
        for precision, path in paths.items():
            wsiseg("export", run, "--out", path, "--precision", precision)
        report(arch, given.cohort, paths)


def report(arch: str, cohort: Path, paths: dict[str, Path]) -> None:
    """Print the rows of one network; all its files are asked in turns."""
    models, opened = {}, {}
    for precision, path in paths.items():
        began = time.perf_counter()
        models[precision] = ModelFile.open(path)
        opened[precision] = time.perf_counter() - began
    card = models["fp32"].card
    samples = from_cohort(cohort, card.tile_px, card.mpp, (16, 16))
    if samples is None:
        raise SystemExit(f"{cohort}: no tile stores stand beside it")
    seconds = dict.fromkeys(models, float("inf"))
    for _ in range(6):
        for precision, model in models.items():
            began = time.perf_counter()
            model.probabilities(samples.held_out.tiles)
            # The least of several is what the machine can do when nobody disturbs it.
            seconds[precision] = min(seconds[precision], time.perf_counter() - began)
    for precision, model in models.items():
        row = model.card.parity[-1]
        speed = len(samples.held_out) / seconds[precision]
        mean = "" if precision == "fp32" else f"{row.mean_difference:.4f}"
        auc = row.auc if precision != "fp32" else models["int8"].card.parity[-1].auc_reference
        print(
            f"| {arch} | {precision} | {paths[precision].stat().st_size / 1e6:.1f} | {speed:.0f} "
            f"| {seconds['fp32'] / seconds[precision]:.1f} | {auc} | {mean} | {opened[precision]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
