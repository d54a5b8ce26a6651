"""The outlines of truth and map on the histology, and the worst places, of slides that are there and that are gone."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from making.maps import box, write_map, write_outlines
from making.slides import write_slide
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.evaluation.histology import Marked
from wsiseg.evaluation.page import _grouped
from wsiseg.heatmap.opening import kept_picture
from wsiseg.pages.pictures import INK, TRUTH
from wsiseg.run.record import SlideRecord

SIZE = (3000, 2000)  # pixels of level 0; cells are of 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a slide, its map and its truth: 6 cells of tumour are missed, 10 unknown, 8 and 4 false alarms."""
    values = np.full((20, 30), 0.1)
    values[2:6, 2:6] = 0.9  # of which the truth has the upper half
    values[15:17, 25:27] = 0.9
    unknown = np.zeros(values.shape, np.bool_)
    unknown[8:10, 20:25] = True
    write_map(tmp_path / "maps" / "a.ome.zarr", values, 100.0, unknown, size=SIZE)
    tumor = ((200, 200, 600, 400), (1500, 1000, 1800, 1200), (2000, 800, 2500, 1000))
    write_outlines(tmp_path / "truth" / "a.geojson", *(box(*one) for one in tumor))
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    picture = np.stack([x * 255 // SIZE[0], y * 255 // SIZE[1], np.full_like(x, 200)], -1).astype(np.uint8)
    write_slide(tmp_path / "a.svs", picture)
    (tmp_path / "cohort.csv").write_text("slide,path\na,a.svs\n")
    return tmp_path


def page(folder: Path) -> str:
    given: dict[str, Any] = {
        "truth": folder / "truth",
        "cohort": folder / "cohort.csv",
        "out": folder / "out",
        "resamples": 0,
    }
    evaluate(EvaluateConfig.checked(predictions=[folder / "maps"], **given))
    return (folder / "out" / "report.html").read_text()


def opened(jpeg: bytes | None) -> NDArray[np.int_]:
    assert jpeg is not None
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image, int)


def is_color(pixels: NDArray[np.int_], color: tuple[int, int, int]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.abs(pixels - color).max(-1) < 60
    return found


@pytest.fixture
def marked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Marked:
    made: list[Marked] = []
    of = Marked.of

    def kept(*given: Any) -> Marked:
        made.append(of(*given))
        return made[-1]

    monkeypatch.setattr(Marked, "of", kept)
    page(folder)
    return made[0]


def test_places_are_the_largest_wrong_areas_around_their_middle(marked: Marked) -> None:
    found = [(one.kind, round(one.mm2 / 0.0025)) for one in marked.places]  # a cell is 50 um wide
    assert found == [("missed tumour", 6), ("false alarm", 8), ("false alarm", 4)]
    for place, corners in zip(marked.places, ((1500, 1000, 1800, 1200), (200, 400, 600, 600)), strict=False):
        left, top, right, below = place.box
        assert (right - left, below - top) == (400, 400)
        assert corners[0] < (left + right) / 2 < corners[2] or left == 0
        assert corners[1] < (top + below) / 2 < corners[3]


def test_a_crop_is_the_slide_at_full_resolution_with_both_outlines(marked: Marked) -> None:
    place = marked.places[1]
    pixels, (left, top, *_) = opened(marked.crop(place)), map(int, place.box)
    for x, y in ((450, 300), (450, 520), (400, 590)):
        expected = (x * 255 // SIZE[0], y * 255 // SIZE[1], 200)
        assert np.abs(pixels[y - top, x - left] - expected).max() < 25, "nothing is drawn there"
    assert is_color(pixels, TRUTH)[400 - top, 450 - left]
    assert is_color(pixels, INK)[600 - top, 450 - left]
    assert is_color(pixels, INK)[500 - top, 200 - left]
    assert not is_color(pixels, TRUTH)[600 - top, 450 - left]


def test_the_overview_has_both_outlines_and_numbered_places(marked: Marked) -> None:
    pixels = opened(marked.overview(840, [(1, marked.places[0])]))
    assert max(pixels.shape) == 840
    share = pixels.shape[1] / SIZE[0]

    def near(x: float, y: float) -> NDArray[np.int_]:
        across, down = round(x * share), round(y * share)
        return pixels[down - 1 : down + 2, across - 1 : across + 2]

    assert is_color(near(1650, 1200), TRUTH).any()
    assert is_color(near(2600, 1700), INK).any()
    assert (near(*marked.places[0].box[2:]) > 200).all(-1).any(), "its frame is white"


def test_the_page_works_without_slides_and_without_any_picture(folder: Path) -> None:
    text = page(folder)
    assert text.count('class="place"') == 3
    assert text.count('class="histology"') == 1
    assert "Worst places, 1 of 1 slide<" in text
    kept = kept_picture(folder / "maps", "a")
    kept.parent.mkdir()
    Image.new("RGB", (840, 560), "pink").save(kept)
    (folder / "a.svs").unlink()
    text = page(folder)
    assert text.count('class="place"') == 0
    assert text.count('class="histology"') == 1
    assert len(re.findall(r"\d\. <a href=\"#slide-a\">a</a>: .{0,60}The slide is not where it was", text)) == 3
    kept.unlink()
    assert 'class="histology"' not in page(folder)


def test_what_is_to_be_known_of_several_slides_is_said_once() -> None:
    said = [f"{share} % of the tissue could not be judged" for share in (12.5, 30)]
    records = [SlideRecord(slide=f"s-{n}", path="", status="ok", warnings=(one,)) for n, one in enumerate(said)]
    records.append(SlideRecord(slide="s-2", path="", status="ok", warnings=("s-2: was mapped at 0.5 um/px",)))
    assert list(_grouped(records)) == [
        "... % of the tissue could not be judged (2 slides: s-0, s-1)",
        "s-2: was mapped at 0.5 um/px (1 slide: s-2)",
    ]
