"""Measure the peak memory of `wsiseg predict` on a small and on a large slide, and print one JSON line.

The model is a colour filter, so that time goes into reading and memory into everything but a network. Slides of any
size can be made of real tissue, repeated; one file each.

Usage: predict_memory.py SMALL.tiff LARGE.tiff [--map dense|tile] [--model MODEL.onnx] [--tissue auto]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

MOST_MB, MOST_MORE_MB = 1200, 150


def main() -> int:
    """Measure both slides; the exit code is 1 where the large one takes too much."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs=2, type=Path, metavar="SLIDE", help="a small and a large slide")
    parser.add_argument("--map", default="dense", choices=["dense", "tile"])
    parser.add_argument("--model", type=Path, help="a colour filter where none is given")
    parser.add_argument("--tissue", default="auto")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or _color_filter(Path(folder) / "colors.onnx")
        options = ["--model", str(model), "--map", given.map, "--tissue", given.tissue]
        found = [_measured(slide, Path(folder) / str(number), options) for number, slide in enumerate(given.slides)]
    more = found[1]["peak_mb"] - found[0]["peak_mb"]
    print(json.dumps({"map": given.map, "model": Path(model).name, "slides": found, "more_mb": round(more, 1)}))
    return int(found[1]["peak_mb"] > MOST_MB or more > MOST_MORE_MB)


def _color_filter(path: Path) -> Path:
    from making.models import write_color_filter_model  # noqa: PLC0415  of the tests, found once the path is set

    return write_color_filter_model(path)


def _measured(slide: Path, out: Path, options: list[str]) -> dict[str, float]:
    """Map a slide in a process of its own: peak memory in MB (10^6 bytes) and seconds."""
    command = [sys.executable, "-m", "wsiseg", "predict", str(slide), "--out", str(out), "--quiet", *options]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{slide}: predict ended with exit code {process.returncode}")
    (record,) = json.loads((out / "run.json").read_text(encoding="utf-8"))["slides"]
    per_unit = 1 if sys.platform == "darwin" else 1024
    return {
        "slide": slide.name,
        "peak_mb": round(usage.ru_maxrss * per_unit / 1e6, 1),
        "seconds": round(time.monotonic() - began, 1),
        "tiles": record["tiles"],
    }


if __name__ == "__main__":
    sys.exit(main())
