"""Disks that are full or read-only, and slides that vanish: a clear error, and nothing that was there is lost."""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from making.models import write_color_filter_model
from making.predictions import command, digest, write_slides
from making.slides import stained_picture
from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.prediction.map_files import MapFiles
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.machine import CORES
from wsiseg.run.record import Progress, Run, SlideRecord
from wsiseg.slides.cohort_slide import CohortSlide
from wsiseg.slides.slide import Slide

Mount = Callable[..., None]
MakeSlide = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "colors.onnx")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), 3)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """Give a small disk of its own and a function that mounts it anew with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)],  # noqa: S607  where it lies differs
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")

    try:
        mount("size=40m")
    except FileNotFoundError:
        pytest.skip("no disk can be mounted here: there is no mount")
    yield folder, mount
    subprocess.run(["umount", str(folder)], check=True)  # noqa: S607  where it lies differs


def start(slides: Path, model: Path, out: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command(slides, model, out, *more), capture_output=True, text=True, check=False, timeout=200)
    assert "Traceback" not in done.stderr
    return done


def test_on_a_full_disk_earlier_results_stay_and_the_error_names_the_file(
    disk: tuple[Path, Mount], slides: Path, model: Path
) -> None:
    folder, _ = disk
    out = folder / "out"
    assert start(slides / "s0.tiff", model, out).returncode == 0
    before = digest(out)
    filler = folder / "filler"
    _fill(filler)
    done = start(slides, model, out)
    assert done.returncode == 1
    sentence = rf"wsiseg: {out}/\S+: cannot be written: No space left on device; free some room or choose another --out"
    assert re.search(sentence, done.stderr)
    assert {name: value for name, value in digest(out).items() if name in before} == before
    Run.read(out / "run.json")
    _nothing_half_written(out)

    filler.unlink()
    assert start(slides, model, out).returncode == 0
    assert json.loads((out / "run.json").read_text())["totals"] == {"ok": 2, "failed": 0, "up_to_date": 1}


def test_a_disk_that_fills_while_results_are_written_fails_those_slides_alone(
    disk: tuple[Path, Mount], slides: Path, model: Path
) -> None:
    folder, _ = disk
    out, filler = folder / "out", folder / "filler"

    class Watcher(Progress):
        def slide(self, slide: str, tiles: int) -> None:  # noqa: ARG002  its own matter
            if slide == "s1":
                _fill(filler, but=24_000)

        def done(self, record: SlideRecord) -> None:
            if record.slide == "s1":
                filler.unlink()

    def run(progress: Progress, *numbers: int) -> dict[str, SlideRecord]:
        # What is done already comes last: nothing but the slide that fails writes while the disk is full.
        names = [str(slides / f"s{number}.tiff") for number in numbers]
        config = PredictConfig.checked(inputs=names, model=[str(model)], out=out, tissue="none")
        return {record.slide: record for record in predict_slides(config, progress).slides}

    assert run(Progress(), 0)["s0"].status == "ok"
    before = digest(out)
    found = run(Watcher(), 1, 0)
    assert {slide: record.status for slide, record in found.items()} == {"s0": "up_to_date", "s1": "failed"}
    failed = found["s1"].error
    assert failed is not None
    assert "s1." in failed.message
    assert "No space left" in failed.message
    assert {name: value for name, value in digest(out).items() if name in before} == before
    _nothing_half_written(out)
    assert run(Progress(), 1, 0)["s1"].status == "ok"


def test_a_read_only_folder_is_one_sentence_and_keeps_what_is_in_it(
    disk: tuple[Path, Mount], slides: Path, model: Path
) -> None:
    folder, mount = disk
    out = folder / "out"
    assert start(slides / "s0.tiff", model, out).returncode == 0
    before = _bytes(out)
    mount("remount", "ro")
    done = start(slides, model, out)
    assert done.returncode == 1
    assert done.stderr.count("Read-only file system") == 1
    assert str(out) in done.stderr
    assert _bytes(out) == before


def test_a_slide_that_vanishes_after_it_was_listed_fails_by_name_and_the_others_are_done(
    tmp_path: Path, make_slide: MakeSlide, model: Path
) -> None:
    paths = [make_slide(f"{name}.tiff") for name in "abcdef"]

    class Thief(Progress):
        def slide(self, slide: str, tiles: int) -> None:  # noqa: ARG002  its own matter
            if slide == "a":
                paths[4].unlink()

    config = PredictConfig.checked(inputs=[str(path) for path in paths], model=[str(model)], out=tmp_path / "out")
    run = predict_slides(config, Thief())
    assert [record.status for record in run.slides] == ["ok", "ok", "ok", "ok", "failed", "ok"]
    (failed,) = run.failed
    assert failed.error is not None
    assert failed.error.message == f"{paths[4]}: no such file"


@pytest.mark.parametrize("kind", ["dense", "tile"])
def test_a_slide_that_vanishes_while_it_is_read_fails_by_name(
    tmp_path: Path, make_slide: MakeSlide, model: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CORES, "2")  # more would have read all before anything is known
    large = np.tile(stained_picture(1000, 1000), (5, 6, 1))  # more than the reader's cache holds
    paths = [make_slide("a.tiff", large, compression="jpeg"), make_slide("b.tiff")]

    class Thief(Progress):
        def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:  # noqa: ARG002  its own matter
            if slide == "a" and tiles:
                paths[0].unlink(missing_ok=True)

    names = [str(path) for path in paths]
    config = PredictConfig.checked(inputs=names, model=[str(model)], out=tmp_path / "out", map=kind, tissue="none")
    run = predict_slides(config, Thief())
    assert [record.status for record in run.slides] == ["failed", "ok"]
    (failed,) = run.failed
    assert failed.error is not None
    assert failed.error.message.startswith("a.tiff: ")
    assert not (tmp_path / "out" / "a.ome.zarr").exists()


@pytest.mark.parametrize(("of", "step"), [(CohortSlide, "open"), (Slide, "fill"), (MapFiles, "write")])
def test_a_slide_that_needs_more_memory_than_there_is_fails_alone(
    tmp_path: Path, make_slide: MakeSlide, model: Path, monkeypatch: pytest.MonkeyPatch, of: type, step: str
) -> None:
    as_it_is = getattr(of, step)

    def hungry(self: Any, *arguments: Any, **more: Any) -> Any:
        if "b.tiff" in f"{getattr(self, 'path', '')} {getattr(self, 'outputs', '')}".replace("b.ome.zarr", "b.tiff"):
            raise MemoryError
        return as_it_is(self, *arguments, **more)

    monkeypatch.setattr(of, step, hungry)
    names = [str(make_slide(f"{name}.tiff")) for name in "abc"]
    run = predict_slides(PredictConfig.checked(inputs=names, model=[str(model)], out=tmp_path / "out", tissue="none"))
    assert {record.slide: record.status for record in run.slides} == {"a": "ok", "b": "failed", "c": "ok"}
    (failed,) = run.failed
    assert failed.error is not None
    assert failed.error.message == "b.tiff: out of memory"
    assert failed.error.hint.startswith("give it more memory")
    assert not list((tmp_path / "out").glob("*b*zarr"))


def test_slides_come_from_a_pipe_and_json_goes_into_one(tmp_path: Path, slides: Path, model: Path) -> None:
    reads = "import json, sys; print(*(record['status'] for record in json.load(sys.stdin)['slides']))"
    predict = f'"$1" -m wsiseg predict - --json --tissue none --model {model} --out {tmp_path}/out'
    line = f'ls {slides}/*.tiff | {predict} | "$1" -c "$2"'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, "bash", sys.executable, reads],  # noqa: S607  where it lies differs
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ok ok ok\n"


def _fill(path: Path, but: int = 0) -> None:
    """Fill the disk but for some bytes."""
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(65536))
    except OSError:
        pass
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - but)


def _bytes(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _nothing_half_written(out: Path) -> None:
    assert not list(out.glob(".*.partial-*")), "something half-written lies about"
    for path in out.glob("*.ome.zarr"):
        Heatmap.open(path)
