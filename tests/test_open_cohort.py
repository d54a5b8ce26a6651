"""The cohorts of open data: cases stay whole, labels follow from what a slide holds, truth is exact to the pixel."""

import csv
import io
import runpy
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "open_cohort.py"
PURPLE, PINK, BROWN = (120, 60, 150), (230, 150, 190), (150, 100, 50)
FIELDS = (
    ("a1", "Adenocarcinoma", "1", "train", PURPLE),
    ("a2", "Polyp", "1", "train", PINK),
    ("a3", "High-grade IN", "1", "train", PURPLE),
    ("b1", "Normal", "2", "train", PINK),
    ("b2", "Normal", "2", "train", BROWN),
    ("c1", "Adenocarcinoma", "3", "test", PURPLE),
)


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def encoded(pixels: NDArray[np.uint8], form: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 40 patches of two colours, and six fields of three cases whose left half is outlined."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("pcam", "ebhi"):
        (folder / name).mkdir()
    with zipfile.ZipFile(folder / "pcam" / "train.zip", "w") as file:
        for number in range(40):
            pixels = np.full((96, 96, 3), PURPLE if number % 2 else PINK, np.uint8)
            file.writestr(f"{number}.jpg", encoded(pixels - random.integers(0, 40, dtype=np.uint8), "JPEG"))
    rows = [("train", number % 2, f"{number}.jpg") for number in range(40)]
    write(folder / "pcam" / "patches.csv", ("split", "label", "name"), rows)
    with zipfile.ZipFile(folder / "ebhi" / "fields.zip", "w") as file:
        mask = np.zeros((224, 224), np.uint8)
        mask[:, :112] = 255
        for name, _, _, _, color in FIELDS:
            pixels = np.full((224, 224, 3), 240, np.uint8)
            pixels[20:] = color
            file.writestr(f"image/{name}.jpg", encoded(pixels, "JPEG"))
            file.writestr(f"mask/{name}.png", encoded(mask, "PNG"))
    write(folder / "ebhi" / "fields.csv", ("name", "class", "case", "split"), [row[:4] for row in FIELDS])
    return folder


def write(path: Path, heads: tuple[str, ...], rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([heads, *rows])


def test_a_slide_of_colon_is_a_case_without_unsure_and_brown_fields(script: dict[str, Any], data: Path) -> None:
    slides = list(script["colon_slides"](data, "train"))
    assert [(one.slide, one.case, one.label, one.split) for one in slides] == [
        ("colon-1", "1", 1, "train"),
        ("colon-1-high-grade", "1", None, ""),
        ("colon-2", "2", 0, "train"),
    ]
    assert [[part.name for part in one.parts] for one in slides] == [["a1", "a2"], ["a3"], ["b1"]]


def test_tumour_is_what_masks_of_adenocarcinoma_outline(script: dict[str, Any], data: Path) -> None:
    slide = next(iter(script["colon_slides"](data, "train")))
    expected = np.zeros(slide.truth.shape, bool)
    tumor = next(part for part in slide.parts if part.name == "a1")
    expected[tumor.y : tumor.y + 224, tumor.x : tumor.x + round(299 / 2)] = True
    assert (slide.truth ^ expected).mean() < 0.005  # the middle of the field lies within a pixel
    assert slide.tissue.sum() == 2 * 299 * 224


def test_mosaics_hold_patches_of_their_label_and_use_all_alike(script: dict[str, Any], data: Path) -> None:
    slides = list(script["node_slides"](data, "train", 6, shape=(3, 4)))
    assert [one.label for one in slides] == [0, 1, 1, 0, 1, 1]
    uses = np.zeros(40, int)
    for one in slides:
        cells = one.truth.reshape(3, 96, 4, 96).mean((1, 3))
        kinds = np.array([part.kind == "tumor" for part in one.parts]).reshape(3, 4)
        np.testing.assert_array_equal(cells, kinds)
        assert [int(part.name.removesuffix(".jpg")) % 2 for part in one.parts] == list(kinds.ravel())
        assert (0.2 <= kinds.mean() <= 0.8) if one.label else not kinds.any()
        np.add.at(uses, [int(part.name.removesuffix(".jpg")) for part in one.parts], 1)
    assert all(np.ptp(uses[k::2]) <= 1 for k in (0, 1)), "no patch is used twice before all were used"


def test_what_is_written_is_what_was_made(script: dict[str, Any], data: Path, tmp_path: Path) -> None:
    slides = list(script["colon_slides"](data, "test"))
    assert script["write_cohort"](slides, tmp_path, tissue=True) == 1
    for name in ("truth", "tissue"):
        written = np.asarray(Image.open(tmp_path / name / "colon-3.png"))
        np.testing.assert_array_equal(written, getattr(slides[0], name))
    assert (tmp_path / "cohort.csv").read_text().splitlines()[1] == "colon-3,slides/colon-3.tiff,3,1,test,colon"
