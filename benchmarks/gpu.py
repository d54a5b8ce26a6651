"""Measure wsiseg on a GPU: what the network alone could do, what prediction and training really do, and PyTorch beside.

    python benchmarks/gpu.py --minutes 8 --out gpu --old ../wsiseg-of-last-month

Slides, models and tile stores are made here; nothing is downloaded. Every row is printed as soon as it is measured and
kept in OUT/gpu.json and OUT/gpu.md. Each part runs in a process of its own with a time limit, so that one failure does
not end the rest; what no time is left for is left out, and said so. What is compared runs in turn, `--rounds` times.
`--device cpu --quick` tries the script on a machine without a GPU.

`command_s` counts everything from the start of a process to its end, `seconds` and `tiles_per_s` all but imports,
`middle` from the first batch to the last. Needs the packages of wsiseg[train], and onnxruntime-gpu for `--device cuda`.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gpu_parts
from made_slides import write_slide

_HERE = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "torchvision", "onnxruntime", "onnxruntime-gpu", "openslide-python", "openslide-bin", "numpy")
_PARTS = ("training", "alone", "predicting", "choosing", "rest", "feeding", "dense")
_LEAST_S = 5.0
_WORDS_OF_FAILURE = 300


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    arch: str = "resnet50"
    batches: tuple[int, ...] = (16, 64, 128, 256)
    slides: int = 8
    size: int = 8192
    training_slides: int = 80
    training_size: int = 4096
    tiled: int = 8  # slides that training slides share the tiles of
    epochs: int = 4
    bag: int = 150
    seconds: float = 1.0
    tiles: int = 256


_QUICK = Sizes("mobilenet_v3_small", (4, 16), 2, 1024, 6, 1024, 2, 2, 8, 0.1, 16)


@dataclass
class Bench:
    """What is measured where, until when, and what was found."""

    folder: Path
    out: Path
    device: str
    old: Path | None
    rounds: int
    sizes: Sizes
    end: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic()

    def row(self, work: str, found: Any) -> None:  # noqa: ANN401  numbers by name, or why there are none
        """Print and keep a row."""
        self.rows.append({"work": work, "found": found})
        said = ", ".join(f"{name} {value}" for name, value in found.items()) if isinstance(found, dict) else found
        print(f"| {work} | {said} |", flush=True)
        facts = _facts() if len(self.rows) == 1 else json.loads((self.out / "gpu.json").read_text())["machine"]
        text = json.dumps({"machine": facts, "rows": self.rows}, indent=1)
        (self.out / "gpu.json").write_text(text, encoding="utf-8")
        with (self.out / "gpu.md").open("w" if len(self.rows) == 1 else "a", encoding="utf-8") as file:
            file.write(f"{facts}\n\n| work | found |\n|---|---|\n" if len(self.rows) == 1 else "")
            file.write(f"| {work} | {said} |\n")

    def ask(self, part: str, limit: float, checkout: Path | None = None, **given: Any) -> dict[str, Any] | str:  # noqa: ANN401  what the part takes
        """Run a part in a process of its own; return what it found, or why it found nothing."""
        command = [sys.executable, str(Path(__file__).resolve()), "--part", part, "--given", json.dumps(given)]
        began = time.monotonic()
        said = self.run(command, limit, checkout)
        if said.returncode:
            return f"failed: {' '.join(said.stderr.split())[-_WORDS_OF_FAILURE:]}"
        found: dict[str, Any] = json.loads(said.stdout.splitlines()[-1])
        return {**found, "command_s": round(time.monotonic() - began, 2)}

    def run(
        self, command: Sequence[str], limit: float, checkout: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command with a checkout of wsiseg, within its limit and the time that is left."""
        limit = min(limit, self.left())
        if limit < _LEAST_S:
            return subprocess.CompletedProcess(command, 1, "", "no time was left")
        checkout = checkout or _HERE
        places = [
            str(checkout / "src"),
            str(checkout / "tests"),
            str(Path(__file__).resolve().parent),
            os.environ.get("PYTHONPATH"),
        ]
        path = os.pathsep.join(filter(None, places))
        # Threads of PyTorch that spin while they wait stand still on a busy machine.
        calm = {"OMP_NUM_THREADS": "1"} if self.sizes is _QUICK else {}
        settings = {**os.environ, "PYTHONPATH": path, **calm}
        try:
            return subprocess.run(
                command, env=settings, timeout=limit, capture_output=True, text=True, check=False, cwd=self.folder
            )
        except subprocess.TimeoutExpired as error:
            said = (error.stderr or b"")[-_WORDS_OF_FAILURE:].decode(errors="replace")
            return subprocess.CompletedProcess(command, 1, "", f"not done after {limit:.0f} s; {said}")

    def in_turn(self, ways: dict[str, Callable[[], dict[str, Any] | str]]) -> dict[str, dict[str, Any] | str]:
        """Run several ways in turn, some rounds; return the medians of each, or its first failure."""
        found: dict[str, list[dict[str, Any] | str]] = {name: [] for name in ways}
        for number in range(self.rounds):
            for name, way in ways.items():
                if not any(isinstance(one, str) for one in found[name]):
                    found[name].append(way())
                    print(f"({name}, round {number + 1}: {found[name][-1]})", flush=True)
            if number + 1 < self.rounds and self.left() < _LEAST_S:
                break
        return {name: _median(ones) for name, ones in found.items()}


def _median(found: Sequence[dict[str, Any] | str]) -> dict[str, Any] | str:
    good = [one for one in found if not isinstance(one, str)]
    if not good:
        return found[0]
    middle = {
        name: round(statistics.median(one[name] for one in good), 3) if isinstance(value, int | float) else value
        for name, value in good[0].items()
    }
    return {**middle, "rounds": len(good)}


def _facts() -> dict[str, Any]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    try:
        asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        gpu = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        gpu = "none"
    return {"gpu": gpu, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions}


def setup(bench: Bench, *, needs_models: bool) -> dict[str, str]:
    """Write slides, models and tile stores side by side.

    Returns:
        The models.
    """
    import torch  # noqa: PLC0415  heavy
    import torchvision  # noqa: PLC0415  heavy

    sizes, folder = bench.sizes, bench.folder
    models = {kind: str(folder / f"{sizes.arch}-{kind}.onnx") for kind in ("fp32", "fp16")}
    if (folder / "stores").exists() and (not needs_models or all(map(os.path.exists, models.values()))):
        return models
    torch.manual_seed(0)
    weights = getattr(torchvision.models, sizes.arch)(weights=None, num_classes=1).state_dict()
    torch.save(weights, folder / "weights.pt")
    with ThreadPoolExecutor(4) as pool:
        jobs: list[Future[Any]] = [pool.submit(_slides, bench), pool.submit(_stores, bench)]
        for kind, path in models.items() if needs_models else ():
            command = [sys.executable, "-m", "wsiseg", "export", "--from-torch", "weights.pt", "--arch", sizes.arch]
            command += ["--precision", kind, "--out", path, "--allow-loss"]
            jobs.append(pool.submit(bench.run, command, 180))
        said = [job.result() for job in jobs]
    failed = [" ".join(one.stderr.split())[-_WORDS_OF_FAILURE:] for one in said if one is not None and one.returncode]
    found = {"failed": failed} if failed else {"seconds left": round(bench.left())}
    bench.row("made slides, tile stores and models", found)
    return models


def _slides(bench: Bench) -> None:
    folder = bench.folder / "slides"
    for name in (folder, bench.folder / "one"):
        name.mkdir()
    first = write_slide(bench.folder / "one" / "s0.tiff", bench.sizes.size)
    for number in range(bench.sizes.slides):
        os.link(first, folder / f"s{number}.tiff")


def _stores(bench: Bench) -> subprocess.CompletedProcess[str]:
    """Make the tile stores of a cohort, with the older checkout where there is one, as both can read those."""
    folder, count, tiled = bench.folder / "training", bench.sizes.training_slides, bench.sizes.tiled
    folder.mkdir()
    slide = write_slide(folder / "slide.tiff", bench.sizes.training_size)
    for number in range(count):
        os.link(slide, folder / f"t{number}.tiff")
    _write_cohort(folder, ["train"] * tiled)
    command = [sys.executable, "-m", "wsiseg", "tile", str(folder / "cohort.csv"), "--out", "stores", "--pixels"]
    said = bench.run([*command, "--tissue", "none", "--jobs", str(os.cpu_count())], 180, bench.old)
    stores = bench.folder / "stores"
    for number in range(tiled, count) if stores.exists() else ():
        (stores / f"t{number}.tiles.zarr").symlink_to(f"t{number % tiled}.tiles.zarr")
    if stores.exists():
        _write_cohort(stores, ["val"] * 2 + ["test"] + ["train"] * (count - 3))
    return said


def _write_cohort(folder: Path, splits: Sequence[str]) -> None:
    slides = "../training" if folder.name == "stores" else "."
    rows = [f"t{number},{slides}/t{number}.tiff,t{number},{number % 2},{split}" for number, split in enumerate(splits)]
    (folder / "cohort.csv").write_text("slide,path,case,label,split\n" + "\n".join(rows) + "\n", encoding="utf-8")


def alone(bench: Bench, models: dict[str, str]) -> dict[str, float]:
    """Measure the sessions alone; return the most tiles a second of each."""
    fastest: dict[str, float] = {}
    shape = {"batches": bench.sizes.batches, "seconds": bench.sizes.seconds}
    for kind, path in (*models.items(), ("bundled int8", _bundled())):
        found = bench.ask("session", 90, model=path, device=bench.device, **shape)
        bench.row(f"session alone, {kind}", found)
        if isinstance(found, dict):
            fastest[kind] = max(value for name, value in found.items() if name.startswith("batch"))
    found = bench.ask("network", 60, device=bench.device, arch=bench.sizes.arch, **shape)
    bench.row("PyTorch alone, half precision, channels last, tiles on the device", found)
    found = bench.ask("agreement", 60, models=[*models.values(), _bundled()], reference=models["fp32"],
                      device=bench.device, count=bench.sizes.tiles)  # fmt: skip
    bench.row(f"largest difference from {Path(models['fp32']).name} on the CPU (not the bundled one)", found)
    found = bench.ask("agreement", 60, models=[_bundled()], reference=_bundled(), device=bench.device,
                      count=bench.sizes.tiles)  # fmt: skip
    bench.row("largest difference of the bundled file from itself on the CPU", found)
    return fastest


def _bundled() -> str:
    return str(_HERE / "src/wsiseg/model_file/default.onnx")


def predicting(bench: Bench, models: dict[str, str], fastest: dict[str, float]) -> None:
    """Compare prediction with a DataLoader loop, with an older checkout and with the session alone."""
    ways: dict[str, Callable[[], dict[str, Any] | str]] = {
        "PyTorch loop": lambda: bench.ask("loader", 120, slides=str(bench.folder / "slides"), device=bench.device,
                                          arch=bench.sizes.arch, workers=os.cpu_count(), batch=128),
        **_mapping(bench, "fp16", models["fp16"], "slides", map="tile", device=bench.device),
        **_mapping(bench, "fp32", models["fp32"], "slides", map="tile", device=bench.device),
    }  # fmt: skip
    shared = {"slides": str(bench.folder / "slides"), "model": models["fp16"], "map": "tile", "device": bench.device}
    for way in gpu_parts.WAYS if bench.device == "cuda" else ():
        ways[f"predict, fp16, {way}"] = lambda way=way: bench.ask("predict", 60, **shared, change=way)  # type: ignore[misc]
    found = bench.in_turn(ways)
    loop = found["PyTorch loop"]
    for name, one in found.items():
        if isinstance(one, dict) and isinstance(loop, dict) and one is not loop:
            one |= {f"{key} to loop": round(one[key] / loop[key], 2) for key in ("tiles_per_s", "middle") if loop[key]}
        if isinstance(one, dict) and (most := max((fastest[kind] for kind in fastest if kind in name), default=0)):
            one["middle to session"] = round(one["middle"] / most, 2)
        bench.row(f"{bench.sizes.slides} slides: {name}", one)


def _mapping(
    bench: Bench,
    kind: str,
    model: str,
    slides: str,
    **settings: Any,  # noqa: ANN401  the fields of PredictConfig
) -> dict[str, Callable[[], dict[str, Any] | str]]:
    """Return a way for each checkout to map slides."""

    def way(checkout: Path | None) -> Callable[[], dict[str, Any] | str]:
        return lambda: bench.ask("predict", 120, checkout, slides=str(bench.folder / slides), model=model, **settings)

    ways = {f"predict, {kind}": way(None)}
    return ways if bench.old is None else {**ways, f"predict, {kind}, old": way(bench.old)}


def dense(bench: Bench, models: dict[str, str]) -> None:
    """Measure dense maps: of a slide full of tissue, and of slides whose windows are of many sizes."""
    ways = _mapping(bench, "dense fp16", models["fp16"], "slides", map="dense", device=bench.device)
    ways |= _mapping(bench, "dense bundled", _bundled(), "slides", map="dense", device=bench.device)
    example = _HERE / "src" / "wsiseg" / "fetch" / "cohort" / "slides"
    shutil.copytree(example, bench.folder / "example", dirs_exist_ok=True)
    for device in dict.fromkeys((bench.device, "cpu")):
        ways |= _mapping(
            bench, f"example, bundled, {device}", _bundled(), "example", map="dense", device=device, tissue="auto"
        )
    shared = {"slides": str(bench.folder / "example"), "model": _bundled(), "map": "dense", "device": bench.device}
    shared["tissue"] = "auto"
    for way in gpu_parts.WAYS if bench.device == "cuda" else ():
        ways[f"example, bundled, {way}"] = lambda way=way: bench.ask("predict", 60, **shared, change=way)  # type: ignore[misc]
    for name, one in bench.in_turn(ways).items():
        bench.row(name, one)


def feeding(bench: Bench) -> None:
    """Measure the most that predict can be fed with: a model that costs nothing, on the device."""
    model = bench.folder / "costless.onnx"
    said = bench.run([sys.executable, "-c", f"import feed; feed.write_costless_model(feed.Path({str(model)!r}))"], 60)
    if said.returncode:
        bench.row("a model that costs nothing", f"failed: {said.stderr[-_WORDS_OF_FAILURE:]}")
        return
    for name, one in bench.in_turn(_mapping(bench, "costless", str(model), "slides", device=bench.device)).items():
        bench.row(name, one)


def choosing(bench: Bench, models: dict[str, str]) -> None:
    """Measure what `--device auto` takes, beside every device."""
    for kind, model in (("bundled", _bundled()), ("fp16", models["fp16"])):
        ways: dict[str, Callable[[], dict[str, Any] | str]] = {}
        for device in dict.fromkeys(("auto", bench.device, "cpu") if kind == "bundled" else ("auto",)):
            ways |= _mapping(bench, f"{kind} --device {device}", model, "one", map="tile", device=device)
        for name, one in bench.in_turn(ways).items():
            bench.row(f"one slide: {name}", one)


def training(bench: Bench) -> None:
    """Compare training with the raw step and an older checkout."""
    sizes = bench.sizes
    raw = bench.ask("steps", 150, device=bench.device, arch=sizes.arch, bag=sizes.bag, seconds=sizes.seconds)
    bench.row(f"training step alone, {sizes.arch}, bag {sizes.bag}", raw)
    given = {"cohort": str(bench.folder / "stores" / "cohort.csv"), "device": bench.device, "arch": sizes.arch}
    given |= {"bag": sizes.bag, "epochs": sizes.epochs}
    ways: dict[str, Callable[[], dict[str, Any] | str]] = {"train": lambda: bench.ask("train", 120, **given)}
    if bench.old is not None:
        ways["train, old"] = lambda: bench.ask("train", 120, bench.old, **{**given, "epochs": 2})
    fastest = max((rate for rate in raw.values() if isinstance(rate, float)), default=0) if isinstance(raw, dict) else 0
    for name, one in bench.in_turn(ways).items():
        if isinstance(one, dict) and fastest:
            one["to the fastest step"] = round(one["tiles_per_s"] / fastest, 2)
        bench.row(name, one)
    bench.row("train, one layer", bench.ask("train", 90, **given, change="one layer"))


def rest(bench: Bench, models: dict[str, str]) -> None:
    """Measure ways to run ONNX Runtime on CUDA."""
    tiles, windows = [(128, 224, 224), (64, 224, 224)], [(4, 1152, 1152), (4, 1152, 896), (4, 512, 640)]
    asked = {kind: (path, "probability", tiles) for kind, path in models.items()}
    asked["bundled, dense"] = _bundled(), "probability_map", windows
    for kind, (path, output, shapes) in asked.items() if bench.device == "cuda" else ():
        found = bench.ask("options", 90, model=path, output=output, shapes=shapes, seconds=bench.sizes.seconds)
        bench.row(f"ONNX Runtime, {kind}, images of {shapes}", found)


def installation(bench: Bench) -> None:
    """Show what `wsiseg doctor` says, and whether the plain command finds the GPU."""
    for name, more in (("doctor", ()), ("doctor --model default", ("--model", "default"))):
        said = bench.run([sys.executable, "-m", "wsiseg", "doctor", *more, "--json"], 60)
        facts = json.loads(said.stdout) if said.stdout else {"said": said.stderr[-_WORDS_OF_FAILURE:]}
        kept = ("ONNX Runtime providers", "NVIDIA GPU", "tiles per second", "provider", "said")
        values = {key: value for part in facts.values() if isinstance(part, dict) for key, value in part.items()}
        bench.row(f"wsiseg {name}", {key: values[key] for key in kept if key in values} | {"exit": said.returncode})
    command = [sys.executable, "-m", "wsiseg", "predict", str(bench.folder / "one"), "--device", bench.device]
    said = bench.run([*command, "--out", str(bench.folder / "plain")], 60)
    bench.row(
        f"wsiseg predict --device {bench.device}, plain command",
        f"exit {said.returncode}: {' '.join(said.stderr.split())[-_WORDS_OF_FAILURE:]}",
    )


def main() -> None:
    """Measure what the time allows, the most important first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder for gpu.json and gpu.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="when to stop, at the latest")
    parser.add_argument("--old", type=Path, help="checkout of an earlier version to compare with")
    parser.add_argument("--rounds", type=int, default=2, help="times that what is compared is run")
    parser.add_argument("--slides", type=int, default=Sizes.slides)
    parser.add_argument("--size", type=int, default=Sizes.size, help="side of a slide in pixels")
    parser.add_argument("--work", type=Path, help="folder for slides, models and tile stores, kept and used again")
    parser.add_argument("--only", nargs="*", default=[], choices=_PARTS, help="some of them, in this order")
    parser.add_argument("--quick", action="store_true", help="hardly anything, to try the script")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--given", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        gpu_parts.load_libraries()
        print(json.dumps(getattr(gpu_parts, args.part)(**json.loads(args.given))))
        return
    end = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.work or Path(mkdtemp(prefix="wsiseg-gpu-"))
    folder.mkdir(parents=True, exist_ok=True)
    sizes = _QUICK if args.quick else Sizes(slides=args.slides, size=args.size)
    old = args.old.resolve() if args.old else None
    bench = Bench(folder.resolve(), args.out.resolve(), args.device, old, args.rounds, sizes, end)
    try:
        measure(bench, args.only)
    finally:
        if args.work is None:
            shutil.rmtree(folder)


def measure(bench: Bench, only: Sequence[str]) -> None:
    """Measure the parts that are named, or all."""
    models = setup(bench, needs_models=list(only) != ["training"])
    fastest: dict[str, float] = {}
    parts: dict[str, Callable[[], object]] = {
        "training": lambda: training(bench),
        "alone": lambda: fastest.update(alone(bench, models)),
        "predicting": lambda: predicting(bench, models, fastest),
        "choosing": lambda: (installation(bench), choosing(bench, models)),
        "rest": lambda: rest(bench, models),
        "feeding": lambda: feeding(bench),
        "dense": lambda: dense(bench, models),
    }
    for name in only or parts:
        parts[name]()


if __name__ == "__main__":
    main()
