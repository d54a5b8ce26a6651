"""A small network learns what larger ones say of tiles."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from making.models import write_color_filter_model
from making.tiled import TILE_PX, training
from wsiseg.config.train import TrainConfig
from wsiseg.mathematics.mil import risk
from wsiseg.network.network import Checkpoint, load_classifier
from wsiseg.run.errors import UsageError
from wsiseg.training.slides import labelled_slides
from wsiseg.training.train import train


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """Write a model that gives the share of purple."""
    return write_color_filter_model(tmp_path / "teacher.onnx", tile_px=224, mpp=0.5, licence="CC BY-NC 4.0")


@pytest.fixture
def unlabelled(cohort: Path) -> Path:
    """Return the cohort with no label but that of one slide."""
    path = cohort.with_name("unlabelled.csv")
    with cohort.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(
            {**row, "label": "0" if row["label"] == "0" and number == 0 else ""} for number, row in enumerate(rows)
        )
    return path


def test_the_risk_of_probabilities_is_their_cross_entropy() -> None:
    logits, targets = torch.tensor([0.3, -2.0, 1.0]), torch.tensor([0.9, 0.25, 0.0])
    p = torch.sigmoid(logits)
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(risk(logits, targets), expected)


def test_unlabelled_slides_teach_what_the_teacher_says(unlabelled: Path, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = training(unlabelled, out, teacher=(str(teacher),), epochs=12, lr=3e-3, freeze=True)
    train(config)
    checkpoint = Checkpoint.load(out / "best.pt")
    assert (checkpoint.alpha, checkpoint.beta) == (None, None)
    assert checkpoint.trained_on["weights_licence"] == "CC BY-NC 4.0"
    assert checkpoint.trained_on["train"]["slides"] == 4
    asked = sorted(path.name.partition(".")[0] for path in (out / "teacher").rglob("*.npy"))
    assert asked == [f"slide-{number}" for number in range(1, 6)], "slide 0 is known to hold no tumour"
    classifier = load_classifier(checkpoint)
    slide = next(one for one in labelled_slides(unlabelled, need_labels=False) if one.slide == "slide-7")
    tiles = torch.from_numpy(slide.read(np.arange(slide.tiles)))
    with torch.inference_mode():
        found = classifier(tiles).sigmoid().numpy()
    dark = (tiles[..., 1] < 140).float().mean((1, 2)).numpy()
    assert np.corrcoef(found, dark)[0, 1] > 0.8
    assert train(config).status == "up_to_date"


def test_a_teacher_of_other_tiles_is_refused(unlabelled: Path, tmp_path: Path) -> None:
    other = write_color_filter_model(tmp_path / "other.onnx", mpp=1.0)
    with pytest.raises(UsageError, match=rf"takes tiles of 224 px of 1 um, not of {TILE_PX} px of 0.5 um"):
        train(training(unlabelled, tmp_path / "run", teacher=(str(other),)))


def test_settings_that_say_something_else_of_tiles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a teacher says what is learned"):
        TrainConfig.checked(cohort="c.csv", out=tmp_path, teacher=("default",), grid=True)
