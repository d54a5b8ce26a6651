"""The measurements of `gpu.py`; each runs in a process of its own and returns numbers."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

_TILE_PX, _WINDOW_PX = 224, 1024
_LEAST_ROUNDS = 3
Rates = dict[str, Any]


def load_libraries() -> None:
    """Let ONNX Runtime find CUDA, also for versions of wsiseg that do not see to that."""
    import onnxruntime  # noqa: PLC0415  heavy

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()


def rate(
    step: Callable[[], object], count: float, seconds: float, finished: Callable[[], object] = lambda: None
) -> float:
    """Return how many things a second a step does, `count` at a time; called once before the clock starts."""
    step()
    finished()
    began, rounds = time.perf_counter(), 0
    while rounds < _LEAST_ROUNDS or time.perf_counter() - began < seconds:
        step()
        rounds += 1
    finished()
    return round(rounds * count / (time.perf_counter() - began), 1)


def session(model: str, device: str, batches: Sequence[int], seconds: float) -> Rates:
    """Measure a model file alone, on tiles and, where it can, on dense windows in the memory of the host."""
    from wsiseg.model_file.model_file import ModelFile  # noqa: PLC0415  of the checkout to measure

    rng, found = np.random.default_rng(0), {}
    began = time.perf_counter()
    with ModelFile.open(model, device) as opened:
        found["seconds to open"] = round(time.perf_counter() - began, 2)
        for batch in batches:
            tiles = rng.integers(0, 256, (batch, _TILE_PX, _TILE_PX, 3), np.uint8)
            found[f"batch {batch}"] = rate(lambda tiles=tiles: _asked(opened, tiles), batch, seconds)
        for batch in (1, 4) if opened.card.output_stride else ():
            windows = rng.integers(0, 256, (batch, _WINDOW_PX, _WINDOW_PX, 3), np.uint8)
            tiles_in = batch * (_WINDOW_PX / _TILE_PX) ** 2
            found[f"{batch} x dense {_WINDOW_PX} px"] = rate(
                lambda windows=windows: _asked(opened, windows, is_dense=True), tiles_in, seconds
            )
        return {**found, "provider": opened.provider}


def _asked(opened: Any, images: np.ndarray, *, is_dense: bool = False) -> np.ndarray:  # noqa: ANN401  of either version
    """Return probabilities, whatever the method is called in the checkout that is measured."""
    if hasattr(opened, "answer"):
        found: np.ndarray = (opened.answer_map if is_dense else opened.answer)(images).probabilities
    else:
        found = (opened.probability_map if is_dense else opened.probabilities)(images)
    return found


def _way(search: str, last: int, **more: str) -> dict[str, str]:
    return {"cudnn_conv_algo_search": search, "prefer_nhwc": str(last), **more}


WAYS: dict[str, dict[str, str]] = {
    "trying": _way("EXHAUSTIVE", 0),
    "HEURISTIC": _way("HEURISTIC", 0),
    "NHWC": _way("EXHAUSTIVE", 1),
    "NHWC, HEURISTIC": _way("HEURISTIC", 1),
    "DEFAULT, no TF32": _way("DEFAULT", 0, use_tf32="0"),
}
"""Options of ONNX Runtime for CUDA: how cuDNN finds its algorithms, and the order of numbers in memory."""


def options(model: str, output: str, shapes: Sequence[tuple[int, int, int]], seconds: float) -> Rates:
    """Measure ways to run one ONNX file on CUDA: what each gives, how long it opens, and a first batch of each shape.

    Shapes are (images, height, width); rates are of the first, in tiles of 224 pixels.
    """
    import onnxruntime  # noqa: PLC0415  heavy

    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    first = batches[0]
    tiles = first.size / 3 / _TILE_PX**2
    found: Rates = {}

    def opened_as(name: str) -> Any:  # noqa: ANN401  not typed
        providers = [("CUDAExecutionProvider", WAYS[name]), "CPUExecutionProvider"]
        return onnxruntime.InferenceSession(model, providers=providers)

    began = time.perf_counter()
    opened_as("HEURISTIC").run([output], {"image": first[:1]})
    found["libraries, s"] = round(time.perf_counter() - began, 2)
    for name in WAYS:
        began = time.perf_counter()
        opened = opened_as(name)
        moments = [time.perf_counter() - began]
        for batch in batches:
            began = time.perf_counter()
            opened.run([output], {"image": batch})
            moments.append(time.perf_counter() - began)
        found[f"{name}: opened, first of each shape, s"] = [round(one, 2) for one in moments]
        found[name] = _threads([opened], output, first, tiles, seconds)
        found[f"{name}, two threads"] = _threads([opened] * 2, output, first, tiles, seconds)
        if "HEURISTIC" in name:
            found[f"{name}, two sessions"] = _threads([opened, opened_as(name)], output, first, tiles, seconds)
            found[f"{name}, tiles on the device"] = _bound(opened, output, first, tiles, seconds)
        print(name, found[name], file=sys.stderr, flush=True)
    return found


def _threads(sessions: Sequence[Any], output: str, images: np.ndarray, tiles: float, seconds: float) -> float:
    """Ask sessions, each in a thread of its own."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  only here

    def run(opened: Any) -> None:  # noqa: ANN401  not typed
        for _ in range(4):
            opened.run([output], {"image": images})

    with ThreadPoolExecutor(len(sessions)) as pool:
        return rate(lambda: list(pool.map(run, sessions)), 4 * len(sessions) * tiles, seconds)


def _bound(opened: Any, output: str, images: np.ndarray, tiles: float, seconds: float) -> float:  # noqa: ANN401  not typed
    import onnxruntime  # noqa: PLC0415  heavy

    binding = opened.io_binding()
    binding.bind_ortvalue_input("image", onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0))
    binding.bind_output(output, "cpu")
    return rate(lambda: opened.run_with_iobinding(binding), tiles, seconds)


def agreement(models: Sequence[str], reference: str, device: str, count: int) -> Rates:
    """Return the largest difference in probability between files on a device and a reference on the CPU."""
    from made_slides import made_tissue  # noqa: PLC0415  beside this file

    from wsiseg.model_file.model_file import ModelFile  # noqa: PLC0415  of the checkout to measure

    tissue, step = made_tissue(0), 96
    corners = [(y, x) for y in range(0, 1800, step) for x in range(0, 1800, step)][:count]
    tiles = np.stack([tissue[y : y + _TILE_PX, x : x + _TILE_PX] for y, x in corners])
    with ModelFile.open(reference, "cpu") as one:
        expected = _asked(one, tiles)
    found: Rates = {"spread of the reference": float(np.ptp(expected))}
    for model in models:
        with ModelFile.open(model, device) as other:
            found[Path(model).name] = float(np.abs(_asked(other, tiles) - expected).max())
    return found


class _Watch:
    """A `Progress` that notes when tiles are done."""

    def __init__(self) -> None:
        self.moments: list[tuple[float, int]] = []
        self.notes: list[tuple[float, str]] = []

    def advance(self, _slide: str, tiles: int, *_: object) -> None:
        if tiles:
            self.moments.append((time.perf_counter(), tiles))

    def note(self, text: str) -> None:
        self.notes.append((time.perf_counter(), text[:20]))

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def predict(slides: str, model: str, change: str = "", **settings: Any) -> Rates:  # noqa: ANN401  the fields of PredictConfig
    """Map slides; tiles a second in the whole call, and from the first batch to the last."""
    from wsiseg.config.predict import PredictConfig  # noqa: PLC0415  of the checkout to measure
    from wsiseg.prediction.predict import predict_slides  # noqa: PLC0415  the same

    watch = _Watch()
    if change:
        _run_as(change)
    with TemporaryDirectory(dir=Path(slides).parent) as out:
        config = PredictConfig.checked(
            inputs=(slides,), model=(model,), out=Path(out), **{"tissue": "none", **settings}
        )
        began = time.perf_counter()
        run = predict_slides(config, watch)
        seconds = time.perf_counter() - began
    waiting = [share for record in run.slides if (share := getattr(record, "waiting_share", None)) is not None]
    tiles = sum(count for _, count in watch.moments)  # dense windows count as the tiles that they are worth
    failed = [record.error.message for record in run.failed]
    if failed:
        raise RuntimeError(failed[0])
    return {
        **_speeds(watch.moments, tiles, seconds),
        "waiting": round(statistics.mean(waiting), 3) if waiting else None,
        "provider": (run.device or {}).get("provider"),
        "until the model is open": round(watch.notes[0][0] - began, 2) if watch.notes else None,
        "until the first batch": round(watch.moments[0][0] - began, 2),
        "after the last batch": round(began + seconds - watch.moments[-1][0], 2),
    }


def _run_as(way: str) -> None:
    """Let ONNX Runtime compute in another way of `WAYS`."""
    import onnxruntime  # noqa: PLC0415  heavy

    start = onnxruntime.InferenceSession

    def session(*given: object, providers: Sequence[Any], **more: object) -> object:
        chosen = [(one[0], {**one[1], **WAYS[way]}) if one[0] == "CUDAExecutionProvider" else one for one in providers]
        return start(*given, providers=chosen, **more)

    onnxruntime.InferenceSession = session


def _speeds(moments: Sequence[tuple[float, int]], tiles: int, seconds: float) -> Rates:
    """Return tiles a second of a call, and of its middle, where several batches came."""
    middle = sum(count for _, count in moments[1:]) / (moments[-1][0] - moments[0][0]) if len(moments) > 1 else 0.0
    found = {"tiles": tiles, "seconds": round(seconds, 2), "tiles_per_s": round(tiles / seconds, 1)}
    return {**found, "middle": round(middle, 1)}


def loader(slides: str, device: str, arch: str, workers: int, batch: int) -> Rates:
    """Do what a user of PyTorch would write: a DataLoader over OpenSlide, half precision, all cores."""
    import torch  # noqa: PLC0415  heavy
    import torchvision  # noqa: PLC0415  heavy

    torch.set_num_threads(os.cpu_count() or 1)
    network = getattr(torchvision.models, arch)(weights=None, num_classes=1).eval()
    network = network.to(device, memory_format=torch.channels_last)
    kind = torch.float16 if device == "cuda" else torch.bfloat16
    moments: list[tuple[float, int]] = []
    began = time.perf_counter()
    dataset = SlideTiles(sorted(map(str, Path(slides).glob("*.tiff"))))
    batches = torch.utils.data.DataLoader(dataset, batch, num_workers=workers, pin_memory=device == "cuda")
    with torch.inference_mode(), torch.autocast(device, kind, enabled=device == "cuda"):
        for tiles in batches:
            torch.sigmoid(network(tiles.to(device, non_blocking=True))).float().cpu()
            moments.append((time.perf_counter(), len(tiles)))
    return {**_speeds(moments, len(dataset), time.perf_counter() - began), "workers": workers}


class SlideTiles:
    """The tiles of some slides; each worker opens a slide once."""

    def __init__(self, paths: Sequence[str]) -> None:
        import openslide  # noqa: PLC0415  heavy

        self.open, self.slides = openslide.OpenSlide, dict[str, Any]()
        self.corners = []
        for path in paths:
            with openslide.OpenSlide(path) as slide:
                width, height = slide.dimensions
            self.corners += [(path, x, y) for y in range(0, height, _TILE_PX) for x in range(0, width, _TILE_PX)]

    def __len__(self) -> int:
        """Count the tiles."""
        return len(self.corners)

    def __getitem__(self, number: int) -> Any:  # noqa: ANN401  torch is imported late
        """Read a tile, standardised, float32[3, 224, 224]."""
        import torch  # noqa: PLC0415  heavy

        path, x, y = self.corners[number]
        if path not in self.slides:
            self.slides[path] = self.open(path)
        tile = np.array(self.slides[path].read_region((x, y), 0, (_TILE_PX, _TILE_PX)).convert("RGB"))
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        return ((torch.from_numpy(tile) / 255.0 - mean) / std).permute(2, 0, 1)


def network(device: str, arch: str, batches: Sequence[int], seconds: float) -> Rates:
    """Measure PyTorch alone, half precision and channels last, on tiles in the memory of the device."""
    import torch  # noqa: PLC0415  heavy
    import torchvision  # noqa: PLC0415  heavy

    kind = torch.float16 if device == "cuda" else torch.float32
    torch.backends.cudnn.benchmark = True
    model = getattr(torchvision.models, arch)(weights=None, num_classes=1).eval()
    model = model.to(device, kind, memory_format=torch.channels_last)
    found: Rates = {}
    with torch.inference_mode():
        for batch in batches:
            tiles = torch.rand(batch, 3, _TILE_PX, _TILE_PX, device=device, dtype=kind)
            tiles = tiles.contiguous(memory_format=torch.channels_last)
            found[f"batch {batch}"] = rate(lambda tiles=tiles: model(tiles), batch, seconds, _finished(device))
    return found


def _finished(device: str) -> Callable[[], object]:
    import torch  # noqa: PLC0415  heavy

    return torch.cuda.synchronize if device == "cuda" else lambda: None


def steps(device: str, arch: str, bag: int, seconds: float) -> Rates:
    """Measure steps of training on one bag in the memory of the device: forward, backward, Adam."""
    found: Rates = {}
    for name in ("bf16, channels last, no cudnn.benchmark", "bf16, channels last", "TF32", "bf16", "fp32"):
        try:
            found[name] = _step(device, arch, bag, seconds, name)
        except RuntimeError as error:  # not enough memory
            found[name] = f"failed: {str(error)[:100]}"
    return found


def _step(device: str, arch: str, bag: int, seconds: float, name: str) -> float:
    import torch  # noqa: PLC0415  heavy
    import torchvision  # noqa: PLC0415  heavy

    torch.backends.cudnn.benchmark = not name.endswith("benchmark")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name != "fp32"
    order = torch.channels_last if "last" in name else torch.contiguous_format
    model = getattr(torchvision.models, arch)(weights=None, num_classes=1).train().to(device, memory_format=order)
    adam = torch.optim.Adam(model.parameters(), lr=1e-4)
    tiles = torch.rand(bag, 3, _TILE_PX, _TILE_PX, device=device).contiguous(memory_format=order)

    def step() -> None:
        adam.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled="bf16" in name):
            logits = model(tiles)
        torch.nn.functional.softplus(-logits.float()).mean().backward()
        adam.step()

    return rate(step, bag, seconds, _finished(device))


def train(cohort: str, device: str, change: str = "", **settings: Any) -> Rates:  # noqa: ANN401  the fields of TrainConfig
    """Train on tile stores: tiles a second and share of waiting of the middle epoch after the first, and all seconds.

    With `change` "one layer" the network has one.
    """
    import csv  # noqa: PLC0415  only here
    import resource  # noqa: PLC0415  not on Windows

    from wsiseg.config.train import TrainConfig  # noqa: PLC0415  of the checkout to measure
    from wsiseg.training.train import train as run  # noqa: PLC0415  the same

    if change == "one layer":
        from feed_training import one_layer  # noqa: PLC0415  beside this file

        one_layer()
    watch = _Watch()
    with TemporaryDirectory(dir=Path(cohort).parent.parent) as out:
        config = TrainConfig.checked(cohort=Path(cohort), out=Path(out), init="none", device=device, **settings)
        began = time.perf_counter()
        run(config, watch)
        seconds = time.perf_counter() - began
        rows = sorted(_epochs(csv.DictReader((Path(out) / "metrics.csv").open(encoding="utf-8"))))
    later = rows[1:] or rows
    speed, waiting = sorted(later)[len(later) // 2]
    mine, readers = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "tiles_per_s": round(speed, 1),
        "waiting": round(waiting, 3),
        "seconds": round(seconds, 1),
        "processor_s": round(mine.ru_utime + mine.ru_stime, 1),
        "of readers": round(readers.ru_utime + readers.ru_stime, 1),
        **{f"until {text}": round(moment - began, 1) for moment, text in watch.notes},
    }


def _epochs(rows: Any) -> Iterator[tuple[float, float]]:  # noqa: ANN401  a csv.DictReader
    for row in rows:
        yield float(row["tiles_per_s"]), float(row["waiting"])
