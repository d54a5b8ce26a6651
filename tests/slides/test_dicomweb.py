"""Slides come from a real archive as they are, and maps go there whole or not at all."""

import base64
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

pytest.importorskip("highdicom")

import highdicom as hd
import pydicom

from making.archives import LOGIN, Archive, behind_tls, cut_after, orthanc
from making.dicom_slides import write_dicom_slide
from making.models import write_color_filter_model
from making.waiting import LONGEST_S
from wsiseg.config.predict import ConvertConfig, PredictConfig
from wsiseg.heatmap.convert import convert
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.prediction.predict import predict_slides
from wsiseg.run.connection import USUAL, Patience, TemporaryError
from wsiseg.run.errors import DownloadError, UsageError
from wsiseg.run.record import Progress
from wsiseg.slides.cache import Cache
from wsiseg.slides.dicom import hashed
from wsiseg.slides.dicomweb import Series, _first_part, fetch_series

SIZES = ((1001, 767), (333, 255), (62, 47))
DOTS = ((100, 70), (900, 60), (110, 700), (905, 690), (500, 380))  # x, y of the middle of each
DOT_PX, CELL_PX = 48, 32
HASTY = Patience(tries=2, first_wait_s=0.01, read_s=20)


def dotted() -> list[NDArray[np.uint8]]:
    """Return the levels of a white slide with dark dots."""
    levels = []
    for width, height in SIZES:
        y, x = ((np.arange(n) + 0.5) * SIZES[0][0] / width for n in (height, width))  # as the spacing says
        picture = np.full((height, width, 3), 240, np.uint8)
        for left, top in DOTS:
            inside = np.ix_(abs(y - top) < DOT_PX / 2, abs(x - left) < DOT_PX / 2)
            picture[inside] = (150, 60, 120)
        levels.append(picture)
    return levels


def fetched(addresses: list[str], cache: Path, most_bytes: float, patience: Patience = USUAL) -> list[Path]:
    with Cache(cache, most_bytes) as opened:
        return fetch_series(addresses, opened, Progress(), patience)


def address(archive: Archive, file: Path, *, with_series: bool = True) -> str:
    image = pydicom.dcmread(file, stop_before_pixels=True)
    study = f"dicomweb://{archive.host}/dicom-web/studies/{image.StudyInstanceUID}"
    return f"{study}/series/{image.SeriesInstanceUID}" if with_series else study


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as archive:
        yield archive


@pytest.fixture
def archive(server: Archive, monkeypatch: pytest.MonkeyPatch) -> Archive:
    server.clear()
    monkeypatch.setenv("WSISEG_DICOMWEB_USER", LOGIN[0])
    monkeypatch.setenv("WSISEG_DICOMWEB_PASSWORD", LOGIN[1])
    return server


@pytest.fixture
def slide(tmp_path: Path) -> list[Path]:
    return write_dicom_slide(tmp_path / "slide", dotted())


def mapped(inputs: str, tmp_path: Path) -> Path:
    model = write_color_filter_model(tmp_path / "m.onnx", stride=CELL_PX, tile_px=CELL_PX)
    config = PredictConfig(inputs=(inputs,), model=(str(model),), tissue="none", out=tmp_path / "maps")
    assert predict_slides(config).exit_code == 0
    return tmp_path / "maps"


@pytest.mark.slow
def test_a_map_goes_to_the_archive_and_comes_back(archive: Archive, slide: list[Path], tmp_path: Path) -> None:
    archive.add(*slide)
    place = address(archive, slide[0])
    maps = mapped(place, tmp_path)
    name = hashed(place.rpartition("/")[2])
    fetched = sorted((maps / ".slides" / name).glob("*.dcm"))
    assert sorted(one.read_bytes() for one in fetched) == sorted(one.read_bytes() for one in slide)

    run = convert(ConvertConfig(folder=maps, to=("dicom-seg", "dicom-map"), store=archive.root))
    assert run.exit_code == 0
    assert len(archive.instances()) == 6
    convert(ConvertConfig(folder=maps, to=("dicom-seg", "dicom-map"), store=archive.root))
    assert len(archive.instances()) == 6  # the same map is the same object

    heatmap = Heatmap.open(maps / f"{name}.ome.zarr")
    client = pytest.importorskip("dicomweb_client").DICOMwebClient(archive.root, headers=basic())
    for path in run.slides[0].outputs.values():
        made = pydicom.dcmread(path)
        ids = made.StudyInstanceUID, made.SeriesInstanceUID, made.SOPInstanceUID
        back = client.retrieve_instance(*ids)
        keyword = "FloatPixelData" if "FloatPixelData" in made else "PixelData"
        assert back[keyword].value == made[keyword].value
        dots_are_where_they_were(path, heatmap)
        assert errors_of(Path(path)) == []
    nothing_leads_to_a_patient(maps, place)


def errors_of(path: Path) -> list[str]:
    """Return what the validator of dicom3tools calls an error, where it is installed."""
    validator = shutil.which("dciodvfy")
    if validator is None:
        return []
    done = subprocess.run([validator, "-new", str(path)], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def basic() -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(':'.join(LOGIN).encode()).decode()}"}


def dots_are_where_they_were(path: str, heatmap: Heatmap) -> None:
    """Find the dots in an object, and compare their middles with those of the slide."""
    read: Any = hd.imread(path)
    if read.Modality == "SEG":
        options: dict[str, Any] = {"rescale_fractional": False} if read.SegmentationType == "FRACTIONAL" else {}
        read = hd.seg.segread(path)
        matrix = read.get_total_pixel_matrix(**options)[..., 0] / (255 if options else 1)
    else:
        matrix = read.get_total_pixel_matrix(apply_real_world_transform=False)
    labels, count = ndimage.label(matrix > 0.2)
    assert count == len(DOTS)
    middles = np.array(ndimage.center_of_mass(matrix.clip(0), labels, range(1, count + 1)))
    step = SIZES[0][0] / matrix.shape[1]
    for x, y in DOTS:
        away = np.abs((middles + 0.5) * step - (y, x)).max(1).min()
        assert away < heatmap.cell_level0[0] / 2


def nothing_leads_to_a_patient(folder: Path, place: str) -> None:
    uids = [part for part in place.split("/") if part.count(".") > 4]
    for path in folder.rglob("*"):
        assert not any(word in path.name for word in (*uids, "SECRET", "Secret"))
        if path.is_file() and path.suffix in {".json", ".html", ".csv", ".geojson", ".zattrs"}:
            text = path.read_text("utf-8")
            assert not any(word in text for word in (*uids, "SECRET", "Secret^"))


@pytest.mark.slow
def test_what_is_there_is_not_fetched_again(archive: Archive, slide: list[Path], tmp_path: Path) -> None:
    archive.add(*slide)
    place, cache = address(archive, slide[0]), tmp_path / "cache"
    with cut_after(archive, received=2_000_000) as wire, pytest.raises(DownloadError, match="times in a row"):
        fetched([address(wire, slide[0])], cache, 1e9, HASTY)
    there = {path: path.stat().st_mtime_ns for path in cache.rglob("*.dcm")}
    assert len(there) < len(slide), "what was cut is not there"
    (found,) = fetched([place], cache, 1e9)
    whole = {path: path.stat().st_mtime_ns for path in found.parent.glob("*.dcm")}
    assert len(whole) == len(slide)
    assert there.items() <= whole.items()
    gone = min(whole)
    gone.unlink()
    fetched([place], cache, 1e9)
    assert gone.is_file()
    assert all(path.stat().st_mtime_ns == time for path, time in whole.items() if path != gone)


@pytest.mark.slow
def test_the_cache_stays_within_its_bounds(archive: Archive, tmp_path: Path) -> None:
    slides = [write_dicom_slide(tmp_path / str(number), dotted()) for number in range(2)]
    archive.add(*slides[0], *slides[1])
    size, cache = sum(path.stat().st_size for path in slides[0]), tmp_path / "cache"
    own = cache / "photos" / "own.jpg"
    own.parent.mkdir(parents=True)
    own.write_bytes(bytes(2 * size))
    first, second = (fetched([address(archive, one[0])], cache, 1.5 * size)[0] for one in slides)
    assert not first.exists()
    assert second.exists()
    assert own.exists()
    with pytest.raises(DownloadError, match="more than the cache may hold"):
        fetched([address(archive, one[0]) for one in slides], cache, 1.5 * size)
    with pytest.raises(DownloadError, match="more than the cache may hold"):
        fetched([address(archive, slides[0][0])], tmp_path / "small", size / 3)


def started(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "wsiseg", *command], stderr=subprocess.PIPE, text=True)


def refused(running: subprocess.Popen[str], code: int, sentence: str) -> None:
    said = running.communicate()[1].splitlines()
    assert running.returncode == code, said
    assert re.search(sentence, said[-1]), said
    assert [line for line in said[:-1] if "to fetch" not in line] == []


@pytest.mark.slow
def test_what_is_no_whole_slide_is_refused(archive: Archive, slide: list[Path], tmp_path: Path) -> None:
    def not_mapped(place: str, code: int, sentence: str) -> None:
        refused(started("predict", place, "--out", str(tmp_path / "out")), code, sentence)
        assert list((tmp_path / "out").glob("[!.]*")) == []

    uids = pydicom.dcmread(slide[0], stop_before_pixels=True)
    of_study: dict[str, Any] = {"StudyInstanceUID": uids.StudyInstanceUID}
    (label,) = write_dicom_slide(tmp_path / "label", dotted()[2:], flavor="LABEL", **of_study)
    not_mapped(address(archive, slide[0]), 6, "not in the archive")
    archive.add(*slide[1:])
    not_mapped(address(archive, slide[0]), 6, "half a series: its finest level is missing")
    archive.add(slide[0], label)
    not_mapped(address(archive, label), 6, "not in the archive|not a slide")
    not_mapped(address(archive, slide[0], with_series=False), 2, "holds 2 series of slides; name a series")


@pytest.mark.slow
def test_a_label_in_the_series_stays_in_the_archive(archive: Archive, slide: list[Path], tmp_path: Path) -> None:
    uids = pydicom.dcmread(slide[0], stop_before_pixels=True)
    same = {name: uids[name].value for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    archive.add(*slide, *write_dicom_slide(tmp_path / "label", dotted()[2:], flavor="LABEL", **same))
    (found,) = fetched([address(archive, slide[0], with_series=False)], tmp_path / "cache", 1e9)
    assert len(list(found.parent.glob("*.dcm"))) == len(slide)


@pytest.mark.slow
def test_a_server_that_goes_in_the_middle_keeps_nothing_half(
    archive: Archive, slide: list[Path], tmp_path: Path
) -> None:
    maps, out = mapped(str(slide[0]), tmp_path), tmp_path / "out"
    with cut_after(archive, sent=30_000) as wire:
        refused(started("convert", str(maps), "--to", "dicom-map", "--store", wire.root), 6, "times in a row; run it")
    assert archive.instances() == []
    archive.add(*slide)
    with cut_after(archive, received=2_000_000) as wire:
        refused(started("predict", address(wire, slide[0]), "--out", str(out)), 6, "times in a row; run it")
    assert [path.name for path in out.iterdir()] == [".slides"]
    assert {path.read_bytes() for path in out.rglob("*.dcm")} < {path.read_bytes() for path in slide}


@pytest.mark.slow
def test_an_archive_must_be_trusted(
    archive: Archive, slide: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, out = mapped(str(slide[0]), tmp_path), tmp_path / "out"
    archive.add(*slide)
    with behind_tls(archive, tmp_path) as (secure, certificate):
        storing = ["convert", str(maps), "--to", "dicom-map", "--store", secure.root]
        fetching = ["predict", address(secure, slide[0]), "--out", str(out), "--model", str(tmp_path / "m.onnx")]
        for command in (storing, fetching):
            sentence = r"https://127\.0\.0\.2.*: its certificate is not trusted; .* SSL_CERT_FILE"
            refused(started(*command), 6, sentence)
        assert len(archive.instances()) == len(slide)
        assert not list(tmp_path.rglob("*.map.dcm"))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        for command in (storing, [*fetching, "--tissue", "none"]):
            said = started(*command).communicate(timeout=LONGEST_S)[1]
            assert "error" not in said.lower(), said
        assert len(archive.instances()) == len(slide) + 1
        assert len(list(out.glob("*.ome.zarr"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_wrong_password_is_one_sentence(
    password: str, archive: Archive, slide: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = mapped(str(slide[0]), tmp_path)
    monkeypatch.setenv("WSISEG_DICOMWEB_PASSWORD", password)
    monkeypatch.setenv("WSISEG_DICOMWEB_USER", "me" if password else "")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    stored = ["convert", str(maps), "--to", "dicom-map", "--out", str(tmp_path / "out"), "--store", archive.root]
    for command in (stored, ["predict", address(archive, slide[0]), "--out", str(tmp_path / "out")]):
        done = subprocess.run([sys.executable, "-m", "wsiseg", *command], capture_output=True, text=True, check=False)
        assert done.returncode == 6
        assert done.stderr.count("\n") == 1
        assert "401" in done.stderr
        assert "WSISEG_DICOMWEB_PASSWORD" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_netrc_lets_us_in(archive: Archive, slide: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.add(*slide)
    monkeypatch.delenv("WSISEG_DICOMWEB_USER")
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login {LOGIN[0]} password {LOGIN[1]}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert fetched([address(archive, slide[0])], tmp_path / "cache", 1e9)


def test_addresses() -> None:
    assert Series.of("dicomweb://pacs.example/a/studies/1.2/series/3.4") == ("https://pacs.example/a", "1.2", "3.4")
    assert Series.of("dicomweb://localhost:80/studies/1.2/") == ("http://localhost:80", "1.2", None)
    for wrong in ("dicomweb://me:secret@pacs.example/studies/1.2", "dicomweb://pacs.example/studies/..", "dicomweb://"):
        with pytest.raises(UsageError, match="another form") as caught:
            Series.of(wrong)
        assert "secret" not in str(caught.value)


def test_nothing_is_asked_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"http://localhost:1: not fetched, as WSISEG_OFFLINE is set"):
        fetched(["dicomweb://localhost:1/studies/1.2/series/3.4"], tmp_path, 1e9)


def test_a_part_is_what_lies_between_the_boundaries() -> None:
    def content(*chunks: bytes) -> bytes:
        return b"".join(_first_part(iter(chunks), "b"))

    message = b"--b\r\nContent-Type: application/dicom\r\n\r\n\r\n--DICM\r\n--\r\n--b--\r\n"
    for size in range(1, len(message) + 1):
        chunks = [message[at : at + size] for at in range(0, len(message), size)]
        assert content(*chunks) == b"\r\n--DICM\r\n--"
    with pytest.raises(TemporaryError, match="ended in the middle"):
        content(message[:-8])
    with pytest.raises(DownloadError, match="something else than DICOM files"):
        content(*[bytes(1000)] * 1000)
