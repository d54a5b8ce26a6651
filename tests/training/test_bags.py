"""Bags, the order of slides, and what is refused."""

import csv
import math
import os
import shutil
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from making.machines import with_memory
from making.tiled import TILE_PX
from making.waiting import wait_until
from wsiseg.mathematics.mil import neighbourhood
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.reader_processes import ReaderProcesses
from wsiseg.training import bags
from wsiseg.training.bags import TileSource, Visit, ahead, drawn, order_of, place_among, visits_of
from wsiseg.training.slides import Indices, LabelledSlide, labelled_slides


@pytest.fixture
def copied(cohort: Path, tmp_path: Path) -> Path:
    """Give a copy of the tile stores that a test may damage; its slides stay where they are."""
    shutil.copytree(cohort.parent, tmp_path / "tiles")
    rewrite(tmp_path / "tiles" / "cohort.csv", path=lambda row: str((cohort.parent / row["path"]).resolve()))
    return tmp_path / "tiles" / "cohort.csv"


def rewrite(cohort: Path, **columns: object) -> None:
    with cohort.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update({name: change(row) for name, change in columns.items()})  # type: ignore[operator]  # functions
    with cohort.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


class Numbers:
    """Gives the numbers of tiles in place of tiles."""

    def draw(self, _slide: LabelledSlide, indices: Indices, _random: np.random.Generator) -> torch.Tensor:
        return torch.from_numpy(indices)

    def read(self, slide: LabelledSlide, indices: Indices) -> torch.Tensor:
        return self.draw(slide, indices, np.random.default_rng())

    def bytes_of(self, _slide: LabelledSlide) -> int:
        return 8


def slides(count: int) -> list[LabelledSlide]:
    there = Path()
    return [LabelledSlide(str(k), int(k % 3 == 0), "train", "", there, there, 10, 64, 0.5, "") for k in range(count)]


def test_slides_carry_labels_splits_and_tiles(cohort: Path) -> None:
    found = labelled_slides(cohort)
    assert Counter((slide.split, slide.label) for slide in found) == {
        ("train", 0): 2, ("train", 1): 2, ("val", 0): 1, ("val", 1): 1, ("test", 0): 1, ("test", 1): 1,
    }  # fmt: skip
    assert {(slide.tile_px, slide.mpp) for slide in found} == {(TILE_PX, 0.5)}
    assert len({slide.fingerprint for slide in found}) == len(found)


def test_slides_without_label_stay_out_and_without_any_split_all_train(copied: Path) -> None:
    rewrite(copied, split=lambda _: "", label=lambda row: "" if row["slide"] == "slide-3" else row["label"])
    found = labelled_slides(copied)
    assert {slide.split for slide in found} == {"train"}
    assert "slide-3" not in {slide.slide for slide in found}


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"label": "0"}, "none of its 4 training slides with tiles holds tumour; train needs slides with label 1"),
        ({"label": "", "tumor_max": "20"}, "none of its 4 training slides with tiles holds tumour"),
        ({"label": "1"}, "all hold tumour, and of none is it known that some of it is normal; add slides with label 0"),
        ({"label": "1", "tumor_percent": "92"}, "all hold tumour"),
        ({"label": "", "tumor_min": "30"}, "all hold tumour"),
    ],
)
def test_one_class_is_refused(copied: Path, columns: dict[str, str], sentence: str) -> None:
    rewrite(copied, **{name: lambda _, value=value: value for name, value in columns.items()})
    with pytest.raises(UsageError, match=sentence):
        labelled_slides(copied, percent_error=10)


def test_percentages_tell_tumor_from_normal_without_normal_slides_or_labels(cohort: Path, copied: Path) -> None:
    rewrite(copied, label=lambda _: "", tumor_percent=lambda row: {"slide-0": "40", "slide-1": "95"}.get(row["slide"]))
    assert [(slide.slide, slide.label, slide.stated) for slide in labelled_slides(copied, percent_error=10)] == [
        ("slide-0", 1, (0.3, 0.5)), ("slide-1", 1, (0.85, 1.0)),
    ]  # fmt: skip
    rewrite(copied, tumor_max=lambda row: {"slide-1": "96", "slide-2": "20"}.get(row["slide"]))
    assert [(slide.label, slide.stated) for slide in labelled_slides(copied)] == [
        (1, (0.4, 0.4)), (1, (0.95, 0.96)), (None, (None, 0.2)),
    ]  # fmt: skip
    assert all(slide.needs_normal for slide in labelled_slides(copied))
    assert [slide.target for slide in labelled_slides(copied)[:2]] == pytest.approx([-0.110, 1.465], abs=0.001)
    assert not any(slide.needs_normal or slide.target for slide in labelled_slides(cohort))


def test_missing_stores_are_named(copied: Path) -> None:
    shutil.rmtree(copied.parent / "slide-2.tiles.zarr")
    with pytest.raises(UsageError, match="no tile store beside it for slide-2; run wsiseg tile again"):
        labelled_slides(copied)


def test_stores_of_different_tiles_are_refused(copied: Path) -> None:
    group = zarr.open_group(str(copied.parent / "slide-1.tiles.zarr"), mode="r+")
    own: Any = group.attrs["wsiseg"]
    group.attrs["wsiseg"] = {**own, "mpp": 1.0}
    with pytest.raises(UsageError, match=r"its tile stores differ: 64 px of 0.5 um and 64 px of 1 um"):
        labelled_slides(copied)


def test_a_slide_without_tiles_is_left_out_and_named(copied: Path) -> None:
    store = copied.parent / "slide-1.tiles.zarr"
    group = zarr.open_group(str(store), mode="r+")
    del group["corners"]
    group.create_array("corners", data=np.empty((0, 2), np.int32))
    said: list[str] = []
    found = labelled_slides(copied, said.append)
    assert "slide-1" not in {slide.slide for slide in found}
    assert said == ["left out, having no tiles: slide-1"]


def test_a_bag_knows_how_near_its_tiles_are_where_shares_draw_them(cohort: Path) -> None:
    slide = labelled_slides(cohort)[0]
    assert drawn(Visit(slide, (0, 1)), TileSource(), 9).near is None
    drawn_to = replace(slide, target=None, others=(replace(slide, target=0.5),))
    bag = drawn(Visit(drawn_to, (0, 1)), Numbers(), 9)
    corners = slide.open().tiles.corners[bag.tiles] / (TILE_PX * slide.mpp / slide.open().tiles.slide.mpp[0])
    assert bag.near is not None
    assert torch.allclose(bag.near, neighbourhood(torch.from_numpy(corners).float().round()), atol=1e-6)
    truth = {slide.slide: np.zeros((slide.tiles, 2), np.int8)}
    assert drawn(Visit(drawn_to, (0, 1)), TileSource(), 9, truth).near is None


def test_a_bag_holds_distinct_tiles_and_all_where_there_are_fewer(cohort: Path) -> None:
    slide = labelled_slides(cohort)[1]
    truth = {slide.slide: np.arange(slide.tiles).astype(np.int8)}
    bag = drawn(Visit(slide, (0, 1)), TileSource(), 20, truth)
    assert bag.tiles.shape == (20, TILE_PX, TILE_PX, 3)
    assert bag.labels is not None
    assert len(set(bag.labels.tolist())) == 20
    assert len(drawn(Visit(slide, (0, 1)), TileSource(), 10_000).tiles) == slide.tiles


@pytest.mark.parametrize(
    ("tiles", "seed", "expected"),
    [
        (300, (0, 3, 7), [3, 43, 88, 105, 124, 127, 179, 196, 213, 223, 225, 285]),
        (40, (5, 0, 1), [9, 12, 14, 17, 22, 23, 25, 28, 33, 34, 36, 38]),
    ],
)
def test_bags_hold_the_tiles_that_they_held_in_version_0_1(
    tiles: int, seed: tuple[int, ...], expected: list[int]
) -> None:
    slide = replace(slides(1)[0], tiles=tiles)
    assert drawn(Visit(slide, seed), Numbers(), 12).tiles.tolist() == expected


def test_a_bag_follows_from_its_seed(cohort: Path) -> None:
    slide = labelled_slides(cohort)[1]
    first, again, other = (drawn(Visit(slide, seed), TileSource(), 8) for seed in ((0, 1), (0, 1), (0, 2)))
    assert first.tiles.equal(again.tiles)
    assert not first.tiles.equal(other.tiles)


def test_a_crop_has_its_tile_in_the_middle(cohort: Path) -> None:
    slide = labelled_slides(cohort)[1]
    indices = np.arange(0, slide.tiles, 7)
    tiles = TileSource().read(slide, indices).numpy()
    crops = TileSource(context_px=2 * TILE_PX).read(slide, indices).numpy()
    middle = crops[:, TILE_PX // 2 : -TILE_PX // 2, TILE_PX // 2 : -TILE_PX // 2]
    # The store's tiles are JPEG, the crops come from the slide.
    assert np.abs(middle.astype(int) - tiles.astype(int)).mean() < 3


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux's files in memory")
def test_processes_read_the_same_tiles_and_leave_what_is_wrong_to_this_one(cohort: Path, copied: Path) -> None:
    with ReaderProcesses(1) as readers:
        for context in (None, 2 * TILE_PX):
            threads = TileSource(stain=0.1, context_px=context)
            processes = replace(threads, readers=readers)
            for slide in labelled_slides(cohort)[:3]:
                indices = np.arange(0, slide.tiles, 5)
                assert processes.read(slide, indices).equal(threads.read(slide, indices))
                ours, theirs = (drawn(Visit(slide, (0, 1)), one, 8).tiles for one in (threads, processes))
                assert ours.equal(theirs)
        slide = labelled_slides(copied)[0]
        shutil.rmtree(slide.store)
        with pytest.raises(WsisegError, match=f"{slide.slide}.tiles.zarr: not a tile store"):
            processes.read(slide, indices)


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4))
def test_every_slide_is_visited_once_by_any_number_of_processes(count: int, accumulate: int, processes: int) -> None:
    shares = [visits_of(slides(count), (0,), accumulate, rank, processes) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1
    real = [visit.slide.slide for share in shares for visit in share if visit.weight > 0]
    assert sorted(real, key=int) == [str(k) for k in range(count)]
    step = [[visit.ends_step for visit in share] for share in shares]
    assert all(ends == step[0] for ends in step)
    assert step[0][-1]
    total = sum(visit.weight for share in shares for visit in share)
    assert total == pytest.approx(processes * sum(step[0]))


@given(st.integers(1, 40), st.integers(1, 4))
def test_steps_of_processes_are_those_of_accumulation(count: int, processes: int) -> None:
    alone = visits_of(slides(count), (0,), processes, 0, 1)
    shares = [visits_of(slides(count), (0,), 1, rank, processes) for rank in range(processes)]
    together = [visit for step in zip(*shares, strict=True) for visit in step if visit.weight > 0]
    assert [(visit.slide, visit.seed) for visit in together] == [(visit.slide, visit.seed) for visit in alone]
    weights = zip(together, alone, strict=True)
    assert all(one.weight == pytest.approx(other.weight * processes) for one, other in weights)


@given(
    count=st.integers(1, 30),
    accumulate=st.integers(1, 4),
    before=st.integers(1, 5),
    processes=st.integers(1, 5),
    steps=st.integers(0, 30),
)
def test_other_processes_go_on_where_an_epoch_was_left(
    count: int, accumulate: int, before: int, processes: int, steps: int
) -> None:
    """Of the slides that were seen only those of a step that is not complete come again."""
    order = slides(count)
    theirs = [visits_of(order, (0,), accumulate, rank, before) for rank in range(before)]
    ends = [0, *(place + 1 for place, visit in enumerate(theirs[0]) if visit.ends_step)]
    place = ends[min(steps, len(ends) - 1)]
    seen = {visit.slide.slide for visits in theirs for visit in visits[:place] if visit.weight}
    mine = [visits_of(order, (0,), accumulate, rank, processes) for rank in range(processes)]
    again = place_among(place, before, count, accumulate, processes)
    left = [visit.slide.slide for visits in mine for visit in visits[again:] if visit.weight]
    assert again in [0, *(number + 1 for number, visit in enumerate(mine[0]) if visit.ends_step)]
    assert {slide.slide for slide in order} - seen <= set(left)
    assert len(seen & set(left)) < accumulate * processes
    assert not left or len(seen) < count


def test_an_epoch_is_shuffled_by_its_seed() -> None:
    first, again, other = (order_of(slides(20), (0, epoch)) for epoch in (1, 1, 2))
    assert first == again
    assert first != other
    assert {slide.slide for slide in first} == {str(k) for k in range(20)}


def test_an_epoch_has_as_many_tiles_as_the_slides_where_each_has_a_label() -> None:
    given_slides = slides(3)
    bag = max(1, given_slides[0].tiles // 3)
    found = Counter(slide.slide for slide in order_of(given_slides, (0,), bag=bag))
    assert found == {slide.slide: math.ceil(slide.tiles / bag) for slide in given_slides}
    assert sum(found.values()) > 3


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), min_size=1, max_size=30), st.integers(0, 9))
def test_pairs_hold_both_labels_of_a_site_and_every_slide_comes(kinds: list[tuple[str, bool]], seed: int) -> None:
    every = slides(len(kinds))
    given_slides = [
        replace(one, site=site, label=int(is_tumor)) for one, (site, is_tumor) in zip(every, kinds, strict=True)
    ]
    found = order_of(given_slides, (seed,), pairs=True)
    seen, count = Counter(slide.slide for slide in found), Counter(kinds)
    assert seen.keys() == {slide.slide for slide in given_slides}
    assert Counter((slide.site, bool(slide.label)) for slide in found) == {
        (site, is_tumor): max(count[site, True], count[site, False]) for site, is_tumor in count
    }
    for kind in count:  # the rarer ones come again, all of them about equally often
        times = [seen[slide.slide] for slide in given_slides if (slide.site, bool(slide.label)) == kind]
        assert max(times) - min(times) <= 1
    if all(count[site, not is_tumor] for site, is_tumor in count):
        for one, other in zip(found[::2], found[1::2], strict=True):
            assert (one.site, one.label) != (other.site, other.label)
            assert one.site == other.site


def test_work_ahead_keeps_order_and_raises_where_it_failed() -> None:
    def work(k: int) -> int:
        if k == 3:
            raise UsageError("three")
        time.sleep(0.01 * (4 - k))
        return k

    results = ahead([partial(work, k) for k in range(6)])
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UsageError, match="three"):
        next(results)


@pytest.mark.parametrize(("gigabytes", "expected"), [(64, 5), (1, 2)])
def test_work_ahead_fits_into_memory(monkeypatch: pytest.MonkeyPatch, gigabytes: int, expected: int) -> None:
    with_memory(monkeypatch, gigabytes * 2**30)
    monkeypatch.setattr(bags, "cores", lambda: 8)
    begun: list[int] = []
    results = ahead([partial(begun.append, k) for k in range(20)], 100_000_000)
    next(results)
    wait_until(lambda: len(begun) >= expected)
    results.close()
    assert len(begun) <= expected + 1, "one for that which was taken"


def test_a_slide_that_changed_has_another_fingerprint(cohort: Path, copied: Path) -> None:
    before = {slide.slide: slide.fingerprint for slide in labelled_slides(cohort)}
    group = zarr.open_group(str(copied.parent / "slide-0.tiles.zarr"), mode="r+")
    own: Any = group.attrs["wsiseg"]
    group.attrs["wsiseg"] = {**own, "slide": {**own["slide"], "fingerprint": "other"}}
    changed = {slide.slide for slide in labelled_slides(copied) if slide.fingerprint != before[slide.slide]}
    assert changed == {"slide-0"}
    assert replace(labelled_slides(cohort)[0]) == labelled_slides(cohort)[0]
