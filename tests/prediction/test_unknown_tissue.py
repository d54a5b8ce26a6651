"""Tissue that a model does not know is unknown on slides, made and real, in every file, and the run says so."""

import csv
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from making.models import write_color_filter_model, write_knowing_model
from making.slides import write_slide
from wsiseg.cli.streams import Streams
from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.pages.pictures import DARK, LIGHT
from wsiseg.prediction.inference import Sums
from wsiseg.prediction.map_files import MapFiles
from wsiseg.prediction.predict import predict_slides
from wsiseg.prediction.viewer import overlay
from wsiseg.run.record import Run, SlideRecord
from wsiseg.slides.slide import Slide

MakeSlide = Callable[..., Path]
PURPLE, PEN = (120, 60, 140), (20, 110, 255)


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_knowing_model(tmp_path_factory.mktemp("model") / "knowing.onnx", limit=230)


def half(color: tuple[int, int, int] = PEN) -> NDArray[np.uint8]:
    """Return an image of 896 px: at the left of a colour, at the right purple with noise in its green."""
    image = np.full((896, 896, 3), color, np.uint8)
    image[:, 448:] = PURPLE
    image[:, 448:, 1] += np.random.default_rng(0).integers(0, 160, (896, 448)).astype(np.uint8)
    return image


def mapped(slide: Path, out: Path, *models: Path, **how: Any) -> tuple[SlideRecord, Heatmap]:
    chosen = {"model": [str(model) for model in models], "tissue": "none", "csv": True, **how}
    (record,) = predict_slides(PredictConfig.checked(inputs=[str(slide)], out=out, **chosen)).slides
    return record, Heatmap.open(record.outputs["zarr"])


@pytest.mark.parametrize("kind", ["dense", "tile"])
@pytest.mark.parametrize("views", [1, 2])
def test_cells_of_another_stain_are_unknown_and_the_rest_is_as_without(
    tmp_path: Path, make_slide: MakeSlide, knowing: Path, kind: str, views: int
) -> None:
    slide = make_slide("a.tiff", half())
    record, found = mapped(slide, tmp_path / "out", knowing, map=kind, views=views)
    _, plain = mapped(slide, tmp_path / "plain", write_color_filter_model(tmp_path / "p.onnx"), map=kind, views=views)
    np.testing.assert_allclose(found.probabilities, plain.probabilities, atol=1e-6)
    assert not plain.unknown.any()
    side, columns = found.shape
    expected = np.tile(np.arange(columns) < columns // 2, (side, 1))
    np.testing.assert_array_equal(found.unknown, expected)
    assert record.status == "suspect"
    assert record.unknown_share == pytest.approx(0.5, abs=0.01)
    assert record.tissue_mm2 is not None
    assert record.unknown_mm2 == pytest.approx(record.tissue_mm2 * found.unknown.mean(), abs=1e-6)
    assert record.warnings == found.warnings
    assert record.model_dump()["max_probability"] == pytest.approx(float(plain.probabilities[found.judged].max()))


def test_every_file_and_the_terminal_tell_what_could_not_be_judged(
    tmp_path: Path, make_slide: MakeSlide, knowing: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = make_slide("a.tiff", half())
    config = PredictConfig.checked(
        inputs=[str(slide)], out=tmp_path, model=[str(knowing)], tissue="none", csv=True, map="tile"
    )
    with Streams() as streams:
        run: Run = predict_slides(config, streams)
    assert run.exit_code == 0
    said = "50% of the tissue could not be judged"
    assert said in capsys.readouterr().err
    found = Heatmap.open(tmp_path / "a.ome.zarr")
    with (tmp_path / "a.csv").open(newline="") as file:
        states = [row["state"] for row in csv.DictReader(file)]
    assert states.count("unknown") == found.unknown.sum()
    assert states.count("tumor") == found.tumor.sum()
    features = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert all(said in one["properties"]["metadata"]["warning"] for one in features)
    assert json.loads((tmp_path / "run.json").read_text())["slides"][0]["unknown_share"] == pytest.approx(0.5)
    report = (tmp_path / "report.html").read_text()
    assert said in report
    assert "(50.0%) unknown and not judged" in report
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture)
    assert ((pixels == DARK).all(-1) | (pixels == LIGHT).all(-1)).mean() > 0.2
    with Image.open(io.BytesIO(overlay(found, 100).png)) as laid:
        shown = np.asarray(laid.convert("RGB"))
    hatched = (shown == DARK).all(-1) | (shown == LIGHT).all(-1)
    np.testing.assert_array_equal(hatched, np.tile(np.arange(shown.shape[1]) < shown.shape[1] // 2, (len(shown), 1)))


def test_a_new_threshold_changes_tumour_and_leaves_what_is_unknown(
    tmp_path: Path, make_slide: MakeSlide, knowing: Path
) -> None:
    slide = make_slide("a.tiff", half())
    before, after = (mapped(slide, tmp_path, knowing, threshold=threshold)[1] for threshold in (0.3, 0.9))
    np.testing.assert_array_equal(before.unknown, after.unknown)
    assert before.tumor.sum() > after.tumor.sum()


def test_what_any_of_several_models_does_not_know_is_unknown(
    tmp_path: Path, make_slide: MakeSlide, knowing: Path
) -> None:
    slide = make_slide("a.tiff", half())
    wide = write_knowing_model(tmp_path / "w.onnx", limit=256, mpp=0.25)
    plain = write_color_filter_model(tmp_path / "p.onnx")
    _, alone = mapped(slide, tmp_path / "alone", knowing)
    for number, models in enumerate([(knowing, wide), (plain, knowing), (wide, plain)]):
        _, found = mapped(slide, tmp_path / str(number), *models)
        expected = alone.resample(found.cell_um).unknown if knowing in models else np.zeros(found.shape, np.bool_)
        np.testing.assert_array_equal(found.unknown, expected)
        assert found.run["limits"] == [{knowing: 230, wide: 256}.get(model) for model in models]


def test_a_suspect_slide_is_the_first_of_the_page_also_where_its_map_is_found_done(
    tmp_path: Path, make_slide: MakeSlide, knowing: Path
) -> None:
    slides = [make_slide("a.tiff", half(PURPLE)), make_slide("b.tiff", half())]
    config = PredictConfig.checked(
        inputs=[str(slide) for slide in slides], out=tmp_path / "out", model=[str(knowing)], tissue="none", map="tile"
    )
    for status in ("suspect", "up to date, suspect"):
        predict_slides(config)
        page = (tmp_path / "out" / "report.html").read_text()
        assert f'<span class="bad">{status}</span>' in page
        assert page.index('id="name-0"><bdi>b<') < page.index('id="name-1"><bdi>a<')
        os.utime(slides[1], (2_000_000_000, 2_000_000_000))


def test_little_that_is_unknown_is_told_and_no_reason_to_suspect(
    tmp_path: Path, make_slide: MakeSlide, knowing: Path
) -> None:
    image = half(PURPLE)
    image[:448, :224] = PEN
    record, _ = mapped(make_slide("a.tiff", image), tmp_path, knowing, map="tile")
    assert (record.status, record.unknown_share, record.warnings) == ("ok", 0.125, ())


def test_a_map_of_the_same_file_from_before_there_was_unknown_is_made_again(
    tmp_path: Path, make_slide: MakeSlide, knowing: Path
) -> None:
    slide = make_slide("a.tiff", half())
    _, found = mapped(slide, tmp_path, knowing)
    assert mapped(slide, tmp_path, knowing)[0].status == "up_to_date"
    old = {name: value for name, value in found.run.items() if name != "limits"} | {"known_tissue": [{"distance": 3.0}]}
    replace(found, run=old, unknown=np.zeros((), np.bool_)).save(tmp_path / "a.ome.zarr")
    assert Heatmap.open(tmp_path / "a.ome.zarr").run["known_tissue"] == [{"distance": 3.0}]
    record, again = mapped(slide, tmp_path, knowing)
    assert record.status == "suspect"
    np.testing.assert_array_equal(again.unknown, found.unknown)


def test_an_interrupted_run_goes_on_with_its_distances(tmp_path: Path) -> None:
    files, random = MapFiles(tmp_path, "a"), np.random.default_rng(0)
    kept = Sums(random.random((2, 3, 4)).astype(np.float32), np.ones((3, 4), np.float32), 7)
    files.save_unfinished(kept, "key")
    found = files.load_unfinished("key")
    assert found is not None
    np.testing.assert_array_equal(found.total, kept.total)
    assert found.done == 7


def test_pen_on_a_real_slide_is_unknown_and_its_tissue_is_judged(tmp_path: Path, data: Path, knowing: Path) -> None:
    with Slide(data / "slides" / "CMU-1-Small-Region.svs") as slide:
        image = slide.read(896, 0, (672, 1792), slide.mpp[0])  # tissue alone
        mpp = slide.mpp[0]
    image[:448] = PEN
    _, found = mapped(write_slide(tmp_path / "pen.tiff", image, mpp=mpp), tmp_path, knowing, map="tile")
    assert found.unknown[:2].all()
    assert not found.unknown[2:].any()
