import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

from making.browser import opened
from making.maps import write_run
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.evaluation.metrics_file import Report
from wsiseg.evaluation.pictures import COLORS, JudgedPicture, drawn
from wsiseg.pages.drawing import Drawing, Polyline, Rectangle, Text
from wsiseg.pages.pictures import DARK, LIGHT
from wsiseg.pages.plots import Line, plot, thinned


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cohort and two runs; one slide's truth is missing, one slide has a hostile name."""
    folder = tmp_path_factory.mktemp("page")
    write_run(folder, skill=0.3)
    write_run(folder / "other", skill=0.1)
    (folder / "truth" / "slide-4.geojson").unlink()
    name = "<img src=x onerror=alert(1)>"
    (folder / "maps" / "slide-5.ome.zarr").rename(folder / "maps" / f"{name}.ome.zarr")
    (folder / "truth" / "slide-5.geojson").rename(folder / "truth" / f"{name}.geojson")
    text = (folder / "cohort.csv").read_text()
    (folder / "cohort.csv").write_text(text.replace("slide-5,", f"{name},", 1))
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return evaluate(
        EvaluateConfig(
            predictions=(folder / "maps", folder / "other" / "maps"),
            truth=folder / "truth",
            cohort=folder / "cohort.csv",
            out=folder / "out",
            fail_under=("auc=0.99", "f1=0.1"),
            resamples=50,
        ),
    )


def texts(driver: WebDriver, selector: str) -> list[str]:
    return [one.text for one in driver.find_elements(By.CSS_SELECTOR, selector)]


def test_the_page_works_in_a_browser_and_asks_for_nothing_outside(folder: Path, report: Report, tmp_path: Path) -> None:
    with opened(folder / "out" / "report.html") as page:
        driver = page.driver
        mode = report.without_background
        assert driver.find_element(By.ID, "without_background-f1").text == f"{mode['f1']['value']:.4f}"
        assert driver.find_element(By.ID, "without_background-recall").text == f"{mode['recall']['value']:.4f}"
        assert driver.find_element(By.ID, "with_background-precision").text == f"{mode['precision']['value']:.4f}"
        slider = driver.find_element(By.ID, "threshold")
        before = texts(driver, "output, [id$=-recall]")
        slider.send_keys(*[Keys.ARROW_LEFT] * 30)
        after = texts(driver, "output, [id$=-recall]")
        assert all(one != two for one, two in zip(before, after, strict=True))
        assert float(after[1]) > float(before[1])
        slider.send_keys(Keys.HOME)
        assert texts(driver, "[id$=-recall]") == ["1.0000", "1.0000"]

        names = texts(driver, "table.sortable tbody td:first-child")
        scores = texts(driver, "table.sortable tbody td:nth-child(4)")
        assert names[0] == "slide-4"  # which failed
        assert len(names) == 8
        driver.find_elements(By.CSS_SELECTOR, "table.sortable th button")[3].click()
        rising = [float(one) for one in texts(driver, "table.sortable tbody td:nth-child(4)") if one != "-"]
        assert rising == sorted(float(one) for one in scores if one != "-")
        driver.find_elements(By.CSS_SELECTOR, "table.sortable th button")[0].click()
        assert texts(driver, "table.sortable tbody td:first-child") == sorted(names)

        assert len(driver.find_elements(By.CSS_SELECTOR, "svg")) == 3
        pictures = driver.find_elements(By.CSS_SELECTOR, "img.cells")
        assert len(pictures) == 3 * 7
        widths = {driver.execute_script("return arguments[0].naturalWidth", one) for one in pictures}
        assert all(width > 36 and width % 36 == 0 for width in widths)  # cells are enlarged as a whole
        driver.find_element(By.CSS_SELECTOR, "table.sortable a").click()
        page.screenshot(tmp_path / "page.png")
        assert page.console() == []
        assert page.outside_requests() == []
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_the_page_can_be_read_in_the_dark_and_on_a_telephone(folder: Path, report: Report, tmp_path: Path) -> None:
    assert report.slides
    with opened(folder / "out" / "report.html", size=(500, 900), is_dark=True) as page:
        colors = page.driver.execute_script(
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]",
        )
        assert colors == ["rgb(232, 232, 232)", "rgb(22, 24, 26)"]
        too_wide = page.driver.execute_script("return document.body.scrollWidth > window.innerWidth")
        assert not too_wide
        page.screenshot(tmp_path / "dark.png")


def test_the_page_names_gates_runs_and_what_failed(folder: Path, report: Report) -> None:
    text = (folder / "out" / "report.html").read_text()
    for part in (
        "slide-4: no truth for this slide",
        "Further runs",
        str(folder / "other" / "maps"),
        "By site",
        "Gates",
    ):
        assert part in text, part
    assert "<img src=x" not in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert report.exit_code == 3


def test_a_cohort_without_tumour_still_makes_a_page(tmp_path: Path) -> None:
    write_run(tmp_path, slides=1)
    found = evaluate(EvaluateConfig(predictions=(tmp_path / "maps",), truth=tmp_path / "truth", out=tmp_path / "out"))
    assert found.without_background["auc"]["value"] is None
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["without_background"]["at"].keys() == {"model"}
    with opened(tmp_path / "out" / "report.html") as page:
        assert page.console() == []


def picture(values: Any, share: Any, ignored: Any = None, unknown: Any = None) -> JudgedPicture:
    left_out = np.zeros(np.shape(values)) if ignored is None else ignored
    unknown = np.where(np.isnan(values), np.nan, 0) if unknown is None else unknown
    return JudgedPicture(*(np.array(one, np.float32) for one in (values, unknown, share, left_out)))


def test_error_pictures_tell_hits_misses_and_false_alarms_apart() -> None:
    nan = float("nan")
    shown = picture([[0.9, 0.9, 0.1, 0.1, nan, nan]], [[1, 0, 1, 0, 1, 0]])
    expected = ["hit", "false alarm", "miss", "rest", "miss"]
    pictures = drawn(shown, 0.5)
    found = pictures["error"][0]
    assert [tuple(one) for one in found[:5]] == [COLORS[name] for name in expected]
    assert tuple(found[5]) == (255, 255, 255)
    assert tuple(pictures["map"][0, 4]) == (255, 255, 255)
    assert tuple(pictures["truth"][0, 0]) == COLORS["hit"]
    assert tuple(pictures["truth"][0, 5]) == (255, 255, 255)
    at_threshold = drawn(picture([[0.3, 0.3]], [[0.5, 0.49]]), 0.3)["error"][0]
    assert [tuple(one) for one in at_threshold] == [COLORS["hit"], COLORS["false alarm"]]


def test_what_is_left_out_is_hatched_in_every_picture() -> None:
    shown = picture(np.full((6, 6), 0.9), np.ones((6, 6)), np.tile([0, 0.4, 0.5, 1, 1, 1], (6, 1)))
    for pixels in drawn(shown, 0.5).values():
        hatch = {tuple(pixel) for row in pixels[:, 2:] for pixel in row}
        assert hatch == {COLORS["left out"], (255, 255, 255)}
        assert not {tuple(pixel) for row in pixels[:, :2] for pixel in row} & hatch


def test_what_is_unknown_is_neither_hit_nor_miss_and_its_truth_is_shown() -> None:
    shown = picture(np.full((6, 6), 0.9), np.tile([0, 0, 0, 1, 1, 1], (6, 1)), unknown=np.ones((6, 6)))
    pictures = drawn(shown, 0.5)
    for pixels in (pictures["map"], pictures["error"]):
        assert {tuple(pixel) for row in pixels for pixel in row} == {DARK, LIGHT}
    assert {tuple(pixel) for pixel in pictures["truth"][0]} == {COLORS["rest"], COLORS["hit"]}


def test_a_drawing_is_the_same_as_svg_and_as_png(tmp_path: Path) -> None:
    drawing = Drawing(100, 60, "a <b>")
    drawing.shapes += [Rectangle(10, 10, 30, 20, "#ff0000"), Polyline([(50, 30), (90, 30)], "#0000ff", 4)]
    drawing.shapes.append(Text(10, 50, "<script>"))
    drawing.save(tmp_path / "d")
    assert "<script>" not in (tmp_path / "d.svg").read_text()
    with Image.open(tmp_path / "d.png") as png:
        assert png.size == (200, 120)
        assert [png.getpixel(at) for at in ((40, 40), (140, 60), (190, 10))] == [
            (255, 0, 0),
            (0, 0, 255),
            (255, 255, 255),
        ]


def test_long_lines_are_thinned_but_keep_their_ends_and_steps() -> None:
    x = np.linspace(0, 1, 100_000)
    y = np.where(x < 0.3, 0.0, 1.0)
    short = thinned(x, y)
    assert len(short[0]) <= 400
    assert (short[0][0], short[0][-1]) == (0, 1)
    np.testing.assert_allclose(np.interp([0.29, 0.31], *short), [0, 1], atol=0.02)
    cut = plot("t", ("x", "y"), [Line("l", np.array([0.0, 4.0, 20.0]), np.array([0.0, 0.5, 1.0]))], widest=8)
    lines = [shape for shape in cut.shapes if isinstance(shape, Polyline) and shape.width == 2]
    assert lines[0].points[-1] == pytest.approx((368, 34 + 310 * (1 - 0.625)))
