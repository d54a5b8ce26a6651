"""Measure `wsiseg tile`: how long a slide takes without pixels, what jobs bring with them, and how fast bags are read.

Give a large slide, and a folder of several of the same kind.

    python benchmarks/tiling.py big.tiff slides/
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from wsiseg.config.tile import TileConfig
from wsiseg.tiles.store import TileStore, store_path
from wsiseg.tiles.tile import tile

_OF_CHILD = "import resource, sys; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)"


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        figures = {
            "one_slide": _whole_command(args.slide, Path(name)),
            "jobs": _jobs(args.folder, Path(name), args.rounds),
            "bags": _bags(args.slide, Path(name), args.rounds),
        }
    print(json.dumps(figures))


def _whole_command(slide: Path, out: Path) -> dict[str, float]:
    """Time the command without pixels, start-up included, and its peak memory."""
    run = f"import subprocess; subprocess.run([sys.executable, '-m', 'wsiseg', 'tile', {str(slide)!r}, '--out', "
    run += f"{str(out / 'one')!r}], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)"
    began = time.perf_counter()
    code = f"import sys; {run}; {_OF_CHILD}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {"seconds": round(time.perf_counter() - began, 2), "peak_mb": round(int(done.stderr) / 1024)}


def _jobs(folder: Path, out: Path, rounds: int) -> dict[str, float]:
    """Time a folder with pixels, with 1 and 2 jobs in turn, start-up aside."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for jobs, taken in seconds.items():
            settings = TileConfig(inputs=(str(folder),), out=out / "jobs", pixels=True, jobs=jobs, overwrite=True)
            taken.append(_seconds(partial(tile, settings)))
    best = {jobs: min(taken) for jobs, taken in seconds.items()}
    return {"seconds_1": round(best[1], 2), "seconds_2": round(best[2], 2), "ratio": round(best[1] / best[2], 2)}


def _bags(slide: Path, out: Path, rounds: int) -> dict[str, float]:
    """Time random bags of 150 tiles from the store and from the slide, in turn."""
    tile(TileConfig(inputs=(str(slide),), out=out / "bags", pixels=True, jobs=2))
    path, random = store_path(out / "bags", slide.stem), np.random.default_rng(0)
    with TileStore(path) as store:
        tiles = store.tiles
        size = sum(file.stat().st_size for file in (path / "pixels").rglob("*") if file.is_file())
        from_store, from_slide = [], []
        for _ in range(2 * rounds):
            bag = random.choice(len(store), min(150, len(store)), replace=False)
            from_store.append(_seconds(partial(store.read, bag)))
            with TileStore(path, slide) as fresh:
                from_slide.append(_seconds(partial(fresh.read_around, bag, tiles.tile_px)))
    return {
        "ratio": round(statistics.median(from_slide) / statistics.median(from_store), 2),
        "share_of_raw": round(size / (len(tiles) * tiles.tile_px**2 * 3), 3),
    }


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
