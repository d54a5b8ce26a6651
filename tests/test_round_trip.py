"""A slide of real tissue goes to an archive as DICOM, and comes back with its map as it was and where it was."""

import importlib
from ctypes.util import find_library
from pathlib import Path

import pytest

from making.archives import LOGIN, orthanc

SIZES = ((9203, 6587), (2300, 1646), (575, 411))  # downsamples that are no whole numbers


@pytest.mark.slow
def test_what_comes_back_is_what_left(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("highdicom", "wsidicomizer", "dicomweb_client"):
        pytest.importorskip(package)
    if find_library("turbojpeg") is None:
        pytest.skip("needs the turbojpeg library")
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    measuring = importlib.import_module("dicom_round_trip")
    monkeypatch.setenv("WSISEG_DICOMWEB_USER", LOGIN[0])
    monkeypatch.setenv("WSISEG_DICOMWEB_PASSWORD", LOGIN[1])
    slide = measuring.write_stand_in(tmp_path / "a.svs", data / "slides" / "CMU-1-Small-Region.svs", SIZES)
    (tmp_path / "archive").mkdir()
    with orthanc(tmp_path / "archive") as archive:
        figures = measuring.journey(slide, tmp_path, archive, SIZES)
    assert [one["differ"] for one in figures["pixels"]] == [0, 0, 0]
    assert figures["cells that differ between both maps"] == figures["objects that differ from what was stored"] == 0
    assert sorted(one["kind"] for one in figures["objects"]) == ["BINARY", "FRACTIONAL", "PARAMETRIC_MAP"]
    for one in figures["objects"]:
        assert one["most that a value is off, in 1/255"] <= (0.5 if one["kind"] == "FRACTIONAL" else 0)
        assert max(one["corner pixels, in cells from the middle of the cell that they show"]) < 0.5
        assert max(one["marks, in cells from those of the map"]) < 0.5
        assert max(one["marks of the map, in cells from where they were drawn"]) < 0.5
