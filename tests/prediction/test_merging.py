"""Shards in folders of their own, joined, are what one run gives, byte for byte."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from making.models import write_color_filter_model
from making.predictions import digest, write_slides
from making.progress import Heard
from wsiseg.config.doctor import DoctorConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.prediction.predict import predict_slides
from wsiseg.prediction.verify import verify
from wsiseg.run.errors import UsageError
from wsiseg.run.record import Progress, Run

SLIDES = 5


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with slides, a model file, their maps of one run in `alone` and of three shards in `1` to `3`."""
    folder = tmp_path_factory.mktemp("place")
    write_color_filter_model(folder / "m.onnx")
    write_slides(folder / "slides", SLIDES)
    predicted(folder, "alone")
    for number in (1, 2, 3):
        predicted(folder, str(number), shard=f"{number}/3")
    return folder


def predicted(folder: Path, out: str, **settings: Any) -> Run:
    given = {"inputs": [str(folder / "slides")], "model": [str(folder / "m.onnx")], "tissue": "none", **settings}
    return predict_slides(PredictConfig.checked(out=folder / out, **given))


def merged(out: Path, *folders: Path, progress: Progress | None = None) -> Run:
    given = {"inputs": [str(folder) for folder in folders], "merge": True}
    return predict_slides(PredictConfig.checked(**given, **({"out": out} if out != folders[0] else {})), progress)


def test_three_shards_joined_are_one_run_byte_for_byte(place: Path, tmp_path: Path) -> None:
    shards = [place / str(number) for number in (1, 2, 3)]
    assert len({Path(shard) for shard in shards if list(shard.glob("*.png"))}) > 1, "the slides are spread"
    run, out = merged(tmp_path / "out", *shards), tmp_path / "out"
    assert (run.status, run.totals) == ("complete", {"ok": SLIDES, "failed": 0})
    assert digest(out) == digest(place / "alone")
    assert (out / "slides.csv").read_bytes() == (place / "alone" / "slides.csv").read_bytes()
    page, one = ((folder / "report.html").read_text() for folder in (out, place / "alone"))
    assert page.count("<section") == one.count("<section") == SLIDES
    assert page.count("data:image") == one.count("data:image")
    assert all(Path(path).exists() for record in run.slides for path in record.outputs.values())
    assert verify(DoctorConfig(slide=out, sample=20)).problems == ()


def test_shards_in_one_folder_are_joined_in_it(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2, 3):
        shutil.copytree(place / str(number), out, dirs_exist_ok=True)
    run = merged(out, out)
    assert len(run.slides) == len(json.loads((out / "run.json").read_text())["slides"]) == SLIDES
    assert (out / "report.html").read_text().count("<section") == SLIDES
    assert verify(DoctorConfig(slide=out)).problems == ()


def test_shards_of_other_settings_are_told_and_folders_without_a_run_refused(place: Path, tmp_path: Path) -> None:
    predicted(place, str(tmp_path / "other"), shard="1/3", map="tile")
    heard = Heard()
    merged(tmp_path / "out", place / "2", tmp_path / "other", progress=heard)
    assert "warning: these runs differ in settings; that of the last one is recorded" in heard.notes
    with pytest.raises(UsageError, match="holds no run of predict"):
        merged(tmp_path / "out", place / "slides")
    with pytest.raises(UsageError, match="leave out shard"):
        PredictConfig.checked(inputs=("a",), merge=True, shard="1/2")
