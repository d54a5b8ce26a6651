"""Reading in other processes: the same pixels, and this process takes over whatever goes wrong there."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from making.slides import stained_picture
from making.waiting import wait_until
from wsiseg.run.reader_processes import ReaderProcesses
from wsiseg.slides.slide import Slide, fill_from

MakeSlide = Callable[..., Path]
pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux's files in memory")
CORNERS = [(0.0, 0.0), (300.0, 200.0), (550.0, 400.0)]


@pytest.fixture
def processes() -> Iterator[ReaderProcesses]:
    with ReaderProcesses(1) as found:
        yield found


def filled(processes: ReaderProcesses, slide: Slide, mpp: float = 0.5) -> np.ndarray | None:
    """Let the process read into the middle of an array; None where it could not."""
    array = processes.array((5, 60, 60, 3))
    scale = [mpp / one for one in slide.mpp]
    is_done = processes.fill(array[1:4], fill_from, str(slide.path), 5.0, CORNERS, scale)
    assert not array[0].any(), "no other windows are touched"
    assert not array[4].any()
    return array[1:4] if is_done else None


def test_a_process_reads_what_this_one_reads(processes: ReaderProcesses, make_slide: MakeSlide) -> None:
    path = make_slide("a.tiff", stained_picture(800, 600), compression="jpeg")
    with Slide(path) as slide:
        for mpp in (0.5, 0.73, 1.0):
            found = filled(processes, slide, mpp)
            assert found is not None
            for corner, image in zip(CORNERS, found, strict=True):
                np.testing.assert_array_equal(image, slide.read(corner[0], corner[1], (60, 60), mpp))
        with Slide(make_slide("gone.tiff")) as gone:
            gone.path.unlink()
            assert filled(processes, gone) is None, "what cannot be read is left to this process"
        assert filled(processes, slide) is not None
        processes._all[0].process.kill()
        processes._all[0].process.wait()
        assert filled(processes, slide) is None
        assert filled(processes, slide) is None


def shade(out: np.ndarray, value: int) -> None:
    """Fill an array, unless the value is none."""
    out[:] = value


def test_memory_is_used_again_whatever_its_shape(processes: ReaderProcesses) -> None:
    shapes = [(4, 3, 3, 3), (2, 3, 3, 3), (4, 3, 3, 3), (1, 2, 2, 3)]
    for value, shape in enumerate(shapes):
        found = processes.read(shape, np.copy, shade, value)
        assert found.shape == shape
        assert (found == value).all()
    assert len(processes._files) == 1
    with pytest.raises(OverflowError):
        processes.read(shapes[0], np.copy, shade, 256)  # here, once the process failed


def test_arrays_of_all_sizes_share_a_few_files(processes: ReaderProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """As windows of dense maps have: each file that is left open counts, and its memory too."""
    random, made, real = np.random.default_rng(0), list[str](), os.memfd_create

    def counted(name: str) -> int:
        made.append(name)
        return real(name)

    monkeypatch.setattr(os, "memfd_create", counted)
    for _ in range(300):
        shapes = random.integers(1, 40, (3, 2))
        held = [processes.array((4, *map(int, shape), 3)) for shape in shapes]
        for number, (array, shape) in enumerate(zip(held, shapes, strict=True)):
            assert array.shape == (4, *shape, 3)
            array[:] = number
        assert [set(np.unique(array)) for array in held] == [{0}, {1}, {2}], "none shares memory with another"
        for array in held:
            processes.give_back(array)
    assert len(made) <= 3 * 11  # sizes from 12 to 19200 bytes, in powers of two


def test_they_end_with_the_process_that_started_them() -> None:
    code = "from wsiseg.run.reader_processes import ReaderProcesses as R; import os; r = R(1); "
    code += "r._idle.get(); print(r._all[0].process.pid, flush=True); os.kill(os.getpid(), 9)"
    started = os.popen(f"{sys.executable} -c '{code}'")  # noqa: S605  a command of ours
    child = int(started.read())
    started.close()
    wait_until(lambda: has_ended(child))


def has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
