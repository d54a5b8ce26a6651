"""Prediction as on an accelerator: large batches that run on, windows by size, two at once, readers of their own."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from making.accelerators import NO_MEMORY, pretend
from making.models import write_color_filter_model
from making.predictions import digest
from making.slides import write_slide
from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file import onnx_session
from wsiseg.model_file.onnx_session import CPU, PROVIDERS
from wsiseg.prediction import feed, mapping, windows
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.errors import OutputError
from wsiseg.run.reader_processes import ReaderProcesses
from wsiseg.run.record import Progress, Run

SLIDES = 3
needs_memfd = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux's files in memory")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "colors.onnx")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write slides with islands of noise of many sizes, so that windows of dense maps have many too."""
    folder = tmp_path_factory.mktemp("slides")
    for number in range(SLIDES):
        random = np.random.default_rng(number)
        picture = np.full((1500, 2600, 3), 245, np.uint8)
        for _ in range(6):
            height, width = random.integers(100, 900, 2)
            top, left = random.integers(0, 1500 - height), random.integers(0, 2600 - width)
            shades = random.integers(-60, 60, (height // 9 + 1, width // 9 + 1, 1)).repeat(9, 0).repeat(9, 1)
            picture[top : top + height, left : left + width] = (shades[:height, :width] + (170, 130, 180)).astype(
                np.uint8
            )
        write_slide(folder / f"s{number}.tiff", picture, compression="jpeg")
    return folder


def mapped(slides: Path, model: Path, out: Path, watch: Progress | None = None, **settings: Any) -> Run:
    return predict_slides(PredictConfig.checked(inputs=[str(slides)], model=[str(model)], out=out, **settings), watch)


def maps(folder: Path) -> list[Heatmap]:
    return [Heatmap.open(folder / f"s{number}.ome.zarr") for number in range(SLIDES)]


def assert_alike(folder: Path, other: Path, kind: str) -> None:
    """Compare maps: by tiles to the bit; of windows in another order sums are rounded otherwise."""
    for one, two in zip(maps(folder), maps(other), strict=True):
        np.testing.assert_allclose(one.probabilities, two.probabilities, rtol=0, atol=0 if kind == "tile" else 3e-7)
        np.testing.assert_array_equal(one.tissue, two.tissue)


@pytest.fixture(scope="module", params=["tile", "dense"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def on_cpu(slides: Path, model: Path, kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cpu") / kind
    mapped(slides, model, out, device="cpu", map=kind)
    return out


def test_maps_are_those_of_the_cpu_and_the_choice_is_recorded(
    slides: Path, model: Path, kind: str, on_cpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    pretend(monkeypatch, before=lambda images: asked.append(images.shape))
    monkeypatch.setattr(onnx_session, "speed", lambda session, *_, **__: 9.0 if session.named != [CPU] else 2.0)
    run = mapped(slides, model, tmp_path, map=kind)
    assert_alike(tmp_path, on_cpu, kind)
    reason = "the fastest with this file, in tiles/s: cuda 9, cpu 2"
    assert run.device == {"requested": "auto", "provider": PROVIDERS["cuda"], "reason": reason}
    assert Run.read(tmp_path / "run.json").device == run.device
    large = [shape for shape in asked if shape[0] > 1]
    assert {shape[0] for shape in large} == {128 if kind == "tile" else 4}
    if kind == "dense":
        assert len({shape[1:] for shape in large}) > 3


@pytest.mark.slow
@needs_memfd
def test_so_they_are_where_processes_read_though_one_is_killed(
    slides: Path, model: Path, kind: str, on_cpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[ReaderProcesses] = []
    real = ReaderProcesses.__init__

    def remember(processes: ReaderProcesses, count: int) -> None:
        started.append(processes)
        real(processes, count)

    made, asked, make = list[str](), list[tuple[int, ...]](), os.memfd_create

    def counted(name: str) -> int:
        made.append(name)
        return make(name)

    monkeypatch.setattr(os, "memfd_create", counted)
    monkeypatch.setattr(ReaderProcesses, "__init__", remember)

    class Killing(Progress):
        has_killed = False

        def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:
            del slide, waited_s
            if tiles and not self.has_killed:
                self.has_killed = True
                started[0]._all[0].process.kill()

    monkeypatch.setattr(feed, "within_memory", lambda _most: 1)  # nothing is read ahead, so memory comes back at once
    watch = Killing()
    pretend(monkeypatch, readers=2, before=lambda images: asked.append(images.shape))
    mapped(slides, model, tmp_path, watch, device="cuda", map=kind)
    assert watch.has_killed
    assert len(started[0]) == 2
    batches = [shape for shape in asked if shape[0] > 1]
    assert kind == "tile" or len(made) <= len(batches) // 2, "memory is used again whatever the size of windows"
    assert_alike(tmp_path, on_cpu, kind)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [{"device": "cuda:0,cuda:1"}, {"device": "cuda", "jobs": 2}])
def test_processes_give_what_one_gives_to_the_byte(
    slides: Path, model: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: dict[str, Any]
) -> None:
    pretend(monkeypatch)
    one = mapped(slides, model, tmp_path / "one", device="cuda", map=kind)
    several = mapped(slides, model, tmp_path / "several", map=kind, **shared)
    assert one.totals == several.totals == {"ok": SLIDES, "failed": 0}
    assert several.device is not None
    assert several.device["provider"] == PROVIDERS["cuda"]
    assert digest(tmp_path / "one") == digest(tmp_path / "several")


@pytest.mark.parametrize("most", [5, 1])
def test_without_memory_for_a_batch_parts_of_it_are_computed(
    slides: Path, model: Path, kind: str, on_cpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    failed: list[tuple[int, ...]] = []

    def before(images: NDArray[np.uint8]) -> None:
        if len(images) > most:
            failed.append(images.shape)
            raise RuntimeError(NO_MEMORY)

    pretend(monkeypatch, before=before)
    mapped(slides, model, tmp_path, device="cuda", map=kind)
    assert_alike(tmp_path, on_cpu, kind)
    assert bool(failed) is (kind == "tile" or most == 1)
    assert len(failed) <= 2 * len(set(failed)), "what was too much is not asked again"


def test_without_memory_for_one_window_slides_fail_with_a_sentence(
    slides: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def before(images: NDArray[np.uint8]) -> None:
        if images.shape[1] > 288:  # larger than those of the self-test
            raise RuntimeError(NO_MEMORY)

    pretend(monkeypatch, before=before)
    run = mapped(slides, model, tmp_path, device="cuda", map="dense")
    assert run.exit_code == 1
    said = {record.error.message for record in run.slides if record.error}
    assert said == {f"s{number}.tiff: out of memory" for number in range(SLIDES)}


def test_a_device_that_breaks_fails_slides_with_a_sentence_and_the_next_run_maps_them(
    slides: Path, model: Path, kind: str, on_cpu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def before(images: NDArray[np.uint8]) -> None:
        calls.append(len(images))
        if len(calls) > 6:  # five are the self-test
            raise RuntimeError(
                "Status Message: CudaCall(ERRTYPE, const char*) CUDA failure 719: unspecified launch failure ; GPU=0 ; "
                "hostname=node-17 ; file=conv.cc"
            )

    with monkeypatch.context() as patch:
        pretend(patch, before=before)
        run = mapped(slides, model, tmp_path, device="cuda", map=kind)
    assert (run.exit_code, run.status) == (1, "failed" if not run.totals["ok"] else "partial")
    errors = [record.error for record in run.slides if record.error]
    assert all(error.message.endswith(": CUDA failure 719: unspecified launch failure") for error in errors)
    assert {error.hint for error in errors} == {"try --device cpu"}
    pretend(monkeypatch)
    assert mapped(slides, model, tmp_path, device="cuda", map=kind).totals["failed"] == 0
    assert_alike(tmp_path, on_cpu, kind)


class Stopping(Progress):
    """Stops a run after so many tiles; counts them."""

    def __init__(self, after: float) -> None:
        self.after, self.tiles = after, 0

    def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:
        del slide, waited_s
        self.tiles += tiles
        if self.tiles > self.after:
            raise OutputError("the disk is full")


@pytest.mark.slow
def test_half_a_map_goes_on_in_its_own_order_alone(
    slides: Path, model: Path, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "SAVE_EVERY_S", 0.0)
    for name, few in (("BATCH", 8), ("TILES_AT_ONCE", 8), ("WINDOWS_AT_ONCE", 1)):
        monkeypatch.setattr(windows, name, few)
    one, whole = slides / "s0.tiff", Stopping(np.inf)
    pretend(monkeypatch)
    mapped(one, model, tmp_path / "whole", whole, device="cuda", map=kind)
    for begun_on, is_used in (("cuda", True), ("cpu", False)):
        out, again = tmp_path / begun_on, Stopping(np.inf)
        assert mapped(one, model, out, Stopping(whole.tiles / 2), device=begun_on, map=kind).failed
        assert list(out.glob(".s0.unfinished-*"))
        mapped(one, model, out, again, device="cuda", map=kind)
        assert (again.tiles < whole.tiles) is is_used
        assert digest(out) == digest(tmp_path / "whole")


@pytest.mark.parametrize(("device", "at_once"), [("cuda", 2), ("directml", 1)])
def test_directml_is_not_called_twice_at_once(
    slides: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, at_once: int
) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def before(_images: NDArray[np.uint8]) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05)
        with lock:
            now -= 1

    pretend(monkeypatch, device, before=before)
    mapped(slides / "s0.tiff", model, tmp_path, device=device, map="dense")
    assert most == at_once
