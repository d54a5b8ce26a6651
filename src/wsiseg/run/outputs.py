"""Outputs that appear whole or not at all: written beside their place, then renamed."""

import csv
import errno
import gzip
import io
import itertools
import json
import mmap
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from wsiseg.run.errors import DAMAGED, OutputError

PACKED_FROM = 10_000_000
"""Bytes from which a text that may grow long is packed."""

UNTOUCHED_S = 120.0
"""Seconds after which a lock is free whose holder gives no sign of life, as its machine is gone."""

_THREAD_BYTES = 12 * 2**20  # its stack is 8 MB
_HOST = re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())


def _beside(path: Path, what: str = "partial") -> Path:
    return path.with_name(f".{path.name}.{what}-{_HOST}-{os.getpid()}")


def _remove_leftovers(path: Path) -> None:
    """Remove what processes of this machine that were killed have left beside `path`."""
    begin, host = f".{path.name}.", f"-{_HOST}-"
    for name in os.listdir(path.parent):  # noqa: PTH208  a pattern would be compiled anew for every file
        process = name.rpartition(host)[2] if name.startswith(begin) else ""
        if process.isdigit() and not _is_alive(int(process)):
            _remove(path.parent / name)


def _is_alive(process: int) -> bool:
    if sys.platform == "win32":  # there a signal 0 would end the process; what is in use cannot be removed anyway
        return process == os.getpid()
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True


def _remove(path: Path) -> None:
    """Remove a file or a folder; where that fails, what failed before it is what the user must hear of."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _replace(partial: Path, path: Path) -> None:
    """Put `partial` in the place of `path`; a folder that stood there is moved away first."""
    if not path.is_dir():
        partial.replace(path)
        return
    old = _beside(path, "old")
    path.replace(old)
    partial.replace(path)
    _remove(old)


def cannot_be_written(path: Path, error: OSError) -> OutputError:
    """Return the error that says why a file cannot be written."""
    reason = error.strerror or str(error)
    is_full = error.errno in {None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    advice = "free some room or choose another --out" if is_full else "choose an --out that can be written"
    return OutputError(f"{path}: cannot be written: {reason}", advice)


def _refuse_a_thread_without_room() -> None:
    """Refuse to start a thread where memory does not suffice for its stack and its first step.

    CPython waits for a new thread to say that it has begun. One whose stack took the last memory dies before that,
    without a word, and whoever started it waits for ever.
    """
    if os.name == "posix":
        try:
            mmap.mmap(-1, _THREAD_BYTES, flags=mmap.MAP_PRIVATE).close()  # nobody touches its pages
        except OSError as error:
            raise RuntimeError("can't start new thread") from error


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock that is a file at `path`, whose folder is made; other processes wait for it meanwhile.

    Raises:
        OutputError: The folder is read-only, the disk is full, or the like.
        RuntimeError: There is no memory for the thread that says that the lock is held.
        Timeout: Another process holds it, and this one does not `wait`.
    """
    from filelock import SoftFileLease, Timeout  # noqa: PLC0415  only where something is written

    _refuse_a_thread_without_room()
    lock = SoftFileLease(path)  # a lease, so that a process of another machine that died just here stops nobody
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = lock.acquire(blocking=wait)
    except Timeout:
        raise
    except OSError as error:
        raise cannot_be_written(path, error) from error
    with held:
        yield


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or a folder to, and rename it to `path` when the block ends well.

    Raises:
        OutputError: The folder is read-only, the disk is full, or the like; what stood at `path` is untouched.
    """
    partial = _beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        _remove_leftovers(path)
        yield partial
        _replace(partial, path)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and error.filename and str(partial) not in str(error.filename):
            raise
        raise cannot_be_written(path, error) from error
    finally:
        _remove(partial)


def check_folder(folder: Path) -> None:
    """Make a folder where there is none and write to it, before work begins that would be lost.

    Raises:
        OutputError: Nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise cannot_be_written(folder, error) from error


@contextmanager
def scratch_folder(outputs: Path) -> Iterator[Path]:
    """Yield an empty folder that is removed at the end: in that of outputs where the system's cannot be written."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="wsiseg-", ignore_cleanup_errors=True)
    except OSError:  # as in a container whose root is read-only
        try:
            outputs.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix=".wsiseg-", dir=outputs, ignore_cleanup_errors=True)
        except OSError as error:
            raise cannot_be_written(outputs, error) from error
    with folder as name:
        yield Path(name)


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, whole or not at all; bytes that are not UTF-8 are escaped as in JSON."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def packed_name(path: Path) -> Path:
    """Return the name of a text file that is packed with gzip."""
    return path.with_name(f"{path.name}.gz")


def write_packed(path: Path, parts: Iterable[str], most_bytes: int = PACKED_FROM) -> Path:
    """Write a text as UTF-8 while it comes, packed under `packed_name` where it is long; whole or not at all.

    The text is never held as a whole, and the file of the other kind that an earlier run has left is removed.

    Returns:
        Where the text lies: at `path`, or packed beside it.

    Raises:
        OutputError: It cannot be written.
    """
    coming, head, length = iter(parts), list[bytes](), 0
    for part in coming:
        head.append(part.encode())
        length += len(head[-1])
        if length > most_bytes:
            break
    is_long = length > most_bytes
    place, other = (packed_name(path), path) if is_long else (path, packed_name(path))
    with written_whole(place) as partial:
        with (
            partial.open("wb") as file,
            # Packed without a time and a name, which would make equal results differ.
            gzip.GzipFile("", "wb", 6, file, 0) if is_long else nullcontext(file) as target,
        ):
            target.writelines(itertools.chain(head, (part.encode() for part in coming)))
        other.unlink(missing_ok=True)
    return place


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401  any JSON value
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Return rows as CSV, the heads first."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def save_arrays(path: Path, key: str, **arrays: Any) -> None:  # noqa: ANN401  what NumPy makes an array of
    """Keep arrays of work that is not done, for `load_arrays` with the same key."""
    import numpy as np  # noqa: PLC0415  heavy: only where there are arrays

    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez(file, key=np.asarray(key), **arrays)


def load_arrays(path: Path, key: str) -> dict[str, Any] | None:
    """Return the arrays that were kept with this key; None where there are none that can be read."""
    import numpy as np  # noqa: PLC0415  heavy: only where there are arrays

    try:
        # Opened here, as NumPy leaves a file open that turns out to be damaged.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return dict(stored) if str(stored["key"]) == key else None
    except DAMAGED:
        return None
