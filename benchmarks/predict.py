"""Measure `wsiseg predict --map tile` against another program that gives one value for each tile of a slide.

Both sides run in turn, several times each, on the same slide. The other program is any that prints one line of JSON
with `tiles_per_s`; it is given the slide as its last argument.

    python benchmarks/predict.py big.tiff --against "python baseline.py" --model resnet50-int8.onnx --model default

For each model three speeds are given, in tiles a second: `command`, the whole command from its start to its end with
all outputs; `engine`, from its first tile to its last; `memory`, the same session asked for tiles that lie in memory.
`first_tile_s` is the time from the start of the command to its first tile.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from wsiseg.cli.streams import Streams
from wsiseg.config.predict import PredictConfig
from wsiseg.model_file.model_file import ModelFile, model_path
from wsiseg.prediction.predict import predict_slides
from wsiseg.prediction.windows import BATCH
from wsiseg.slides.slide import Slide

_IN_MEMORY = 16  # batches


class Watch(Streams):
    """Streams that note when tiles are done."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.moments: list[tuple[float, int]] = []

    def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:
        """Note the moment."""
        super().advance(slide, tiles, waited_s)
        if tiles:
            self.moments.append((time.time(), tiles))


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--against", help="command of the other side, given the slide as its last argument")
    parser.add_argument("--model", action="append", default=[], help="a model file, or `default`; may be repeated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tissue", default="auto", help="`none` asks about glass too, as many programs do")
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    models = given.model or ["default"]
    if given.began is not None:
        watched(given.slide, models[0], given.tissue, given.began)
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ("against", *models)}
    for _ in range(given.rounds):
        if given.against:
            found["against"].append({"tiles_per_s": _last_json([*shlex.split(given.against), str(given.slide)])})
        for model in models:
            found[model].append(_round(given.slide, model, given.tissue))
    print(json.dumps(_summary(found, models)))


def _summary(found: dict[str, list[dict[str, float]]], models: list[str]) -> dict[str, Any]:
    middle = {name: {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
              for name, rows in found.items() if rows}  # fmt: skip
    other = middle.get("against", {}).get("tiles_per_s")
    for model in models:
        row = middle[model]
        row["engine_to_memory"] = round(row["engine"] / row["memory"], 3)
        if other:
            row["command_to_other"] = round(row["command"] / other, 2)
    versions = {name: version(name) for name in ("wsiseg", "onnxruntime", "openslide-python", "numpy")}
    return {"medians": middle, "machine": _processor(), "cores": os.cpu_count(),
            "python": platform.python_version(), "versions": versions}  # fmt: skip


def _processor() -> str:
    """Name the processor and the vector instructions that matter here."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    found = {key.strip(): value.split() for key, value in facts.items()}
    known = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if name in found["flags"]]
    return f"{' '.join(found['model name'])} ({', '.join(known)})"


def _round(slide: Path, model: str, tissue: str) -> dict[str, float]:
    """Run the command once, then once more watched from within, then ask its session for tiles in memory."""
    options = ["--model", model, "--tissue", tissue]
    with TemporaryDirectory() as name:
        command = [sys.executable, "-m", "wsiseg", "predict", str(slide), *options, "--map", "tile"]
        began = time.perf_counter()
        done = subprocess.run([*command, "--out", name, "--json"], check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        tiles = json.loads(done.stdout)["slides"][0]["tiles"]
    command = [sys.executable, __file__, str(slide), *options, "--began", str(time.time())]
    inside = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"command": tiles / seconds, **inside, "tiles": tiles}


def _last_json(command: list[str]) -> float:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["tiles_per_s"])


def watched(slide: Path, model: str, tissue: str, began: float) -> None:
    """Predict in this process and print when tiles were done, and how fast tiles in memory are."""
    watch = Watch()
    with TemporaryDirectory() as name, watch:
        settings = {"inputs": (str(slide),), "model": (model,), "tissue": tissue, "map": "tile", "out": Path(name)}
        predict_slides(PredictConfig.checked(**settings), watch)
    (first, begin), (last, _) = watch.moments[0], watch.moments[-1]
    engine = (sum(tiles for _, tiles in watch.moments) - begin) / (last - first)
    memory = _in_memory(slide, model)
    print(json.dumps({"engine": engine, "memory": memory, "first_tile_s": first - began}))


def _in_memory(slide: Path, model: str) -> float:
    """Give the tiles a second of a model's session on batches that lie in memory."""
    with ModelFile.open(model_path(model)) as opened, Slide(slide) as read:
        side, mpp = opened.card.tile_px, opened.card.mpp
        step = int(side * mpp / read.mpp[0])
        tiles = np.stack([read.read(step * k, step * k, (side, side), mpp) for k in range(BATCH)])
        opened.answer(tiles)
        began = time.perf_counter()
        for _ in range(_IN_MEMORY):
            opened.answer(tiles)
        return _IN_MEMORY * BATCH / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
