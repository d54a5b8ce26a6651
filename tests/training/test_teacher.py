"""A small network learns what larger ones say of tiles."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from making.models import write_color_filter_model
from making.progress import Heard
from making.tiled import TILE_PX, training
from wsiseg.config.train import TrainConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.mathematics.grid import Grid
from wsiseg.mathematics.mil import LEFT_OUT, risk
from wsiseg.network.checkpoint import Checkpoint
from wsiseg.network.network import load_classifier
from wsiseg.run.errors import UsageError
from wsiseg.run.record import Progress
from wsiseg.training.processes import Processes
from wsiseg.training.slides import labelled_slides
from wsiseg.training.teacher import opened
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
        found = classifier(tiles)[:, 0].sigmoid().numpy()
    dark = (tiles[..., 1] < 140).float().mean((1, 2)).numpy()
    assert np.corrcoef(found, dark)[0, 1] > 0.8
    assert train(config).status == "up_to_date"


def maps_of(cohort: Path, folder: Path, cell_px: int, unknown: str = "") -> Path:
    """Write a map of each slide that rises from left to right; no cell of the slide `unknown` was judged."""
    for slide in labelled_slides(cohort, need_labels=False):
        with slide.open() as store:
            facts = store.tiles.slide
        grid = Grid(facts.size_px, facts.mpp, cell_px, cell_px, facts.mpp[0])
        values = np.tile(np.linspace(0, 1, grid.shape[1], dtype=np.float32), (grid.shape[0], 1))
        values[0, :] = np.nan
        is_unknown = np.full(grid.shape, slide.slide == unknown)
        is_unknown[:, grid.shape[1] // 2] = True
        model = {"models": [{"licence": "CC BY-NC 4.0"}, {"licence": "unknown"}]}
        heatmap = Heatmap(values, grid.stride_um, facts, model=model, unknown=is_unknown)
        heatmap.save(folder / f"{slide.slide}.ome.zarr")
    return folder


def without(cohort: Path, slide: str) -> Path:
    """Write a table without a slide."""
    path = cohort.with_name("without.csv")
    path.write_text(
        "".join(row for row in cohort.read_text().splitlines(keepends=True) if not row.startswith(f"{slide},"))
    )
    return path


@pytest.mark.parametrize("cell_px", [20, TILE_PX])
def test_of_a_map_the_mean_over_each_tile_is_learned(cohort: Path, tmp_path: Path, cell_px: int) -> None:
    slides = labelled_slides(cohort, need_labels=False)
    with opened([str(maps_of(cohort, tmp_path, cell_px, unknown="slide-1"))], "cpu") as teachers:
        assert teachers is not None
        assert teachers.licence == "CC BY-NC 4.0"
        (maps,) = teachers.every
        slide = slides[2]
        said = maps.said(slide)
        assert (maps.said(slides[1]) == LEFT_OUT).all(), "nothing of it was judged"
    heatmap = Heatmap.open(tmp_path / f"{slide.slide}.ome.zarr")
    with slide.open() as store:
        corners = store.tiles.corners[slide.places]
    # Each pixel by itself, without a summed-area table.
    cells = np.arange(slide.tile_px) + 0.5
    for (x, y), found in zip(corners, said, strict=True):
        rows, columns = (((at + cells) // cell_px).astype(int) for at in (y, x))
        rows, columns = (one[one < size] for one, size in zip((rows, columns), heatmap.shape, strict=True))
        values = np.where(heatmap.judged, heatmap.probabilities, np.nan)[np.ix_(rows, columns)]
        expected = LEFT_OUT if np.isnan(values).mean() > 0.5 else np.nanmean(values)
        assert found == pytest.approx(expected, abs=1e-5)


def test_a_network_learns_from_maps_and_from_others_when_these_change(cohort: Path, tmp_path: Path) -> None:
    one, other = [slide.slide for slide in labelled_slides(cohort) if slide.label and slide.split == "train"][:2]
    maps = maps_of(cohort, tmp_path / "maps", TILE_PX)
    config = training(cohort, tmp_path / "run", teacher=(str(maps),), epochs=1, freeze=True)
    assert train(config).status == "ok"
    assert train(config).status == "up_to_date"
    shutil.rmtree(maps / f"{one}.ome.zarr")
    with pytest.raises(UsageError, match=f"holds no map of {one}"):
        train(config.model_copy(update={"overwrite": True}))
    shutil.copytree(maps / f"{other}.ome.zarr", maps / f"{one}.ome.zarr")
    with pytest.raises(UsageError, match=rf"{one}\.ome\.zarr: the slide changed"):
        train(config.model_copy(update={"overwrite": True}))
    map_of_one = Heatmap.open(maps / f"{other}.ome.zarr")
    finer = replace(map_of_one, slide=replace(map_of_one.slide, mpp=(0.25, 0.25)), cell_um=map_of_one.cell_um / 2)
    finer.save(maps / f"{other}.ome.zarr")
    alone = config.model_copy(update={"overwrite": True, "cohort": without(cohort, one)})
    with pytest.raises(
        UsageError, match=rf"{other}\.ome\.zarr: its pixel size changed from 0.25 to 0.5 um; map it again"
    ):
        train(alone)
    with pytest.raises(UsageError, match="no heatmaps there"):
        train(config.model_copy(update={"teacher": (str(tmp_path),)}))


def test_what_one_of_several_teachers_leaves_out_is_left_out(cohort: Path, teacher: Path, tmp_path: Path) -> None:
    slides = labelled_slides(cohort, need_labels=False)[1:3]
    maps = maps_of(cohort, tmp_path / "maps", TILE_PX, unknown=slides[0].slide)
    with opened([str(maps), str(teacher)], "cpu") as teachers:
        assert teachers is not None
        found = teachers.targets([replace(one, label=1) for one in slides], tmp_path / "said", Processes(), Progress())
        alone = [one.said(slides[1]) for one in teachers.every]
    assert (found[slides[0].slide] == LEFT_OUT).all()
    kept = alone[0] != LEFT_OUT
    np.testing.assert_allclose(found[slides[1].slide][kept], np.mean(alone, 0)[kept], atol=1e-6)


def test_slides_of_whose_tiles_no_teacher_says_anything_are_told_and_not_all_may_be(
    cohort: Path, tmp_path: Path
) -> None:
    slides, listening = labelled_slides(cohort), Heard()
    maps = maps_of(cohort, tmp_path / "maps", TILE_PX, unknown="slide-1")
    with opened([str(maps)], "cpu") as teachers:
        assert teachers is not None
        teachers.targets(slides, tmp_path / "said", Processes(), listening)
        assert listening.notes == ["the teachers say nothing of any tile of slide-1"]
        alone = [replace(one, split="val") if one.slide != "slide-1" else one for one in slides]
        with pytest.raises(UsageError, match="the teachers say nothing of any training tile"):
            teachers.targets(alone, tmp_path / "said", Processes(), listening)


def test_a_teacher_of_other_tiles_is_refused(unlabelled: Path, tmp_path: Path) -> None:
    other = write_color_filter_model(tmp_path / "other.onnx", mpp=1.0)
    with pytest.raises(UsageError, match=rf"takes tiles of 224 px of 1 um, not of {TILE_PX} px of 0.5 um"):
        train(training(unlabelled, tmp_path / "run", teacher=(str(other),)))


def test_settings_that_say_something_else_of_tiles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a teacher says what is learned"):
        TrainConfig.checked(cohort="c.csv", out=tmp_path, teacher=("default",), grid=True)
