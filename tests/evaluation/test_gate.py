import json
import os
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
    """Give a cohort with maps and truth; one slide's truth is missing."""
    folder = tmp_path_factory.mktemp("gate")
    write_run(folder)
    (folder / "truth" / "slide-4.geojson").unlink()
    return folder


def report_of(folder: Path, **how: Any) -> Report:
    places = {"predictions": (folder / "maps",), "truth": folder / "truth", "cohort": folder / "cohort.csv"}
    return evaluate(EvaluateConfig(**places, resamples=20, **how))


def wsiseg(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wsiseg", *map(str, arguments)]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GITHUB_")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean | environment)


def evaluated(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    places = (folder / "maps", "--truth", folder / "truth", "--cohort", folder / "cohort.csv", "--resamples", 20)
    return wsiseg("evaluate", *places, *arguments, **environment)


@pytest.mark.parametrize(
    "name",
    ["auc", "with_background.f1", "site.colon.auc", "site.breast.with_background.iou", "split.val.f1", "slide_auc",
     "location.out_of_location.auc", "mean_per_slide.auc", "at.best.f1", "without_background.brier", "tumor_px"],
)  # fmt: skip
def test_any_measure_can_be_a_gate(folder: Path, name: str) -> None:
    met = report_of(folder, fail_under=(f"{name}=0.0001",))
    assert (met.unmet, met.exit_code, met.gates[0].measure) == ((), 1, name)
    unmet = report_of(folder, fail_under=(f"{name}=1e12", "dice=0"))
    assert [one.measure for one in unmet.unmet] == [name]
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


def test_a_fall_below_the_baseline_is_a_gate(folder: Path, tmp_path: Path) -> None:
    report_of(folder, out=tmp_path)
    baseline = tmp_path / "metrics.json"
    same = report_of(folder, baseline=baseline, max_drop=("auc=0", "site.colon.f1=0"))
    assert (same.unmet, len(same.gates)) == ((), 2)
    stored = json.loads(baseline.read_text())
    stored["without_background"]["auc"]["value"] += 0.02
    baseline.write_text(json.dumps(stored))
    assert report_of(folder, baseline=baseline, max_drop=("auc=0.03",)).unmet == ()
    fallen = report_of(folder, baseline=baseline, max_drop=("auc=0.01",))
    assert fallen.exit_code == 3
    assert fallen.unmet[0].baseline == stored["without_background"]["auc"]["value"]
    baseline.write_text('{"schema": "other/1"}')
    with pytest.raises(UsageError, match=r"is of schema other/1"):
        report_of(folder, baseline=baseline, max_drop=("auc=0",))
    with pytest.raises(UsageError, match="--max-drop needs --baseline"):
        EvaluateConfig.checked(predictions=(folder,), truth=folder, max_drop=("auc=0",))


def test_junit_names_gates_and_slides(folder: Path, tmp_path: Path) -> None:
    report = report_of(folder, fail_under=("auc=1.5", "f1=0"), junit=tmp_path / "ci" / "junit.xml")
    suite = ElementTree.parse(tmp_path / "ci" / "junit.xml").getroot()[0]
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "14",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    cases = {(one.get("classname"), one.get("name")): [child.tag for child in one] for one in suite}
    assert cases["gate", "auc>=1.5"] == ["failure"]
    assert cases["gate", "f1>=0"] == []
    assert cases["slides", "slide-4"] == ["error"]
    assert len([key for key in cases if key[0] == "slides"]) == len(report.slides) == 12


def many(count: int) -> Report:
    """Give a report with many failed slides, whose names and messages try to break out."""
    block = {"auc": {"value": 0.5, "ci95": None}, "f1": {"value": None, "ci95": None}}
    error = Failure(type="E", message="50%\n::error::evil | <b>`x`</b> \x07 \x1b[31m" + "long " * 400)
    return Report(
        run="x",
        without_background=block,
        with_background=block,
        threshold=Threshold(value=0.5, source="model"),
        slides=tuple(SlideRecord(slide=f"s{k}", path=f"a,b:{k}", status="failed", error=error) for k in range(count)),
    )


def test_summaries_and_annotations_keep_within_the_limits_of_github() -> None:
    report = many(5000)
    text = gate.summary(report)
    assert len(text.encode()) < 2**20
    assert text.count("| failed |") == 200
    assert "and 4800 more slides" in text
    lines = gate.annotations(report)
    assert len(lines) == 10
    assert all("\n" not in line for line in lines)
    assert lines[0].startswith("::error file=a%2Cb%3A0::50%25%0A::error::evil")
    row = next(line for line in text.splitlines() if line.startswith("| s0 "))
    assert "<b>" not in row
    assert row.count("|") - row.count("\\|") == 6


def test_junit_of_odd_names_is_valid_xml() -> None:
    assert len(ElementTree.fromstring(gate.junit(many(3)))[0]) == 3


def test_the_command_leaves_with_3_and_a_table_of_what_fell_short(folder: Path) -> None:
    done = evaluated(folder, "--fail-under", "auc=0.999", "--fail-under", "recall=0.01", "--quiet")
    assert done.returncode == 3
    assert "below the gate" in done.stderr
    assert "auc" in done.stderr
    assert "recall" not in done.stderr
    assert evaluated(folder, "--fail-under", "auc=0.1").returncode == 1
    assert evaluated(folder, "--fail-under", "auc").returncode == 2
    assert evaluated(folder, "--fail-under", "nonsense=1").returncode == 2


def test_json_is_all_that_stands_on_standard_output(folder: Path) -> None:
    done = evaluated(folder, "--json", "--split", "val")
    assert done.returncode == 1
    assert "slide-4: no truth for this slide" in done.stderr
    value = json.loads(done.stdout)
    assert value["schema"] == "wsiseg.metrics/1"
    assert value["split"] == "val"
    assert {"auc", "precision", "recall", "f1"} <= set(value["with_background"])


def test_github_is_told(folder: Path, tmp_path: Path) -> None:
    files = {"GITHUB_STEP_SUMMARY": tmp_path / "summary.md", "GITHUB_OUTPUT": tmp_path / "output"}
    files["GITHUB_STEP_SUMMARY"].write_text("before\n")
    done = evaluated(folder, "--fail-under", "auc=0.999", **{key: str(path) for key, path in files.items()})
    assert "::error title=gate auc::auc is " in done.stderr
    assert "::error file=" in done.stderr
    text = files["GITHUB_STEP_SUMMARY"].read_text()
    assert text.startswith("before\n## wsiseg evaluate")
    assert "| auc |" in text
    assert files["GITHUB_OUTPUT"].read_text().startswith("status=gate\nauc=0.")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give either predictions, --pcam or --grid"),
        (("maps",), "predictions need --truth"),
        (("--pcam", "x"), "--pcam needs --model"),
        (("--grid", "x"), "--grid needs --out"),
        (("maps", "--truth", "nowhere"), "no heatmaps there"),
        (("maps", "--truth", "t", "--cohort", "no.csv"), "cannot be read as a cohort"),
    ],
)
def test_wrong_usage_is_said_in_a_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    done = wsiseg("evaluate", *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
