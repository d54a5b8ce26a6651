"""Slides whose disk does not answer: given up by name, while the others are done."""

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from making.models import write_color_filter_model
from making.slides import stained_picture
from making.waiting import LONGEST_S
from wsiseg.config.predict import PredictConfig
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.errors import StalledError
from wsiseg.run.machine import CORES
from wsiseg.run.record import Progress
from wsiseg.slides import time_limit
from wsiseg.slides.slide import Slide
from wsiseg.slides.time_limit import TimeLimit

MakeSlide = Callable[..., Path]

# With a lease on a file, Linux lets everybody else who opens it wait, for up to 45 s. OpenSlide opens a file for every
# reading, so to it this is a disk that does not answer.
LEASE = """
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = os.open(sys.argv[1], os.O_RDWR)
while True:
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        break
    except BlockingIOError:
        time.sleep(0.001)
print("held", flush=True)
sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(not hasattr(fcntl, "F_SETLEASE"), reason="needs Linux's leases on files")


@contextmanager
def stalled(path: Path) -> Iterator[None]:
    """Let everybody who opens a file wait."""
    command = [sys.executable, "-c", LEASE, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        if process.stdout.readline() != b"held\n":
            pytest.skip("this file system knows no leases")
        try:
            yield
        finally:
            process.stdin.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_color_filter_model(tmp_path / "colors.onnx")


def test_a_slide_that_cannot_be_opened_is_given_up_and_the_others_are_done(
    tmp_path: Path, make_slide: MakeSlide, model: Path
) -> None:
    for name in "abc":
        make_slide(f"slides/{name}.tiff")
    (tmp_path / "patience.toml").write_text("read_timeout = 5\n")
    command = [sys.executable, "-m", "wsiseg", "predict", "slides", "--model", str(model), "--out", "out"]
    command += ["--config", "patience.toml"]
    with stalled(tmp_path / "slides" / "b.tiff"):
        done = subprocess.run(
            [*command, "--config", "patience.toml"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            timeout=LONGEST_S,
        )
        with pytest.raises(BlockingIOError):  # the process ended before the file was let go
            os.open(tmp_path / "slides" / "b.tiff", os.O_RDONLY | os.O_NONBLOCK)
    assert done.returncode == 1
    assert "failed: b.tiff: reading hangs for 5 s; check the disk or network" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.ome.zarr")) == ["a.ome.zarr", "c.ome.zarr"]
    assert not list((tmp_path / "out").glob(".*.lock"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dense", "tile"])
def test_a_slide_that_hangs_half_way_is_given_up_and_the_others_are_done(
    tmp_path: Path, make_slide: MakeSlide, model: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CORES, "2")  # more would have read all before anything is known
    large = np.tile(stained_picture(1000, 1000), (5, 6, 1))  # more than the reader's cache holds
    paths = [make_slide("a.tiff"), make_slide("b.tiff", large, compression="jpeg"), make_slide("c.tiff")]

    with ExitStack() as stack:

        class Disk(Progress):
            is_there = True

            def advance(self, slide: str, tiles: int, waited_s: float = 0.0) -> None:  # noqa: ARG002  its own matter
                if slide == "b" and tiles and self.is_there:
                    self.is_there = False
                    stack.enter_context(stalled(paths[1]))

        settings = {"inputs": [str(path) for path in paths], "model": [str(model)], "out": tmp_path / "out"}
        config = PredictConfig.checked(**settings, map=kind, tissue="none", read_timeout=5)
        run = predict_slides(config, Disk())
    assert {record.slide: record.status for record in run.slides} == {"a": "ok", "b": "failed", "c": "ok"}
    (failed,) = run.failed
    assert failed.error is not None
    assert (failed.error.type, failed.error.message) == ("StalledError", "b.tiff: reading hangs for 5 s")


def test_once_reading_hung_no_further_time_is_lost(make_slide: MakeSlide) -> None:
    path = make_slide("a.tiff")
    with Slide(path, longest_read_s=1) as slide, stalled(path):
        began = time.monotonic()
        for _ in range(20):
            with pytest.raises(StalledError, match=r"a\.tiff: reading hangs for 1 s"):
                slide.read(0, 0, (224, 224), 0.5)
        assert 1 <= time.monotonic() - began < 15  # 20 if each waited


def test_what_a_call_raises_is_its_own_even_if_it_took_too_long_itself() -> None:
    limit = TimeLimit("a.tiff", 10)

    def timed_out() -> None:
        raise TimeoutError("the network")

    with pytest.raises(TimeoutError, match="the network"):
        limit.call(timed_out)
    assert limit.call(lambda: 3) == 3


def test_what_comes_at_the_last_moment_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Future[int]):
        def result(self, timeout: float | None = None) -> int:
            found = super().result()
            if timeout is not None:
                raise TimeoutError
            return found

    monkeypatch.setattr(time_limit, "Future", Late)
    assert TimeLimit("a.tiff", 10).call(lambda: 3) == 3
