"""A file while it arrives: `<name>.part`, held by one process, its checksum kept up to date as it grows."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from wsiseg.run.errors import DownloadError, OutputError

_CHUNK = 1 << 20


class Checksum(NamedTuple):
    """What the bytes of a file must hash to."""

    algorithm: Literal["md5", "sha256"]
    hex: str


class Part:
    """The bytes of a file that have arrived so far.

    Args:
        file: Open for reading and writing, at its beginning.
        algorithm: How its checksum is made.
    """

    def __init__(self, file: BinaryIO, algorithm: str) -> None:
        self._file = file
        self._algorithm = algorithm
        self.size = 0
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        while chunk := file.read(_CHUNK):
            self._hash.update(chunk)
            self.size += len(chunk)

    def append(self, chunk: bytes) -> None:
        """Write what has arrived; it is in the file, not in a buffer, when this returns."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        """Throw away what has arrived."""
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.new(self._algorithm, usedforsecurity=False)
        self.size = 0

    def matches(self, checksum: Checksum) -> bool:
        """Say whether everything that arrived hashes to this."""
        return self._hash.hexdigest() == checksum.hex.lower()

    def settle(self) -> None:
        """Have the system write it to the disk, so that a power failure cannot leave a hole under the final name."""
        os.fsync(self._file.fileno())


@contextmanager
def held(path: Path, algorithm: str) -> Iterator[Part]:
    """Open `<path>.part` for this process alone, and rename it to `path` when the block ends well.

    When the block fails the part stays for another attempt, unless it is empty.

    Raises:
        DownloadError: Another process is fetching the same file.
        OutputError: It cannot be written.
    """
    name = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(name)
        try:
            part = Part(file, algorithm)
            yield part
            part.settle()
            if os.name == "nt":
                file.close()  # Windows does not rename open files
            name.replace(path)
        finally:
            file.close()
            if name.exists() and not name.stat().st_size:
                name.unlink()
    except OSError as error:
        advice = "free some room or choose another --out; what has arrived is kept"
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}", advice) from error


def _locked(name: Path) -> BinaryIO:
    """Open and lock a file; if it was renamed away meanwhile, the one that took its place."""
    while True:
        file = os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644), "r+b", buffering=0)
        try:
            if _lock(file) and name.exists() and os.path.samestat(os.fstat(file.fileno()), name.stat()):
                return file
        except BlockingIOError as error:
            file.close()
            raise DownloadError(f"{name}: another wsiseg is fetching it", "wait for it to end") from error
        file.close()


def _lock(file: BinaryIO) -> bool:
    if os.name == "nt":
        return True  # there a file that another process holds open cannot be renamed, which is what matters
    import fcntl  # noqa: PLC0415  does not exist on Windows

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def checksum_of(path: Path, algorithm: Literal["md5", "sha256"]) -> Checksum:
    """Hash a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return Checksum(algorithm, digest.hexdigest())
