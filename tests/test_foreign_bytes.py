"""Whatever bytes somebody else's file holds, reading it ends with a result or a sentence, soon and in little memory."""

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from making.maps import box, slide_facts, write_map, write_outlines
from making.models import write_color_filter_model
from making.slides import write_slide
from wsiseg.annotations.truth import Reading, open_region, open_truth
from wsiseg.config.doctor import DoctorConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.config.settings import read_toml
from wsiseg.config.tile import TileConfig
from wsiseg.fetch.gdc import _slide
from wsiseg.fetch.manifest import read_manifest
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.model_file.model_card import signed
from wsiseg.model_file.model_file import ModelFile
from wsiseg.prediction.verify import verify
from wsiseg.run.errors import WsisegError
from wsiseg.run.outputs import load_arrays, save_arrays
from wsiseg.slides.cohort import Cohort
from wsiseg.slides.slide import Slide
from wsiseg.tiles.store import Tiles, TileStore
from wsiseg.tiles.stored_features import StoredFeatures, read_features, write_features
from wsiseg.tiles.tile import tile

LONGEST_S, MOST_BYTES, CASES = 5.0, 1_000_000_000, 10_000
WAITED_S = 60.0  # where the machine does something else
FACTS = slide_facts(600, 400)
ASAP = (
    '<?xml version="1.0"?><ASAP_Annotations><Annotations><Annotation Name="a" Type="Polygon" PartOfGroup="Tumor">'
    '<Coordinates><Coordinate Order="0" X="10" Y="10"/><Coordinate Order="1" X="200" Y="10"/>'
    '<Coordinate Order="2" X="200" Y="220"/></Coordinates></Annotation></Annotations><AnnotationGroups/>'
    "</ASAP_Annotations>"
)
HIT = {
    "file_id": "0b0e1e9e-6f5f-4b6e-8f6a-0d6b4b5a3c11", "file_name": "TCGA-BH-A0B7-01A-01-TS1.0b0e.svs",
    "md5sum": "d41d8cd98f00b204e9800998ecf8427e", "file_size": 20000, "access": "open",
    "cases": [{"submitter_id": "TCGA-BH-A0B7", "primary_site": "Breast", "project": {"project_id": "TCGA-BRCA"},
               "samples": [{"submitter_id": "TCGA-BH-A0B7-01A", "portions": []}]}],
}  # fmt: skip


def region(path: Path) -> None:
    open_region(path, FACTS)


def mask(path: Path) -> None:
    open_truth(path, FACTS, Reading())


def slide(path: Path) -> None:
    with Slide(path, mpp=0.5) as opened:
        opened.read(0, 0, (64, 64), 1.0)
    with Slide(path):
        pass


def features(path: Path) -> None:
    read_features(path, FACTS)


def model(path: Path) -> None:
    """Open it as it is, and as who would deceive signs it."""
    content = path.read_bytes()
    try:
        path.write_bytes(signed(content))
    except (ValueError, IndexError, UnicodeDecodeError):
        path.write_bytes(content)
    ModelFile.open(path, threads=1).close()


def toml(path: Path) -> None:
    PredictConfig.checked(**read_toml(path))


def gdc(path: Path) -> None:
    try:
        hit = json.loads(path.read_bytes())
    except ValueError:
        return  # the client says so
    if isinstance(hit, dict):  # as the page has it
        _slide(hit)


def store(path: Path) -> None:
    with TileStore(path) as opened:
        opened.read([0])


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "slide": ("a.svs", slide),
    "pyramid": ("a.tiff", slide),
    "geojson": ("a.geojson", region),
    "asap": ("a.xml", region),
    "mask": ("a.png", region),
    "labels": ("mask.png", mask),
    "ngff labels": ("a.ome.zarr", mask),
    "heatmap": ("a.ome.zarr", Heatmap.open),
    "model": ("m.onnx", model),
    "cohort": ("cohort.csv", Cohort.read),
    "settings": ("settings.toml", toml),
    "features": ("a.h5", features),
    "arrays": ("a.npz", lambda path: load_arrays(path, "key")),
    "tiles": ("tiles/a.tiles.zarr", store),
    "manifest": ("manifest.tsv", read_manifest),
    "gdc": ("hit.json", gdc),
    "run": ("out", lambda path: verify(DoctorConfig(slide=path))),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small sound file for every reader."""
    folder = tmp_path_factory.mktemp("sound")
    write_slide(folder / "a.svs", size=(300, 200), tile=128, aperio="AppMag = 20|MPP = 0.5")
    write_slide(folder / "a.tiff", size=(600, 400), levels=[(300, 200)], tile=128, compression="jpeg")
    write_outlines(folder / "a.geojson", box(10, 10, 90, 90))
    (folder / "a.xml").write_text(ASAP)
    picture = np.zeros((20, 30), np.uint8)
    picture[5:9, 5:9] = 1
    Image.fromarray(picture).save(folder / "mask.png")
    Image.fromarray(255 * picture).save(folder / "a.png")
    write_map(folder / "a.ome.zarr", np.full((10, 12), 0.3, np.float32))
    write_color_filter_model(folder / "m.onnx")
    (folder / "cohort.csv").write_text(
        "slide,path,case,label,split,site,mpp\na,a.svs,c,1,train,colon,0.5\nb,b.svs,d,0,,,\n"
    )
    (folder / "settings.toml").write_text('inputs = ["a.svs"]\nthreshold = 0.4\nroi = "a.geojson"\nviews = 2\n')
    save_arrays(folder / "a.npz", "key", total=np.ones((1, 4, 4)), weight=np.ones((4, 4)))
    tile(TileConfig(inputs=(str(folder / "a.tiff"),), out=folder / "tiles", tile=64, pixels=True))
    with TileStore(folder / "tiles" / "a.tiles.zarr") as opened:
        tiles: Tiles = opened.tiles
    write_features(folder / "a.h5", StoredFeatures(tiles, np.ones((len(tiles), 8), np.float32), "none"))
    row = (
        "0b0e1e9e-6f5f-4b6e-8f6a-0d6b4b5a3c11\tTCGA-BH-A0B7-01A-01-TS1.0b0e.svs\td41d8cd98f00b204e9800998ecf8427e\t9\n"
    )
    (folder / "manifest.tsv").write_text("id\tfilename\tmd5\tsize\n" + row)
    (folder / "hit.json").write_text(json.dumps(HIT))
    (folder / "out").mkdir()
    shutil.copy(folder / "tiles" / "run.json", folder / "out")
    return folder


Change = tuple[str, float, bytes]
PIECES = st.sampled_from(
    [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"-1", b"1e999", b"NaN", b"null", b"[[[["]
) | (st.binary(min_size=1, max_size=8))
CHANGES = st.lists(
    st.tuples(st.sampled_from(["over", "in", "out", "end", "twice"]), st.floats(0, 1, exclude_max=True), PIECES),
    min_size=1, max_size=4,
)  # fmt: skip


def changed(content: bytes, changes: list[Change]) -> bytes:
    """Write over bytes, put some in, take some out, end early, or say a part twice."""
    for kind, place, piece in changes:
        at, size = int(place * len(content)), len(piece)
        new = {
            "over": piece,
            "in": piece + content[at : at + size],
            "out": b"",
            "end": b"",
            "twice": 2 * content[at : at + 40 * size],
        }
        content = content[:at] + new[kind] + (b"" if kind == "end" else content[at + size :])
    return content


def tried(sound: Path, place: Path, name: str, which: float, changes: list[Change]) -> None:
    """Read a changed copy; which of the files of a folder is changed, 0..1 says."""
    source, reader = READERS[name]
    shutil.rmtree(place, ignore_errors=True)
    path = place / Path(source).name
    place.mkdir()
    if (sound / source).is_dir():
        shutil.copytree(sound / source, path)
        files = sorted(one for one in path.rglob("*") if one.is_file())
        chosen = files[int(which * len(files))]
    else:
        chosen = Path(shutil.copy(sound / source, path))
    chosen.write_bytes(changed(chosen.read_bytes(), changes))
    began, computed, held = time.monotonic(), time.process_time(), peak_bytes()
    with suppress(WsisegError):
        reader(path)
    assert time.process_time() - computed < LONGEST_S
    assert time.monotonic() - began < WAITED_S
    assert peak_bytes() - held < MOST_BYTES


def peak_bytes() -> int:
    """Return the most memory that this process held so far; 0 where nobody knows."""
    try:
        import resource  # noqa: PLC0415  not on Windows
    except ImportError:
        return 0
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("name", READERS)
def test_the_sound_files_are_read(sound: Path, name: str) -> None:
    source, reader = READERS[name]
    reader(sound / source)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=8)
@given(which=st.floats(0, 1, exclude_max=True), changes=CHANGES)
def test_changed_bytes_are_a_result_or_a_sentence(
    sound: Path, tmp_path: Path, name: str, which: float, changes: list[Change]
) -> None:
    tried(sound, tmp_path / "case", name, which, changes)


KEPT: list[tuple[str, float, list[Change]]] = [
    ("heatmap", 0.9375, [("over", 0.0, b"\0\0\0\0")]),  # blosc: a RuntimeError
    ("heatmap", 0.9375, [("over", 0.03125, b"\xff\xff\xff\xff")]),  # blosc: a SystemError
    ("arrays", 0.0, [("end", 0.5, b"-1")]),  # NumPy left the file open
]


@pytest.mark.parametrize(("name", "which", "changes"), KEPT)
def test_what_once_broke_a_reader_is_a_sentence_now(
    sound: Path, tmp_path: Path, name: str, which: float, changes: list[Change]
) -> None:
    tried(sound, tmp_path / "case", name, which, changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=CASES // len(READERS))
@given(which=st.floats(0, 1, exclude_max=True), changes=CHANGES)
def test_ten_thousand_changed_files_are_results_or_sentences(
    sound: Path, tmp_path: Path, name: str, which: float, changes: list[Change]
) -> None:
    tried(sound, tmp_path / "case", name, which, changes)
