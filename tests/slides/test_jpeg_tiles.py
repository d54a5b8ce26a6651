"""JPEG tiles decoded without OpenSlide: the same pixels, each tile once, and OpenSlide where anything is odd."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from openslide import OpenSlide

from making.machines import with_memory
from making.slides import write_slide
from making.waiting import LONGEST_S
from wsiseg.run.errors import SlideError
from wsiseg.run.machine import CORES
from wsiseg.slides import jpeg_tiles
from wsiseg.slides.jpeg_tiles import Cutout
from wsiseg.slides.slide import Slide
from wsiseg.slides.slide_file import SlideFile

MakeSlide = Callable[..., Path]
SIZE = (700, 500)
LEVELS = ((350, 250), (175, 123))


def noise(width: int = SIZE[0], height: int = SIZE[1]) -> NDArray[np.uint8]:
    squares = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return squares.repeat(4, 0).repeat(4, 1)[:height, :width]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("slides") / "a.tiff"
    return write_slide(target, noise(), levels=LEVELS, compression="jpeg", tile=64)


def by_openslide(path: Path, corner: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read a region over white."""
    with OpenSlide(path) as slide:
        region = np.asarray(slide.read_region(corner, level, size))
    return np.where(region[..., 3:] == 255, region[..., :3], 255).astype(np.uint8)


@settings(max_examples=60)
@given(
    level=st.sampled_from([0, 1]),
    corner=st.tuples(st.integers(-40, 720), st.integers(-40, 520)),
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
)
def test_regions_are_those_of_openslide(path: Path, level: int, corner: tuple[int, int], size: tuple[int, int]) -> None:
    at = (corner[0] // 2 * 2, corner[1] // 2 * 2)  # a whole pixel of either level
    file = SlideFile(path)
    assert file._jpeg_tiles(level) is not None
    np.testing.assert_array_equal(file.read(at, level, size), by_openslide(path, at, level, size))
    file.close()


def test_a_real_slide_has_the_pixels_that_openslide_shows(data: Path) -> None:
    path = data / "slides" / "CMU-1-Small-Region.svs"  # its tiles are RGB and share tables
    file = SlideFile(path)
    assert file._jpeg_tiles(0) is not None
    for corner in ((0, 0), (1100, 1400), (2000, 2800)):
        np.testing.assert_array_equal(file.read(corner, 0, (300, 300)), by_openslide(path, corner, 0, (300, 300)))
    file.close()


def test_many_regions_at_once_are_each_alone(path: Path) -> None:
    corners = [(float(x), float(y)) for x in range(0, 600, 90) for y in range(0, 400, 110)]
    for mpp in (0.5, 0.83, 1.0, 6.0):
        out = np.empty((len(corners), 40, 50, 3), np.uint8)
        with Slide(path) as slide, Slide(path) as other:
            slide.fill(corners, mpp, out)
            for corner, image in zip(corners, out, strict=True):
                np.testing.assert_array_equal(image, other.read(corner[0], corner[1], (50, 40), mpp))


def test_a_tile_is_decoded_once_whoever_needs_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, seen, lock = jpeg_tiles.decoder(), Counter[bytes](), threading.Lock()

    def counted(data: bytes) -> NDArray[np.uint8]:
        with lock:
            seen[data] += 1
        return decode(data)

    monkeypatch.setattr(jpeg_tiles, "decoder", lambda: counted)
    with Slide(path) as slide, ThreadPoolExecutor(8) as pool:
        corners = [(x, y) for y in range(0, 440, 60) for x in range(0, 640, 60)]
        list(pool.map(lambda at: slide.read(at[0], at[1], (60, 60), 0.5), corners * 2))
    assert len(seen) == 11 * 8
    assert set(seen.values()) == {1}


def hold_five(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let five tiles be kept, on as many cores as there are."""
    monkeypatch.setenv(CORES, "2")
    monkeypatch.setattr(jpeg_tiles, "KEPT_BYTES", 5 * 64 * 64 * 3)


@pytest.mark.parametrize("is_small", [True, False])
def test_no_more_is_kept_than_allowed(path: Path, monkeypatch: pytest.MonkeyPatch, *, is_small: bool) -> None:
    if is_small:
        with_memory(monkeypatch, 16 * 5 * 64 * 64 * 3)
    else:
        hold_five(monkeypatch)
    with Slide(path) as slide:
        whole = slide.read(0, 0, SIZE, 0.5)
        for x in range(0, 600, 50):
            np.testing.assert_array_equal(slide.read(x, 200, (50, 50), 0.5), whole[200:250, x : x + 50])
        tiles = slide._file._jpeg_tiles(0)
    assert tiles is not None
    assert len(tiles._kept) <= 5


def test_a_tile_that_made_room_while_it_was_decoded_is_given_and_not_kept(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold_five(monkeypatch)
    file, decode, begun, go = SlideFile(path), jpeg_tiles.decoder(), threading.Event(), threading.Event()
    tiles = file._jpeg_tiles(0)
    assert tiles is not None
    first, other = np.empty((2, 64, 64, 3), np.uint8)
    slow = threading.Thread(target=tiles.fill, args=([Cutout(0, 0, first)],))

    def lingering(data: bytes) -> NDArray[np.uint8]:
        if threading.current_thread() is slow:
            begun.set()
            assert go.wait(LONGEST_S)
        return decode(data)

    monkeypatch.setattr(jpeg_tiles, "decoder", lambda: lingering)
    slow.start()
    assert begun.wait(LONGEST_S)
    for column in range(1, 7):
        tiles.fill([Cutout(64 * column, 0, other)])
    go.set()
    slow.join()
    np.testing.assert_array_equal(first, by_openslide(path, (0, 0), 0, (64, 64)))
    assert sorted(tiles._kept) == [2, 3, 4, 5, 6]
    file.close()


@pytest.mark.parametrize("by_pillow", [False, True])
def test_both_decoders_give_the_same(path: Path, by_pillow: bool) -> None:  # noqa: FBT001  a parameter of the test
    with Slide(path) as slide:
        tiles = slide._file._jpeg_tiles(0)
        assert tiles is not None
        _, tile = next(tiles._decoded([0]))
        page = tiles._page
        data = path.read_bytes()[page.begins[0] : page.begins[0] + page.lengths[0]]
    decode = jpeg_tiles._by_pillow if by_pillow else jpeg_tiles.decoder()
    np.testing.assert_array_equal(decode(tiles._page.head + data[2:]), tile)
    into = np.zeros_like(tile)
    assert decode(tiles._page.head + data[2:], buffer=into).shape == tile.shape
    np.testing.assert_array_equal(into, tile)


def test_a_broken_tile_is_an_error_and_the_others_are_read(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tiff", noise(), compression="jpeg", tile=64)
    with Slide(path) as slide:
        whole = slide.read(0, 0, SIZE, 0.5)
    with tifffile.TiffFile(path) as tiff:
        begin = tiff.pages[0].dataoffsets[0]
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(bytes(200))
    with Slide(path) as slide:
        with pytest.raises(SlideError):
            slide.read(10, 10, (20, 20), 0.5)
        np.testing.assert_array_equal(slide.read(100, 100, (200, 200), 0.5), whole[100:300, 100:300])


def test_tiles_that_do_not_show_what_openslide_shows_are_left_to_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = jpeg_tiles.decoder()
    monkeypatch.setattr(jpeg_tiles, "decoder", lambda: lambda data: decode(data)[..., ::-1])
    with Slide(path) as slide:
        np.testing.assert_array_equal(slide.read(64, 64, (64, 64), 0.5), by_openslide(path, (64, 64), 0, (64, 64)))
        assert slide._file._jpeg_tiles(0) is None


def test_a_slide_without_jpeg_tiles_is_openslides(make_slide: MakeSlide) -> None:
    with Slide(make_slide("a.tiff", noise())) as slide:
        assert slide._file._jpeg_tiles(0) is None
        np.testing.assert_array_equal(slide.read(5, 7, (100, 50), 0.5), noise()[7:57, 5:105])
