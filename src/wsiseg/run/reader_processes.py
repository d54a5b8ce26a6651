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
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import cache
from importlib import import_module
from queue import SimpleQueue
from typing import IO, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsiseg.run.machine import CORES, cores

T = TypeVar("T")
Fill = Callable[..., None]
"""A function of a module that fills an array, uint8[...], its first argument; JSON can hold the others."""

_FEWEST_CORES = 4
_FOR_THE_REST = 2  # cores that the model and the files need


class _Reader(NamedTuple):
    """A process, and the pipes to and from it."""

    process: "subprocess.Popen[bytes]"
    tasks: IO[bytes]
    answers: IO[bytes]


class ReaderProcesses(AbstractContextManager["ReaderProcesses"]):
    """Processes that fill arrays for this one; `len` says how many. Close them or use them in a `with` block."""

    def __init__(self, count: int) -> None:
        self._idle: SimpleQueue[_Reader] = SimpleQueue()
        self._files: dict[int, int] = {}  # by the address of the memory
        self._spare: list[NDArray[np.uint8]] = []  # uint8[n] each, the memory of arrays that nobody uses
        self._lock = threading.Lock()
        self._all = [_started() for _ in range(count)]
        for reader in self._all:
            threading.Thread(target=self._greet, args=(reader,), daemon=True).start()

    @classmethod
    def for_accelerator(cls, sharing: int = 1) -> "ReaderProcesses | None":
        """Start as many as there are cores to spare for one of so many processes that share them.

        Returns:
            None where there are few, where no memory can be shared, and where `WSISEG_CORES` says how many this process
            may use: it is one of several then, each of which has an interpreter's lock of its own.
        """
        count = cores() // sharing
        can_share = hasattr(os, "memfd_create") and CORES not in os.environ
        return cls(count - _FOR_THE_REST) if count >= _FEWEST_CORES and can_share else None

    def __len__(self) -> int:
        return len(self._all)

    def __exit__(self, *_: object) -> None:
        self.close()

    def _greet(self, reader: _Reader) -> None:
        """Let a process work once it is ready, or be found dead."""
        reader.answers.readline()
        self._idle.put(reader)

    def array(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return an array that processes can read into: memory that was given back, if enough for it was.

        Memory comes in powers of two, so that arrays of any sizes share a few files; pages that none uses take no room.
        """
        size = math.prod(shape)
        with self._lock:
            flat = min((one for one in self._spare if one.size >= size), key=len, default=None)
            self._spare = [one for one in self._spare if one is not flat]
        if flat is None:
            file, whole = os.memfd_create("windows"), 1 << (size - 1).bit_length()
            os.ftruncate(file, whole)
            flat = np.frombuffer(mmap.mmap(file, whole), np.uint8)
            self._files[flat.ctypes.data] = file
        return flat[:size].reshape(shape)

    def give_back(self, array: NDArray[np.uint8]) -> None:
        """Let the memory of an array made by `array` be used for others."""
        assert isinstance(array.base, np.ndarray)  # noqa: S101  what `array` made
        with self._lock:
            self._spare.append(array.base)

    def fill(self, out: NDArray[np.uint8], function: Fill, *arguments: object) -> bool:
        """Let a process call a function to fill an array made by `array`, or some of its rows.

        Returns:
            False where the process could not.
        """
        assert isinstance(out.base, np.ndarray)  # noqa: S101  what `array` made
        begin = out.base.ctypes.data
        file = f"/proc/{os.getpid()}/fd/{self._files[begin]}"
        name = function.__module__, function.__qualname__
        task = json.dumps([name, (file, out.ctypes.data - begin, out.shape), arguments]).encode()
        reader, said = self._idle.get(), b""
        with suppress(OSError):  # it is dead
            reader.tasks.write(task + b"\n")
            reader.tasks.flush()
            said = reader.answers.readline()
        self._idle.put(reader)
        return said == b"done\n"

    def read(
        self, shape: tuple[int, ...], kept: Callable[[NDArray[np.uint8]], T], function: Fill, *arguments: object
    ) -> T:
        """Fill an array, here where no process can, and return what is `kept` of it: its memory is used again."""
        out = self.array(shape)
        try:
            if not self.fill(out, function, *arguments):
                function(out, *arguments)
            return kept(out)
        finally:
            self.give_back(out)

    def close(self) -> None:
        """End the processes and free the memory, once no array of theirs is used."""
        for reader in self._all:
            reader.process.kill()  # they hold nothing that must end well
        for reader in self._all:
            reader.process.wait()
            reader.answers.close()
            with suppress(OSError):  # it is dead
                reader.tasks.close()
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
    """Call what the lines of standard input ask for."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing else may be printed there
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            (module, name), (file, begin, shape), arguments = json.loads(line)
            out = _shared(file)[begin : begin + math.prod(shape)].reshape(shape)
            getattr(import_module(module), name)(out, *arguments)
            said = "done"
        except Exception:  # noqa: BLE001  who asked reads it again, and then hears why
            said = "failed"
        print(said, file=answers, flush=True)


@cache
def _shared(path: str) -> NDArray[np.uint8]:
    """Open the memory behind an array of the process that asks."""
    with open(path, "r+b") as file:  # noqa: PTH123  no path of a file system
        return np.frombuffer(mmap.mmap(file.fileno(), 0), np.uint8)


if __name__ == "__main__":
    serve()
