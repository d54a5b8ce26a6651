"""What a Dask cluster costs beside one process, and its scheduler alone.

python benchmarks/cluster.py 40 --size 8192
python benchmarks/cluster.py 40
python benchmarks/cluster.py 18000 --scheduler

The first maps so many slides of made tissue with the bundled model in one process and on local workers in turn, whole
commands with the start of their processes. The second does so with small slides and a colour filter, so that little but
what is paid once is left. The third has workers do nothing with so many made rows, and writes their records.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from made_slides import write_slide

from making.models import write_color_filter_model
from making.predictions import command, write_slides
from wsiseg.model_file.model_file import model_path
from wsiseg.run.cluster import READING, on_cluster
from wsiseg.run.record import Run, RunFile, SlideRecord, now
from wsiseg.slides.cohort_slide import CohortSlide


def nothing(rows: Sequence[CohortSlide]) -> list[SlideRecord]:
    """Return records as those of mapped slides."""
    return [SlideRecord(slide=row.slide, path=str(row.path), status="ok", outputs={"zarr": row.slide}) for row in rows]


def seconds(way: list[str], folder: Path, slides: Path, model: Path) -> float:
    """Map all slides anew and return how long the command took."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    began = time.perf_counter()
    subprocess.run(command(slides, model, folder / "out", *way), check=True, capture_output=True)
    return time.perf_counter() - began


def one_slide(folder: Path, count: int, size: int) -> Path:
    """Make a slide of made tissue, and further names of it."""
    folder.mkdir()
    slide = write_slide(folder / "s0.tiff", size)
    for number in range(1, count):
        os.link(slide, folder / f"s{number}.tiff")
    return folder


def compare(folder: Path, count: int, rounds: int, size: int | None) -> None:
    """Print the seconds of each way and round."""
    if size is None:
        slides, model = (
            write_slides(folder / "slides", count, taller_px=100),
            write_color_filter_model(folder / "m.onnx"),
        )
    else:
        slides, model = one_slide(folder / "slides", count, size), model_path("default")
    ways: dict[str, list[str]] = {"one process": []}
    for way in (("--jobs", "2"), ("--dask", "local:4")):
        ways[" ".join(way)] = [*way]
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            took[name].append(seconds(way, folder, slides, model))
            print(f"{name}: {took[name][-1]:.1f} s", flush=True)
    alone = median(took["one process"])
    for name, values in took.items():
        print(f"median of {name}: {median(values):.1f} s, {median(values) / alone:.2f} of one process")


def schedule(folder: Path, count: int) -> None:
    """Print what handing out so many slides costs."""
    rows = [CohortSlide(f"s{number}", folder / f"s{number}.svs") for number in range(count)]
    began = time.perf_counter()
    with RunFile(folder / "run.json", Run(command="predict", started=now())) as file:
        for number, record in enumerate(on_cluster("local:2", nothing, rows, READING)):
            if not number:
                print(f"first after {time.perf_counter() - began:.1f} s", flush=True)
            file.add(record)
        file.finish()
    print(f"{count} in {time.perf_counter() - began:.1f} s, record {(folder / 'run.json').stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--size", type=int, help="side of slides of made tissue in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scheduler", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if asked.scheduler:
            schedule(Path(name), asked.count)
        else:
            compare(Path(name), asked.count, asked.rounds, asked.size)


if __name__ == "__main__":
    main()
