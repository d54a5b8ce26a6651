import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from making.cohorts import GLASS, PINK, PURPLE, write_cohort
from making.models import write_color_filter_model

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "robustness.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_what_a_map_says_is_counted_pixel_by_pixel(script: dict[str, Any], tmp_path: Path) -> None:
    model = str(write_color_filter_model(tmp_path / "m.onnx", tile_px=32))
    picture, tumor = np.full((640, 640, 3), GLASS, np.uint8), np.zeros((640, 640), np.bool_)
    picture[:576, :576] = PINK
    picture[160:480, 128:448] = PURPLE  # on the grid of the cells
    tumor[160:480, 128:448] = tumor[:96] = True  # and some that looks like none, in part on glass
    slides = [script["Sample"]("one", picture, 0.5, tumor)]
    found = {name: script["measure"](slides, script["SCANNER"][name], model) for name in ("as it is", "size x1.25")}
    recall, tissue = 320**2 / (320**2 + 96 * 576), 576**2
    assert found["as it is"] == {
        "recall": pytest.approx(recall, abs=0.001),
        "called": 0,
        "unknown": 0,
        "unknown_tumor": 0,
        "normal": pytest.approx(1 - 320**2 / tissue, abs=0.001),
        "nothing": pytest.approx(1 - tissue / 640**2, abs=0.001),
        "warned": found["as it is"]["warned"],
    }
    assert found["size x1.25"]["recall"] == pytest.approx(recall, abs=0.03)  # truth grows with the tissue
    pen = script["measure"](slides, script["FOREIGN"]["blue pen"], model)
    assert pen["nothing"] > 0.8  # the tissue mask leaves ink out


def test_the_tumour_slides_of_the_split_are_measured_and_written(
    script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cohort(tmp_path)
    model = write_color_filter_model(tmp_path / "m.onnx", tile_px=32)
    arguments = [tmp_path / "cohort.csv", "--model", model, "--out", tmp_path / "out", "--only", "JPEG 30", "glass"]
    monkeypatch.setattr(sys, "argv", ["robustness.py", *map(str, arguments)])
    script["main"]()
    found = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert (found["slides"], list(found["changes"])) == (["slide-5"], ["JPEG 30", "glass"])
    assert found["changes"]["JPEG 30"]["recall"] > 0.9
    glass = found["changes"]["glass"]
    assert (glass["recall"], glass["nothing"], glass["warned"]) == (None, 1, 1)
    assert (tmp_path / "out" / "robustness.md").read_text().splitlines()[3].startswith("| glass | - | - | - |")


def test_changes_do_what_they_are_named_after(script: dict[str, Any]) -> None:
    picture = np.full((900, 500, 3), script["_stained"](0.7 * np.array(script["EOSIN"])), np.uint8)
    picture[:, 250:] = script["_stained"](1.2 * np.array(script["HEMATOXYLIN"]))
    changed = {name: change(picture) for name, change in (script["SCANNER"] | script["FOREIGN"]).items()}
    assert np.std(changed["noise of 6"][..., 1].astype(float) - picture[..., 1]) == pytest.approx(6, abs=0.3)
    assert changed["size x0.8"].shape == (720, 400, 3)
    for name in ("blue pen", "fold"):
        made, covered = changed[name]
        assert 0.2 < covered.mean() < 0.6
        assert np.array_equal(made[~covered], picture[~covered])
        assert (made[covered].mean(-1) < picture[covered].mean(-1)).all()
    brown = script["_stained"](0.7 * np.array(script["DAB"])).astype(int)
    assert np.abs(changed["IHC (eosin as DAB)"][:, :250] - brown).max() < 6
    light = changed["fluorescence (DAPI)"]
    assert light[:, :250].max() < 10
    assert light[:, 250:, 2].min() > 200  # only nuclei shine


def test_unknown_tissue_is_neither_found_nor_missed(script: dict[str, Any]) -> None:
    other, tumor = [10, 30, 10, 10], [0, 5, 15, 20]  # nothing, normal, tumor, unknown
    assert script["_shares"](np.array([other, tumor])) == {
        "recall": 0.75,
        "called": 0.25,
        "unknown": round(30 / 90, 3),
        "unknown_tumor": 0.5,
        "normal": round(35 / 90, 3),
        "nothing": 0.1,
    }
