"""A slide that is up to date is not opened, and anything that may have changed is looked at."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from making.models import write_color_filter_model
from making.slides import write_slide
from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.prediction.predict import predict_slides
from wsiseg.prediction.unchanged import marks_of
from wsiseg.run.record import Run
from wsiseg.slides.cohort import CohortSlide
from wsiseg.slides.slide import Slide

LATER = (2_000_000_000, 2_000_000_000)


@pytest.fixture
def predicted(tmp_path: Path) -> Callable[..., Run]:
    """Return what maps two slides with the settings given, and fails if it opens a slide or a heatmap unasked."""
    write_color_filter_model(tmp_path / "m.onnx")
    for name in ("a", "b"):
        write_slide(tmp_path / f"{name}.tiff", size=(600, 400))
    (tmp_path / "cohort.csv").write_text("slide,path,site\na,a.tiff,Breast\nb,b.tiff,Breast\n")

    def run(**settings: Any) -> Run:
        fixed = {"inputs": (str(tmp_path / "cohort.csv"),), "model": (str(tmp_path / "m.onnx"),)}
        return predict_slides(PredictConfig.checked(**fixed, out=tmp_path / "out", **settings))

    run()
    return run


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the slides that are opened from now on."""
    names, begin, read = list[str](), Slide.__init__, Heatmap.open

    def noted(self: Slide, path: Path, **settings: Any) -> None:
        names.append(path.stem)
        begin(self, path, **settings)

    def noted_heatmap(path: Path) -> Heatmap:
        names.append(path.name.split(".")[0])
        return read(path)

    monkeypatch.setattr(Slide, "__init__", noted)
    monkeypatch.setattr(Heatmap, "open", noted_heatmap)
    return names


def test_neither_slides_nor_heatmaps_are_opened_and_their_figures_stay(
    tmp_path: Path, predicted: Callable[..., Run], opened: list[str]
) -> None:
    page, before = (tmp_path / "out" / "report.html").read_bytes(), json.loads((tmp_path / "out/run.json").read_text())
    assert [record.status for record in predicted(jobs=2).slides] == ["up_to_date"] * 2
    assert [record.status for record in predicted(dry_run=True).slides] == ["up_to_date"] * 2
    assert opened == []
    assert (tmp_path / "out" / "report.html").read_bytes() == page
    after = json.loads((tmp_path / "out" / "run.json").read_text())
    told = {"status": "up_to_date", "seconds": 0.0}
    assert after["slides"] == [{**record, **told} for record in before["slides"]]
    assert after["written"]["report.html"] == before["written"]["report.html"]
    assert "a,%s" % (tmp_path / "a.tiff") in (tmp_path / "out" / "slides.csv").read_text()


@pytest.mark.parametrize(
    "name",
    ["a.tiff", "out/a.png", "out/a.geojson", "out/a.ome.zarr/.zattrs", "out/.thumbnails/a.jpg"],
)
def test_a_file_that_was_touched_is_looked_at_once_and_trusted_again(
    tmp_path: Path, predicted: Callable[..., Run], opened: list[str], name: str
) -> None:
    os.utime(tmp_path / name, LATER)
    assert [record.status for record in predicted().slides] == ["up_to_date"] * 2
    assert "a" in opened
    opened.clear()
    assert [record.status for record in predicted().slides] == ["up_to_date"] * 2
    assert opened == []


@pytest.mark.parametrize("settings", [{}, {"dry_run": True}])
def test_what_was_warned_of_is_warned_of_again_where_the_results_are_found_done(
    tmp_path: Path, predicted: Callable[..., Run], settings: dict[str, Any]
) -> None:
    before = [record.warnings for record in predicted().slides]
    assert before[0]
    os.utime(tmp_path / "a.tiff", LATER)
    os.utime(tmp_path / "b.tiff", LATER)
    assert [record.warnings for record in predicted(**settings).slides] == before


@pytest.mark.parametrize("name", ["a.tiff", "out/a.png", "out/a.ome.zarr/.zattrs"])
def test_a_file_that_is_gone_is_missed(tmp_path: Path, predicted: Callable[..., Run], name: str) -> None:
    (tmp_path / name).unlink()
    statuses = {record.slide: record.status for record in predicted().slides}
    assert statuses == {"a": "failed" if name == "a.tiff" else "ok", "b": "up_to_date"}


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        ({"overwrite": True}, "ok"),
        ({"threshold": 0.9}, "ok"),
        ({"min_tissue": 0.7}, "ok"),
        ({"slide_mpp": 0.51}, "ok"),
        ({"csv": True}, "ok"),
        ({"max_bad_tiles": 0.5}, "up_to_date"),
    ],
)
def test_other_settings_are_compared_with_the_heatmap(
    predicted: Callable[..., Run], opened: list[str], settings: dict[str, Any], status: str
) -> None:
    assert [record.status for record in predicted(**settings).slides] == [status] * 2
    assert {"a", "b"} <= set(opened)


def test_a_row_that_says_something_else_is_taken_up(tmp_path: Path, predicted: Callable[..., Run]) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text(path.read_text().replace("b.tiff,Breast", "b.tiff,Lung"))
    predicted()
    assert "Lung" in (tmp_path / "out" / "slides.csv").read_text()
    assert "Lung" in (tmp_path / "out" / "report.html").read_text()


def test_results_that_were_begun_anew_are_not_trusted(tmp_path: Path, predicted: Callable[..., Run]) -> None:
    (tmp_path / "out" / ".a.begun").touch()
    assert [record.status for record in predicted().slides] == ["up_to_date", "ok"], "b needs no work and comes first"


def test_a_page_that_was_changed_or_of_fewer_slides_is_written_again(
    tmp_path: Path, predicted: Callable[..., Run]
) -> None:
    page = tmp_path / "out" / "report.html"
    whole = page.read_bytes()
    page.write_text("changed")
    predicted()
    assert b"Maps" in page.read_bytes()
    (tmp_path / "out" / "run.json").rename(tmp_path / "out" / "run.1-of-1.json")
    predicted()
    assert len(page.read_bytes()) > len(whole) / 2, "of the slides of another record it shows all"


def test_marks_are_of_all_files_of_a_slide_or_of_none(tmp_path: Path) -> None:
    for name in ("a.mrxs", "a/Data0001.dat", "b.vms", "c.dcm", "d/1.dcm", "d/2.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    def files(name: str) -> list[str]:
        return [Path(path).name for path, *_ in marks_of(CohortSlide(name, tmp_path / name))]

    assert files("a.mrxs") == ["a.mrxs", "Data0001.dat"]
    assert files("d") == ["1.dcm", "2.dcm"]
    assert files("b.vms") == files("c.dcm") == files("gone.svs") == []
