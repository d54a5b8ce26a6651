"""Predict: what is drawn on a slide comes out at its place, and every slide gets its record."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry import shape

import wsiseg
from making.models import write_color_filter_model
from making.progress import Heard
from making.slides import stained_picture
from wsiseg.cli.streams import Streams
from wsiseg.config.predict import PredictConfig
from wsiseg.config.tile import TileConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.prediction.predict import _models_of_worker, predict_slides
from wsiseg.run.errors import ModelFileError, NotASlideError, OutputError, UsageError
from wsiseg.run.record import Progress, Run
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tile import tile

MakeSlide = Callable[..., Path]
PINK, PURPLE = np.array((222, 172, 204), np.uint8), np.array((96, 44, 124), np.uint8)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "colors.onnx")


def disc(width: int, height: int, center: tuple[float, float], radius: float) -> NDArray[np.uint8]:
    """Draw a dark disc on pale tissue."""
    y, x = np.ogrid[:height, :width]
    is_dark = (x + 0.5 - center[0]) ** 2 + (y + 0.5 - center[1]) ** 2 < radius**2
    return np.where(is_dark[..., None], PURPLE, PINK)


def run(
    model: Path | list[Path], out: Path, *inputs: Path | str, watch: Progress | None = None, **settings: Any
) -> Run:
    models = [str(path) for path in (model if isinstance(model, list) else [model])]
    config = {"inputs": [str(path) for path in inputs], "model": models, "out": out, **settings}
    return predict_slides(PredictConfig.checked(**config), watch)


def tumor_outline(path: Path) -> Any:
    features = json.loads(path.read_text())["features"]
    return shapely.union_all([shape(f["geometry"]) for f in features if f["properties"]["name"] != "tissue"])


@pytest.mark.parametrize("kind", ["dense", "tile"])
@pytest.mark.parametrize(("mpp", "down"), [(0.25, 4.00017), (0.2525, 2.0005), (0.499, None), (0.62, 4.00017)])
def test_the_peak_lies_on_the_disc_at_any_downsample(
    tmp_path: Path, make_slide: MakeSlide, model: Path, kind: str, mpp: float, down: float | None
) -> None:
    center, radius = (2711.3, 1403.9), 170 / mpp
    picture = disc(3600, 2900, center, radius)
    levels = [] if down is None else [(round(3600 / down), round(2900 / down))]
    path = make_slide("disc.tiff", picture, levels=levels, mpp=mpp)
    run(model, tmp_path / "out", path, map=kind, tissue="none")
    heatmap = Heatmap.open(tmp_path / "out" / "disc.ome.zarr")
    step = heatmap.cell_level0[0]
    weight = np.nan_to_num(heatmap.probabilities)
    rows, columns = np.indices(heatmap.shape)
    found = [((axis + 0.5) * weight).sum() / weight.sum() * step for axis in (columns, rows)]
    assert np.hypot(found[0] - center[0], found[1] - center[1]) < step / 2
    peak = np.unravel_index(np.nanargmax(heatmap.probabilities), heatmap.shape)
    assert heatmap.at(*center) >= heatmap.probabilities[peak] - 0.05


@pytest.mark.parametrize(("mpp", "down"), [(0.25, 4.00017), (0.2525, 2.0005), (0.499, None)])
def test_the_outline_follows_the_drawing(
    tmp_path: Path, make_slide: MakeSlide, model: Path, mpp: float, down: float | None
) -> None:
    side = round(1900 / mpp)
    center, radius = (side * 0.47, side * 0.53), side * 0.42
    levels = [] if down is None else [(round(side / down), round(side / down))]
    path = make_slide("disc.tiff", disc(side, side, center, radius), levels=levels, mpp=mpp, compression="jpeg")
    run(model, tmp_path / "out", path, tissue="none", map="dense")
    drawn = shapely.Point(center).buffer(radius, 256)
    found = tumor_outline(tmp_path / "out" / "disc.geojson")
    assert found.is_valid
    assert found.intersection(drawn).area / found.union(drawn).area >= 0.98


def test_outlines_of_a_slide_with_bounds_count_from_the_bounds(
    tmp_path: Path, make_slide: MakeSlide, model: Path
) -> None:
    picture = disc(2000, 1600, (1100, 800), 600)
    path = make_slide("a.scn", picture, mpp=0.5, frame=(700, 300, 4000, 3000))
    run(model, tmp_path / "out", path, map="dense", tissue="none")
    drawn = shapely.Point((1100, 800)).buffer(600, 256)
    found = tumor_outline(tmp_path / "out" / "a.geojson")
    assert found.intersection(drawn).area / found.union(drawn).area > 0.95
    heatmap = Heatmap.open(tmp_path / "out" / "a.ome.zarr")
    assert heatmap.slide.bounds_px == (700, 300, 2000, 1600)
    assert heatmap.at(700 + 1100, 300 + 800) > 0.95


def test_no_border_of_a_window_shows(tmp_path: Path, make_slide: MakeSlide, model: Path) -> None:
    ramp = np.linspace(0, 1, 3200)
    share = np.random.default_rng(0).random((600, 3200)) < ramp[None]
    picture = np.where(share[..., None], PURPLE, PINK)
    run(model, tmp_path / "out", make_slide("ramp.tiff", picture), map="dense", tissue="none")
    values = Heatmap.open(tmp_path / "out" / "ramp.ome.zarr").probabilities[5:-5].mean(0)
    expected = (np.arange(values.size) + 0.5) * 32 / 3200
    np.testing.assert_allclose(values[4:-4], expected[4:-4], atol=0.01)


def test_several_models_are_averaged(tmp_path: Path, make_slide: MakeSlide, model: Path) -> None:
    other = write_color_filter_model(tmp_path / "other.onnx", threshold=0.9)
    path = make_slide("a.tiff", disc(1200, 1200, (600, 600), 300))
    both = predict_slides(PredictConfig.checked(inputs=[str(path)], model=[str(model), str(other)], out=tmp_path / "o"))
    assert both.exit_code == 0
    heatmap = Heatmap.open(tmp_path / "o" / "a.ome.zarr")
    assert heatmap.threshold == pytest.approx(0.7)
    np.testing.assert_allclose(heatmap.probabilities, wsiseg.predict(path, model).probabilities)


def test_the_python_call_gives_the_map_and_writes_nothing(tmp_path: Path, make_slide: MakeSlide, model: Path) -> None:
    path = make_slide("a.tiff")
    before = sorted(tmp_path.rglob("*"))
    heatmap = wsiseg.predict(path, model, map="tile")
    assert heatmap.tissue.any()
    assert sorted(tmp_path.rglob("*")) == before


def test_one_bad_slide_does_not_stop_the_others(tmp_path: Path, make_slide: MakeSlide, model: Path) -> None:
    make_slide("slides/good.tiff")
    (tmp_path / "slides" / "broken.svs").write_bytes(b"II*\0" + bytes(300))
    (tmp_path / "slides" / "notes.txt").write_text("no slide")
    make_slide("slides/unknown.tiff", mpp=None)
    result = run(model, tmp_path / "out", tmp_path / "slides")
    records = {record.slide: record for record in result.slides}
    assert {name: record.status for name, record in records.items()} == {
        "good": "ok", "broken": "failed", "notes.txt": "skipped", "unknown": "failed",
    }  # fmt: skip
    assert result.exit_code == 1
    assert "--slide-mpp" in records["unknown"].error.hint  # type: ignore[union-attr]  # a failed slide has an error
    assert json.loads((tmp_path / "out" / "run.json").read_text())["totals"] == {"ok": 1, "failed": 2, "skipped": 1}


@pytest.mark.parametrize("inside", ["folder", ""])
def test_what_is_not_a_slide_fails_where_nothing_else_was_named(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    """A file by its own name, or a folder that holds nothing else; both verbs that read slides."""
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "notes.txt").write_text("not a slide")
    given = str(folder if inside else folder / "notes.txt")
    for verb, result in (
        ("predict", run(model, tmp_path / "predict", given)),
        ("tile", tile(TileConfig.checked(inputs=[given], out=tmp_path / "tile"))),
    ):
        assert result.slides[0].status == ("skipped" if inside else "failed")
        assert (result.status, result.exit_code) == ("failed", 1)
        assert json.loads((tmp_path / verb / "run.json").read_text())["status"] == "failed"
        if inside:
            with pytest.raises(NotASlideError, match=r"none of the files can be read as a slide: notes\.txt"):
                Streams(json=True).run(result)
            assert json.loads(capsys.readouterr().out)["slides"][0]["status"] == "skipped"


def test_a_row_of_a_cohort_must_be_a_slide_and_a_shard_may_hold_none(tmp_path: Path, model: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a slide")
    (tmp_path / "cohort.csv").write_text("slide,path\nn,notes.txt\n")
    assert run(model, tmp_path / "out", tmp_path / "cohort.csv").slides[0].status == "failed"
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "notes.txt").write_text("not a slide")
    shards = [run(model, tmp_path / "shards", folder, shard=f"{number}/2") for number in (1, 2)]
    assert [result.exit_code for result in shards] == [0, 0]


@pytest.mark.parametrize("has_memory_files", ["yes", ""])
def test_no_folder_for_temporary_files_is_needed(
    tmp_path: Path, make_slide: MakeSlide, model: Path, monkeypatch: pytest.MonkeyPatch, has_memory_files: str
) -> None:
    """As in a container of which the output folder alone can be written."""
    Image.fromarray(stained_picture(700, 500)).save(tmp_path / "plain.png")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    if not has_memory_files:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    result = run(model, tmp_path / "out", make_slide("a.tiff"), tmp_path / "plain.png", slide_mpp=0.5)
    assert [record.status for record in result.slides] == ["ok", "ok"]


def test_what_the_system_refuses_fails_one_slide(
    tmp_path: Path, make_slide: MakeSlide, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [make_slide("a.tiff"), make_slide("b.tiff")]
    opened = Slide.__init__

    def refused(self: Slide, path: Path, **settings: Any) -> None:
        if Path(path).name == "a.tiff":
            raise OSError(28, "no room for temporary files")
        opened(self, path, **settings)

    monkeypatch.setattr(Slide, "__init__", refused)
    results = [run(model, tmp_path / "out", *paths), tile(TileConfig.checked(inputs=map(str, paths), out=tmp_path))]
    for result in results:
        records = {record.slide: record for record in result.slides}
        assert {name: record.status for name, record in records.items()} == {"a": "failed", "b": "ok"}
        assert records["a"].error is not None
        assert records["a"].error.message.startswith("a.tiff: ")
        assert "no room for temporary files" in records["a"].error.message


def test_with_verbose_a_person_reads_what_was_read_and_how_long_it_took(
    tmp_path: Path, make_slide: MakeSlide, model: Path
) -> None:
    slide, heard = make_slide("a.tiff", size=(2000, 1600), levels=[(1000, 800)], mpp=0.25), Heard()
    run(model, tmp_path / "out", slide, watch=heard)
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()[:12]
    for part in (
        str(model),
        sha256,
        "CPUExecutionProvider",
        "nothing faster works here",
        "dense maps (as the model file says)",
    ):
        assert part in heard.details[0]
    said = "\n".join(heard.details[1:])
    for part in (
        "a: 0.25 um/px from openslide.mpp-x, tissue auto, 0.5 um/px read from level 1 of 0.5 um/px, opened in ",
        "a: mapped in ",
        "a: written in ",
    ):
        assert part in said
    command = [sys.executable, "-m", "wsiseg", "predict", str(slide), "--model", str(model), "--overwrite", "--out"]
    for more, is_said in (([], False), (["--verbose"], True)):
        done = subprocess.run([*command, str(tmp_path / "o"), *more], capture_output=True, text=True, check=True)
        assert ("a: mapped in" in done.stderr) == is_said
        assert " cells, " in done.stderr, "what a dense map has are cells"


def test_a_slide_is_done_once_and_again_when_anything_changes(
    tmp_path: Path, make_slide: MakeSlide, model: Path
) -> None:
    path = make_slide("a.tiff")
    statuses = [run(model, tmp_path / "out", path).slides[0].status for _ in range(2)]
    assert statuses == ["ok", "up_to_date"]
    assert run(model, tmp_path / "out", path, min_tissue=0.7).slides[0].status == "ok"
    make_slide("a.tiff", size=(900, 900))
    assert run(model, tmp_path / "out", path, min_tissue=0.7).slides[0].status == "ok"
    assert Heatmap.open(tmp_path / "out" / "a.ome.zarr").slide.size_px == (900, 900)


@pytest.mark.parametrize("count", [1, 2])
def test_a_model_trained_again_under_the_same_name_is_asked_again(
    tmp_path: Path, make_slide: MakeSlide, model: Path, count: int
) -> None:
    slide, own = make_slide("a.tiff"), tmp_path / "own.onnx"
    named = [own, model][:count]
    write_color_filter_model(own)
    heard = Heard()
    for _ in range(2):
        run(named, tmp_path / "out", slide, watch=heard)
    before = own.read_bytes()
    write_color_filter_model(own, version="2")
    assert len(own.read_bytes()) == len(before)
    (record,) = run(named, tmp_path / "out", slide, watch=heard).slides
    assert record.status == "ok"
    assert [note for note in heard.notes if "done again" in note] == ["a: done again, the model file changed"]
    stored = Heatmap.open(tmp_path / "out" / "a.ome.zarr").run["models"]
    assert stored == [hashlib.sha256(one.read_bytes()).hexdigest() for one in named]


def test_cells_of_an_earlier_map_are_not_left_beside_a_new_one(
    tmp_path: Path, make_slide: MakeSlide, model: Path
) -> None:
    slide, out = make_slide("a.tiff", disc(900, 900, (400, 400), 200)), tmp_path / "out"
    run(model, out, slide, csv=True, map="tile")
    run(model, out, slide, map="dense")
    (record,) = run(model, out, slide, csv=True, map="dense").slides
    assert record.status == "ok"
    assert len((out / "a.csv").read_text().splitlines()) == 1 + Heatmap.open(out / "a.ome.zarr").tissue.sum()


def test_results_of_two_maps_do_not_count_as_those_of_one(
    tmp_path: Path, make_slide: MakeSlide, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while outlines of another threshold stand already, and asked for the first threshold again."""
    slide, out = make_slide("a.tiff", disc(900, 900, (400, 400), 200)), tmp_path / "out"
    run(model, out, slide, threshold=0.5)
    before = (out / "a.geojson").read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(Heatmap, "save", lambda *_: (_ for _ in ()).throw(OutputError("the power went")))
        assert run(model, out, slide, threshold=0.9).exit_code == 1
    assert (out / "a.geojson").read_bytes() != before
    assert run(model, out, slide, threshold=0.5).slides[0].status == "ok"
    assert (out / "a.geojson").read_bytes() == before
    assert run(model, out, slide, threshold=0.5).slides[0].status == "up_to_date"


def test_a_map_with_too_many_unreadable_cells_is_not_up_to_date(
    tmp_path: Path, make_slide: MakeSlide, model: Path
) -> None:
    slide, store = make_slide("a.tiff"), tmp_path / "out" / "a.ome.zarr"
    run(model, tmp_path / "out", slide)
    made = Heatmap.open(store)
    replace(made, run={**made.run, "bad_tiles": 1 + made.run["tiles"] // 50}).save(store)
    assert run(model, tmp_path / "out", slide, max_bad_tiles=0.1).slides[0].status == "up_to_date"
    assert run(model, tmp_path / "out", slide).slides[0].status == "ok"


def test_a_worker_with_another_model_file_of_the_same_name_is_refused(tmp_path: Path) -> None:
    path = write_color_filter_model(tmp_path / "m.onnx")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    (model,) = _models_of_worker((str(path),), "cpu", (sha256,))
    assert model.sha256 == sha256
    write_color_filter_model(path, version="2")
    again = hashlib.sha256(path.read_bytes()).hexdigest()
    (model,) = _models_of_worker((str(path),), "cpu", (again,))
    assert model.sha256 == again, "a worker that lives on opens the new file"
    with pytest.raises(ModelFileError, match="another file of this name"):
        _models_of_worker((str(path),), "cpu", (sha256,))


def test_a_map_of_an_earlier_version_counts_only_where_it_was_made_as_all_are_now(
    tmp_path: Path, make_slide: MakeSlide, model: Path
) -> None:
    """Earlier versions had a distance of tiles and ways to combine models; their maps carry them."""
    path = make_slide("a.tiff")
    run(model, tmp_path / "out", path)
    store = tmp_path / "out" / "a.ome.zarr"
    made = Heatmap.open(store)
    replace(made, run={**made.run, "stride": None, "combine": "mean"}).save(store)
    assert run(model, tmp_path / "out", path).slides[0].status == "up_to_date"
    changed: list[dict[str, Any]] = [{"stride": 96}, {"combine": "vote"}]
    for former in changed:
        replace(made, run={**made.run, **former}).save(store)
        assert Heatmap.open(store).run == {**made.run, **former}
        assert run(model, tmp_path / "out", path).slides[0].status == "ok"
        assert Heatmap.open(store).run == made.run


@pytest.mark.parametrize(
    ("former", "advice"),
    [
        ({"combine": "max"}, "averaged"),
        ({"keep_members": True}, "one model at a time"),
        ({"stride": 96}, "--map dense"),
    ],
)
def test_settings_that_went_are_refused_with_what_to_do(former: dict[str, Any], advice: str) -> None:
    with pytest.raises(UsageError, match=advice):
        PredictConfig.checked(inputs=["a.tiff"], **former)


def test_a_uniform_map_is_suspect(tmp_path: Path, make_slide: MakeSlide, model: Path) -> None:
    path = make_slide("a.tiff", np.full((896, 896, 3), PURPLE, np.uint8))
    (record,) = run(model, tmp_path / "out", path, tissue="none", map="tile").slides
    assert record.status == "suspect"
    assert "one value" in record.warnings[-1]


def test_glass_alone_is_no_tissue_and_no_failure(tmp_path: Path, make_slide: MakeSlide, model: Path) -> None:
    path = make_slide("a.tiff", np.full((900, 900, 3), 243, np.uint8))
    result = run(model, tmp_path / "out", path)
    assert (result.slides[0].status, result.exit_code) == ("no_tissue", 0)
    assert Heatmap.open(tmp_path / "out" / "a.ome.zarr").tissue.sum() == 0


def test_nothing_is_started_for_a_model_that_is_not_there(tmp_path: Path, make_slide: MakeSlide) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.onnx"):
        run(tmp_path / "nowhere.onnx", tmp_path / "out", make_slide("a.tiff"))
    assert not (tmp_path / "out").exists()


def test_the_command_loads_no_scipy_and_lets_python_look_for_garbage_seldom(
    tmp_path: Path, make_slide: MakeSlide, model: Path
) -> None:
    picture = np.random.default_rng(0).integers(90, 200, (300, 300, 3), np.uint8)
    code = (
        "import gc, sys; from wsiseg.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'zarr' in sys.modules and 'scipy' not in sys.modules\n"
        "assert gc.get_freeze_count() and gc.get_threshold()[0] > 5000"
    )
    given = ["predict", make_slide("a.tiff", picture), "--model", model, "--out", tmp_path / "out", "--map", "dense"]
    subprocess.run([sys.executable, "-c", code, *map(str, given)], check=True, timeout=300)
