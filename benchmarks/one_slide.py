"""Measure what `wsiseg predict` of one slide takes before its first tiles and after its last, beside other checkouts.

That is starting Python, loading libraries, opening the model and the slide and finding its tissue, and then the
files, the page and the end of the process. The model costs nothing, and the slide has 8192 x 8192 made pixels. The
checkouts run in turn, `--rounds` times; medians are printed, in seconds of a core and as they pass. Needs onnx.

    python benchmarks/one_slide.py --old ../wsiseg-of-last-month
"""

import argparse
import atexit
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from feed import write_costless_model

ROOT = Path(__file__).resolve().parent.parent
_OF_CHILD = "_WSISEG_ONE_SLIDE"


def main() -> None:
    """Print one line of JSON."""
    if _OF_CHILD in os.environ:
        task = json.loads(os.environ.pop(_OF_CHILD))
        command(task["moments"]) if "moments" in task else write_costless_model(Path(task["model"]))
        return
    from made_slides import write_slide  # noqa: PLC0415  beside this file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, nargs="*", default=[], help="other checkouts of wsiseg to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    sides = {"new": ROOT, **{path.name: path for path in given.old}}
    with TemporaryDirectory() as name:
        folder, found = Path(name), dict[str, list[dict[str, float]]]()
        slide = write_slide(folder / "a.tiff", 8192)
        for side, root in sides.items():
            run(root, {"model": str(folder / f"{side}.onnx")}, str(root / "tests"))
        for number in range(given.rounds + 1):  # the first fills caches
            for side, root in sides.items():
                one = measured(root, slide, folder / f"{side}.onnx", folder / f"{side}-{number}")
                found.setdefault(side, []).extend([one] if number else [])
    print(json.dumps({side: {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
                      for side, rows in found.items()}))  # fmt: skip


def run(root: Path, task: dict[str, str], *more: str) -> float:
    """Run this file with the sources of a checkout, and return what it took of the processors."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root / "src"), *more)), _OF_CHILD: json.dumps(task)}
    given = () if "out" not in task else ("predict", task["slide"], "--model", task["model"], "--out", task["out"])
    options = () if "out" not in task else ("--tissue", "auto", "--map", "tile", "--device", "cpu")
    child = subprocess.Popen([sys.executable, __file__, *given, *options],
                             env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    _, code, used = os.wait4(child.pid, 0)
    if code:
        raise SystemExit(f"{root}: ended with exit code {os.waitstatus_to_exitcode(code)}")
    child.returncode = 0
    return used.ru_utime + used.ru_stime


def measured(root: Path, slide: Path, model: Path, out: Path) -> dict[str, float]:
    """Return what is spent before the first tiles, between, and after the last: of the processors, and as it passes."""
    moments, began = out.with_suffix(".json"), time.monotonic()
    task = {"slide": str(slide), "model": str(model), "out": str(out), "moments": str(moments)}
    used = run(root, task)
    ended = time.monotonic()
    (first, cpu_first), (last, cpu_last) = json.loads(moments.read_text())
    return {
        "cpu_before": cpu_first,
        "cpu_between": cpu_last - cpu_first,
        "cpu_after": used - cpu_last,
        "before": first - began,
        "between": last - first,
        "after": ended - last,
    }


def command(moments: str) -> None:
    """Run the command, and write down when its first tiles and its last were done."""
    from wsiseg.cli import main as run_command  # noqa: PLC0415  of the checkout that is measured
    from wsiseg.cli.streams import Streams  # noqa: PLC0415  the same

    advance, seen = Streams.advance, list[tuple[float, float]]()

    def noted(streams: Any, slide: str, tiles: int, waited_s: float = 0.0) -> None:  # noqa: ANN401  as it is
        advance(streams, slide, tiles, waited_s)
        if tiles:
            now = time.monotonic(), time.process_time()
            seen[:] = [*(seen[:1] or [now]), now]

    Streams.advance = noted  # type: ignore[method-assign]
    atexit.register(lambda: Path(moments).write_text(json.dumps(seen)))
    run_command()


if __name__ == "__main__":
    main()
