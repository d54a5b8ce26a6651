"""The example cohort: it comes whole, from the package alone, and never over what a user has."""

import csv
import json
import runpy
import shutil
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from wsiseg.annotations.truth import Reading, open_truth, truth_files
from wsiseg.cli import loaded
from wsiseg.config.fetch import FetchExampleConfig
from wsiseg.fetch.example import SUMS, ExampleResult, fetch_example
from wsiseg.run.errors import DownloadError, WsisegError
from wsiseg.slides.slide import Slide

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 12 << 20


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the package's files, which is what is taken for them."""
    copy = tmp_path / "shipped"
    with resources.as_file(resources.files("wsiseg.fetch") / "cohort") as original:
        shutil.copytree(original, copy / "cohort")
    monkeypatch.setattr(resources, "files", lambda _package: copy)
    return copy / "cohort"


def fetch(out: Path) -> ExampleResult:
    return fetch_example(FetchExampleConfig(out=out))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_slide_has_a_label_that_its_truth_bears_out(tmp_path: Path) -> None:
    rows = table(fetch(tmp_path).cohort)
    assert {(row["site"], row["split"], row["label"]) for row in rows} == {
        (site, split, label) for site in ("colon", "lymph node") for split in ("train", "val", "test") for label in "01"
    }
    assert len({row["case"] for row in rows}) == len(rows)
    files = truth_files(tmp_path / "truth")
    for row in rows:
        (path,) = files[row["slide"]]
        with Slide(tmp_path / row["path"]) as slide:
            edges = (np.arange(0.0, side + 1, 8) for side in slide.size_px)
            tumor, _ = open_truth(path, slide.facts, Reading()).covered(*edges)
        assert tumor.any() == (row["label"] == "1")


def test_a_second_time_nothing_is_written(tmp_path: Path) -> None:
    first = fetch(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in first.fetched}
    listed = {line.split()[1] for line in (tmp_path / SUMS).read_text().splitlines()}
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {SUMS, *listed}
    again = fetch(tmp_path)
    assert (again.fetched, again.up_to_date, again.changed) == ([], first.fetched, [])
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_what_is_lost_comes_back_and_what_was_changed_stays(tmp_path: Path) -> None:
    fetch(tmp_path)
    (tmp_path / "cohort.csv").write_text("slide,path\n")
    (tmp_path / "slides" / "node-1.tiff").unlink()
    done = CliRunner().invoke(loaded(), ["fetch", "example", "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0
    answer = json.loads(done.stdout)
    assert (answer["fetched"], answer["changed"]) == (1, [str(tmp_path / "cohort.csv")])
    assert "is kept; to get the example's, delete it" in done.stderr
    assert (tmp_path / "cohort.csv").read_text() == "slide,path\n"
    assert (tmp_path / "slides" / "node-1.tiff").stat().st_size > 0


def test_what_an_installation_has_damaged_is_not_handed_on(shipped: Path, tmp_path: Path) -> None:
    slide = shipped / "slides" / "colon-1.tiff"
    slide.write_bytes(slide.read_bytes()[:-1])
    with pytest.raises(DownloadError, match=r"slides/colon-1\.tiff: is damaged in this installation") as caught:
        fetch(tmp_path / "out")
    assert caught.value.exit_code == 6
    assert not (tmp_path / "out" / "slides" / "colon-1.tiff").exists()
    slide.unlink()
    with pytest.raises(DownloadError, match=r"colon-1\.tiff: is missing in this installation"):
        fetch(tmp_path / "out")


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(WsisegError, match="out"):
        fetch(tmp_path / "out")


def test_the_example_is_small_and_names_its_authors_and_licences(tmp_path: Path) -> None:
    done = fetch(tmp_path)
    assert sum(path.stat().st_size for path in done.fetched) <= MOST_BYTES
    text = " ".join((tmp_path / "README.md").read_text().split())
    for word in ("Veeling", "CC0 1.0", "Shi, Li, Hu, Chen", "licenses/by/4.0", "Changed:"):
        assert word in text


def test_the_bundled_model_was_never_shown_any_of_it(data: Path, tmp_path: Path) -> None:
    parts = table(fetch(tmp_path).cohort.with_name("parts.csv"))
    assert len({part["name"] for part in parts}) == len(parts)
    published = {row["name"]: row["split"] for row in table(data / "pcam" / "patches.csv") if row["split"] == "test"}
    published |= {row["name"]: row["split"] for row in table(data / "ebhi" / "fields.csv")}
    assert {published[part["name"]] for part in parts} == {"test"}


@pytest.mark.slow
def test_the_script_makes_the_shipped_files(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = ROOT / "scripts" / "make_example.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(data), str(tmp_path / "made")])
    monkeypatch.syspath_prepend(script.parent)
    runpy.run_path(str(script), run_name="__main__")
    fetch(tmp_path / "shipped")
    made, shipped = ((tmp_path / one / SUMS).read_text() for one in ("made", "shipped"))
    assert made == shipped
