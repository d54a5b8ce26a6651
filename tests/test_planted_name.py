"""A patient's name in a slide's properties, its label or the files beside it reaches no output, log or report."""

import contextlib
import gzip
import io
import shutil
from pathlib import Path

import pytest
import tifffile

from making.maps import box, write_outlines
from making.models import write_color_filter_model
from making.slides import write_slide
from wsiseg.cli import loaded
from wsiseg.slides.slide import Slide

NAME = b"Zzyzxmann"


def planted_svs(folder: Path) -> Path:
    name = NAME.decode()
    path = write_slide(
        folder / "a.svs", aperio=f"AppMag = 20|MPP = 0.5|Patient = {name}|User = {name}|Barcode = {name}"
    )
    with tifffile.TiffWriter(path, append=True) as tiff:  # the label, as Aperio names it
        picture = tifffile.imread(path, key=0)[:64, :48]
        tiff.write(picture, photometric="rgb", description=f"Aperio {name}\r\nlabel 48x64", metadata=None)
    return path


def planted_dicom(folder: Path, data: Path) -> Path:
    shutil.copytree(data / "slides" / "dicom_boxes", folder / "series")
    for path in (folder / "series").iterdir():
        content = path.read_bytes()
        at = content.index(b"\x10\x00\x10\x00PN")
        end = at + 8 + int.from_bytes(content[at + 6 : at + 8], "little")
        path.write_bytes(content[:at] + b"\x10\x00\x10\x00PN\x0a\x00" + NAME + b" " + content[end:])
    return folder / "series"


def planted_ndpi(folder: Path, data: Path) -> Path:
    content = (data / "slides" / "hamamatsu_test3-DAPI-2-387.ndpi").read_bytes()
    path = folder / "h.ndpi"
    path.write_bytes(content.replace(b"Created=2011/05/23", b"Patient=" + NAME + b"1"))
    return path


@pytest.fixture
def slides(tmp_path: Path, data: Path) -> list[Path]:
    folder = tmp_path / "slides"
    paths = [planted_svs(folder), planted_dicom(folder, data), planted_ndpi(folder, data)]
    for neighbour in ("a.txt", "Zzyzxmann.jpg", "Zzyzxmann.xml", "Zzyzxmann/label.png"):
        (folder / neighbour).parent.mkdir(exist_ok=True)
        (folder / neighbour).write_bytes(NAME)
    for path in paths:
        with Slide(path, mpp=0.5) as slide:
            assert any(NAME.decode() in value for value in slide.properties.values()), path
    return paths


def said(*arguments: object) -> bytes:
    """Run a command with all that it can say."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        loaded()([*map(str, arguments), "--verbose"])
    assert left.value.code in (0, 1), err.getvalue()
    return (out.getvalue() + err.getvalue()).encode()


def read(folder: Path) -> dict[str, bytes]:
    """Return what is in files, unpacked."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: gzip.decompress(content) if name.endswith(".gz") else content for name, content in files.items()}


def test_a_planted_name_is_nowhere(slides: list[Path], tmp_path: Path) -> None:
    model, work = write_color_filter_model(tmp_path / "m.onnx"), tmp_path / "work"
    maps, tiles, truth = work / "maps", work / "tiles", tmp_path / "truth"
    for name in ("a", "series", "h"):
        write_outlines(truth / f"{name}.geojson", box(100, 100, 300, 300))
    shared = ("--slide-mpp", "0.5", "--out")
    words = [
        said("predict", *slides, "--model", model, *shared, maps, "--csv", "--cells"),
        said("predict", *slides, "--model", model, *shared, maps, "--csv", "--cells", "--json"),
        said("tile", *slides, *shared, tiles),
        said("evaluate", maps, "--truth", truth, "--out", work / "evaluation", "--allow-missing"),
        said("doctor", maps, "--sample", 5, "--model", model),
        *(said("doctor", slide, "--slide-mpp", "0.5") for slide in slides),
    ]
    found = read(work)
    assert {"maps/a.geojson", "maps/run.json", "maps/report.html", "tiles/run.json"} <= set(found)
    assert b"a.svs" in b"".join(words), "something was said"
    assert [name for name, content in found.items() if NAME.lower() in content.lower()] == []
    assert [number for number, text in enumerate(words) if NAME.lower() in text.lower()] == []
    assert [name for name in found if NAME.decode().lower() in name.lower()] == []
