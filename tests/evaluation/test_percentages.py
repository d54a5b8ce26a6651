"""Maps beside the percentages of tumour that a cohort states, with and without outlines."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from making.maps import box, write_map, write_outlines
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.evaluation.metrics_file import Report
from wsiseg.run.errors import UsageError

CALLED = (10, 20, 45, 80)  # percent of each map that is called tumour


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Maps of ten by ten cells, of which so many percent are tumour; the last of five slides states nothing."""
    rows = ["slide,path,case,label,split,tumor_percent,tumor_min,tumor_max"]
    said = ("0,test,0,,", "1,test,30,,", "1,test,,30,40", "1,val,80,,", "1,test,,,")
    for number, (called, stated) in enumerate(zip((*CALLED, 50), said, strict=True)):
        values = (np.arange(100) < called).reshape(10, 10).astype(np.float32)
        write_map(tmp_path / "maps" / f"s{number}.ome.zarr", values, size=(100, 100))
        write_outlines(tmp_path / "truth" / f"s{number}.geojson", *([box(0, 0, 100, 10)] if number else []))
        rows.append(f"s{number},s{number}.svs,c{number},{stated}")
    (tmp_path / "cohort.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def run(folder: Path, **how: Any) -> Report:
    return evaluate(EvaluateConfig(predictions=(folder / "maps",), cohort=folder / "cohort.csv", resamples=50, **how))


def test_percentages_are_compared_without_outlines(folder: Path) -> None:
    report = run(folder, out=folder / "out", fail_under=("percentages.correlation=0.9", "auc=0.1"))
    assert report.percentages is not None
    assert report.percentages["slides"] == 3
    stated, called = (0, 30, 35), (10, 20, 45)
    assert report.percentages["correlation"]["value"] == pytest.approx(np.corrcoef(stated, called)[0, 1])
    assert report.percentages["mean_error"]["value"] == pytest.approx((10 - 10 + 10) / 3)
    assert report.percentages["mean_absolute_error"]["value"] == pytest.approx(10)
    assert report.percentages["mean_error"]["ci95"] is not None
    assert report.slide_auc is not None
    assert report.slide_auc["slides"] == 3
    assert report.without_background == {"slides": 3, "cases": 3, "expected_slides": 3}
    assert [gate.is_met for gate in report.gates] == [False, False]
    assert {path.name for path in (folder / "out").iterdir()} == {
        "metrics.json", "percentages.png", "percentages.svg", "report.html", "slides.csv",
    }  # fmt: skip
    assert "mean absolute error" in (folder / "out" / "report.html").read_text()
    with (folder / "out" / "slides.csv").open(newline="") as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    assert (rows["s1"]["stated_percent"], rows["s1"]["predicted_percent"]) == ("30.0", "20.0")
    assert (rows["s2"]["stated_percent"], rows["s2"]["truth_mm2"], rows["s2"]["auc"]) == ("35.0", "", "")
    assert "s4" not in rows


def test_percentages_stand_beside_the_measures_of_pixels(folder: Path) -> None:
    report = run(folder, truth=folder / "truth", split="test")
    assert report.percentages is not None
    assert report.percentages["slides"] == 3
    assert report.without_background["slides"] == 4
    assert report.without_background["auc"]["value"] is not None
    assert run(folder, truth=folder / "truth", split="val").percentages == {
        "correlation": {"value": None, "ci95": None},
        "mean_error": {"value": 0.0, "ci95": None},
        "mean_absolute_error": {"value": 0.0, "ci95": None},
        "slides": 1,
    }


def test_a_slide_without_a_map_is_missing_here_too(folder: Path) -> None:
    (folder / "maps" / "s1.ome.zarr").rename(folder / "elsewhere")
    assert [record.slide for record in run(folder).failed] == ["s1"]


def test_a_cohort_without_percentages_needs_truth(folder: Path) -> None:
    rows = (folder / "cohort.csv").read_text().splitlines()
    (folder / "cohort.csv").write_text("\n".join(",".join(row.split(",")[:5]) for row in rows))
    with pytest.raises(UsageError, match="states no percentage of tumour; write tumor_percent"):
        run(folder)
    assert run(folder, truth=folder / "truth").percentages is None
