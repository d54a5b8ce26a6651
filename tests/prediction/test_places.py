"""Where to look: inside --roi, outside --exclude, and again when either changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from making.maps import box, write_outlines
from making.models import write_color_filter_model
from making.progress import Heard
from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.errors import UsageError
from wsiseg.run.record import Progress, SlideRecord

MakeSlide = Callable[..., Path]
SIDE = 1792  # 8 tiles


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "colors.onnx")


@pytest.fixture
def slide(make_slide: MakeSlide) -> Path:
    noise = np.random.default_rng(0).integers(60, 230, (56, 56, 3)).repeat(32, 0).repeat(32, 1).astype(np.uint8)
    return make_slide("slides/a.tiff", noise)


def run(model: Path, out: Path, slide: Path, watch: Progress | None = None, **settings: Any) -> tuple[SlideRecord, ...]:
    settings = {"tissue": "none", "map": "tile", **settings}
    config = PredictConfig.checked(inputs=[str(slide)], model=[str(model)], out=out, **settings)
    return predict_slides(config, watch).slides


def seen(out: Path, slide: str = "a") -> np.ndarray:
    return Heatmap.open(out / f"{slide}.ome.zarr").tissue


def expected(rows: slice, columns: slice) -> np.ndarray:
    cells = np.zeros((8, 8), np.bool_)
    cells[rows, columns] = True
    return cells


def test_only_the_cells_in_the_outlines_are_looked_at(tmp_path: Path, model: Path, slide: Path) -> None:
    roi = write_outlines(tmp_path / "roi.geojson", box(224, 448, 896, 1120, "Region*"))
    (record,) = run(model, tmp_path / "out", slide, roi=str(roi))
    np.testing.assert_array_equal(seen(tmp_path / "out"), expected(slice(2, 5), slice(1, 4)))
    assert (record.status, record.tiles, record.warnings) == ("ok", 9, ())
    assert record.tissue_mm2 == pytest.approx(9 * 0.112**2)


def test_a_hole_and_an_excluding_class_are_not_looked_at(tmp_path: Path, model: Path, slide: Path) -> None:
    hole = box(448, 448, 672, 672, "Ignore*")
    roi = write_outlines(tmp_path / "roi.geojson", box(0, 0, 896, 896), hole)
    run(model, tmp_path / "out", slide, roi=str(roi))
    cells = expected(slice(0, 4), slice(0, 4))
    cells[2, 2] = False
    np.testing.assert_array_equal(seen(tmp_path / "out"), cells)


@pytest.mark.parametrize("kind", ["outlines", "mask"])
def test_what_is_excluded_is_not_looked_at_whatever_its_class(
    tmp_path: Path, model: Path, slide: Path, kind: str
) -> None:
    if kind == "mask":
        mask = np.zeros((56, 56), np.uint8)
        mask[:28] = 7
        path = tmp_path / "pen.png"
        Image.fromarray(mask).save(path)
    else:
        path = write_outlines(tmp_path / "pen.geojson", box(0, 0, SIDE, SIDE // 2, "Ignore*"))
    run(model, tmp_path / "out", slide, exclude=str(path))
    np.testing.assert_array_equal(seen(tmp_path / "out"), expected(slice(4, 8), slice(0, 8)))


def test_both_together_leave_what_is_in_one_and_not_in_the_other(tmp_path: Path, model: Path, slide: Path) -> None:
    roi = write_outlines(tmp_path / "roi.geojson", box(0, 0, 896, 896))
    exclude = write_outlines(tmp_path / "pen.geojson", box(0, 0, 896, 448))
    run(model, tmp_path / "out", slide, roi=str(roi), exclude=str(exclude))
    np.testing.assert_array_equal(seen(tmp_path / "out"), expected(slice(2, 4), slice(0, 4)))


def test_outlines_count_from_the_bounds_of_the_scan(tmp_path: Path, model: Path, make_slide: MakeSlide) -> None:
    noise = np.random.default_rng(0).integers(60, 230, (896, 896, 3)).astype(np.uint8)
    slide = make_slide("a.scn", noise, mpp=0.5, frame=(448, 448, 1792, 1792))
    roi = write_outlines(tmp_path / "roi.geojson", box(0, 0, 448, 448))
    run(model, tmp_path / "out", slide, roi=str(roi))
    np.testing.assert_array_equal(seen(tmp_path / "out"), expected(slice(2, 4), slice(2, 4)))


def test_tissue_and_outlines_count_together(tmp_path: Path, model: Path, make_slide: MakeSlide) -> None:
    slide = make_slide("a.tiff", size=(1792, 1792))
    run(model, tmp_path / "all", slide, tissue="auto")
    roi = write_outlines(tmp_path / "roi.geojson", box(0, 0, 896, SIDE))
    run(model, tmp_path / "half", slide, tissue="auto", roi=str(roi))
    whole, half = seen(tmp_path / "all"), seen(tmp_path / "half")
    assert half.any()
    np.testing.assert_array_equal(half, whole & expected(slice(0, 8), slice(0, 4)))


def test_a_slide_is_done_again_when_its_outlines_change_and_only_then(tmp_path: Path, model: Path, slide: Path) -> None:
    roi, out, listener = tmp_path / "roi.geojson", tmp_path / "out", Heard()
    write_outlines(roi, box(0, 0, 896, 896))
    statuses = [run(model, out, slide, roi=str(roi))[0].status for _ in range(2)]
    assert statuses == ["ok", "up_to_date"]
    write_outlines(roi, box(0, 0, 448, 448))
    assert run(model, out, slide, listener, roi=str(roi))[0].status == "ok"
    assert "a: done again, roi changed" in listener.notes
    assert Heatmap.open(out / "a.ome.zarr").run["roi"].startswith("roi.geojson ")
    assert run(model, out, slide, exclude=str(roi))[0].status == "ok"


def test_a_part_that_touches_no_tissue_warns(tmp_path: Path, model: Path, slide: Path) -> None:
    far = box(5000, 5000, 6000, 6000)
    roi = write_outlines(tmp_path / "roi.geojson", box(0, 0, 896, 896), far, far)
    (record,) = run(model, tmp_path / "out", slide, roi=str(roi))
    assert record.warnings == ("--roi roi.geojson: 2 of 3 parts touch no tissue",)
    (record,) = run(model, tmp_path / "out", slide, roi=str(write_outlines(roi, far)))
    assert (record.status, record.warnings) == ("no_tissue", ("--roi roi.geojson: 1 of 1 parts touch no tissue",))
    (record,) = run(model, tmp_path / "out", slide, roi=str(write_outlines(roi)))
    assert record.warnings == ("--roi roi.geojson: nothing is drawn in it",)


@pytest.mark.parametrize("option", ["roi", "exclude"])
def test_a_file_that_cannot_be_read_fails_the_slide_by_name(
    tmp_path: Path, model: Path, slide: Path, option: str
) -> None:
    bad = tmp_path / "bad.geojson"
    bad.write_text('{"type": "FeatureCollection", "features": [{"type"')
    given: dict[str, Any] = {option: str(bad)}
    (record,) = run(model, tmp_path / "out", slide, **given)
    assert record.status == "failed"
    assert "bad.geojson: cannot be read as JSON" in record.error.message  # type: ignore[union-attr]  # it failed
    given[option] = str(tmp_path / "nowhere.geojson")
    with pytest.raises(UsageError, match=f"--{option} .*nowhere.geojson: no such file"):
        run(model, tmp_path / "out", slide, **given)


def test_a_folder_has_one_file_a_slide(tmp_path: Path, model: Path, slide: Path, make_slide: MakeSlide) -> None:
    make_slide("slides/b.tiff", size=(896, 896))
    folder = tmp_path / "drawn"
    write_outlines(folder / "a.geojson", box(0, 0, 896, 896))
    first, second = run(model, tmp_path / "out", slide.parent, roi=str(folder))
    assert (first.status, first.tiles) == ("ok", 16)
    assert second.status == "failed"
    assert "no outlines for it" in second.error.message  # type: ignore[union-attr]  # it failed
    first, second = run(model, tmp_path / "out", slide.parent, exclude=str(folder))
    assert (first.tiles, second.tiles) == (48, 16)
    write_outlines(folder / "stranger.geojson", box(0, 0, 9, 9))
    with pytest.raises(UsageError, match=r"stranger\.geojson would not be used"):
        run(model, tmp_path / "out", slide.parent, roi=str(folder))
