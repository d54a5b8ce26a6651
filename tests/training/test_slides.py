"""The tiles of a slide that are used, what they stand for, and what a run that is there already depends on."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from making.progress import Heard
from making.tiled import SMALL, TILE_PX, training
from wsiseg.config.tile import TileConfig
from wsiseg.network.network import build
from wsiseg.run.errors import UsageError
from wsiseg.tiles.tile import tile
from wsiseg.training.cautions import cautions, cost, looks
from wsiseg.training.features import Compute
from wsiseg.training.scoring import Scored, pixels_of
from wsiseg.training.slides import evenly, labelled_slides, spread
from wsiseg.training.train import train
from wsiseg.training.truths import tile_truths


@given(st.integers(0, 5000), st.integers(1, 300), st.integers(0, 9))
def test_one_of_each_equal_part_is_chosen(count: int, most: int, seed: int) -> None:
    chosen = spread(count, most, np.random.default_rng(seed))
    assert len(chosen) == min(count, most)
    for part, place in enumerate(chosen):
        assert part * count // len(chosen) <= place < (part + 1) * count // len(chosen)
    if count <= most:
        assert chosen.tolist() == list(range(count))


@given(st.integers(1, 5000), st.integers(2, 300))
def test_even_places_reach_from_the_first_to_the_last(count: int, most: int) -> None:
    places = evenly(count, most)
    assert len(places) == min(count, most)
    assert (places[0], places[-1]) == (0, count - 1)


def test_at_most_so_many_tiles_of_a_slide_are_used_always_the_same(cohort: Path, truth: Path) -> None:
    whole, capped, again = (labelled_slides(cohort, most_tiles=most) for most in (None, 20, 20))
    assert capped == again
    for one, every in zip(capped, whole, strict=True):
        assert (one.tiles, one.stored) == (20, every.tiles)
        assert one.fingerprint != every.fingerprint
        assert (one.read(np.arange(20)) == every.read(one.places)).all()
    assert labelled_slides(cohort, most_tiles=10_000) == whole
    few, all_of_them = (tile_truths(truth, slides, lambda _: None) for slides in (capped, whole))
    for one in capped:
        np.testing.assert_array_equal(few[one.slide].tumor, all_of_them[one.slide].tumor[one.places])
        assert few[one.slide].background == all_of_them[one.slide].background


def test_tiles_that_are_looked_at_stand_for_all_of_a_slide(cohort: Path, truth: Path) -> None:
    slides = labelled_slides(cohort, most_tiles=20)
    truths = tile_truths(truth, slides, lambda _: None)
    every = tile_truths(truth, labelled_slides(cohort), lambda _: None)
    for slide in slides:
        indices = np.arange(0, 20, 2)
        (pixels,) = pixels_of([Scored(slide, indices, np.zeros(10, np.float32))], truths)
        whole = every[slide.slide].tumor.sum() + every[slide.slide].rest.sum()
        assert pixels.total == pytest.approx(whole, rel=0.02)


def test_a_cap_and_a_long_run_are_told_before_they_begin(cohort: Path, tmp_path: Path) -> None:
    config = training(cohort, tmp_path, bag=4, max_tiles=20)
    slides = labelled_slides(cohort, most_tiles=20)
    (said,) = cautions(config, slides, torch.device("cpu"))
    assert said.startswith(
        f"8 of 8 slides have more than 20 tiles, {slides[0].slide} the most with {slides[0].stored}: "
    )
    assert said.endswith("20 of each are used, spread evenly over its tissue (max-tiles)")
    compute = Compute(build(SMALL, "none").eval())
    assert list(cost(19_999, compute, TILE_PX, "features")) == []
    (said,) = cost(50_000_000, compute, TILE_PX, "features of 50000000 tiles")
    hours = float(said.removeprefix("features of 50000000 tiles: about ").partition(" h")[0])
    assert 0.05 < hours < 500


def test_the_cost_counts_what_passes_through_the_network(cohort: Path, tmp_path: Path) -> None:
    slides = labelled_slides(cohort, most_tiles=20)
    config = training(cohort, tmp_path, bag=8, epochs=3, validation_tiles=5)
    # Four training slides, forward and twice as much backward; two for validation; four are scored at the end.
    assert looks(config, slides) == (3 * 4 * 8, 3 * 2 * 5 + 4 * 5, 3 * (4 * 8 * 3 + 2 * 5) + 4 * 5)
    ranked = config.model_copy(update={"micro_batch": 4})
    assert looks(ranked, slides)[2] == 3 * (2 * 8 * 3 + 2 * 8 * 4 + 2 * 5) + 4 * 5


@pytest.fixture
def copied(cohort: Path, tmp_path: Path) -> Path:
    shutil.copytree(cohort.parents[1], tmp_path / "copied")
    return tmp_path / "copied" / "tiles" / "cohort.csv"


def change_label(cohort: Path) -> None:
    with cohort.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[-1]["label"] = "0"
    with cohort.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def change_outline(cohort: Path) -> None:
    path = cohort.parents[1] / "cohort" / "truth" / "slide-1.geojson"
    path.write_text(path.read_text().replace("[32", "[96", 1).replace("32]", "33]"))


def change_weights(cohort: Path) -> None:
    torch.manual_seed(1)
    torch.save(build(SMALL, "none").state_dict(), cohort.with_name("start.pth"))


def change_tiles(cohort: Path) -> None:
    slides = str(cohort.parents[1] / "cohort" / "cohort.csv")
    tile(TileConfig(inputs=(slides,), out=cohort.parent, tile=TILE_PX, pixels=True, min_tissue=0.99, overwrite=True))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (change_label, "slides"),
        (change_outline, "labels of tiles"),
        (change_weights, "weights of init"),
        (change_tiles, "labels of tiles, slides"),
    ],
)
def test_a_run_on_other_labels_truth_weights_or_tiles_is_not_up_to_date(
    copied: Path, tmp_path: Path, change: Any, name: str
) -> None:
    torch.save(build(SMALL, "none").state_dict(), copied.with_name("start.pth"))
    init, truth = str(copied.with_name("start.pth")), copied.parents[1] / "cohort" / "truth"
    config = training(copied, tmp_path / "run", freeze=True, epochs=1, truth=truth, init=init, max_tiles=2000)
    train(config)
    assert train(config).status == "up_to_date"
    change(copied)
    with pytest.raises(UsageError, match=f"was made with other settings: {name}; "):
        train(config.model_copy(update={"resume": True}))
    listening = Heard()
    assert train(config, listening).status == "ok"
    assert f"{tmp_path / 'run'}: trained again, as these changed: {name}" in listening.notes
    assert train(config).status == "up_to_date"
