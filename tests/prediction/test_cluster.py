"""Ten slides spread over processes, shards and workers that die give what one process gives."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from making.clusters import cluster_of
from making.models import write_color_filter_model
from making.predictions import command, digest, write_slides
from wsiseg.config.predict import PredictConfig
from wsiseg.prediction.predict import predict_slides

SLIDES = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "colors.onnx")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), SLIDES)


@pytest.fixture(scope="module")
def alone(slides: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("alone") / "out"
    subprocess.run(command(slides, model, out), check=True, capture_output=True)
    return digest(out)


@pytest.mark.slow
def test_three_shards_together_give_the_whole_and_a_second_command_lists_it(
    tmp_path: Path, slides: Path, model: Path, alone: dict[str, str]
) -> None:
    out, names = tmp_path / "out", []
    for number in (1, 2, 3):
        subprocess.run(command(slides, model, out, "--shard", f"{number}/3"), check=True, capture_output=True)
        report = json.loads((out / f"run.{number}-of-3.json").read_text())
        assert report["status"] == "complete"
        names += [record["slide"] for record in report["slides"]]
    assert sorted(names) == sorted(f"s{number}" for number in range(SLIDES))
    assert digest(out) == alone
    assert not (out / "run.json").exists()

    some = command(slides / "s3.tiff", model, out)
    subprocess.run(some, check=True, capture_output=True)
    subprocess.run(command(slides, model, out), check=True, capture_output=True)
    report = json.loads((out / "run.json").read_text())
    assert sorted(record["slide"] for record in report["slides"]) == sorted(names)
    assert report["totals"] == {"ok": 0, "failed": 0, "up_to_date": SLIDES}
    assert all(record["outputs"] and record["tissue_mm2"] > 0 for record in report["slides"])


def test_a_second_command_adds_its_slides_to_those_of_the_first(tmp_path: Path, slides: Path, model: Path) -> None:
    for name in ("s0", "s1"):
        settings = {"inputs": [str(slides / f"{name}.tiff")], "model": [str(model)], "out": tmp_path / "out"}
        assert len(predict_slides(PredictConfig.checked(**settings, tissue="none")).slides) == 1
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [record["slide"] for record in report["slides"]] == ["s0", "s1"]
    assert report["totals"]["ok"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("ways", [("--dask", "local:2"), ("--jobs", "2"), ("--device", "cpu,cpu")])
def test_several_processes_give_the_same_bytes(
    tmp_path: Path, slides: Path, model: Path, alone: dict[str, str], ways: tuple[str, str]
) -> None:
    if "--dask" in ways:
        pytest.importorskip("distributed", reason="needs the extra dask")
    out = tmp_path / "out"
    subprocess.run(command(slides, model, out, *ways), check=True, capture_output=True)
    assert digest(out) == alone


@pytest.mark.slow
@pytest.mark.parametrize("ways", [("--dask", "local:2"), ("--jobs", "2")])
def test_all_slides_are_done_when_a_worker_is_killed(
    tmp_path: Path, slides: Path, model: Path, alone: dict[str, str], ways: tuple[str, str]
) -> None:
    if "--dask" in ways:
        pytest.importorskip("distributed", reason="needs the extra dask")
    out = tmp_path / "out"
    with subprocess.Popen(
        command(slides, model, out, *ways), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        slide, worker = _slide_and_worker(out, process)
        os.kill(worker, signal.SIGKILL)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert digest(out) == alone
    report = json.loads((out / "run.json").read_text())
    assert report["totals"] == {"ok": SLIDES, "failed": 0}, f"{slide} was being mapped"


@pytest.mark.slow
def test_forty_slides_are_the_same_where_one_of_four_workers_is_killed_and_another_comes(
    tmp_path: Path, model: Path
) -> None:
    pytest.importorskip("distributed", reason="needs the extra dask")
    slides, out = write_slides(tmp_path / "slides", 40, taller_px=20), tmp_path / "out"
    subprocess.run(command(slides, model, tmp_path / "alone"), check=True, capture_output=True)
    with (
        cluster_of(4, tmp_path) as cluster,
        subprocess.Popen(
            command(slides, model, out, "--dask", cluster.address), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process,
    ):
        slide, worker = _slide_and_worker(out, process)
        assert worker in {one.pid for one in cluster.workers}
        os.kill(worker, signal.SIGKILL)
        cluster.add()
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait() == 0, said
    assert digest(out) == digest(tmp_path / "alone")
    report = json.loads((out / "run.json").read_text())
    assert report["totals"] == {"ok": 40, "failed": 0}, f"{slide} was being mapped"


def _slide_and_worker(out: Path, process: "subprocess.Popen[Any]") -> tuple[str, int]:
    """Wait until a worker is at a slide: the slide, and the number of the worker's process."""
    while process.poll() is None:
        for lock in out.glob(".s*.lock"):
            try:
                text = lock.read_text()
            except FileNotFoundError:  # the slide is done
                continue
            if (found := re.search(r"pid=(\d+)", text)) and not (out / f"{lock.name[1:-5]}.png").exists():
                return lock.name[1:-5], int(found[1])
        time.sleep(0.001)
    raise AssertionError("no worker took a slide")
