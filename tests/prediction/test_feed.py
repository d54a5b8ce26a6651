"""Windows on their way to a model: each slide gets its own values, in order, whatever is read first or fails."""

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from making.machines import with_memory
from making.waiting import LONGEST_S, wait_until
from wsiseg.mathematics.grid import Grid
from wsiseg.model_file.answer import Answer
from wsiseg.prediction.feed import Feed
from wsiseg.prediction.inference import Asking, Sums
from wsiseg.prediction.windows import Plan
from wsiseg.run.errors import ModelFileError, SlideError, StalledError
from wsiseg.run.machine import CORES, cores
from wsiseg.slides.slide import Slide

SIDE = 8


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read by two threads wherever this runs: many more would have read everything before anything is known."""
    monkeypatch.setenv(CORES, "2")


@dataclass
class Marked:
    """A slide whose every window holds the slide's number, and the window's column in two bytes."""

    number: int
    torn: frozenset[int] = frozenset()
    hangs_at: int = 10**9
    mpp: tuple[float, float] = (0.5, 0.5)

    def fill(self, corners: list[tuple[float, float]], _mpp: float, out: NDArray[np.uint8]) -> None:
        for (x, _), image in zip(corners, out, strict=True):
            column = round(x / SIDE)
            if column >= self.hangs_at:
                raise StalledError("it hangs")
            if column in self.torn:
                raise SlideError("torn")
            image[:] = self.number, column >> 8, column & 255


@dataclass
class Reading:
    """A model that says what is written in the images; remembers how many it was given at once."""

    asked: list[int] = field(default_factory=list)
    breaks_at: int = 10**9

    def answer(self, tiles: NDArray[np.uint8]) -> Answer:
        self.asked.append(len(tiles))
        if len(self.asked) > self.breaks_at:
            raise ModelFileError("it broke")
        value = tiles[:, 0, 0].astype(np.float32) @ np.array([10_000, 256, 1], np.float32)
        return Answer(value)

    answer_map = answer


@dataclass
class Row:
    """A slide of one row of tiles that a model is asked about."""

    askings: list[Asking]


def probabilities(asking: Asking) -> NDArray[np.float32]:
    return asking.sums.answer(asking.plan).probabilities


def row(model: Reading, slide: Marked, count: int, *, batch: int = 4, runs_on: bool = False, done: int = 0) -> Row:
    width = max(1, count)
    grid = Grid((width * SIDE, SIDE), (0.5, 0.5), SIDE, SIDE, 0.5)
    windows = tuple((0, column, 1, 1) for column in range(count))
    plan = Plan(grid, np.ones((1, width), np.bool_), windows, is_dense=False, batch=batch, runs_on=runs_on)
    sums = Sums.empty((1, width))
    sums.done = done
    sums.total[0, 0, :done] = sums.weight[0, :done] = 1
    return Row([Asking(cast("Slide", slide), plan, model, sums)])


def expected(number: int, count: int) -> list[float]:
    return [10_000 * number + column for column in range(count)]


@settings(max_examples=40)
@given(st.lists(st.integers(0, 70), max_size=8), st.integers(1, 40), st.booleans(), st.booleans())
def test_every_slide_gets_its_own_values(counts: list[int], batch: int, runs_on: bool, waits: bool) -> None:  # noqa: FBT001  parameters of the test
    model = Reading()
    rows = [row(model, Marked(number), count, batch=batch, runs_on=runs_on) for number, count in enumerate(counts)]

    def works() -> Iterator[Row | None]:
        for one in rows:
            yield one
            if waits:
                yield None

    found = list(Feed(2 if runs_on else 1).run(works()))
    assert found == rows, "in order"
    for number, (one, count) in enumerate(zip(found, counts, strict=True)):
        assert probabilities(one.askings[0])[0, :count].tolist() == expected(number, count)
    assert set(model.asked) <= ({batch} if runs_on else set(range(1, batch + 1)))
    if runs_on and not waits:
        assert len(model.asked) == -(-sum(counts) // batch), "batches run on from slide to slide"


@pytest.mark.parametrize(("batches", "is_ahead"), [(1000, True), (1, False)])
def test_reading_ahead_fits_into_memory(monkeypatch: pytest.MonkeyPatch, batches: int, *, is_ahead: bool) -> None:
    @dataclass
    class Watched(Marked):
        held: list[int] = field(default_factory=list)

        def fill(self, corners: list[tuple[float, float]], mpp: float, out: NDArray[np.uint8]) -> None:
            if is_ahead and not self.held:
                wait_until(lambda: len(feed._ahead) > 1)
            self.held.append(len(feed._ahead))
            super().fill(corners, mpp, out)

    with_memory(monkeypatch, batches * 16 * 4 * SIDE**2 * 3)
    model, slide, feed = Reading(), Watched(3), Feed()
    (found,) = feed.run(iter([row(model, slide, 40)]))
    assert probabilities(found.askings[0])[0].tolist() == expected(3, 40)
    assert (max(slide.held) > 1) is is_ahead


def test_an_interrupted_slide_goes_on_where_it_stopped() -> None:
    model = Reading()
    (found,) = Feed().run(iter([row(model, Marked(3), 10, done=6)]))
    assert probabilities(found.askings[0])[0].tolist() == [1] * 6 + expected(3, 10)[6:]
    assert sum(model.asked) == 4


@pytest.mark.parametrize("runs_on", [False, True])
def test_what_cannot_be_read_is_not_known_and_what_hangs_fails_alone(runs_on: bool) -> None:  # noqa: FBT001  a parameter
    slides = [Marked(0), Marked(1, torn=frozenset([0, 5])), Marked(2, hangs_at=6), Marked(3)]
    found = list(Feed().run(iter([row(Reading(), slide, 9, runs_on=runs_on) for slide in slides])))
    assert [type(one.askings[0].failure) for one in found] == [type(None), type(None), StalledError, type(None)]
    for number in (0, 3):
        assert probabilities(found[number].askings[0])[0].tolist() == expected(number, 9)
    torn = [np.nan if column in {0, 5} else value for column, value in enumerate(expected(1, 9))]
    np.testing.assert_array_equal(probabilities(found[1].askings[0])[0], torn)


def test_a_model_that_breaks_fails_the_slides_that_it_was_asked_about() -> None:
    model = Reading(breaks_at=2)
    found = list(Feed().run(iter([row(model, Marked(number), 8) for number in range(2)])))
    assert [type(one.askings[0].failure) for one in found] == [type(None), ModelFileError]


def test_an_answer_does_not_count_that_came_while_memory_ended() -> None:
    """As a convolution on CUDA may compute it by its plan for another size, and say nothing."""
    began, calls = threading.Event(), itertools.count()

    class Spoiled(Reading):
        def answer(self, tiles: NDArray[np.uint8]) -> Answer:
            call = next(calls)
            if call == 0:
                assert began.wait(LONGEST_S)
                raise MemoryError
            if call == 1:
                began.set()
                wait_until(lambda: feed._room._too_much)
                return Answer(np.full(len(tiles), -1, np.float32))
            return super().answer(tiles)

    model, feed = Spoiled(), Feed(2)
    (found,) = feed.run(iter([row(model, Marked(3), 16, runs_on=True)]))
    assert probabilities(found.askings[0])[0].tolist() == expected(3, 16)
    assert model.asked == [2] * 8


def test_no_more_is_read_ahead_than_allowed() -> None:
    """A counting reader: windows that are read and not yet asked about."""
    lock, ahead, most = threading.Lock(), 0, 0
    batches = cores() + 1 + 2 + 1  # what is read, what is at hand, and one that was begun while there was room

    class Counted(Marked):
        def fill(self, corners: list[tuple[float, float]], mpp: float, out: NDArray[np.uint8]) -> None:
            nonlocal ahead, most
            super().fill(corners, mpp, out)
            with lock:
                ahead += len(out)
                most = max(most, ahead)

    class Slow(Reading):
        def answer(self, tiles: NDArray[np.uint8]) -> Answer:
            nonlocal ahead
            wait_until(lambda: most >= 4 * batches // 2)
            time.sleep(0.003)
            with lock:
                ahead -= len(tiles)
            return super().answer(tiles)

    model = Slow()
    found = list(Feed().run(iter([row(model, Counted(number), 100) for number in range(3)])))
    assert [probabilities(one.askings[0])[0].tolist() for one in found] == [expected(k, 100) for k in range(3)]
    assert most <= 4 * batches


def test_the_next_slide_is_read_while_one_is_computed() -> None:
    is_read = threading.Event()

    class Next(Marked):
        def fill(self, corners: list[tuple[float, float]], mpp: float, out: NDArray[np.uint8]) -> None:
            super().fill(corners, mpp, out)
            is_read.set()

    class Patient(Reading):
        def answer(self, tiles: NDArray[np.uint8]) -> Answer:
            assert is_read.wait(LONGEST_S), "nobody reads the next slide"
            return super().answer(tiles)

    rows = [row(Patient(), Marked(0), 4), row(Reading(), Next(1), 4)]
    assert [one.askings[0].failure for one in Feed().run(iter(rows))] == [None, None]


@pytest.mark.parametrize("counts", [[0, 3], [300]])
def test_what_writing_needs_is_loaded_once_the_first_tiles_are_told_of(counts: list[int]) -> None:
    model, loaded = Reading(), []
    rows = [row(model, Marked(number), count) for number, count in enumerate(counts)]
    for _ in Feed(meanwhile=lambda: loaded.append(len(model.asked))).run(iter(rows)):
        assert len(loaded) == 1
    assert loaded[0] <= cores() + 4


def test_ctrl_c_ends_it_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Feed, "_has_room", lambda _feed: True)

    class Slow(Marked):
        def fill(self, corners: list[tuple[float, float]], mpp: float, out: NDArray[np.uint8]) -> None:
            time.sleep(0.2)
            super().fill(corners, mpp, out)

    rows = [row(Reading(), Slow(0), 4000)]

    def interrupted(_asking: Asking, _tiles: int, _waited: float) -> None:
        raise KeyboardInterrupt

    rows[0].askings[0].after = interrupted
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(Feed().run(iter(rows)))
    assert time.monotonic() - began < 15  # 100 if two threads read all
