"""Measure how fast `wsiseg predict` can feed a model: with one that costs nothing, against decoding alone.

The model is one average over a few pixels, so that everything but a network is measured: the most tiles a second that
any accelerator can be fed with. Beside it all tiles of the same slides are decoded by libjpeg-turbo into memory that is
used again, by as many threads as there are cores. What is compared runs in turn, `--rounds` times; medians are printed.

    python benchmarks/feed.py --size 16384 --old ../wsiseg-of-last-month
    python benchmarks/feed.py --size 8192 --slides 8
    python benchmarks/feed.py --size 4096 --slides 8 --slow-ms 50 --processes 1 2 4

`whole` counts from the call to its return (opening, tissue, files and report too, imports not), `middle` from the first
batch to the last; `cpu_us` is time of processors a tile, which hardly depends on what else the machine does. With
`--slow-ms` every read of a file takes so much longer, as from a slow share, and several processes share the slides.
Needs imagecodecs and onnx.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import local
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
_TILE_PX = 224
_OF_CHILD = "_WSISEG_FEED"

Rates = dict[str, float]


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, nargs="?", help="a JPEG TIFF of `--size`; one is made where none is given")
    parser.add_argument("--size", type=int, default=16384)
    parser.add_argument("--slides", type=int, default=1)
    parser.add_argument("--old", type=Path, help="another checkout of wsiseg to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-ms", type=float, default=0.0)
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    given = parser.parse_args()
    if _OF_CHILD in os.environ:
        task = json.loads(os.environ[_OF_CHILD])
        child(task) if "out" in task else write_costless_model(Path(task["model"]))
        return
    with TemporaryDirectory() as name:
        print(json.dumps(measured(given, Path(name))))


def measured(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything in turn."""
    slides = _slides(given, folder / "slides")
    sides = {"predict": ROOT, **({"old": given.old} if given.old else {})}
    models = {side: _written_model(root, folder / f"{side}.onnx") for side, root in sides.items()}
    tiles = len(slides) * (given.size // _TILE_PX + 1) ** 2
    found: dict[str, list[Rates]] = {}
    for number in range(given.rounds):
        if not given.slow_ms:
            found.setdefault("decoding", []).append(_decoding(slides, tiles))
        for count in given.processes:
            for side, root in sides.items():
                out = str(folder / f"{side}{number}{count}")
                task = {
                    "slides": str(folder / "slides"),
                    "model": str(models[side]),
                    "out": out,
                    "slow_s": given.slow_ms / 1000,
                }
                name = side if given.processes == [1] else f"{side}, {count} processes"
                found.setdefault(name, []).append(_predicted(root, task, count, tiles))
    medians = {
        name: {key: round(statistics.median(row[key] for row in rows), 1) for key in rows[0]}
        for name, rows in found.items()
    }
    first = next(iter(medians))
    base = medians[first]
    ratios = {
        name: {key: round(value / base.get(key, base["whole"]), 3) for key, value in row.items()}
        for name, row in medians.items()
    }
    names = ("wsiseg", "onnxruntime", "simplejpeg", "openslide-bin", "imagecodecs")
    facts = {"cores": os.cpu_count(), "machine": _processor(), "python": platform.python_version()}
    facts["versions"] = {name: version(name) for name in names}
    sizes = {"slides": len(slides), "size": given.size, "rounds": given.rounds}
    return {**sizes, "medians": medians, f"to {first}": ratios, **facts}


def _slides(given: argparse.Namespace, folder: Path) -> list[Path]:
    from made_slides import write_slide  # noqa: PLC0415  beside this file

    folder.mkdir()
    paths = [folder / f"s{number}.tiff" for number in range(given.slides)]
    first = paths[0]
    if given.slide is None:
        write_slide(first, given.size)
    else:
        first.write_bytes(given.slide.read_bytes())
    for path in paths[1:]:
        path.write_bytes(first.read_bytes())
    return paths


def _written_model(root: Path, path: Path) -> Path:
    """Let a checkout write the model file, as an earlier one may not open those of today."""
    paths = os.pathsep.join(str(root / part) for part in ("src", "tests"))
    environment = {**os.environ, "PYTHONPATH": paths, _OF_CHILD: json.dumps({"model": str(path)})}
    subprocess.run([sys.executable, __file__], env=environment, check=True)
    return path


def write_costless_model(path: Path) -> None:
    """Write a model file whose answer is the mean of every 32nd pixel."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415  heavy

    from making.models import model_file  # noqa: PLC0415  of the checkout that is measured

    nodes = [
        helper.make_node("Slice", ["image", "begin", "end", "axes", "steps"], ["few"]),
        helper.make_node("Cast", ["few"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["pooled"], kernel_shape=[7, 7]),
        helper.make_node("ReduceMean", ["pooled"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Div", ["mean", "most"], ["probability"]),
    ]
    values = {"begin": [0, 0], "end": [_TILE_PX] * 2, "axes": [1, 2], "steps": [32, 32]}
    tensors = [numpy_helper.from_array(np.asarray(value, np.int64), name) for name, value in values.items()]
    tensors.append(numpy_helper.from_array(np.array(255, np.float32), "most"))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", "height", "width", 3])
    output = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(nodes, "costless", [image], [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model_file(model, tile_px=_TILE_PX, name="costless", mpp=0.5, map="tile", architecture="none"))


def _decoding(slides: list[Path], tiles: int) -> Rates:
    """Let libjpeg-turbo decode all tiles of the finest level of slides, a row a task."""
    from imagecodecs import jpeg8_decode  # noqa: PLC0415  heavy

    from wsiseg.slides.tiff import jpeg_pages  # noqa: PLC0415  heavy

    mine = local()

    def row(path: Path, begins: Any, lengths: Any) -> None:  # noqa: ANN401  arrays
        if not hasattr(mine, "pixels"):
            mine.pixels = np.empty((256, 256, 3), np.uint8)
        with path.open("rb") as file:
            for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True):
                file.seek(begin)
                jpeg8_decode(file.read(length), out=mine.pixels)

    began, used = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path in slides:
            page = jpeg_pages(path)[0]
            columns = -(-page.size_px[0] // page.tile_px[0])
            begins, lengths = page.begins.reshape(-1, columns), page.lengths.reshape(-1, columns)
            list(pool.map(lambda at, path=path: row(path, *at), zip(begins, lengths, strict=True)))
    seconds = time.perf_counter() - began
    return {"whole": tiles / seconds, "cpu_us": 1e6 * (time.process_time() - used) / tiles}


def _predicted(root: Path, task: dict[str, Any], count: int, tiles: int) -> Rates:
    """Let processes of a checkout map the slides together; they begin when all are ready."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), _OF_CHILD: json.dumps(task)}
    children = [subprocess.Popen([sys.executable, __file__], env=environment, text=True,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]  # fmt: skip
    for one in children:
        if _line(one) != "ready":
            raise SystemExit(f"{root}: predict ended with exit code {one.wait()}")
    began = time.perf_counter()
    for one in children:
        print("go", file=one.stdin, flush=True)
    results = [json.loads(_line(one)) for one in children]
    seconds = time.perf_counter() - began
    for one in children:
        one.communicate()
    found = {"whole": tiles / seconds, "cpu_us": 1e6 * sum(one["cpu_s"] for one in results) / tiles}
    return {**found, "middle": results[0]["middle"]} if count == 1 else found


def _line(process: "subprocess.Popen[str]") -> str:
    """Return the next line that a process prints."""
    return "" if process.stdout is None else process.stdout.readline().strip()


def child(task: dict[str, Any]) -> None:
    """Open the model and say so, map the slides when told to, and print how it went."""
    from wsiseg.config.predict import PredictConfig  # noqa: PLC0415  of the checkout that is measured
    from wsiseg.model_file.model_file import ModelFile  # noqa: PLC0415  the same
    from wsiseg.prediction.predict import predict_slides  # noqa: PLC0415  the same
    from wsiseg.run.record import Progress  # noqa: PLC0415  the same

    class Watch(Progress):
        moments: list[tuple[float, int]] = []  # noqa: RUF012  one object

        def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:  # noqa: ARG002  the protocol's
            if tiles:
                self.moments.append((time.perf_counter(), tiles))

    if task["slow_s"]:
        _slow_down(task["slow_s"])
    settings = {"inputs": (task["slides"],), "model": (task["model"],), "out": Path(task["out"]), "map": "tile"}
    config = PredictConfig.checked(**settings, tissue="none", device="cpu")
    with ModelFile.open(task["model"], "cpu"):
        for name in ("scipy.ndimage", "zarr"):  # what is imported late belongs to no slide
            importlib.import_module(name)
    print("ready", flush=True)
    sys.stdin.readline()
    used = time.process_time()
    predict_slides(config, Watch())
    used = time.process_time() - used
    (first, begin), (last, _) = Watch.moments[0], Watch.moments[-1]
    tiles = sum(count for _, count in Watch.moments)
    print(json.dumps({"middle": (tiles - begin) / max(last - first, 1e-9), "cpu_s": used}), flush=True)


def _slow_down(seconds: float) -> None:
    """Let every read of compressed tiles take so much longer."""
    from wsiseg.slides import jpeg_tiles  # noqa: PLC0415  not every checkout has it

    runs = jpeg_tiles.JpegTiles._runs  # noqa: SLF001  each is read at once

    def slow(tiles: Any, numbers: list[int]) -> Any:  # noqa: ANN401  as they are
        for run in runs(tiles, numbers):
            time.sleep(seconds)
            yield run

    jpeg_tiles.JpegTiles._runs = slow  # type: ignore[method-assign]  # noqa: SLF001  a made slow share


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "?")


if __name__ == "__main__":
    main()
