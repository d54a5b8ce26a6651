"""Slides as no scanner writes them: whatever is wrong with a file, the answer is a sentence, soon, in little memory."""

import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from making.slides import write_slide
from wsiseg.config.tile import TileConfig
from wsiseg.run.errors import WsisegError
from wsiseg.slides.slide import Slide
from wsiseg.tiles.tile import tile
from wsiseg.tiles.tissue import find_tissue

KINDS = ("generic.tiff", "jpeg.tiff", "leica.scn", "aperio.svs")
MOST_MEMORY_KIB = 1_400_000  # a plain image of the largest size that is held in memory takes 1.2 GB


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a sound slide of every kind."""
    folder = tmp_path_factory.mktemp("sound")
    small = {"size": (600, 400), "tile": 128}
    write_slide(folder / "generic.tiff", levels=[(300, 200)], **small)  # type: ignore[arg-type]  # two kinds of value
    write_slide(folder / "jpeg.tiff", levels=[(300, 200)], compression="jpeg", **small)  # type: ignore[arg-type]  # as above
    write_slide(folder / "leica.scn", frame=(50, 40, 900, 700), **small)  # type: ignore[arg-type]  # as above
    write_slide(folder / "aperio.svs", aperio="AppMag = 20|MPP = 0.5", mpp=None, **small)  # type: ignore[arg-type]  # as above
    return folder


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, list[tuple[float, bytes]], float | None]:
    """Draw a kind of slide, what is written over it and where (0..1 of its directory or file), and where it ends."""
    kind = draw(st.sampled_from(KINDS))
    numbers = st.sampled_from([0, 1, 2, 255, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]).map(
        lambda number: number.to_bytes(4, "little")
    )
    noise = st.binary(min_size=1, max_size=12) | numbers
    written = draw(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), noise), max_size=4))
    return kind, written, draw(st.none() | st.floats(0, 1))


def broken(whole: bytes, written: list[tuple[float, bytes]], end: float | None) -> bytes:
    """Write over the tags of the first directory, which say how everything else is to be read, and cut off the end."""
    from io import BytesIO  # noqa: PLC0415  only here

    with tifffile.TiffFile(BytesIO(whole)) as tiff:
        page = tiff.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        begin, length = page.offset, 20 * len(page.tags)
    data = bytearray(whole)
    for place, noise in written:
        at = begin + int(place * length)
        data[at : at + len(noise)] = noise
    return bytes(data if end is None else data[: int(end * len(data))])


@pytest.mark.slow
@settings(max_examples=500, deadline=60_000)
@given(damages())
def test_a_broken_slide_is_read_or_refused(
    sound: Path,
    tmp_path_factory: pytest.TempPathFactory,
    damage: tuple[str, list[tuple[float, bytes]], float | None],
) -> None:
    kind, written, end = damage
    path = tmp_path_factory.getbasetemp() / f"broken-{kind}"
    path.write_bytes(broken((sound / kind).read_bytes(), written, end))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with Slide(path, mpp=0.5) as slide:
            find_tissue(slide)
            slide.read(100, 100, (224, 224), 0.5)
    except WsisegError as error:
        assert str(error).startswith(path.name) and error.hint  # noqa: PT017, PT018  many slides are read all the same
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY_KIB


def test_a_property_whose_name_is_no_text_is_left_out(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "aperio.svs"
    path.write_bytes((sound / "aperio.svs").read_bytes().replace(b"|AppMag =", b"|App\x80ag =", 1))
    with Slide(path, mpp=0.5) as slide:
        assert "aperio.MPP" in slide.properties
        assert "aperio.AppMag" not in slide.properties


@pytest.mark.parametrize("kind", KINDS)
def test_a_slide_cut_off_anywhere_is_tiled_or_refused(sound: Path, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    whole = (sound / kind).read_bytes()
    for percent in range(0, 100, 4):
        (folder / f"{percent:02}-{kind}").write_bytes(whole[: len(whole) * percent // 100])
    run = tile(TileConfig(inputs=(str(folder),), out=tmp_path / "out", slide_mpp=0.5, pixels=True))
    assert len(run.slides) == 25
    assert len(run.failed) >= 20
    assert all(record.error.hint for record in run.slides if record.error is not None)


@pytest.mark.parametrize("kind", ["generic.tiff", "leica.scn"])
@pytest.mark.parametrize("said", ["tiles of ", "a tile of "])
def test_tiles_that_no_memory_could_hold_are_refused(sound: Path, tmp_path: Path, kind: str, said: str) -> None:
    """Through the command line, as OpenSlide ends the process that asks for such a tile."""
    path = tmp_path / kind
    data = bytearray((sound / kind).read_bytes())
    with tifffile.TiffFile(sound / kind) as tiff:
        page = tiff.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        width, counts = page.tags["TileWidth"], page.tags["TileByteCounts"]
    if said == "tiles of ":
        data[width.valueoffset : width.valueoffset + 4] = (2**31 - 1).to_bytes(4, "little")
    else:  # two numbers of 16 bits become one
        assert (counts.dtype, data[counts.offset + 2]) == (3, 3)
        data[counts.offset + 2] = 4
    path.write_bytes(data)
    command = [sys.executable, "-m", "wsiseg", "tile", str(path), "--out", str(tmp_path / "out"), "--slide-mpp", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stderr
    assert f"{kind}: cannot be opened: {said}" in done.stderr


def test_a_file_that_cannot_be_opened_leaves_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "nothing.svs"
    path.write_bytes(b"nothing")
    before = threading.active_count()
    for _ in range(20):
        with pytest.raises(WsisegError):
            Slide(path, mpp=0.5)
    end = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_folder_of_broken_slides_makes_no_traceback(sound: Path, tmp_path: Path) -> None:
    """Through the command line: one record and one line each, exit 1, and not a word from the decoders."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(24):
        kind = KINDS[number % 4]
        noise = bytes((number * 37 + k * 11) % 256 for k in range(6))
        (folder / f"{number}-{kind}").write_bytes(broken((sound / kind).read_bytes(), [(number / 24, noise)], None))
    command = [
        sys.executable,
        "-m",
        "wsiseg",
        "tile",
        str(folder),
        "--out",
        str(tmp_path / "out"),
        "--slide-mpp",
        "0.5",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("[") for line in done.stderr.splitlines()) == 24
