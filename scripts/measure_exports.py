#!/usr/bin/env python3
"""Measure what `wsiseg export` makes of several networks: size, speed and AUC in float32, float16 and int8.

For each network a head is trained on frozen features of a cohort, or a finished run is taken; either is exported three
times. The table that is printed stands in docs/how-to/export.md. Runs and files that are there already are used again,
so that speeds can be measured later, on a machine that does nothing else. All precisions are asked in turns. Each file
is opened in a fresh process without PyTorch, by one thread whose CPU time counts. AUC is over the labels of the slides
of the held-out tiles, as in the model cards.

Usage: measure_exports.py TILES/cohort.csv WORK_FOLDER RUN|ARCH=INIT [RUN|ARCH=INIT...]
where RUN is the folder of a run, and INIT is what `wsiseg train --init` takes, as
`timm:tf_efficientnet_lite0=WEIGHTS.pth resnet50=imagenet`. `none` stands for random weights whose batch-norm statistics
are measured on tiles, as untrained ones would let the activations of a deep network grow without bounds.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from wsiseg.exporting.sample_tiles import Sample, from_cohort
from wsiseg.model_file.model_file import ModelFile
from wsiseg.model_file.onnx_session import has_fast_int8
from wsiseg.run.machine import cores

PRECISIONS = ("fp32", "fp16", "int8")
ROUNDS, TILES, SETTLING_TILES = 6, 16, 64
TILE_PX, MPP = 224, 0.5
OPEN = """
import sys, time
from wsiseg.model_file.model_file import ModelFile
from wsiseg.model_file.onnx_session import runtime
runtime()
began = time.process_time()
with ModelFile.open(sys.argv[1], threads=1):
    print(time.process_time() - began)
assert not {"torch", "onnx"} & set(sys.modules)
"""


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
    parser.add_argument("networks", nargs="+", metavar="RUN|ARCH=INIT")
    given = parser.parse_args()
    sample = from_cohort(given.cohort, TILE_PX, MPP, (SETTLING_TILES, TILES))
    if sample is None:
        raise SystemExit(f"{given.cohort}: there are no tile stores beside it")
    print(f"{processor()}, {cores()} cores, instructions for 8-bit products: {has_fast_int8()}\n")
    print("| network | precision | MB | AUC | mean difference | opens in s | tiles/s | times fp32 |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for network in given.networks:
        arch, _, init = network.partition("=")
        run = given.work / arch.replace(":", "-") if init else Path(network)
        if init:
            start = settled(arch, sample.calibration, run.with_suffix(".init.pt")) if init == "none" else init
            wsiseg("train", given.cohort, "--arch", arch, "--init", start, "--freeze", "--out", run)
        paths = {precision: given.work / f"{run.name}-{precision}.onnx" for precision in PRECISIONS}
        for precision, path in paths.items():
            wsiseg("export", run, "--out", path, "--precision", precision)
        report(arch if init else run.name, sample.held_out, paths)


def settled(arch: str, sample: Sample, path: Path) -> Path:
    """Write seeded random weights whose batch-norm statistics are those of real tiles."""
    import torch  # noqa: PLC0415  heavy: only where there are no weights to start from

    from wsiseg.network.network import build  # noqa: PLC0415  the same

    if path.is_file():
        return path
    torch.manual_seed(0)
    classifier = build(arch, "none").train()
    for layer in classifier.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # the average over all that it sees
    with torch.no_grad():
        for batch in torch.from_numpy(sample.tiles).split(TILES):
            classifier(batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(classifier.backbone.state_dict(), path)
    return path


def report(arch: str, sample: Sample, paths: dict[str, Path]) -> None:
    """Print the rows of one network; all its files are asked in turns."""
    opened = {precision: seconds_to_open(path) for precision, path in paths.items()}
    models = {precision: ModelFile.open(path) for precision, path in paths.items()}
    seconds = dict.fromkeys(models, float("inf"))
    for _ in range(ROUNDS):
        for precision, model in models.items():
            began = time.perf_counter()
            model.answer(sample.tiles)
            # The least of several is what the machine can do when nobody disturbs it.
            seconds[precision] = min(seconds[precision], time.perf_counter() - began)
    for precision, model in models.items():
        row = model.card.parity[-1]
        mean = "" if precision == "fp32" else f"{row.mean_difference:.4f}"
        auc = row.auc if precision != "fp32" else models["int8"].card.parity[-1].auc_reference
        size = paths[precision].stat().st_size / 1e6
        print(
            f"| {arch} | {precision} | {size:.1f} | {auc} | {mean} | {opened[precision]:.2f} "
            f"| {len(sample) / seconds[precision]:.0f} | {seconds['fp32'] / seconds[precision]:.1f} |",
            flush=True,
        )


def seconds_to_open(path: Path) -> float:
    """Open a model file, self-test and all, in fresh processes without PyTorch; give the least CPU time of a thread."""
    command = [sys.executable, "-c", OPEN, str(path)]
    return min(float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) for _ in range(3))


def processor() -> str:
    """Name the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
