"""Texts of HDF5 files that may be damaged, read by a process of its own.

The HDF5 library may never end reading a text of variable length from a damaged file, or end its process, and no thread
can stop it. So one process serves all files; where it does not answer in time it is ended, and the next file gets
another.
"""

import atexit
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock

from wsiseg.run.errors import StalledError, WsisegError
from wsiseg.slides.time_limit import TimeLimit

_LONGEST_S, _LONGEST_START_S = 3.0, 120.0
_SERVE = f"""
import json, signal, sys, h5py
alarm = getattr(signal, "alarm", lambda seconds: None)  # ends it where nobody is left to do so
print(flush=True)  # from here on it is quick
for line in sys.stdin:
    path, places = json.loads(line)
    alarm({2 * math.ceil(_LONGEST_S)})
    try:
        with h5py.File(path, "r") as file:
            answer = [str(file[place].attrs[name]) for place, name in places]
    except Exception as error:
        answer = str(error)
    alarm(0)
    print(json.dumps(answer), flush=True)
"""


def read_texts(path: Path, places: Sequence[tuple[str, str]]) -> list[str]:
    """Return attributes of an HDF5 file, each the name of an object in it and its own, as texts.

    Raises:
        WsisegError: They cannot be read, or not within seconds.
    """
    return _reader(os.getpid()).read(path, places)


@cache
def _reader(process: int) -> "_Reader":  # noqa: ARG001  a fork must not share its pipes
    reader = _Reader()
    atexit.register(reader.close)
    return reader


class _Reader:
    """The process, started where there is none."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = Lock()

    def read(self, path: Path, places: Sequence[tuple[str, str]]) -> list[str]:
        with self._lock:
            try:
                if self._process is None:
                    self._process = _started()
                    self._line(self._process, path, _LONGEST_START_S)
                task = json.dumps([str(path.absolute()), places])
                print(task, file=self._process.stdin, flush=True)
                answer = json.loads(self._line(self._process, path, _LONGEST_S))
            except (StalledError, OSError, ValueError) as error:  # it hangs or is dead
                self.close()
                text = f"{path}: cannot be read as HDF5: reading its texts does not end well"
                raise WsisegError(text, "compute the features again") from error
        if isinstance(answer, str):
            raise WsisegError(f"{path}: cannot be read as HDF5: {answer}", "compute the features again")
        return [str(one) for one in answer]

    def _line(self, process: "subprocess.Popen[str]", path: Path, seconds: float) -> str:
        assert process.stdout is not None  # noqa: S101  a pipe, as asked for
        limit = TimeLimit(str(path), seconds)
        line = limit.call(process.stdout.readline)
        limit.close()
        return line

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with self._process as process:  # which closes its pipes, and waits for it
                process.kill()
            self._process = None


def _started() -> "subprocess.Popen[str]":
    """Start it in a session of its own, so that it gets no Ctrl-C; it ends when nobody can write to it any more."""
    return subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        start_new_session=True,
    )
