"""Stored features: written by predict, read from the layouts of other programs, trained on, and mapped from."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from making.maps import slide_facts
from making.tiled import TILE_PX, write_tiled_cohort
from making.trained import write_run
from making.waiting import LONGEST_S
from wsiseg.config.doctor import DoctorConfig
from wsiseg.config.export import ExportConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.config.train import TrainConfig
from wsiseg.doctor import doctor
from wsiseg.exporting.export import export
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.network.checkpoint import Checkpoint
from wsiseg.prediction.predict import predict, predict_slides
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.slides.cohort import Cohort
from wsiseg.slides.slide import Slide, SlideFacts
from wsiseg.tiles import hdf5_texts
from wsiseg.tiles.stored_features import TileSize, features_file, read_features
from wsiseg.training.processes import Processes
from wsiseg.training.stored import stored_cohort
from wsiseg.training.train import train

Layout = Callable[[Path, str, np.ndarray[Any, Any], np.ndarray[Any, Any], Slide | SlideFacts], None]
SIZE = TileSize(TILE_PX, 0.5)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiled_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def run(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, cohort, "timm:test_resnet")
    return folder


@pytest.fixture(scope="module")
def maps(cohort: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Map the cohort from pixels, and store the features."""
    folder = tmp_path_factory.mktemp("maps")
    model = export(ExportConfig(run=run, out=folder / "model.onnx", allow_loss=True)).path
    config = PredictConfig(inputs=(str(cohort),), model=(str(model),), out=folder / "out", write_features=True)
    assert predict_slides(config).totals["failed"] == 0
    return folder / "out"


def trident(folder: Path, name: str, features: Any, corners: Any, slide: Slide | SlideFacts) -> None:
    with h5py.File(folder / f"{name}.h5", "w") as file:
        file["features"], file["coords"] = features, corners
        side = TILE_PX * 0.5 / slide.mpp[0]
        file["coords"].attrs.update({"patch_size": TILE_PX, "patch_size_level0": side, "overlap": 0})


def clam(folder: Path, name: str, features: Any, corners: Any, slide: Slide | SlideFacts) -> None:
    (folder / "h5_files").mkdir(exist_ok=True)
    with h5py.File(folder / "h5_files" / f"{name}.h5", "w") as file:
        file["features"], file["coords"] = features[None], corners
        times = 0.5 / slide.mpp[0]
        file["coords"].attrs.update({"patch_size": TILE_PX, "patch_level": 1, "downsample": (times, times)})


def stamp(folder: Path, name: str, features: Any, corners: Any, slide: Slide | SlideFacts) -> None:
    with h5py.File(folder / f"{name}.h5", "w") as file:
        file["feats"], file["coords"] = features, corners * np.array(slide.mpp)
        file.attrs.update({"unit": "um", "tile_size_um": TILE_PX * 0.5, "tile_size_px": TILE_PX})


def slide2vec(folder: Path, name: str, features: Any, corners: Any, slide: Slide | SlideFacts) -> None:
    embeddings, tiles = folder / "tile_embeddings", folder / "tiles"
    for one in (embeddings, tiles):
        one.mkdir(exist_ok=True)
    np.savez(embeddings / f"{name}.npz", features=features)
    np.savez(tiles / f"{name}.coordinates.npz", x=corners[:, 0], y=corners[:, 1])
    facts = {"requested_tile_size_px": TILE_PX, "tile_size_lv0": TILE_PX * 0.5 / slide.mpp[0]}
    (embeddings / f"{name}.meta.json").write_text(json.dumps(facts))


def relaid(maps: Path, cohort: Path, folder: Path, layout: Layout) -> Path:
    """Write the features of a run of predict in another layout."""
    folder.mkdir(exist_ok=True)
    for row in Cohort.read(cohort).slides:
        with h5py.File(maps / f"{row.slide}.h5") as file, row.open() as slide:
            layout(folder, row.slide, file["features"][:], file["coords"][:], slide)
    return folder


def head_on(features: Path, cohort: Path, out: Path, **settings: Any) -> dict[str, torch.Tensor]:
    train(TrainConfig(cohort=cohort, out=out, features=features, epochs=2, bag=8, max_tiles=20, lr=1e-2, **settings))
    state: dict[str, torch.Tensor] = Checkpoint.load(out / "best.pt").state_dict
    return state


def test_a_map_from_features_is_that_from_pixels(run: Path, cohort: Path, maps: Path, tmp_path: Path) -> None:
    head = export(ExportConfig(run=run, out=tmp_path / "head.onnx", head=True)).path
    assert head.stat().st_size < 100_000
    assert doctor(DoctorConfig(model=str(head))).facts["model"]["self-test"] == "passed"
    config = PredictConfig(inputs=(str(cohort),), model=(str(head),), out=tmp_path / "out", features=maps)
    assert predict_slides(config).totals["failed"] == 0
    for row in Cohort.read(cohort).slides:
        ours, theirs = (Heatmap.open(folder / f"{row.slide}.ome.zarr") for folder in (tmp_path / "out", maps))
        assert (ours.slide, ours.cell_um, ours.tissue.sum()) == (theirs.slide, theirs.cell_um, theirs.tissue.sum())
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-5)
        assert np.nanstd(ours.probabilities) > 0.01
    again = predict_slides(config)
    assert {record.status for record in again.slides} == {"up_to_date"}


def test_all_layouts_give_the_same_head(cohort: Path, maps: Path, tmp_path: Path) -> None:
    own = head_on(maps, cohort, tmp_path / "own")
    assert own["head.weight"].abs().sum() > 0
    for layout in (trident, clam, stamp, slide2vec):
        features = relaid(maps, cohort, tmp_path / layout.__name__, layout)
        other = head_on(features, cohort, tmp_path / f"run-{layout.__name__}")
        assert all(torch.equal(own[name], other[name]) for name in own), layout.__name__


@pytest.mark.parametrize("layout", [trident, clam, stamp, slide2vec])
def test_all_layouts_say_where_tiles_lie_and_how_large_they_are(cohort: Path, tmp_path: Path, layout: Layout) -> None:
    with Cohort.read(cohort).slides[0].open() as slide:
        facts = replace(slide.facts, mpp=(0.25, 0.25))
    corners = np.array([[0, 0], [128, 256], [384, 0]])
    layout(tmp_path, "s", np.ones((3, 4), np.float32), corners, facts)
    found = read_features(features_file(tmp_path, ["s"]), facts)
    assert found.size == SIZE
    assert found.tiles.corners.tolist() == corners.tolist()
    assert found.tiles.grid.cells(found.tiles.corners).tolist() == [[0, 0], [2, 1], [0, 3]]


def test_a_head_on_stored_features_is_exported_and_maps(cohort: Path, maps: Path, tmp_path: Path) -> None:
    truth = cohort.parents[1] / "cohort" / "truth"
    grid = TrainConfig(
        cohort=cohort,
        out=tmp_path / "grid",
        features=maps,
        epochs=1,
        bag=8,
        max_tiles=20,
        lr=1e-2,
        grid=True,
        truth=truth,
    )
    best = train(grid).best
    assert (tmp_path / "grid" / "grid.csv").is_file()
    file = export(ExportConfig(run=best.out, out=tmp_path / "head.onnx"))
    assert (file.card.input, file.card.output_stride, file.card.tile_px) == ("features", None, TILE_PX)
    assert file.card.features is not None
    assert file.card.features.encoder.startswith("timm:test_resnet ")
    slide = Cohort.read(cohort).slides[0].path
    assert predict(slide, file.path, features=maps).tissue.any()
    with pytest.raises(UsageError, match="takes stored features and no pixels"):
        predict(slide, file.path)
    other = maps.parent / "model.onnx"
    with pytest.raises(UsageError, match="takes pixels and no features"):
        predict(slide, other, features=maps)


def test_tiles_off_the_grid_count_in_the_cells_that_they_cover(
    cohort: Path, maps: Path, run: Path, tmp_path: Path
) -> None:
    head = export(ExportConfig(run=run, out=tmp_path / "head.onnx", head=True)).path
    row = Cohort.read(cohort).slides[0]
    (tmp_path / "f").mkdir()
    with h5py.File(maps / f"{row.slide}.h5") as file, row.open() as slide:
        features, corners, side = file["features"][:2], file["coords"][:2], TILE_PX * 0.5 / slide.mpp[0]
        shifted = np.round(corners[:1] + np.array([[side / 2, side / 8]]))
        trident(tmp_path / "f", row.slide, features, np.concatenate([corners[:1], shifted]), slide)
    found = predict(row.path, head, features=tmp_path / "f")
    assert found.cell_um == pytest.approx(TILE_PX * 0.5 / 8)
    assert found.tissue.sum() == 2 * 64 - 4 * 7
    values = found.probabilities[found.tissue]
    first, second = values[0], values[-1]
    assert set(np.unique(np.round(values, 5))) == {*np.round([first, second, (first + second) / 2], 5)}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"patch_size_level0": 4 * TILE_PX}, r"its tiles are .* um wide .*, those of most slides"),
     ({"patch_size": 2 * TILE_PX}, "those of most slides"),
     ({"encoder": "another"}, "made by another"), ("channels", r"has 7 features a tile, most slides \d+"),
     ("missing", "no features of"), ("nan", "NaN or infinity"), ("beyond", "beyond the slide"),
     ("unequal", "do not belong together"), ("link", "holds no data set features")],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(
    cohort: Path, maps: Path, tmp_path: Path, change: dict[str, Any] | str, message: str
) -> None:
    rows = Cohort.read(cohort).slides
    for row in rows:
        (tmp_path / f"{row.slide}.h5").write_bytes((maps / f"{row.slide}.h5").read_bytes())
    bad = tmp_path / f"{rows[1].slide}.h5"
    if change == "missing":
        bad.unlink()
    else:
        spoil(bad, change)
    with pytest.raises(WsisegError, match=message) as caught:
        head_on(tmp_path, cohort, tmp_path / "run")
    assert rows[1].slide in caught.value.message


def spoil(path: Path, change: dict[str, Any] | str) -> None:
    with h5py.File(path, "r+") as file:
        features, corners = file["features"][:], file["coords"][:]
        if isinstance(change, dict):
            file["coords"].attrs.update(change)
        elif change == "link":
            del file["features"]
            file["features"] = h5py.ExternalLink("other.h5", "features")
        elif change == "beyond":
            file["coords"][:] = corners + 10**6
        else:
            del file["features"]
            features[0, 0] = np.nan if change == "nan" else 0
            file["features"] = {"channels": features[:, :7], "unequal": features[1:]}.get(change, features)


def test_tiles_of_unknown_size_need_the_options(cohort: Path, maps: Path, tmp_path: Path) -> None:
    row = Cohort.read(cohort).slides[0]
    with h5py.File(maps / f"{row.slide}.h5") as file, h5py.File(tmp_path / "bare.h5", "w") as bare:
        bare["features"], bare["coords"] = file["features"][:], file["coords"][:]
    with row.open() as slide:
        with pytest.raises(UsageError, match="does not say how large its tiles are") as caught:
            read_features(tmp_path / "bare.h5", slide.facts)
        assert caught.value.hint == "set tile and mpp in the --config file"
        assert read_features(tmp_path / "bare.h5", slide.facts, SIZE).size == SIZE
        with pytest.raises(WsisegError, match="not 64 um wide"):
            read_features(maps / f"{row.slide}.h5", slide.facts, TileSize(TILE_PX, 1.0))


def test_slides_that_are_not_trained_on_need_no_features(cohort: Path, maps: Path, tmp_path: Path) -> None:
    for row in Cohort.read(cohort).slides[:-1]:
        shutil.copy(maps / f"{row.slide}.h5", tmp_path)
    table = cohort.with_name("no-split.csv")
    table.write_text(cohort.read_text().replace("case-7,1,test", "case-7,1,"))
    config = TrainConfig(cohort=table, out=tmp_path / "run", features=tmp_path)
    assert sorted(stored_cohort(config, tmp_path, Processes()).files) == [f"slide-{number}" for number in range(7)]


def test_features_of_another_encoder_are_refused_by_predict(
    cohort: Path, maps: Path, run: Path, tmp_path: Path
) -> None:
    head = export(ExportConfig(run=run, out=tmp_path / "head.onnx", head=True)).path
    row = Cohort.read(cohort).slides[0]
    (tmp_path / f"{row.slide}.h5").write_bytes((maps / f"{row.slide}.h5").read_bytes())
    spoil(tmp_path / f"{row.slide}.h5", {"encoder": "another"})
    with pytest.raises(UsageError, match="was made by another"):
        predict(row.path, head, features=tmp_path)


def test_tissue_cannot_be_chosen_again_for_stored_features(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out tissue"):
        PredictConfig.checked(inputs=("a.svs",), features=tmp_path, tissue="none")


def write_named_features(path: Path, encoder: str) -> Path:
    with h5py.File(path, "w") as file:
        file["features"], file["coords"] = np.ones((2, 4), np.float32), np.array([[0, 0], [224, 0]])
        file.attrs["encoder"], file["features"].attrs["encoder"] = "another", encoder
        file["coords"].attrs.update(patch_size=224, patch_size_level0=224, encoder_name="a third")
    return path


@pytest.fixture
def _own_process() -> Iterator[None]:
    """End the process that reads texts, before and after a test that changes it."""
    reader = hdf5_texts._reader(os.getpid())
    reader.close()
    yield
    reader.close()


def test_texts_come_from_a_process_that_serves_many_files(tmp_path: Path) -> None:
    facts, served = slide_facts(448, 448), set()
    for number in range(20):
        path = write_named_features(tmp_path / f"\udce9{number}.h5", f"nétwork {number}")
        assert read_features(path, facts).encoder == f"nétwork {number}"
        served.add(hdf5_texts._reader(os.getpid())._process)
    assert len(served) == 1


@pytest.mark.slow
def test_a_process_that_never_ends_reading_does_not_outlive_the_command_for_long(tmp_path: Path) -> None:
    path = write_named_features(tmp_path / "a.h5", "a")
    program = hdf5_texts._SERVE.replace("try:", "next(filter(None, iter(int, 1)))\n    try:")
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process, suppress(subprocess.TimeoutExpired):
        print(json.dumps([str(path), [["/", "encoder"]]]), file=process.stdin, flush=True)
        process.wait(LONGEST_S)
        process.kill()
    assert process.returncode == -signal.SIGALRM


@pytest.mark.usefixtures("_own_process")
@pytest.mark.parametrize("fault", ["next(filter(None, iter(int, 1)))", "import os; os.abort()"])
def test_texts_whose_reading_does_not_end_well_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    paths = [write_named_features(tmp_path / name, name) for name in ("a.h5", "b.h5")]
    faulty = hdf5_texts._SERVE.replace("try:", f"if 'a.h5' in path: {fault}\n    try:")
    monkeypatch.setattr(hdf5_texts, "_SERVE", faulty)
    monkeypatch.setattr(hdf5_texts, "_LONGEST_S", 0.3)
    facts = slide_facts(448, 448)
    with pytest.raises(WsisegError, match=r"a\.h5: .* reading its texts does not end well"):
        read_features(paths[0], facts)
    monkeypatch.setattr(hdf5_texts, "_LONGEST_S", 30.0)
    assert read_features(paths[1], facts).encoder == "b.h5"
