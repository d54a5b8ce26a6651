import shutil
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiseg.run.errors import NotASlideError, SlideError
from wsiseg.slides.cohort import Cohort
from wsiseg.slides.dicom import by_series, dicom_file, series_file
from wsiseg.slides.slide import Slide


def test_what_a_file_is_stands_in_its_head(data: Path) -> None:
    files = {path.name: dicom_file(path) for path in (data / "slides").rglob("*") if path.is_file()}
    kinds = {name: file.kind for name, file in files.items() if file is not None}
    assert kinds["boxes_0.dcm"] == kinds["sm_image_jpegls.dcm"] == ""
    assert kinds["boxes_1.dcm"] == "thumbnail"
    assert kinds["sm_annotations.dcm"] == "set of annotations"
    assert kinds["seg_image_sm_dots.dcm"] == "segmentation"  # written with implicit types
    assert kinds["seg_image_sm_dots_tiled_full.dcm"] == "segmentation"
    assert files["CMU-1-Small-Region.svs"] is None
    assert len(kinds) == 18


def test_files_of_a_series_stand_together(data: Path) -> None:
    paths = sorted((data / "slides" / "dicom_highdicom").iterdir())
    series = by_series(file for path in paths if (file := dicom_file(path)))
    assert [[file.path.name for file in files] for files in series if len(files) > 1] == [
        ["sm_image.dcm", "sm_image_control.dcm"],
        ["sm_image_grayscale.dcm", "sm_image_grayscale_reversed.dcm"],
    ]


def test_a_folder_of_one_series_is_a_slide(data: Path, tmp_path: Path) -> None:
    boxes = data / "slides" / "dicom_boxes"
    with Slide(boxes) as slide:
        assert slide.facts.file == "boxes_0.dcm"
        assert slide.size_px == (16, 16)
    with pytest.raises(SlideError, match="holds 6 DICOM slides; name a file"):
        series_file(data / "slides" / "dicom_highdicom")
    with pytest.raises(SlideError, match="without a DICOM slide"):
        series_file(tmp_path)
    with pytest.raises(NotASlideError, match=r"boxes_1\.dcm: not a slide but a DICOM thumbnail"):
        Slide(boxes / "boxes_1.dcm")


def test_what_lies_beside_a_slide_is_no_failure_though_a_shell_named_it(data: Path) -> None:
    boxes = data / "slides" / "dicom_boxes"
    slide, thumbnail = Cohort.from_inputs([str(boxes / "boxes_0.dcm"), str(boxes / "boxes_1.dcm")]).slides
    assert (slide.must_be_slide, thumbnail.must_be_slide) == (True, False)
    assert thumbnail.skipped == "boxes_1.dcm: not a slide but a DICOM thumbnail"
    (alone,) = Cohort.from_inputs([str(boxes / "boxes_1.dcm")]).slides
    assert alone.must_be_slide


def test_a_file_without_its_suffix_is_found(data: Path, tmp_path: Path) -> None:
    shutil.copy(data / "slides" / "dicom_boxes" / "boxes_0.dcm", tmp_path / "1.2.3")
    with Slide(tmp_path) as slide:
        assert slide.facts.vendor == "dicom"


@given(st.integers(0, 5000), st.binary(max_size=200), st.integers(0, 2000))
def test_broken_heads_neither_raise_nor_hang(
    tmp_path_factory: pytest.TempPathFactory, data: Path, place: int, noise: bytes, end: int
) -> None:
    whole = (data / "slides" / "dicom_highdicom" / "seg_image_sm_dots.dcm").read_bytes()[:6000]
    path = tmp_path_factory.getbasetemp() / "broken.dcm"
    path.write_bytes((whole[:place] + noise + whole[place + len(noise) :])[: 132 + end])
    dicom_file(path)


def test_a_sequence_without_an_end_is_given_up(tmp_path: Path) -> None:
    head = bytes(128) + b"DICM" + b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff"
    for tail in (b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 200, b"\xfe\xff\x00\xe0\0\0\0\0" * 200_000, b""):
        (tmp_path / "a.dcm").write_bytes(head + tail)
        found = dicom_file(tmp_path / "a.dcm")
        assert found is not None
        assert found.series == ""


def test_what_stands_in_a_sequence_is_not_the_files_own(tmp_path: Path) -> None:
    def element(group: int, number: int, text: bytes) -> bytes:
        return struct.pack("<HH2sH", group, number, b"UI", len(text)) + text

    inner = (
        element(0x0008, 0x0008, b"THUMBNAIL ") + element(0x0020, 0x000E, b"1.2.3 ") + element(0x0040, 0x0001, b"1.2 ")
    )
    sequence = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + inner
    ends = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + sequence + ends + element(0x0020, 0x000E, b"1.2.4 "))
    found = dicom_file(tmp_path / "a.dcm")
    assert found is not None
    assert (found.series, found.kind) == ("1.2.4", "")
