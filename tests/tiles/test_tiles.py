import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsiseg.run.errors import WsisegError
from wsiseg.slides.slide import Slide
from wsiseg.tiles import packed
from wsiseg.tiles.packed import PackedTiles, encoded, save_packed
from wsiseg.tiles.store import Tiles, TileStore, fill_tiles, store_path

MakeSlide = Callable[..., Path]


def tile_pictures(count: int, side: int = 32) -> list[NDArray[np.uint8]]:
    """Give tiles that tell their number: a different grey for each, with a darker corner."""
    tiles = []
    for number in range(count):
        tile = np.full((side, side, 3), 40 + number % 200, np.uint8)
        tile[: side // 2, : side // 2] //= 2
        tiles.append(tile)
    return tiles


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks so small that most tiles lie in two of them."""
    monkeypatch.setattr(packed, "_CHUNK_BYTES", 1000)


@pytest.mark.usefixtures("small_chunks")
def test_packed_tiles_come_back_in_any_order(tmp_path: Path) -> None:
    pictures = tile_pictures(60)
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    save_packed(group, (encoded(tile) for tile in pictures))
    tiles = PackedTiles(tmp_path / "a.zarr", group, 32)
    orders: tuple[Sequence[int] | NDArray[np.integer], ...] = (
        [59, 0, 7, 7, 8, 9, 3],
        list(range(60)),
        [],
        np.arange(59, -1, -1),
        [5],
    )
    for order in orders:
        read = tiles.read(order)
        assert read.shape == (len(order), 32, 32, 3)
        for tile, number in zip(read, order, strict=True):
            assert np.abs(tile.astype(int) - pictures[number]).mean() < 2


def test_packed_tiles_are_plain_zarr(tmp_path: Path) -> None:
    """Another program can read them by the offsets alone."""
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    files = [encoded(tile) for tile in tile_pictures(5)]
    save_packed(group, files)
    pixels, offsets = (
        np.asarray(zarr.open_array(str(tmp_path / "a.zarr" / name), mode="r")[:]) for name in ("pixels", "offsets")
    )
    assert [pixels[begin:end].tobytes() for begin, end in itertools.pairwise(offsets)] == files


@pytest.mark.parametrize("count", [0, 1, 20])
def test_packed_tiles_take_the_room_of_their_files(tmp_path: Path, count: int) -> None:
    """No chunk is padded where all fit into one, so that a store of a small slide is small."""
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    files = [encoded(tile) for tile in tile_pictures(count)]
    save_packed(group, files)
    written = sum(file.stat().st_size for file in (tmp_path / "a.zarr" / "pixels" / "c").rglob("*") if file.is_file())
    assert written == len(b"".join(files))


@pytest.mark.usefixtures("small_chunks")
def test_a_damaged_store_says_which_tile(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    save_packed(group, (encoded(tile) for tile in tile_pictures(20)))
    tiles = PackedTiles(tmp_path / "a.zarr", group, 32)
    chunk = tmp_path / "a.zarr" / "pixels" / "c" / "3"
    with chunk.open("r+b") as file:
        file.write(bytes(1000))
    with pytest.raises(WsisegError, match=r"a\.zarr: tile \d+ is damaged.*tile --pixels --overwrite"):
        tiles.read(range(20))
    chunk.unlink()
    with pytest.raises(WsisegError, match="cannot be read"):
        tiles.read(range(20))


def test_tiles_of_another_size_are_damaged(tmp_path: Path) -> None:
    """They would leave a part of what they are read into as it was."""
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    save_packed(group, (encoded(tile) for tile in tile_pictures(3, side=24)))
    for side in (16, 32):
        with pytest.raises(WsisegError, match="tile 0 is damaged"):
            PackedTiles(tmp_path / "a.zarr", group, side).read([0])


def test_a_store_that_was_made_again_is_opened_again(tmp_path: Path) -> None:
    path, out = tmp_path / "a.zarr", np.empty((2, 32, 32, 3), np.uint8)
    for pictures in (tile_pictures(60), tile_pictures(40)[::-1]):
        save_packed(zarr.create_group(str(path), overwrite=True), (encoded(tile) for tile in pictures))
        fill_tiles(out, str(path), None, [0, 39])
        assert np.abs(out.astype(int) - np.stack([pictures[0], pictures[39]])).mean() < 2


@given(st.lists(st.integers(0, 300), max_size=60))
def test_runs_name_every_place_once_and_follow_each_other(indices: list[int]) -> None:
    runs = packed._runs(np.array(indices, int))
    assert sorted(int(place) for run in runs for place in run) == list(range(len(indices)))
    assert all((np.diff(np.array(indices)[run]) == 1).all() for run in runs)


def made_tiles(slide: Slide, corners: list[tuple[int, int]]) -> Tiles:
    count = len(corners)
    shares = np.linspace(0.5, 1, count, dtype=np.float32)
    return Tiles(slide.facts, np.array(corners, np.int32).reshape(-1, 2), shares, shares, 64, 64, 0.5, 0.1)


def test_a_store_gives_back_what_was_saved(make_slide: MakeSlide, tmp_path: Path) -> None:
    with Slide(make_slide("a.scn", frame=(300, 900, 2000, 3000))) as slide:
        tiles = made_tiles(slide, [(300, 900), (364, 900), (900, 1200)])
    path = store_path(tmp_path, "a")
    tiles.save(zarr.create_group(str(path)))
    stored = TileStore(path).tiles
    assert stored.slide == tiles.slide
    assert (stored.corners == tiles.corners).all()
    assert (stored.tissue_share == tiles.tissue_share).all()
    assert (stored.tile_px, stored.stride_px, stored.mpp, stored.settings) == (64, 64, 0.5, {})
    assert len(TileStore(path)) == 3


def test_without_pixels_tiles_are_read_from_the_slide(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff", mpp=None)
    with Slide(path, mpp=0.3) as slide:
        made_tiles(slide, [(300, 200), (400, 200)]).save(zarr.create_group(str(store_path(tmp_path, "a"))))
        expected = slide.read(400, 200, (64, 64), 0.5)
    with TileStore(store_path(tmp_path, "a"), path) as store:
        assert not store.has_pixels
        assert (store.read([1, 0])[0] == expected).all()
        around = store.read_around([1], 96)[0]
        assert around.shape == (96, 96, 3)
        assert np.abs(around[16:-16, 16:-16].astype(int) - expected).mean() < 6
    with TileStore(store_path(tmp_path, "a")) as store, pytest.raises(WsisegError, match="holds no pixels"):
        store.read([0])


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "other.zarr"))
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "file.zarr").write_text("no")
    for name in ("other", "empty", "file", "missing"):
        with pytest.raises(WsisegError, match=rf"{name}\.zarr: not a tile store.*wsiseg tile"):
            TileStore(tmp_path / f"{name}.zarr")


def test_unreadable_tiles_are_left_out_and_counted(make_slide: MakeSlide) -> None:
    with Slide(make_slide("a.tiff")) as slide:
        tiles = made_tiles(slide, [(0, 0), (64, 0), (128, 0)])
    kept = tiles.only(np.array([True, False, True]))
    assert kept.corners.tolist() == [[0, 0], [128, 0]]
    assert kept.bad_tiles == 1
    assert kept.warnings == ("1 of 3 tissue tiles cannot be read and are left out",)
    assert tiles.only(np.ones(3, bool)).warnings == ()


@pytest.mark.skipif(os.name != "posix", reason="counts open files as Linux lists them")
def test_reading_leaves_no_file_open(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("no /proc here")
    group = zarr.create_group(str(tmp_path / "a.zarr"))
    save_packed(group, (encoded(tile) for tile in tile_pictures(20)))
    tiles = PackedTiles(tmp_path / "a.zarr", group, 32)
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        tiles.read(range(20))
    assert len(list(descriptors.iterdir())) <= before
