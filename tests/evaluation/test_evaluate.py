import csv
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from making.maps import box, polygon, write_map, write_outlines, write_run
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.evaluation.metrics_file import Report
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.run.errors import OutputError, UsageError, WsisegError

MODES = ("without_background", "with_background")
FINE = st.integers(-5 * 256, 85 * 256).map(lambda number: number / 256)
"""Level-0 pixels; GEOS makes mistakes with corners that lie 1e-200 apart."""


def run(folder: Path, **how: Any) -> Report:
    cohort = folder / "cohort.csv"
    config: dict[str, Any] = {"predictions": (folder / "maps",), "truth": folder / "truth", "resamples": 50}
    return evaluate(EvaluateConfig(**(config | {"cohort": cohort if cohort.exists() else None} | how)))


def pixels_of(heatmap: Heatmap) -> NDArray[np.float32]:
    """Return the probability of every level-0 pixel, NaN where nobody looked; cells end on whole pixels."""
    x, y = (np.rint(edges).astype(int) for edges in heatmap.edges())
    return np.repeat(np.repeat(heatmap.probabilities, np.diff(y), 0), np.diff(x), 1)


def by_sklearn(
    scores: NDArray[Any], positive: NDArray[Any], negative: NDArray[Any], threshold: float
) -> dict[str, float]:
    """Measure pixels one by one; a pixel that the outline cuts counts in both classes by its shares."""
    truth = np.r_[np.ones(scores.size), np.zeros(scores.size)]
    both, weights = np.r_[scores.ravel(), scores.ravel()], np.r_[positive.ravel(), negative.ravel()]
    called = both >= np.float32(threshold)
    return {
        "auc": roc_auc_score(truth, both, sample_weight=weights),
        "average_precision": average_precision_score(truth, both, sample_weight=weights),
        "f1": f1_score(truth, called, sample_weight=weights),
        "brier": brier_score_loss(truth, both.astype(float), sample_weight=weights),
    }


@st.composite
def made_cases(draw: st.DrawFn) -> tuple[NDArray[np.float32], list[list[tuple[float, float]]], bool]:
    """Return a map with ties and gaps, outlines of any shape, and whether they follow the pixels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(2, 7)), draw(st.integers(2, 7)))
    values = (rng.integers(0, 9, shape) / 8).astype(np.float32)
    values[rng.random(shape) < 0.3] = np.nan
    follows_pixels = draw(st.booleans())
    number = st.integers(0, 80) if follows_pixels else FINE
    corners = st.lists(st.tuples(number, number), min_size=3, max_size=8, unique=True)
    return values, draw(st.lists(corners, min_size=1, max_size=3)), follows_pixels


@given(made_cases())
@settings(max_examples=30)
def test_measures_equal_those_of_every_level_0_pixel_one_by_one(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[NDArray[np.float32], list[list[tuple[float, float]]], bool],
) -> None:
    values, rings, follows_pixels = case
    folder = tmp_path_factory.mktemp("case")
    heatmap = write_map(folder / "maps" / "a.ome.zarr", values)
    width, height = heatmap.slide.size_px
    if follows_pixels:  # boxes between corners: outlines that no pixel is cut by
        rings = [list(shapely.box(*ring[0], *ring[1]).exterior.coords[:-1]) for ring in rings]
    shape = shapely.union_all([shapely.make_valid(shapely.Polygon(ring), method="structure") for ring in rings])
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    positive = shapely.area(shapely.intersection(shapely.box(columns, rows, columns + 1, rows + 1), shape))
    if follows_pixels:
        np.testing.assert_allclose(positive, shapely.contains_xy(shape, columns + 0.5, rows + 0.5), atol=1e-9)
    scores = pixels_of(heatmap)
    looked = ~np.isnan(scores)
    if min(positive[looked].sum(), (1 - positive)[looked].sum()) < 1e-3:
        return
    write_outlines(folder / "truth" / "a.geojson", *(polygon(ring) for ring in rings))
    report = run(folder, resamples=0)
    background = np.nan_to_num(scores)
    expected = {
        "without_background": by_sklearn(scores[looked], positive[looked], (1 - positive)[looked], 0.5),
        "with_background": by_sklearn(background, positive, 1 - positive, 0.5),
    }
    for mode in MODES:
        for name, value in expected[mode].items():
            assert getattr(report, mode)[name]["value"] == pytest.approx(value, abs=1e-6), (mode, name)


def write_two(folder: Path, name: str) -> None:
    """Write two maps, an outline of a class and a mask with the values 3 and 255."""
    for slide in "ab":
        write_map(folder / "maps" / f"{slide}.ome.zarr", np.linspace(0, 1, 48).reshape(6, 8))
    write_outlines(folder / "truth" / "a.geojson", box(10, 10, 40, 40, name))
    pixels = np.zeros((6, 8), np.uint8)
    pixels[:3], pixels[3, 0] = 255, 3
    Image.fromarray(pixels).save(folder / "truth" / "b.png")


def test_a_tumor_class_that_no_truth_has_is_refused_rather_than_taken_for_no_tumour(tmp_path: Path) -> None:
    write_two(tmp_path, "Gleason 4")
    with pytest.raises(
        UsageError, match="tumor-class Gleason 5, 1: no ground truth that could be read has such a class"
    ) as caught:
        run(tmp_path, tumor_class=("Gleason 5", "1"))
    assert caught.value.hint == "its classes are: 255, 3, Gleason 4"


def test_a_named_class_that_some_truth_lacks_is_fine_and_one_that_all_lack_is_noted(tmp_path: Path) -> None:
    write_two(tmp_path, "Gleason 4: left")
    report = run(tmp_path, tumor_class=("gleason-4", "255", "1"), negative_class=("3",), ignore_class=("Pen mark",))
    assert not report.failed
    assert report.notes == ("named classes that no truth has: 2 (1, Pen mark)",)


@pytest.mark.parametrize("name", ["out", "junit"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_compared(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for folder in ("maps", "truth"):
        (tmp_path / folder).mkdir()
    with pytest.raises(OutputError, match=r"file.*: cannot be written: .*; choose an --out that can be written"):
        run(tmp_path, **{name: tmp_path / "file" / "place"})  # and there are no maps


def test_truth_without_any_class_is_free_of_tumour_whatever_class_is_named(tmp_path: Path) -> None:
    write_map(tmp_path / "maps" / "a.ome.zarr", np.linspace(0, 1, 48).reshape(6, 8))
    write_outlines(tmp_path / "truth" / "a.geojson")
    assert run(tmp_path, tumor_class=("Gleason 5",)).without_background["tumor_px"] == 0


def union_of(rings: Sequence[Sequence[tuple[float, float]]]) -> Any:
    polygons = [shapely.make_valid(shapely.Polygon(ring), method="structure") for ring in rings]
    return shapely.union_all(polygons)


RINGS = st.lists(st.lists(st.tuples(FINE, FINE), min_size=3, max_size=6, unique=True), max_size=2)


@given(made_cases(), RINGS, RINGS, st.sampled_from(["none", "outlines", "mask"]))
@settings(max_examples=30)
def test_what_is_left_out_counts_in_no_measure_pixel_by_pixel(
    tmp_path_factory: pytest.TempPathFactory,
    case: tuple[NDArray[np.float32], list[list[tuple[float, float]]], bool],
    ignored: list[list[tuple[float, float]]],
    region: list[list[tuple[float, float]]],
    kind: str,
) -> None:
    folder = tmp_path_factory.mktemp("case")
    heatmap = write_map(folder / "maps" / "a.ome.zarr", case[0])
    width, height = heatmap.slide.size_px
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = shapely.box(columns, rows, columns + 1, rows + 1)
    how: dict[str, Any] = {"ignore_class": ("pen mark",), "resamples": 0}
    left = shapely.box(0, 0, width, height).difference(union_of(ignored))
    tumor, share = union_of(case[1]).intersection(left), np.ones((height, width), np.bool_)
    if kind == "outlines" and region:
        how["roi"] = write_outlines(folder / "roi.geojson", *(polygon(ring, "Region") for ring in region))
        left, tumor = (one.intersection(union_of(region)) for one in (left, tumor))
    if kind == "mask":
        share = np.random.default_rng(len(region)).random((height, width)) < 0.6
        Image.fromarray(share.astype(np.uint8) * 255).save(folder / "roi.png")
        how["roi"] = folder / "roi.png"
    positive, counted = (shapely.area(shapely.intersection(pixels, one)) * share for one in (tumor, left))
    negative = np.maximum(counted - positive, 0)
    scores = pixels_of(heatmap)
    looked = ~np.isnan(scores)
    if min(positive[looked].sum(), negative[looked].sum()) < 1e-3:
        return
    names = ["Ignore*", "Pen mark"]
    drawn = [polygon(ring, name) for ring, name in zip(ignored, names, strict=False)]
    write_outlines(folder / "truth" / "a.geojson", *(polygon(ring) for ring in case[1]), *drawn)
    report = run(folder, **how)
    expected = {
        "without_background": by_sklearn(scores[looked], positive[looked], negative[looked], 0.5),
        "with_background": by_sklearn(np.nan_to_num(scores), positive, negative, 0.5),
    }
    for mode in MODES:
        block = getattr(report, mode)
        for name, value in expected[mode].items():
            assert block[name]["value"] == pytest.approx(value, abs=1e-6), (mode, name)
    assert report.with_background["tumor_px"] == pytest.approx(positive.sum(), abs=1e-4)
    assert report.with_background["other_px"] == pytest.approx(negative.sum(), abs=1e-4)
    assert report.tumor_area is not None
    called = (positive + negative)[looked & (np.nan_to_num(scores) >= 0.5)].sum() * 0.25 / 1e6
    assert report.tumor_area["called_mm2"] == pytest.approx(called, abs=1e-9)


def test_a_region_is_named_after_its_slide_and_a_slide_without_one_fails(tmp_path: Path) -> None:
    write_run(tmp_path)
    regions = tmp_path / "regions"
    for number in range(4, 11):
        write_outlines(regions / f"slide-{number}.geojson", box(0, 0, 360, 130, "Region"))
    report = run(tmp_path, roi=regions, split="test")
    failed = {record.slide: record.error.message for record in report.failed if record.error}
    assert failed["slide-11"] == f"slide-11: has no region in {regions}"
    write_outlines(regions / "slide-11.geojson", box(900, 900, 910, 910, "Region"))
    failed = {record.slide: record.error.message for record in run(tmp_path, roi=regions).failed if record.error}
    assert failed["slide-11"] == "slide-11: nothing of it is left to measure"
    write_outlines(regions / "slide-12.geojson", box(0, 0, 10, 10))
    with pytest.raises(UsageError, match=r"slide-12.geojson would not be used: no slide has that name"):
        run(tmp_path, roi=regions, predictions=(tmp_path / "maps", tmp_path / "maps"))
    with pytest.raises(UsageError, match="no such file or folder"):
        run(tmp_path, roi=tmp_path / "nowhere")


def test_what_rounding_leaves_of_a_cell_is_nothing(tmp_path: Path) -> None:
    """Tumour and folds cover the slide; added up they miss some cells by a few parts in 1e15, which is no area."""
    write_map(tmp_path / "maps" / "a.ome.zarr", np.full((7, 7), 0.5), size=(70, 70))
    corners, middle = [(-1.1, -1.3), (73.7, -1.9), (72.3, 71.1), (-1.7, 71.9)], (31.7, 36.1)
    triangles = zip(corners, [*corners[1:], corners[0]], ("Tumor", "Fold", "Fold", "Fold"), strict=True)
    parts = [polygon([one, two, middle], name) for one, two, name in triangles]
    write_outlines(tmp_path / "truth" / "a.geojson", *parts)
    found = run(tmp_path, ignore_class=("Fold",)).with_background
    assert (found["other_px"], found["auc"]["value"]) == (0, None)


def test_truth_outside_the_slide_is_told_also_where_a_region_is_given(tmp_path: Path) -> None:
    write_map(tmp_path / "maps" / "a.ome.zarr", np.full((5, 6), 0.5))
    write_outlines(tmp_path / "truth" / "a.geojson", box(900, 900, 920, 920))
    roi = write_outlines(tmp_path / "roi.geojson", box(0, 0, 30, 30, "Region"))
    with pytest.raises(WsisegError, match="all of its tumour lies outside the slide"):
        run(tmp_path, roi=roi)


def test_split_site_and_location_are_measured_apart(tmp_path: Path) -> None:
    write_run(tmp_path)
    report = run(tmp_path)
    assert (report.split, report.without_background["slides"], report.exit_code) == ("test", 8, 0)
    assert report.threshold.source == "validation"
    assert {name: one["without_background"]["slides"] for name, one in report.per_site.items()} == {
        "breast": 4,
        "colon": 4,
    }
    assert {name: one["with_background"]["slides"] for name, one in report.per_split.items()} == {
        "test": 8,
        "train": 2,
        "val": 2,
    }
    locations = {name: one["without_background"]["auc"] for name, one in report.per_location.items()}
    sites = {name: one["without_background"]["auc"] for name, one in report.per_site.items()}
    assert locations == {"in_distribution": sites["breast"], "out_of_location": sites["colon"]}
    other = run(tmp_path, split="val")
    assert other.without_background["auc"] == report.per_split["val"]["without_background"]["auc"]
    with pytest.raises(
        UsageError, match=r"--split nightly: .*cohort.csv has no slide of that split; the splits are: test, train, val"
    ):
        run(tmp_path, split="nightly")


def test_the_threshold_is_the_users_else_the_best_on_validation_else_the_models(tmp_path: Path) -> None:
    write_run(tmp_path)
    best = run(tmp_path)
    at = best.per_split["val"]["without_background"]["at"]
    assert best.threshold.value == at["best"]["threshold"] == at["validation"]["threshold"]
    assert best.without_background["f1"]["value"] == best.without_background["at"]["validation"]["f1"]
    own = run(tmp_path, threshold=0.6)
    assert (own.threshold.value, own.threshold.source) == (0.6, "option")
    (tmp_path / "cohort.csv").unlink()
    assert run(tmp_path).threshold.model_dump() == {"value": 0.5, "source": "model", "note": ""}
    heatmap = replace(Heatmap.open(tmp_path / "maps" / "slide-0.ome.zarr"), threshold=0.4)
    heatmap.save(tmp_path / "maps" / "slide-0.ome.zarr")
    with pytest.raises(UsageError, match=r"several thresholds: 0\.4, 0\.5; give --threshold"):
        run(tmp_path)


def test_a_cell_at_the_threshold_is_tumour_everywhere(tmp_path: Path) -> None:
    write_map(tmp_path / "maps" / "a.ome.zarr", np.array([[0.3, 0.3], [0.2, 0.1]]), size=(20, 20))
    write_outlines(tmp_path / "truth" / "a.geojson", box(0, 0, 10, 10))
    report = run(tmp_path, threshold=0.3)
    assert (report.with_background["recall"]["value"], report.with_background["precision"]["value"]) == (1.0, 0.5)
    assert report.without_background["at"]["option"]["precision"] == 0.5
    assert report.tumor_area is not None
    assert report.tumor_area["called_mm2"] == pytest.approx(2 * 10 * 10 * 0.25 / 1e6)


def test_intervals_hold_the_value_and_differ_by_case_not_by_pixel(tmp_path: Path) -> None:
    write_run(tmp_path, skill=0.2)
    report = run(tmp_path, resamples=400, threshold=0.5)
    for name in ("auc", "average_precision", "precision", "recall", "f1", "brier"):
        found = report.without_background[name]
        assert found["ci95"][0] < found["value"] < found["ci95"][1], name
    text = (tmp_path / "cohort.csv").read_text()
    (tmp_path / "cohort.csv").write_text(text.replace("case-10", "case-11").replace("case-8", "case-9"))
    merged = run(tmp_path, resamples=400, threshold=0.5)
    assert merged.without_background["cases"] == 6
    assert merged.without_background["auc"]["value"] == report.without_background["auc"]["value"]
    assert merged.without_background["auc"]["ci95"] != report.without_background["auc"]["ci95"]


def test_what_is_missing_or_odd_is_named_and_the_rest_evaluated(tmp_path: Path) -> None:
    write_run(tmp_path)
    truth = tmp_path / "truth"
    (truth / "slide-4.geojson").unlink()
    (truth / "slide-5.geojson").write_text("{")
    write_outlines(truth / "slide-7.geojson", box(900_000, 0, 900_010, 10))
    write_outlines(truth / "slide-8.geojson")
    write_outlines(truth / "slide-10.geojson", box(300, 100, 400, 150))
    write_outlines(truth / "slide-99.geojson")
    cohort = (tmp_path / "cohort.csv").read_text().splitlines()
    sizes = ["mpp", *("0.25" if line.startswith("slide-9,") else "" for line in cohort[1:])]
    lines = [f"{line},{size}" for line, size in zip(cohort, sizes, strict=True) if not line.startswith("slide-0,")]
    (tmp_path / "cohort.csv").write_text("\n".join(lines))
    Image.new("L", (10, 10)).save(truth / "slide-11.png")
    report = run(tmp_path)
    failed = {record.slide: record.error.message for record in report.failed if record.error}
    assert report.exit_code == 1
    assert failed["slide-4"] == "slide-4: no truth for this slide"
    assert failed["slide-5"].startswith("slide-5.geojson: cannot be read as JSON")
    assert failed["slide-7"] == "slide-7.geojson: all of its tumour lies outside the slide"
    assert failed["slide-11"].startswith("slide-11: has more than one truth: slide-11.geojson, slide-11.png")
    assert len(failed) == 4
    warned = {record.slide: record.warnings for record in report.slides if record.warnings}
    assert warned["slide-8"] == ("slide-8.geojson: holds no tumour, but the cohort calls slide-8 a tumour slide",)
    assert "of its tumour lies outside the slide" in warned["slide-10"][0]
    assert warned["slide-9"] == ("slide-9: was mapped at 0.5 um/px, the cohort says 0.25 um/px",)
    assert report.notes == (
        "maps of slides that are not in the cohort: 1 (slide-0)",
        "files of truth without a map: 1 (slide-99.geojson)",
    )
    assert (report.not_in_cohort, report.without_prediction) == (("slide-0",), ("slide-99.geojson",))
    assert report.without_background["slides"] == 4


def remove_maps(folder: Path, *numbers: int) -> None:
    for number in numbers:
        shutil.rmtree(folder / "maps" / f"slide-{number}.ome.zarr")


def test_a_slide_of_the_split_without_a_map_fails_unless_it_may_be_missing(tmp_path: Path) -> None:
    write_run(tmp_path)
    remove_maps(tmp_path, 0, 5, 6)
    report = run(tmp_path, out=tmp_path / "out")
    failed = {record.slide: record.error for record in report.failed if record.error}
    assert (list(failed), report.exit_code) == (["slide-5", "slide-6"], 1)  # slide-0 is of the train split
    assert failed["slide-5"].message == f"slide-5: has no map in {tmp_path / 'maps'}"
    assert "--allow-missing" in failed["slide-5"].hint
    allowed = run(tmp_path, out=tmp_path / "out", allow_missing=True)
    assert (allowed.failed, allowed.exit_code) == ((), 0)
    assert "slides without a map, which may be missing: 2 (slide-5, slide-6)" in allowed.notes
    assert "<p>Test split, 6 of 8 slides, 2 without a map;" in (tmp_path / "out" / "report.html").read_text()
    for found in (report, allowed):
        assert found.counted == "6 of 8 slides"
        assert found.per_site["breast"]["with_background"]["expected_slides"] == 4
        assert found.per_site["breast"]["with_background"]["slides"] == 3
        assert found.per_split["train"]["without_background"]["expected_slides"] == 2
        assert found.without_prediction == ("slide-0.geojson", "slide-5.geojson", "slide-6.geojson")
    rows = {row["slide"]: row for row in csv.DictReader((tmp_path / "out" / "slides.csv").read_text().splitlines())}
    assert (rows["slide-5"]["status"], rows["slide-5"]["split"]) == ("skipped", "test")


def test_where_no_slide_of_the_test_split_has_a_map_nothing_else_is_measured_in_its_place(tmp_path: Path) -> None:
    write_run(tmp_path)
    remove_maps(tmp_path, *range(4, 12))
    for allow_missing in (False, True):
        with pytest.raises(WsisegError, match="nothing of split test could be evaluated: slide-4: has no map"):
            run(tmp_path, allow_missing=allow_missing)
    assert run(tmp_path, split="val").counted == "2 of 2 slides"


def test_without_a_cohort_a_truth_without_a_map_is_noted_and_fails_a_gate(tmp_path: Path) -> None:
    write_run(tmp_path, slides=4)
    (tmp_path / "cohort.csv").unlink()
    remove_maps(tmp_path, 1, 3)
    noted = run(tmp_path)
    assert (noted.exit_code, noted.counted) == (0, "2 of 4 slides")
    assert noted.notes == ("files of truth without a map: 2 (slide-1.geojson, slide-3.geojson)",)
    for condition in ({"fail_under": ("slides=1",)}, {"fail_over": ("brier=1",)}):
        gated = run(tmp_path, **condition)
        assert (gated.unmet, gated.exit_code) == ((), 1)
        assert [record.slide for record in gated.failed] == ["slide-1", "slide-3"]
        assert run(tmp_path, allow_missing=True, **condition).exit_code == 0
    assert run(tmp_path, allow_missing=True, fail_under=("slides=3",)).exit_code == 3


def test_a_threshold_that_validation_slides_cannot_give_says_so(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert run(tmp_path).threshold.origin == "validation"
    remove_maps(tmp_path, 3)
    assert run(tmp_path).threshold.origin == "validation: from 1 of 2 validation slides"
    (tmp_path / "truth" / "slide-2.geojson").write_text("{")
    some = run(tmp_path, out=tmp_path / "out", junit=tmp_path / "junit.xml", fail_under=("auc=0.1",))
    said = "model: not from validation slides: 0 of 2 could be compared"
    assert some.threshold.origin == said
    assert said in (tmp_path / "out" / "report.html").read_text()
    assert said in (tmp_path / "junit.xml").read_text()
    write_outlines(tmp_path / "truth" / "slide-2.geojson")
    assert run(tmp_path).threshold.origin.endswith("1 of 2 could be compared, without tumour")
    text = (tmp_path / "cohort.csv").read_text()
    (tmp_path / "cohort.csv").write_text(text.replace(",val,", ",train,"))
    assert run(tmp_path).threshold.origin == "model: the cohort has no validation slides"
    assert run(tmp_path, threshold=0.4).threshold.origin == "option"


def test_a_broken_map_of_a_further_run_is_a_failure(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "maps" / "slide-5.ome.zarr" / "0")
    report = run(tmp_path / "a", predictions=(tmp_path / "a" / "maps", tmp_path / "b" / "maps"))
    assert report.exit_code == 1
    assert [record.slide for record in report.failed] == ["slide-5"]


def test_pages_say_whether_cases_or_slides_were_drawn(tmp_path: Path) -> None:
    write_run(tmp_path)
    page = tmp_path / "out" / "report.html"
    assert run(tmp_path, out=tmp_path / "out").settings["resampled"] == "case"
    assert "each of whole cases, of which there are 8." in page.read_text()
    text = (tmp_path / "cohort.csv").read_text()
    (tmp_path / "cohort.csv").write_text(re.sub(r",case-\d+,", ",,", text))
    assert run(tmp_path, out=tmp_path / "out").settings["resampled"] == "slide"
    assert "each of slides, of which there are 8: no case is known" in page.read_text()
    (tmp_path / "cohort.csv").write_text(re.sub(r",case-(4|5|6|7|8|9|10|11),", ",one,", text))
    one = run(tmp_path, out=tmp_path / "out")
    assert one.without_background["auc"]["ci95"] is None
    assert "No intervals, as there is one case only." in page.read_text()


def test_nothing_to_evaluate_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path, slides=2)
    with pytest.raises(UsageError, match="no such folder"):
        run(tmp_path, truth=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no heatmaps there"):
        run(tmp_path, predictions=(tmp_path / "truth",))
    for path in (tmp_path / "truth").iterdir():
        path.unlink()
    with pytest.raises(WsisegError, match="nothing could be evaluated: slide-0: no truth for this slide"):
        run(tmp_path)


def test_runs_are_compared_on_the_slides_that_both_have(tmp_path: Path) -> None:
    write_run(tmp_path / "a", skill=0.2)
    write_run(tmp_path / "b", skill=0.5)
    for gone in ("slide-6", "slide-7"):
        (tmp_path / "b" / "maps" / f"{gone}.ome.zarr").rename(tmp_path / gone)
    maps = (tmp_path / "a" / "maps", tmp_path / "b" / "maps")
    report = run(tmp_path / "a", predictions=maps, resamples=300)
    (other,) = report.runs
    assert (other.slides, other.run) == (6, str(maps[1]))
    difference = other.difference["without_background"]["auc"]
    same = run(tmp_path / "a", predictions=(maps[0], maps[0])).runs[0].difference["with_background"]
    assert difference["ci95"][0] < difference["value"] < difference["ci95"][1]
    assert difference["value"] > 0.1
    assert all(one["value"] == 0 and one["ci95"] == [0, 0] for one in same.values())


def test_slide_auc_and_area_error(tmp_path: Path) -> None:
    write_run(tmp_path)
    report = run(tmp_path, threshold=0.5)
    assert report.slide_auc is not None
    assert report.tumor_area is not None
    assert (report.slide_auc["value"], report.slide_auc["slides"]) == (1.0, 8)
    text = (tmp_path / "cohort.csv").read_text()
    for label, is_perfect in (("0", False), ("", True)):  # the cohort's label goes before what the truth holds
        (tmp_path / "cohort.csv").write_text(text.replace("case-4,1,", f"case-4,{label},"))
        found = run(tmp_path, threshold=0.5).slide_auc
        assert found is not None
        assert (found["value"] == 1.0) == is_perfect
    um2 = 0.5 * 0.5 / 1e6
    assert report.tumor_area["truth_mm2"] == pytest.approx(6 * 120 * 80 * um2)
    assert report.tumor_area["mean_error_mm2"]["value"] == pytest.approx(
        (report.tumor_area["called_mm2"] - report.tumor_area["truth_mm2"]) / 8,
    )


def test_the_report_of_predict_is_not_overwritten(tmp_path: Path) -> None:
    write_run(tmp_path, slides=2)
    with pytest.raises(UsageError, match=r"its report\.html is that of predict"):
        run(tmp_path, out=tmp_path / "maps")


def test_a_slide_without_tissue_is_measured_with_background_only(tmp_path: Path) -> None:
    write_map(tmp_path / "maps" / "a.ome.zarr", np.full((5, 6), np.nan))
    write_outlines(tmp_path / "truth" / "a.geojson", box(0, 0, 20, 20))
    report = run(tmp_path, out=tmp_path / "out", froc=True)
    assert report.without_background["recall"]["value"] is None
    assert (report.with_background["recall"]["value"], report.with_background["auc"]["value"]) == (0.0, 0.5)
    assert report.slide_auc is not None
    assert report.slide_auc["value"] is None


def test_files_are_written_and_the_table_has_a_row_for_every_slide(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "truth" / "slide-4.geojson").unlink()
    report = run(tmp_path, out=tmp_path / "out", junit=tmp_path / "junit.xml")
    names = {"metrics.json", "slides.csv", "report.html", "roc.png", "roc.svg", "reliability.png", "reliability.svg"}
    assert names | {"precision_recall.png", "precision_recall.svg"} == {
        path.name for path in (tmp_path / "out").iterdir()
    }
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored == json.loads(json.dumps(report.model_dump(mode="json", by_alias=True)))
    assert stored["schema"] == "wsiseg.metrics/1"
    rows = list(csv.DictReader((tmp_path / "out" / "slides.csv").read_text().splitlines()))
    assert [row["slide"] for row in rows] == [record.slide for record in report.slides]
    by_slide = {row["slide"]: row for row in rows}
    assert (by_slide["slide-4"]["status"], by_slide["slide-4"]["message"]) == (
        "failed",
        "slide-4: no truth for this slide",
    )
    assert float(by_slide["slide-5"]["auc_background"]) > 0.5
    assert by_slide["slide-3"]["auc"] == ""


def test_two_evaluations_give_the_same_files(tmp_path: Path) -> None:
    write_run(tmp_path)
    for name in ("one", "two"):
        run(tmp_path, out=tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        stored = [(tmp_path / name / path.name).read_bytes() for name in ("one", "two")]
        if path.suffix == ".json":  # which holds how long each slide took
            stored = [json.dumps({**json.loads(text), "slides": 0}).encode() for text in stored]
        assert stored[0] == stored[1], path.name


def test_a_heatmap_is_truth_for_another(tmp_path: Path) -> None:
    write_run(tmp_path)
    report = run(tmp_path, truth=tmp_path / "maps", threshold=0.5)
    assert report.without_background["auc"]["value"] == 1.0
    assert report.with_background["f1"]["value"] == pytest.approx(1.0)


def test_single_lesions_found_and_missed_are_counted(tmp_path: Path) -> None:
    values = np.full((60, 80), 0.01)
    values[10, 10], values[40:44, 60:64], values[50, 10], values[30, 30] = 0.9, 0.8, 0.7, 0.6
    write_map(tmp_path / "maps" / "a.ome.zarr", values, cell_px=100)
    found, missed, tiny = box(500, 500, 1500, 1500), box(6000, 200, 7000, 1200), box(980, 4980, 1080, 5080)
    split = [box(5900, 3900, 6200, 4500), box(6240, 3900, 6600, 4500)]  # 20 um apart: one lesion
    write_outlines(tmp_path / "truth" / "a.geojson", found, missed, tiny, *split)
    froc = run(tmp_path, froc=True).froc
    assert froc is not None
    assert froc["lesions"] == 3
    assert froc["sensitivity_at"]["1"] == pytest.approx(2 / 3)
    assert run(tmp_path).froc is None
    ignored = box(2500, 2500, 3500, 3500, "Ignore*"), box(6000, 200, 7000, 1200, "Ignore*")
    write_outlines(tmp_path / "truth" / "a.geojson", found, missed, tiny, *split, *ignored)
    froc = run(tmp_path, froc=True).froc
    assert froc is not None
    assert (froc["lesions"], froc["score"]) == (2, 1.0)  # neither the miss nor the only false alarm counts
