"""A finished run proves what it is: one altered bit anywhere is named, and an unaltered copy passes elsewhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from making.models import write_color_filter_model
from making.slides import stained_picture, write_slide
from wsiseg.config.doctor import DoctorConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.config.tile import TileConfig
from wsiseg.prediction.predict import predict_slides
from wsiseg.prediction.verify import verify
from wsiseg.run.proof import Findings, Written
from wsiseg.tiles.tile import tile


def predicted(folder: Path, *inputs: str, **settings: Any) -> None:
    names = [str(folder / "slides" / name) for name in inputs or ("a.tiff", "b.tiff")]
    given = {"model": [str(folder / "m.onnx")], "tissue": "none", "csv": True, "cells": True, **settings}
    predict_slides(PredictConfig.checked(inputs=names, out=folder / "out", **given))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with slides, a model file and the maps of a run in `out`."""
    folder = tmp_path_factory.mktemp("finished")
    write_color_filter_model(folder / "m.onnx")
    (folder / "slides").mkdir()
    for seed, name in enumerate("ab"):
        picture = stained_picture(1500, 900 + 300 * seed, seed)
        write_slide(folder / "slides" / f"{name}.tiff", picture, levels=[(750, 450 + 150 * seed)])
    predicted(folder)
    return folder


@pytest.fixture
def moved(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of all of it in another folder."""
    return Path(shutil.copytree(finished, tmp_path / "moved"))


def verified(folder: Path, place: str = "out", **settings: Any) -> Findings:
    given = {"model": str(folder / "m.onnx"), "slides": folder / "slides", **settings}
    return verify(DoctorConfig.checked(slide=folder / place, **given))


def flip(path: Path, place: float = 0.5, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= bit
    path.write_bytes(content)


def test_an_unaltered_run_passes_in_another_folder_and_answers_again(moved: Path) -> None:
    findings = verified(moved, sample=50)
    assert (findings.problems, findings.exit_code) == ((), 0)
    facts = findings.facts["run"]
    assert facts["not proven"] == []
    assert facts["files"] == "14 of 14 as recorded"
    assert facts["models"] == "1 as recorded"
    assert facts["slides"].startswith("2 of 2 as recorded")
    assert int(facts["asked again"].split()[0].replace(",", "")) > 1000


def test_a_part_of_the_windows_tells_the_same_where_they_tell_all(finished: Path, tmp_path: Path) -> None:
    """Near other windows and at borders a cell is the mean of several windows."""
    large = write_slide(tmp_path / "slides" / "c.tiff", stained_picture(4000, 3000), compression="jpeg")
    shutil.copy(finished / "m.onnx", tmp_path)
    for map_kind in ("dense", "tile"):
        predicted(tmp_path, large.name, map=map_kind)
        findings = verified(tmp_path, sample=60)
        assert findings.problems == ()
        cells, *_, off, _, _ = findings.facts["run"]["asked again"].split()
        assert 60 <= int(cells.replace(",", "")) < 4000
        assert float(off) < 1e-6


ALTERED = {
    "out/a.ome.zarr/0/0/0/0": "a.ome.zarr: ",
    "out/a.ome.zarr/labels/segmentation/0/0/0/0": "a.ome.zarr: ",
    "out/b.ome.zarr/.zattrs": "b.ome.zarr: ",
    "out/b.ome.zarr/0/.zarray": "b.ome.zarr: ",
    "out/b.ome.zarr/OME/METADATA.ome.xml": "b.ome.zarr: ",
    "out/a.geojson": "a.geojson: its content is not what was written",
    "out/b.png": "b.png: ",
    "out/a.csv": "a.csv: ",
    "out/b.cells.geojson.gz": "b.cells.geojson.gz: ",
    "out/.thumbnails/a.jpg": ".thumbnails/a.jpg: ",
    "out/slides.csv": "slides.csv: ",
    "out/report.html": "report.html: ",
    "m.onnx": "m.onnx: is not the model of this run",
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_bit_is_named(moved: Path, name: str) -> None:
    flip(moved / name)
    findings = verified(moved)
    assert findings.exit_code == 1
    (problem,) = findings.problems
    assert problem.removeprefix(f"{moved}/").startswith(ALTERED[name])


@pytest.mark.parametrize("place", [0.01, 0.2, 0.4, 0.6, 0.8, 0.999])
def test_an_altered_bit_of_the_record_is_named(moved: Path, place: float) -> None:
    """Settings and what became of slides among them."""
    flip(moved / "out" / "run.json", place)
    assert any(problem.startswith("run.json: ") for problem in verified(moved).problems)


def test_an_altered_setting_is_named_though_the_record_can_be_read(moved: Path) -> None:
    path = moved / "out" / "run.json"
    for before, after in (('"min_tissue": 0.5', '"min_tissue": 0.4'), ('"digest"', '"dagest"')):
        text = path.read_text()
        path.write_text(text.replace(before, after))
        assert verified(moved).problems == ("run.json: its content is not what was written (digest)",)
        path.write_text(text)


def test_an_altered_slide_is_named(moved: Path) -> None:
    slide = moved / "slides" / "b.tiff"
    flip(slide, 0.9)  # in the coarsest level
    assert verified(moved).problems[0].startswith(f"{slide}: is not the slide of this run")


def test_pixels_of_a_finer_level_are_proven_by_asking_again(moved: Path) -> None:
    slide = moved / "slides" / "b.tiff"
    content = bytearray(slide.read_bytes())
    content[1_000_000:1_600_000] = bytes(600_000)
    slide.write_bytes(content)
    findings = verified(moved)
    assert findings.problems == ()
    assert any("finer levels" in text for text in findings.facts["run"]["not proven"])
    (problem,) = verified(moved, sample=50).problems
    assert problem.startswith("b.tiff: asked again, ")


def test_a_cell_that_was_altered_with_its_hash_is_found_by_asking_again(moved: Path) -> None:
    """Only who computes all hashes anew goes unnoticed, which a signature would prevent."""
    import zarr  # noqa: PLC0415  heavy

    group: Any = zarr.open_group(str(moved / "out" / "a.ome.zarr"), mode="r+")
    values = np.asarray(group["0"])
    values[0, 10, 10] = 1 - values[0, 10, 10]
    group["0"][:] = values
    assert any("asked again" in text for text in verified(moved, sample=500).problems)


def test_what_is_gone_is_a_file_that_differs_or_is_not_proven(moved: Path) -> None:
    (moved / "out" / "a.png").unlink()
    (moved / "m.onnx").unlink()
    shutil.rmtree(moved / "slides")
    findings = verified(moved, sample=3)
    assert findings.problems == ("a.png: is gone",)
    said = "; ".join(findings.facts["run"]["not proven"])
    assert "m.onnx: the model file is not there; name it with --model" in said
    assert "a.tiff is not there; see --slides" in said


def test_one_heatmap_is_verified_alone(moved: Path) -> None:
    flip(moved / "out" / "b.png")
    assert verified(moved, "out/b.ome.zarr").problems == ()
    flip(moved / "out" / "b.ome.zarr" / ".zgroup", 0.3)
    assert verified(moved, "out/b.ome.zarr").problems[0].startswith("b.ome.zarr: ")
    assert verified(moved, "out/a.ome.zarr").problems == ()


def test_running_again_does_not_make_a_changed_file_the_true_one(moved: Path) -> None:
    path = moved / "out" / "b.geojson"
    flip(path)
    predicted(moved)
    assert [problem[:10] for problem in verified(moved).problems] == ["b.geojson:"]
    predicted(moved, overwrite=True)
    assert verified(moved).problems == ()


def test_a_run_without_hashes_is_not_proven_and_gets_them_when_it_runs_again(moved: Path) -> None:
    path = moved / "out" / "run.json"
    raw = json.loads(path.read_text())
    for one in (raw, *raw["slides"]):
        del one["written"]
    del raw["digest"]
    path.write_text(json.dumps(raw))
    flip(moved / "out" / "a.png")
    findings = verified(moved)
    assert findings.exit_code == 0
    assert any("no hashes recorded" in text for text in findings.facts["run"]["not proven"])
    predicted(moved)
    assert verified(moved).problems == ()
    flip(moved / "out" / "a.png")
    assert verified(moved).problems[0].startswith("a.png: ")


def test_a_record_without_hashes_of_another_command_proves_nothing_and_says_so(tmp_path: Path, finished: Path) -> None:
    tile(TileConfig.checked(inputs=[str(finished / "slides")], out=tmp_path / "tiles", tissue="none"))
    findings = verified(tmp_path, "tiles")
    assert [text.split(",")[0] for text in findings.facts["run"]["not proven"]] == ["run.json: no hashes recorded"]


def test_files_whose_names_are_no_text_are_verified(tmp_path: Path, finished: Path) -> None:
    name = os.fsdecode(b"odd\xff.tiff")
    (tmp_path / "slides").mkdir()
    for original, copy in (("slides/a.tiff", f"slides/{name}"), ("m.onnx", "m.onnx")):
        shutil.copyfile(finished / original, tmp_path / copy)
    predicted(tmp_path, name)
    assert verified(tmp_path).problems == ()
    flip(tmp_path / "out" / f"{Path(name).stem}.png")
    assert len(verified(tmp_path).problems) == 1


def test_shards_are_verified_together(moved: Path) -> None:
    for number in (1, 2):
        predicted(moved, shard=f"{number}/2", overwrite=True)
    assert verified(moved).problems == ()
    flip(moved / "out" / "slides.csv")
    assert verified(moved).problems[0].startswith("slides.csv: ")


def test_a_record_that_names_files_elsewhere_does_not_lead_there(moved: Path) -> None:
    path = moved / "out" / "run.json"
    path.write_text(path.read_text().replace('"b.png": {', '"../m.onnx": {'))
    assert "../m.onnx: is no name of a file in this folder" in verified(moved).problems


def test_a_hash_is_what_other_programs_compute(moved: Path) -> None:
    heatmap = moved / "out" / "a.ome.zarr"
    line = "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
    said = subprocess.run(["bash", "-c", line], cwd=heatmap, capture_output=True, text=True, check=True).stdout  # noqa: S607  where it lies differs
    assert Written.of(heatmap).sha256 == said.split()[0]


def test_the_command_names_what_differs_and_leaves_with_1(moved: Path) -> None:
    flip(moved / "out" / "b.png")
    command = [sys.executable, "-m", "wsiseg", "doctor", "out", "--slides", "slides", "--model", "m.onnx"]
    done = subprocess.run(command, cwd=moved, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "problem: b.png: its content is not what was written" in done.stdout
    assert "files: 13 of 14 as recorded" in done.stdout
