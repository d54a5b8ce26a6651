"""Measure what `wsiseg predict` of one slide takes before its first tiles and after its last, beside other checkouts.

That is starting Python, loading libraries, opening the model and the slide and finding its tissue, and then the
files, the page and the end of the process. The model costs nothing, and the slide has 8192 x 8192 made pixels. The
checkouts run in turn, `--rounds` times; medians are printed, in seconds of a core and as they pass. Needs onnx.

    python benchmarks/one_slide.py --old ../wsiseg-of-last-month
"""

import atexit
import json
import os
import runpy
import sys
import time
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_OF_CHILD = "_WSISEG_ONE_SLIDE"


def main() -> None:
    """Print one line of JSON."""
    import argparse  # noqa: PLC0415  as all that follows: the command that is measured would pay for it
    import statistics  # noqa: PLC0415
    from tempfile import TemporaryDirectory  # noqa: PLC0415

    from made_slides import write_slide  # noqa: PLC0415

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
    import subprocess  # noqa: PLC0415  as in `main`

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


def child(task: dict[str, str]) -> None:
    """Write the model file, or run the command and write down when its first tiles and its last were done."""
    if "moments" not in task:
        from feed import write_costless_model  # noqa: PLC0415  beside this file

        write_costless_model(Path(task["model"]))
        return
    seen: list[tuple[float, float]] = []
    atexit.register(lambda: Path(task["moments"]).write_text(json.dumps(seen)))
    sys.meta_path.insert(0, Watched(seen))
    runpy.run_module("wsiseg", run_name="__main__", alter_sys=True)


class Watched(PathFinder):
    """Lets the moments be noted in which tiles are told of, once the command loads what it tells of them with."""

    name = "wsiseg.cli.streams"

    def __init__(self, seen: list[tuple[float, float]]) -> None:
        self.seen = seen

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:  # type: ignore[override]  # noqa: ANN401  of an object, not of the class
        """Find the module that is watched."""
        spec = PathFinder.find_spec(name, path, target) if name == self.name else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self.watch(module, execute(module))  # type: ignore[method-assign]
        return spec

    def watch(self, module: ModuleType, _: None) -> None:
        """Note the first moment and the last in which tiles are told of, and what was spent of the processors then."""
        advance = module.Streams.advance

        def noted(streams: Any, slide: str, tiles: int, waited_s: float = 0.0) -> None:  # noqa: ANN401  as it is
            advance(streams, slide, tiles, waited_s)
            if tiles:
                now = time.monotonic(), time.process_time()
                self.seen[:] = [*(self.seen[:1] or [now]), now]

        module.Streams.advance = noted  # type: ignore[attr-defined]


if __name__ == "__main__":
    child(json.loads(os.environ.pop(_OF_CHILD))) if _OF_CHILD in os.environ else main()
