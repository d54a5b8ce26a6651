import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from selenium.webdriver.common.by import By

from making.browser import opened
from making.slides import write_slide
from making.waiting import LONGEST_S, wait_until
from wsiseg.config.tile import TileConfig
from wsiseg.run.errors import UsageError
from wsiseg.run.record import Progress, Run
from wsiseg.slides.cohort import Cohort
from wsiseg.slides.slide import Slide
from wsiseg.tiles.store import TileStore, store_path
from wsiseg.tiles.tile import tile

MakeSlide = Callable[..., Path]

NO_PIXEL_SIZE = "no pixel size in the file; give --slide-mpp"
CONVERT = "convert it to a pyramidal TIFF"
NOT_A_SLIDE = "not a slide but a DICOM "
RIGHT_RESULTS = {
    "CMU-1-Small-Region.svs": ("ok", ""),
    "TCGA-CR-7395-01A-01-TS1.svs": ("failed", f"TCGA-CR-7395-01A-01-TS1.svs: {NO_PIXEL_SIZE}"),
    "boxes_0.dcm": ("no_tissue", ""),
    "boxes_1.dcm": ("skipped", NOT_A_SLIDE + "thumbnail"),
    "multiframe_camelyon_challenge_image.dcm": ("failed", "28.969 x 28.968 um (openslide.mpp-x), outside 0.05-10 um"),
    "seg_image_sm_control.dcm": ("skipped", NOT_A_SLIDE + "segmentation"),
    "seg_image_sm_control_labelmap.dcm": ("skipped", NOT_A_SLIDE + "label map"),
    "seg_image_sm_control_labelmap_palette_color.dcm": ("skipped", NOT_A_SLIDE + "label map"),
    "seg_image_sm_dots.dcm": ("skipped", NOT_A_SLIDE + "segmentation"),
    "seg_image_sm_dots_tiled_full.dcm": ("skipped", NOT_A_SLIDE + "segmentation"),
    "seg_image_sm_numbers.dcm": ("skipped", NOT_A_SLIDE + "segmentation"),
    "sm_annotations.dcm": ("skipped", NOT_A_SLIDE + "set of annotations"),
    "sm_image.dcm": ("no_tissue", ""),
    "sm_image_control.dcm": ("skipped", "belongs to the DICOM slide of sm_image.dcm"),
    "sm_image_dots.dcm": ("no_tissue", ""),
    "sm_image_grayscale.dcm": ("failed", f"BitsAllocated value 16 != 8; {CONVERT}"),
    "sm_image_grayscale_reversed.dcm": ("skipped", "belongs to the DICOM slide of sm_image_grayscale.dcm"),
    "sm_image_jpegls.dcm": ("failed", f"Unsupported transfer syntax 1.2.840.10008.1.2.4.80; {CONVERT}"),
    "sm_image_jpegls_nobot.dcm": ("failed", f"Unsupported transfer syntax 1.2.840.10008.1.2.4.80; {CONVERT}"),
    "sm_image_numbers.dcm": ("no_tissue", ""),
    "hamamatsu_test3-DAPI-2-387.ndpi": ("no_tissue", ""),
    "histolab_broken.svs": ("failed", "nothing in it that can be read; get the file again"),
    "openslide_boxes.tiff": ("failed", "352.778 x 352.778 um (tiff.XResolution), outside 0.05-10 um: 72 dots per inch"),
    "openslide_small.svs": ("no_tissue", ""),
    "openslide_unopenable.tiff": ("failed", f"Unsupported TIFF compression: 52479; {CONVERT}"),
    "openslide_unreadable.svs": ("failed", "cannot be read: Bogus marker length; the file is broken"),
    "qupath_OS-1-detail.ome.tif": ("failed", "cannot be decoded: decoder error -2"),
}


def tiled(out: Path, *inputs: Path | str, **settings: Any) -> Run:
    return tile(TileConfig(inputs=tuple(str(one) for one in inputs), out=out, **settings))


@pytest.fixture(scope="module")
def real(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    out = tmp_path_factory.mktemp("real")
    return tiled(out, data / "slides"), out


@pytest.mark.parametrize("name", RIGHT_RESULTS)
def test_every_real_file_gives_its_right_result(real: tuple[Run, Path], name: str) -> None:
    (record,) = [one for one in real[0].slides if Path(one.path).name == name]
    status, sentence = RIGHT_RESULTS[name]
    assert record.status == status
    assert (record.error is None) == (not sentence)
    if record.error is not None:
        assert record.error.message.startswith(name)
        assert sentence in f"{record.error.message}; {record.error.hint}"
    else:
        assert record.mpp is not None
        assert record.mpp_source
        assert all(Path(path).exists() for path in record.outputs.values())
        assert (record.tiles > 0) == (status == "ok")


def test_every_real_file_has_one_record(real: tuple[Run, Path], data: Path) -> None:
    run, out = real
    files = [path for path in (data / "slides").rglob("*") if path.is_file()]
    assert sorted(one.path for one in run.slides) == sorted(str(path) for path in files)
    assert len(run.slides) == len(RIGHT_RESULTS) == 27
    assert run.exit_code == 1
    stored = json.loads((out / "run.json").read_text())
    assert stored["status"] == "partial"
    assert stored["totals"] == {"ok": 1, "failed": 10, "no_tissue": 6, "skipped": 10}
    assert [one.slide for one in Cohort.read(out / "cohort.csv").slides] == ["CMU-1-Small-Region"]


def test_tiles_cover_the_tissue_and_say_where_it_is(real: tuple[Run, Path], data: Path) -> None:
    store = TileStore(store_path(real[1], "CMU-1-Small-Region"), data / "slides" / "CMU-1-Small-Region.svs")
    tiles = store.tiles
    assert len(tiles) == 55
    assert (tiles.tissue_share >= 0.5).all()
    assert tiles.slide.mpp == (0.499, 0.499)
    assert (tiles.grid.cells(tiles.corners) >= 0).all()
    border = np.flatnonzero(tiles.inside_share < 1)
    assert len(border) == 6
    assert (store.read(border)[:, -1, -1] == 255).all()  # padded with background


def test_a_second_run_does_nothing_and_another_setting_is_told(make_slide: MakeSlide, tmp_path: Path) -> None:
    slide, out = make_slide("a.tiff"), tmp_path / "out"

    class Listener(Progress):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    def run(**settings: Any) -> tuple[str, list[str]]:
        listener = Listener()
        done = tile(TileConfig(inputs=(str(slide),), out=out, **settings), listener)
        return done.slides[0].status, listener.notes

    assert run() == ("ok", [])
    assert run() == ("up_to_date", [])
    assert len(Cohort.read(out / "cohort.csv").slides) == 1
    assert run(min_tissue=0.2) == ("ok", ["a: done again, min-tissue changed"])
    assert run(min_tissue=0.2, pixels=True) == ("ok", ["a: done again, pixels changed"])
    status, (note,) = run(min_tissue=0.2, pixels=True, slide_mpp=0.4)
    assert (status, note) == ("ok", "a: done again, its pixel size changed from 0.5 to 0.4 um")
    (out / "a.png").unlink()
    assert run(min_tissue=0.2, pixels=True, slide_mpp=0.4)[1] == ["a: done again, its picture is gone"]
    make_slide("a.tiff", size=(1000, 700))
    assert run(min_tissue=0.2, pixels=True, slide_mpp=0.4)[1] == ["a: done again, the slide changed"]
    (out / "a.tiles.zarr" / "zarr.json").write_text("{}")
    assert run(min_tissue=0.2, pixels=True, slide_mpp=0.4) == ("ok", [])
    assert run(min_tissue=0.2, pixels=True, slide_mpp=0.4, overwrite=True) == ("ok", [])


@pytest.mark.parametrize(("jobs", "count"), [(1, 1), (3, 1), (3, 4)])
def test_stored_pixels_are_those_of_the_slide(make_slide: MakeSlide, tmp_path: Path, jobs: int, count: int) -> None:
    for number in range(count):
        make_slide(f"slides/{number}.tiff", size=(2000 + 200 * number, 1500), mpp=0.4)
    run = tiled(tmp_path / "out", tmp_path / "slides", pixels=True, jobs=jobs)
    assert run.status == "complete"
    assert sorted(one.slide for one in run.slides) == [str(number) for number in range(count)]
    for number in range(count):
        path = tmp_path / "slides" / f"{number}.tiff"
        with Slide(path) as slide, TileStore(store_path(tmp_path / "out", str(number))) as store:
            assert store.has_pixels
            assert len(store) > 8
            for index in range(len(store)):
                x, y = (int(value) for value in store.tiles.corners[index])
                expected = slide.read(x, y, (224, 224), 0.5)
                assert np.abs(store.read([index])[0].astype(int) - expected).mean() < 3


def damage(path: Path, numbers: list[int]) -> None:
    """Overwrite tiles of the finest level so that they are no JPEGs any more."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        places = [(page.dataoffsets[number], page.databytecounts[number]) for number in numbers]
    with path.open("r+b") as file:
        for begin, length in places:
            file.seek(begin)
            file.write(b"\xff" * length)


def pink(side: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).normal(0, 6, (side, side, 3))
    return np.clip(np.array([200, 120, 170]) + noise, 0, 255).astype(np.uint8)


def test_a_few_unreadable_tiles_are_left_out_and_more_fail_the_slide(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff", pink(4096), levels=[(256, 256)], compression="jpeg")
    damage(path, [17 * 8])
    run = tiled(tmp_path / "out", path, pixels=True, max_bad_tiles=0.02)
    (record,) = run.slides
    assert record.status == "ok"
    assert 1 <= record.bad_tiles <= 6
    assert f"{record.bad_tiles} of {record.tiles + record.bad_tiles} tissue tiles cannot be read" in record.warnings[-1]
    store = TileStore(store_path(tmp_path / "out", "a"))
    assert len(store) == record.tiles
    inside = np.flatnonzero(store.tiles.inside_share == 1)
    assert store.read(inside).max() < 255  # no tile was turned white
    assert tiled(tmp_path / "out", path, pixels=True, max_bad_tiles=0.02).slides[0].bad_tiles == record.bad_tiles
    (failed,) = tiled(tmp_path / "strict", path, pixels=True, max_bad_tiles=0.001).slides
    assert failed.status == "failed"
    assert failed.error is not None
    assert "tissue tiles cannot be read" in failed.error.message
    assert "max-bad-tiles" in failed.error.hint
    assert not store_path(tmp_path / "strict", "a").exists()


def test_a_given_mask_is_used_and_named(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff", size=(2240, 1120))
    mask = np.zeros((10, 20), np.uint8)
    mask[:, 10:] = 255
    Image.fromarray(mask).save(tmp_path / "mine.png")
    (record,) = tiled(tmp_path / "out", path, tissue=str(tmp_path / "mine.png")).slides
    tiles = TileStore(store_path(tmp_path / "out", "a")).tiles
    assert record.tiles == 25
    assert tiles.corners[:, 0].min() == 1120
    assert str(tiles.settings["tissue"]).startswith("mine.png ")
    with pytest.raises(UsageError, match="would not be used"):
        tiled(tmp_path / "out", path, make_slide("b.tiff"), tissue=str(tmp_path / "mine.png"))
    (record,) = tiled(tmp_path / "all", path, tissue="none").slides
    assert record.tiles == 50


def test_labels_and_splits_reach_the_table_and_stay(make_slide: MakeSlide, tmp_path: Path) -> None:
    for number in range(6):
        make_slide(f"in/tumor/t{number}.tiff")
        make_slide(f"in/normal/TCGA-BH-A0B{number}-11A-03-TS1.tiff")
    run = tiled(tmp_path / "out", tmp_path / "in", slide_mpp=0.4)
    assert run.status == "complete"
    rows = {one.slide: one for one in Cohort.read(tmp_path / "out" / "cohort.csv").slides}
    assert {name[0]: one.label for name, one in rows.items()} == {"t": 1, "T": 0}
    assert rows["TCGA-BH-A0B3-11A-03-TS1"].case == "TCGA-BH-A0B3"
    assert {one.split for one in rows.values()} >= {"train", "test"}
    assert all(one.mpp == 0.4 for one in rows.values())
    make_slide("in/tumor/more.tiff")
    tiled(tmp_path / "out", tmp_path / "in", slide_mpp=0.4)
    later = {one.slide: one.split for one in Cohort.read(tmp_path / "out" / "cohort.csv").slides}
    assert {name: later[name] for name in rows} == {name: one.split for name, one in rows.items()}
    assert later["more"]


def test_slides_that_are_tiled_in_parts_share_one_table(make_slide: MakeSlide, tmp_path: Path) -> None:
    """Also after slides of earlier parts are deleted; what is tiled again has its row once."""
    paths = [make_slide(f"in/{label}/{label}{number}.tiff") for label in ("tumor", "normal") for number in range(4)]
    for shard in ("1/2", "2/2", "1/2"):
        tiled(tmp_path / "out", tmp_path / "in", shard=shard)
    rows = Cohort.read(tmp_path / "out" / "cohort.csv").slides
    assert {row.slide for row in rows} == {path.stem for path in paths}
    assert all(row.split for row in rows)
    paths[0].unlink()
    tiled(tmp_path / "out", make_slide("more.tiff"))
    later = {row.slide: row.split for row in Cohort.read(tmp_path / "out" / "cohort.csv").slides}
    assert len(later) == 9
    assert {row.slide: row.split for row in rows}.items() < later.items()
    assert {path.name for path in (tmp_path / "out").glob("run*.json")} == {
        "run.json", "run.1-of-2.json", "run.2-of-2.json",
    }  # fmt: skip


def test_results_beside_slides_are_not_taken_for_slides(make_slide: MakeSlide, tmp_path: Path) -> None:
    make_slide("a.tiff")
    assert len(tiled(tmp_path, tmp_path).slides) == 1
    again = tiled(tmp_path, tmp_path)
    assert [(one.slide, one.status) for one in again.slides] == [("a", "up_to_date")]


@pytest.mark.parametrize("name", ["with space.tiff", "größe é.tiff", "日本 🔬.tiff", "a'b\"c$(x).tiff", "%s{}.tiff"])
def test_names_of_any_script_are_tiled(make_slide: MakeSlide, tmp_path: Path, name: str) -> None:
    make_slide(f"in/{name}")
    (record,) = tiled(tmp_path / "out", tmp_path / "in").slides
    assert record.status == "ok"
    assert (tmp_path / "out" / f"{name.removesuffix('.tiff')}.png").exists()
    (row,) = Cohort.read(tmp_path / "out" / "cohort.csv").slides
    assert row.path.exists()


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "wsiseg", "tile", *(str(argument) for argument in arguments)]


def test_a_name_that_is_no_text_is_tiled_and_recorded(make_slide: MakeSlide, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    odd = os.fsdecode(os.fsencode(tmp_path / "in") + b"/odd\xff.tiff")
    try:
        shutil.copy(make_slide("a.tiff"), odd)
    except OSError:
        pytest.skip("this file system takes no such names")
    done = subprocess.run(command(tmp_path / "in", "--out", tmp_path / "out"), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads((tmp_path / "out" / "run.json").read_text())["slides"]
    assert record["status"] == "ok"


def test_nothing_of_the_decoders_reaches_the_terminal_and_no_line_is_lost(data: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        command(data / "slides", "--out", tmp_path / "out"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line.split("]")[0] for line in lines] == [f"[{number}/27" for number in range(1, 28)]
    page, table, *slides = done.stdout.splitlines()
    assert Path(page).exists()
    assert Path(table).exists()
    assert len(slides) == 27


@pytest.fixture
def long_run(make_slide: MakeSlide, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Give a run that takes long, once it works on tiles."""
    source = make_slide("in/0.tiff", pink(3072), compression="jpeg")
    for number in range(1, 6):
        shutil.copy(source, source.with_name(f"{number}.tiff"))
    out = tmp_path / "out"
    arguments = command(source.parent, "--out", out, "--pixels", "--jobs", "2", "--stride", "56")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: list(out.glob(".*.partial-*/pixels/c/0")), process)
        yield process, out
        process.kill()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_stops_soon_and_leaves_nothing_half_done(
    long_run: tuple["subprocess.Popen[str]", Path], sent: signal.Signals, code: int
) -> None:
    process, out = long_run
    before = set(out.glob("*.tiles.zarr"))
    process.send_signal(sent)
    _, errors = process.communicate(timeout=LONGEST_S)
    assert process.returncode == code, errors
    # Two slides were in work, and may have been just about to be done.
    assert len(set(out.glob("*.tiles.zarr")) - before) <= 2
    assert "the same command again goes on from here" in errors
    assert "Traceback" not in errors
    run = json.loads((out / "run.json").read_text())
    assert run["status"] == "partial"
    assert run["finished"]
    done = {one["slide"] for one in run["slides"]}
    assert {path.name.removesuffix(".tiles.zarr") for path in out.glob("*.tiles.zarr")} >= done
    assert not list(out.glob(".*partial*"))


@pytest.mark.slow
def test_the_images_of_a_glas_cohort_are_tissue_and_the_glass_between_is_not(data: Path, tmp_path: Path) -> None:
    script = data.parent / "tools" / "make_cohort.py"
    if not script.exists():
        pytest.skip(f"needs {script}")
    counts = ["--train", "4", "--val", "1", "--test", "3"]
    subprocess.run([sys.executable, str(script), str(tmp_path / "c"), *counts], check=True, capture_output=True)
    columns, width, height, gap = 4, 775, 522, 160
    recalls, shares = [], []
    for path in sorted((tmp_path / "c" / "slides").iterdir()):
        with Slide(path) as slide:
            from wsiseg.tiles.tissue import find_tissue  # noqa: PLC0415  only here

            tissue, thumbnail = find_tissue(slide)
            step = (slide.size_px[0] / thumbnail.shape[1], slide.size_px[1] / thumbnail.shape[0])
        inside, touched = np.zeros_like(tissue.mask), np.zeros_like(tissue.mask)
        for number in range(12):
            x = np.array([0, width]) + gap + number % columns * (width + gap)
            y = np.array([0, height]) + gap + number // columns * (height + gap)
            (left, right), (top, below) = x / step[0], y / step[1]
            touched[int(top) : int(np.ceil(below)), int(left) : int(np.ceil(right))] = True
            inside[int(np.ceil(top)) : int(below), int(np.ceil(left)) : int(right)] = True
        recalls.append(tissue.mask[inside & (thumbnail.min(2) < 200)].mean())
        shares.append(tissue.mask[~touched].mean())
    assert np.mean(recalls) >= 0.95
    assert min(recalls) >= 0.95
    assert max(shares) <= 0.02


def test_the_page_has_every_slide_with_its_picture_label_and_split(tmp_path: Path, make_slide: MakeSlide) -> None:
    for number in range(4):
        make_slide(f"slides/{number}.tiff")
    write_slide(tmp_path / "slides" / "glass.tiff", np.full((768, 1024, 3), 243, np.uint8))
    rows = [f"{number},slides/{number}.tiff,{number % 2},<b>colon" for number in range(4)]
    table = tmp_path / "cohort.csv"
    table.write_text("\n".join(["slide,path,label,site", *rows, "glass,slides/glass.tiff,,"]))
    tile(TileConfig(inputs=(str(table),), out=tmp_path / "out"))
    page = tmp_path / "out" / "report.html"
    text = page.read_text()
    assert text.count('href="./') == text.count("data:image/jpeg") >= 4
    assert "&lt;b&gt;colon" in text
    assert "<b>colon" not in text
    splits = {row.slide: row.split for row in Cohort.read(tmp_path / "out" / "cohort.csv").slides}
    for number in range(4):
        label = "tumour" if number % 2 else "normal"
        assert f"label {label}, {splits[str(number)]}, &lt;b&gt;colon" in text
    with opened(page) as shown:
        shown.driver.find_element(By.ID, "filter").send_keys("Tumour COLON")
        rows_shown = [row for row in shown.driver.find_elements(By.CSS_SELECTOR, "tbody tr") if row.is_displayed()]
        assert [row.find_element(By.CSS_SELECTOR, "td").text for row in rows_shown] == ["1", "3"]
        assert shown.console() == []
