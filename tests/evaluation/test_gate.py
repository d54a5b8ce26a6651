import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from defusedxml import ElementTree

from making.maps import write_run
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation import gate
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.evaluation.metrics_file import Report, Threshold
from wsiseg.run.errors import UsageError
from wsiseg.run.record import Failure, SlideRecord


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cohort with maps and truth; one slide's truth is missing."""
    folder = tmp_path_factory.mktemp("gate")
    write_run(folder)
    (folder / "truth" / "slide-4.geojson").unlink()
    return folder


def report_of(folder: Path, **how: Any) -> Report:
    places = {"predictions": (folder / "maps",), "truth": folder / "truth", "cohort": folder / "cohort.csv"}
    return evaluate(EvaluateConfig(**{**places, "resamples": 20, **how}))


def wsiseg(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsiseg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def evaluated(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    settings = folder / "settings.toml"
    settings.write_text("resamples = 20\n")
    places = (folder / "maps", "--truth", folder / "truth", "--cohort", folder / "cohort.csv", "--config", settings)
    return wsiseg("evaluate", *places, *arguments)


@pytest.mark.parametrize(
    "name",
    ["auc", "with_background.f1", "site.colon.auc", "site.breast.with_background.iou", "split.val.f1", "slide_auc",
     "location.out_of_location.auc", "mean_per_slide.auc", "at.best.f1", "slides", "cases", "tumor_px"],
)  # fmt: skip
def test_any_measure_can_be_a_gate(folder: Path, name: str) -> None:
    met = report_of(folder, fail_under=(f"{name}=0.0001",))
    assert (met.unmet, met.exit_code, met.gates[0].measure) == ((), 1, name)
    most = "1e12" if name in {"slides", "cases", "tumor_px"} else "1"
    unmet = report_of(folder, fail_under=(f"{name}={most}", "auc=1", "dice=0"))
    assert {one.measure for one in unmet.unmet} == {"auc", name} - ({name} if met.gates[0].value == 1 else set())
    assert unmet.exit_code == 3


def test_the_value_of_a_gate_is_that_without_background(folder: Path) -> None:
    report = report_of(folder, fail_under=("auc=0.5", "site.colon.auc=0.5"))
    assert report.gates[0].value == report.without_background["auc"]["value"]
    assert report.gates[1].value == report.per_site["colon"]["without_background"]["auc"]["value"]


def test_an_undefined_measure_does_not_meet_its_gate(folder: Path) -> None:
    report = report_of(folder, fail_under=("precision=0",), threshold=1.0)
    assert [(one.value, one.is_met) for one in report.gates] == [(None, False)]
    assert report.exit_code == 3


@pytest.mark.parametrize("text", ["auc", "auc=", "=0.5", "auc=high", "auc=nan"])
def test_a_condition_that_cannot_be_read_is_a_usage_error(folder: Path, text: str) -> None:
    with pytest.raises(UsageError, match="not of the form MEASURE=NUMBER"):
        report_of(folder, fail_under=(text,))


@pytest.mark.parametrize("name", ["accuracy", "site.lung.auc", "site.colon.rand", "mean_per_slide", "froc.score"])
def test_a_measure_that_does_not_exist_is_a_usage_error(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"there is no measure {name}"):
        report_of(folder, fail_under=(f"{name}=0.5",))


@pytest.mark.parametrize(
    ("name", "meant"),
    [("acu", "auc"), ("site.colom.auc", "site.colon.auc"), ("with_background.f2", "with_background.f1"),
     ("split.tset.f1", "split.test.f1"), ("mean_per_slide.brier", "mean_per_slide")],
)  # fmt: skip
def test_a_mistyped_measure_is_named_before_anything_is_read(folder: Path, name: str, meant: str) -> None:
    maps = folder / "nowhere"
    for option in ("fail_under", "fail_over"):
        with pytest.raises(UsageError, match=rf"there is no measure {name} .*; did you mean {meant}"):
            report_of(folder, predictions=(maps,), **{option: (f"{name}=0.5",)})


@pytest.mark.parametrize("gate", ["unknown_share=4", "site.colon.brier=-0.1", "mean_per_slide.wrong_share=1.01"])
def test_a_limit_that_no_map_can_miss_or_meet_is_refused(folder: Path, gate: str) -> None:
    with pytest.raises(UsageError, match="lies between 0 and 1"):
        report_of(folder, fail_over=(gate,))
    with pytest.raises(UsageError, match=r"80 % of it are auc=0\.8"):
        report_of(folder, fail_under=("auc=80",))
    assert report_of(folder, fail_over=("tumor_area.mean_absolute_error_mm2=3",), fail_under=("slides=2",)).unmet == ()


def test_of_a_site_that_is_not_there_the_sites_are_named(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no measure site.lung.auc in what is evaluated; there are site.breast, site.colon$"
    ):
        report_of(folder, fail_under=("site.lung.auc=0.5",))


@pytest.mark.parametrize("name", ["brier", "with_background.brier", "site.colon.brier", "wrong_share",
                                  "mean_per_slide.wrong_share", "tumor_area.mean_absolute_error_mm2"])  # fmt: skip
def test_where_lower_is_better_the_limit_is_the_highest_value(folder: Path, name: str) -> None:
    met = report_of(folder, fail_over=(f"{name}=1",))
    assert (met.unmet, met.gates[0].most) == ((), 1)
    value = met.gates[0].value
    assert value is not None
    assert report_of(folder, fail_over=(f"{name}={value}",)).unmet == ()
    assert [one.measure for one in report_of(folder, fail_over=(f"{name}={value / 2}",)).unmet] == [name]
    with pytest.raises(UsageError, match=rf"lower values of {name} are better; give --fail-over"):
        report_of(folder, fail_under=(f"{name}=0.1",))


@pytest.mark.parametrize("name", ["auc", "site.colon.f1", "slide_auc", "slides"])
def test_where_higher_is_better_there_is_no_highest_value(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"higher values of {name} are better; give --fail-under"):
        report_of(folder, fail_over=(f"{name}=0.1",))


def test_of_two_limits_of_one_measure_both_hold(folder: Path) -> None:
    report = report_of(folder, fail_under=("auc=0.999", "auc=0.1", "tumor_px=1"), fail_over=("tumor_px=1e12",))
    assert [one.is_met for one in report.gates] == [False, True, True, True]


def test_a_site_without_any_map_does_not_meet_its_gate(folder: Path, tmp_path: Path) -> None:
    text = (
        (folder / "cohort.csv")
        .read_text()
        .replace("slide-11,slide-11.svs,case-11,1,test,colon", "no,no.svs,n,1,test,lung")
    )
    (tmp_path / "cohort.csv").write_text(text)
    report = report_of(folder, cohort=tmp_path / "cohort.csv", fail_under=("site.lung.auc=0",), allow_missing=True)
    assert [(one.value, one.is_met) for one in report.gates] == [(None, False)]
    assert "sites of which no slide could be evaluated: 1 (lung)" in report.notes


def test_junit_names_gates_and_slides(folder: Path, tmp_path: Path) -> None:
    report = report_of(folder, fail_under=("auc=1", "f1=0"), junit=tmp_path / "ci" / "junit.xml")
    suite = ElementTree.parse(tmp_path / "ci" / "junit.xml").getroot()[0]
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "14",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    cases = {(one.get("classname"), one.get("name")): [child.tag for child in one] for one in suite}
    assert cases["gate", "auc>=1"] == ["failure"]
    assert cases["gate", "f1>=0"] == ["system-out"]
    assert cases["slides", "slide-4"] == ["error"]
    assert len([key for key in cases if key[0] == "slides"]) == len(report.slides) == 12


def many(count: int) -> Report:
    """Return a report with many failed slides, whose names and messages try to break out."""
    block = {
        "auc": {"value": 0.5, "ci95": None},
        "f1": {"value": None, "ci95": None},
        "slides": 1,
        "expected_slides": 3,
    }
    error = Failure(type="E", message="50%\n::error::evil | <b>`x`</b> \x07 \x1b[31m" + "long " * 400)
    return Report(
        run="x",
        without_background=block,
        with_background=block,
        threshold=Threshold(value=0.5, source="model"),
        slides=tuple(SlideRecord(slide=f"s{k}", path=f"a,b:{k}", status="failed", error=error) for k in range(count)),
    )


def test_junit_of_odd_names_is_valid_xml() -> None:
    assert len(ElementTree.fromstring(gate.junit(many(3)))[0]) == 3


def test_the_command_leaves_with_3_and_a_table_of_what_fell_short(folder: Path) -> None:
    done = evaluated(folder, "--fail-under", "auc=0.999", "--fail-under", "recall=0.01", "--quiet")
    assert done.returncode == 3
    assert "gate not met" in done.stderr
    assert "auc" in done.stderr
    assert "recall" not in done.stderr
    assert evaluated(folder, "--fail-under", "auc=0.1").returncode == 1
    assert evaluated(folder, "--fail-under", "auc").returncode == 2
    assert evaluated(folder, "--fail-under", "nonsense=1").returncode == 2


@pytest.mark.slow
def test_a_gate_is_not_green_while_slides_have_no_map_and_every_figure_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, slides=7)  # three of the test split
    for number in (4, 6):
        (tmp_path / "maps" / f"slide-{number}.ome.zarr").rename(tmp_path / f"slide-{number}")
    junit_file = tmp_path / "junit.xml"
    gate_of_one = ("--fail-under", "auc=0.1", "--junit", junit_file, "--out", tmp_path / "out")
    done = evaluated(tmp_path, *gate_of_one)
    assert done.returncode == 1
    assert "slide-4: has no map in" in done.stderr
    assert done.stdout.splitlines()[:2] == [str(tmp_path / "out" / "report.html"), "test split, 1 of 3 slides:"]
    suite = ElementTree.parse(junit_file).getroot()[0]
    assert (suite.get("failures"), suite.get("errors"), suite.get("tests")) == ("0", "2", "8")
    told = next(one.find("system-out").text for one in suite if one.get("classname") == "gate")
    assert "over 1 of 3 slides, threshold" in told
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("1 of 3 slides</h2>") >= 4
    block = json.loads((tmp_path / "out" / "metrics.json").read_text())["with_background"]
    assert (block["slides"], block["expected_slides"]) == (1, 3)
    assert evaluated(tmp_path, *gate_of_one, "--allow-missing").returncode == 0
    assert evaluated(tmp_path, "--allow-missing", "--fail-under", "slides=3").returncode == 3


def test_a_further_run_is_printed_with_its_difference(folder: Path) -> None:
    done = evaluated(folder, folder / "maps")
    said = done.stdout.split(f"{folder / 'maps'} on ")[1]
    assert "test split, 7 of 8 slides:" in done.stdout
    assert said.startswith("7 of 8 slides, without background:")
    (line,) = (line for line in said.splitlines() if line.startswith("auc"))
    assert line.endswith("+0.0000, +0.000 to +0.000")


def test_json_is_all_that_stands_on_standard_output(folder: Path) -> None:
    done = evaluated(folder, "--json", "--split", "val")
    assert done.returncode == 1
    assert "slide-4: no truth for this slide" in done.stderr
    value = json.loads(done.stdout)
    assert value["schema"] == "wsiseg.metrics/1"
    assert value["split"] == "val"
    assert {"auc", "precision", "recall", "f1"} <= set(value["with_background"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give either predictions, --pcam or --grid"),
        (("maps",), "predictions need --truth, or --cohort with percentages"),
        (("--pcam", "x"), "--pcam needs --model"),
        (("--grid", "x"), "--grid needs --out"),
        (("--grid", "x", "--out", "y", "--fail-under", "auc=0.8"), "fail-under does not apply when evaluating --grid"),
        (("--pcam", "x", "--model", "m", "--truth", "t"), "truth does not apply when evaluating --pcam"),
        (("maps", "--truth", "t", "--model", "default"), "model does not apply when evaluating maps"),
        (("maps", "--truth", "t", "--split", "test"), "--split needs --cohort"),
        (("maps", "--truth", "nowhere"), "no heatmaps there"),
        (("maps", "--truth", "t", "--cohort", "no.csv"), "cannot be read as a cohort"),
    ],
)
def test_wrong_usage_is_said_in_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    done = wsiseg("evaluate", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
