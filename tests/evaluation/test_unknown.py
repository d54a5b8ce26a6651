"""Unknown tissue counts in no measure, and beside every measure stands how much of it there was."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from making.maps import box, write_map, write_outlines, write_run
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.evaluation.metrics_file import Report
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.run.errors import UsageError

MODES = ("without_background", "with_background")
SHARES = ("unknown_share", "unknown_tumor_share", "unknown_other_share")


def run(folder: Path, maps: str = "maps", truth: str = "truth", **how: Any) -> Report:
    cohort = folder / "cohort.csv"
    fixed: dict[str, Any] = {"cohort": cohort if cohort.exists() else None, "resamples": 50}
    return evaluate(EvaluateConfig(predictions=(folder / maps,), truth=folder / truth, **(fixed | how)))


def value(report: Report, mode: str, name: str) -> float | None:
    found: float | None = getattr(report, mode)[name]["value"]
    return found


def forget(folder: Path, *, every: bool = False, seed: int = 0) -> None:
    """Make cells of all maps unknown."""
    random = np.random.default_rng(seed)
    for path in sorted(folder.glob("*.ome.zarr")):
        found = Heatmap.open(path)
        unknown = np.ones(found.shape, np.bool_) if every else random.random(found.shape) < 0.3
        Heatmap(found.probabilities, found.cell_um, found.slide, unknown=unknown).save(path)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=5)
def test_measures_are_those_of_a_truth_that_leaves_out_what_is_unknown(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    folder, random = tmp_path_factory.mktemp("case"), np.random.default_rng(seed)
    values = np.where(random.random((9, 12)) < 0.2, np.nan, random.integers(0, 9, (9, 12)) / 8)
    unknown = (random.random((9, 12)) < 0.4) & ~np.isnan(values)
    slide = write_map(folder / "maps" / "a.ome.zarr", values, unknown=unknown).slide
    write_map(folder / "all" / "a.ome.zarr", values)
    tumor = box(17, 13, 71, 55)
    corners = (10 * np.argwhere(unknown)).tolist()
    cells = [box(left, top, left + 10, top + 10, "Ignore*") for top, left in corners]
    write_outlines(folder / "truth" / "a.geojson", tumor)
    write_outlines(folder / "without" / "a.geojson", tumor, *cells)
    found, expected = run(folder, resamples=0), run(folder, "all", "without", resamples=0)
    for mode in MODES:
        for name, one in getattr(expected, mode).items():
            if name in SHARES:
                assert one["value"] in {0, None}
            elif isinstance(one, dict) and "value" in one:
                assert value(found, mode, name) == pytest.approx(one["value"], abs=1e-6), (mode, name)
    assert found.tumor_area is not None
    assert expected.tumor_area is not None
    for name in ("truth_mm2", "called_mm2"):
        assert found.tumor_area[name] == pytest.approx(expected.tumor_area[name], abs=1e-9)
    # The shares, pixel by pixel of level 0.
    width, height = slide.size_px
    is_tumor = np.zeros((height, width), np.bool_)
    is_tumor[13:55, 17:71] = True
    state = (np.where(np.isnan(values), 0, 1) + unknown).repeat(10, 0).repeat(10, 1)[:height, :width]
    for mode, counted in zip(MODES, (state > 0, state >= 0), strict=True):
        for name, pixels in zip(SHARES, (counted, counted & is_tumor, counted & ~is_tumor), strict=True):
            assert value(found, mode, name) == pytest.approx((state == 2)[pixels].mean(), abs=1e-6), (mode, name)


def test_a_threshold_decides_what_is_wrong_and_never_what_is_unknown(tmp_path: Path) -> None:
    write_run(tmp_path)
    forget(tmp_path / "maps")
    reports = [run(tmp_path, threshold=threshold) for threshold in (0.2, 0.8)]
    assert len({value(report, MODES[0], "wrong_share") for report in reports}) == 2
    for name in SHARES:
        assert len({value(report, MODES[0], name) for report in reports}) == 1
    block = reports[0].without_background
    assert block["unknown_share"]["value"] == pytest.approx(0.3, abs=0.02)
    assert block["unknown_share"]["ci95"][0] < block["unknown_share"]["value"] < block["unknown_share"]["ci95"][1]
    assert reports[0].unknown_share == block["unknown_share"]
    assert {site for site, one in reports[0].per_site.items() if one[MODES[0]]["unknown_share"]["value"] > 0.2} == {
        "breast",
        "colon",
    }


def test_maps_without_a_judged_pixel_have_no_measure_and_one_share(tmp_path: Path) -> None:
    write_run(tmp_path)
    forget(tmp_path / "maps", every=True)
    report = run(tmp_path, out=tmp_path / "out")
    block = report.without_background
    defined = {name for name, one in block.items() if isinstance(one, dict) and one.get("value") is not None}
    assert defined == set(SHARES)
    assert [block[name]["value"] for name in SHARES] == [1, 1, 1]
    assert report.slide_auc == {"value": None, "ci95": None, "slides": 0, "unjudged": 8}
    assert all(one.status == "ok" and "100% of the tissue" in one.warnings[0] for one in report.slides)
    with (tmp_path / "out" / "slides.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["unknown_share"], row["auc"], row["tumor_mm2"]) for row in rows} == {("1.0", "", "0.0")}
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["unknown_share"]["value"] == 1
    assert stored["reliability"]["pixels"] == [0] * 10


def test_runs_are_compared_by_what_they_left_unknown_too(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_run(tmp_path / "other")
    forget(tmp_path / "other" / "maps")
    both = (tmp_path / "maps", tmp_path / "other" / "maps")
    how: dict[str, Any] = {"truth": tmp_path / "truth", "resamples": 0, "out": tmp_path / "out"}
    (further,) = evaluate(EvaluateConfig(predictions=both, **how)).runs
    assert further.difference["without_background"]["unknown_share"]["value"] == pytest.approx(0.3, abs=0.02)
    assert "unknown (difference from the first)" in (tmp_path / "out" / "report.html").read_text()


def test_a_lesion_in_unknown_tissue_is_neither_found_nor_missed_nor_forgotten(tmp_path: Path) -> None:
    values = np.full((60, 60), 0.1)
    values[12, 12] = values[12, 42] = values[50, 50] = 0.9
    unknown = np.zeros((60, 60), np.bool_)
    lesions = [box(700, 700, 1700, 1700), box(3700, 700, 4700, 1700), box(700, 3700, 1700, 4700)]
    write_outlines(tmp_path / "truth" / "a.geojson", *lesions)
    scores = []
    for cells in ((), np.s_[30:], np.s_[:, 30:]):
        if cells:
            unknown[cells] = True
        write_map(tmp_path / "maps" / "a.ome.zarr", values, 100.0, unknown=unknown)
        found = run(tmp_path, froc=True).froc
        assert found is not None
        scores.append((found["lesions"], found["unjudged"], found["sensitivity_at"]["1"], found["score"]))
    assert scores[0][:3] == (3, 0, pytest.approx(2 / 3))
    assert scores[1] == (2, 1, 1.0, 1.0)  # the missed lesion and the false alarm lay there
    assert scores[2] == (1, 2, 1.0, 1.0)
    write_map(tmp_path / "maps" / "a.ome.zarr", values, 100.0, unknown=np.ones((60, 60), np.bool_))
    found = run(tmp_path, froc=True, out=tmp_path / "out").froc
    assert found == {"score": None, "sensitivity_at": {}, "lesions": 0, "unjudged": 3, "slides": 1}
    assert "3 lesions unjudged" in (tmp_path / "out" / "report.html").read_text()


def test_what_another_map_does_not_know_is_left_out_where_that_map_is_the_truth(tmp_path: Path) -> None:
    values, unknown = np.linspace(0, 1, 100).reshape(10, 10), np.zeros((10, 10), np.bool_)
    unknown[:, :5] = True
    write_map(tmp_path / "maps" / "a.ome.zarr", values)
    write_map(tmp_path / "truth" / "a.ome.zarr", values, unknown=unknown)
    block = run(tmp_path).without_background
    assert (block["auc"]["value"], block["unknown_share"]["value"]) == (1.0, 0.0)
    assert block["tumor_px"] + block["other_px"] == pytest.approx((97 - 50) * 96)


@pytest.mark.parametrize("name", ["unknown_share", "site.colon.unknown_tumor_share", "mean_per_slide.unknown_share"])
def test_what_is_unknown_can_be_a_gate(tmp_path: Path, name: str) -> None:
    write_run(tmp_path)
    forget(tmp_path / "maps")
    assert run(tmp_path, fail_over=(f"{name}=0.5",)).unmet == ()
    assert [one.measure for one in run(tmp_path, fail_over=(f"{name}=0.1",)).unmet] == [name]
    with pytest.raises(UsageError, match=f"lower values of {name} are better"):
        run(tmp_path, fail_under=(f"{name}=0.1",))
