"""Runs that are killed, run side by side, or spread over processes give what one quiet run gives."""

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from making.models import write_color_filter_model
from making.predictions import command, digest, write_slides
from making.waiting import LONGEST_S
from wsiseg.prediction import locks

SLIDES = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "colors.onnx")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), SLIDES)


@pytest.fixture(scope="module")
def quiet(slides: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("quiet") / "out"
    subprocess.run(command(slides, model, out), check=True, capture_output=True)
    return digest(out)


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tmp_path: Path, slides: Path, model: Path, quiet: dict[str, str]) -> None:
    moments, out = random.Random(0), tmp_path / "out"
    for _ in range(20):
        process = subprocess.Popen(command(slides, model, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.8, 5.0))
        process.kill()
        process.wait()
        for path in out.glob("*.ome.zarr"):
            assert (path / "labels" / "segmentation" / ".zattrs").is_file(), f"{path} is half written"
        for path in out.glob("*.json"):
            json.loads(path.read_text())
    subprocess.run(command(slides, model, out), check=True, capture_output=True)
    assert digest(out) == quiet
    report = json.loads((out / "run.json").read_text())
    assert (report["status"], len(report["slides"])) == ("complete", SLIDES)


@pytest.mark.slow
def test_two_processes_share_a_folder(tmp_path: Path, slides: Path, model: Path, quiet: dict[str, str]) -> None:
    out = tmp_path / "out"
    both = [subprocess.Popen(command(slides, model, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in "ab"]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert digest(out) == quiet
    assert len(json.loads((out / "run.json").read_text())["slides"]) == SLIDES


def write_lock(path: Path, process: int, host: str, duration: float = 120.0) -> None:
    """Write the lock of a process that began at some other time."""
    facts = {"pid": process, "host": host, "mode": "lease", "token": 32 * "a", "duration": duration, "start": 12345}
    path.write_text("filelock/2\n" + "".join(f"{name}={value}\n" for name, value in facts.items()))


_AT_IT = """
import sys, time
from wsiseg.config.predict import PredictConfig
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.record import Progress
class Lingering(Progress):
    def advance(self, slide, tiles, waited_s=0.0):
        print("at it", flush=True)
        time.sleep(1000)
slide, model, out = sys.argv[1:]
predict_slides(PredictConfig.checked(inputs=[slide], model=[model], out=out, tissue="none"), Lingering())
"""
"""A program that begins to map a slide and does not come to its end."""


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path: Path, slides: Path, model: Path) -> None:
    out = tmp_path / "out"
    at_it = [sys.executable, "-c", _AT_IT, str(slides / "s5.tiff"), str(model), str(out)]
    with subprocess.Popen(at_it, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"at it\n"
        process.kill()
    (lock,) = out.glob(".s*.lock")
    facts = dict(line.split("=") for line in lock.read_text().splitlines()[1:])
    assert (facts["pid"], facts["host"]) == (str(process.pid), socket.gethostname())
    assert int(facts["start"]) > 0
    subprocess.run(command(slides / "s5.tiff", model, out), check=True, capture_output=True, timeout=LONGEST_S)
    assert (out / "s5.ome.zarr").exists()
    assert not list(out.glob(".s*.lock"))


def test_the_lock_of_a_dead_process_is_no_lock_of_another_that_got_its_number(
    tmp_path: Path, slides: Path, model: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_lock(out / ".s0.lock", os.getpid(), socket.gethostname())
    subprocess.run(command(slides / "s0.tiff", model, out), check=True, capture_output=True, timeout=LONGEST_S)
    assert not (out / ".s0.lock").exists()


def test_a_process_on_another_machine_is_waited_for_by_name(tmp_path: Path, slides: Path, model: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    lock = out / ".s0.lock"
    write_lock(lock, 4711, "node-17")
    with subprocess.Popen(command(slides / "s0.tiff", model, out), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if "waiting" in line)
        assert said == f"waiting for process 4711 on node-17; if it is gone, delete {lock}\n"
        assert not (out / "s0.ome.zarr").exists()
        lock.unlink()
        process.stderr.read()
    assert process.returncode == 0
    assert (out / "s0.ome.zarr").exists()


def test_a_process_on_another_machine_that_gives_no_sign_of_life_is_waited_for_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "UNTOUCHED_S", 2.0)
    path = tmp_path / ".s0.lock"
    write_lock(path, 4711, "node-17", duration=2.0)
    waiting, began = locks.SlideLocks(), time.monotonic()
    while (taken := waiting.take(path)) is None:
        time.sleep(0.1)
    assert 2 <= time.monotonic() - began < 60  # 120 if the usual time counted
    taken[0].release()


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_jumps_breaks_no_lock_and_keeps_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    monkeypatch.setattr(locks, "UNTOUCHED_S", 60.0)  # however busy the machine is, there is a sign of life within it
    dead, alive = tmp_path / ".dead.lock", tmp_path / ".alive.lock"
    held, waiting = locks.SlideLocks().take(alive), locks.SlideLocks()
    then = time.time() + 86_400 * days
    os.utime(alive, (then, then))
    assert waiting.take(alive) is None
    monkeypatch.setattr(locks, "UNTOUCHED_S", 0.3)
    write_lock(dead, 4711, "node-17", duration=0.3)
    os.utime(dead, (then, then))
    began = time.monotonic()
    while (taken := waiting.take(dead)) is None:
        assert waiting.take(alive) is None
        time.sleep(0.05)
    assert 0.3 <= time.monotonic() - began < 30
    assert waiting.take(alive) is None
    for lock in (*taken, *(held or ())):
        lock.release()


@pytest.mark.slow
@pytest.mark.parametrize("days", [-1, 1])
def test_who_is_alive_keeps_a_lock_for_longer_than_it_lasts_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    monkeypatch.setattr(locks, "UNTOUCHED_S", 6.0)
    path, then = tmp_path / ".alive.lock", time.time() + 86_400 * days
    held, waiting, until = locks.SlideLocks().take(path), locks.SlideLocks(), time.monotonic() + 9
    os.utime(path, (then, then))
    while time.monotonic() < until:
        assert waiting.take(path) is None
        time.sleep(0.1)
    for lock in held or ():
        lock.release()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, slides: Path, model: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = subprocess.run(command(slides, model, tmp_path / "file"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{tmp_path / 'file'}" in done.stderr
    assert "cannot be written" in done.stderr
