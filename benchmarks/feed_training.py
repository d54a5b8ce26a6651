"""Measure how fast `wsiseg train` can feed a network: one of a single layer, against decoding its tiles alone.

The network looks at every 32nd pixel, so that everything but a network is measured: the most tiles a second that any
accelerator can be fed with, though one also turns tiles and changes their colours itself. Beside it all tiles of the
same stores are decoded by libjpeg-turbo into memory that is used again, by as many threads as there are cores. What is
compared runs in turn, `--rounds` times; medians are printed.

    python benchmarks/feed_training.py --old ../wsiseg-of-last-month
    python benchmarks/feed_training.py --unchanged

`whole` are tiles a second of the epochs after the first, `cpu_us` is time of processors a tile over all of the run
beyond its imports, which hardly depends on what else the machine does. Needs the packages of wsiseg[train] and
imagecodecs.
"""

import argparse
import csv
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import local
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
_OF_CHILD = "_WSISEG_FEED_TRAINING"
_KNOWN_TILES = 64  # of each slide, which are looked at in the end

Rates = dict[str, float]


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, help="another checkout of wsiseg to compare with")
    parser.add_argument("--slides", type=int, default=16, help="training slides")
    parser.add_argument("--size", type=int, default=4096, help="side of a slide in pixels, 3072 at least")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--stain-jitter", type=float, default=0.0)
    parser.add_argument("--unchanged", action="store_true", help="turn no tiles and change no colours: the feed alone")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if _OF_CHILD in os.environ:
        print(json.dumps(trained(json.loads(os.environ[_OF_CHILD]))))
        return
    with TemporaryDirectory() as name:
        print(json.dumps(measured(given, Path(name))))


def measured(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything in turn."""
    cohort = _stores(given, folder)
    task = {
        "cohort": str(cohort),
        "epochs": given.epochs,
        "stain_jitter": given.stain_jitter,
        "unchanged": given.unchanged,
    }
    found: dict[str, list[Rates]] = {}
    for number in range(given.rounds):
        for side, decode in _decoders().items():
            found.setdefault(side, []).append(_decoding(cohort.parent, decode))
        for side, root in (("train", ROOT), *((("old", given.old),) if given.old else ())):
            out = str(folder / f"{side}{number}")
            environment = {**os.environ, "PYTHONPATH": str(root / "src"), _OF_CHILD: json.dumps({**task, "out": out})}
            done = subprocess.run([sys.executable, __file__], env=environment, check=True, stdout=subprocess.PIPE)
            found.setdefault(side, []).append(json.loads(done.stdout))
    medians = {
        name: {key: round(statistics.median(row[key] for row in rows), 1) for key in rows[0]}
        for name, rows in found.items()
    }
    versions = {name: version(name) for name in ("wsiseg", "torch", "simplejpeg", "pillow", "imagecodecs")}
    ratios = {name: round(row["whole"] / medians["decoding"]["whole"], 3) for name, row in medians.items()}
    return {"settings": vars(given) | {"old": str(given.old)}, "medians": medians, "to decoding": ratios,
            "cores": os.cpu_count(), "machine": platform.processor() or platform.machine(),
            "python": platform.python_version(), "versions": versions}  # fmt: skip


def _stores(given: argparse.Namespace, folder: Path) -> Path:
    """Make tile stores, with the older checkout where there is one, as both can read those; return their cohort."""
    from made_slides import write_slide  # noqa: PLC0415  beside this file

    slide = write_slide(folder / "slide.tiff", given.size)
    rows = [f"t{number},t{number}.tiff,t{number},{number % 2},train\n" for number in range(given.slides)]
    for number in range(given.slides):
        os.link(slide, folder / f"t{number}.tiff")
    (folder / "cohort.csv").write_text("slide,path,case,label,split\n" + "".join(rows), encoding="utf-8")
    command = [sys.executable, "-m", "wsiseg", "tile", str(folder / "cohort.csv"), "--out", str(folder / "stores"),
               "--pixels", "--tissue", "none", "--quiet"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str((given.old or ROOT) / "src")}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return folder / "stores" / "cohort.csv"


def _decoders() -> dict[str, Callable[[bytes, np.ndarray], object]]:
    """Return two ways to let libjpeg-turbo decode into memory; wsiseg takes the second."""
    from imagecodecs import jpeg8_decode  # noqa: PLC0415  heavy
    from simplejpeg import decode_jpeg  # noqa: PLC0415  heavy

    return {
        "decoding": lambda data, pixels: jpeg8_decode(data, out=pixels),
        "decoding by simplejpeg": lambda data, pixels: decode_jpeg(data, buffer=pixels),
    }


def _decoding(stores: Path, into: Callable[[bytes, np.ndarray], object]) -> Rates:
    """Decode all tiles of the training slides, some that follow each other at a time."""
    import zarr  # noqa: PLC0415  heavy

    mine = local()
    paths = sorted(stores.glob("t*.tiles.zarr"))

    def decode(path: Path) -> int:
        if not hasattr(mine, "pixels"):
            mine.pixels = np.empty((224, 224, 3), np.uint8)
        offsets = np.asarray(zarr.open_array(str(path / "offsets"), mode="r")[:]).tolist()
        chunks = sorted((path / "pixels" / "c").iterdir(), key=lambda one: int(one.name))
        data = b"".join(chunk.read_bytes() for chunk in chunks)
        for begin, end in itertools.pairwise(offsets):
            into(data[begin:end], mine.pixels)
        return len(offsets) - 1

    began, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tiles = sum(pool.map(decode, paths))
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    return {"whole": tiles / seconds, "cpu_us": 1e6 * cpu / tiles}


def trained(task: dict[str, Any]) -> Rates:
    """Train a network of one layer with the checkout that is measured."""
    from wsiseg.config.train import TrainConfig  # noqa: PLC0415  of the checkout that is measured
    from wsiseg.training import bags  # noqa: PLC0415  the same
    from wsiseg.training.train import train  # noqa: PLC0415  the same

    one_layer()
    if task.pop("unchanged"):
        bags.augmented = lambda tiles, *_: tiles  # type: ignore[attr-defined]  # an earlier checkout has another one
    out = Path(task.pop("out"))
    config = TrainConfig.checked(cohort=Path(task.pop("cohort")), out=out, init="none", colors="weights", **task)
    used = time.process_time()
    train(config)
    cpu = time.process_time() - used
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rates = [float(row["tiles_per_s"]) for row in csv.DictReader(file)]
    slides = sum(1 for _ in config.cohort.parent.glob("t*.tiles.zarr"))
    tiles = slides * (config.epochs * config.bag + _KNOWN_TILES)
    return {"whole": statistics.median(rates[1:]), "cpu_us": 1e6 * cpu / tiles}


def one_layer() -> None:
    """Let every network be one of a single layer."""
    from torch import Tensor, nn  # noqa: PLC0415  heavy

    from wsiseg.network import network  # noqa: PLC0415  of the checkout that is measured
    from wsiseg.training import task as module  # noqa: PLC0415  the same

    class OneLayer(network.TileClassifier):
        def normalised(self, images: Tensor) -> Tensor:
            return super().normalised(images[:, ::32, ::32])

    for one in (module, network):  # before and after the training
        setattr(one, "build", lambda *_, **__: OneLayer(nn.Identity(), 3, (0.5,) * 3, (0.25,) * 3))  # noqa: B010  a module


if __name__ == "__main__":
    main()
