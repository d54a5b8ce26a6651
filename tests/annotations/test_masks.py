from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

from making.maps import slide_facts
from making.slides import write_slide
from wsiseg.annotations.classes import Classes
from wsiseg.annotations.coverage import Truth
from wsiseg.annotations.masks import whole_slide_step
from wsiseg.annotations.outlines import AnnotationError
from wsiseg.annotations.truth import Reading, open_truth
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.slides.slide import SlideFacts


def read(path: Path, *tumor: str, slide: SlideFacts, **how: Any) -> Truth:
    return open_truth(path, slide, Reading(Classes(tumor), **how))


@pytest.mark.parametrize("kind", ["1", "L", "P", "I;16", "RGB"])
@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_masks_of_every_kind_cover_their_slide(tmp_path: Path, kind: str, ending: str) -> None:
    pixels = np.zeros((30, 40), np.uint8)
    pixels[10:20, 5:15] = 255
    image = Image.fromarray(pixels.astype(np.uint16)) if kind == "I;16" else Image.fromarray(pixels).convert(kind)
    image.save(tmp_path / f"a{ending}")
    truth = read(tmp_path / f"a{ending}", slide=slide_facts(640, 480))
    assert truth.tumor.total == 100 * 16**2
    area = truth.tumor.covered(np.array([0.0, 80, 88, 640]), np.array([0.0, 160, 480]))
    np.testing.assert_allclose(area, [[0, 0, 0], [0, 8 * 160, 152 * 160]])


def test_a_mask_with_several_values_needs_to_be_told_which_is_tumour(tmp_path: Path) -> None:
    pixels = np.zeros((30, 40), np.uint8)
    pixels[:10], pixels[10:15] = 1, 2
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match=r"a\.png: nothing is of a class known as tumour, but of 1, 2"):
        read(tmp_path / "a.png", slide=slide_facts(640, 480))
    assert read(tmp_path / "a.png", "2", slide=slide_facts(640, 480)).tumor.total == 5 * 40 * 16**2


def test_a_mask_of_other_proportions_or_in_colours_is_refused(tmp_path: Path) -> None:
    Image.new("L", (40, 40), 1).save(tmp_path / "a.png")
    with pytest.raises(AnnotationError, match=r"a\.png: its 40x40 pixels do not cover the slide's 640x480"):
        read(tmp_path / "a.png", slide=slide_facts(640, 480))
    assert read(tmp_path / "a.png", slide=slide_facts(640, 480, 0.5), mask_mpp=5.0).tumor.total == 400**2
    Image.new("RGB", (40, 30), (10, 20, 30)).save(tmp_path / "b.png")
    with pytest.raises(AnnotationError, match=r"b\.png: its colours do not say what is marked: #0a141e"):
        read(tmp_path / "b.png", slide=slide_facts(640, 480))
    (tmp_path / "c.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(AnnotationError, match=r"c\.png: cannot be read as a mask"):
        read(tmp_path / "c.png", slide=slide_facts(640, 480))


def test_the_step_of_a_whole_slide_image_is_whole_where_that_explains_its_size() -> None:
    assert whole_slide_step("a", slide_facts(1000, 700), (63, 44)) == (16, 16)
    assert whole_slide_step("a", slide_facts(18000, 31896), (41, 72)) == (448, 448)
    assert whole_slide_step("a", slide_facts(1000, 500), (300, 150)) == (1000 / 300, 500 / 150)
    assert whole_slide_step("a", slide_facts(100, 50), (200, 100)) == (0.5, 0.5)


def test_a_mask_too_large_for_memory_is_read_from_a_coarser_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.zeros((512, 640, 3), np.uint8)
    picture[128:256, 64:320] = 1
    write_slide(tmp_path / "a.tiff", picture, levels=[(640, 512), (320, 256), (160, 128)], compression=None)
    monkeypatch.setattr("wsiseg.annotations.mask_files._MOST_BYTES", 500_000)
    mask = read(tmp_path / "a.tiff", slide=slide_facts(640, 512)).tumor
    assert mask.total == 128 * 256
    assert mask.geometry.bounds == (64, 128, 320, 256)


@pytest.mark.parametrize("ngff", ["0.4", "0.5"])
def test_another_heatmap_is_truth_by_its_segmentation(tmp_path: Path, ngff: Any) -> None:
    values = np.full((40, 60), np.nan, np.float32)
    values[5:30, 5:50], values[10:20, 10:30] = 0.2, 0.8
    Heatmap(values, 7.3, slide_facts(871, 580, 0.5)).save(tmp_path / "a.ome.zarr", ngff)
    heatmap = Heatmap.open(tmp_path / "a.ome.zarr")
    truth = read(tmp_path / "a.ome.zarr", slide=slide_facts(871, 580, 0.5))
    x, y = heatmap.edges()
    cells = np.diff(y)[:, None] * np.diff(x)[None, :]
    np.testing.assert_allclose(truth.tumor.covered(x, y), cells * heatmap.tumor, atol=1e-6)
    assert truth.notes == ()
    noted = read(tmp_path / "a.ome.zarr", slide=slide_facts(1000, 700, 0.25)).notes
    assert ["[871, 580] pixels" in noted[0], "0.5 um/px" in noted[1]] == [True, True]


def test_labels_too_large_to_hold_are_read_from_a_coarser_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.full((100, 160), 0.2, np.float32)
    values[40:60, 40:80] = 0.8
    Heatmap(values, 8.0, slide_facts(2560, 1600, 0.5)).save(tmp_path / "a.ome.zarr")
    monkeypatch.setattr("wsiseg.annotations.labels._MOST_BYTES", 5000)
    mask = read(tmp_path / "a.ome.zarr", slide=slide_facts(2560, 1600, 0.5)).tumor
    assert mask.geometry.bounds == (640, 640, 1280, 960)
    monkeypatch.setattr("wsiseg.annotations.labels._MOST_BYTES", 100)
    truth = read(tmp_path / "a.ome.zarr", slide=slide_facts(2560, 1600, 0.5))
    assert truth.tumor.total == 2 * 256**2  # of 640x320, by the corner of every block of 256
    assert "its labels were read at " in truth.notes[0]


def test_labels_of_others_begin_at_the_corner_unless_they_say_where(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=2)
    group.create_array("0", data=np.eye(4, dtype=np.uint16), chunk_key_encoding={"name": "v2", "separator": "/"})
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    steps: list[Any] = [{"type": "scale", "scale": [8.0, 8.0]}]
    image: dict[str, Any] = {
        "version": "0.4",
        "axes": axes,
        "datasets": [{"path": "0", "coordinateTransformations": steps}],
    }
    group.attrs.update({"multiscales": [image], "image-label": {"version": "0.4"}})
    mask = read(tmp_path / "a.zarr", slide=slide_facts(200, 200, 0.5)).tumor
    assert mask.total == 4 * 16**2
    assert mask.geometry.bounds == (0, 0, 64, 64)
    steps.append({"type": "translation", "translation": [13.75, 3.75]})
    group.attrs["multiscales"] = [image]
    assert read(tmp_path / "a.zarr", slide=slide_facts(200, 200, 0.5)).tumor.geometry.bounds == (
        0,
        20,
        64,
        84,
    )


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=2)
    (tmp_path / "b.zarr").mkdir()
    for name in ("a.zarr", "b.zarr"):
        with pytest.raises(AnnotationError, match=f"^{name}: no NGFF labels"):
            read(tmp_path / name, slide=slide_facts(100, 100))
