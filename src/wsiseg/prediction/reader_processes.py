"""Reading in processes of their own, for accelerators that compute faster than threads can read.

Threads decode side by side, but hand the interpreter's lock from one to the next several times a tile: 16 of them read
2,500 windows a second where each alone could read that many. A process reads into memory that it shares with this one.
Whatever goes wrong in it, this one reads the same again and knows what to say.
"""

import json
import math
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from queue import Empty, SimpleQueue
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsiseg.run.machine import CORES, cores
from wsiseg.slides.slide import Slide

_FEWEST_CORES = 4
_FOR_THE_REST = 2  # cores that the model and the files need
_OPEN_SLIDES = 3
_LAST_S = 5.0


class _Reader(NamedTuple):
    """A process, and the pipes to and from it."""

    process: "subprocess.Popen[bytes]"
    tasks: IO[bytes]
    answers: IO[bytes]


class ReaderProcesses:
    """Processes that read windows for this one; `count` says how many."""

    def __init__(self, count: int) -> None:
        self._idle: SimpleQueue[_Reader] = SimpleQueue()
        self._files: dict[int, int] = {}  # by the address of the array
        self._all = [_started() for _ in range(count)]
        for reader in self._all:
            threading.Thread(target=self._greet, args=(reader,), daemon=True).start()

    @classmethod
    def for_accelerator(cls) -> "ReaderProcesses | None":
        """Start as many as there are cores to spare.

        Returns:
            None where there are few, where no memory can be shared, and in one of several processes that share the
            cores, as each of these has an interpreter's lock of its own.
        """
        count = cores()
        can_share = hasattr(os, "memfd_create") and CORES not in os.environ
        return cls(count - _FOR_THE_REST) if count >= _FEWEST_CORES and can_share else None

    def __len__(self) -> int:
        return len(self._all)

    def _greet(self, reader: _Reader) -> None:
        """Let a process work once it is ready."""
        if reader.answers.readline():
            self._idle.put(reader)

    def array(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an array that processes can read into."""
        file, size = os.memfd_create("windows"), math.prod(shape)
        os.ftruncate(file, size)
        array = np.frombuffer(mmap.mmap(file, size), np.uint8).reshape(shape)
        self._files[array.ctypes.data] = file
        return array

    def fill(
        self, slide: Slide, corners: Sequence[tuple[float, float]], mpp: float, whole: NDArray[np.uint8], begin: int
    ) -> bool:
        """Let a process read regions as `Slide.fill` does, into `whole`, made by `array`, from its place `begin` on.

        Returns:
            False where no process is at hand, or it could not read them.
        """
        file = self._files.get(whole.ctypes.data)
        if file is None:
            return False
        try:
            reader = self._idle.get_nowait()
        except Empty:
            return False
        memory, part = [f"/proc/{os.getpid()}/fd/{file}", *whole.shape], [begin, begin + len(corners)]
        scale = [mpp / slide.mpp[0], mpp / slide.mpp[1]]
        task = [str(slide.path), slide.longest_read_s], memory, part, corners, scale
        said = b""
        with suppress(OSError):
            reader.tasks.write(json.dumps(task).encode() + b"\n")
            reader.tasks.flush()
            said = reader.answers.readline()
        if said:  # else it is dead
            self._idle.put(reader)
        return said == b"done\n"

    def close(self) -> None:
        """End the processes and free the memory, once no array of theirs is used."""
        for reader in self._all:
            with suppress(OSError):  # a dead one
                reader.tasks.close()
        for reader in self._all:
            try:
                reader.process.wait(_LAST_S)
            except subprocess.TimeoutExpired:
                reader.process.kill()
                reader.process.wait()
            reader.answers.close()
        for file in self._files.values():
            os.close(file)
        self._files.clear()


def _started() -> _Reader:
    """Start a process; in a session of its own it gets no Ctrl-C, and it ends when nobody can write to it any more."""
    pipe, command = subprocess.PIPE, [sys.executable, "-m", __name__]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True)
    assert process.stdin is not None  # noqa: S101  a pipe, as asked for
    assert process.stdout is not None  # noqa: S101  the same
    return _Reader(process, process.stdin, process.stdout)


def serve() -> None:
    """Read what the lines of standard input ask for."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may be printed there
    slides: dict[str, Slide] = {}
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            (path, longest_s), (file, *shape), (begin, end), corners, scale = json.loads(line)
            if path not in slides:
                while len(slides) >= _OPEN_SLIDES:
                    slides.pop(next(iter(slides))).close()
                slides[path] = Slide(path, mpp=1.0, longest_read_s=longest_s)  # the scale comes with the task
            slides[path].fill_scaled(corners, _shared(file, *shape)[begin:end], tuple(scale))
            said = "done"
        except Exception:  # noqa: BLE001  who asked reads it again, and then hears why
            said = "failed"
        print(said, file=answers, flush=True)


@cache
def _shared(path: str, *shape: int) -> NDArray[np.uint8]:
    """Open the memory behind an array of the process that asks."""
    with open(path, "r+b") as file:  # noqa: PTH123  no path of a file system
        return np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8).reshape(shape)


if __name__ == "__main__":
    serve()
