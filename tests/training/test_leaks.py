"""What a split must not decide: slides of another one are changed, and nothing that they have no say in moves."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from making.cohorts import GLASS
from making.slides import write_slide
from making.tiled import TILE_PX, training
from wsiseg.config.tile import TileConfig
from wsiseg.network.checkpoint import Checkpoint
from wsiseg.network.weights import read_torch
from wsiseg.tiles.tile import tile
from wsiseg.training.train import Trained, train

# One network that is trained whole on the cohort's own colours, and a frozen grid.
WAYS: dict[str, dict[str, Any]] = {
    "whole": {"epochs": 1, "bag": 6},
    "frozen": {"freeze": True, "epochs": 3, "lr": 1e-2},
}


@pytest.fixture(scope="module")
def runs(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[Path, Trained]]]:
    """Each way to train, on the cohort as it is and with the slides of one split changed."""
    found: dict[str, dict[str, tuple[Path, Trained]]] = {}
    folder = tmp_path_factory.mktemp("leaks")
    for changed in ("", "test", "val"):
        there = changed_cohort(cohort.parents[1] / "cohort", folder / (changed or "none"), changed)
        for way, values in WAYS.items():
            out = folder / f"{way}-{changed}"
            run = train(training(there, out, truth=there.parents[1] / "truth", **values))
            found.setdefault(way, {})[changed] = (out, run)
    return found


def changed_cohort(cohort: Path, folder: Path, split: str) -> Path:
    """Copy a cohort, where slides of a split have other pixels, the other label and truth everywhere or nowhere."""
    shutil.copytree(cohort, folder)
    with (folder / "cohort.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["split"] == split:
            change(row, folder)
    with (folder / "cohort.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    settings = TileConfig(inputs=(str(folder / "cohort.csv"),), out=folder / "tiles", tile=TILE_PX, pixels=True)
    tile(settings)
    return folder / "tiles" / "cohort.csv"


def change(row: dict[str, str], folder: Path) -> None:
    picture = np.full((672, 672, 3), GLASS, np.uint8)
    noise = np.random.default_rng(9).normal((150, 60, 90), 30, (608, 608, 3))
    picture[32:-32, 32:-32] = np.clip(noise, 0, 255)
    (folder / row["path"]).unlink()
    write_slide(folder / row["path"], picture, compression="jpeg")
    ring = [[0, 0], [336, 0], [336, 672], [0, 672], [0, 0]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
               "properties": {"classification": {"name": "Tumor"}}}  # fmt: skip
    features = [] if row["label"] == "1" else [feature]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (folder / "truth" / f"{row['slide']}.geojson").write_text(text)
    row["label"] = "0" if row["label"] == "1" else "1"


def assert_same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("way", list(WAYS))
def test_test_slides_decide_nothing(way: str, runs: dict[str, dict[str, tuple[Path, Trained]]]) -> None:
    (alone, run), (other, changed) = runs[way][""], runs[way]["test"]
    first, second = (Checkpoint.load(out / "best.pt") for out in (alone, other))
    assert_same_tensors(first.state_dict, second.state_dict)  # the colours' mean and std and the folded head are in it
    assert first.classes == second.classes
    assert first.figures["epoch"]["epoch"] == second.figures["epoch"]["epoch"]
    assert first.figures["splits"]["val"] == second.figures["splits"]["val"]
    one, two = first.known_tissue, second.known_tissue
    assert (one is None) == (two is None)
    if one is not None and two is not None:
        np.testing.assert_array_equal(one.mean, two.mean)
        np.testing.assert_array_equal(one.rest, two.rest)
    # The change was seen where it may be seen, so that the test could fail.
    assert run.best.figures["test"] != changed.best.figures["test"]


@pytest.mark.parametrize("way", list(WAYS))
def test_validation_slides_decide_no_weight(way: str, runs: dict[str, dict[str, tuple[Path, Trained]]]) -> None:
    (alone, _), (other, _) = runs[way][""], runs[way]["val"]
    first, second = (read_torch(out / "last.pt") for out in (alone, other))
    assert_same_tensors(first["network"], second["network"])
    risks = [[row["risk"] for row in state["history"]] for state in (first, second)]
    assert risks[0] == risks[1]
    assert first["history"][-1]["val_risk"] != second["history"][-1]["val_risk"]
    before, after = (Checkpoint.load(out / "best.pt") for out in (alone, other))
    assert before.classes != after.classes


def test_calibration_follows_the_truth_of_validation_slides(
    runs: dict[str, dict[str, tuple[Path, Trained]]],
) -> None:
    calibrated = Checkpoint.load(runs["frozen"][""][0] / "best.pt")
    assert calibrated.classes[0][2:] != (1.0, 0.0)
