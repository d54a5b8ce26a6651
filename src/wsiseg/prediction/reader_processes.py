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
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.run.machine import CORES, cores
from wsiseg.slides.slide import Slide

_FEWEST_CORES = 4
_FOR_THE_REST = 2  # cores that the model and the files need
_OPEN_SLIDES = 3
_LAST_S = 5.0


class ReaderProcesses:
    """Processes that read windows for this one.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._files: dict[int, int] = {}  # by the address of the array
        command = [sys.executable, "-m", __name__]
        # In sessions of their own they get no Ctrl-C; they end when nobody can write to them any more.
        self._all = [
            subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            for _ in range(count)
        ]
        for process in self._all:
            threading.Thread(target=self._greet, args=(process,), daemon=True).start()

    @classmethod
    def for_accelerator(cls) -> "ReaderProcesses | None":
        """Start as many as there are cores to spare.

        Returns:
            None where there are few, where no memory can be shared, and in one of several processes that share the
            cores, as each of these has an interpreter's lock of its own.
        """
        count = cores()
        is_shared = CORES in os.environ
        can_share = hasattr(os, "memfd_create")
        return cls(count - _FOR_THE_REST) if count >= _FEWEST_CORES and can_share and not is_shared else None

    def __len__(self) -> int:
        return len(self._all)

    def _greet(self, process: "subprocess.Popen[bytes]") -> None:
        """Let a process work once it is ready."""
        if process.stdout is not None and process.stdout.readline():
            self._idle.put(process)

    def array(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an array that processes can read into."""
        file, size = os.memfd_create("windows"), math.prod(shape)
        os.ftruncate(file, size)
        array = np.frombuffer(mmap.mmap(file, size), np.uint8).reshape(shape)
        self._files[array.ctypes.data] = file
        return array

    def fill(
        self, slide: Slide, corners: Sequence[Sequence[float]], mpp: float, whole: NDArray[np.uint8], begin: int
    ) -> bool:
        """Let a process read regions as `Slide.fill` does.

        Args:
            slide: The slide.
            corners: Level-0 x, y of each.
            mpp: Micrometers per pixel.
            whole: uint8[n, height, width, 3], made by `array`.
            begin: Where in it the first region lies.

        Returns:
            False where no process is at hand, or it could not read them.
        """
        file = self._files.get(whole.ctypes.data)
        try:
            process = self._idle.get_nowait() if file is not None else None
        except Empty:
            return False
        if process is None or process.stdin is None or process.stdout is None:
            return False
        task = {
            "slide": [str(slide.path), slide.longest_read_s],
            "file": f"/proc/{os.getpid()}/fd/{file}",
            "shape": whole.shape,
            "begin": begin,
            "corners": [list(corner) for corner in corners],
            "scale": [mpp / slide.mpp[0], mpp / slide.mpp[1]],
        }
        try:
            process.stdin.write(json.dumps(task).encode() + b"\n")
            process.stdin.flush()
            said = process.stdout.readline()
        except OSError:
            said = b""
        if said:  # else it is dead
            self._idle.put(process)
        return said == b"done\n"

    def close(self) -> None:
        """End the processes and free the memory, once no array of theirs is used."""
        for process in self._all:
            if process.stdin is not None:
                with suppress(OSError):  # a dead one
                    process.stdin.close()
        for process in self._all:
            try:
                process.wait(_LAST_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for file in self._files.values():
            os.close(file)
        self._files.clear()


def serve() -> None:
    """Read what the lines of standard input ask for."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may be printed there
    slides: dict[str, Slide] = {}
    arrays: dict[str, NDArray[np.uint8]] = {}
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            _fill(json.loads(line), slides, arrays)
            said = "done"
        except Exception:  # noqa: BLE001  who asked reads it again, and then hears why
            said = "failed"
        print(said, file=answers, flush=True)


def _fill(task: dict[str, Any], slides: dict[str, Slide], arrays: dict[str, NDArray[np.uint8]]) -> None:
    """Carry out a task, keeping slides and arrays open for the next."""
    path, longest_s = task["slide"]
    if path not in slides:
        while len(slides) >= _OPEN_SLIDES:
            slides.pop(next(iter(slides))).close()
        slides[path] = Slide(path, mpp=1.0, longest_read_s=longest_s)  # the scale comes with the task
    if task["file"] not in arrays:
        with open(task["file"], "r+b") as file:  # noqa: PTH123  no path of a file system
            arrays[task["file"]] = np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8).reshape(task["shape"])
    begin, corners = task["begin"], task["corners"]
    slides[path].fill_scaled(corners, arrays[task["file"]][begin : begin + len(corners)], tuple(task["scale"]))


if __name__ == "__main__":
    serve()
