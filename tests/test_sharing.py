"""Runs that are killed, run side by side, or spread over processes give what one quiet run gives."""

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from made_slides import write_slide
from model_files import write_color_filter_model
from wsiseg.config import PredictConfig
from wsiseg.predict import predict_slides

SLIDES = 6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "colors.onnx")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for number in range(SLIDES):
        noise = np.random.default_rng(number).integers(60, 230, (900 + 200 * number, 1100, 3)).astype(np.uint8)
        write_slide(folder / f"s{number}.tiff", noise, compression="jpeg")
    return folder


def command(slides: Path, model: Path, out: Path, *more: str) -> list[str]:
    arguments = ["predict", str(slides), "--model", str(model), "--out", str(out), "--tissue", "none", "--csv", *more]
    return [sys.executable, "-m", "wsiseg", *arguments]


def digest(out: Path) -> dict[str, str]:
    """Give the hash of every file but the reports, which carry times."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    kept = [path for path in files if not path.name.startswith(("run", "report")) and path.parent.name != ".thumbnails"]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


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


def test_shards_together_give_the_whole(tmp_path: Path, slides: Path, model: Path, quiet: dict[str, str]) -> None:
    out, counts = tmp_path / "out", []
    for shard in ("1/3", "2/3", "3/3"):
        settings = {"inputs": [str(slides)], "model": [str(model)], "out": out, "tissue": "none", "csv": True}
        run = predict_slides(PredictConfig.checked(**settings, shard=shard))
        counts.append(len(run.slides))
        assert (out / f"run.{shard.replace('/', '-of-')}.json").is_file()
    assert sum(counts) == SLIDES
    assert digest(out) == quiet


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes(tmp_path: Path, slides: Path, model: Path, quiet: dict[str, str]) -> None:
    pytest.importorskip("distributed", reason="needs the extra dask")
    out = tmp_path / "out"
    subprocess.run(command(slides, model, out, "--dask", "local:2"), check=True, capture_output=True)
    assert digest(out) == quiet


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, slides: Path, model: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = subprocess.run(command(slides, model, tmp_path / "file"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr or "file" in done.stderr
