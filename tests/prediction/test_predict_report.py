"""The page of a run of predict: complete, small, harmless, and usable in a browser."""

import csv
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from making.browser import Opened, opened
from making.maps import slide_facts
from making.models import write_color_filter_model
from making.slides import stained_picture, write_slide
from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.prediction.page import predict_page
from wsiseg.prediction.predict import predict_slides
from wsiseg.prediction.viewer import KEPT_PX, Results, overlay, slide_jpeg, smaller_jpeg
from wsiseg.run.record import Failure, Progress, Run, SlideRecord

HOSTILE = "<img src=x onerror=alert(1)>"
PINK, PURPLE = np.array((222, 172, 204), np.uint8), np.array((96, 44, 124), np.uint8)
MakeSlide = Callable[..., Path]


def disc(width: int, height: int, center: tuple[int, int], radius: int) -> NDArray[np.uint8]:
    y, x = np.ogrid[:height, :width]
    return np.where(((x - center[0]) ** 2 + (y - center[1]) ** 2 < radius**2)[..., None], PURPLE, PINK)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "colors.onnx", licence="CC-BY-4.0")


def run(model: Path, out: Path, *inputs: Path, watch: Progress | None = None, **settings: Any) -> str:
    config = PredictConfig.checked(inputs=[str(path) for path in inputs], model=[str(model)], out=out, **settings)
    predict_slides(config, watch)
    return next(out.glob("report*.html")).read_text()


@pytest.fixture(scope="module")
def page(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the page of a run over slides of every fate; one has a hostile name, one lies in a larger frame."""
    folder = tmp_path_factory.mktemp("run")
    slides = folder / "slides"
    for name in ("slide-10", "slide-2", HOSTILE):
        write_slide(slides / f"{name}.tiff", stained_picture(1400, 1000, len(name)), levels=[(350, 250)])
    write_slide(slides / "frame.scn", disc(2000, 1600, (1100, 800), 600), mpp=0.5, frame=(700, 300, 4000, 3000))
    write_slide(slides / "glass.tiff", np.full((900, 900, 3), 243, np.uint8))
    (slides / "broken.svs").write_bytes(b"II*\0" + bytes(300))
    run(model, folder / "maps", slides, map="dense")
    uniform = write_slide(folder / "uniform.tiff", np.full((896, 896, 3), PURPLE))
    run(model, folder / "maps", uniform, map="tile", tissue="none")
    return folder / "maps" / "report.html"


def texts(shown: Opened, selector: str) -> list[str]:
    return [one.text for one in shown.driver.find_elements(By.CSS_SELECTOR, selector)]


def press(shown: Opened, *keys: str) -> None:
    shown.driver.switch_to.active_element.send_keys(*keys)


def opacity(shown: Opened) -> float:
    map_image = shown.driver.find_element(By.CSS_SELECTOR, "img.map")
    return float(shown.driver.execute_script("return getComputedStyle(arguments[0]).opacity", map_image))


def focused(shown: Opened) -> tuple[str, float]:
    """Give the slide that has the focus and how far its top is below the bar."""
    script = """
        const section = document.activeElement, bar = document.querySelector(".bar").getBoundingClientRect();
        return [section.id, section.getBoundingClientRect().top - bar.bottom];
    """
    name, distance = shown.driver.execute_script(script)
    return name, distance


def test_the_slider_and_the_keys_change_the_maps(page: Path) -> None:
    with opened(page) as shown:
        assert opacity(shown) == pytest.approx(0.6)
        slider = shown.driver.find_element(By.ID, "opacity")
        slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        assert opacity(shown) == pytest.approx(0.7)
        slider.send_keys(Keys.HOME)
        assert opacity(shown) == 0
        press(shown, "+")
        assert opacity(shown) == pytest.approx(0.05)
        shown.driver.execute_script("document.activeElement.blur()")
        press(shown, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "-")
        assert opacity(shown) == pytest.approx(0.1)
        assert texts(shown, "#opacity-value") == ["10 %"]
        press(shown, Keys.CONTROL + Keys.ARROW_RIGHT + Keys.NULL)
        shown.driver.find_element(By.CSS_SELECTOR, "th button").send_keys(Keys.ARROW_RIGHT)  # scrolls the table
        assert opacity(shown) == pytest.approx(0.1)
        assert shown.console() == []


def test_the_table_has_a_small_map_of_each_slide_and_is_filtered(page: Path) -> None:
    with opened(page) as shown:
        rows = shown.driver.find_elements(By.CSS_SELECTOR, "table.sortable tbody tr")
        names = [row.find_element(By.CSS_SELECTOR, "td").text for row in rows]
        pictured = [bool(row.find_elements(By.CSS_SELECTOR, ".stack img.map")) for row in rows]
        assert [name for name, has in zip(names, pictured, strict=True) if not has] == ["broken", "glass"]
        shown.driver.find_element(By.ID, "filter").send_keys("SLIDE- ok")
        assert [name for name, row in zip(names, rows, strict=True) if row.is_displayed()] == ["slide-2", "slide-10"]
        assert opacity(shown) == pytest.approx(0.6), "the keys - and + are letters there"
        assert shown.console() == []


def test_keys_go_from_slide_to_slide(page: Path) -> None:
    with opened(page, size=(1200, 500)) as shown:
        count = len(shown.driver.find_elements(By.CSS_SELECTOR, "section.slide"))
        found = []
        for key in "n" * (count + 1) + "pp":
            press(shown, key)
            found.append(focused(shown))
        assert [name for name, _ in found] == [
            f"slide-{number}" for number in (*range(count), count - 1, count - 2, count - 3)
        ]
        assert all(0 <= distance < 60 for _, distance in found[: count - 2])  # the last ones may reach the page's end
        shown.driver.execute_script("window.scrollTo(0, 0)")
        press(shown, "n")  # from where the person looks, not from the slide that is out of sight
        assert focused(shown)[0] == "slide-0"


def test_the_page_is_complete_and_asks_for_nothing_outside(page: Path, tmp_path: Path) -> None:
    with opened(page, size=(1280, 900)) as shown:
        names = texts(shown, "table.sortable tbody td:first-child")
        assert names == ["broken", "uniform", HOSTILE, "frame", "glass", "slide-2", "slide-10"]
        statuses = texts(shown, "table.sortable tbody td:nth-child(2)")
        assert statuses == ["failed", "suspect", "ok", "ok", "no tissue", "ok", "ok"]
        notes = texts(shown, "table.sortable tbody td:last-child")
        assert notes[0].startswith("broken.svs: ")
        assert "one value" in notes[1]
        for part in ("colour filter 1", "Research only; not for diagnosis.", "licence: CC-BY-4.0", "CPU", "7 slides:"):
            assert part in shown.driver.find_element(By.TAG_NAME, "body").text
        shown.driver.find_elements(By.CSS_SELECTOR, "table.sortable th button")[3].click()
        areas = [float(text) for text in texts(shown, "table.sortable tbody td:nth-child(4)") if text]
        assert areas == sorted(areas)
        shown.driver.find_element(By.LINK_TEXT, HOSTILE).click()
        assert texts(shown, "section.slide:target h3") == [HOSTILE]
        pictures = shown.driver.find_elements(By.CSS_SELECTOR, "section img")
        assert len(pictures) == 6 + 5  # glass has no map
        for picture in pictures:
            shown.driver.execute_script("arguments[0].scrollIntoView()", picture)
            loaded = "return arguments[0].decode().then(() => arguments[0].naturalWidth)"
            assert shown.driver.execute_script(loaded, picture) > 100
        shown.screenshot(tmp_path / "page.png")
        assert shown.console() == []
        assert shown.outside_requests() == []


def test_the_page_can_be_read_in_the_dark_and_on_a_telephone(page: Path, tmp_path: Path) -> None:
    with opened(page, size=(500, 900), is_dark=True) as shown:
        script = "return getComputedStyle(document.querySelector('.bar')).backgroundColor"
        assert shown.driver.execute_script(script) == "rgb(22, 24, 26)"
        assert not shown.driver.execute_script("return document.documentElement.scrollWidth > window.innerWidth")
        press(shown, "n", "n")
        name, distance = focused(shown)
        assert name == "slide-1"
        assert 0 <= distance < 20  # below the bar, which is higher here
        shown.screenshot(tmp_path / "dark.png")


def test_names_of_strangers_are_text(page: Path) -> None:
    text = page.read_text()
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert 'href="./%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E.png"' in text
    record = SlideRecord(
        slide='"><script>alert(2)</script>\u202e',
        path="x",
        status="failed",
        error=Failure(type="SlideError", message="<em>&", hint="'>"),
        warnings=("<i>",),
    )
    made = Run(command="predict", started="<u>", model={"name": "<s>", "intended_use": "<q>"}, slides=(record,))
    text = predict_page(made, "</title><script>", lambda _slide: None)
    for tag in ("<em>", "<i>", "<u>", "<s>", "<q>", "<script>alert", "</title><script>"):
        assert tag not in text, tag


@pytest.mark.parametrize(("cell_px", "bounds"), [(32, None), (500, None), (9.5, (700, 300, 2000, 1600)), (4, None)])
def test_the_map_lies_where_the_slide_says(cell_px: float, bounds: tuple[int, int, int, int] | None) -> None:
    facts = slide_facts(4000, 3000, bounds=bounds)
    center, radius = (1700.0, 1100.0), 390.0
    rows, columns = int(np.ceil(3000 / cell_px)), int(np.ceil(4000 / cell_px))
    y, x = np.ogrid[:rows, :columns]
    inside = ((x + 0.5) * cell_px - center[0]) ** 2 + ((y + 0.5) * cell_px - center[1]) ** 2 < radius**2
    heatmap = Heatmap(np.where(inside, 0.9, 0.1).astype(np.float32), cell_px * 0.5, facts)
    laid = overlay(heatmap, 420)
    with Image.open(io.BytesIO(laid.png)) as image:
        assert 200 < max(image.size) <= 420
        pixels = np.asarray(image.convert("RGB")).astype(int)
    left, top, width, height = facts.shown_px
    origin = np.array([left + width * laid.box[0], top + height * laid.box[1]])
    step = np.array([width * laid.box[2], height * laid.box[3]]) / image.size
    found = np.argwhere((pixels[..., 0] > pixels[..., 2] + 60) | (pixels.sum(-1) < 110))[:, ::-1]  # red, or its outline
    drawn = np.argwhere(inside)[:, ::-1]
    for one, two in ((found.min(0), drawn.min(0)), (found.max(0) + 1, drawn.max(0) + 1)):
        np.testing.assert_allclose(origin + one * step, two * cell_px, atol=1.01 * step.max())


def test_the_kept_picture_shows_the_scan_alone() -> None:
    picture = np.full((300, 400, 3), 255, np.uint8)
    picture[30:190, 70:270] = (200, 0, 0)
    jpeg = slide_jpeg(picture, slide_facts(4000, 3000, bounds=(700, 300, 2000, 1600)))
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.size == (200, 160)
        assert np.asarray(image)[..., 1].max() < 60


def test_earlier_slides_stay_and_what_is_missing_is_said(model: Path, tmp_path: Path, make_slide: MakeSlide) -> None:
    run(model, tmp_path / "out", make_slide("a.tiff"))
    text = run(model, tmp_path / "out", make_slide("b.tiff"), make_slide("c.tiff"))
    assert text.count("data:image/jpeg") == text.count("data:image/png") == 3
    kept = tmp_path / "out" / ".thumbnails"
    (kept / "a.jpg").unlink()
    (kept / "b.jpg").write_bytes((kept / "b.jpg").read_bytes()[:300])
    (tmp_path / "out" / "c.ome.zarr").rename(tmp_path / "elsewhere")
    text = run(model, tmp_path / "out", make_slide("d.tiff"))
    assert (text.count("data:image/jpeg"), text.count("data:image/png")) == (1, 3)
    assert "Its results no longer exist." in text
    assert text.count("<section") == 4


def test_a_changed_run_file_does_not_lead_out_of_its_folder(model: Path, tmp_path: Path, make_slide: MakeSlide) -> None:
    run(model, tmp_path / "secret", make_slide("a.tiff"))
    run(model, tmp_path / "out", make_slide("b.tiff"))
    file = tmp_path / "out" / "run.json"
    file.write_text(file.read_text().replace('"slide": "b"', '"slide": "../secret/a"'))
    text = run(model, tmp_path / "out", make_slide("c.tiff"))
    assert "../secret/a" in text
    assert text.count("data:image/png") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_a_name_that_is_no_text_is_shown_and_linked(model: Path, tmp_path: Path, make_slide: MakeSlide) -> None:
    name = os.fsdecode(b"caf\xe9")
    text = run(model, tmp_path / "out", make_slide(f"{name}.tiff"))
    assert "<bdi>caf\\udce9</bdi>" in text
    assert 'href="./caf%E9.png"' in text
    text = run(model, tmp_path / "out", make_slide("b.tiff"))
    assert text.count("data:image/jpeg") == 2


def test_a_shard_has_a_page_of_its_own_and_one_table_has_all_slides(
    model: Path, tmp_path: Path, make_slide: MakeSlide
) -> None:
    slides = [make_slide(f"{number}.tiff", stained_picture(900, 900, number)) for number in range(2)]
    slides.append(make_slide("glass.tiff", np.full((900, 900, 3), 243, np.uint8)))
    (tmp_path / "cohort.csv").write_text(
        "slide,path,label,split,site\n0,0.tiff,yes,test,colon\n1,1.tiff,,,\nglass,glass.tiff,,,\ngone,gone.tiff,0,,\n"
    )
    for shard in ("1/2", "2/2"):
        run(model, tmp_path / "out", tmp_path / "cohort.csv", shard=shard, slide_mpp=0.5)
    with (tmp_path / "out" / "slides.csv").open() as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    statuses = {name: row["status"] for name, row in rows.items()}
    assert statuses == {"0": "ok", "1": "ok", "glass": "no_tissue", "gone": "failed"}
    assert [rows["0"][name] for name in ("label", "split", "site")] == ["1", "test", "colon"]
    heatmap = Heatmap.open(tmp_path / "out" / "0.ome.zarr")
    assert int(rows["0"]["foci"]) == len(heatmap.foci_mm2)
    assert float(rows["0"]["largest_focus_mm2"]) == pytest.approx(heatmap.foci_mm2.max(), abs=1e-6)
    assert float(rows["0"]["max_probability"]) == pytest.approx(np.nanmax(heatmap.probabilities), abs=1e-6)
    assert rows["0"]["model"] == "colour filter 1"
    assert "no such file" in rows["gone"]["error"]
    pages = [(tmp_path / "out" / f"report.{number}-of-2.html").read_text() for number in (1, 2)]
    assert sum(text.count("<section") for text in pages) == 3
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_dry_run_says_what_is_to_do_and_writes_nothing(model: Path, tmp_path: Path, make_slide: MakeSlide) -> None:
    slides = [make_slide(f"{number}.tiff", stained_picture(900, 900, number)) for number in range(3)]
    out = tmp_path / "out"
    settings = {"model": [str(model)], "out": out, "slide_mpp": 0.5, "map": "tile"}

    def plan(**more: Any) -> Run:
        inputs = [*map(str, slides), str(tmp_path / "gone.tiff")]
        return predict_slides(PredictConfig.checked(**{"inputs": inputs, "dry_run": True, **settings, **more}))

    before = plan()
    assert not out.exists()
    assert [record.status for record in before.slides] == ["planned", "planned", "planned", "failed"]
    predict_slides(PredictConfig.checked(inputs=[str(slides[0])], **settings))
    done = sorted(path.stat().st_mtime_ns for path in out.rglob("*"))
    after = plan()
    assert [record.status for record in after.slides] == ["up_to_date", "planned", "planned", "failed"]
    assert after.slides[1] == before.slides[1].model_copy(update={"seconds": after.slides[1].seconds})
    assert after.slides[1].tiles > 0
    assert after.slides[1].mpp == (0.5, 0.5)
    assert after.exit_code == 1
    assert plan(threshold=0.9).slides[0].tiles == 0, "a new threshold asks about no tile"
    assert plan(map="dense").slides[0].tiles > 0
    assert sorted(path.stat().st_mtime_ns for path in out.rglob("*")) == done


def test_an_interrupted_run_leaves_a_page_of_what_is_done(model: Path, tmp_path: Path, make_slide: MakeSlide) -> None:
    class Impatient(Progress):
        def done(self, record: SlideRecord) -> None:  # noqa: ARG002  named by the protocol
            raise KeyboardInterrupt

    slides = [make_slide(f"{number}.tiff") for number in range(3)]
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "out", *slides, watch=Impatient())
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("<section") == 1


def noisy_results(slides: Sequence[str]) -> Callable[[str], Results]:
    """Give results that hardly compress: tissue everywhere, and probabilities without any order."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(90, 230, (150, 200, 3), dtype=np.uint8)
    jpeg = slide_jpeg(np.asarray(Image.fromarray(coarse).resize((800, 600))), slide_facts(40000, 30000))
    values = rng.random((470, 625), dtype=np.float32)
    heatmaps = [Heatmap(np.roll(values, number), 32.0, slide_facts(40000, 30000)) for number in range(5)]
    return lambda slide: Results(heatmaps[slides.index(slide) % 5], jpeg)


def many(count: int) -> Run:
    records = [
        SlideRecord(slide=f"TCGA-00-{number:04}-01A-01-TS1.{'0' * 32}", path="x", status="ok", tissue_mm2=200.0,
                    tumor_mm2=20.0, tumor_share=0.1, tiles=290_000, warnings=("less than 0.5 mm2 of tissue",),
                    unknown_share=0.01, mean_probability=0.123, max_probability=0.987, seconds=12.3,
                    outputs={"png": f"TCGA-00-{number:04}-01A-01-TS1.{'0' * 32}.png"})
        for number in range(count)
    ]  # fmt: skip
    return Run(command="predict", started="2026-01-31T12:00:00Z", slides=tuple(records))


@pytest.mark.parametrize(
    ("count", "least_px"),
    [(3, 600), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((40, 200), (200, 96)))],
)
def test_the_page_stays_small(tmp_path: Path, count: int, least_px: int) -> None:
    made = many(count)
    text = predict_page(made, "many", noisy_results([record.slide for record in made.slides]))
    (tmp_path / "report.html").write_text(text)
    assert (tmp_path / "report.html").stat().st_size < 5e6
    assert text.count("<section") == count
    with opened(tmp_path / "report.html") as shown:
        sizes = "return Promise.all([...document.images].map(one => one.decode().then(() => one.naturalWidth)))"
        shown.driver.execute_script("for (const one of document.images) one.loading = 'eager'")
        assert min(shown.driver.execute_script(sizes)) >= least_px
        began = time.monotonic()
        press(shown, *"nnn")
        assert focused(shown)[0] == "slide-2"
        for _ in range(3):  # what is drawn for the first time may be higher than thought
            shown.driver.execute_async_script("scrollTo(0, 1e9); requestAnimationFrame(arguments[0])")
        press(shown, "p")
        assert int(focused(shown)[0].removeprefix("slide-")) >= count - 3
        assert time.monotonic() - began < 60
        assert shown.console() == []


def no_results(slide: str) -> None:
    pytest.fail(f"{slide} is read")


def test_the_page_of_ten_thousand_slides_has_them_all_in_less_than_5_mb() -> None:
    text = predict_page(many(10_000), "many", no_results)
    assert text.count('<tr><td class="text"><a href="./TCGA') == 10_000
    assert len(text.encode()) < 5e6
    assert "further" not in text


def test_pictures_of_many_slides_are_shown_from_their_files_when_they_come_into_sight(tmp_path: Path) -> None:
    made = many(240)
    for record in made.slides[:-1]:
        Image.new("RGB", (200, 80), (200, 0, 0)).save(tmp_path / record.outputs["png"])
    (tmp_path / "report.html").write_text(predict_page(made, "many", no_results))
    widths = "return [...document.images].map(image => image.naturalWidth)"
    with opened(tmp_path / "report.html") as shown:
        height = shown.driver.execute_script("return document.documentElement.scrollHeight")
        assert height > 240 * 70, "there is room for pictures that are not loaded yet"
        shown.driver.execute_async_script("onscrollend = arguments[0]; scrollTo(0, 1e9)")
        for _ in range(600):
            found = shown.driver.execute_script(widths)
            if len(found) == 239 and found[-1]:
                break
            time.sleep(0.1)
        assert (len(found), found[0], found[-1]) == (239, 200, 200), "the file of one slide is gone"
        assert found.count(200) < 150
        assert texts(shown, "table.sortable tbody tr:first-child td:first-child") == [made.slides[0].slide]
        shown.driver.find_elements(By.CSS_SELECTOR, "th button")[0].click()
        shown.driver.find_elements(By.CSS_SELECTOR, "th button")[0].click()
        assert texts(shown, "table.sortable tbody tr:first-child td:first-child") == [made.slides[-1].slide]


def test_a_kept_picture_that_is_none_is_refused() -> None:
    assert smaller_jpeg(b"no picture", 100) is None
    buffer = io.BytesIO()
    Image.new("RGB", (KEPT_PX + 1, 4)).save(buffer, "JPEG")
    assert smaller_jpeg(buffer.getvalue(), 100) is None
